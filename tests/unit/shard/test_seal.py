"""Seals: writes end at one place in the log, whatever comes late, twice or from somebody else."""

from dataclasses import replace
from pathlib import Path
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.replicas import SCHEMA, open_replicas, replica_at, upsert
from vecdb.core.calls import WriteToken
from vecdb.core.errors import DataCorrupted, InvalidArgument, ShardSealed, VecdbError
from vecdb.core.records import DeleteIds, WriteResult
from vecdb.services.replica import ShardReplica
from vecdb.shard import codec
from vecdb.shard.codec import LogCommand
from vecdb.shard.marks import Mark, MarkResult
from vecdb.shard.seal import Seal, SealState, Unseal
from vecdb.testing.model import Model
from vecdb.testing.records import IDS, draw_write


def _apply(replica: ShardReplica, command: LogCommand, token: WriteToken | None = None) -> object:
    return replica.apply(replica.position().log_index + 1, 1, codec.encode(command, token))


def test_after_a_seal_writes_are_refused_and_marks_are_not(tmp_path: Path) -> None:
    with replica_at(tmp_path / "a") as replica:
        rng = Random(1)
        first = _apply(replica, upsert(rng, 20, 50), WriteToken(b"before", 3))
        whole = replica.digest()
        sealed = _apply(replica, Seal(5, 2))
        assert isinstance(sealed, MarkResult)
        assert (sealed.log_index, sealed.records, sealed.digest) == (2, whole.records, whole.digest)
        for command in (upsert(rng, 3, 50), DeleteIds((1,))):
            refused = _apply(replica, command, WriteToken(b"after", 4))
            assert isinstance(refused, ShardSealed)
            assert refused.retryable
        assert _apply(replica, upsert(Random(1), 20, 50), WriteToken(b"before", 3)) == first, "it was applied before"
        mark = _apply(replica, Mark())
        assert isinstance(mark, MarkResult)
        assert (mark.records, mark.digest) == (whole.records, whole.digest)
        assert list(replica.marks()) == [2, 6]
        again = _apply(replica, Seal(5, 2))
        assert isinstance(again, MarkResult), "once more by the same job it is the same"
        for asked in (None, codec.encode(DeleteIds((1,))), codec.encode(DeleteIds((1,)), WriteToken(b"after"))):
            with pytest.raises(ShardSealed):
                replica.check_sealed(asked)
        for allowed in (codec.encode(DeleteIds((1,)), WriteToken(b"before")), codec.encode(Mark()), b"", b"\x01"):
            replica.check_sealed(allowed)  # goes into the log, which says what becomes of it
        assert isinstance(_apply(replica, Seal(6, 9)), ShardSealed), "not by another"
        assert isinstance(_apply(replica, Unseal(6, 9)), ShardSealed)
        assert _apply(replica, Unseal(5, 2)) == WriteResult(log_index=10)
        replica.check_sealed(None)
        done = _apply(replica, DeleteIds((10**9,)), WriteToken(b"after", 4))
        assert done == WriteResult(missing=1, log_index=11), "what was refused left no key"


def test_a_late_seal_of_an_attempt_that_was_given_up_is_refused(tmp_path: Path) -> None:
    with replica_at(tmp_path / "a") as replica:
        assert isinstance(_apply(replica, Unseal(5, 2)), WriteResult)
        assert isinstance(_apply(replica, Seal(5, 2)), InvalidArgument)
        assert isinstance(_apply(replica, Seal(5, 1)), InvalidArgument)
        assert isinstance(_apply(replica, Seal(5, 3)), MarkResult)
        assert isinstance(_apply(replica, Unseal(5, 2)), WriteResult)
        assert isinstance(_apply(replica, DeleteIds((1,))), ShardSealed), "a late UNSEAL lifts no later seal"
        assert isinstance(_apply(replica, Seal(5, 4)), MarkResult), "the job's next attempt takes it over"
        assert isinstance(_apply(replica, Unseal(5, 3)), WriteResult)
        assert isinstance(_apply(replica, DeleteIds((1,))), ShardSealed)
        assert isinstance(_apply(replica, Unseal(5, 4)), WriteResult)
        assert isinstance(_apply(replica, DeleteIds((1,))), WriteResult)


def test_a_seal_outlives_restarts_and_travels_with_snapshots(tmp_path: Path) -> None:
    database = open_replicas(tmp_path / "a")
    database.host(SCHEMA, "g00000001")
    replica = database.replica(SCHEMA.name)
    _apply(replica, upsert(Random(2), 9, 50))
    unsealed = replica.digest().digest
    _apply(replica, Seal(1, 7))
    assert replica.digest().digest == unsealed, "a seal is no record"
    replica.checkpoint()
    with replica_at(tmp_path / "b") as other:
        snapshot = replica.snapshot()
        incoming = other.receive(snapshot.position, snapshot.files)
        for number, file in enumerate(snapshot.files):
            incoming.write(number, 0, snapshot.read(number, 0, file.bytes))
        incoming.install()
        snapshot.release()
        assert isinstance(_apply(other, DeleteIds((1,))), ShardSealed)
    database.close()
    database = open_replicas(tmp_path / "a")
    try:
        assert isinstance(_apply(database.replica(SCHEMA.name), DeleteIds((1,))), ShardSealed)
    finally:
        database.close()


def test_the_row_of_a_seal_that_makes_no_sense_is_damage() -> None:
    state = SealState(3, 4, True, 9)
    assert SealState.from_bytes(state.to_bytes()) == state
    assert SealState.from_bytes(None) == SealState()
    for bad in (b"", state.to_bytes()[:-1], b"\x02" + state.to_bytes()[1:]):
        with pytest.raises(DataCorrupted):
            SealState.from_bytes(bad)


@given(stamps=st.lists(st.tuples(st.booleans(), st.integers(1, 2), st.integers(1, 3)), max_size=12))
def test_what_was_lifted_is_never_sealed_again(stamps: list[tuple[bool, int, int]]) -> None:
    state, lifted = SealState(), set[tuple[int, int]]()
    for log_index, (seals, job, fence) in enumerate(stamps, 1):
        before = state
        try:
            state = state.after((Seal if seals else Unseal)(job, fence), log_index)
        except VecdbError:
            assert state == before
        else:
            if not seals:
                lifted.add((job, fence))
        assert not (state.sealed and (state.job, state.fence) in lifted)
        assert (state.job, state.fence) >= (before.job, before.fence)
        if before.sealed:
            assert state.job == before.job, "only its own job lifts or moves a seal"


@pytest.mark.parametrize("seed", range(4))
def test_replicas_and_the_model_agree_whatever_is_sealed(tmp_path: Path, seed: int) -> None:
    rng, model = Random(seed), Model()
    schema = replace(SCHEMA, dim=4)
    with replica_at(tmp_path / "a", schema) as replica:
        for log_index in range(1, 150):
            command: LogCommand = draw_write(rng, IDS, range(10 * log_index, 10 * log_index + 5), (), 4).command
            token = WriteToken(b"%d" % rng.randrange(30)) if rng.random() < 0.5 else None
            if rng.random() < 0.15:
                command, token = rng.choice((Seal, Unseal))(rng.randint(1, 2), rng.randint(1, 3)), None
            data = codec.encode(command, token)
            outcome = replica.apply(log_index, 1, data)
            moment = model.apply(log_index, data)
            if moment.refused:
                assert isinstance(outcome, InvalidArgument | ShardSealed)
            elif moment.outcome is None:
                assert isinstance(outcome, MarkResult)
            else:
                assert outcome == moment.outcome
            assert replica.digest().digest == moment.digest
