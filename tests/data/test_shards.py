"""Prepared shards: the same tables, fingerprint and pixels as the files; whole or not at all; damage is named."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from saga_ray.config import RunConfig
from saga_ray.configure import resolve
from saga_ray.data import load_dataset
from saga_ray.data.files import fingerprint
from saga_ray.data.planning.plan import PairPlanner
from saga_ray.data.planning.stream import decode_plan
from saga_ray.data.shards.manifest import is_prepared
from saga_ray.data.shards.prepare import prepare
from saga_ray.types import Dataset, ImageTable
from tests.data.trees import aircraft_tree, cars_tree, class_folders, cub_tree, inat_tree, picture

BIRDS = {1: "Albatross", 2: "Auklet", 50: "Grebe", 101: "Pelican", 110: "Roadrunner", 200: "Yellowthroat"}
CARS = [f"Make {letter} Sedan 2012" for letter in "ABCD"] + ["Ram C/V Cargo Van, Minivan 2012", "smart fortwo 2012"]
AVES = [f"{3111 + i:05d}_Animalia_Chordata_Aves_Order_Family_Genus_species{i}" for i in range(6)]
OTHERS = ["05000_Animalia_Chordata_Mammalia_O_F_G_s"]
SPLITS = ("train", "validation", "test")
TREES: dict[str, Callable[[Path], object]] = {
    "cub": lambda root: cub_tree(root, BIRDS),
    "cars": lambda root: cars_tree(root, "devkit", CARS),
    "aircraft": lambda root: aircraft_tree(root, ["CRJ-700", "Cessna 172", "F/A-18", "MD-80"]),
    "inat-aves": lambda root: inat_tree(root, AVES),
    "folder": lambda root: class_folders(root, {f"class {i}": 3 for i in range(6)}, ".png"),
}


def config_of(name: str, root: Path | str, **changes: object) -> RunConfig:
    overrides = {"data.root": str(root), "data.verify_counts": False}
    return resolve(name, recipe="demo", overrides=overrides | {f"data.{key}": value for key, value in changes.items()})


def prepared(dataset: Dataset, out: Path | str, num_shards: int = 3) -> int:
    return prepare(dataset, str(out), config_of("folder", "-").data, num_shards, lambda done, total: None)


@pytest.fixture
def folder(tmp_path: Path) -> tuple[Path, Dataset]:
    """A folder of pictures and its data set."""
    root = class_folders(tmp_path / "pictures", {f"class {i}": 3 for i in range(6)})
    return root, load_dataset(config_of("folder", root))


def same_tables(first: ImageTable, second: ImageTable) -> None:
    assert first.image_ids == second.image_ids and first.class_names == second.class_names
    assert first.labels_N.dtype == second.labels_N.dtype and np.array_equal(first.labels_N, second.labels_N)
    assert (first.truth_NA is None) == (second.truth_NA is None)
    if first.truth_NA is not None and second.truth_NA is not None:
        assert first.truth_NA.dtype == second.truth_NA.dtype and np.array_equal(first.truth_NA, second.truth_NA)
    rows = range(len(first))
    assert np.array_equal(first.source.load(rows, 24), second.source.load(rows, 24))


@pytest.mark.parametrize("name", TREES)
@pytest.mark.parametrize("hashed_bytes", [0, 2**30])
def test_shards_equal_the_files(name: str, hashed_bytes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fingerprint, "MAX_HASHED_BYTES", hashed_bytes)
    root = tmp_path / "files"
    root.mkdir()
    TREES[name](root)
    files = load_dataset(config_of(name, root))
    assert prepared(files, tmp_path / "out") == 3
    shards = load_dataset(config_of(name, tmp_path / "out"))
    assert (shards.name, shards.fingerprint, shards.partial) == (files.name, files.fingerprint, files.partial)
    for split in SPLITS:
        same_tables(files.split(split), shards.split(split))
    larger = load_dataset(config_of(name, tmp_path / "out", image_size=96)).fingerprint
    assert larger == load_dataset(config_of(name, root, image_size=96)).fingerprint != files.fingerprint


def test_shards_behind_an_address_equal_the_files(folder: tuple[Path, Dataset]) -> None:
    _, files = folder
    assert not is_prepared("memory://test-shards")
    assert prepared(files, "memory://test-shards") == 3
    shards = load_dataset(config_of("folder", "memory://test-shards"))
    assert shards.fingerprint == files.fingerprint
    for split in SPLITS:
        same_tables(files.split(split), shards.split(split))


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Address of a bucket in an S3 server of this process."""
    from moto.server import ThreadedMotoServer

    for name, value in (("AWS_ACCESS_KEY_ID", "nobody"), ("AWS_SECRET_ACCESS_KEY", "nothing"), ("AWS_EC2_METADATA_DISABLED", "true")):  # fmt: skip
        monkeypatch.setenv(name, value)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"s3://shards/birds?scheme=http&endpoint_override={host}:{port}&region=us-east-1&allow_bucket_creation=true"
    server.stop()


