"""Towers of every family: the library's own tokens, from a folder alone and back from an export."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import transformers.models.smolvlm.processing_smolvlm as smolvlm_processing
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from saga_ray import load_encoder
from saga_ray.config import MLLMConfig
from saga_ray.configure import resolve
from saga_ray.encoder.build import build_tower, mllm_tower, token_grid
from saga_ray.encoder.encoder import Encoder
from saga_ray.encoder.export import save_encoder
from saga_ray.encoder.library_tower import FIXED
from saga_ray.encoder.pooler import build_pooler
from saga_ray.mllm.loading import load_mllm
from saga_ray.storage import Storage
from tests.helpers.small_families import HIDDEN, IMAGE_SIZE, SMALL_FAMILIES, small_family_folder

UNREACHED = {
    # LLaVA reads the features before the tower's last layer, LLaVA-OneVision those before its last norm.
    "llava": ("shell.vision_tower.encoder.layers.2.", "shell.vision_tower.post_layernorm."),
    "llava_onevision": ("shell.vision_tower.post_layernorm.",),
}


@pytest.fixture(scope="module", params=SMALL_FAMILIES)
def named_folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(smolvlm_processing, "num2words", str)  # for videos only, and not among our packages
        yield request.param, small_family_folder(tmp_path_factory.mktemp("families") / request.param, request.param)


def images_of(num: int, seed: int = 0) -> torch.Tensor:
    shape = (num, IMAGE_SIZE, IMAGE_SIZE, 3)
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8))


def test_the_grid_of_tokens_is_known_without_weights(named_folder: tuple[str, Path]) -> None:
    name, folder = named_folder
    sizes = (IMAGE_SIZE,) if name in FIXED else (IMAGE_SIZE, 2 * IMAGE_SIZE)
    for size in sizes:
        for tower in ("mllm", "timm:test_vit") if name == "qwen3_vl" else ("mllm",):
            values = {"mllm.path": str(folder), "data.image_size": size, "encoder.tower": tower}
            config = resolve("demo", overrides=values)
            images_NHWC = torch.zeros(1, size, size, 3, dtype=torch.uint8)
            with torch.no_grad():
                tokens = build_tower(config)(images_NHWC)
            assert token_grid(config) == tuple(tokens.grid_hw)
            assert tokens.tokens_NLTD.shape[2] == tokens.grid_hw[0] * tokens.grid_hw[1]


def test_tokens_equal_those_of_processor_and_library(named_folder: tuple[str, Path]) -> None:
    name, folder = named_folder
    mllm = load_mllm(MLLMConfig(path=str(folder), dtype="float32"))
    images_NHWC = images_of(3)
    options = SMALL_FAMILIES[name].crops_off
    images = [[image] for image in images_NHWC.numpy()] if name in ("smolvlm", "idefics3") else [*images_NHWC.numpy()]
    inputs = dict(mllm.processor.image_processor(images, return_tensors="pt", **options))
    if name == "llava_onevision":
        inputs |= {"pixel_values": inputs["pixel_values"][:, 0], "batch_num_images": torch.tensor([3])}
    known = ("pixel_values", "pixel_attention_mask", "image_grid_thw", "image_sizes", "batch_num_images")
    tower = mllm_tower(str(folder))
    with torch.no_grad():
        found = mllm.model.model.get_image_features(
            **{key: value for key, value in inputs.items() if key in known}, return_dict=True
        )
        ours = tower(images_NHWC)
    levels = [found.pooler_output, *(getattr(found, "deepstack_features", None) or [])]
    want_NLTD = torch.stack(
        [torch.cat([x.reshape(-1, HIDDEN) for x in level]).view(3, -1, HIDDEN)[:, :4] for level in levels], dim=1
    )
    assert ours.grid_hw == (2, 2)
    assert ours.tokens_NLTD.shape == want_NLTD.shape == (3, mllm.num_levels, 4, mllm.width)
    assert tower.width == mllm.width
    assert (ours.tokens_NLTD - want_NLTD).abs().max() < 1e-5 * want_NLTD.abs().max()


def test_every_parameter_gets_a_gradient_but_those_known_to_have_no_effect(named_folder: tuple[str, Path]) -> None:
    name, folder = named_folder
    tower = mllm_tower(str(folder)).train()
    tokens_NLTD = tower(images_of(2)).tokens_NLTD
    (tokens_NLTD * torch.randn(tokens_NLTD.shape, generator=torch.Generator().manual_seed(0))).sum().backward()
    without = [n for n, value in tower.named_parameters() if value.grad is None or not value.grad.any()]
    assert all(n.startswith(UNREACHED.get(name, ())) for n in without), without
    assert len(without) == {"llava": 18, "llava_onevision": 2}.get(name, 0)


def test_tokens_of_an_image_do_not_depend_on_its_batch(named_folder: tuple[str, Path]) -> None:
    tower = mllm_tower(str(named_folder[1]), dtype=torch.float64)
    with torch.no_grad():
        together, alone = tower(images_of(4)).tokens_NLTD[2:3], tower(images_of(4)[2:3]).tokens_NLTD
    # The library rounds rotary products to float32 in between.
    assert (together - alone).abs().max() <= 1e-6 * alone.abs().max()


def test_an_exported_encoder_comes_back_without_the_mllm(named_folder: tuple[str, Path], tmp_path: Path) -> None:
    tower = mllm_tower(str(named_folder[1]))
    encoder = Encoder(tower, build_pooler("attention", tower.width, 24, seed=5)).train()
    save_encoder(encoder, Storage.open(tmp_path / "run").child("encoder"), IMAGE_SIZE)
    with torch.no_grad():
        want_NE = encoder(images_of(3)).embedding_NE
    assert torch.equal(load_encoder(tmp_path / "run")(images_of(3)), want_NE)


def test_only_tensors_of_the_vision_side_are_read(
    named_folder: tuple[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []

    class Watched:
        def __init__(self, *args: object, **kwargs: object) -> None:
            self.stream = safe_open(*args, **kwargs)

        def __enter__(self) -> Watched:
            self.stream.__enter__()
            return self

        def __exit__(self, *error: object) -> None:
            self.stream.__exit__(*error)

        def keys(self) -> list[str]:
            return self.stream.keys()

        def get_tensor(self, key: str) -> torch.Tensor:
            read.append(key)
            return self.stream.get_tensor(key)

    monkeypatch.setattr("saga_ray.encoder.mllm_files.safe_open", Watched)
    mllm_tower(str(named_folder[1]))
    assert read
    assert not [key for key in read if "language_model" in key or "text_model" in key or "lm_head" in key]


def test_an_image_size_that_does_not_fit_is_refused_with_its_key(named_folder: tuple[str, Path]) -> None:
    with pytest.raises(ValueError, match=r"data\.image_size: 40"):
        mllm_tower(str(named_folder[1])).check_size(40)


def test_weights_that_do_not_fill_the_tower_are_refused(tmp_path: Path) -> None:
    folder = small_family_folder(tmp_path / "gemma3", "gemma3")
    weights = load_file(folder / "model.safetensors")
    gone = next(key for key in weights if "mm_soft_emb_norm" in key)
    weights.pop(gone)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"do not fit its config .*mm_soft_emb_norm"):
        mllm_tower(str(folder))
