import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from saga_ray.retrieval.metrics import (
    RetrievalMetrics,
    average_precision_at_r,
    clustering_nmi,
    retrieval_metrics,
    spread_starts,
)


def clustered(seed: int = 0, num_classes: int = 12, per_class: int = 9, dim: int = 16, noise: float = 1.2):
    rng = np.random.default_rng(seed)
    labels_N = np.repeat(np.arange(num_classes), per_class)
    embeddings_NE = rng.normal(size=(num_classes, dim))[labels_N] + noise * rng.normal(size=(len(labels_N), dim))
    order = rng.permutation(len(labels_N))
    return embeddings_NE[order].astype(np.float32), labels_N[order], [f"image-{row:03d}" for row in range(len(order))]


def naive(embeddings_NE: np.ndarray, labels_N: np.ndarray, image_ids: list[str], k=(1, 2, 4, 8)):
    """The definitions, one query at a time, with Python's whole numbers for the similarities."""
    unit = embeddings_NE.astype(np.float64) / np.linalg.norm(embeddings_NE.astype(np.float64), axis=1, keepdims=True)
    whole = [[int(value) for value in row] for row in np.rint(unit * 2.0**26)]
    hits, precisions, rankings = {cutoff: [] for cutoff in k}, [], []
    for query in range(len(labels_N)):
        others = [row for row in range(len(labels_N)) if row != query]
        similarity = {row: sum(a * b for a, b in zip(whole[query], whole[row], strict=True)) for row in others}
        ranking = sorted(others, key=lambda row: (-similarity[row], image_ids[row]))
        same = [labels_N[row] == labels_N[query] for row in ranking]
        relevant = sum(same)
        if relevant == 0:
            continue
        rankings.append(ranking[:10])
        for cutoff in k:
            hits[cutoff].append(any(same[:cutoff]))
        precisions.append(sum(same[i] * sum(same[: i + 1]) / (i + 1) for i in range(relevant)) / relevant)
    return {cutoff: np.mean(hit) for cutoff, hit in hits.items()}, np.mean(precisions), rankings


def assert_equal(first: RetrievalMetrics, second: RetrievalMetrics) -> None:
    assert first.recall == second.recall and first.map_at_r == second.map_at_r
    assert np.array_equal(first.per_query.neighbours_QK, second.per_query.neighbours_QK)
    assert np.array_equal(first.per_query.cosines_QK, second.per_query.cosines_QK)
    assert np.array_equal(first.per_query.ap_at_r_Q, second.per_query.ap_at_r_Q)


@pytest.mark.parametrize("seed", range(3))
def test_equal_to_the_naive_twin(seed: int) -> None:
    embeddings_NE, labels_N, image_ids = clustered(seed)
    recall, map_at_r, rankings = naive(embeddings_NE, labels_N, image_ids)
    metrics = retrieval_metrics(embeddings_NE, labels_N, image_ids)
    assert metrics.recall == recall
    assert metrics.map_at_r == pytest.approx(map_at_r, abs=1e-15)
    assert metrics.per_query.neighbours_QK.tolist() == rankings


def test_equal_to_the_naive_twin_when_most_similarities_are_ties() -> None:
    rng = np.random.default_rng(0)
    embeddings_NE = rng.integers(-1, 2, size=(60, 3)).astype(np.float32)
    embeddings_NE[(embeddings_NE == 0).all(axis=1)] = 1.0
    labels_N = rng.integers(0, 6, size=60)
    image_ids = [f"{number}" for number in rng.permutation(60)]
    recall, map_at_r, rankings = naive(embeddings_NE, labels_N, image_ids)
    metrics = retrieval_metrics(embeddings_NE, labels_N, image_ids, chunk=7)
    assert metrics.recall == recall and metrics.per_query.neighbours_QK.tolist() == rankings
    assert metrics.map_at_r == pytest.approx(map_at_r, abs=1e-15)


