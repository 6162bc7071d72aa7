import io
import json
import multiprocessing
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow.fs import FSSpecHandler, PyFileSystem

from saga_ray.leaderboard.result import PerClass, Result
from saga_ray.leaderboard.store import Conflict, ResultStore
from saga_ray.storage import Storage


def make_result(**changes: object) -> Result:
    hits = changes.pop("hits", (3.0, 1.0))
    values = {
        "dataset": "demo", "fingerprint": "f" * 16, "split": "test", "protocol": "zero-shot-v1", "backbone": "tiny",
        "pretraining": "captions", "frozen": False, "dim": 8, "label": "saga", "method": "saga", "config_hash": "c0",
        "seed": 0, "code_version": "0.1.0", "num_images": 8, "created": "2026-01-01T00:00:00Z", "run": "saga-seed0",
        "scores": {"recall@1": sum(hits) / 8, "nmi": 0.5},
        "per_class": PerClass(names=("owl", "wren"), num_queries=(4, 4), sums={"recall@1": hits}),
    }  # fmt: skip
    return Result(**(values | changes))


def per_query() -> pa.Table:
    return pa.table({"image_id": ["a", "b"], "hit@1": [True, False]})


class _ShownWhenClosed(io.BytesIO):
    """A file that appears, whole, when its stream is closed, as in object stores."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self.path = path

    def close(self) -> None:
        if not self.closed:
            temporary = f"{self.path}.{os.getpid()}.upload"
            Path(temporary).write_bytes(self.getvalue())
            os.replace(temporary, self.path)
        super().close()


class _ObjectStoreHandler(FSSpecHandler):
    def open_output_stream(self, path: str, metadata: object) -> pa.PythonFile:
        return pa.PythonFile(_ShownWhenClosed(path), mode="w")


def remote_storage(folder: Path) -> Storage:
    """A file system that pyarrow knows only through its general interface, and that behaves as object stores do."""
    import fsspec

    return Storage(PyFileSystem(_ObjectStoreHandler(fsspec.filesystem("file"))), str(folder), f"any://{folder}")


@pytest.fixture(params=["local", "uri", "any-filesystem"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ResultStore:
    kinds = {
        "local": lambda: Storage.open(tmp_path),
        "uri": lambda: Storage.open(tmp_path.as_uri()),
        "any-filesystem": lambda: remote_storage(tmp_path),
    }
    return ResultStore(kinds[request.param]())


def test_a_result_comes_back_as_it_was_stored(store: ResultStore) -> None:
    assert store.add(make_result(), per_query()) == "added"
    (loaded,) = store.load()
    assert loaded.model_copy(update={"per_query_file": None}) == make_result()
    assert store.per_query(loaded).equals(per_query())


def test_equal_scores_are_identical_whenever_they_were_taken(store: ResultStore) -> None:
    store.add(make_result(), per_query())
    assert store.add(make_result(created="2027-01-01T00:00:00Z", seconds=9.0), per_query()) == "identical"
    assert [result.created for result in store.load()] == ["2026-01-01T00:00:00Z"]


def test_other_scores_under_one_key_are_a_conflict_that_shows_both(store: ResultStore) -> None:
    store.add(make_result())
    with pytest.raises(Conflict, match=r"recall@1 0\.5 stored, 0\.75 now.*saga-seed0.*saga-again"):
        store.add(make_result(hits=(4.0, 2.0), run="saga-again"))
    assert [result.scores["recall@1"] for result in store.load()] == [0.5]


@pytest.mark.parametrize("field", ["fingerprint", "split", "protocol", "label", "seed", "code_version", "config_hash"])
def test_each_part_of_the_key_makes_another_row(tmp_path: Path, field: str) -> None:
    store = ResultStore(Storage.open(tmp_path))
    store.add(make_result())
    assert store.add(make_result(**{field: 7 if field == "seed" else "other"})) == "added"
    assert len(store.load()) == 2


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda text: text[: len(text) // 2], "damaged"),
        (lambda text: "", "damaged"),
        (lambda text: "[]", "schema version None"),
        (lambda text: text.replace('"schema_version": 1', '"schema_version": 0'), "schema version 0"),
        (lambda text: text.replace('"recall@1": 0.5', '"recall@1": 0.9'), "not the mean of per_class"),
        (lambda text: text.replace('"recall@1": 0.5', '"recall@1": NaN'), "not a valid result"),
        (lambda text: text.replace('"seed": 0', '"seed": 5'), "renamed or edited"),
        (lambda text: text.replace('"per_query_file": null', '"per_query_file": "../../x"'), "per_query_file"),
    ],
)
def test_a_bad_row_is_left_out_with_a_warning(store: ResultStore, damage, words: str) -> None:
    store.add(make_result(seed=1))
    store.add(make_result())
    path = f"results/{make_result().key}.json"
    damaged = damage(store.runs.read(path).decode())
    assert damaged != store.runs.read(path).decode()
    store.runs.write(path, damaged.encode())
    warnings: list[str] = []
    assert [result.seed for result in store.load(warnings.append)] == [1]
    assert len(warnings) == 1 and path in warnings[0] and words in warnings[0]


def test_warnings_are_visible_without_being_asked_for(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "x.json").write_text("{")
    assert ResultStore(Storage.open(tmp_path)).load() == []
    assert "results/x.json" in caplog.text


def test_leftovers_of_an_interrupted_writer_are_ignored(store: ResultStore) -> None:
    store.runs.write("results/.tmp-abc", b"{")
    store.runs.write(f"results/{'0' * 32}.{'0' * 8}.per_query.parquet", b"PAR1")
    assert store.load() == []
    assert store.add(make_result(), per_query()) == "added"


def test_a_writer_stopped_between_queries_and_row_does_not_lend_its_queries_to_the_next(store: ResultStore) -> None:
    other = pa.table({"image_id": ["a", "b"], "hit@1": [False, False]})
    store._write_queries(make_result().key, other)
    store.add(make_result(), per_query())
    assert store.per_query(store.load()[0]).equals(per_query())


def test_the_board_file_is_rebuilt_from_the_rows(store: ResultStore) -> None:
    for seed in range(3):
        store.add(make_result(seed=seed))
    added = store.runs.read("leaderboard.parquet")
    store.runs.delete("leaderboard.parquet")
    assert store.rebuild().num_rows == 3
    assert store.runs.read("leaderboard.parquet") == added
    table = pq.read_table(pa.BufferReader(store.runs.read("leaderboard.parquet")))
    assert sorted(table["seed"].to_pylist()) == [0, 1, 2]
    assert table["recall@1"].to_pylist() == [0.5] * 3 and table["frozen"].to_pylist() == [False] * 3
    assert table["key"].to_pylist() == sorted(table["key"].to_pylist())


def test_an_empty_store_has_no_rows_and_writes_an_empty_board(tmp_path: Path) -> None:
    store = ResultStore(Storage.open(tmp_path / "not-there-yet"))
    assert store.load() == [] and store.rebuild().num_rows == 0


def _write(folder: str, kind: str, start, outcomes, writer: int) -> None:
    store = ResultStore(Storage.open(folder) if kind == "local" else remote_storage(Path(folder)))
    start.wait()
    said = [store.add(make_result(run=f"writer{writer}"), per_query()), store.add(make_result(seed=1 + writer))]
    try:
        store.add(make_result(seed=99, hits=(float(writer % 2), 0.0)))
        said.append("kept")
    except Conflict:
        said.append("conflict")
    store.load()
    outcomes.put(said)


def _race(folder: str, kind: str, num_writers: int, collected) -> None:
    warm_up = ResultStore(Storage.open(f"{folder}-warm-up"))
    warm_up.add(make_result(), per_query())  # imports, once instead of in every writer
    context = multiprocessing.get_context("fork")
    start, outcomes = context.Event(), context.Queue()
    writers = [context.Process(target=_write, args=(folder, kind, start, outcomes, n)) for n in range(num_writers)]
    for writer in writers:
        writer.start()
    start.set()
    collected.put([outcomes.get(timeout=120) for _ in writers])
    for writer in writers:
        writer.join()


@pytest.mark.parametrize("kind", ["local", "any-filesystem"])
def test_16_writers_at_once_lose_and_double_nothing(tmp_path: Path, kind: str) -> None:
    context = multiprocessing.get_context("spawn")  # a fresh process, which alone is safe to fork
    collected = context.Queue()
    race = context.Process(target=_race, args=(str(tmp_path), kind, 16, collected))
    race.start()
    said = collected.get(timeout=200)
    race.join()
    store = ResultStore(Storage.open(tmp_path))
    warnings: list[str] = []
    results = store.load(warnings.append)
    assert warnings == [] and len(results) == 18 and len({result.key for result in results}) == 18
    assert all(words[1] == "added" for words in said)
    if kind == "local":
        assert [words[0] for words in said].count("added") == 1
        assert [words[2] for words in said].count("conflict") == 8
    assert pq.read_table(tmp_path / "leaderboard.parquet").num_rows == 18
    assert not [name for name in store.runs.list("results") if name.startswith(".tmp") or name.endswith(".upload")]


def test_the_stored_file_is_readable_json(tmp_path: Path) -> None:
    store = ResultStore(Storage.open(tmp_path))
    store.add(make_result(label="saga (grpo.group_size=4)"))
    (path,) = (tmp_path / "results").glob("*.json")
    assert json.loads(path.read_text())["label"] == "saga (grpo.group_size=4)"
