"""Answers of several shards of a node that come to more than one message is to have."""

import asyncio
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from google.protobuf.message import Message

from vecdb.core.calls import Call
from vecdb.core.errors import Unavailable
from vecdb.core.query import Matches, QueryRequest, QueryResult
from vecdb.core.schema import CollectionSchema
from vecdb.internal.v1 import shards_pb2 as pb
from vecdb.ports.peers import Several
from vecdb.rpc import shard_reads
from vecdb.rpc.shard_reads import ReadsServicer, RemoteShardReads

BODY = {"text": "x" * 1_000}
LIMIT = 10_000


class _Replicas:
    """Answers each query with itself."""

    def __init__(self) -> None:
        self.rows: list[int] = []
        self.fails: list[set[int]] = []

    def schema_of(self, name: str) -> CollectionSchema:
        return CollectionSchema(name, 2, "l2")  # type: ignore[arg-type]

    async def query_shards(self, name: str, request: QueryRequest, call: Call) -> Several[QueryResult]:
        self.rows.append(len(request.vectors))
        failed = self.fails.pop(0) if self.fails else set()
        found = QueryResult([Matches([int(row[0])], np.zeros(1, np.float32), [BODY]) for row in request.vectors])
        return Several([found] if len(failed) < 2 else [], {group: Unavailable("away") for group in failed})


class _Context:
    size = 100

    def __init__(self, call: Call) -> None:
        self.call = call

    async def apart(self, size: int, work: Callable[..., Any], *args: Any) -> Any:
        return work(*args)


class _Remote(RemoteShardReads):
    def __init__(self, replicas: _Replicas) -> None:
        self._servicer = ReadsServicer(replicas)  # type: ignore[arg-type]
        self.sizes: list[int] = []

    async def call(self, method: str, message: Any, kind: type[Any], call: Call, *, write: bool = False) -> Any:
        asked = pb.ReadRequest.FromString(message.SerializeToString())
        reply: Message = await self._servicer.read(asked, _Context(Call()))  # type: ignore[arg-type]
        self.sizes.append(reply.ByteSize())
        return kind.FromString(reply.SerializeToString())


def _asked(replicas: _Replicas, rows: int) -> tuple[Several[QueryResult], _Remote]:
    remote = _Remote(replicas)
    vectors = np.array([[one, 0] for one in range(rows)], np.float32)
    request = QueryRequest(vectors, 1, include_metadata=True)
    return asyncio.run(remote.query_shards("docs", request, Call(shards=(1, 2)))), remote


@pytest.fixture(autouse=True)
def _limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shard_reads, "REPLY_BYTES", LIMIT)


def test_queries_whose_answer_is_too_long_are_asked_some_at_a_time() -> None:
    replicas = _Replicas()
    several, remote = _asked(replicas, 64)
    assert not several.failed
    assert [one.ids for result in several.found for one in result.matches] == [[row] for row in range(64)]
    assert len(several.found) == 1
    assert max(remote.sizes) <= LIMIT
    assert replicas.rows[0] == 64
    assert sum(replicas.rows) >= 128
    assert _asked(_Replicas(), 3)[1].sizes[1:] == [], "what fits is asked once"
    alone = _Replicas()
    shard_reads.REPLY_BYTES = 100  # type: ignore[misc]
    assert len(_asked(alone, 1)[0].found) == 1, "one query has its answer, however long"


@pytest.mark.parametrize(("fails", "left"), [([{2}, {2}], {2}), ([{2}, set()], {1, 2}), ([{1, 2}, {2}], {1, 2}),
                                             ([{1, 2}, {1, 2}], {1, 2})])
def test_parts_count_where_the_same_shards_answered_them(fails: list[set[int]], left: set[int]) -> None:
    replicas = _Replicas()
    replicas.fails = [set(), *fails]
    several, _ = _asked(replicas, 12)
    assert set(several.failed) == left
    assert len(several.found) == (left == {2})
