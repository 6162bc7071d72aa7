"""The flags data set, built from small archives in place of the projects' packages."""

from __future__ import annotations

import hashlib
import io
import tarfile
from pathlib import Path

import pytest
from PIL import Image

from saga_ray.data import flags
from saga_ray.data.files.folder import folder_dataset
from tests.data.trees import small_config

WANTED = flags.re.compile(flags.SOURCES[3].drawing)


def svg(color: str) -> bytes:
    return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 6 4"><rect width="6" height="4" fill="{color}"/></svg>'.encode()


def archive(path: Path, files: dict[str, bytes], others: tuple[tarfile.TarInfo, ...] = ()) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
        for info in others:
            tar.addfile(info)
    return path


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """A cache with two projects: one draws de, fr, jp, us and bv, the other all of those, eu and at."""
    cache = tmp_path / "cache"
    cache.mkdir()
    colors = {"de": "black", "fr": "blue", "jp": "white", "us": "red", "bv": "navy"}
    png = io.BytesIO()
    Image.new("RGBA", (30, 20), (0, 200, 0, 255)).save(png, "PNG")
    first = {f"package/{c}.svg": svg(color) for c, color in colors.items()} | {"package/LICENSE": b"be kind"}
    second = {f"package/{c}.png": png.getvalue() for c in (*colors, "eu", "at")}
    sources = []
    for name, files, suffix in (("one", first, "svg"), ("two", second, "png")):
        path = archive(cache / f"{name}-1.0.0.tgz", files)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        sources.append(flags.FlagSource(name, name, "1.0.0", digest, "MIT", rf"package/(?P<code>[a-z]{{2}})\.{suffix}"))
    monkeypatch.setattr(flags, "SOURCES", tuple(sources))
    return cache


def test_emoji_code_points_are_countries():
    names = ("1f1e9-1f1ea", "1F1E9-1F1EA", "1f1fa-1f1f8")
    assert [flags._from_emoji(name) for name in names] == ["de", "de", "us"]
    assert flags._from_emoji("1f1e5-1f1ea") is None and flags._from_emoji("1f1ff-1f200") is None


def test_only_regular_files_with_wanted_names_are_read(tmp_path):
    link = tarfile.TarInfo("package/1f1eb-1f1f7.svg")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    device = tarfile.TarInfo("package/1f1ef-1f1f5.svg")
    device.type = tarfile.CHRTYPE
    names = [
        "package/1f1e9-1f1ea.svg",
        "../1f1e9-1f1ea.svg",
        "/package/1f1e9-1f1ea.svg",
        "package/../1f1e9-1f1ea.svg",
        "package/1f600.svg",
    ]
    path = archive(tmp_path / "a.tgz", {name: name.encode() for name in names}, (link, device))
    assert flags.read_drawings(path, WANTED) == {"de": b"package/1f1e9-1f1ea.svg"}


def test_archives_that_unpack_to_too_much_are_refused(tmp_path, monkeypatch):
    path = archive(tmp_path / "a.tgz", {"package/1f1e9-1f1ea.svg": bytes(1000), "package/README": bytes(3000)})
    monkeypatch.setattr(flags, "_MAX_MEMBER_BYTES", 999)
    with pytest.raises(ValueError, match="has 1000 bytes, more than 999"):
        flags.read_drawings(path, WANTED)
    monkeypatch.setattr(flags, "_MAX_PACKAGE_BYTES", 3999)
    monkeypatch.setattr(flags, "_MAX_MEMBER_BYTES", 5000)
    with pytest.raises(ValueError, match="unpacks to more than"):
        flags.read_drawings(path, WANTED)


def test_the_folder_holds_what_all_projects_draw_and_can_be_read(tmp_path, cache):
    pytest.importorskip("cairosvg")
    out = tmp_path / "flags"
    assert flags.build_flags(out, cache, lambda text: None) == 4
    assert sorted(p.relative_to(out).as_posix() for p in out.rglob("*.png")) == [
        f"{country}/{name}.png" for country in ("de", "fr", "jp", "us") for name in ("one", "two")
    ]
    assert "be kind" in (out / "README.txt").read_text() and "one@1.0.0" in (out / "README.txt").read_text()
    with Image.open(out / "us" / "one.png") as image:
        assert image.size == (224, 150) and image.getpixel((100, 70)) == (255, 0, 0)
    dataset = folder_dataset(small_config(out))
    assert dataset.train.class_names == ("de", "fr") and dataset.test.class_names == ("jp", "us")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cache", "flags"]


def test_a_finished_folder_is_left_alone_and_a_foreign_one_is_refused(tmp_path, cache):
    pytest.importorskip("cairosvg")
    out = tmp_path / "flags"
    flags.build_flags(out, cache, lambda text: None)
    before = (out / "us" / "one.png").stat().st_mtime_ns
    assert flags.build_flags(out, cache, lambda text: None) == 4
    assert (out / "us" / "one.png").stat().st_mtime_ns == before
    (out / "README.txt").write_text("mine")
    with pytest.raises(ValueError, match="is not empty and holds other files"):
        flags.build_flags(out, cache, lambda text: None)


def test_an_altered_package_is_refused_and_nothing_is_written(tmp_path, cache, capsys):
    pytest.importorskip("cairosvg")
    archive(cache / "two-1.0.0.tgz", {"package/de.png": b"x"})
    assert flags.main([str(tmp_path / "flags"), "--cache", str(cache)]) == 2
    assert "has SHA-256" in capsys.readouterr().err
    assert not (tmp_path / "flags").exists()


def test_missing_npm_is_one_sentence(tmp_path, cache, monkeypatch, capsys):
    pytest.importorskip("cairosvg")
    (cache / "one-1.0.0.tgz").unlink()
    monkeypatch.setenv("PATH", str(tmp_path))
    assert flags.main([str(tmp_path / "flags"), "--cache", str(cache)]) == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("npm: not found, and one@1.0.0 is not in") and "install Node.js" in last


def test_a_failing_npm_is_one_sentence(tmp_path, cache, monkeypatch, capsys):
    pytest.importorskip("cairosvg")
    (cache / "one-1.0.0.tgz").unlink()
    npm = tmp_path / "bin" / "npm"
    npm.parent.mkdir()
    npm.write_text("#!/bin/sh\necho 'no network here' >&2\nexit 1\n")
    npm.chmod(0o755)
    monkeypatch.setenv("PATH", f"{npm.parent}:/usr/bin:/bin")
    assert flags.main([str(tmp_path / "flags"), "--cache", str(cache)]) == 2
    assert "npm pack one@1.0.0: failed (no network here)" in capsys.readouterr().err
    assert sorted(p.name for p in cache.iterdir()) == ["two-1.0.0.tgz"]


def test_drawings_cannot_read_files(tmp_path, cache):
    pytest.importorskip("cairosvg")
    secret = tmp_path / "secret.png"
    Image.new("RGB", (10, 10), (255, 0, 255)).save(secret)
    drawing = (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" viewBox="0 0 10 10">'
        f'<rect width="10" height="10" fill="white"/><image width="10" height="10" xlink:href="file://{secret}"/></svg>'
    )
    image = flags._renderer()(drawing.encode())
    assert image.getextrema() == ((255, 255),) * 3
