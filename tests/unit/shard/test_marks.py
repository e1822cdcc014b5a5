"""Marks: what every replica notes of itself at one log index."""

import pytest

from tests.unit.shard.test_machine import DictStore, _batch, _do, _machine
from vecdb.core.errors import DataCorrupted, InvalidArgument
from vecdb.shard import rows
from vecdb.shard.machine import ShardMachine
from vecdb.shard.marks import MAX_MARKS, MarkResult, Marks
from vecdb.shard.rows import State


def _mark(machine: ShardMachine, store: DictStore, log_index: int, term: int = 1) -> MarkResult:
    applied = machine.mark(log_index, term)
    store.write(applied.mutations)
    machine.commit(applied)
    assert applied.mark is not None
    return applied.mark


def test_a_mark_changes_nothing_and_says_what_is() -> None:
    machine, store = _machine()
    _do(machine, store, _batch(1, 2, 3))
    before = machine.state
    mark = _mark(machine, store, 7, 4)
    assert mark == MarkResult(7, 4, 3, f"{before.digest:032x}")
    assert machine.state == State(7, before.next_rid, before.records, before.digest, 4)
    assert machine.mark(7, 4).mutations.puts == [], "a replay does nothing"


def test_the_last_marks_are_kept_in_memory_and_in_rows() -> None:
    machine, store = _machine()
    for number in range(1, MAX_MARKS + 30):
        _do(machine, store, _batch(number), 2 * number)
        _mark(machine, store, 2 * number + 1)
    assert len(machine.marks.known) == MAX_MARKS
    assert list(machine.marks.known)[-1] == 2 * (MAX_MARKS + 29) + 1
    kept = sorted((key, value) for key, value in store.rows.items() if key[:1] == b"k")
    assert Marks(kept).known == machine.marks.known
    assert all(rows.MARKS[0] <= key < rows.MARKS[1] for key, _ in kept)


def test_an_uncommitted_mark_leaves_no_trace() -> None:
    machine, store = _machine()
    machine.mark(1, 1)
    assert machine.marks.known == {}
    assert machine.state.applied == 0
    assert store.rows == {}


def test_the_row_of_a_mark_that_makes_no_sense_is_damage() -> None:
    with pytest.raises(DataCorrupted):
        Marks([(rows.mark_row(3), b"short")])


def test_of_a_command_that_cannot_be_read_the_place_is_kept() -> None:
    machine, store = _machine()
    applied = machine.refuse(5, 2, InvalidArgument("command", "is none", got=1))
    assert isinstance(applied.error, InvalidArgument)
    store.write(applied.mutations)
    machine.commit(applied)
    assert (machine.state.applied, machine.state.term) == (5, 2)


def test_states_of_the_first_version_are_read() -> None:
    old = rows._STATE_1.pack(1, 9, 8, 7, (6).to_bytes(16, "big"))
    assert State.from_bytes(old) == State(9, 8, 7, 6, 0)
    state = State(9, 8, 7, 6, 5)
    assert State.from_bytes(state.to_bytes()) == state
    for bad in (old[:-1], state.to_bytes()[:-1], b"\x03" + state.to_bytes()[1:], b"\x01" + state.to_bytes()[1:], b""):
        with pytest.raises(DataCorrupted):
            State.from_bytes(bad)


def test_marks_of_replicas_cut_differently_are_equal() -> None:
    machines = [_machine(capacity=capacity) for capacity in (5, 500)]
    for step in range(1, 40):
        for machine, store in machines:
            if step % 5:
                _do(machine, store, _batch(step % 7, step % 3 + 10, value=float(step)), step)
            else:
                _mark(machine, store, step)
    a, b = (machine.marks.known for machine, _ in machines)
    assert a == b
    assert len({mark.digest for mark in a.values()}) > 1
