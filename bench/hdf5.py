"""Data sets in the ann-benchmarks HDF5 layout: ``train test neighbors distances``, and the attribute ``distance``."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

METRICS = {"angular": "cosine", "euclidean": "l2", "dot": "dot", "ip": "dot"}
DISTANCES = {"cosine": "angular", "l2": "euclidean", "dot": "dot"}
TRUTH = 100


@dataclass(frozen=True, slots=True)
class AnnSet:
    """Records ``train`` float32 (n, d), queries ``test`` float32 (q, d), and the exact nearest of each query.

    ``neighbors`` int (q, 100); ``distances`` float (q, 100), ascending: cosine 1 - cos, l2 not squared, dot negated.
    """

    name: str
    metric: str
    train: np.ndarray
    test: np.ndarray
    neighbors: np.ndarray
    distances: np.ndarray


def folder() -> Path:
    """Where data sets are kept: ``VECDB_DATA``, or ``vecdb-data`` in the user's cache."""
    if named := os.environ.get("VECDB_DATA"):
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vecdb-data"


def find(name: str) -> Path:
    """The file a name stands for: a path, or the only set in :func:`folder` whose file name begins with it."""
    if Path(name).is_file():
        return Path(name)
    found = sorted(folder().glob(f"{name}*.hdf5"), key=lambda path: len(path.name))
    if not found:
        raise SystemExit(
            f"no data set {name!r}: neither a file nor in {folder()}; build it with: make data DATA={name}"
        )
    return found[0]


def read(path: Path, *, limit: int | None = None, queries: int | None = None) -> AnnSet:
    """Reads a set; with ``limit`` only that many records, their exact neighbours then computed here."""
    with h5py.File(path) as file:
        metric = METRICS.get(str(file.attrs["distance"]))
        if metric is None:
            raise SystemExit(f"{path.name}: distance {file.attrs['distance']!r} is not one of {', '.join(METRICS)}")
        train = np.ascontiguousarray(file["train"][:limit], np.float32)
        test = np.ascontiguousarray(file["test"][:queries], np.float32)
        whole = len(train) == file["train"].shape[0]
        neighbors = file["neighbors"][:queries] if whole else None
        distances = file["distances"][:queries] if whole else None
    name = path.name.removesuffix(".hdf5")
    if neighbors is None or distances is None:
        neighbors, distances = exact(train, test, metric)
        name = f"{name}@{len(train)}"
    return AnnSet(name, metric, train, test, neighbors, distances)


def true_distances(train: np.ndarray, query: np.ndarray, ordinals: np.ndarray, metric: str) -> np.ndarray:
    """float64 distances of one query to the rows ``ordinals``, by the definition of the metric."""
    rows, query = train[ordinals].astype(np.float64), query.astype(np.float64)
    if metric == "l2":
        return np.sqrt(((rows - query) ** 2).sum(axis=1))
    products = rows @ query
    if metric == "dot":
        return -products
    return 1 - products / np.maximum(np.linalg.norm(rows, axis=1) * np.linalg.norm(query), 1e-300)


def exact(train: np.ndarray, test: np.ndarray, metric: str, k: int = TRUTH):
    """The exact k nearest: candidates by float32 matrix products, some more than k, put in order in float64.

    Equal distances are ordered by ordinal.  Returns ``neighbors`` int32 (q, k), ``distances`` float32 (q, k).
    """
    k = min(k, len(train))
    near = min(k + 50, len(train))
    block = max(1, 2**25 // len(train))
    norms = np.linalg.norm(train.astype(np.float64), axis=1)
    halves = (norms**2 / 2).astype(np.float32)
    scale = (1 / np.maximum(norms, 1e-30)).astype(np.float32)
    neighbors, distances = np.empty((len(test), k), np.int32), np.empty((len(test), k), np.float32)
    negated = -train.T
    for begin in range(0, len(test), block):
        far = test[begin : begin + block] @ negated
        if metric == "l2":
            far += halves
        elif metric == "cosine":
            far *= scale
        candidates = np.argpartition(far, near - 1, axis=1)[:, :near]
        for row, ordinals in enumerate(candidates, begin):
            found = true_distances(train, test[row], ordinals, metric)
            order = np.lexsort((ordinals, found))[:k]
            neighbors[row], distances[row] = ordinals[order], found[order]
    return neighbors, distances


def write(
    path: Path, train: np.ndarray, test: np.ndarray, metric: str, extra: Mapping[str, object], source: str
) -> None:
    """Writes a set with its exact neighbours; ``extra`` holds arrays or lists of strings by name."""
    neighbors, distances = exact(train, test, metric)
    unfinished = path.with_suffix(".part")
    with h5py.File(unfinished, "w") as file:
        file.attrs.update(distance=DISTANCES[metric], dimension=train.shape[1], type="dense", point_type="float")
        file.attrs["source"] = source
        arrays = {"train": train, "test": test, "neighbors": neighbors, "distances": distances}
        for name, values in {**arrays, **extra}.items():
            if isinstance(values, list):
                file.create_dataset(name, data=np.array(values, object), dtype=h5py.string_dtype(), compression="gzip")
            else:
                file.create_dataset(name, data=values)
    unfinished.replace(path)


def recall(data: AnnSet, found: np.ndarray, k: int) -> float:
    """Mean share of the k true neighbours among ``found`` (q, k; -1 for none), of the first q queries.

    As ann-benchmarks counts: whatever lies no farther than the k-th true neighbour is right, so that ties cost nobody
    anything; the tolerance is only that of rounding.
    """
    right = 0
    for row, ordinals in enumerate(found[:, :k]):
        distinct = np.unique(ordinals[ordinals >= 0])
        limit = float(data.distances[row, k - 1])
        distances = true_distances(data.train, data.test[row], distinct, data.metric)
        right += min(k, int((distances <= limit + 1e-6 * max(1.0, abs(limit))).sum()))
    return right / (k * len(found))
