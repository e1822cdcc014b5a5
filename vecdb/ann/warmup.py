"""Compiling, or loading from the cache, every kernel that serving a collection needs, before anybody waits for it.

The kernels are reached by the calls that serving makes, on a handful of vectors: what is compiled is then what is
called, and a changed call cannot leave this list behind.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from vecdb.ann import flat, hnsw
from vecdb.ann.codes import RowCodes
from vecdb.ann.hnsw.lone import Lone
from vecdb.ann.quantize.sq8 import ScalarQuantizer8
from vecdb.ann.rerank import rerank
from vecdb.ann.space import Space
from vecdb.core.schema import Metric, Quantization, VectorType
from vecdb.kernels.messages import count_parts

Progress = Callable[[int, int, str], None]
"""Called with (steps done, steps in all, the step that comes next or "" at the end)."""

Served = tuple[Space, Quantization]

USUAL: tuple[Served, ...] = (
    (Space(Metric.COSINE, VectorType.FLOAT32, 16), Quantization.SQ8),
    (Space(Metric.L2, VectorType.FLOAT32, 16), Quantization.SQ8),
)
"""What most collections are: float32 vectors, by cosine or dot (which share kernels) or l2, walked on 8-bit codes."""

_COUNT = 80


def warmup(served: Iterable[Served] = USUAL, progress: Progress | None = None) -> None:
    """Make ready for collections of these spaces and codes (only exact rows and sq8 are known here).

    The dimension does not matter.  Takes seconds a space the first time on a machine, and a fraction of one after.
    """
    steps = [("messages", _messages), *(step for space, codes in served for step in _steps(space, codes))]
    for done, (name, run) in enumerate(steps):
        if progress is not None:
            progress(done, len(steps), name)
        run()
    if progress is not None:
        progress(len(steps), len(steps), "")


def _steps(space: Space, quantization: Quantization) -> Sequence[tuple[str, Callable[[], object]]]:
    """Named thunks; each leaves behind what the next builds on."""
    title = f"{space.metric} {space.vector_type}"
    rows = space.pad(_vectors(space))
    aux = space.aux(rows)
    exact = RowCodes(space, rows, aux)
    stored = rows[:, :space.row_items]
    graph = hnsw.Graph.allocate(_COUNT, m=4, ef_construction=8, seed=0)
    everything = np.full(2, ~np.uint64(0), np.uint64)
    some = np.array([~np.uint64(7), ~np.uint64(0)], np.uint64)

    def scan() -> None:
        flat.scan(exact, stored[:2], k=2, allowed=everything)

    def search() -> None:
        found = hnsw.search(graph, exact, stored[:2], k=2, ef=4, allowed=some, mode="filtered")
        hnsw.search(graph, exact, stored[:2], k=2, ef=4, allowed=some)
        rerank(space, rows, aux, stored[:2], found, 1)
        lone(hnsw.Searcher(graph, exact))

    def lone(searcher: hnsw.Searcher) -> None:
        if Lone.fits(searcher):
            one = Lone(space.metric, False, np.arange(_COUNT), _COUNT, k=1, ef=4, keep=1)
            one.search(searcher, stored[:1].tobytes())

    def maintain() -> None:
        hnsw.consolidate(graph, space, rows, aux, some)
        hnsw.reorder(graph)

    def coded() -> None:
        quantizer = ScalarQuantizer8.train(space, stored)
        codes = quantizer.codes(*quantizer.encode(stored))
        searcher = hnsw.Searcher(graph, codes, exact)
        searcher.search(stored[:1], k=2, ef=4)
        searcher.search(stored[:2], k=2, ef=4)
        lone(searcher)
        flat.scan(codes, stored[:2], k=2)
        hnsw.grow(hnsw.Graph.allocate(_COUNT, m=4, ef_construction=8, seed=0), space, rows, aux, _COUNT, codes=codes)

    steps: list[tuple[str, Callable[[], object]]] = [
        (f"{title}: scan", scan),
        (f"{title}: build", lambda: hnsw.grow(graph, space, rows, aux, _COUNT)),
        (f"{title}: search", search),
        (f"{title}: maintenance", maintain),
    ]
    if quantization is Quantization.SQ8:
        steps.append((f"{title}: 8-bit codes", coded))
    return steps


def _messages() -> None:
    """What looks at large messages before they are read: reachable only from a network's face."""
    count_parts(np.frombuffer(b"\0", np.uint8), np.zeros((1, 1), np.int16), 1)


def _vectors(space: Space) -> npt.NDArray[Any]:
    """A few distinct stored vectors."""
    values = np.arange(_COUNT * space.row_items).reshape(_COUNT, space.row_items) * 37 % 101
    return space.encode(values.astype(np.uint8 if space.vector_type is VectorType.BINARY else np.float32))


def main() -> None:
    """Warm the usual kernels up, saying which."""
    warmup(progress=lambda done, of, step: print(f"kernels {done}/{of} {step}", flush=True))


if __name__ == "__main__":
    main()
