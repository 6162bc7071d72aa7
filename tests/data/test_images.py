"""Decoding of every kind of file, and augmentation."""

from __future__ import annotations

import pickle
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from saga_ray.data.files.sources import FolderSource
from saga_ray.data.pixels.draft import decode_draft
from saga_ray.data.pixels.images import BrokenImageError, augment, augmentation_keys, decode, open_rgb
from tests.data.trees import jpeg_with_damaged_exif, picture

RED, BLUE = (200, 30, 40), (20, 60, 220)


def halves(left, right, size=(40, 20)) -> Image.Image:
    """An image of two colours side by side."""
    pixels = np.empty((size[1], size[0], 3), dtype=np.uint8)
    pixels[:, : size[0] // 2], pixels[:, size[0] // 2 :] = left, right
    return Image.fromarray(pixels)


def corners(image_HWC: np.ndarray) -> tuple[list[int], list[int]]:
    """Colours at the upper left and the lower right."""
    return image_HWC[1, 1].tolist(), image_HWC[-2, -2].tolist()


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".gif", ".webp", ".jpg"])
def test_every_accepted_format_gives_the_same_picture(tmp_path, suffix):
    path = tmp_path / f"picture{suffix}"
    halves(RED, BLUE).save(path, **({"lossless": True} if suffix == ".webp" else {"quality": 98, "subsampling": 0}))
    image_HWC = decode(path, 16)
    assert image_HWC.shape == (16, 16, 3) and image_HWC.dtype == np.uint8
    for seen, true in zip(corners(image_HWC), (RED, BLUE), strict=True):
        np.testing.assert_allclose(seen, true, atol=6)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGBA", "LA", "CMYK", "YCbCr", "I;16"])
def test_every_mode_becomes_rgb(tmp_path, mode):
    grey = halves((0, 0, 0), (255, 255, 255))
    suffix = ".jpg" if mode in ("CMYK", "YCbCr") else ".png"
    if mode == "I;16":
        image = Image.fromarray(np.asarray(grey.convert("L")).astype(np.uint16) * 257)
        assert image.mode == "I;16"
    else:
        image = grey.convert(mode)
    image.save(tmp_path / f"grey{suffix}", **({"quality": 98} if suffix == ".jpg" else {}))
    with Image.open(tmp_path / f"grey{suffix}") as saved:
        assert saved.mode == mode or mode == "YCbCr"
    black, white = corners(decode(tmp_path / f"grey{suffix}", 16))
    np.testing.assert_allclose(black, 0, atol=4)
    np.testing.assert_allclose(white, 255, atol=4)


def test_sixteen_bits_keep_the_upper_eight(tmp_path):
    levels = np.repeat(np.array([[0, 255, 256, 32768, 65535]], dtype=np.uint16), 5, axis=0)
    Image.fromarray(levels).save(tmp_path / "deep.png")
    assert decode(tmp_path / "deep.png", 5)[0, :, 0].tolist() == [0, 0, 1, 128, 255]


@pytest.mark.parametrize("colour", [2, 6])
def test_sixteen_bits_of_colour_keep_the_upper_eight(tmp_path, colour):
    pixel = struct.pack(">3H", 0x12FF, 0x8000, 0xFF00) + (b"\xff\xff" if colour == 6 else b"")
    header = struct.pack(">IIBBBBB", 4, 4, 16, colour, 0, 0, 0)
    rows = zlib.compress((b"\0" + 4 * pixel) * 4)
    (tmp_path / "deep.png").write_bytes(_png((b"IHDR", header), (b"IDAT", rows), (b"IEND", b"")))
    assert decode(tmp_path / "deep.png", 4)[2, 2].tolist() == [0x12, 0x80, 0xFF]


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "L", "RGB"])
def test_transparency_is_laid_on_white(tmp_path, mode):
    if mode in ("RGBA", "LA"):
        image = Image.new("RGBA", (8, 8), (0, 0, 0, 0)).convert(mode)
        image.save(tmp_path / "clear.png")
    else:
        image = Image.new("RGB", (8, 8)).convert(mode)
        image.save(tmp_path / "clear.png", transparency=(0, 0, 0) if mode == "RGB" else 0)
    assert (decode(tmp_path / "clear.png", 8) == 255).all()


