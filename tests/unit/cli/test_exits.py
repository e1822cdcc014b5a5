"""The table of exit codes: every error of vecdb has one, the docstring tells the same, and no traceback escapes."""

import inspect
import re

import pytest

import vecdb.cli
from vecdb.cli import exits
from vecdb.core import errors

CLASSES = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, errors.VecdbError)]

EXPECTED = {
    "VecdbError": 1, "InvalidArgument": 2, "DimensionMismatch": 2, "NonFiniteVector": 2, "InvalidId": 2,
    "InvalidMetadata": 2, "InvalidFilter": 2, "LimitExceeded": 2, "CollectionNotFound": 3, "CollectionExists": 4,
    "DatabaseLocked": 4, "DatabaseClosed": 4, "FormatMismatch": 4, "StorageError": 5, "StorageFull": 5,
    "StorageReadOnly": 5, "DataCorrupted": 6, "OutcomeUnknown": 8, "DeadlineExceeded": 7, "Overloaded": 5,
    "Unsupported": 9, "Unauthenticated": 10, "PermissionDenied": 10, "KeyNotFound": 3, "Unavailable": 11,
    "NodeNotFound": 3, "ShardNotFound": 3, "JobNotFound": 3, "TokenNotFound": 3, "ShardBusy": 4,
    "Cancelled": 130, "SchemaChanged": 2, "NotLeader": 11, "ShardSealed": 11, "StaleShardMap": 11, "StaleCursor": 2,
    "JoinRefused": 10, "NodeRemoved": 11, "NoNodeForReplica": 4, "SnapshotExists": 4, "SnapshotNotFound": 3,
}


def make(kind: type[errors.VecdbError]) -> errors.VecdbError:
    error = kind.__new__(kind)
    errors.VecdbError.__init__(error, "said", name="x")
    return error


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_every_error_has_its_code(kind) -> None:
    assert exits.exit_code(make(kind)) == EXPECTED[kind.__name__]
    assert exits.error_json(make(kind))["error"]["exit_code"] == EXPECTED[kind.__name__]


def test_the_docstring_lists_every_code() -> None:
    told = {int(number) for number in re.findall(r"^(\d+)\s{2,}", vecdb.cli.__doc__, re.MULTILINE)}
    known = {value for name, value in vars(exits).items() if name.isupper() and isinstance(value, int)}
    assert told == known == {0, *EXPECTED.values(), exits.INTERRUPTED, exits.BROKEN_PIPE}


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_a_command_that_fails_exits_with_its_code(cli, docs, backend, monkeypatch, kind) -> None:
    def fail(*_: object, **__: object) -> None:
        raise make(kind)

    monkeypatch.setattr(backend, "count", fail)
    plain = cli("collection", "count", "docs")
    assert plain.code == EXPECTED[kind.__name__]
    assert plain.err == "vecdb: error: said\n"
    told = cli("collection", "count", "docs", "--json")
    assert told.code == EXPECTED[kind.__name__]
    assert told.out == ""
    assert told.error["kind"] == kind.__name__


def test_ctrl_c_is_130(cli, docs, backend, monkeypatch) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(backend, "count", interrupt)
    ran = cli("collection", "count", "docs")
    assert ran.code == 130
    assert "Traceback" not in ran.err


def test_a_fault_of_ours_is_not_hidden(cli, docs, backend, monkeypatch) -> None:
    def fault(*_: object, **__: object) -> None:
        raise ZeroDivisionError("a fault")

    monkeypatch.setattr(backend, "count", fault)
    ran = cli("collection", "count", "docs")
    assert ran.code == 1
    assert "ZeroDivisionError" in ran.err
    told = cli("collection", "count", "docs", "--json")
    assert told.code == 1
    assert told.error["code"] == "INTERNAL"
