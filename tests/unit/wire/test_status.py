"""Errors over the wire: the class, the message and the fields that were raised; nothing from inside."""

import asyncio
import errno

import numpy as np
import pytest
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2
from hypothesis import given, settings
from hypothesis import strategies as st

from vecdb.core import errors
from vecdb.core.errors import VecdbError
from vecdb.v1 import types_pb2 as pb
from vecdb.wire.status import CODES, KINDS, from_error, from_status, http_status, reason_of, to_error, to_status


def subclasses(kind):
    """Every class of vecdb.core.errors under ``kind``, itself included."""
    found = {kind} if kind.__module__ == errors.__name__ else set()
    for below in kind.__subclasses__():
        found |= subclasses(below)
    return found


EXAMPLES = [
    VecdbError("a stored schema cannot be understood"),
    errors.InvalidArgument("k", "0 is outside 1..10000", got=0, limit="1..10000", hint="é"),
    errors.DimensionMismatch("vectors", "of dimension 3", got=3, limit=4),
    errors.NonFiniteVector("vectors[2]", "holds NaN", got="NaN", limit="finite components", rows_applied=20_000),
    errors.InvalidId("ids[1]", "is negative", got="int", limit=2**63 - 1),
    errors.InvalidMetadata("metadata[0].a.b", "too deep", got="dict", limit=32),
    errors.InvalidFilter("expected ')'", position=17, got="]"),
    errors.InvalidFilter("no position", got=None, limit=["a", 1.5, None]),
    errors.LimitExceeded("k", "too many", got=10**6, limit=10**4),
    errors.SchemaChanged("docs"),
    errors.CollectionNotFound("docs"),
    errors.CollectionExists("docs"),
    errors.SnapshotNotFound("nightly", "s3://bucket/a"),
    errors.SnapshotExists("nightly"),
    errors.DatabaseLocked("locked", path="./data"),
    errors.DatabaseClosed("closed"),
    errors.FormatMismatch("from a later version", found=9, known=3),
    errors.StorageError("the disk refused"),
    errors.StorageFull("no space", free=0),
    errors.StorageReadOnly("read-only"),
    errors.DataCorrupted("checksum", path="segments/3/vectors", ids=(1, "two", 3), segment=3),
    errors.DataCorrupted("checksum", path="log"),
    errors.OutcomeUnknown("lost the connection"),
    errors.DeadlineExceeded("too late"),
    errors.Cancelled("given up"),
    errors.Unauthenticated("no key"),
    errors.PermissionDenied("read only", needs="write"),
    errors.KeyNotFound("no such key", id="abc"),
    errors.NodeNotFound("there is no node 'n9'", node="n9"),
    errors.ShardNotFound("there is no shard 9", shard=9),
    errors.JobNotFound("there is no job 9", job=9),
    errors.TokenNotFound("there is no token 'abc'", token="abc"),
    errors.ShardBusy("a change of shard 1 is under way: job 2, split 1", job=2, shard=1),
    errors.Unavailable("starting", retry_after_s=0.5),
    errors.NotLeader("n2 leads", leader="n2/1"),
    errors.NotLeader("an election is on"),
    errors.NodeRemoved("it was removed"),
    errors.NoNodeForReplica("there are 2 nodes", got=2, limit=3),
    errors.JoinRefused("there is no such token", reason="token"),
    errors.ShardSealed("its records move", job=7, retry_after_s=0.05),
    errors.StaleShardMap("others took its place", collection="docs", shard=7, epoch=9),
    errors.StaleCursor("docs"),
    errors.Overloaded("the queue is full", retry_after_s=0.25, got=4096, limit=4096),
    errors.Unsupported("not with binary"),
]


def test_every_class_has_its_row_and_an_example():
    every = subclasses(VecdbError)
    assert set(KINDS) == every, "a class of errors is new or gone: give it a row in wire.status.KINDS"
    assert {type(error) for error in EXAMPLES} == every
    assert {kind.code for kind in every} <= set(CODES)
    assert len({kind.__name__ for kind in every}) == len(every)


@pytest.mark.parametrize("error", EXAMPLES, ids=lambda error: type(error).__name__)
def test_what_was_raised_is_what_is_caught(error):
    code, message, details = to_status(error, "req-1")
    for got in (from_status(code, message, details), from_error(pb.Error.FromString(
            to_error(error, "req-1").SerializeToString()))):
        assert type(got) is type(error)
        assert got.message == error.message
        assert str(got) == str(error)
        assert got.fields == error.fields
        assert type(got.fields.get("ids")) is type(error.fields.get("ids"))
        assert (got.code, got.retryable) == (error.code, error.retryable)
        assert getattr(got, "__notes__", []) == ["request id req-1"]
        assert getattr(got, "argument", None) == getattr(error, "argument", None)
        assert getattr(got, "position", None) == getattr(error, "position", None)
    assert code == CODES[error.code].number
    assert message == error.message


