import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoImageProcessor
from transformers.models.qwen3_vl.configuration_qwen3_vl import Qwen3VLVisionConfig
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLVisionModel

from saga_ray.encoder.mllm_files import vision_weights
from saga_ray.encoder.tower import VisionTower
from tests.helpers.small_mllm import small_mllm_folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_mllm_folder(tmp_path_factory.mktemp("mllm") / "small")


def _images(num: int = 3, size: int = 64, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (num, size, size, 3), dtype=np.uint8))


def _stock(folder: Path, dtype: torch.dtype) -> Qwen3VLVisionModel:
    settings = json.loads((folder / "config.json").read_text())["vision_config"]
    model = Qwen3VLVisionModel(Qwen3VLVisionConfig.from_dict(settings))
    model.load_state_dict(vision_weights(folder))
    return model.to(dtype)


def test_patches_are_the_stock_processors_bit_for_bit(folder: Path) -> None:
    images_NHWC = _images()
    processor = AutoImageProcessor.from_pretrained(folder)
    stock = processor(images=list(images_NHWC.numpy()), do_resize=False, return_tensors="pt")
    ours, grid = VisionTower.from_mllm_folder(str(folder)).patches(images_NHWC)
    assert stock["image_grid_thw"].tolist() == [[1, *grid]] * 3
    assert torch.equal(ours, stock["pixel_values"])


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.float64, 1e-6)])
def test_tokens_of_every_level_equal_the_stock_tower(folder: Path, dtype: torch.dtype, tolerance: float) -> None:
    # float64 is held to 1e-6 only because the stock code rounds rotary products to float32 in between.
    images_NHWC = _images()
    tower = VisionTower.from_mllm_folder(str(folder), dtype=dtype)
    patches, (rows, columns) = tower.patches(images_NHWC)
    with torch.no_grad():
        stock = _stock(folder, dtype)(patches, grid_thw=torch.tensor([[1, rows, columns]] * 3))
        ours = tower(images_NHWC)
    levels = [stock.pooler_output, *stock.deepstack_features]
    assert ours.tokens_NLTD.shape[1] == len(levels) > 1
    for level, tokens_TD in enumerate(levels):
        mine = ours.tokens_NLTD[:, level].flatten(0, 1)
        assert (mine - tokens_TD).abs().max() <= tolerance * tokens_TD.abs().max()


def test_tokens_are_in_raster_order(folder: Path) -> None:
    tower = VisionTower.from_mllm_folder(str(folder))
    blank = torch.full((1, 64, 64, 3), 128, dtype=torch.uint8)
    dot = blank.clone()
    dot[0, 0:4, 40:44] = 255  # first row of merged tokens
    patches_of_blank, _ = tower.patches(blank)
    changed = (tower.patches(dot)[0] != patches_of_blank).any(dim=1).nonzero().flatten()
    grid_w = tower(blank).grid_hw[1]
    merged = tower.visual.config.spatial_merge_size**2
    side = 64 // grid_w
    assert set((changed // merged).tolist()) == {40 // side}


def test_an_images_tokens_do_not_depend_on_its_batch_in_float64(folder: Path) -> None:
    tower = VisionTower.from_mllm_folder(str(folder), dtype=torch.float64)
    images_NHWC = _images(5)
    with torch.no_grad():
        together, alone = tower(images_NHWC).tokens_NLTD[3:4], tower(images_NHWC[3:4]).tokens_NLTD
    assert (together - alone).abs().max() <= 1e-13 * alone.abs().max()


def test_every_parameter_gets_a_gradient_from_the_tokens(folder: Path) -> None:
    tower = VisionTower.from_mllm_folder(str(folder))
    tokens_NLTD = tower(_images()).tokens_NLTD
    (tokens_NLTD * torch.randn(tokens_NLTD.shape, generator=torch.Generator().manual_seed(0))).sum().backward()
    without = [name for name, value in tower.named_parameters() if value.grad is None or not value.grad.any()]
    assert without == []


def test_a_sharded_folder_gives_the_same_tower(folder: Path, tmp_path: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    shards: list[dict[str, torch.Tensor]] = [{}, {}]
    for number, (key, value) in enumerate(weights.items()):
        shards[number % 2][key] = value
    names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    for name, shard in zip(names, shards, strict=True):
        save_file(shard, tmp_path / name)
    weight_map = {key: name for name, shard in zip(names, shards, strict=True) for key in shard}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    for path in folder.glob("*config.json"):
        (tmp_path / path.name).write_text(path.read_text())
    whole, sharded = (VisionTower.from_mllm_folder(str(f)).state_dict() for f in (folder, tmp_path))
    assert whole.keys() == sharded.keys()
    assert all(torch.equal(whole[key], sharded[key]) for key in whole)


def test_an_image_size_that_does_not_fit_is_refused_with_its_key(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"data\.image_size: images of 40 x 40"):
        VisionTower.from_mllm_folder(str(folder))(_images(size=40))


def test_what_is_not_a_qwen3_vl_folder_is_refused_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"mllm\.path: .*config\.json is missing"):
        VisionTower.from_mllm_folder(str(tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "llava"}')
    (tmp_path / "preprocessor_config.json").write_text('{"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}')
    with pytest.raises(ValueError, match=r"mllm\.path: .*model_type 'llava'"):
        VisionTower.from_mllm_folder(str(tmp_path))
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"mllm\.path: .*not readable JSON"):
        VisionTower.from_mllm_folder(str(tmp_path))


def test_a_hub_id_without_revision_is_refused() -> None:
    with pytest.raises(ValueError, match=r"mllm\.revision: missing for the hub model someone/model"):
        VisionTower.from_mllm_folder("someone/model")
