"""Those who use a cluster through any of its nodes, as the SDK does: one call at a time, made again elsewhere."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any, Final

from vecdb.core.calls import Call, Consistency, WriteToken
from vecdb.core.errors import (
    CollectionExists,
    CollectionNotFound,
    Unavailable,
    VecdbError,
)
from vecdb.core.ids import RecordId
from vecdb.core.records import DeleteIds, DeleteWhere, UpdateMetadata, UpsertBatch, WriteResult
from vecdb.core.schema import CollectionSchema, IndexSpec, Metric
from vecdb.testing.linear import NEVER
from vecdb.testing.records import Read, Write, draw_read, draw_write
from vecdb.testing.service_calls import Calls
from vecdb.testing.service_checks import CollectionStep, ReadCall, ServiceHistory, ServiceJudge, WriteCall, values_of
from vecdb.testing.service_node import Process
from vecdb.testing.shards import DIM
from vecdb.testing.violation import Violation
from vecdb.testing.world import World

CLIENT: Final = "client"
ATTEMPT_S: Final = 2.0
GIVE_UP_S: Final = 6.0
THINK_S: Final = 0.05

FetchedReads = list[tuple[int, ReadCall, float, dict[RecordId, int]]]


@dataclass(slots=True)
class ServiceClient:
    """``names``: of collections it knows; ``makes``: whether it makes and drops them."""

    world: World
    calls: Calls
    judge: ServiceJudge
    history: ServiceHistory
    reads: FetchedReads
    number: int
    nodes: Sequence[str]
    names: Sequence[str]
    ids: Sequence[RecordId]
    index: IndexSpec
    makes: bool = False
    stopped: bool = False
    _sequence: int = 0
    _values: int = 0
    _session: dict[int, int] = field(default_factory=dict)
    _known: dict[str, list[tuple[RecordId, int]]] = field(default_factory=dict)

    @property
    def random(self) -> Random:
        return self.world.random

    async def run(self) -> None:
        while not self.stopped:
            await asyncio.sleep(self.random.random() * 2 * THINK_S)
            name, chance = self.random.choice(self.names), self.random.random()
            if self.makes and chance < 0.2:
                await (self.create(name) if self.random.random() < 0.6 else self.drop(name))
            elif chance < 0.5:
                await self.write(name)
            elif chance < 0.97:
                await self.read(name, draw_read(self.random, self.ids, DIM), self.random.choice(list(Consistency)))
            else:
                await self.list()

    # --- attempts ---------------------------------------------------------------------------------

    def _token(self) -> WriteToken:
        self._sequence += 1
        return WriteToken(f"c{self.number}-{self._sequence}".encode(), self._sequence)

    async def _ask(self, method: str, ask: Callable[[Process, Call], Awaitable[Any]],
                   call: Callable[[], Call]) -> Any:
        """What a node answers; attempts that fail and may be made again are, elsewhere, until it is too late.

        Raises ``TimeoutError`` then, and what a node refuses.
        """
        began = self.world.now
        while self.world.now - began < GIVE_UP_S:
            node = self.random.choice(self.nodes)

            async def work(process: Process) -> Any:
                mine = call()
                mine.deadline = process.loop.time() + ATTEMPT_S
                if process.node is None:
                    raise Unavailable("the node is starting")
                return await ask(process, mine)

            try:
                async with asyncio.timeout(ATTEMPT_S + 0.5):
                    answer = await self.calls.ask(CLIENT, node, method, work)
            except TimeoutError as error:
                if isinstance(error, VecdbError) and not error.retryable:
                    raise
            except VecdbError as error:
                if not error.retryable:
                    raise
            else:
                self.world.happened["calls_answered"] += 1
                return answer
            self.world.happened["calls_retried"] += 1
            await asyncio.sleep(0.02 + self.random.random() * 0.1)
        self.world.happened["calls_given_up"] += 1
        raise TimeoutError

    # --- collections ------------------------------------------------------------------------------

    async def create(self, name: str) -> None:
        schema = CollectionSchema(name, DIM, Metric.L2, index=self.index)
        await self._change("create", name, lambda process, call: _node(process).create_collection(schema, call))

    async def drop(self, name: str) -> None:
        await self._change("drop", name, lambda process, call: _node(process).drop_collection(name, call))

    async def _change(self, kind: str, name: str, ask: Callable[[Process, Call], Awaitable[None]]) -> None:
        token, start = self._token(), self.world.now
        self.world.happened[f"calls_{kind}"] += 1
        end, result = NEVER, None
        try:
            await self._ask(f"{kind}_collection", ask, lambda: Call(token=token))
        except (CollectionExists, CollectionNotFound):
            end, result = self.world.now, 0
        except TimeoutError:
            pass
        else:
            end, result = self.world.now, 1
        if result is not None and (kind == "drop" or result):
            self.judge.told_dropped(name)
        self.history.collection(name, CollectionStep(kind, start, end, result))

    async def list(self) -> None:
        start = self.world.now
        self.world.happened["calls_list"] += 1
        try:
            found = await self._ask("list_collections", lambda process, call: _node(process).list_collections(call),
                                    lambda: Call(consistency=Consistency.LINEARIZABLE))
        except TimeoutError:
            return
        strange = [name for name in found if name not in self.names]
        if strange:
            raise Violation(f"collections nobody has made: {strange}")
        for name in self.names:
            self._saw(name, name in found, start)

    def _saw(self, name: str, present: bool, start: float) -> None:
        if not present:
            self.judge.told_dropped(name)
        self.history.collection(name, CollectionStep("present" if present else "absent", start, self.world.now))

    # --- records ----------------------------------------------------------------------------------

    async def write(self, name: str) -> bool:
        """Whether it was acknowledged."""
        values = [self.number * 1_000_000 + self._values + at for at in range(1, 4)]
        self._values += 3
        write = draw_write(self.random, self.ids, values, self._known.get(name, ()), DIM)
        for one, (_, value, _) in write.touched.items():
            if value:
                self._known[name] = [*self._known.get(name, [])[-5:], (one, value)]
        token = self._token()
        self.world.happened[f"calls_{write.kind}"] += 1
        done = WriteCall(name, write, token.key, self.world.now)
        self.history.writes.append(done)
        method, start, gone = _method(write), self.world.now, self.judge.gone()
        try:
            told = await self._ask(method, lambda process, call: getattr(_node(process), method)(
                name, write.command, call), lambda: Call(token=token))
        except CollectionNotFound:
            self._saw(name, False, start)
            return False
        except TimeoutError:
            return False
        assert isinstance(told, WriteResult)
        self.history.acknowledge(done, told, self.world.now)
        self._session[told.shard] = max(self._session.get(told.shard, 0), told.log_index)
        if told.shard in gone:
            # As good as one before the drop, for all that anybody can see of it later.
            if self.judge.healed:
                raise Violation(f"{told} was acknowledged by a shard of {name!r} that was dropped before")
            self.world.happened["writes_to_what_was_dropped"] += 1
        else:
            self._saw(name, True, start)
        return True

    async def read(self, name: str, read: Read, consistency: Consistency) -> bool:
        """Whether it was answered."""
        self.world.happened[f"calls_{consistency.value}_{read.kind}"] += 1
        least: dict[int, int] = {}
        session: tuple[tuple[int, int], ...] = ()
        if consistency is Consistency.SESSION:
            least, session = dict(self._session), tuple(self._session.items())
        elif consistency is Consistency.LINEARIZABLE:
            least = dict(self.history.furthest)
        mine = ReadCall(name, read, consistency, self.world.now, least, self.judge.gone())

        async def ask(process: Process, call: Call) -> Any:
            node = _node(process)
            if read.kind == "fetch":
                return await node.fetch(name, read.ids, call)
            if read.kind == "count":
                return await node.count(name, read.where, call)
            return await node.query(name, read.request, call)

        try:
            answer = await self._ask(read.kind, ask, lambda: Call(consistency=consistency, session=session))
        except CollectionNotFound:
            self._saw(name, False, mine.start)
            return False
        except TimeoutError:
            return False
        group = self.judge.answered(mine, answer)
        if consistency is Consistency.LINEARIZABLE and group is not None:
            self._saw(name, True, mine.start)
            if read.kind == "fetch":
                self.reads.append((group, mine, self.world.now, values_of(answer)))
        return True


def _node(process: Process) -> Any:
    assert process.node is not None
    return process.node


def _method(write: Write) -> str:
    if isinstance(write.command, UpsertBatch):
        return "upsert"
    if isinstance(write.command, DeleteIds | DeleteWhere):
        return "delete"
    assert isinstance(write.command, UpdateMetadata)
    return "update_metadata"
