"""What clients do while a cluster is hurt, and what is held against it afterwards.

Writers and readers of small records are those of ``tests.chaos``, in a process of their own, with its judges: shared
keys must be linearizable, sessions must see their writes, and what was acknowledged must be on every replica.  Beside
them one thread asks for the nearest of real word senses, and each answer is compared with the exact one.
"""

import contextlib
import json
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import vecdb
from tests.chaos import history
from tests.chaos.cluster import Clients
from tests.chaos.history import Event, Violated
from tests.chaos.networks import _popen
from tests.cluster.compose import ComposeCluster, Node
from vecdb.core.errors import VecdbError
from vecdb.datasets import Dataset, load_wordnet

SENSES = "senses"
SMALL = "chaos"
K = 10
RECALL = 0.95
CALL_S = 5.0
SEEN = 20
"""Operations without which a round has shown nothing."""
WRITES = ("upsert", "update", "delete", "own", "append", "remove")


class Here:
    """The network of this machine, for who needs one to start a process."""

    start = staticmethod(lambda host, *given, **popen: _popen(*given, **popen))


class Senses:
    """20,000 word senses with their embeddings, and the exact answers to 500 queries."""

    def __init__(self) -> None:
        self.data: Dataset = load_wordnet()
        self.queries = self.data.queries
        distances = 1.0 - self.queries.astype(np.float64) @ self.data.vectors.T.astype(np.float64)
        self.nearest: npt.NDArray[np.float64] = np.sort(np.partition(distances, K - 1, axis=1)[:, :K], axis=1)

    def ingest(self, url: str, **layout: Any) -> float:
        """Into the collection; seconds until the last was acknowledged."""
        data = self.data
        with vecdb.connect(url, timeout=60.0) as database:
            collection = database.create_collection(SENSES, data.vectors.shape[1], data.metric, index="hnsw", **layout)
            begun = time.monotonic()
            for low in range(0, len(data.ids), 1_000):
                part = slice(low, low + 1_000)
                collection.upsert(ids=data.ids[part], vectors=data.vectors[part], metadata=data.metadata[part])
            return time.monotonic() - begun

    def found(self, distances: npt.NDArray[np.float32], query: int) -> int:
        """How many of the exact nearest an answer has, by distance: of those that are equally near any is right."""
        return min(K, int(np.count_nonzero(distances <= self.nearest[query, -1] + 1e-5)))

    def recall(self, node: Node, queries: int = 50) -> float:
        """Of one node's own answers."""
        with vecdb.connect(node.url, timeout=60.0, consistency="eventual") as database:
            collection = database[SENSES]
            assert collection.count() == len(self.data.ids)
            found = [self.found(collection.query(self.queries[one], k=K).distances, one) for one in range(queries)]
        return sum(found) / (K * queries)


@dataclass(slots=True)
class Answer:
    """Of one query: when, how many of the exact nearest it had, or why there is none."""

    start: float
    end: float
    found: int = 0
    error: str = ""


class Reader(threading.Thread):
    """Asks all nodes in turn, one query after another, as ``consistency`` says."""

    def __init__(self, senses: Senses, url: str, consistency: str) -> None:
        super().__init__(daemon=True)
        self._senses, self._url, self._consistency = senses, url, consistency
        self._over = threading.Event()
        self.answers: list[Answer] = []
        self.broken: BaseException | None = None

    def run(self) -> None:
        try:
            with vecdb.connect(self._url, timeout=CALL_S, consistency=self._consistency) as database:
                collection = database[SENSES]
                number = 0
                while not self._over.is_set():
                    number = (number + 1) % len(self._senses.queries)
                    self.answers.append(self._ask(collection, number))
                    self._over.wait(0.02)
        except BaseException as error:
            self.broken = error

    def _ask(self, collection: Any, number: int) -> Answer:
        begun = time.monotonic()
        try:
            hits = collection.query(self._senses.queries[number], k=K)
        except VecdbError as error:
            return Answer(begun, time.monotonic(), error=f"{type(error).__name__}: {error}")
        return Answer(begun, time.monotonic(), self._senses.found(hits.distances, number))

    def end(self) -> None:
        self._over.set()
        self.join(30)
        if self.broken is not None:
            raise Violated(f"a reader met what is no error of the product's: {self.broken!r}") from self.broken


@dataclass(slots=True)
class Told:
    """What a round came to.  ``write_gap_s``: the longest time without an acknowledged write from the harm on;
    ``read_gap_s``: without an answered query.
    """

    name: str
    write_gap_s: float = 0.0
    read_gap_s: float = 0.0
    level_s: float = 0.0
    writes: int = 0
    reads: int = 0
    recall: float = 0.0
    errors: Counter[str] = field(default_factory=Counter)

    def line(self) -> str:
        errors = ", ".join(f"{name} {count}" for name, count in sorted(self.errors.items())) or "none"
        return (f"{self.name:<36} writes stood {self.write_gap_s:6.2f} s, reads {self.read_gap_s:5.2f} s; level "
                f"again {self.level_s:5.1f} s; {self.writes} writes, {self.reads} reads, recall {self.recall:.4f}; "
                f"errors: {errors}")


