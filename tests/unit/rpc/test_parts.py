"""A read that takes several calls ends as it began when its node is told to stop between them."""

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import vecdb
from tests.unit.rpc.test_edge import drive, query_message, refused, serving
from tests.unit.rpc.test_front import paired
from vecdb.client import queries
from vecdb.client.remote import procedures
from vecdb.core.calls import PART
from vecdb.core.errors import Unavailable
from vecdb.rpc import parts
from vecdb.rpc.parts import Parts
from vecdb.v1 import queries_pb2


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(procedures, "PART_ROWS", 2)
    monkeypatch.setattr(procedures, "PART_BYTES", 1_024)
    monkeypatch.setattr(queries, "_REPORTED_ROWS", 3)


async def _stopped_during(face: Any, method: str, asked: Any) -> Any:
    """What ``asked`` comes to when the node is told to stop while its first part is under way."""
    gate = face.node.gate[method] = asyncio.Event()
    running = asyncio.ensure_future(asked)
    while not any(one[0] == method for one in face.node.calls):
        await asyncio.sleep(0.005)
    stopping = asyncio.ensure_future(face.server.stop(600.0))
    while not face.server._edges[0]._draining:
        await asyncio.sleep(0.005)
    _, error = await refused(face.ask("Queries/Query", query_message(1.0), queries_pb2.QueryReply))
    assert isinstance(error, Unavailable), "what has not begun is refused, as ever"
    gate.set()
    out = await running
    await asyncio.wait_for(stopping, 60)
    return out


def _drive_all(face: Any, answers: dict[str, int]) -> Any:
    async def all_of(kind: str) -> None:
        db = await vecdb.connect_async(f"grpc://127.0.0.1:{face.server.port}", retries=0)
        docs = await db.collection("docs")
        matrix = np.zeros((25, 2), np.float32)
        if kind == "query":
            asked = docs.query(matrix, k=1)
        elif kind == "progress":
            asked = docs.query(matrix, k=1, progress=lambda stage, done, total: None)
        else:
            asked = docs.fetch(list(range(64)) * 3)
        found = await _stopped_during(face, "fetch" if kind == "fetch" else "query", asked)
        answers[kind] = len(found)
        await db.close()

    return all_of


@pytest.mark.parametrize(("kind", "count"), [("query", 25), ("progress", 25), ("fetch", 192)])
def test_a_long_read_is_drained(kind: str, count: int) -> None:
    async def test() -> None:
        async with serving() as face:
            await face.fill(64)
            answers: dict[str, int] = {}
            await _drive_all(face, answers)(kind)
            assert answers == {kind: count}
            assert len(face.server._edges[0]._parts) == 0  # type: ignore[attr-defined]

    drive(test)


def test_a_long_read_is_drained_through_a_front(tmp_path: Path) -> None:
    async def test() -> None:
        async with paired(tmp_path) as face:
            await face.fill()
            answers: dict[str, int] = {}
            await _drive_all(face, answers)("query")
            assert answers == {"query": 25}

    drive(test)


def test_a_read_that_was_given_up_does_not_hold_a_drain_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        async with serving() as face:
            await face.fill()
            part = ((PART, "00112233aabbccdd/7"),)
            await face.ask("Queries/Query", query_message(1.0), queries_pb2.QueryReply, metadata=part)
            assert face.server._edges[0].awaits
            monkeypatch.setattr(parts, "NEXT_S", 0.01)
            await asyncio.wait_for(face.server.stop(600.0), 60)

    drive(test)


def test_what_is_remembered_is_bounded_and_what_is_no_part_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "MOST", 3)
    reads = Parts(lambda: 0.0)
    for place in range(10):
        reads.end(reads.begin(((PART, f"{place:08x}/1"),)))
    assert len(reads) == 3
    assert reads.known(((PART, "00000009/0"),))
    assert not reads.known(((PART, "00000001/0"),))
    for wrong in ("00000009", "xyz/1", "00000009/-1", "00000009/1/1", b"00000009/1", "0" * 40 + "/1", ""):
        assert not reads.known(((PART, wrong),))
        assert reads.begin(((PART, wrong),)) == ""
    assert not reads.begin(((PART, "0000000a/0"),)), "the only call of a read needs no memory"
    assert reads.begin(((PART, "00000009/0"),)) == "00000009"
    reads.end("00000009")
    assert len(reads) == 2, "nothing more is to come of it"
