"""The indexes of :mod:`vecdb.ann`, over arrays, as a segment uses them."""

from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from typing import Any

import numpy as np

from bench.systems.base import InvertedFile, MissingError, Settings, System


def part(name: str) -> Any:
    try:
        return import_module(name)
    except ImportError as error:
        raise MissingError(f"{name} cannot be imported ({error})") from error


class Ours(System):
    """Rows in a space, and threads to build with."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        schema = part("vecdb.core.schema")
        self.space = part("vecdb.ann.space").Space(
            schema.Metric(settings.metric), schema.VectorType.FLOAT32, settings.dim
        )
        self.codes_module = part("vecdb.ann.codes")
        self.pool = ThreadPoolExecutor(settings.build_threads)
        self.effort = settings.k

    def store(self, train: np.ndarray) -> None:
        """Padded rows of the space, and what goes with them."""
        self.rows = self.space.empty(len(train))
        for lo in range(0, len(train), 65_536):
            self.space.fill(self.rows, lo, self.space.encode(train[lo : lo + 65_536]))
        self.aux = self.space.aux(self.rows)

    def run(self, thunks: Any) -> None:
        """Runs thunks on the threads of the build."""
        for done in [self.pool.submit(thunk) for thunk in thunks]:
            done.result()

    def set_effort(self, effort: int) -> None:
        self.effort = effort

    def warm(self, train: np.ndarray) -> None:
        """Builds and asks a small one first: compiling, or loading what was compiled, is paid once a machine."""
        small = type(self)(self.settings)
        small.build(train[:1000])
        small.search(train[:10])
        small.close()

    def close(self) -> None:
        self.pool.shutdown()


class Hnsw(Ours):
    """The graph, walked on exact rows."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self.hnsw = part("vecdb.ann.hnsw")
        self.scratch = self.hnsw.Scratch()

    def build(self, train: np.ndarray) -> None:
        chosen = self.settings
        self.store(train)
        self.graph = self.hnsw.Graph.allocate(
            len(train), m=chosen.m, ef_construction=chosen.ef_construction, seed=chosen.seed
        )
        self.hnsw.grow(self.graph, self.space, self.rows, self.aux, len(train), self.run)
        self.codes = self.codes_module.RowCodes(self.space, self.rows, self.aux)

    def search(self, queries: np.ndarray) -> np.ndarray:
        found = self.hnsw.search(
            self.graph, self.codes, self.space.encode(queries), k=self.settings.k, ef=self.effort, scratch=self.scratch
        )
        return found.ordinals

    def bytes_per_vector(self) -> float:
        return (self.graph.nbytes + self.rows.nbytes + self.aux.nbytes) / len(self.rows)


class Coded(Hnsw):
    """The graph built on rows and walked on a quantizer's codes, the best reranked on rows."""

    quantization = "sq8"
    oversample = 3

    def build(self, train: np.ndarray) -> None:
        super().build(train)
        schema, quantize = part("vecdb.core.schema"), part("vecdb.ann.quantize")
        self.rerank = part("vecdb.ann.rerank").rerank
        spec = schema.IndexSpec(quantization=self.quantization)
        chosen = np.random.default_rng(self.settings.seed).permutation(len(train))[:50_000]
        sample = np.ascontiguousarray(self.rows[np.sort(chosen), : self.space.row_items])
        quantizer = quantize.train(spec, self.space, sample, seed=self.settings.seed, run=self.run)
        if quantizer.kind != spec.quantization:
            raise MissingError(f"vecdb.ann.quantize made {quantizer.kind} where {spec.quantization} was asked for")
        self.coded = quantizer.codes(*quantizer.encode(self.rows, self.run))

    def search(self, queries: np.ndarray) -> np.ndarray:
        stored, k = self.space.encode(queries), self.settings.k
        wide = min(self.effort, k * self.oversample)
        found = self.hnsw.search(self.graph, self.coded, stored, k=wide, ef=self.effort, scratch=self.scratch)
        return self.rerank(self.space, self.rows, self.aux, stored, found, k).ordinals

    def bytes_per_vector(self) -> float:
        return super().bytes_per_vector() + (self.coded.codes.nbytes + self.coded.aux.nbytes) / len(self.rows)

    def params(self) -> dict[str, int | float | str]:
        return super().params() | {"quantization": self.quantization, "oversample": self.oversample}


class HnswSq8(Coded):
    """8-bit codes."""


class HnswSq4(Coded):
    """4-bit codes."""

    quantization = "sq4"


class HnswPq(Coded):
    """Product-quantized codes."""

    quantization = "pq"
    oversample = 10


class HnswOpq(HnswPq):
    """The same, rotated first."""

    quantization = "opq"


class HnswRabitq(Coded):
    """1-bit codes."""

    quantization = "rabitq"
    oversample = 10


class Flat(Ours):
    """Exact."""

    effort_name = "none"

    def build(self, train: np.ndarray) -> None:
        self.flat = part("vecdb.ann.flat")
        self.store(train)
        self.codes = self.codes_module.RowCodes(self.space, self.rows, self.aux)

    def search(self, queries: np.ndarray) -> np.ndarray:
        return self.flat.scan(self.codes, self.space.encode(queries), k=self.settings.k).ordinals

    def efforts(self, sweep: list[int]) -> list[int]:
        return [0]

    def params(self) -> dict[str, int | float | str]:
        return {}

    def bytes_per_vector(self) -> float:
        return (self.rows.nbytes + self.aux.nbytes) / len(self.rows)


class IvfFlat(InvertedFile, Ours):
    """Inverted lists over exact rows."""

    kind = "ivf_flat"

    def build(self, train: np.ndarray) -> None:
        schema, ivf = part("vecdb.core.schema"), part("vecdb.ann.ivf")
        self.rerank = part("vecdb.ann.rerank").rerank
        self.store(train)
        spec = schema.IndexSpec(kind=self.kind)
        self.index = ivf.Ivf.build(
            self.space, self.rows, len(train), spec=spec, aux=self.aux, seed=self.settings.seed, run=self.run
        )

    def search(self, queries: np.ndarray) -> np.ndarray:
        return self.index.search(self.space.encode(queries), self.settings.k, nprobe=self.effort).ordinals

    def efforts(self, sweep: list[int]) -> list[int]:
        return self.probes(self.index.nlist)

    def params(self) -> dict[str, int | float | str]:
        return {"nlist": self.index.nlist}

    def bytes_per_vector(self) -> float:
        return (self.rows.nbytes + self.aux.nbytes + self.index.memory_bytes) / len(self.rows)


class IvfPq(IvfFlat):
    """Inverted lists of product codes, the best reranked on rows."""

    kind = "ivf_pq"
    oversample = 10

    def search(self, queries: np.ndarray) -> np.ndarray:
        stored, k = self.space.encode(queries), self.settings.k
        found = self.index.search(stored, k * self.oversample, nprobe=self.effort)
        return self.rerank(self.space, self.rows, self.aux, stored, found, k).ordinals

    def params(self) -> dict[str, int | float | str]:
        return super().params() | {"oversample": self.oversample}
