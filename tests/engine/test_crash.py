"""Kill -9 at any moment: what was acknowledged is there, whole, and nothing else is wrong."""

from pathlib import Path

import numpy as np
import pytest

import vecdb
from tests.faults import kill_during

WRITER = """
import sys, numpy as np, vecdb
path, seed = sys.argv[1], int(sys.argv[2])
rng = np.random.default_rng(seed)
db = vecdb.connect(path, seal_records=150)
docs = db.collection("c") if "c" in db.list_collections() else db.create_collection(
    "c", 8, metric="l2", m=8, ef_construction=40)
batch = int(sys.argv[3])
while True:
    ids = rng.integers(0, 400, 25).tolist()
    ids = list(dict.fromkeys(ids))
    docs.upsert(ids=ids, vectors=np.full((len(ids), 8), batch, np.float32), metadata=[{"b": batch}] * len(ids))
    print("wrote", batch, *ids, flush=True)
    if batch % 5 == 0:
        gone = ids[:3]
        docs.delete(ids=gone)
        print("gone", batch, *gone, flush=True)
    if batch % 17 == 0:
        docs.optimize()
    batch += 1
"""


def _play(lines: list[str], known: dict[int, int]) -> tuple[dict[int, int], int]:
    """Replay acknowledged lines; returns the records and the last batch acknowledged."""
    last = 0
    for line in lines:
        what, batch, *ids = line.split()
        last = int(batch)
        for one in map(int, ids):
            if what == "wrote":
                known[one] = last
            else:
                known.pop(one, None)
    return known, last


@pytest.mark.parametrize("stop_after", [3, 21, 40])
def test_kill_loses_nothing_acknowledged(tmp_path: Path, stop_after: int) -> None:
    path = tmp_path / "db"
    known: dict[int, int] = {}
    next_batch = 1
    for round_ in range(2):
        lines = kill_during(WRITER, path, stop_after + round_, next_batch,
                            until=lambda seen: len(seen) >= stop_after)
        wrote = [line.split() for line in lines if line.startswith("wrote")]
        # the delete after the last acknowledged batch may have landed without its acknowledgement
        may_be_gone = {int(one) for one in wrote[-1][2:5]} if int(wrote[-1][1]) % 5 == 0 else set()
        known, last = _play([line for line in lines if line.startswith(("wrote", "gone"))], known)
        next_batch = last + 2
        with vecdb.connect(path, seal_records=150) as db:
            docs = db.collection("c")
            found = {record.id: (record.metadata["b"], record.vector) for record in
                     docs.scan(include=["metadata", "vector"])}
            for one, batch in known.items():
                # at most one batch beyond the last acknowledgement may have landed, as a whole
                assert one in found or one in may_be_gone, f"record {one} of batch {batch} is lost"
                if one in found:
                    assert found[one][0] in (batch, last + 1), (one, batch, found[one][0])
            for metadata, vector in found.values():
                assert (vector == metadata).all(), "a vector of one write beside metadata of another"
            known = {one: metadata for one, (metadata, _) in found.items()}
            assert docs.count() == len(found)
            for where in ("b >= 0", f"b == {last}"):
                want = sum(1 for metadata, _ in found.values() if where == "b >= 0" or metadata == last)
                assert docs.count(filter=where) == want
            hits = docs.query(np.zeros(8), k=len(found))
            assert sorted(hits.ids) == sorted(found)