def test_shards_in_an_object_store_equal_the_files(folder: tuple[Path, Dataset], bucket: str) -> None:
    _, files = folder
    assert prepared(files, bucket) == 3 and prepared(files, bucket) == 0
    shards = load_dataset(config_of("folder", bucket))
    assert shards.fingerprint == files.fingerprint
    same_tables(files.test, shards.test)
    with pytest.raises(ValueError, match="is not a local folder"):
        load_dataset(config_of("folder", bucket.replace("birds", "nothing")))


def test_a_password_in_an_address_is_not_shown() -> None:
    with pytest.raises(ValueError) as caught:
        load_dataset(config_of("folder", "what://me:secret@host/folder"))
    assert "what://***@host/folder" in str(caught.value) and "secret" not in str(caught.value)


def test_true_attributes_travel_along(folder: tuple[Path, Dataset], tmp_path: Path) -> None:
    _, files = folder
    tables = {
        s: replace(files.split(s), truth_NA=np.arange(2 * len(files.split(s))).reshape(-1, 2) % 3) for s in SPLITS
    }
    known = replace(
        files, **tables, attribute_names=("bill", "eye"), attribute_values=(("a", "b", "c"), ("d", "e", "f"))
    )
    prepared(known, tmp_path / "out")
    shards = load_dataset(config_of("folder", tmp_path / "out"))
    assert (shards.attribute_names, shards.attribute_values) == (known.attribute_names, known.attribute_values)
    for split in SPLITS:
        same_tables(known.split(split), shards.split(split))


def test_micro_batches_are_equal_and_the_source_travels(folder: tuple[Path, Dataset], tmp_path: Path) -> None:
    _, files = folder
    prepared(files, tmp_path / "out")
    data = config_of("folder", tmp_path / "out", classes_per_batch=2, num_shards=1, pairs_per_batch=2).data
    shards = load_dataset(config_of("folder", tmp_path / "out"))
    source = pickle.loads(pickle.dumps(shards.train.source))  # as Ray sends it
    plan = PairPlanner(files.train.labels_N, data, 0).plan(3, 0, 1)
    first = decode_plan(files.train.source, files.train.labels_N, plan, data, 0)
    second = decode_plan(source, shards.train.labels_N, plan, data, 0)
    assert np.array_equal(first.images_NHWC, second.images_NHWC) and first.pairs == second.pairs