@pytest.mark.parametrize("seed", range(3))
def test_equal_to_pytorch_metric_learning(seed: int) -> None:
    from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
    from pytorch_metric_learning.utils.inference import CustomKNN

    embeddings_NE, labels_N, image_ids = clustered(seed)
    from pytorch_metric_learning.distances import CosineSimilarity

    calculator = AccuracyCalculator(
        include=("precision_at_1", "mean_average_precision_at_r"),
        k="max_bin_count",
        knn_func=CustomKNN(CosineSimilarity()),
    )
    theirs = calculator.get_accuracy(torch.from_numpy(embeddings_NE), torch.from_numpy(labels_N))
    metrics = retrieval_metrics(embeddings_NE, labels_N, image_ids)
    assert 0.2 < metrics.recall[1] < 0.95
    assert metrics.recall[1] == pytest.approx(theirs["precision_at_1"], abs=1e-6)
    assert metrics.map_at_r == pytest.approx(theirs["mean_average_precision_at_r"], abs=1e-6)


def test_a_case_worked_by_hand() -> None:
    # Angles on the unit circle; classes: a = 0, 10, 40 degrees, b = 15, 100 degrees, c = 200 degrees (alone).
    # Rankings (by difference of angle) and what they give:
    #   a 0:   a10 b15 a40 ...   R=2: first a, second b: AP = (1/1) / 2 = 1/2     hit@1 yes
    #   a 10:  b15 a0 a40 ...    R=2: second a:          AP = (1/2) / 2 = 1/4     hit@1 no, hit@2 yes
    #   a 40:  b15 a10 a0 ...    R=2: second a:          AP = (1/2) / 2 = 1/4     hit@1 no, hit@2 yes
    #   b 15:  a10 a0 a40 b100   R=1: first is a:        AP = 0                   hit@4 only
    #   b 100: a40 b15           R=1: first is a:        AP = 0                   hit@1 no, hit@2 yes
    angles = np.deg2rad([0.0, 10.0, 40.0, 15.0, 100.0, 200.0])
    embeddings_NE = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    metrics = retrieval_metrics(embeddings_NE, [0, 0, 0, 1, 1, 2], ["a0", "a10", "a40", "b15", "b100", "c200"])
    assert metrics.recall == {1: 1 / 5, 2: 4 / 5, 4: 1.0, 8: 1.0}
    assert metrics.per_query.ap_at_r_Q.tolist() == [0.5, 0.25, 0.25, 0.0, 0.0]
    assert metrics.map_at_r == pytest.approx(0.2)
    assert (metrics.num_queries, metrics.num_images, metrics.num_single_image_classes) == (5, 6, 1)
    assert metrics.per_query.neighbours_QK[1].tolist() == [3, 0, 2, 4, 5]
    assert metrics.per_class(["a", "b", "c"]) == {
        "names": ["a", "b"],
        "num_queries": [3, 2],
        "sums": {"recall@1": [1, 0], "recall@2": [3, 1], "recall@4": [3, 2], "recall@8": [3, 2], "map@r": [1.0, 0.0]},
    }


def test_a_query_is_excluded_by_itself_not_by_its_place_in_the_ranking() -> None:
    # A duplicate of another class ranks level with the query itself, and before it by id. Dropping the first column would
    # drop the duplicate and keep the query, which would find itself.
    embeddings_NE = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.1, 1.0]])
    metrics = retrieval_metrics(embeddings_NE, [0, 1, 0, 1], ["b", "a", "c", "d"])
    assert metrics.recall[1] == 0.0
    assert metrics.per_query.neighbours_QK[0].tolist()[0] == 1
    assert all(query not in near for query, near in enumerate(metrics.per_query.neighbours_QK.tolist()))


