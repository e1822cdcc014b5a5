"""Somebody who writes and reads while a cluster is steered, and remembers what was acknowledged."""

import threading
import time
from typing import Any

import numpy as np

from tests.replicated_nodes import wait_for
from vecdb.core.errors import VecdbError

DIM = 8


class Load:
    """Writes and reads while something else happens; remembers what was acknowledged."""

    def __init__(self, database: Any, name: str) -> None:
        self.collection = database.collection(name)
        self.written: dict[int, int] = {}
        self.failures: list[str] = []
        self.longest_s = 0.0
        self._rounds = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> "Load":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(60)

    def _run(self) -> None:
        at = 0
        while not self._stop.is_set():
            ids = [(at * 7 + one) % 3_000 for one in range(10)]
            began = time.monotonic()
            try:
                self.collection.upsert(ids=ids, vectors=vectors(ids), metadata=[{"round": at}] * 10, timeout=20)
                self.written.update(dict.fromkeys(ids, at))
                hits = self.collection.query(vectors(ids[:1])[0], k=3, timeout=20)
                if ids[0] not in [hit.id for hit in hits]:
                    self.failures.append(f"query {ids[0]} found {[hit.id for hit in hits]}")
            except VecdbError as error:
                self.failures.append(f"{type(error).__name__}: {error}")
            self.longest_s = max(self.longest_s, time.monotonic() - began)
            at += 1
            self._rounds = at

    def goes_on(self, rounds: int = 5) -> None:
        """Until so many more rounds were begun and ended from now on."""
        upto = self._rounds + rounds + 1
        wait_for(lambda: self._rounds >= upto or self.failures, "more rounds")

    def check(self) -> None:
        """Everything that was acknowledged is there, once, as it was written last."""
        assert not self.failures, self.failures[:5]
        assert len(self.written) > 30
        found = {record.id: record.metadata["round"] for record in self.collection.fetch(list(self.written))}
        assert found == self.written
        scanned = [record.id for record in self.collection.scan()]
        assert len(scanned) == len(set(scanned)) == self.collection.count()


def vectors(ids: list[int]) -> Any:
    made = np.stack([np.random.default_rng(one).standard_normal(DIM) for one in ids]).astype(np.float32)
    return made / np.linalg.norm(made, axis=1, keepdims=True)