def test_details_are_for_clients_of_any_language():
    code, message, data = to_status(errors.Overloaded("full", retry_after_s=1.25, argument="rate"), "req-2")
    status = status_pb2.Status.FromString(data)
    assert (status.code, status.message) == (code, message) == (8, "full")
    info, retry, ours = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo(), pb.Error()
    for detail, message_of in zip(status.details, (info, retry, ours), strict=True):
        assert detail.Unpack(message_of)
    assert (info.reason, info.domain) == ("OVERLOADED", "vecdb")
    assert dict(info.metadata) == {"argument": "rate", "request_id": "req-2"}
    assert retry.retry_delay.ToMilliseconds() == 1_250
    assert (ours.code, ours.kind, ours.retryable, ours.request_id) == (8, "Overloaded", True, "req-2")
    assert reason_of(errors.DimensionMismatch) == "DIMENSION_MISMATCH"


@pytest.mark.parametrize("error", [RuntimeError("the password is s3cret"), KeyError("s3cret"), AssertionError("s3cret"),
                                   OSError(5, "s3cret", "/s3cret"), ExceptionGroup("s3cret", [ValueError("s3cret")]),
                                   UnicodeDecodeError("utf-8", b"s3cret", 0, 1, "s3cret")], ids=repr)
def test_errors_inside_say_nothing_but_the_request_id(error):
    error.add_note("s3cret")
    code, message, details = to_status(error, "req-3")
    assert code == CODES["INTERNAL"].number
    assert "req-3" in message
    assert b"s3cret" not in details
    assert "s3cret" not in message
    got = from_status(code, message, details)
    assert type(got) is VecdbError
    assert http_status(error) == 500


@pytest.mark.parametrize(("error", "kind"), [
    (asyncio.CancelledError("s3cret"), errors.Cancelled), (TimeoutError("s3cret"), errors.DeadlineExceeded),
    (MemoryError("s3cret"), errors.Overloaded), (OSError(errno.EMFILE, "s3cret"), errors.Overloaded),
    (DecodeError("s3cret"), errors.InvalidArgument)])
def test_pythons_own_errors_that_have_a_meaning(error, kind):
    got = from_status(*to_status(error))
    assert type(got) is kind
    assert "s3cret" not in str(got)


def test_a_class_of_somewhere_else_travels_as_the_nearest_known():
    class Odd(errors.LimitExceeded):
        pass

    assert type(from_status(*to_status(Odd("k", "odd", got=1, limit=2)))) is errors.LimitExceeded


def test_trailing_metadata_stays_small_and_keeps_the_ends_that_matter():
    error = errors.DataCorrupted("x" * 50_000 + "é" * 10_000, path="p" * 3_000, ids=tuple(range(10**5)),
                                 note="n" * 10_000, odd=object())
    code, message, details = to_status(error, "r" * 10_000)
    assert len(details) * 4 / 3 + len(message.encode()) < 8_000
    got = from_status(code, message, details)
    assert type(got) is errors.DataCorrupted
    assert got.fields["ids"] == tuple(range(len(got.fields["ids"])))
    assert len(got.fields["ids"]) > 10
    assert got.fields["path"].startswith("ppp")
    assert len(to_error(error).SerializeToString()) < 8_000


def test_fields_of_any_kind_are_written():
    error = errors.Overloaded("x", a=np.int64(3), b=np.arange(2), c={1: {"d"}}, e=b"\xff", f=10**30, g=float("nan"),
                              h="\ud800")
    fields = from_error(to_error(error)).fields
    assert set(fields) == set("abcefgh")


@pytest.mark.parametrize(("name", "kind", "retryable"), [
    ("CANCELLED", errors.Cancelled, False), ("UNKNOWN", errors.OutcomeUnknown, True),
    ("INVALID_ARGUMENT", errors.InvalidArgument, False), ("DEADLINE_EXCEEDED", errors.DeadlineExceeded, True),
    ("NOT_FOUND", VecdbError, False), ("ALREADY_EXISTS", VecdbError, False),
    ("PERMISSION_DENIED", errors.PermissionDenied, False), ("RESOURCE_EXHAUSTED", errors.Overloaded, True),
    ("FAILED_PRECONDITION", VecdbError, False), ("ABORTED", errors.Unavailable, True),
    ("OUT_OF_RANGE", errors.InvalidArgument, False), ("UNIMPLEMENTED", errors.Unsupported, False),
    ("INTERNAL", VecdbError, False), ("UNAVAILABLE", errors.Unavailable, True),
    ("DATA_LOSS", errors.DataCorrupted, False), ("UNAUTHENTICATED", errors.Unauthenticated, False)])
