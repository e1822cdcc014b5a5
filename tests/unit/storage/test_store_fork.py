"""RocksDB does not live through fork: a child's calls are refused, its farewells do nothing."""

from pathlib import Path

from tests.faults import run_python
from vecdb.storage.rocksdict import RocksStore

CHILD = """
import gc, os, signal, sys
from pathlib import Path
from vecdb.core.errors import DatabaseClosed
from vecdb.shard.mutations import Mutations
from vecdb.storage.rocksdict import RocksStore
store = RocksStore(sys.argv[1])
store.write(Mutations(puts=[(b"k%04d" % i, b"v" * 100) for i in range(2000)]))
rows = store.scan(b"k", b"l")
next(rows)
before = {path.name: path.read_bytes() for path in Path(sys.argv[1]).iterdir()}
child = os.fork()
if not child:
    signal.alarm(30)
    refused = 0
    for use in (lambda: store.write(Mutations(puts=[(b"z", b"z")])), store.sync, lambda: store.multi_get([b"k0001"]),
                lambda: list(store.scan(b"k", b"l")), lambda: list(rows), store.flush, store.compact, store.stats,
                store.reopen, lambda: store.checkpoint(Path(sys.argv[1] + "-copy")),
                lambda: RocksStore(sys.argv[1] + "-other")):
        try:
            use()
        except DatabaseClosed as error:
            assert "process" in str(error)
            refused += 1
    assert refused == 11, refused
    store.close()
    del store, rows, use
    gc.collect()
    assert {path.name: path.read_bytes() for path in Path(sys.argv[1]).iterdir()} == before
    sys.exit(0)
assert os.waitpid(child, 0)[1] == 0
assert {path.name: path.read_bytes() for path in Path(sys.argv[1]).iterdir()} == before
assert sum(1 for _ in rows) == 1999
store.write(Mutations(puts=[(b"l", b"after")]))
store.sync()
store.close()
"""


def test_a_forked_child_touches_nothing(tmp_path: Path) -> None:
    run_python(CHILD, tmp_path / "s")
    with RocksStore(tmp_path / "s") as store:
        assert sum(1 for _ in store.scan(b"", b"z")) == 2001
