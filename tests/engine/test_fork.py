"""A handle belongs to the process that opened it: a forked child is refused at once, and does no harm."""

from pathlib import Path

import numpy as np
import pytest

import vecdb
from tests.faults import run_python

CHILD_USES = """
import os, signal, sys, numpy as np, vecdb
from vecdb import errors
path, how = sys.argv[1], sys.argv[2]
db = vecdb.connect(path)
docs = db.create_collection("c", 4, metric="l2")
docs.upsert(ids=range(100), vectors=np.eye(4)[np.arange(100) % 4])
sys.stdout.flush()
child = os.fork()
if not child:
    signal.alarm(30)  # a call that hangs ends the child by a signal, which the parent sees
    uses = [lambda: docs.upsert(ids=[1000], vectors=[[9, 9, 9, 9]]), lambda: docs.delete(ids=[1]),
            lambda: docs.query([1, 0, 0, 0], k=3), lambda: docs.fetch([1]), docs.count, docs.describe, docs.optimize,
            lambda: list(docs.scan()), db.list_collections, lambda: db.create_collection("d", 4),
            lambda: db.drop_collection("c"), db.__enter__, lambda: vecdb.connect(path + "-other")]
    for number, use in enumerate(uses):
        try:
            use()
        except errors.DatabaseClosed as error:
            assert error.code == "FAILED_PRECONDITION"
            assert "spawn" in str(error), error
        else:
            os._exit(100 + number)
    assert db.closed
    db.close()
    if how == "killed":
        os._exit(0)
    if how == "collected":
        del db, docs
        uses.clear()
        import gc
        gc.collect()
    sys.exit(0)  # at-exit closers run, modules are taken down
_, status = os.waitpid(child, 0)
assert status == 0, status
docs.upsert(ids=range(100, 150), vectors=np.eye(4)[np.arange(50) % 4])
docs.optimize()
docs.upsert(ids=range(150, 200), vectors=np.eye(4)[np.arange(50) % 4])
assert docs.count() == 200
assert len(docs.query([1, 0, 0, 0], k=3)) == 3
db.close()
"""


@pytest.mark.parametrize("how", ["exits", "killed", "collected"])
def test_a_forked_child_is_refused_and_the_parent_unharmed(tmp_path: Path, how: str) -> None:
    run_python(CHILD_USES, tmp_path / "db", how)
    with vecdb.connect(tmp_path / "db") as db:
        docs = db.collection("c")
        assert docs.count() == 200
        assert len(docs.fetch(list(range(200)))) == 200
        assert np.allclose(docs.query([1, 0, 0, 0], k=1).distances, 0)


def test_a_child_forked_before_anything_was_opened_may_connect(tmp_path: Path) -> None:
    run_python("""
import os, signal, sys, vecdb
child = os.fork()
if not child:
    signal.alarm(60)
    with vecdb.connect(sys.argv[1]) as db:
        db.create_collection("c", 2).upsert(ids=[1], vectors=[[1, 0]])
    sys.exit(0)
assert os.waitpid(child, 0)[1] == 0
""", tmp_path / "db")
    with vecdb.connect(tmp_path / "db") as db:
        assert db.collection("c").count() == 1
