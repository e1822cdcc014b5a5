"""What a client process does to a cluster: writes everything once, or goes on reading or writing until it is told."""

import threading
import time
from typing import Any

import numpy as np

import vecdb
from bench.cluster.gaps import one_of_each
from vecdb.core.errors import VecdbError

CALL_S = 30.0
FIRST_S = 60.0
BATCH = 1_000


def ingest(command: dict[str, Any]) -> dict[str, Any]:
    """One ``upsert`` of a whole matrix, as a program would; ids are the rows' numbers.

    ``ended``: when the last was acknowledged, on the machine's monotonic clock.
    """
    vectors = np.load(command["vectors"])
    with vecdb.connect(f"grpc://{command['target']}") as database:
        docs = database.collection(command["collection"])
        began = time.monotonic()
        done = docs.upsert(ids=np.arange(len(vectors)), vectors=vectors, batch_size=BATCH)
        ended = time.monotonic()
    return {"records": done.inserted + done.updated, "began": began, "ended": ended}


class Watch(threading.Thread):
    """Calls one after the other, each ``pace_s`` after the one before it began, or as soon as that is over.

    ``what``: ``read`` asks for the 10 nearest of a query; ``write`` writes records again that are there, one of each of
    ``shards`` shards at once, so that what is found does not change.
    """

    def __init__(self, what: str, target: str, collection: str, vectors: np.ndarray, pace_s: float, shards: int
                 ) -> None:  # fmt: skip
        super().__init__(daemon=True)
        self.what, self.target, self.collection = what, target, collection
        self.vectors, self.pace_s = vectors, pace_s
        self.groups = one_of_each(len(vectors), shards) if what == "write" else []
        self.calls: list[tuple[float, float, str]] = []
        self.fault = ""
        self.first, self._over = threading.Event(), threading.Event()

    def run(self) -> None:
        try:
            with vecdb.connect(f"grpc://{self.target}", timeout=CALL_S) as database:
                docs = database.collection(self.collection)
                turn = 0
                while not self._over.is_set():
                    begun, error = time.monotonic(), ""
                    try:
                        self._call(docs, turn)
                    except VecdbError as raised:
                        error = f"{type(raised).__name__}: {raised}"[:200]
                    now = time.monotonic()
                    self.calls.append((begun, now, error))
                    self.first.set()
                    turn += 1
                    self._over.wait(max(0.0, begun + self.pace_s - now))
        except BaseException as raised:
            self.fault = f"{type(raised).__name__}: {raised}"
            self.first.set()

    def _call(self, docs: Any, turn: int) -> None:
        if self.what == "read":
            docs.query(self.vectors[turn % len(self.vectors)], k=10)
        else:
            ids = self.groups[turn % len(self.groups)]
            docs.upsert(ids=ids, vectors=self.vectors[ids])

    def end(self) -> list[tuple[float, float, str]]:
        """What was seen; a call under way is waited for."""
        self._over.set()
        self.join(2 * CALL_S)
        if self.fault or self.is_alive():
            raise RuntimeError(f"a client's {self.what}s ended: {self.fault or 'a call does not return'}")
        return self.calls


_running: list[Watch] = []


def begin(command: dict[str, Any]) -> dict[str, Any]:
    """Start a :class:`Watch`, and return after its first call."""
    watch = Watch(command["what"], command["target"], command["collection"], np.load(command["vectors"]),
                  command["pace_s"], command["shards"])  # fmt: skip
    watch.start()
    _running.append(watch)
    if not watch.first.wait(FIRST_S):
        raise RuntimeError(f"the first {watch.what} did not return in {FIRST_S:.0f} s")
    return {}


def end(command: dict[str, Any]) -> dict[str, Any]:
    """End it; ``calls``: beginnings, ends and errors."""
    return {"calls": _running.pop().end()}
