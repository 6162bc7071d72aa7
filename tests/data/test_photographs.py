"""Real photographs through the decoder: every way to store one picture gives that picture, and damage is found."""

from __future__ import annotations

import warnings
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from saga_ray.data.pixels.images import MAX_PIXELS, BrokenImageError, decode, open_rgb
from tests.data.test_images import _png_header

PHOTOGRAPHS = [Path(str(files("sklearn.datasets") / "images" / name)) for name in ("china.jpg", "flower.jpg")]
SIZE = 224


def mean_difference(a_HWC: np.ndarray, b_HWC: np.ndarray) -> float:
    return float(np.abs(a_HWC.astype(float) - b_HWC.astype(float)).mean())


@pytest.mark.parametrize("path", PHOTOGRAPHS, ids=lambda path: path.stem)
def test_a_photograph_is_resized_as_torchvision_resizes_it(path):
    image_HWC = decode(path, SIZE)
    with Image.open(path) as photograph:
        plain = photograph.convert("RGB")
    assert plain.size == (640, 427)
    bicubic = v2.Resize((SIZE, SIZE), interpolation=v2.InterpolationMode.BICUBIC, antialias=True)
    np.testing.assert_array_equal(image_HWC, np.asarray(bicubic(plain)))
    tensor_CHW = bicubic(functional.pil_to_tensor(plain))  # another implementation
    assert mean_difference(image_HWC, tensor_CHW.permute(1, 2, 0).numpy()) < 0.5


def _turned(image: Image.Image, path: Path) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    image.transpose(Image.Transpose.ROTATE_90).save(path, exif=exif, quality=98, subsampling=0)


def _animated(image: Image.Image, path: Path) -> None:
    image.save(path, save_all=True, append_images=[Image.new("RGB", image.size, "red")], lossless=True)


STORED = {
    "progressive.jpg": (lambda image, path: image.save(path, quality=98, subsampling=0, progressive=True), 1.5),
    "cmyk.jpg": (lambda image, path: image.convert("CMYK").save(path, quality=98, subsampling=0), 2.5),
    "turned.jpg": (_turned, 1.5),
    "alpha.png": (lambda image, path: image.convert("RGBA").save(path), 0),
    "palette.png": (lambda image, path: image.quantize(256).save(path), 9),
    "plain.bmp": (lambda image, path: image.save(path), 0),
    "lossless.webp": (lambda image, path: image.save(path, lossless=True), 0),
    "moving.webp": (_animated, 0),
    "moving.png": (_animated, 0),
    "moving.gif": (_animated, 9),
}


@pytest.mark.parametrize("path", PHOTOGRAPHS, ids=lambda path: path.stem)
@pytest.mark.parametrize("name", STORED)
def test_however_a_photograph_is_stored_it_is_the_same_picture(tmp_path, path, name):
    store, tolerance = STORED[name]
    store(open_rgb(path), tmp_path / name)
    assert mean_difference(decode(tmp_path / name, SIZE), decode(path, SIZE)) <= tolerance


@pytest.mark.parametrize("path", PHOTOGRAPHS, ids=lambda path: path.stem)
@pytest.mark.parametrize("name", ["grey.jpg", "grey.png", "deep.png"])
def test_a_grey_photograph_has_its_grey_three_times(tmp_path, path, name):
    grey = open_rgb(path).convert("L")
    if name == "deep.png":
        Image.fromarray(np.asarray(grey).astype(np.uint16) * 256 + 77).save(tmp_path / name)
    else:
        grey.save(tmp_path / name, **({"quality": 98} if name.endswith("jpg") else {}))
    image_HWC = decode(tmp_path / name, SIZE)
    assert (image_HWC == image_HWC[..., :1]).all()
    expected_HWC = np.asarray(grey.convert("RGB").resize((SIZE, SIZE), Image.Resampling.BICUBIC))
    assert mean_difference(image_HWC, expected_HWC) <= (1 if name == "grey.jpg" else 0)


@pytest.mark.parametrize("path", PHOTOGRAPHS, ids=lambda path: path.stem)
@pytest.mark.parametrize("share", [0.02, 0.5, 0.99])
def test_a_photograph_that_is_cut_off_is_broken(tmp_path, path, share):
    content = path.read_bytes()
    (tmp_path / "cut.jpg").write_bytes(content[: int(share * len(content))])
    with pytest.raises(BrokenImageError):
        decode(tmp_path / "cut.jpg", SIZE)


@pytest.mark.parametrize(("width", "height"), [(8_001, 8_000), (10_000, 10_000), (20_000, 10_000)])
@pytest.mark.parametrize("strict", [False, True])
def test_more_pixels_than_allowed_are_an_error_and_never_only_a_warning(tmp_path, width, height, strict):
    assert width * height > MAX_PIXELS
    (tmp_path / "bomb.png").write_bytes(_png_header(width, height))
    with warnings.catch_warnings():
        warnings.simplefilter("error" if strict else "ignore")
        with pytest.raises(BrokenImageError, match="pixels"):
            open_rgb(tmp_path / "bomb.png")


def test_the_difference_is_a_difference():
    a, b = (decode(path, SIZE) for path in PHOTOGRAPHS)
    assert mean_difference(a, b) > 40
