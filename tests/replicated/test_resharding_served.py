"""Shards of three real nodes are split and merged under somebody who writes, reads and searches."""

import threading
from collections.abc import Iterator
from random import Random
from typing import Any

import numpy as np
import pytest

import vecdb
from tests.replicated_nodes import Together, wait_for
from vecdb.core.cluster import JobState
from vecdb.core.errors import ShardNotFound

DIM = 8
RECORDS = 3_000


@pytest.fixture
def nodes(tmp_path: Any) -> Iterator[Together]:
    made = Together(tmp_path, seal_records=500)
    for node in made.running:
        for kind in ("split", "merge"):
            node._member.governing.governor.operations[kind].grace_s = 0.5
    yield made
    made.stop()


class User(threading.Thread):
    """Writes and reads records of its own; nothing may fail, nothing may be lost."""

    def __init__(self, url: str, number: int) -> None:
        super().__init__(daemon=True)
        self._url, self._random = url, Random(number)
        self.first = 10_000 * (number + 1)
        self.told: dict[int, int] = {}
        self.error: BaseException | None = None
        self.ended = threading.Event()
        self.rounds = 0

    def run(self) -> None:
        try:
            with vecdb.connect(self._url, timeout=30) as db:
                docs = db.collection("docs")
                while not self.ended.is_set():
                    self._round(docs)
                    self.rounds += 1
        except BaseException as error:
            self.error = error

    def _round(self, docs: Any) -> None:
        random = self._random
        ids = random.sample(range(self.first, self.first + 200), 10)
        value = random.randrange(1 << 30)
        if random.random() < 0.7:
            vectors = np.full((10, DIM), value % 1_000, np.float32)
            done = docs.upsert(ids=ids, vectors=vectors, metadata=[{"v": value}] * 10)
            assert (done.inserted, done.updated) == (10 - sum(one in self.told for one in ids),
                                                     sum(one in self.told for one in ids))
            self.told.update(dict.fromkeys(ids, value))
        else:
            assert docs.delete(ids=ids).deleted == sum(one in self.told for one in ids)
            for one in ids:
                self.told.pop(one, None)
        one = random.choice(ids)
        found = docs.get(one, consistency=random.choice(("session", "linearizable")))
        assert (None if found is None else found.metadata["v"]) == self.told.get(one)
        assert len(docs.query([0.5] * DIM, k=5, filter="static == 1")) == 5


def _groups(db: Any, count: int) -> list[int]:
    """Once there are so many: a node may hear of what was done after who did it."""
    found: list[int] = []

    def there() -> bool:
        found[:] = sorted(one.group for one in db.admin.shards() if one.collection == "docs")
        return len(found) == count

    wait_for(there, f"{count} shards")
    return found


def _done(db: Any, kind: str, target: int, **args: Any) -> None:
    job = db.admin.cluster.begin(kind, str(target), args)
    info = wait_for(lambda: (found := db.admin.cluster.job(job)).state in (JobState.DONE, JobState.FAILED) and found,
                    f"the end of a {kind}", 180.0)
    assert info.state == JobState.DONE, info.error


def test_split_and_merged_under_load(nodes: Together) -> None:
    with vecdb.connect(nodes.url, timeout=30) as db:
        docs = db.create_collection("docs", dim=DIM, metric="l2")
        vectors = np.random.default_rng(1).normal(size=(RECORDS, DIM)).astype(np.float32)
        for at in range(0, RECORDS, 500):
            docs.upsert(ids=range(at, at + 500), vectors=vectors[at:at + 500], metadata=[{"static": 1}] * 500)
        expected = docs.query(vectors[:20], k=10, filter="static == 1", exact=True)
        users = [User(nodes.url, number) for number in range(2)]
        for user in users:
            user.start()
        try:
            (first,) = _groups(db, 1)
            _done(db, "split", first, into=3)
            three = _groups(db, 3)
            assert first not in three
            _done(db, "merge", three[0], **{"with": three[1]})
            assert three[2] in _groups(db, 2)
            _done(db, "split", three[2])
            _groups(db, 3)
            wait_for(lambda: all(user.error or user.rounds > 20 for user in users), "rounds of all users")
        finally:
            for user in users:
                user.ended.set()
            for user in users:
                user.join(60)
        for user in users:
            assert user.error is None, user.error
        found = docs.query(vectors[:20], k=10, filter="static == 1", exact=True)
        assert [one.ids for one in found] == [one.ids for one in expected]
        assert docs.count() == RECORDS + sum(len(user.told) for user in users)
        for user in users:
            there = {record.id: record.metadata["v"] for record in docs.scan(filter="v >= 0")
                     if isinstance(record.id, int) and user.first <= record.id < user.first + 200}
            assert there == user.told
        with pytest.raises(ShardNotFound):
            db.admin.cluster.begin("split", str(first), {})