def test_half_transparent_red_is_pink(tmp_path):
    Image.new("RGBA", (8, 8), (255, 0, 0, 128)).save(tmp_path / "pink.png")
    np.testing.assert_allclose(decode(tmp_path / "pink.png", 8)[4, 4], (255, 127, 127), atol=1)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_turns_the_picture_upright(tmp_path, orientation):
    upright = halves(RED, BLUE, size=(32, 32))
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = upright.transpose(undo[orientation]) if orientation in undo else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / "turned.jpg", exif=exif, quality=98, subsampling=0)
    for seen, true in zip(corners(decode(tmp_path / "turned.jpg", 32)), (RED, BLUE), strict=True):
        np.testing.assert_allclose(seen, true, atol=6)


def test_damaged_exif_data_is_a_broken_image(tmp_path):
    path = tmp_path / "a.jpg"
    path.write_bytes(jpeg_with_damaged_exif())
    for read in (decode, decode_draft):
        with pytest.raises(BrokenImageError, match=r"a\.jpg: cannot be read as an image \(damaged EXIF data: "):
            read(path, 16)


@pytest.mark.parametrize("suffix", [".gif", ".webp", ".png"])
def test_the_first_frame_of_an_animation_counts(tmp_path, suffix):
    first, second = Image.new("RGB", (8, 8), RED), Image.new("RGB", (8, 8), BLUE)
    first.save(tmp_path / f"moving{suffix}", save_all=True, append_images=[second])
    np.testing.assert_allclose(decode(tmp_path / f"moving{suffix}", 8)[4, 4], RED, atol=8)


def test_a_plain_resize_keeps_the_whole_picture_and_antialiases(tmp_path):
    stripes = np.zeros((64, 256, 3), dtype=np.uint8)
    stripes[:, ::2] = 255
    Image.fromarray(stripes).save(tmp_path / "stripes.png")
    np.testing.assert_allclose(decode(tmp_path / "stripes.png", 16)[8, 2:-2], 127.5, atol=2)
    halves(RED, BLUE, size=(200, 20)).save(tmp_path / "wide.png")
    assert corners(decode(tmp_path / "wide.png", 16)) == (list(RED), list(BLUE))


def test_the_banner_is_cut_before_resizing(tmp_path):
    pixels = np.full((120, 90, 3), 255, dtype=np.uint8)
    pixels[-20:] = 0
    Image.fromarray(pixels).save(tmp_path / "plane.png")
    assert (decode(tmp_path / "plane.png", 32, cut_bottom=20) == 255).all()
    assert (decode(tmp_path / "plane.png", 32)[-1] == 0).all()
    with pytest.raises(BrokenImageError, match="only 120 pixels high"):
        decode(tmp_path / "plane.png", 32, cut_bottom=120)


def _png(*chunks: tuple[bytes, bytes]) -> bytes:
    out = b"\x89PNG\r\n\x1a\n"
    for name, data in chunks:
        out += struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
    return out


def _png_header(width: int, height: int) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return _png((b"IHDR", header), (b"IDAT", zlib.compress(bytes(100))), (b"IEND", b""))


BROKEN = {
    "html": (b"<!DOCTYPE html><html><body>Virus scan warning</body></html>", "not JPEG, PNG"),
    "empty": (b"", "not JPEG, PNG"),
    "bomb": (_png_header(20_000, 10_000), "pixels"),
    "larger than ours, smaller than Pillow's limit": (_png_header(9_000, 8_000), "9000 x 8000 is more than"),
    "pdf": (b"%PDF-1.4\n%%EOF\n", "not JPEG, PNG"),
    "tiff": (b"II*\x00\x08\x00\x00\x00\x00\x00", "not JPEG, PNG"),
    "short png": (_png_header(64, 64)[:60], "cannot be read as an image"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_what_is_no_picture_is_an_error_that_names_the_file(tmp_path, kind):
    content, reason = BROKEN[kind]
    (tmp_path / "broken.jpg").write_bytes(content)
    with pytest.raises(BrokenImageError, match=reason) as caught:
        decode(tmp_path / "broken.jpg", 16)
    assert str(tmp_path / "broken.jpg") in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".gif"])
def test_a_truncated_file_is_broken(tmp_path, suffix):
    path = picture(tmp_path / f"whole{suffix}", 3, size=(200, 200))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(BrokenImageError):
        decode(path, 16)