def test_any_parquet_library_reads_the_bytes_as_they_were(folder: tuple[Path, Dataset], tmp_path: Path) -> None:
    root, files = folder
    prepared(files, tmp_path / "out", 4)
    shards = sorted((tmp_path / "out").glob("images-*.parquet"))
    lines = [line for shard in shards for line in pq.read_table(shard).to_pylist()]
    assert len(shards) == 4 and len(lines) == sum(len(files.split(split)) for split in SPLITS)
    for line in lines:
        assert line["image"] == (root / line["image_id"]).read_bytes()
        assert line["class_name"] == line["image_id"].split("/")[0]
        table = files.split(line["split"])
        assert table.class_names[line["label"]] == line["class_name"]


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    contents=st.lists(
        st.binary(max_size=40) | st.sampled_from([b"PAR1", b"\0" * 9, b"\0" * 10]), min_size=8, max_size=24
    )
)
def test_every_image_is_found_whatever_its_bytes(
    contents: list[bytes], tmp_path_factory: pytest.TempPathFactory
) -> None:
    root = tmp_path_factory.mktemp("bytes")
    for number, content in enumerate(contents):
        path = root / "files" / f"class{number % 4}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    prepared(load_dataset(config_of("folder", root / "files")), root / "out", 2)
    shards = load_dataset(config_of("folder", root / "out"))
    for split in SPLITS:
        table = shards.split(split)
        for row, image_id in enumerate(table.image_ids):
            assert table.source.read(row) == (root / "files" / image_id).read_bytes()


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


class Killed(BaseException):
    """Stands for a process that ends."""


def test_an_interrupted_preparation_goes_on(folder: tuple[Path, Dataset], tmp_path: Path) -> None:
    _, files = folder
    prepared(files, tmp_path / "whole", 6)

    def killed_half_way(done: int, total: int) -> None:
        if done > total // 2:
            raise Killed

    out = tmp_path / "out"
    data = config_of("folder", "-").data
    with pytest.raises(Killed):
        prepare(files, str(out), data, 6, killed_half_way)
    with pytest.raises(ValueError, match=r"not finished.*data prepare"):
        load_dataset(config_of("folder", out))
    there = sorted(path.name for path in out.glob("images-*"))
    assert 0 < len(there) < 6
    (out / there[0]).write_bytes((out / there[0]).read_bytes()[:-10])  # as a full disk may leave it
    assert prepare(files, str(out), data, None, lambda done, total: None) == 6 - len(there) + 1
    assert contents(out) == contents(tmp_path / "whole")
    assert prepared(files, out) == 0


