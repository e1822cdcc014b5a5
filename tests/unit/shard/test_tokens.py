"""Idempotency keys: a write happens once, on every replica alike, whatever is repeated, refused or forgotten."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.shard.test_machine import SCHEMA, DictStore
from vecdb.core.calls import WriteToken
from vecdb.core.errors import DataCorrupted, InvalidArgument
from vecdb.core.filters import parse
from vecdb.core.records import Command, DeleteIds, DeleteWhere, UpdateMetadata, UpsertBatch, WriteResult
from vecdb.segment.growing import GrowingSegment
from vecdb.shard import rows
from vecdb.shard.machine import Applied, ShardMachine
from vecdb.shard.mutations import Mutations
from vecdb.shard.rows import State
from vecdb.shard.tokens import Tokens


class Replica:
    """A machine on a dict with a small window; ``restart`` rebuilds the window from the rows."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.store = DictStore()
        growing = GrowingSegment(0, 0, SCHEMA, 4_000)
        self.machine = ShardMachine(SCHEMA, self.store, State(), (), growing, 1, 4_000, tokens=Tokens(most=most))

    def restart(self) -> None:
        self.machine._tokens = self.reread()

    def reread(self) -> Tokens:
        start, stop = rows.TOKENS
        found = sorted((key, value) for key, value in self.store.rows.items() if start <= key < stop)
        return Tokens(found, most=self.most)

    def do(self, command: Command, token: WriteToken | None, *, lost: bool = False) -> Applied:
        """``lost``: the batch never reaches the store."""
        applied = self.machine.apply(self.machine.state.applied + 1, command, token=token)
        if not lost:
            self.store.write(applied.mutations)
            self.machine.commit(applied)
        return applied


def _upsert(*ids: int, value: float = 1.0) -> UpsertBatch:
    return UpsertBatch(ids, np.full((len(ids), 4), value, np.float32), (b'{"n":1}',) * len(ids))


BAD = UpsertBatch((1,), np.zeros((1, 5), np.float32), (b"{}",))
COMMANDS: list[Command] = [_upsert(1, 2, 3), _upsert(2, 9, value=2.0), DeleteIds((1, 4)), DeleteWhere(parse("n == 1")),
                           UpdateMetadata((2, 7), (b'{"a":1}', b"{}")), BAD]


def test_a_repetition_is_answered_and_does_nothing() -> None:
    replica = Replica(10)
    token = WriteToken(b"key", 7)
    first = replica.do(_upsert(1, 2), token)
    replica.do(DeleteIds((1,)), None)
    before = replica.machine.state
    again = replica.do(_upsert(1, 2), token)
    assert again.result == first.result == WriteResult(inserted=2, log_index=1)
    assert again.mutations == Mutations(puts=[(rows.STATE_KEY, again.state.to_bytes())])
    after = replica.machine.state
    assert (after.applied, after.records, after.digest, after.next_rid) == (3, 1, before.digest, before.next_rid)


def test_a_key_of_another_write_is_refused() -> None:
    replica = Replica(10)
    replica.do(_upsert(1), WriteToken(b"key", 7))
    refused = replica.do(_upsert(2), WriteToken(b"key", 8))
    assert isinstance(refused.error, InvalidArgument)
    assert refused.error.fields["argument"] == "idempotency_key"
    assert replica.machine.state.records == 1
    assert replica.do(_upsert(1), WriteToken(b"key", 7)).result.log_index == 1, "the first use still stands"


def test_what_was_refused_or_lost_may_be_tried_again() -> None:
    replica = Replica(10)
    token = WriteToken(b"key", 7)
    assert replica.do(BAD, token).error is not None
    replica.do(_upsert(1), token, lost=True)
    assert replica.do(_upsert(1), token).result.inserted == 1
    assert replica.do(_upsert(1), token).result.inserted == 1
    assert replica.machine.state.records == 1


def test_the_oldest_leave_the_window() -> None:
    replica = Replica(3)
    for number in range(5):
        replica.do(_upsert(number), WriteToken(b"%d" % number))
    assert len(replica.machine._tokens) == 3
    assert sum(key.startswith(b"t") for key in replica.store.rows) == 3
    assert replica.do(_upsert(4), WriteToken(b"4")).result == WriteResult(inserted=1, log_index=5)
    assert replica.do(_upsert(0), WriteToken(b"0")).result.updated == 1, "forgotten, so it is carried out anew"


def test_a_narrower_window_takes_what_a_wider_one_left() -> None:
    replica = Replica(5)
    for number in range(5):
        replica.do(_upsert(number), WriteToken(b"%d" % number))
    replica.most = 2
    replica.restart()
    replica.do(_upsert(9), WriteToken(b"9"))
    assert len(replica.machine._tokens) == len(replica.reread()) == 2


def test_a_damaged_row_is_named() -> None:
    with pytest.raises(DataCorrupted, match="idempotency key"):
        Tokens([(rows.token_row(1), b"\0" * 40)])


@pytest.mark.parametrize(("key", "fingerprint"), [(b"", 0), (b"x" * 65, 0), ("text", 0), (b"x", 1 << 64), (b"x", -1)])
def test_impossible_tokens_are_refused(key: bytes, fingerprint: int) -> None:
    with pytest.raises(InvalidArgument):
        WriteToken(key, fingerprint)


STEPS = st.lists(st.tuples(st.integers(0, len(COMMANDS) - 1), st.none() | st.integers(0, 5), st.booleans(),
                           st.booleans()), max_size=40)


@given(STEPS, st.integers(1, 4))
@settings(max_examples=60, deadline=None)
def test_replicas_agree_with_each_other_and_with_a_model(steps: list[tuple[int, int | None, bool, bool]],
                                                         most: int) -> None:
    """One replica restarts and loses batches as it likes, the other does not; the model is a list of keys."""
    one, other = Replica(most), Replica(most)
    window: list[tuple[bytes, int, WriteResult]] = []
    for number, key, restarts, loses in steps:
        command = COMMANDS[number]
        token = None if key is None else WriteToken(b"%d" % key, number)
        if restarts:
            one.restart()
        if loses:
            one.do(command, token, lost=True)
        records = one.machine.state.records
        a, b = one.do(command, token), other.do(command, token)
        assert (a.result, type(a.error), a.state) == (b.result, type(b.error), b.state)
        known = [entry for entry in window if token is not None and entry[0] == token.key]
        if known and known[0][1] == number:
            assert a.result == known[0][2]
            assert one.machine.state.records == records
        elif known:
            assert a.error is not None
        elif token is not None and a.error is None:
            window = [*window, (token.key, number, a.result)][-most:]
    assert one.store.rows == other.store.rows
    assert len(one.machine._tokens) == len(one.reread()) == len(window)
