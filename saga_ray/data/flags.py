"""Pictures that nobody here drew: national flags in the styles of six icon projects, as `DIR/<country>/<project>.png`.

    python -m saga_ray.data.flags DIR

fetches the projects' npm packages (pinned by SHA-256, kept in a cache), renders their drawings and writes one folder per
country, named by its ISO 3166 code. Needs npm, a network for the first time, and CairoSVG (`pip install -e .[dev]`).
"""

from __future__ import annotations

import argparse
import hashlib
import io
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

PICTURE_PIXELS = 224
"""Length of the longer side of the pictures."""
_MAX_MEMBER_BYTES = 4 * 2**20
_MAX_PACKAGE_BYTES = 512 * 2**20
_MAX_MEMBERS = 50_000


@dataclass(frozen=True)
class FlagSource:
    """One icon project as an npm package."""

    name: str
    package: str
    version: str
    sha256: str
    licence: str
    drawing: str
    """Pattern of its drawings in the archive; `code` is two letters, `emoji` two regional indicators."""


_EMOJI = r"(?P<emoji>1[fF]1[0-9a-fA-F]{2}-1[fF]1[0-9a-fA-F]{2})"
SOURCES = (
    FlagSource(
        "flag-icons", "flag-icons", "7.5.0",
        "c0b80bf0e08006a60f56621d6bc49f8c7131f4d1fef6737a165a673431f4b518",
        "MIT", r"package/flags/4x3/(?P<code>[a-z]{2})\.svg",
    ),
    FlagSource(
        "country-flag-icons", "country-flag-icons", "1.6.20",
        "0b003c0984b53e12a870f0b9a2ccd9821c588c505cf18d7938dabec3ae669808",
        "MIT", r"package/3x2/(?P<code>[A-Z]{2})\.svg",
    ),
    FlagSource(
        "circle-flags", "circle-flags", "2.8.3",
        "a53d254c010bb22955e7823c406ec80b8176ffff05758fd21bf5151512c0e56a",
        "MIT", r"package/flags/(?P<code>[a-z]{2})\.svg",
    ),
    FlagSource(
        "twemoji", "@twemoji/svg", "15.0.0",
        "1d2907557a422c7c4e3feca50ef915c39da1db3d76b4a4d7e73fb59bce4403c3",
        "package MIT, graphics CC-BY 4.0 (Twitter, Inc and other contributors)", rf"package/{_EMOJI}\.svg",
    ),
    FlagSource(
        "openmoji", "openmoji", "17.0.0",
        "55ee7d13485dec86e9f38c1f3a645a13382d33ff97c0cd845ee824b0aef45e68",
        "CC-BY-SA 4.0 (OpenMoji)", rf"package/color/svg/{_EMOJI}\.svg",
    ),
    FlagSource(
        "svg-country-flags", "svg-country-flags", "1.2.10",
        "2576650b4568c8ee1a2a6ddaa45c0246be16735f229bb40b1a0a6f40424e5213",
        "public domain", r"package/png250px/(?P<code>[a-z]{2})\.png",
    ),
)  # fmt: skip

NOT_COUNTRIES = frozenset(["ac", "cp", "dg", "ea", "eu", "ic", "ta", "un", "xk"])
"""Codes with a flag that ISO 3166 gives to no country."""
SAME_FLAG = frozenset(
    ["bl", "bq", "bv", "gf", "gp", "hm", "mf", "mq", "nc", "pm", "re", "sh", "sj", "tf", "um", "wf", "yt"]
)
"""Territories that some or all projects draw with the flag of another country: their class would not be one."""


