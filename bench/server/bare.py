"""What the server is held against: the bare index, and the embedded database, in the process that measures.

``index`` is :mod:`vecdb.ann` over arrays, the graph walked on codes and reranked (:mod:`bench.systems.ours`): no
records, no ids, no filter, no schema.  ``embedded`` is the same records that the node serves, through the public API.
"""

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from bench.hdf5 import AnnSet
from bench.server.pacing import Done
from bench.systems import SYSTEMS, Settings

CODED = {"sq8": "vecdb-hnsw-sq8", "none": "vecdb-hnsw"}


def timed(seconds: float, threads: int, make: Callable[[], Callable[[int], Any]]) -> tuple[Done, float]:
    """``ask = make()`` in each thread, then ``ask(i)`` over and over; also the CPU seconds of the process."""
    asks = [make() for _ in range(threads)]
    for ask in asks:
        ask(0)
        ask(1)
    calls: list[list[float]] = [[] for _ in asks]
    barrier = threading.Barrier(threads)

    def work(place: int) -> None:
        ask, mine = asks[place], calls[place]
        barrier.wait()
        now = time.perf_counter()
        end, i = now + seconds, place * 7919
        while now < end:
            ask(i)
            i += 1
            then, now = now, time.perf_counter()
            mine.append((now - then) * 1e3)

    workers = [threading.Thread(target=work, args=(place,)) for place in range(threads)]
    cpu, began = time.process_time(), time.perf_counter()
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return Done([one for mine in calls for one in mine], time.perf_counter() - began, 0), time.process_time() - cpu


class Index:
    """The bare index; ``ef`` is set when its recall is known."""

    def __init__(self, data: AnnSet, k: int, m: int, ef_construction: int, quantization: str, threads: int) -> None:
        settings = Settings(data.metric, data.train.shape[1], k, m, ef_construction, threads, 1)
        self.system: Any = SYSTEMS[CODED[quantization]](settings)
        self.system.warm(data.train)
        self.system.build(data.train)
        self.queries = data.test
        self.ef = k
        self._stored = self.system.space.encode(data.test)

    def answers(self, ef: int) -> np.ndarray:
        self.ef = ef
        return np.asarray(self._searcher(len(self.queries))(0))

    def _searcher(self, rows: int) -> Callable[[int], Any]:
        """A searcher of its own, for a thread; queries are in stored form, as a server would have them."""
        system = self.system
        coded = getattr(system, "coded", None)
        k = system.settings.k
        if coded is None:
            searcher, keep = system.hnsw.Searcher(system.graph, system.exact), 0
        else:
            searcher = system.hnsw.Searcher(system.graph, coded, system.exact)
            keep = min(round(system.oversample * k), self.ef)
        ef, queries, names = self.ef, self._stored, system.names
        places = max(1, len(queries) - rows + 1)

        def ask(i: int) -> Any:
            low = i * rows % places
            return names[searcher.search(queries[low : low + rows], k=k, ef=ef, keep=keep).ordinals]

        return ask

    def load(self, rows: int, threads: int, seconds: float) -> tuple[Done, float]:
        return timed(seconds, threads, lambda: self._searcher(rows))

    def close(self) -> None:
        self.system.close()


class Embedded:
    """A directory of records, opened here."""

    def __init__(self, folder: Path, queries: np.ndarray, k: int, ef: int, threads: int, name: str = "bench") -> None:
        import vecdb

        self.database = vecdb.connect(str(folder), threads=threads)
        self.docs = self.database.collection(name)
        self.queries, self.k, self.ef = queries, k, ef

    def load(self, rows: int, threads: int, seconds: float) -> tuple[Done, float]:
        places = max(1, len(self.queries) - rows + 1)

        def ask(i: int) -> Any:
            low = i * rows % places
            vectors = self.queries[low] if rows == 1 else self.queries[low : low + rows]
            return self.docs.query(vectors, k=self.k, ef_search=self.ef)

        return timed(seconds, threads, lambda: ask)

    def close(self) -> None:
        self.database.close()


def fill(folder: Path, data: AnnSet, m: int, ef_construction: int, quantization: str, name: str = "bench") -> None:
    """Make the collection the node will serve: all records durable, the index built."""
    import vecdb

    with vecdb.connect(str(folder)) as database:
        docs = database.create_collection(name, data.train.shape[1], data.metric, index="hnsw", m=m,
                                          ef_construction=ef_construction, quantization=quantization)  # fmt: skip
        docs.upsert(ids=np.arange(len(data.train)), vectors=data.train)
        docs.optimize()
