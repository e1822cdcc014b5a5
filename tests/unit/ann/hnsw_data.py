"""Small data and graphs that the tests of HNSW share."""

import functools
import threading

import numpy as np

from tests.oracles import distances as oracle
from vecdb.ann import hnsw
from vecdb.ann.codes import RowCodes
from vecdb.ann.space import Space
from vecdb.core.schema import Metric, VectorType

COUNT, DIM = 3_000, 24
L2 = Space(Metric.L2, VectorType.FLOAT32, DIM)


def rows_of(space: Space, count: int = COUNT, seed: int = 11):
    """Padded rows of clustered data in ``space``."""
    if space.vector_type is VectorType.BINARY:
        floats = oracle.clustered(count, space.dim, seed)
        return space.pad(np.packbits(floats > 0, axis=1))
    scale = 30 if not space.is_float else 1
    shift = 120 if space.vector_type is VectorType.UINT8 else 0
    return space.pad(space.encode(oracle.clustered(count, space.dim, seed) * scale + shift))


def exact(space: Space, rows) -> RowCodes:
    return RowCodes(space, rows, space.aux(rows))


def build(space: Space, rows, *, upto=None, run=hnsw.serial, seed=5, m=8, ef_construction=60, capacity=None,
          codes=None):
    graph = hnsw.Graph.allocate(capacity or len(rows), m=m, ef_construction=ef_construction, seed=seed)
    hnsw.grow(graph, space, rows, space.aux(rows), len(rows) if upto is None else upto, run, codes=codes)
    return graph


def on_threads(count: int):
    """A ``Run`` on that many threads, which take thunks from both ends of the list so that the order is another."""

    def run(thunks):
        queue = [thunk for pair in zip(thunks[::-1], thunks, strict=True) for thunk in pair][:len(thunks)]
        queue = list(dict.fromkeys([*queue, *thunks]))
        errors: list[BaseException] = []

        def work():
            while queue:
                try:
                    queue.pop()()
                except IndexError:
                    return
                except BaseException as error:
                    errors.append(error)
                    return

        threads = [threading.Thread(target=work) for _ in range(count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if errors:
            raise errors[0]

    return run


@functools.cache
def shared():
    """(rows, graph, queries, truth (nq, COUNT)) of l2 data; nobody may write to them."""
    rows = rows_of(L2)
    queries = oracle.clustered(60, DIM, 12)
    return rows, build(L2, rows), queries, oracle.raw(L2, queries, rows[:, :DIM])