def build_flags(out_dir: Path, cache_dir: Path, progress: Callable[[str], None]) -> int:
    """Write the data set; a finished one is left as it is.

    Kept are countries that every project draws. Drawings are rendered to `PICTURE_PIXELS` on the longer side. Nothing
    appears under `out_dir` before all of it is there.

    Returns:
        Number of countries.

    Raises:
        ValueError: naming what is missing (npm, CairoSVG, a package, an empty place to write to) and what to do.
    """
    stamp = _stamp()
    if out_dir.exists() and not out_dir.is_dir():
        raise ValueError(f"{out_dir}: is a file; name a new or empty folder")
    if out_dir.exists() and any(out_dir.iterdir()):
        readme = out_dir / "README.txt"
        if readme.is_file() and readme.read_text(encoding="utf-8").startswith(stamp):
            return sum(entry.is_dir() for entry in out_dir.iterdir())
        raise ValueError(f"{out_dir}: is not empty and holds other files; name a new or empty folder")
    render = _renderer()
    drawings, licences = {}, []
    for source in SOURCES:
        progress(f"{source.package} {source.version}")
        archive = _fetch(source, cache_dir)
        drawings[source.name] = read_drawings(archive, re.compile(source.drawing))
        licences.append(
            f"\n== {source.name} ({source.package} {source.version}): {source.licence}\n\n{_licence(archive)}"
        )
    countries = sorted(set.intersection(*map(set, drawings.values())) - NOT_COUNTRIES - SAME_FLAG)
    out_dir.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=f".{out_dir.name}-", dir=out_dir.parent))
    try:
        for number, country in enumerate(countries, 1):
            (unfinished / country).mkdir()
            for name, of_country in drawings.items():
                render(of_country[country]).save(unfinished / country / f"{name}.png")
            if number % 20 == 0 or number == len(countries):
                progress(f"{number} of {len(countries)} countries drawn")
        (unfinished / "README.txt").write_text(stamp + _ABOUT + "".join(licences), encoding="utf-8")
        unfinished.chmod(0o755)
        if out_dir.exists():
            out_dir.rmdir()
        unfinished.rename(out_dir)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
    return len(countries)


_ABOUT = """
Each folder is a country (ISO 3166 code), each picture its flag as one icon project draws it. The drawings belong to their
projects and are under their licences, which follow; rendered, otherwise unchanged.
"""


def read_drawings(archive: Path, wanted: re.Pattern[str]) -> dict[str, bytes]:
    """Country code in small letters to the content of its drawing; nothing is unpacked to disk."""
    out = {}
    for name, content in _members(archive, wanted):
        match = wanted.fullmatch(name)
        assert match is not None
        found = match.groupdict()
        code = found["code"].lower() if found.get("code") else _from_emoji(found["emoji"])
        if code is not None:
            out[code] = content
    return out


def _members(archive: Path, wanted: re.Pattern[str]) -> Iterator[tuple[str, bytes]]:
    """Regular files of an archive whose whole name is wanted.

    Raises:
        ValueError: for more or larger members than any honest package has.
    """
    total = 0
    with tarfile.open(archive, "r:gz") as tar:
        for number, member in enumerate(tar):
            total += member.size
            if number >= _MAX_MEMBERS or total > _MAX_PACKAGE_BYTES:
                raise ValueError(
                    f"{archive}: unpacks to more than {_MAX_MEMBERS} files or {_MAX_PACKAGE_BYTES} bytes; delete it"
                )
            if not member.isreg() or not wanted.fullmatch(member.name):
                continue
            if member.size > _MAX_MEMBER_BYTES:
                raise ValueError(
                    f"{archive}: {member.name} has {member.size} bytes, more than {_MAX_MEMBER_BYTES}; delete the archive"
                )
            file = tar.extractfile(member)
            assert file is not None
            yield member.name, file.read()


def _from_emoji(code_points: str) -> str | None:
    """`1f1e9-1f1ea` to `de`: a flag's emoji is two regional indicator symbols, U+1F1E6 (A) to U+1F1FF (Z)."""
    letters = [int(part, 16) - 0x1F1E6 for part in code_points.split("-")]
    return (
        "".join(chr(ord("a") + letter) for letter in letters) if all(0 <= letter < 26 for letter in letters) else None
    )