class Round:
    """``harm()`` says that from now on service may stand."""

    def __init__(self) -> None:
        self.since = time.monotonic()

    def harm(self) -> None:
        self.since = time.monotonic()

    @staticmethod
    def sleep(seconds: float) -> None:
        time.sleep(seconds)


class Load:
    """Clients of a cluster, for many rounds."""

    def __init__(self, cluster: ComposeCluster, senses: Senses, place: Path, clients: int = 3) -> None:
        self.cluster, self.senses = cluster, senses
        self.told: list[Told] = []
        self._worker = Clients("w0", place, Here())  # type: ignore[arg-type]
        self._worker.open(cluster.addresses, clients, 1, 0.03)
        self._worker.ask("create", seconds=60.0)

    def close(self) -> None:
        self._worker.close()

    @contextlib.contextmanager
    def round(self, name: str, *, reads_go_on: bool = True, consistency: str = "session") -> Iterator[Round]:
        """Load around what is done inside; healed, level and judged afterwards.

        ``reads_go_on``: no query may fail at all, whatever is done; ``consistency``: of those queries.
        """
        number = len(self.told) + 1
        self._worker.ask("load", round=number)
        reader = Reader(self.senses, self.cluster.url, consistency)
        reader.start()
        round, told = Round(), Told(name)
        try:
            time.sleep(1.0)
            round.harm()
            yield round
            self.cluster.heal()
            self.cluster.wait(lambda: all(node.ready for node in self.cluster.nodes.values()), "all nodes ready", 120.0)
            time.sleep(0.5)
        finally:
            until = time.monotonic()
            self._worker.ask("pause")
            reader.end()
        told.level_s = self.cluster.settled()
        self._worker.ask("write", seconds=30.0)
        events = self._events(number)
        keys = sorted({event.key for event in events if event.kind in ("upsert", "update", "delete")})
        self._worker.ask("read", round=number, keys=keys)
        self._judge(told, number)
        self._judge_reads(told, reader.answers, round.since, until, reads_go_on)
        told.write_gap_s = longest([event.end for event in events if event.kind in WRITES and event.ok], round.since,
                                   until)
        self.told.append(told)
        print(told.line())

    def acknowledged_before_last_round(self) -> set[int]:
        """Ids that were appended and stayed, of all rounds but the last; what that one removed is left out."""
        events = self._events()
        last = len(self.told)
        gone = {event.key for event in events if event.round == last and event.kind == "remove"}
        told = history.appended(event for event in events if 0 < event.round < last)
        return set(told.present) - gone

    def _events(self, number: int | None = None) -> list[Event]:
        return [event for event in self._worker.events() if number is None or event.round == number]

    def _judge(self, told: Told, number: int) -> None:
        everything = self._events()
        events = [event for event in everything if event.round == number]
        for event in everything:
            if event.error.startswith("UNEXPECTED"):
                raise Violated(f"a client met what is no error of the product's: {event.line()}")
        told.errors.update(event.error.split(":")[0] for event in events if event.error)
        told.writes = sum(event.kind in WRITES and event.ok for event in events)
        assert told.writes >= SEEN, f"{told.writes} writes are too few to judge by"
        history.check_shared(events)
        history.check_own(events)
        verified = self.cluster.verified()
        if not verified["agree"] or not verified["complete"]:
            raise Violated(f"replicas differ, or do not answer: {json.dumps(verified)}")
        appended = history.appended(everything)
        for node in self.cluster.nodes.values():
            found = self._worker.ask("everything", address=f"127.0.0.1:{node.port}")
            appended.check({int(key): value for key, value in found.items()}, node.name)

    def _judge_reads(self, told: Told, answers: list[Answer], since: float, until: float, go_on: bool) -> None:
        good = [one for one in answers if not one.error]
        told.reads = len(good)
        assert told.reads >= SEEN, f"{told.reads} queries are too few to judge by"
        told.recall = sum(one.found for one in good) / (K * len(good))
        told.read_gap_s = longest([one.end for one in good], since, until)
        failed = [one.error for one in answers if one.error]
        told.errors.update("read " + error.split(":")[0] for error in failed)
        if go_on and failed:
            raise Violated(f"{len(failed)} of {len(answers)} queries failed: {failed[0]}")
        if told.recall < RECALL:
            raise Violated(f"recall was {told.recall:.4f} of {len(good)} queries, below {RECALL}")


def longest(ends: list[float], since: float, until: float) -> float:
    """The longest time between two of them, from ``since`` on."""
    moments = [since, *sorted(end for end in ends if since <= end <= until), until]
    return max(after - before for before, after in pairwise(moments))