def test_a_missing_file_is_broken(tmp_path):
    with pytest.raises(BrokenImageError, match="No such file"):
        decode(tmp_path / "gone.jpg", 16)


@given(
    st.binary(max_size=400),
    st.sampled_from([b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0", b"GIF89a", b"BM", b"RIFF\x00\x01\x00\x00WEBP", b""]),
)
@settings(max_examples=200, deadline=None)
def test_random_bytes_never_escape_as_another_error(tmp_path_factory, content, magic):
    path = tmp_path_factory.mktemp("fuzz", numbered=True) / "x.png"
    path.write_bytes(magic + content)
    try:
        open_rgb(path)
    except BrokenImageError as error:
        assert error.path == str(path)


def test_the_error_survives_pickling_as_between_processes():
    error = BrokenImageError("a.jpg", "cut")
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), again.path, again.reason) == (str(error), "a.jpg", "cut")


def test_a_source_gives_rows_in_the_order_asked_each_on_its_own(tmp_path):
    paths = tuple(picture(tmp_path / f"{i}.png", i).name for i in range(5))
    source = FolderSource(paths, root=str(tmp_path))
    images = source.load([3, 0, 3], 16)
    assert images.shape == (3, 16, 16, 3)
    for place, row in enumerate((3, 0, 3)):
        np.testing.assert_array_equal(images[place], decode(tmp_path / f"{row}.png", 16))


def slow_augment(images_NHWC, keys_N, flip, shift_pixels):
    """One pixel at a time."""
    from saga_ray.data.pixels.keyed import keyed_uniforms

    out = np.empty_like(images_NHWC)
    n, height, width, _ = images_NHWC.shape
    for i in range(n):
        u = keyed_uniforms((), keys_N[i : i + 1], 3)[0]
        down, right = (int(x * (2 * shift_pixels + 1) // 1) - shift_pixels for x in u[1:])
        image = images_NHWC[i, :, ::-1] if flip and u[0] < 0.5 else images_NHWC[i]
        for y in range(height):
            for x in range(width):
                out[i, y, x] = image[min(max(y - down, 0), height - 1), min(max(x - right, 0), width - 1)]
    return out


@given(st.integers(0, 5), st.booleans(), st.integers(0, 4), st.integers(1, 7), st.integers(1, 7))
@settings(max_examples=40, deadline=None)
def test_augmentation_equals_its_slow_twin(seed, flip, shift_pixels, height, width):
    images = np.random.default_rng(seed).integers(0, 256, size=(5, height, width, 3), dtype=np.uint8)
    keys_N = augmentation_keys(seed, 2, np.arange(5))
    np.testing.assert_array_equal(
        augment(images, keys_N, flip, shift_pixels), slow_augment(images, keys_N, flip, shift_pixels)
    )


def test_augmentation_is_uniform_and_touches_half_of_the_images():
    keys_N = augmentation_keys(0, 0, np.arange(6000))
    columns = np.zeros((6000, 1, 9, 1), dtype=np.uint8) + np.arange(9, dtype=np.uint8)[None, None, :, None]
    out = augment(columns, keys_N, flip=True, shift_pixels=2)[:, 0, :, 0].astype(int)
    mirrored = out[:, 4] > out[:, 5]
    assert abs(mirrored.mean() - 0.5) < 0.03
    shifts = np.bincount(np.where(mirrored, out[:, 4] - 4, 4 - out[:, 4]) + 2, minlength=5)
    assert (abs(shifts / 6000 - 0.2) < 0.03).all()


def test_keys_depend_on_seed_micro_batch_row_and_repeat_alone():
    rows = np.array([4, 9, 4, 1])
    keys_N = augmentation_keys(1, 2, rows)
    assert len(set(keys_N.tolist())) == 4, "a repeated row looks different"
    np.testing.assert_array_equal(augmentation_keys(1, 2, rows[[1, 0, 2]]), keys_N[[1, 0, 2]])
    assert not (augmentation_keys(1, 3, rows) == keys_N).any()
    assert not (augmentation_keys(2, 2, rows) == keys_N).any()


def test_without_flip_and_shift_nothing_changes():
    images = np.random.default_rng(0).integers(0, 256, size=(3, 8, 8, 3), dtype=np.uint8)
    np.testing.assert_array_equal(augment(images, augmentation_keys(0, 0, np.arange(3)), False, 0), images)