def test_foreign_errors_by_their_code(name, kind, retryable):
    foreign = status_pb2.Status(code=CODES[name].number, message="x")
    foreign.details.add().Pack(error_details_pb2.ErrorInfo(reason="ELSE", domain="else.where"))
    for details in (None, b"", b"\xff\xffgarbage", foreign.SerializeToString()):
        got = from_status(CODES[name].number, "connection refused", details)
        assert type(got) is kind
        assert got.message == "connection refused"
        assert got.retryable is retryable
        assert kind is not VecdbError or name == "INTERNAL" or got.fields["code"] == name
        assert http_status(got) >= 400
        assert set(KINDS[kind]) <= set(got.fields)


def test_codes_nobody_knows():
    for code in (0, 17, -1, 2**31):
        assert type(from_status(code, "", None)) is VecdbError
        assert str(code) in from_status(code, "", None).message


def test_a_message_too_large_for_the_transport_is_not_overload():
    for text in ("Received message larger than max (72 vs. 4)", "Sent message larger than max (5 vs. 4)",
                 "CLIENT: Received message larger than max (5 vs. 4)"):
        got = from_status(8, text, None)
        assert type(got) is errors.LimitExceeded
        assert not got.retryable


def test_a_class_of_a_later_version_is_the_one_of_its_code():
    got = from_error(pb.Error(code=14, kind="ShardMoved", message="elsewhere", fields_json=b'{"node":"n2"}',
                              retry_after_s=0.5))
    assert type(got) is errors.Unavailable
    assert got.fields == {"kind": "ShardMoved", "node": "n2", "retry_after_s": 0.5}
    assert got.message == "elsewhere"


@pytest.mark.parametrize("fields", [b"", b"{", b"[1]", b"null", b'{"message":1,"self":2}', b"[" * 5_000, b"\xff",
                                    b'{"ids":7,"position":"x","argument":null}', b'{"ids":[1,[2],null,"a"]}'])
@pytest.mark.parametrize("kind", sorted(kind.__name__ for kind in KINDS))
def test_garbled_fields_are_no_error_of_their_own(kind, fields):
    got = from_error(pb.Error(code=3, kind=kind, message="m", fields_json=fields))
    assert type(got).__name__ == kind
    assert str(got) == "m"
    assert repr(got)
    if isinstance(got, errors.InvalidFilter):
        assert got.position is None
    if isinstance(got, errors.InvalidArgument):
        assert isinstance(got.argument, str)
    if isinstance(got, errors.DataCorrupted):
        assert all(type(one) in (int, str) for one in got.fields["ids"])


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.integers(-2, 20), st.text(st.characters(codec="utf-8"), max_size=20), st.binary(max_size=200),
       st.integers(0, 10**6), st.integers(0, 255))
def test_damaged_details_are_still_an_error(code, message, noise, place, value):
    _, _, details = to_status(EXAMPLES[place % len(EXAMPLES)], "req")
    damaged = bytearray(details)
    damaged[place % len(damaged)] = value
    for data in (noise, bytes(damaged), details[:place % len(details)], details + noise):
        got = from_status(code, message, data)
        assert isinstance(got, VecdbError)
        assert isinstance(str(got), str)


@pytest.mark.parametrize(("error", "status"), [
    (errors.InvalidArgument("k", "x"), 400), (errors.LimitExceeded("k", "x"), 400),
    (errors.CollectionNotFound("c"), 404),
    (errors.CollectionExists("c"), 409), (errors.Unauthenticated("x"), 401), (errors.PermissionDenied("x"), 403),
    (errors.Overloaded("x"), 429), (errors.StorageFull("x"), 507), (errors.DeadlineExceeded("x"), 504),
    (errors.Unavailable("x"), 503), (errors.Unsupported("x"), 501), (errors.DatabaseClosed("x"), 409),
    (errors.Cancelled("x"), 499), (ValueError("x"), 500), (asyncio.CancelledError(), 499)])
def test_http_statuses(error, status):
    assert http_status(error) == status
