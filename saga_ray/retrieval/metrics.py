"""Recall@k, MAP@R and NMI under the zero-shot protocol: every image queries all others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from saga_ray.retrieval.ranking import nearest, on_grid, unit_embeddings

if TYPE_CHECKING:
    import pyarrow as pa
    from torch import Tensor

PROTOCOL = "zero-shot-v1"
"""Queries are all test images, each against all other test images, cosine, plain resize; part of every result's key."""


@dataclass(frozen=True)
class PerQuery:
    """What every query found; Q queries in the order of the rows given, K neighbours each, nearest first."""

    rows_Q: np.ndarray
    """int64 rows of the queries."""
    labels_Q: np.ndarray
    """int64 class of each query."""
    hit_Q: dict[int, np.ndarray]
    """For each k: bool, at least one of the k nearest is of the query's class."""
    ap_at_r_Q: np.ndarray
    """float64 average precision at R."""
    neighbours_QK: np.ndarray
    """int64 rows of the nearest images."""
    cosines_QK: np.ndarray
    """float64 cosine with each of them."""


@dataclass(frozen=True)
class RetrievalMetrics:
    """Means over the queries, and what they are means of. All values lie between 0 and 1."""

    recall: dict[int, float]
    """Recall@k as a hit rate: share of queries with at least one of their class among the k nearest."""
    map_at_r: float
    nmi: float
    num_images: int
    num_single_image_classes: int
    """Classes with one image: nothing can be found for it, so it is in the gallery but not a query."""
    per_query: PerQuery

    @property
    def num_queries(self) -> int:
        """Queries behind the means."""
        return len(self.per_query.rows_Q)

    @property
    def num_classes(self) -> int:
        """Classes that were queried."""
        return len(np.unique(self.per_query.labels_Q))

    def scores(self) -> dict[str, float]:
        """The means under the names of the leaderboard: `recall@1`, ..., `map@r`, `nmi`."""
        return {f"recall@{k}": value for k, value in self.recall.items()} | {"map@r": self.map_at_r, "nmi": self.nmi}

    def per_class(self, class_names: Sequence[str]) -> dict[str, Any]:
        """Sums over each class's queries, as `leaderboard.result.Result.per_class` takes them."""
        labels, class_Q = np.unique(self.per_query.labels_Q, return_inverse=True)
        values = {f"recall@{k}": hit_Q for k, hit_Q in self.per_query.hit_Q.items()}
        values["map@r"] = self.per_query.ap_at_r_Q
        return {
            "names": [class_names[label] for label in labels],
            "num_queries": np.bincount(class_Q).tolist(),
            "sums": {name: np.bincount(class_Q, weights=value_Q).tolist() for name, value_Q in values.items()},
        }

    def per_query_table(self, image_ids: Sequence[str], class_names: Sequence[str]) -> pa.Table:
        """One row per query: image_id, label, class_name, hit@k.., ap@r, neighbours (ids), cosines."""
        import pyarrow as pa

        found, ids = self.per_query, np.asarray(image_ids, dtype=object)
        columns: dict[str, Any] = {
            "image_id": pa.array(ids[found.rows_Q], pa.string()),
            "label": pa.array(found.labels_Q, pa.int64()),
            "class_name": pa.array([class_names[label] for label in found.labels_Q], pa.string()),
        }
        columns |= {f"hit@{k}": pa.array(hit_Q, pa.bool_()) for k, hit_Q in found.hit_Q.items()}
        columns["ap@r"] = pa.array(found.ap_at_r_Q, pa.float64())
        columns["neighbours"] = pa.array(ids[found.neighbours_QK].tolist(), pa.list_(pa.string()))
        columns["cosines"] = pa.array(found.cosines_QK.tolist(), pa.list_(pa.float64()))
        return pa.table(columns)


