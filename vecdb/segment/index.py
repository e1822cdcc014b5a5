"""The index of a sealed segment: a graph, inverted lists, or nothing; walked on codes or on rows.

An index is a projection of the rows: it is stored in one file of its own and can be built again.
"""

from collections import deque
from dataclasses import dataclass, field
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vecdb.ann.codes import Codes, RowCodes
from vecdb.ann.found import Found
from vecdb.ann.hnsw import Graph, Mode, Run, Searcher, serial
from vecdb.ann.ivf import Ivf
from vecdb.ann.memory import allocate
from vecdb.ann.quantize import Quantizer, from_state
from vecdb.ann.rerank import rerank_on
from vecdb.ann.space import Space
from vecdb.core.errors import DataCorrupted
from vecdb.core.schema import IndexKind, Quantization
from vecdb.segment.files import ArrayFile, write_arrays

FILE_KIND = "index"
SEED = 0x5EED
"""Of every sealed segment's graph and quantizer: the same records make the same index anywhere."""


@dataclass(slots=True)
class SealedAnn:
    """``graph`` or ``ivf`` or neither; ``codes`` to walk a graph on (None: the rows).

    ``ef``/``nprobe`` reach the target recall at k=10 on a sample of the segment's own records (measured when
    it was built); ``oversample`` is how many candidates a result are reranked.
    """

    kind: IndexKind
    quantization: Quantization
    reason: str
    bits: int = 0
    graph: Graph | None = None
    ivf: Ivf | None = None
    quantizer: Quantizer | None = None
    codes: Codes | None = None
    ef: int = 0
    nprobe: int = 0
    oversample: float = 1.0
    measured: dict[str, Any] = field(default_factory=dict)
    idle: deque[Searcher] = field(default_factory=deque)
    """Searchers no thread is using: as many are made as threads search at once."""

    @classmethod
    def none(cls, reason: str) -> "SealedAnn":
        """No index: every query scans."""
        return cls(IndexKind.FLAT, Quantization.NONE, reason)

    @property
    def searchable(self) -> bool:
        return self.graph is not None or self.ivf is not None

    def search(self, rows: RowCodes, queries: npt.NDArray[Any], *, k: int, ef: int, nprobe: int,
               allowed: npt.NDArray[np.uint64] | None, mode: Mode, count: int | None = None,
               stop: npt.NDArray[np.int32] | None = None) -> Found:
        """Search (nq, row_items) stored queries, seeing ordinals below ``count``; distances are exact, raw.

        ``stop`` as in :func:`vecdb.ann.hnsw.search`.
        """
        if self.ivf is not None:
            wanted = max(k, ceil(k * self.oversample))
            found = self.ivf.search(queries, wanted, nprobe or self.nprobe, allowed, stop)
            return found if self.kind is IndexKind.IVF_FLAT else rerank_on(rows, rows.prepare(queries), found, k)
        assert self.graph is not None
        searcher = self.searcher(rows)
        found = searcher.search(queries, k=k, ef=ef, keep=ceil(k * self.oversample), allowed=allowed, mode=mode,
                                count=count, stop=stop)
        self.idle.append(searcher)
        return found

    def searcher(self, rows: RowCodes) -> Searcher:
        """One that is idle, or new; whoever takes it puts it back among the idle."""
        assert self.graph is not None
        try:
            return self.idle.pop()
        except IndexError:
            return Searcher(self.graph, rows if self.codes is None else self.codes, rows)

    def memory_bytes(self) -> dict[str, int]:
        out = {"graph": 0 if self.graph is None else self.graph.nbytes,
               "lists": 0 if self.ivf is None else self.ivf.memory_bytes, "codes": 0}
        if self.codes is not None:
            out["codes"] = self.codes.codes.nbytes + self.codes.aux.nbytes
        return out

    def describe(self) -> dict[str, Any]:
        out: dict[str, Any] = {"kind": self.kind.value, "quantization": self.quantization.value, "reason": self.reason}
        if self.quantization is Quantization.RABITQ:
            out["bits"] = self.bits
        if self.graph is not None:
            out |= {"ef_search": self.ef, "m": self.graph.m, "oversample": self.oversample}
        if self.ivf is not None:
            out |= {"nlist": self.ivf.nlist, "nprobe": self.nprobe}
        return out | ({"measured": self.measured} if self.measured else {})

    def write(self, path: Path) -> None:
        """Store the index as one checksummed file."""
        arrays: dict[str, npt.NDArray[Any]] = {}
        for part, owner in (("graph", self.graph), ("ivf", self.ivf)):
            if owner is not None:
                arrays |= {f"{part}.{name}": array for name, array in owner.arrays().items()}
        if self.quantizer is not None and self.codes is not None:
            arrays |= {f"quantizer.{name}": array for name, array in self.quantizer.state().items()}
            arrays |= {"codes.codes": self.codes.codes, "codes.aux": self.codes.aux}
        meta = {"kind": self.kind.value, "quantization": self.quantization.value, "reason": self.reason,
                "bits": self.bits, "ef": self.ef, "nprobe": self.nprobe, "oversample": self.oversample,
                "measured": self.measured,
                "ef_construction": 0 if self.graph is None else self.graph.ef_construction}
        write_arrays(path, FILE_KIND, arrays, meta)

    @classmethod
    def open(cls, path: Path, space: Space, rows: npt.NDArray[Any], aux: npt.NDArray[np.float32],
             run: Run = serial) -> "SealedAnn":
        """Load an index into memory; :class:`DataCorrupted` if any of its bytes is damaged."""
        file = ArrayFile.open(path, verify=False)  # loading verifies
        parts: dict[str, dict[str, npt.NDArray[Any]]] = {"graph": {}, "ivf": {}, "quantizer": {}, "codes": {}}
        for name in file.names:
            part, _, rest = name.partition(".")
            parts[part][rest] = file.load(name, allocate, run=run)
        meta = file.meta
        try:
            ann = cls(IndexKind(meta["kind"]), Quantization(meta["quantization"]), meta["reason"], meta["bits"],
                      ef=meta["ef"], nprobe=meta["nprobe"], oversample=meta["oversample"], measured=meta["measured"])
            if parts["graph"]:
                ann.graph = Graph.from_arrays(parts["graph"], ef_construction=meta["ef_construction"], seed=SEED)
                if (wrong := ann.graph.damage()) is not None:
                    raise ValueError(wrong)
            if parts["ivf"]:
                ann.ivf = Ivf.from_arrays(space, parts["ivf"], rows=rows, aux=aux)
            if parts["quantizer"]:
                ann.quantizer = from_state(ann.quantization, space, parts["quantizer"])
                ann.codes = ann.quantizer.codes(parts["codes"]["codes"], parts["codes"]["aux"])
        except (KeyError, ValueError, TypeError) as error:
            raise DataCorrupted(f"{path} is whole but cannot be understood: {error}", path=str(path)) from error
        return ann
