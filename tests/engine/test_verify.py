"""``LocalDatabase.verify`` and ``jobs``: every record is read and compared with the running digest."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from vecdb.app import open_embedded
from vecdb.client.database import Database
from vecdb.core.calls import Call, Stopped
from vecdb.core.errors import Cancelled, CollectionNotFound, DeadlineExceeded
from vecdb.services.local import LocalDatabase

DIM = 8
N = 300


@pytest.fixture
def backend(tmp_path: Path) -> Iterator[LocalDatabase]:
    backend = open_embedded(tmp_path / "db", background=False)
    assert isinstance(backend, LocalDatabase)
    rng = np.random.default_rng(3)
    docs = Database(backend, label="test").create_collection("c", DIM, metric="l2", index="flat")
    docs.upsert(ids=np.arange(N), vectors=rng.standard_normal((N, DIM)), metadata=[{"n": i} for i in range(N)])
    docs.optimize()
    docs.delete(ids=[1, 2, 3])
    docs.upsert(ids=["late", 7], vectors=rng.standard_normal((2, DIM)), metadata=[{"n": -1}, {}])
    yield backend
    backend.close()


def test_a_whole_shard_is_equal(backend: LocalDatabase) -> None:
    found = backend.verify("c")
    assert found["equal"] is True
    assert found["computed"] == found["digest"] == backend.describe("c").details["digest"]
    assert (found["records"], found["log_index"], found["ids"]) == (N - 3 + 1, 3, [])


def test_a_changed_vector_is_named(backend: LocalDatabase) -> None:
    """A sealed and a growing record's vector differ by one bit in memory."""
    shard = backend._slots["c"].opened.shard  # type: ignore[union-attr]
    sealed, growing = (view.segment for view in shard.view.segments)
    changed = []
    for segment, ordinal in ((sealed, 50), (growing, 0)):
        changed += [segment.ids.take(np.array([ordinal]))[0] if segment is sealed else segment.ids[ordinal]]
        row = segment.rows.view(np.uint8)
        row.flags.writeable = True
        row[ordinal, 0] ^= 1
    found = backend.verify("c")
    assert found["equal"] is False
    assert found["ids"] == changed == [50, "late"]
    assert found["computed"] != found["digest"]


def test_a_lost_row_is_named(backend: LocalDatabase) -> None:
    from vecdb.shard import rows
    from vecdb.shard.mutations import Mutations

    shard = backend._slots["c"].opened.shard  # type: ignore[union-attr]
    shard.write_rows(Mutations(deletes=[rows.record_row(20)]))
    found = backend.verify("c")
    assert (found["equal"], found["differing"], found["ids"]) == (False, 1, [20])


def test_an_ended_call_does_nothing(backend: LocalDatabase) -> None:
    for why, error in ((Stopped.DEADLINE, DeadlineExceeded), (Stopped.CANCELLED, Cancelled)):
        call = Call()
        call.end(why)
        with pytest.raises(error):
            backend.verify("c", call=call)


def test_jobs_of_one_and_of_all(backend: LocalDatabase) -> None:
    assert backend.jobs() == backend.jobs("c") == []
    with pytest.raises(CollectionNotFound):
        backend.jobs("nobody")