def _licence(archive: Path) -> str:
    texts = [text for _, text in _members(archive, re.compile(r"package/licen[sc]e(\.[a-z]+)?", re.IGNORECASE))]
    return (
        "\n".join(text.decode("utf-8", errors="replace") for text in texts) or "(the package holds no licence text)\n"
    )


def _fetch(source: FlagSource, cache_dir: Path) -> Path:
    """The package's archive, from the cache or through npm."""
    cache_dir.mkdir(parents=True, exist_ok=True)
    spec = f"{source.package}@{source.version}"
    archive = cache_dir / f"{source.package.removeprefix('@').replace('/', '-')}-{source.version}.tgz"
    if not archive.exists():
        npm = shutil.which("npm")
        if npm is None:
            raise ValueError(
                f"npm: not found, and {spec} is not in {cache_dir}; install Node.js with npm, or put the package's archive there "
                f"as {archive.name}"
            )
        with tempfile.TemporaryDirectory(dir=cache_dir) as folder:
            # Nothing of the package is run: it is downloaded, not installed.
            command = [npm, "pack", spec, "--ignore-scripts", "--silent", "--pack-destination", folder]
            try:
                done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
            except subprocess.TimeoutExpired:
                raise ValueError(f"npm pack {spec}: no answer in 600 seconds; try again with a network") from None
            downloaded = list(Path(folder).glob("*.tgz"))
            if done.returncode != 0 or len(downloaded) != 1:
                lines = (done.stderr or done.stdout).strip().splitlines() or ["no message"]
                raise ValueError(f"npm pack {spec}: failed ({lines[-1]}); it needs a network once, try again with one")
            os.replace(downloaded[0], archive)
    with archive.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != source.sha256:
        raise ValueError(f"{archive}: has SHA-256 {found} instead of {source.sha256}; delete it and try again")
    return archive


def _renderer() -> Callable[[bytes], Image.Image]:
    try:
        # Optional, and it needs the cairo library of the system.
        import cairosvg
    except (ImportError, OSError) as error:
        raise ValueError(
            f"cairosvg: cannot be loaded ({str(error).splitlines()[0]}); install it with pip install -e .[dev], and the system's cairo library"
        ) from None

    def render(drawing: bytes) -> Image.Image:
        if not drawing.startswith(b"\x89PNG"):
            # Twice the size first: fine lines of a coat of arms are averaged, not skipped. External files are never read.
            drawing = cairosvg.svg2png(bytestring=drawing, output_width=2 * PICTURE_PIXELS, unsafe=False)
        with Image.open(io.BytesIO(drawing), formats=("PNG",)) as image:
            image = image.convert("RGBA")
        box = Image.fromarray((np.asarray(image)[:, :, 3] > 0).astype(np.uint8)).getbbox()
        image = image.crop(box) if box else image  # emoji stand in a square with clear space around
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image).convert("RGB")
        image.thumbnail((PICTURE_PIXELS, PICTURE_PIXELS), Image.Resampling.LANCZOS)
        return image

    return render


def _stamp() -> str:
    pins = " ".join(f"{source.package}@{source.version}" for source in SOURCES)
    return f"National flags as drawn by {len(SOURCES)} icon projects, {PICTURE_PIXELS} pixels, v1: {pins}\n"


def default_cache_dir() -> Path:
    """`$XDG_CACHE_HOME/saga-ray/flags`, or below `~/.cache`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "saga-ray" / "flags"


def main(arguments: list[str] | None = None) -> int:
    """The command line of this module."""
    parser = argparse.ArgumentParser(prog="python -m saga_ray.data.flags", description=__doc__.splitlines()[0])
    parser.add_argument("out_dir", type=Path, metavar="DIR", help="folder to write to: new or empty")
    parser.add_argument(
        "--cache", type=Path, default=default_cache_dir(), help="folder that keeps the downloaded packages"
    )
    options = parser.parse_args(arguments)
    try:
        num = build_flags(options.out_dir, options.cache, lambda text: print(text, file=sys.stderr, flush=True))
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    print(f"{options.out_dir}: {num} countries, {len(SOURCES)} pictures each; licences in README.txt", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
