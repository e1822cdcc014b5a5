"""Reads of several shards of another node in one call: what is asked arrives, what is answered comes back, and so does
why some shards have no answer.
"""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import numpy as np
import pytest

from tests.unit.rpc.test_peers import SCHEMA, Bench, Own, between, soon
from vecdb.core.calls import Call, Consistency
from vecdb.core.errors import InvalidArgument, Overloaded, StaleShardMap, Unavailable, VecdbError
from vecdb.core.filters import parse
from vecdb.core.query import Matches, QueryRequest, QueryResult
from vecdb.core.records import Record
from vecdb.core.schema import CollectionSchema
from vecdb.internal.v1 import shards_pb2 as pb
from vecdb.ports.peers import Several
from vecdb.rpc.shard_reads import READ


class Reads(Own):
    """Answers every shard but those that ``failed``."""

    def __init__(self) -> None:
        super().__init__()
        self.failed: dict[int, VecdbError] = {}
        self.knows = True

    def schema_of(self, name: str) -> CollectionSchema:
        if not self.knows:
            raise Unavailable("never heard of it")
        return SCHEMA

    def _several(self, found: Sequence[Any], call: Call) -> Several[Any]:
        return Several(found if len(self.failed) < len(call.shards) else [], self.failed)

    async def query_shards(self, name: str, request: QueryRequest, call: Call) -> Several[QueryResult]:
        await self._asked(call, "query", name, request)
        extra: Any = [{"a": 1}] if request.include_metadata else None
        return self._several([QueryResult([Matches([int(row[0])], row[:1], extra) for row in request.vectors])], call)

    async def count_shards(self, name: str, where: Any, call: Call) -> Several[int]:
        await self._asked(call, "count", name, where)
        return self._several([7], call)

    async def fetch_shards(self, name: str, ids: Any, call: Call, **more: bool) -> Several[list[Record]]:
        await self._asked(call, "fetch", name, tuple(ids), more)
        return self._several([[Record(1, {"a": 1}, np.ones(2, np.float32))], []], call)


def run(test: Callable[[Bench, Reads], Coroutine[Any, Any, None]]) -> None:
    async def whole() -> None:
        own = Reads()
        async with asyncio.timeout(30), between(own) as bench:
            await test(bench, own)

    asyncio.run(whole())


def asking(rows: int = 1, **more: Any) -> QueryRequest:
    return QueryRequest(np.arange(2 * rows, dtype=np.float32).reshape(rows, 2), 3, shape=SCHEMA.shape, **more)


def of(*shards: int, **more: Any) -> Call:
    call = soon()
    call.shards = shards
    for name, value in more.items():
        setattr(call, name, value)
    return call


def test_what_is_asked_arrives_and_what_is_answered_comes_back() -> None:
    async def test(bench: Bench, own: Reads) -> None:
        call = of(4, 9, consistency=Consistency.SESSION, session=((4, 12),), allow_partial=True)
        found = await bench.there.query_shards("docs", asking(2, filter=parse("t > 1"), ef_search=40), call)
        assert [(one.ids, one.distances.tolist()) for one in found.found[0].matches] == [([0], [0.0]), ([2], [2.0])]
        (_, name, request), (seen,) = own.seen[0], own.calls
        assert (name, request.k, request.ef_search, request.filter) == ("docs", 3, 40, parse("t > 1"))
        assert (seen.shards, seen.session, seen.allow_partial) == ((4, 9), ((4, 12),), True)
        assert seen.consistency is Consistency.SESSION
        (one,) = (await bench.there.query_shards("docs", asking(include_metadata=True), of(4))).found
        assert one.matches[0].metadata == [{"a": 1}]
        assert await bench.there.count_shards("docs", parse("t > 1"), of(4, 9)) == Several([7])
        records = await bench.there.fetch_shards("docs", [1, "b"], of(4, 9), include_vectors=False)
        assert [[record.id for record in some] for some in records.found] == [[1], []]
        assert own.seen[-1] == ("fetch", "docs", (1, "b"), {"include_metadata": True, "include_vectors": False})

    run(test)


def test_why_shards_have_no_answer_comes_back_too() -> None:
    async def test(bench: Bench, own: Reads) -> None:
        own.failed = {4: StaleShardMap("no more", epoch=8), 9: Overloaded("full", retry_after_s=0.5)}
        for ask in (lambda call: bench.there.query_shards("docs", asking(), call),
                    lambda call: bench.there.count_shards("docs", None, call),
                    lambda call: bench.there.fetch_shards("docs", [1], call)):
            some, nothing = await ask(of(4, 9, 11)), await ask(of(4, 9))
            assert some.found
            assert not nothing.found
            for told in (some, nothing):
                assert {group: type(error) for group, error in told.failed.items()} == {
                    4: StaleShardMap, 9: Overloaded}
                assert told.failed[4].fields["epoch"] == 8
        own.failing = InvalidArgument("filter", "is wrong")
        with pytest.raises(InvalidArgument, match="is wrong"):
            await bench.there.count_shards("docs", None, of(4))

    run(test)


def test_what_says_nothing_is_refused() -> None:
    async def test(bench: Bench, own: Reads) -> None:
        for ask in (bench.there.call(READ, pb.ReadRequest(), pb.ReadReply, soon()),
                    bench.there.count_shards("docs", None, soon())):
            with pytest.raises(InvalidArgument):
                await ask
        own.knows = False
        with pytest.raises(Unavailable, match="never heard"):
            await bench.there.query_shards("docs", asking(), of(4))
        assert not own.seen

    run(test)


def test_a_node_of_an_earlier_release_says_that_it_does_not_know_the_call() -> None:
    async def test() -> None:
        async with asyncio.timeout(30), between(Reads(), without=READ) as bench:
            with pytest.raises(Unavailable) as told:
                await bench.there.count_shards("docs", None, of(4))
            assert told.value.fields["unknown_call"] is True

    asyncio.run(test())
