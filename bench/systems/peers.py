"""Libraries others have written, each with the parameters ours are given."""

import importlib
from abc import abstractmethod
from typing import Any

import numpy as np

from bench.systems.base import InvertedFile, MissingError, Settings, System


def library(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise MissingError(f"{name} is not installed: pip install -e .[bench]") from error


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), np.float32(1e-30))


class Hnswlib(System):
    """hnswlib's graph over float32."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self.library = library("hnswlib")

    def build(self, train: np.ndarray) -> None:
        chosen = self.settings
        space = {"cosine": "cosine", "l2": "l2", "dot": "ip"}[chosen.metric]
        self.index = self.library.Index(space=space, dim=chosen.dim)
        self.index.init_index(
            max_elements=len(train), M=chosen.m, ef_construction=chosen.ef_construction, random_seed=chosen.seed
        )
        self.index.add_items(train, num_threads=chosen.build_threads)
        self.index.set_num_threads(chosen.threads)

    def set_effort(self, effort: int) -> None:
        self.index.set_ef(effort)

    def search(self, queries: np.ndarray) -> np.ndarray:
        return self.index.knn_query(queries, k=self.settings.k)[0].astype(np.int64)

    def bytes_per_vector(self) -> float:
        return self.index.index_file_size() / self.index.get_current_count()


class Faiss(System):
    """What faiss's indexes share; cosine is the inner product of normalised rows."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self.library = library("faiss")
        self.faiss_metric = self.library.METRIC_L2 if settings.metric == "l2" else self.library.METRIC_INNER_PRODUCT

    @abstractmethod
    def make(self, count: int) -> Any:
        """An empty index for ``count`` rows."""

    def build(self, train: np.ndarray) -> None:
        self.library.omp_set_num_threads(self.settings.build_threads)
        rows = unit(train) if self.settings.metric == "cosine" else train
        self.index = self.make(len(rows))
        if not self.index.is_trained:
            self.index.train(rows)
        self.index.add(rows)
        self.library.omp_set_num_threads(self.settings.threads)

    def search(self, queries: np.ndarray) -> np.ndarray:
        rows = unit(queries) if self.settings.metric == "cosine" else queries
        return self.index.search(rows, self.settings.k)[1]

    def bytes_per_vector(self) -> float:
        return self.library.serialize_index(self.index).nbytes / self.index.ntotal


class FaissHnsw(Faiss):
    """HNSW over float32."""

    def make(self, count: int) -> Any:
        index = self.library.IndexHNSWFlat(self.settings.dim, self.settings.m, self.faiss_metric)
        index.hnsw.efConstruction = self.settings.ef_construction
        return index

    def set_effort(self, effort: int) -> None:
        self.index.hnsw.efSearch = effort


class FaissHnswSq8(FaissHnsw):
    """HNSW over 8-bit codes, without reranking."""

    def make(self, count: int) -> Any:
        kind = self.library.ScalarQuantizer.QT_8bit
        index = self.library.IndexHNSWSQ(self.settings.dim, kind, self.settings.m, self.faiss_metric)
        index.hnsw.efConstruction = self.settings.ef_construction
        return index


class FaissFlat(Faiss):
    """Exact."""

    effort_name = "none"

    def make(self, count: int) -> Any:
        return self.library.IndexFlat(self.settings.dim, self.faiss_metric)

    def set_effort(self, effort: int) -> None:
        """There is none."""

    def efforts(self, sweep: list[int]) -> list[int]:
        return [0]

    def params(self) -> dict[str, int | float | str]:
        return {}


class FaissIvfFlat(InvertedFile, Faiss):
    """Inverted lists of float32 rows."""

    codes = "Flat"

    def make(self, count: int) -> Any:
        self.count = self.lists(count)
        return self.library.index_factory(self.settings.dim, f"IVF{self.count},{self.codes}", self.faiss_metric)

    def set_effort(self, effort: int) -> None:
        self.index.nprobe = effort

    def efforts(self, sweep: list[int]) -> list[int]:
        return self.probes(self.count)

    def params(self) -> dict[str, int | float | str]:
        return {"nlist": self.count}


class FaissIvfPq(FaissIvfFlat):
    """Inverted lists of product-quantized rows, eight components a byte where the dimension allows, no reranking."""

    def make(self, count: int) -> Any:
        dim = self.settings.dim
        self.codes = f"PQ{next(part for part in (dim // 8, dim // 4, dim // 2, dim) if part and dim % part == 0)}"
        return super().make(count)


class Usearch(System):
    """usearch's graph over float32."""

    dtype = "f32"

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self.library = library("usearch.index")

    def build(self, train: np.ndarray) -> None:
        chosen = self.settings
        metric = {"cosine": "cos", "l2": "l2sq", "dot": "ip"}[chosen.metric]
        self.index = self.library.Index(
            ndim=chosen.dim,
            metric=metric,
            dtype=self.dtype,
            connectivity=chosen.m,
            expansion_add=chosen.ef_construction,
        )
        self.index.add(np.arange(len(train), dtype=np.uint64), train, threads=chosen.build_threads)

    def set_effort(self, effort: int) -> None:
        self.index.expansion_search = effort

    def search(self, queries: np.ndarray) -> np.ndarray:
        found = self.index.search(queries, self.settings.k, threads=self.settings.threads)
        return np.asarray(found.keys).astype(np.int64).reshape(len(queries), -1)

    def bytes_per_vector(self) -> float:
        return self.index.serialized_length / len(self.index)


class UsearchF16(Usearch):
    """The same over float16."""

    dtype = "f16"