def retrieval_metrics(
    embeddings_NE: np.ndarray | Tensor,
    labels_N: np.ndarray | Tensor | Sequence[int],
    image_ids: Sequence[str],
    *,
    k: Sequence[int] = (1, 2, 4, 8),
    chunk: int | None = None,
    kmeans_restarts: int = 4,
    seed: int = 0,
    num_neighbours: int = 10,
    device: str = "cpu",
) -> RetrievalMetrics:
    """Evaluate embeddings: each image queries all others, itself excluded by its row.

    Recall@k is a hit rate. With R other images of the query's class and rel(i) = 1 if the i-th nearest is one of them,
    AP@R = 1/R sum_{i=1..R} rel(i) (rel(1) + ... + rel(i)) / i, and MAP@R is its mean over the queries (Musgrave et al.,
    "A Metric Learning Reality Check", arXiv 2003.08505). Ranking is by cosine, exact (`ranking.on_grid`); equal
    similarities are ordered by image id, whichever the class. Chunk size, threads and order of the rows change nothing
    in recall, MAP@R and neighbours. NMI: `clustering_nmi`.

    Args:
        embeddings_NE: any floating dtype; need not be normalised.
        labels_N: class numbers.
        image_ids: unique names; decide ties.
        chunk: Queries at once, see `ranking.nearest`.
        num_neighbours: Neighbours kept per query, at most N - 1.
        device: Where similarities are computed, as PyTorch names it.

    Raises:
        ValueError: naming the images whose embedding is not finite or zero; or if no class has two images.
    """
    labels_N = np.asarray(labels_N, dtype=np.int64)
    assert labels_N.shape == (len(image_ids),) and len(set(image_ids)) == len(image_ids), "a label and an id per image"
    unit_NE = unit_embeddings(embeddings_NE, image_ids)
    by_id_N = np.argsort(np.asarray(image_ids, dtype=object), kind="stable")
    unit_NE, labels_N = unit_NE[by_id_N], labels_N[by_id_N]

    classes, class_N, class_sizes = np.unique(labels_N, return_inverse=True, return_counts=True)
    relevant_N = class_sizes[class_N] - 1
    if relevant_N.max(initial=0) < 1:
        raise ValueError(
            f"{len(image_ids)} images of {len(classes)} classes, none with two images: nothing can be retrieved; "
            f"give every class at least 2 images"
        )
    num_nearest = min(len(labels_N) - 1, max(int(relevant_N.max()), max(k), num_neighbours))
    hits: dict[int, list[np.ndarray]] = {cutoff: [] for cutoff in k}
    average_precisions, neighbours, cosines = [], [], []
    for start, near_SK, cosine_SK in nearest(on_grid(unit_NE, device), num_nearest, chunk):
        query_S = slice(start, start + len(near_SK))
        same_SK = labels_N[near_SK] == labels_N[query_S, None]
        for cutoff in k:
            hits[cutoff].append(same_SK[:, :cutoff].any(axis=1))
        average_precisions.append(average_precision_at_r(same_SK, relevant_N[query_S]))
        neighbours.append(near_SK[:, :num_neighbours])
        cosines.append(cosine_SK[:, :num_neighbours])

    # Back to the caller's rows; images that have no other of their class are no queries.
    place_N = np.argsort(by_id_N)
    queries = place_N[relevant_N[place_N] > 0]
    found = PerQuery(
        rows_Q=by_id_N[queries],
        labels_Q=labels_N[queries],
        hit_Q={cutoff: np.concatenate(parts)[queries] for cutoff, parts in hits.items()},
        ap_at_r_Q=np.concatenate(average_precisions)[queries],
        neighbours_QK=by_id_N[np.concatenate(neighbours)[queries]],
        cosines_QK=np.concatenate(cosines)[queries],
    )
    return RetrievalMetrics(
        recall={cutoff: float(hit_Q.mean()) for cutoff, hit_Q in found.hit_Q.items()},
        map_at_r=float(np.sort(found.ap_at_r_Q).mean()),  # sorted: a sum in another order rounds differently
        nmi=clustering_nmi(unit_NE, class_N, restarts=kmeans_restarts, seed=seed),
        num_images=len(labels_N),
        num_single_image_classes=int((class_sizes == 1).sum()),
        per_query=found,
    )


def average_precision_at_r(same_SK: np.ndarray, relevant_S: np.ndarray) -> np.ndarray:
    """AP@R of each row of a ranking, 0 where nothing is relevant.

    Args:
        same_SK: bool, the i-th nearest is of the query's class; K is at least the largest of `relevant_S`.
        relevant_S: R of each query, the other images of its class.
    """
    rank_K = np.arange(1, same_SK.shape[1] + 1)
    counted_SK = same_SK & (rank_K <= relevant_S[:, None])
    precision_SK = np.cumsum(same_SK, axis=1) / rank_K
    return (precision_SK * counted_SK).sum(axis=1) / np.maximum(relevant_S, 1)


def clustering_nmi(unit_NE: np.ndarray, class_N: np.ndarray, *, restarts: int, seed: int) -> float:
    """Normalised mutual information between classes and as many k-means clusters.

    NMI = 2 I(classes; clusters) / (H(classes) + H(clusters)). k-means is scikit-learn's (Lloyd, the best of `restarts`
    seeded starts, float32, on unit embeddings), started by greedy k-means++; faiss starts at random images and gives
    slightly other values.
    """
    import warnings

    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.metrics import normalized_mutual_info_score
    from threadpoolctl import threadpool_limits

    kmeans = KMeans(len(np.unique(class_N)), init=spread_starts, n_init=restarts, random_state=seed)
    # One thread: sums of several are added in the order in which they end, which may move an image to another cluster.
    with warnings.catch_warnings(), threadpool_limits(limits=1):
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer distinct embeddings than clusters: NMI is just low
        clusters_N = kmeans.fit(unit_NE.astype(np.float32)).labels_
    return float(np.clip(normalized_mutual_info_score(class_N, clusters_N), 0.0, 1.0))


def spread_starts(points_NE: np.ndarray, num_clusters: int, random_state: np.random.RandomState) -> np.ndarray:
    """First centres for k-means: greedy k-means++ (Arthur and Vassilvitskii 2007), as scikit-learn's.

    Each next centre is the best of 2 + log(num_clusters) points drawn with probability proportional to their squared
    distance to the nearest centre so far. Ours, because scikit-learn's takes most of the time of the whole
    evaluation where embeddings are wide: it copies them to float64 for every centre.

    Returns:
        (num_clusters, E), rows of `points_NE`.
    """
    squares_N = np.square(points_NE).sum(axis=1)

    def distances(rows: np.ndarray) -> np.ndarray:
        return np.maximum(squares_N + squares_N[rows][:, None] - 2 * (points_NE[rows] @ points_NE.T), 0)

    num_tries = 2 + int(np.log(num_clusters))
    chosen = [random_state.randint(len(points_NE))]
    nearest_N = distances(np.array(chosen))[0]
    while len(chosen) < num_clusters:
        mass_N = np.cumsum(nearest_N, dtype=np.float64)
        tries = np.searchsorted(mass_N, random_state.random_sample(num_tries) * mass_N[-1], side="right")
        tries = np.minimum(tries, len(points_NE) - 1)  # all points coincide with centres: any will do
        after_TN = np.minimum(nearest_N, distances(tries))
        best = after_TN.sum(axis=1, dtype=np.float64).argmin()
        chosen.append(int(tries[best]))
        nearest_N = after_TN[best]
    return points_NE[chosen]
