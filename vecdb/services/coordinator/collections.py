"""Collections made and dropped, by whoever leads the control group."""

import asyncio
import os
from collections.abc import Sequence
from contextlib import suppress

from vecdb.cluster.control import ShardEntry
from vecdb.core.calls import Call, Consistency, WriteToken
from vecdb.core.errors import DeadlineExceeded, Unavailable, VecdbError
from vecdb.core.layout import ANYHOW, Layout
from vecdb.core.schema import CollectionSchema
from vecdb.services.coordinator.knowledge import ASK_S, Knowledge
from vecdb.services.leaders import PAUSE_S, Task
from vecdb.services.passing import copy_of
from vecdb.services.replicas import CONTROL


class Collections:
    """Belongs to one event loop."""

    def __init__(self, know: Knowledge) -> None:
        self._know = know

    async def create(self, schema: CollectionSchema, call: Call, layout: Layout = ANYHOW) -> None:
        """Returns once somebody leads every shard: what comes next finds them."""
        know = self._know
        await self._change(schema, call, layout)
        until = know.leaders.deadline(call)
        while (shards := know.known(schema.name)) is not None and not await self._led(shards.all):
            pause = know.random.uniform(*PAUSE_S)
            if know.clock.monotonic() + pause >= until:
                raise DeadlineExceeded(f"the collection {schema.name!r} was made, and its replicas have elected no "
                                       "leader yet", collection=schema.name)
            await asyncio.sleep(pause)

    async def _led(self, shards: Sequence[ShardEntry]) -> bool:
        """One after the other: those that are led are not asked long."""
        for shard in shards:
            if not await self._has_leader(shard):
                return False
        return True

    async def _has_leader(self, shard: ShardEntry) -> bool:
        know = self._know
        if know.cluster.me in shard.nodes:
            return know.own.leader(shard.group) is not None
        with suppress(VecdbError):
            return await know.ask_leader(shard.group, know.random.choice(shard.nodes)) is not None
        return False

    async def drop(self, name: str, call: Call) -> None:
        await self._change(name, call, ANYHOW)

    async def _change(self, what: CollectionSchema | str, call: Call, layout: Layout) -> None:
        """Have the control group's leader do it, once, and wait until this node knows."""
        know = self._know
        token = call.token or WriteToken(os.urandom(16))

        async def ask(node: str) -> int:
            mine = copy_of(call, token)
            if node == know.cluster.me:
                return await know.own.change(what, mine, layout)
            know.counts.add("change")
            return await know.peers.replicas(node).change(what, mine, layout)

        log_index = await know.leaders.ask(Task(CONTROL, know.cluster.nodes, call), ask)
        try:
            await know.know(log_index, call)
        except Unavailable as error:  # it is done: what is missing is only that this node knows
            raise DeadlineExceeded("it was done, and this node has not heard of it in time") from error

    async def list(self, call: Call) -> list[str]:
        """As of now; as this node knows them where the control group does not say in time, if it knows anything."""
        know = self._know
        try:
            await know.learn(know.brief(call, ASK_S))
        except (Unavailable, DeadlineExceeded, TimeoutError):
            call.check()
            if call.consistency is Consistency.LINEARIZABLE or not know.control.state.log_index:
                raise Unavailable("the control group has no leader that answers", retry_after_s=0.5) from None
        return sorted(know.control.state.collections)

    async def schema(self, name: str, call: Call) -> CollectionSchema:
        found = self._know.control.state.collections.get(name)
        if found is not None and not call.session:
            return found.schema
        return (await self._know.shards(name, call)).entry.schema


