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
        small.search(train[:1])
        small.close()

    def close(self) -> None:
        self.pool.shutdown()


class Hnsw(Ours):
    """The graph, numbered for locality, walked on exact rows."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self.hnsw = part("vecdb.ann.hnsw")

    def build(self, train: np.ndarray) -> None:
        self.store(train)
        self.link(None)
        self.searcher = self.hnsw.Searcher(self.graph, self.exact)

    def link(self, codes: Any) -> None:
        """Grows the graph, walking ``codes`` (None: the rows) meanwhile, and renumbers it and the rows."""
        chosen, count = self.settings, len(self.rows)
        grown = self.hnsw.Graph.allocate(count, m=chosen.m, ef_construction=chosen.ef_construction, seed=chosen.seed)
        self.hnsw.grow(grown, self.space, self.rows, self.aux, count, self.run, codes=codes)
        self.graph, self.order = self.hnsw.reorder(grown)
        self.rows = self.hnsw.permute(self.rows, self.order)
        self.aux = self.aux[self.order] if len(self.aux) else self.aux
        self.exact = self.codes_module.RowCodes(self.space, self.rows, self.aux)
        # The last one is what -1, for nothing found, points at.
        self.names = np.append(self.order, np.int32(-1))

    def search(self, queries: np.ndarray) -> np.ndarray:
        found = self.searcher.search(self.space.encode(queries), k=self.settings.k, ef=self.effort)
        return self.names[found.ordinals]

    def bytes_per_vector(self) -> float:
        return (self.graph.nbytes + self.rows.nbytes + self.aux.nbytes) / len(self.rows)


class Coded(Hnsw):
    """The graph walked on a quantizer's codes, the best reranked on rows; built on rows unless the codes are fine."""

    quantization = "sq8"

    def build(self, train: np.ndarray) -> None:
        schema, quantize = part("vecdb.core.schema"), part("vecdb.ann.quantize")
        self.store(train)
        spec = schema.IndexSpec(quantization=self.quantization)
        chosen = np.random.default_rng(self.settings.seed).permutation(len(train))[:50_000]
        sample = np.ascontiguousarray(self.rows[np.sort(chosen), : self.space.row_items])
        quantizer = quantize.train(spec, self.space, sample, seed=self.settings.seed, run=self.run)
        if quantizer.kind != spec.quantization:
            raise MissingError(f"vecdb.ann.quantize made {quantizer.kind} where {spec.quantization} was asked for")
        self.oversample = quantize.default_oversample(spec.quantization, spec.bits, self.space.dim)
        codes, aux = quantizer.encode(self.rows, self.run)
        self.link(quantizer.codes(codes, aux) if self.quantization == "sq8" else None)
        self.coded = quantizer.codes(self.hnsw.permute(codes, self.order), aux[self.order])
        self.searcher = self.hnsw.Searcher(self.graph, self.coded, self.exact)

    def search(self, queries: np.ndarray) -> np.ndarray:
        keep = round(self.oversample * self.settings.k)
        stored = self.space.encode(queries)
        found = self.searcher.search(stored, k=self.settings.k, ef=max(self.effort, keep), keep=keep)
        return self.names[found.ordinals]

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


class HnswOpq(Coded):
    """The same, rotated first."""

    quantization = "opq"


class HnswRabitq(Coded):
    """1-bit codes."""

    quantization = "rabitq"


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