def test_a_killed_preparation_goes_on(tmp_path: Path) -> None:
    root = class_folders(tmp_path / "pictures", {f"class {i}": 100 for i in range(4)})
    words = ["data", "prepare", str(root), "--out", str(tmp_path / "out"), "--shards", "40"]
    process = subprocess.Popen(
        [sys.executable, "-m", "saga_ray", *words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 60
    while len(list((tmp_path / "out").glob("images-*"))) < 3 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    process.kill()
    process.wait()
    files = load_dataset(config_of("folder", root))
    prepared(files, tmp_path / "out")
    prepared(files, tmp_path / "whole", 40)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_images_that_change_meanwhile_are_refused(folder: tuple[Path, Dataset], tmp_path: Path) -> None:
    root, files = folder
    picture(root / "class 0" / "0.jpg", 99)
    with pytest.raises(ValueError, match="changed while they were prepared"):
        prepared(files, tmp_path / "out")
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_an_image_that_cannot_be_read_is_named(folder: tuple[Path, Dataset], tmp_path: Path) -> None:
    root, files = folder
    (root / "class 1" / "0.jpg").unlink()
    with pytest.raises(ValueError, match=r"class 1/0\.jpg"):
        prepared(files, tmp_path / "out")


@pytest.mark.parametrize("damage", ["flip", "cut", "gone", "index", "manifest", "format"])
def test_damage_is_named_in_one_sentence(damage: str, folder: tuple[Path, Dataset], tmp_path: Path) -> None:
    _, files = folder
    out = tmp_path / "out"
    prepared(files, out)
    shard = out / "images-00000-of-00003.parquet"
    victim = {"index": out / "index.parquet", "manifest": out / "manifest.json", "format": out / "manifest.json"}.get(damage, shard)  # fmt: skip
    content = victim.read_bytes()
    if damage == "gone":
        victim.unlink()
    elif damage in ("flip", "index"):
        place = len(content) // 2 if damage == "index" else content.index(b"\xff\xd8\xff") + 40
        victim.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
    elif damage == "format":
        victim.write_text(json.dumps(json.loads(content) | {"format": "saga-ray shards 9"}))
    else:
        victim.write_bytes(content[:-100])
    with pytest.raises(ValueError) as caught:
        dataset = load_dataset(config_of("folder", out))
        dataset.train.source.load(range(len(dataset.train)), 16)
    assert victim.name in str(caught.value) and "\n" not in str(caught.value)
    assert "prepare it again" in str(caught.value)


WRONG: dict[str, Callable[[dict], object]] = {
    "no object": lambda manifest: [],
    "no data set": lambda manifest: manifest.pop("dataset"),
    "no format": lambda manifest: manifest.pop("format"),
    "no shards": lambda manifest: manifest.pop("shards"),
    "no checksum": lambda manifest: manifest.pop("index_sha256"),
    "no test classes": lambda manifest: manifest["classes"].pop("test"),
    "a shard elsewhere": lambda manifest: manifest["shards"][0].update(file="../../secret.parquet"),
    "a size in words": lambda manifest: manifest["shards"][0].update(bytes="many"),
    "attributes as a word": lambda manifest: manifest.update(attribute_values="red"),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_manifest_that_is_not_whole_is_named_in_one_sentence(
    what: str, folder: tuple[Path, Dataset], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    prepared(folder[1], out)
    manifest = json.loads((out / "manifest.json").read_text())
    changed = WRONG[what](manifest)
    (out / "manifest.json").write_text(json.dumps([] if changed == [] else manifest))
    for act in (lambda: load_dataset(config_of("folder", out)), lambda: prepared(folder[1], out)):
        with pytest.raises(ValueError, match=r"manifest\.json:? is damaged \(") as caught:
            act()
        assert "\n" not in str(caught.value) and type(caught.value) is ValueError


def test_a_note_of_unfinished_shards_that_is_not_whole_is_named(folder: tuple[Path, Dataset], tmp_path: Path) -> None:
    out = tmp_path / "out"
    prepared(folder[1], out)
    manifest = json.loads((out / "manifest.json").read_text())
    (out / "manifest.json").unlink()
    for content in (json.dumps(manifest), json.dumps(manifest | {"num_shards": 0}), "{"):
        (out / "unfinished.json").write_text(content)
        with pytest.raises(ValueError, match=r"^--out .*unfinished\.json is damaged .*delete the folder"):
            prepared(folder[1], out)


def test_shards_are_refused_where_files_would_be(tmp_path: Path) -> None:
    cub_tree(tmp_path, BIRDS)
    prepared(load_dataset(config_of("cub", tmp_path)), tmp_path / "out")
    for name, changes, words in (
        ("cars", {}, "holds the shards of 'cub', not of 'cars'"),
        ("cub", {"verify_counts": True}, "data.verify_counts=false"),
        ("cub", {"validation_share": 0.4}, "set it to 0.2"),
    ):
        with pytest.raises(ValueError) as caught:
            load_dataset(config_of(name, tmp_path / "out", **changes))
        assert words in str(caught.value) and "\n" not in str(caught.value)


def test_nothing_of_others_is_overwritten(folder: tuple[Path, Dataset], tmp_path: Path) -> None:
    root, files = folder
    out = tmp_path / "out"
    prepared(files, out)
    picture(root / "class 0" / "more.jpg", 77)
    for place, words in (
        (out, "shards of other data"),
        (root, "is not empty"),
        (root / "class 0" / "0.jpg", "is a file"),
    ):
        with pytest.raises(ValueError, match=words):
            prepared(load_dataset(config_of("folder", root)), place)
    with pytest.raises(ValueError, match="prepared already"):
        prepared(load_dataset(config_of("folder", out)), tmp_path / "again")


def test_a_disk_without_room_is_told_before(folder: tuple[Path, Dataset], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 10})())
    with pytest.raises(ValueError, match="make room or name another folder"):
        prepared(folder[1], tmp_path / "out")
