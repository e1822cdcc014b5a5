"""The shard machine on a dict for a store: total, idempotent, and the same however segments are cut."""

import random

import numpy as np
import pytest

from vecdb.core.errors import InvalidArgument, InvalidMetadata, LimitExceeded
from vecdb.core.filters import to_node
from vecdb.core.records import Command, DeleteIds, DeleteWhere, UpdateMetadata, UpsertBatch
from vecdb.core.schema import CollectionSchema, IndexSpec
from vecdb.segment.growing import GrowingSegment
from vecdb.shard import rows
from vecdb.shard.machine import Applied, ShardMachine
from vecdb.shard.manifest import Manifest
from vecdb.shard.mutations import Mutations
from vecdb.shard.rows import State

SCHEMA = CollectionSchema("c", 4, "l2", index=IndexSpec(kind="flat"))


class DictStore:
    """Rows in a dict; checks that a batch never deletes and puts one key in an order that matters."""

    def __init__(self) -> None:
        self.rows: dict[bytes, bytes] = {}

    def multi_get(self, keys: list[bytes]) -> list[bytes | None]:
        return [self.rows.get(key) for key in keys]

    def write(self, batch: Mutations) -> None:
        for start, stop in batch.ranges:
            for key in [key for key in self.rows if start <= key < stop]:
                del self.rows[key]
        for key in batch.deletes:
            self.rows.pop(key, None)
        self.rows.update(batch.puts)


def _machine(capacity: int = 1_000, seal: int = 1_000) -> tuple[ShardMachine, DictStore]:
    store = DictStore()
    growing = GrowingSegment(0, 0, SCHEMA, capacity)
    return ShardMachine(SCHEMA, store, State(), (), growing, 1, seal), store


def _batch(*ids: int | str, value: float = 1.0, metadata: bytes = b"{}") -> UpsertBatch:
    vectors = np.full((len(ids), 4), value, np.float32)
    return UpsertBatch(ids, vectors, (metadata,) * len(ids))


def _do(machine: ShardMachine, store: DictStore, command: Command, log_index: int | None = None) -> Applied:
    applied = machine.apply(machine.state.applied + 1 if log_index is None else log_index, command)
    if applied.error is None:
        store.write(applied.mutations)
        machine.commit(applied)
    return applied


def test_replaying_an_applied_entry_does_nothing() -> None:
    machine, store = _machine()
    _do(machine, store, _batch(1, 2), 1)
    before = dict(store.rows)
    again = machine.apply(1, _batch(3))
    assert again.mutations == Mutations()
    _do(machine, store, _batch(3), 1)
    assert store.rows == before
    assert machine.state.records == 2


def test_nothing_shows_before_commit_and_an_uncommitted_command_leaves_no_trace() -> None:
    machine, store = _machine()
    _do(machine, store, _batch(1, value=1.0))
    view = machine.view
    refused = machine.apply(2, _batch(1, 2, value=2.0))
    assert refused.error is None
    assert machine.view is view
    _do(machine, store, _batch(1, 3, value=3.0), 2)  # the store refused the other: this one comes instead
    assert machine.state.records == 2
    found = machine.view.segments[-1].vectors(np.array([1, 2]))
    assert (found == 3.0).all()


@pytest.mark.parametrize(("command", "error"), [
    (UpsertBatch((1,), np.zeros((1, 5), np.float32), (b"{}",)), InvalidArgument),
    (UpsertBatch((1,), np.zeros((1, 4), np.float64), (b"{}",)), InvalidArgument),
    (UpsertBatch((1, 2), np.zeros((2, 4), np.float32), (b"{}",)), InvalidArgument),
    (UpsertBatch(tuple(range(100_001)), np.zeros((100_001, 4), np.float32), (b"{}",) * 100_001), LimitExceeded),
    (UpdateMetadata((1,), (b'{"b":"' + b"y" * 40_000 + b'"}',)), InvalidMetadata),
])
def test_a_bad_command_is_an_outcome(command: Command, error: type[Exception]) -> None:
    machine, store = _machine()
    _do(machine, store, _batch(1, metadata=b'{"a":"' + b"x" * 40_000 + b'"}'))
    before = machine.state
    applied = machine.apply(2, command)
    assert isinstance(applied.error, error)
    assert applied.state.applied == 2
    assert (applied.state.records, applied.state.digest) == (before.records, before.digest)
    assert not applied.staged.ids
    assert not applied.staged.dead


def test_last_of_duplicate_ids_wins() -> None:
    machine, store = _machine()
    vectors = np.arange(12, dtype=np.float32).reshape(3, 4)
    result = _do(machine, store, UpsertBatch((7, 8, 7), vectors, (b"{}", b"{}", b'{"last":true}'))).result
    assert result.inserted == 2
    assert machine.state.records == 2
    record = machine.read_records([1])[0]
    assert record is not None
    assert rows.record_metadata(record) == b'{"last":true}'


def test_digest_and_outcomes_do_not_depend_on_where_segments_are_cut() -> None:
    print("seed 11")
    rng = random.Random(11)
    small, large = _machine(capacity=12), _machine(capacity=5_000)
    for step in range(120):
        ids = tuple(dict.fromkeys(rng.choice([rng.randrange(30), f"s{rng.randrange(10)}"]) for _ in range(8)))
        body = b'{"n":%d}' % rng.randrange(5)
        command: Command = rng.choice([
            _batch(*ids, value=float(step), metadata=body), _batch(*ids, value=float(step), metadata=body),
            DeleteIds(ids[:3]), UpdateMetadata(ids, (body,) * len(ids), rng.random() < 0.5),
            DeleteWhere(to_node(f"n == {rng.randrange(5)}"))])
        a, b = (_do(machine, store, command) for machine, store in (small, large))
        assert a.result == b.result
        assert a.state == b.state
        if rng.random() < 0.1:
            small[0].freeze()
    assert len(small[0].view.segments) > 3
    assert len(large[0].view.segments) == 1


def test_digest_of_no_records_is_zero() -> None:
    machine, store = _machine()
    _do(machine, store, _batch(1, 2, "x"))
    assert machine.state.digest != 0
    _do(machine, store, DeleteIds((1, 2, "x", "never")))
    assert machine.state.digest == 0
    assert machine.state.records == 0


def test_manifest_is_written_with_the_batch_that_freezes() -> None:
    machine, store = _machine(capacity=5)
    _do(machine, store, _batch(1, 2, 3))
    _do(machine, store, _batch(4, 5, 6))
    manifest = Manifest.from_bytes(store.rows[rows.MANIFEST_KEY])
    assert [(entry.sealed, entry.first_rid, entry.stop_rid) for entry in manifest.entries] == [
        (False, 0, 3), (False, 3, 3)]


def test_vectors_of_a_batch_share_rows_and_cover_every_rid() -> None:
    machine, store = _machine()
    _do(machine, store, _batch(*range(100)))
    _do(machine, store, _batch(*range(50, 60), value=2.0))
    found = sorted((rows.number_of(key), value) for key, value in store.rows.items() if key.startswith(b"v"))
    assert [rid for rid, _ in found] == [0, 100]
    assert sum(len(value) for _, value in found) == 110 * 16
    dead = [rows.number_of(key) for key in store.rows if key.startswith(b"d")]
    assert sorted(dead) == list(range(50, 60))
