"""``profile=True``: an answer says what it cost; without it nothing is measured."""

from pathlib import Path

import numpy as np

import vecdb
from vecdb.core.query import Cost


def test_cost_of_an_exact_query_and_of_a_batch(tmp_path: Path) -> None:
    rng = np.random.default_rng(4)
    vectors = rng.standard_normal((500, 8))
    with vecdb.connect(tmp_path / "db", background=False) as db:
        docs = db.create_collection("c", 8, metric="l2", index="flat")
        docs.upsert(ids=np.arange(500), vectors=vectors)
        one = docs.query(vectors[0], k=3, profile=True)
        assert isinstance(one.cost, Cost)
        assert (one.cost.comparisons, one.cost.hops, one.cost.batched, one.cost.queue_ms) == (500, 0, 1, 0.0)
        assert one.cost.compute_ms > 0
        many = docs.query(vectors[:40], k=3, profile=True)
        assert {(hits.cost.comparisons, hits.cost.batched) for hits in many if hits.cost} == {(20_000, 40)}
        assert many[0][:2].cost == many[0].cost
        assert docs.query(vectors[0], k=3).cost is None
        empty = db.create_collection("empty", 8).query(vectors[0], profile=True)
        assert empty.cost is not None
        assert empty.cost.comparisons == 0


def test_a_filter_is_evaluated_once_for_all_threads(tmp_path: Path) -> None:
    """Forty queries run on several threads; a filter over records that no index holds reads each of them once."""
    from vecdb.shard.machine import ShardMachine

    vectors = np.random.default_rng(5).standard_normal((2_000, 8))
    reads: list[int] = []
    real = ShardMachine.read_metadata
    with vecdb.connect(tmp_path / "db", background=False, threads=3) as db:
        docs = db.create_collection("c", 8, metric="l2", index="flat", indexed_fields=["n"])
        docs.upsert(ids=np.arange(2_000), vectors=vectors, metadata=[{"n": i, "hidden": i % 2} for i in range(2_000)])
        try:
            ShardMachine.read_metadata = lambda self, rids: reads.append(len(rids)) or real(self, rids)  # type: ignore
            found = docs.query(vectors[:40], k=1, filter="hidden == 1")
        finally:
            ShardMachine.read_metadata = real  # type: ignore[method-assign]
    assert sum(reads) == 2_000
    assert [hits.ids[0] % 2 for hits in found] == [1] * 40  # type: ignore[operator]
    assert [hits.ids[0] for hits in found][1::2] == list(range(1, 40, 2))