def test_ties_are_ordered_by_image_id_whatever_the_order_of_rows() -> None:
    embeddings_NE = np.ones((5, 3))
    metrics = retrieval_metrics(embeddings_NE, [0, 0, 1, 1, 1], ["e", "d", "c", "b", "a"])
    assert metrics.per_query.neighbours_QK.tolist() == [
        [4, 3, 2, 1],
        [4, 3, 2, 0],
        [4, 3, 1, 0],
        [4, 2, 1, 0],
        [3, 2, 1, 0],
    ]


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), chunk=st.integers(1, 130), dim=st.integers(1, 40))
def test_neither_chunk_size_nor_order_of_rows_changes_a_bit(seed: int, chunk: int, dim: int) -> None:
    embeddings_NE, labels_N, image_ids = clustered(seed, dim=dim)
    whole = retrieval_metrics(embeddings_NE, labels_N, image_ids, kmeans_restarts=1)
    assert_equal(whole, retrieval_metrics(embeddings_NE, labels_N, image_ids, chunk=chunk, kmeans_restarts=1))
    order = np.random.default_rng(seed).permutation(len(labels_N))
    shuffled = retrieval_metrics(
        embeddings_NE[order], labels_N[order], [image_ids[row] for row in order], kmeans_restarts=1
    )
    assert shuffled.scores() == whole.scores()
    place = np.argsort(order)
    assert np.array_equal(order[shuffled.per_query.neighbours_QK[place]], whole.per_query.neighbours_QK)


def test_neither_threads_nor_scale_change_a_bit() -> None:
    embeddings_NE, labels_N, image_ids = clustered(dim=64)
    before = torch.get_num_threads()
    results = []
    try:
        for threads, scale in ((1, 1.0), (2, 2.0**-140), (2, 2.0**100)):
            torch.set_num_threads(threads)
            results.append(retrieval_metrics(embeddings_NE.astype(np.float64) * scale, labels_N, image_ids))
    finally:
        torch.set_num_threads(before)
    assert_equal(results[0], results[1])
    assert_equal(results[0], results[2])


def test_cosines_are_those_of_float64_to_1e_7() -> None:
    embeddings_NE, labels_N, image_ids = clustered(dim=48)
    found = retrieval_metrics(embeddings_NE, labels_N, image_ids).per_query
    unit = embeddings_NE.astype(np.float64) / np.linalg.norm(embeddings_NE.astype(np.float64), axis=1, keepdims=True)
    true = np.einsum("qe,qke->qk", unit[found.rows_Q], unit[found.neighbours_QK])
    assert np.abs(found.cosines_QK - true).max() < 1e-7


def test_memory_running_out_halves_the_chunk_and_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    from saga_ray.retrieval import ranking

    embeddings_NE, labels_N, image_ids = clustered()
    whole = retrieval_metrics(embeddings_NE, labels_N, image_ids)
    small = ranking.nearest_of_chunk

    def with_little_memory(grid_NE, start, stop, num_nearest):
        if stop - start > 10:
            raise torch.OutOfMemoryError("simulated")
        return small(grid_NE, start, stop, num_nearest)

    monkeypatch.setattr(ranking, "nearest_of_chunk", with_little_memory)
    assert_equal(whole, retrieval_metrics(embeddings_NE, labels_N, image_ids, chunk=100))


@pytest.mark.parametrize(("value", "words"), [(np.nan, "not finite"), (np.inf, "not finite"), (0.0, "are zero")])
def test_embeddings_without_a_direction_are_refused_by_name(value: float, words: str) -> None:
    embeddings_NE, labels_N, image_ids = clustered()
    embeddings_NE[[3, 5]] = value
    with pytest.raises(ValueError, match=rf"2 of 108 images .*{words}.*image-003, image-005"):
        retrieval_metrics(embeddings_NE, labels_N, image_ids)


def test_without_two_images_of_any_class_there_is_nothing_to_measure() -> None:
    with pytest.raises(ValueError, match="at least 2 images"):
        retrieval_metrics(np.eye(3), [0, 1, 2], ["a", "b", "c"])


def test_perfect_embeddings_give_ones_and_collapsed_ones_still_give_numbers() -> None:
    labels_N = np.repeat(np.arange(4), 5)
    image_ids = [f"{row}" for row in range(20)]
    perfect = retrieval_metrics(np.eye(4)[labels_N], labels_N, image_ids)
    assert set(perfect.scores().values()) == {1.0}
    collapsed = retrieval_metrics(np.ones((20, 4)), labels_N, image_ids)
    assert all(0.0 <= value < 1.0 for value in collapsed.scores().values()) and collapsed.nmi == 0.0


