"""Seeded operations on the engine and on a plain model side by side, with restarts and maintenance in between.

The model is ``MemoryBackend``: brute force without index or storage.  After every step answers must be equal
(exact queries: ids and distances; approximate ones: live, matching, sorted, unique, and near the truth).
"""

import random
import threading
from pathlib import Path

import numpy as np
import pytest

import vecdb
from tests.memory_backend import MemoryBackend
from vecdb.client.database import Database

DIM = 12
WORDS = ["red", "green", "blue", "grey"]
FILTERS = ["n >= 50", "color == 'red'", "color in ['red', 'blue'] and n < 70", "not exists tag", "tags == 'a'",
           "nested.x > 3 or color != 'green'", "n == 7"]


def _metadata(rng: random.Random) -> dict:
    made: dict = {"n": rng.randrange(100), "color": rng.choice(WORDS)}
    if rng.random() < 0.3:
        made["tag"] = rng.random()
    if rng.random() < 0.3:
        made["tags"] = rng.sample(["a", "b", "c"], rng.randrange(3))
    if rng.random() < 0.3:
        made["nested"] = {"x": rng.randrange(8)}
    return made


class Pair:
    """The engine and the model, told the same."""

    def __init__(self, path: Path, seed: int, **options: object) -> None:
        self.path, self.options = path, options
        self.rng = random.Random(seed)
        self.np_rng = np.random.default_rng(seed)
        self.model = Database(MemoryBackend(), label="model")
        self.engine = vecdb.connect(path, **options)
        self.known: list[int | str] = [*range(60), *(f"key-{i}" for i in range(40))]

    def create(self, **schema: object) -> None:
        self.model.create_collection("c", DIM, **schema)
        self.engine.create_collection("c", DIM, **schema)

    @property
    def both(self) -> tuple:
        return self.model.collection("c"), self.engine.collection("c")

    def upsert(self) -> None:
        count = self.rng.choice([1, 3, 20, 60])
        ids = [self.rng.choice(self.known) for _ in range(count)]
        vectors = self.np_rng.standard_normal((count, DIM)).astype(np.float32)
        metadata = [_metadata(self.rng) for _ in ids]
        model, engine = self.both
        a, b = (one.upsert(ids=ids, vectors=vectors, metadata=metadata) for one in (model, engine))
        assert (a.inserted, a.updated) == (b.inserted, b.updated)

    def delete(self) -> None:
        ids = self.rng.sample(self.known, 5)
        a, b = (one.delete(ids=ids) for one in self.both)
        assert (a.deleted, a.missing) == (b.deleted, b.missing)

    def delete_where(self) -> None:
        where = f"n == {self.rng.randrange(100)}"
        a, b = (one.delete(filter=where) for one in self.both)
        assert a.deleted == b.deleted

    def update(self) -> None:
        ids = self.rng.sample(self.known, 4)
        patch = {"n": self.rng.randrange(100), "tag": None}
        merge = self.rng.random() < 0.7
        a, b = (one.update_metadata(ids=ids, metadata=patch if merge else {"n": 1}, merge=merge) for one in self.both)
        assert (a.updated, a.missing) == (b.updated, b.missing)

    def optimize(self) -> None:
        self.both[1].optimize()

    def restart(self) -> None:
        digest = self.both[1].describe().details["digest"]
        self.engine.close()
        self.engine = vecdb.connect(self.path, **self.options)
        assert self.both[1].describe().details["digest"] == digest

    def check(self) -> None:
        model, engine = self.both
        assert len(model) == len(engine)
        where = self.rng.choice([None, *FILTERS])
        assert model.count(filter=where) == engine.count(filter=where)
        query = self.np_rng.standard_normal((3, DIM)).astype(np.float32)
        k = self.rng.choice([1, 5, 40])
        want = model.query(query, k=k, filter=where, exact=True, include=["metadata", "vector"])
        got = engine.query(query, k=k, filter=where, exact=True, include=["metadata", "vector"])
        for a, b in zip(want, got, strict=True):
            np.testing.assert_allclose(a.distances, b.distances, rtol=1e-5, atol=1e-5)
            assert sorted(map(str, a.ids)) == sorted(map(str, b.ids))
            assert {str(hit.id): hit.metadata for hit in a} == {str(hit.id): hit.metadata for hit in b}
        for a, b in zip(want, engine.query(query, k=k, filter=where), strict=True):
            assert len(a) == len(b), "k matches exist and were not found"
            assert len(set(map(str, b.ids))) == len(b)
            assert (np.diff(b.distances) >= 0).all()
        ids = self.rng.sample(self.known, 10)
        for a, b in zip(model.fetch(ids), engine.fetch(ids), strict=True):
            assert (a.id, a.metadata) == (b.id, b.metadata)
            np.testing.assert_array_equal(a.vector, b.vector)
        assert sorted(str(r.id) for r in model.scan(filter=where)) == sorted(
            str(r.id) for r in engine.scan(filter=where, batch_size=7))


@pytest.mark.parametrize(("metric", "index"), [("l2", "hnsw"), ("cosine", "auto"), ("dot", "flat"), ("l2", "ivf_flat")])
@pytest.mark.parametrize("seed", [1, 2])
def test_engine_equals_model(tmp_path: Path, metric: str, index: str, seed: int) -> None:
    print(f"seed {seed}")
    pair = Pair(tmp_path / "db", seed, seal_records=80)
    pair.create(metric=metric, index=index, m=8, ef_construction=40)
    steps = [pair.upsert] * 6 + [pair.delete] * 2 + [pair.delete_where, pair.update, pair.update,
                                                     pair.optimize, pair.restart]
    for _ in range(40):
        pair.rng.choice(steps)()
        pair.check()
    pair.optimize()
    pair.check()
    pair.restart()
    pair.check()
    pair.engine.close()


def test_readers_see_whole_moments_while_writers_write(tmp_path: Path) -> None:
    """Every record always has two versions' worth of agreement: metadata and vector of one write."""
    with vecdb.connect(tmp_path / "db", seal_records=300) as db:
        docs = db.create_collection("c", 4, metric="l2", m=8, ef_construction=40)
        ids = list(range(100))
        docs.upsert(ids=ids, vectors=np.zeros((100, 4)) , metadata=[{"v": 0}] * 100)
        stop = threading.Event()
        failures: list[BaseException] = []

        def read() -> None:
            try:
                while not stop.is_set():
                    hits = docs.query([0.0, 0, 0, 0], k=100, include=["metadata", "vector"])
                    assert sorted(hits.ids) == ids
                    for hit in hits:
                        assert hit.metadata["v"] == hit.vector[0]
                    for record in docs.fetch([3, 5, 7]):
                        assert record.metadata["v"] == record.vector[0]
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=read) for _ in range(2)]
        for thread in threads:
            thread.start()
        for version in range(1, 40):
            docs.upsert(ids=ids, vectors=np.full((100, 4), version, np.float32), metadata=[{"v": version}] * 100)
        stop.set()
        for thread in threads:
            thread.join()
        assert not failures, failures[0]
