"""What a read must have seen, over the wire."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vecdb.core.calls import Call, Consistency
from vecdb.core.errors import InvalidArgument, LimitExceeded
from vecdb.core.limits import MAX_POSITIONS
from vecdb.core.records import Outcome, WriteResult
from vecdb.v1 import queries_pb2, records_pb2, types_pb2
from vecdb.wire import convert as wire

REQUESTS = (queries_pb2.QueryRequest, records_pb2.FetchRequest, records_pb2.ScanRequest, records_pb2.CountRequest)
U64 = st.integers(0, 2**64 - 1)


@pytest.mark.parametrize("kind", REQUESTS)
@given(st.sampled_from(Consistency), st.dictionaries(U64, U64, max_size=5))
def test_reads_come_back(kind, consistency, session):
    msg = kind()
    wire.put_read(msg, Call(consistency=consistency, session=tuple(session.items())))
    got = Call()
    wire.read_from_wire(kind.FromString(msg.SerializeToString()), got)
    assert (got.consistency, dict(got.session)) == (consistency, session)


@pytest.mark.parametrize("kind", REQUESTS)
def test_the_default_takes_no_bytes(kind):
    msg = kind()
    wire.put_read(msg, Call())
    wire.put_read(msg, None)
    assert msg.ByteSize() == 0
    call = Call()
    wire.read_from_wire(msg, call)
    assert (call.consistency, call.session) == (Consistency.EVENTUAL, ())


def test_positions_alone_mean_session():
    msg = records_pb2.CountRequest(read=types_pb2.ReadOptions(session=[types_pb2.Position(shard=3, log_index=7)]))
    call = Call()
    wire.read_from_wire(msg, call)
    assert (call.consistency, call.session) == (Consistency.SESSION, ((3, 7),))


def test_of_positions_of_one_shard_the_furthest_counts():
    pairs = [(1, 5), (2, 1), (1, 9), (1, 7)]
    msg = records_pb2.CountRequest(read=types_pb2.ReadOptions(
        session=[types_pb2.Position(shard=shard, log_index=index) for shard, index in pairs]))
    call = Call()
    wire.read_from_wire(msg, call)
    assert call.session == ((1, 9), (2, 1))


def test_a_consistency_of_a_later_version_is_refused_not_weakened():
    msg = records_pb2.CountRequest.FromString(b"\x1a\x02\x08\x63")  # read { consistency: 99 }
    assert msg.read.consistency == 99
    with pytest.raises(InvalidArgument, match="consistency"):
        wire.read_from_wire(msg, Call())


def test_too_many_positions_are_refused():
    position = types_pb2.Position(shard=1, log_index=1)
    msg = records_pb2.CountRequest(read=types_pb2.ReadOptions(session=[position] * MAX_POSITIONS))
    wire.read_from_wire(msg, Call())
    msg.read.session.append(position)
    with pytest.raises(LimitExceeded, match="session"):
        wire.read_from_wire(msg, Call())


@given(st.builds(WriteResult, U64, U64, U64, U64, U64, U64))
def test_a_write_says_where_it_is(result):
    msg = types_pb2.WriteResult.FromString(wire.write_result_to_wire(result).SerializeToString())
    assert wire.write_result_from_wire(msg) == result


def test_what_an_earlier_release_tells_of_one_shard_is_one_outcome() -> None:
    counts = (3, 1, 0, 2)
    msg = types_pb2.WriteResult(inserted=3, updated=1, missing=2, log_index=7, origin=9)
    assert wire.write_result_from_wire(msg).outcomes == (Outcome(9, None, counts),)
    whole = wire.write_result_to_wire(WriteResult(*counts, log_index=7, outcomes=(Outcome(9, None, counts),)))
    assert whole.origin == 9, "and it is told so"
    part = wire.write_result_to_wire(WriteResult(*counts, log_index=7, outcomes=(Outcome(9, 0, counts),)))
    assert (part.origin, wire.write_result_from_wire(part).outcomes) == (0, (Outcome(9, 0, counts),))