def test_average_precision_counts_only_the_first_r() -> None:
    same_SK = np.array([[1, 0, 1, 1], [0, 0, 1, 1], [1, 1, 0, 0]], dtype=bool)
    assert average_precision_at_r(same_SK, np.array([3, 2, 2])).tolist() == pytest.approx([(1 + 2 / 3) / 3, 0.0, 1.0])


def test_nmi_is_that_of_the_formula_where_clusters_are_plain() -> None:
    # Classes 0 and 1 share a place: clusters {0, 1}, {2}, and an arbitrary split of one of them cannot arise, as points coincide.
    unit_NE = np.repeat(np.array([[1.0, 0.0], [0.0, 1.0]]), 4, axis=0)
    class_N = np.array([0, 0, 1, 1, 2, 2, 2, 2])
    information, of_classes, of_clusters = np.log(2), 1.5 * np.log(2), np.log(2)
    value = clustering_nmi(unit_NE, class_N, restarts=2, seed=0)
    assert value == pytest.approx(2 * information / (of_classes + of_clusters))


def test_starts_are_spread_as_scikit_learns_are() -> None:
    from sklearn.cluster import KMeans, kmeans_plusplus

    embeddings_NE, _, _ = clustered(num_classes=40, dim=32, noise=0.5)
    theirs, ours = [], []
    for seed in range(20):
        starts = spread_starts(embeddings_NE, 40, np.random.RandomState(seed))
        assert len(np.unique(starts, axis=0)) == 40 and (starts[:, None] == embeddings_NE).all(axis=2).any(axis=1).all()
        ours.append(KMeans(40, init=starts, n_init=1, max_iter=1).fit(embeddings_NE).inertia_)
        starts, _ = kmeans_plusplus(embeddings_NE, 40, random_state=seed)
        theirs.append(KMeans(40, init=starts, n_init=1, max_iter=1).fit(embeddings_NE).inertia_)
    error = np.hypot(np.std(ours), np.std(theirs)) / np.sqrt(20)
    assert abs(np.mean(ours) - np.mean(theirs)) < 4 * error


def test_the_same_seed_gives_the_same_nmi() -> None:
    embeddings_NE, labels_N, image_ids = clustered(noise=2.0)
    first, second = (retrieval_metrics(embeddings_NE, labels_N, image_ids, seed=3).nmi for _ in range(2))
    assert first == second and 0 < first < 1


def test_the_table_of_queries_holds_ids_and_survives_parquet(tmp_path) -> None:
    import pyarrow.parquet as pq

    embeddings_NE, labels_N, image_ids = clustered(num_classes=3, per_class=2)
    class_names = ["owl", "wren", "<script>"]
    metrics = retrieval_metrics(embeddings_NE, labels_N, image_ids)
    table = metrics.per_query_table(image_ids, class_names)
    pq.write_table(table, tmp_path / "q.parquet")
    table = pq.read_table(tmp_path / "q.parquet")
    assert table.schema.field("neighbours").type == pa.list_(pa.string())
    row = table.to_pylist()[2]
    assert row["image_id"] == image_ids[2] and row["class_name"] == class_names[labels_N[2]]
    assert row["neighbours"] == [image_ids[near] for near in metrics.per_query.neighbours_QK[2]]
    assert len(row["neighbours"]) == 5 and row["hit@1"] == bool(metrics.per_query.hit_Q[1][2])


def test_bfloat16_tensors_are_taken() -> None:
    embeddings_NE, labels_N, image_ids = clustered()
    tensor = torch.from_numpy(embeddings_NE).bfloat16().requires_grad_()
    rounded = tensor.detach().float().numpy()
    assert_equal(retrieval_metrics(tensor, labels_N, image_ids), retrieval_metrics(rounded, labels_N, image_ids))
