"""Models of timm as towers: grids, levels, connectors, weights, export."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file

from saga_ray import load_encoder
from saga_ray.configure import resolve
from saga_ray.encoder.encoder import build_encoder
from saga_ray.encoder.export import save_encoder
from saga_ray.encoder.timm_tower import TimmTower
from saga_ray.storage import Storage

VIT, CONVNET, WINDOWS = "test_vit", "test_resnet", "swin_tiny_patch4_window7_224"


def tower_of(name: str, size: int = 64, **more: Any) -> TimmTower:
    values = {"width": 48, "num_levels": 1, "seed": 0, "weights": None, "revision": None} | more
    return TimmTower.created(name, size, **values)


def images_of(num: int, size: int = 64, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (num, size, size, 3), dtype=np.uint8))


@pytest.mark.parametrize(("name", "size", "grid"), [(VIT, 64, (4, 4)), (VIT, 96, (6, 6)), (CONVNET, 96, (3, 3))])
def test_tokens_form_the_models_grid_in_raster_order(name: str, size: int, grid: tuple[int, int]) -> None:
    tower = tower_of(name, size)
    tower.check_size(size)
    images_NHWC = images_of(2, size)
    with torch.no_grad():
        found = tower(images_NHWC)
        features = tower.model.forward_features(tower.normalised(images_NHWC))
    assert found.grid_hw == grid
    assert found.tokens_NLTD.shape == (2, 1, grid[0] * grid[1], 48)
    raster = features[:, 1:] if name == VIT else features.flatten(2).transpose(1, 2)
    assert torch.equal(found.tokens_NLTD[:, 0], tower.connectors[0](raster))


def test_a_map_with_channels_last_is_read_in_raster_order_too() -> None:
    tower = tower_of(WINDOWS, 224)
    with torch.no_grad():
        features, grid_hw = tower.features(tower.normalised(images_of(1, 224)))
        want_NHWC = tower.model.forward_features(tower.normalised(images_of(1, 224)))
    assert grid_hw == (7, 7)
    assert torch.equal(features[0], want_NHWC.flatten(1, 2))


def test_deepstack_levels_read_earlier_blocks_and_begin_silent() -> None:
    tower = tower_of("vit_tiny_patch16_224", 64, num_levels=4)
    pixels_NCHW = tower.normalised(images_of(2))
    with torch.no_grad():
        features, _ = tower.features(pixels_NCHW)
        _, want = tower.model.forward_intermediates(pixels_NCHW, indices=[2, 5, 8], output_fmt="NLC")
        tokens_NLTD = tower(images_of(2)).tokens_NLTD
    assert all(torch.equal(a, b) for a, b in zip(features[1:], want, strict=True))
    assert torch.equal(features[0], tower.model.forward_features(pixels_NCHW)[:, 1:])
    assert bool(tokens_NLTD[:, 0].any())
    assert not tokens_NLTD[:, 1:].any()


@pytest.mark.parametrize("name", [VIT, CONVNET])
def test_every_parameter_gets_a_gradient(name: str) -> None:
    tower = tower_of(name, num_levels=2).train()
    torch.nn.init.normal_(tower.connectors[1][3].weight)  # silent at the start
    for module in tower.model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.ones_(module.weight)  # timm begins with residual branches at 0
    tokens_NLTD = tower(images_of(2)).tokens_NLTD
    (tokens_NLTD * torch.randn(tokens_NLTD.shape, generator=torch.Generator().manual_seed(0))).sum().backward()
    assert [n for n, value in tower.named_parameters() if value.grad is None or not value.grad.any()] == []


def test_training_mode_changes_nothing_and_new_parameters_depend_on_the_seed_alone() -> None:
    tower, again, other = tower_of(CONVNET), tower_of(CONVNET), tower_of(CONVNET, seed=1)
    before = {name: value.clone() for name, value in tower.state_dict().items()}
    with torch.no_grad():
        assert torch.equal(tower.train()(images_of(3)).tokens_NLTD[:1], again.eval()(images_of(3)).tokens_NLTD[:1])
        assert not torch.equal(tower(images_of(1)).tokens_NLTD, other(images_of(1)).tokens_NLTD)
    assert all(torch.equal(value, before[name]) for name, value in tower.state_dict().items())


def test_weights_come_from_safetensors_of_timms_form(tmp_path: Path) -> None:
    torch.manual_seed(3)
    source = timm.create_model(VIT, pretrained=False, img_size=160)  # with its classifier, and another grid
    save_file(source.state_dict(), tmp_path / "vit.safetensors")
    tower = tower_of(VIT, 160, weights=str(tmp_path / "vit.safetensors"))
    pixels_NCHW = tower.normalised(images_of(2, 160))
    with torch.no_grad():
        assert torch.equal(tower.model.forward_features(pixels_NCHW), source.eval().forward_features(pixels_NCHW))
    smaller = tower_of(VIT, 64, weights=str(tmp_path / "vit.safetensors"))
    assert torch.equal(smaller.model.blocks[0].attn.qkv.weight, source.blocks[0].attn.qkv.weight)


def test_weights_that_cannot_be_used_are_refused_in_a_sentence(tmp_path: Path) -> None:
    torch.save({}, tmp_path / "vit.bin")
    for weights, said in (
        (str(tmp_path / "vit.bin"), "is not a .safetensors file"),
        (str(tmp_path / "none.safetensors"), "is not a .safetensors file"),
        ("hub", r"encoder\.revision: missing"),
    ):
        with pytest.raises(ValueError, match=said):
            tower_of(VIT, weights=weights)
    save_file({"x": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match=r"encoder\.weights: .*other\.safetensors (does not fit|is of another model)"):
        tower_of(VIT, weights=str(tmp_path / "other.safetensors"))
    (tmp_path / "broken.safetensors").write_bytes(b"abc")
    with pytest.raises(ValueError, match="cannot be read"):
        tower_of(VIT, weights=str(tmp_path / "broken.safetensors"))


@pytest.mark.parametrize("name", ["vit_of_nobody", "vit_small_patch16_223"])
def test_an_unknown_model_is_refused_with_others(name: str) -> None:
    with pytest.raises(ValueError, match=rf"^encoder\.tower: timm:{name} cannot be made.*such as [a-z]"):
        tower_of(name)


def test_a_run_builds_it_to_the_mllms_width_and_levels_and_exports_it(tmp_path: Path) -> None:
    config = resolve("demo", overrides={"encoder.tower": f"timm:{VIT}"})
    encoder = build_encoder(config)
    size = config.data.image_size
    with torch.no_grad():
        want = encoder(images_of(2, size))
    assert want.tokens.tokens_NLTD.shape == (2, 4, (size // 16) ** 2, 128)  # what the demo MLLM reads
    save_encoder(encoder, Storage.open(tmp_path / "run").child("encoder"), size)
    assert torch.equal(load_encoder(tmp_path / "run")(images_of(2, size)), want.embedding_NE)
