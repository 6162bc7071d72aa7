import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from saga_ray import load_encoder
from saga_ray.encoder.encoder import Encoder
from saga_ray.encoder.export import ImageEmbedder, save_encoder
from saga_ray.encoder.pooler import build_pooler
from saga_ray.encoder.tower import VisionTower
from saga_ray.storage import Storage
from tests.data.trees import jpeg_with_damaged_exif
from tests.helpers.small_mllm import IMAGE_SIZE, small_mllm_folder


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    tower = VisionTower.from_mllm_folder(str(small_mllm_folder(tmp_path_factory.mktemp("mllm") / "small")))
    return Encoder(tower, build_pooler("attention", tower.width, 24, seed=5))


@pytest.fixture
def run(encoder: Encoder, tmp_path: Path) -> Path:
    save_encoder(encoder, Storage.open(tmp_path / "run").child("encoder"), IMAGE_SIZE)
    return tmp_path / "run"


def _images(num: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (num, IMAGE_SIZE, IMAGE_SIZE, 3), dtype=np.uint8)


def test_a_loaded_encoder_gives_the_same_embeddings(encoder: Encoder, run: Path) -> None:
    images_NHWC = _images(3)
    with torch.no_grad():
        expected_NE = encoder(torch.from_numpy(images_NHWC)).embedding_NE
    loaded = load_encoder(run)
    assert isinstance(loaded, torch.nn.Module)
    assert torch.equal(loaded(images_NHWC), expected_NE)
    assert torch.equal(loaded(torch.from_numpy(images_NHWC)), expected_NE)
    assert torch.equal(load_encoder(run / "encoder")([Image.fromarray(image) for image in images_NHWC]), expected_NE)


def test_pictures_are_resized_as_the_data_readers_do(run: Path, tmp_path: Path) -> None:
    from saga_ray.data.pixels.images import decode

    picture = Image.fromarray(np.random.default_rng(1).integers(0, 256, (50, 70, 3), dtype=np.uint8))
    picture.save(tmp_path / "picture.png")
    decoded_HWC = decode(tmp_path / "picture.png", IMAGE_SIZE)
    loaded = load_encoder(run)
    assert torch.equal(loaded([picture]), loaded(decoded_HWC[None].copy()))
    see_through = Image.fromarray(np.random.default_rng(2).integers(0, 256, (50, 70, 4), dtype=np.uint8))
    see_through.save(tmp_path / "see_through.png")
    decoded_HWC = decode(tmp_path / "see_through.png", IMAGE_SIZE)
    assert torch.equal(loaded([see_through]), loaded(decoded_HWC[None].copy()))


def test_loading_needs_neither_ray_nor_the_mllm_code(run: Path) -> None:
    code = (
        "import sys, saga_ray, torch; m = saga_ray.load_encoder(sys.argv[1]); "
        f"print(m(torch.zeros(1, {IMAGE_SIZE}, {IMAGE_SIZE}, 3, dtype=torch.uint8)).shape); "
        "bad = [n for n in sys.modules if n.split('.')[0] == 'ray' or n.startswith('saga_ray.mllm')]; assert not bad, bad"
    )
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", code, str(run)], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert "torch.Size([1, 24])" in done.stdout


def test_what_holds_no_encoder_is_refused_in_a_sentence(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no trained encoder"):
        load_encoder(tmp_path / "nothing")
    weights = run / "encoder" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"model\.safetensors is damaged"):
        load_encoder(run)
    (run / "encoder" / "encoder.json").write_text('{"format": 1}')
    with pytest.raises(ValueError, match=r"encoder\.json is damaged"):
        load_encoder(run)


def test_images_of_another_size_are_refused_in_a_sentence(run: Path) -> None:
    with pytest.raises(ValueError, match=r"expected uint8 \(N, 32, 32, 3\)"):
        load_encoder(run)(np.zeros((1, 48, 48, 3), dtype=np.uint8))


@pytest.mark.parametrize(
    ("images", "said"),
    [(["a.png"], "got str"), ([], "the list is empty"), ("a.png", "got str"), (Image.new("RGB", (8, 8)), "got Image")],
)
def test_what_is_no_list_of_images_is_refused_in_a_sentence(images: object, said: str) -> None:
    embedder = ImageEmbedder(torch.nn.Identity(), 32)
    with pytest.raises(ValueError, match=f"^images: .*{said}"):
        embedder(images)


def test_an_image_with_damaged_exif_data_is_refused_in_a_sentence(run: Path, tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(jpeg_with_damaged_exif())
    with Image.open(tmp_path / "a.jpg") as image, pytest.raises(ValueError, match=r"^images: damaged EXIF data in .*a\.jpg"):  # fmt: skip
        load_encoder(str(run))([image])
