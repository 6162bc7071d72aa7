"""`encoder.trainable`: which parameters learn, whatever the tower."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch

from saga_ray.config import LossWeights
from saga_ray.configure import resolve
from saga_ray.encoder.encoder import Encoder, build_encoder
from saga_ray.train.local import run_local
from saga_ray.train.optim import build_optimizer, freeze_unreached, freeze_untrained, unreached_sentence
from tests.helpers.small_families import IMAGE_SIZE, small_family_folder
from tests.train.small import SMALL


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    path = tmp_path_factory.mktemp("families")
    return {name: small_family_folder(path / name, name) for name in ("gemma3", "llava", "qwen3_vl")}


def trained(folder: Path, chosen: str, **more: object) -> tuple[Encoder, list[str]]:
    overrides = {"mllm.path": str(folder), "data.image_size": IMAGE_SIZE, "encoder.trainable": chosen, **more}
    config = resolve("demo", overrides=overrides)
    encoder = build_encoder(config)
    freeze_untrained(encoder, config)
    return encoder, [name for name, value in encoder.named_parameters() if value.requires_grad]


def test_the_last_blocks_and_what_stands_behind_them(folders: dict[str, Path]) -> None:
    _, names = trained(folders["gemma3"], "blocks:1")
    tower = [name for name in names if name.startswith("tower.")]
    assert {name.split(".layers.")[1].split(".")[0] for name in tower if ".layers." in name} == {"1"}
    rest = {name.removeprefix("tower.shell.").split(".")[0] for name in tower if ".layers." not in name}
    assert rest == {"vision_tower", "multi_modal_projector"}
    assert any("post_layernorm" in name for name in tower)
    assert not any("embeddings" in name for name in tower)
    assert any(name.startswith("pooler.") for name in names)
    _, names = trained(folders["qwen3_vl"], "blocks:2")
    assert {name.split("blocks.")[1][0] for name in names if "blocks." in name} == {"2", "3"}
    assert any("deepstack_merger_list" in name for name in names)
    assert not any("patch_embed" in name for name in names)


def test_norms_alone(folders: dict[str, Path]) -> None:
    encoder, names = trained(folders["gemma3"], "norms")
    tower = [name for name in names if name.startswith("tower.")]
    assert (
        len(tower) == 4 * 2 + 2 + 1
    )  # two norms with weight and bias in each of two blocks, the last, the projector's
    assert all("norm" in name for name in tower)
    assert sum(value.requires_grad for value in encoder.tower.parameters()) == len(tower)


def test_a_new_connector_learns_with_the_pooler_and_at_its_rate(folders: dict[str, Path]) -> None:
    for chosen, with_blocks in (("pooler", False), ("norms", True), ("blocks:1", True), ("all", True)):
        more = {"encoder.tower": "timm:test_vit"}
        encoder, names = trained(folders["gemma3"], chosen, **more)
        assert sum("connectors" in name for name in names) == 6
        assert any(name.startswith("tower.model.") for name in names) == with_blocks
        config = resolve("demo", overrides={"optim.lr_tower": 1e-5, "optim.lr_pooler": 1e-3})
        optimizer = build_optimizer(encoder, None, config.optim)
        rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
        assert {rates[id(p)] for p in encoder.tower.connectors.parameters()} == {1e-3}
        assert {rates[id(p)] for p in encoder.tower.model.parameters() if p.requires_grad} == (
            {1e-5} if with_blocks else set()
        )
    _, names = trained(folders["gemma3"], "none", **{"encoder.tower": "timm:test_vit"})
    assert names == []


def test_parameters_that_no_loss_reaches_are_named_and_left_out(folders: dict[str, Path]) -> None:
    encoder, _ = trained(folders["llava"], "all")
    images = torch.randint(0, 256, (2, IMAGE_SIZE, IMAGE_SIZE, 3), dtype=torch.uint8)
    names = freeze_unreached(encoder, images, LossWeights(), True)
    assert len(names) == 18
    assert all("encoder.layers.2." in name or "post_layernorm" in name for name in names)
    assert not any(dict(encoder.named_parameters())[name].requires_grad for name in names)


def test_what_was_asked_for_and_gets_no_gradient_is_said_aloud(
    folders: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """LLaVA reads the features before its tower's last block: of `blocks:1` the projector alone learns."""
    values = {"mllm.path": str(folders["llava"]), "data.image_size": IMAGE_SIZE, "optim.steps": 1}
    values |= {"encoder.trainable": "blocks:1"}
    config = resolve("demo", method="potential-field", overrides=SMALL | values)
    run_local(config, str(tmp_path), "warned")
    (line,) = [record.message for record in caplog.records if "encoder.trainable" in record.message]
    assert line.startswith(
        "encoder.trainable: blocks:1, but no loss of this run reaches 18 of these 22 tensors (those of "
    )
    assert "encoder.layers.2.self_attn" in line and line.endswith("they stay as they are")
    assert all(record.levelno == logging.WARNING for record in caplog.records if record.message == line)


def test_a_tower_of_which_nothing_would_learn_is_refused(folders: dict[str, Path]) -> None:
    encoder, asked = trained(folders["llava"], "blocks:1")
    images = torch.randint(0, 256, (2, IMAGE_SIZE, IMAGE_SIZE, 3), dtype=torch.uint8)
    weights = LossWeights(metric=0.0, grpo=0.0, alignment=1.0)  # the pooler's weights alone
    names = freeze_unreached(encoder, images, weights, False)
    with pytest.raises(ValueError, match=r"encoder\.trainable: blocks:1, but no loss of this run reaches any") as error:
        unreached_sentence("blocks:1", asked, names)
    assert "\n" not in str(error.value) and "encoder.trainable=pooler" in str(error.value)
    assert unreached_sentence("pooler", [name for name in asked if "pooler" in name], []) is None


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("encoder.trainable", "some", "encoder.trainable: 'some' is unknown; choose all, blocks:N"),
        ("encoder.trainable", "blocks:0", "encoder.trainable: 'blocks:0' is unknown"),
        ("encoder.tower", "clip", "encoder.tower: 'clip' is unknown; choose mllm, or timm:NAME"),
        ("encoder.weights", "vit.safetensors", "encoder.weights: without effect for encoder.tower=mllm"),
    ],
)
def test_unknown_values_are_refused_in_a_sentence(key: str, value: str, said: str) -> None:
    with pytest.raises(ValueError, match=said.replace("(", r"\(")):
        resolve("demo", overrides={key: value})


def test_more_blocks_than_there_are_is_refused(folders: dict[str, Path]) -> None:
    with pytest.raises(ValueError, match=r"encoder\.trainable: blocks:7, but this tower has 2 blocks; choose fewer"):
        trained(folders["gemma3"], "blocks:7")
