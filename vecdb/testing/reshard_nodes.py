"""What nodes of simulated clusters have that split and merge shards: a governor, copiers, and a router."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from random import Random
from typing import Any, Final, TypeVar, cast

from vecdb.cluster.control import ShardEntry, shards_add, shards_forget, shards_switch
from vecdb.cluster.loads import ShardLoad
from vecdb.cluster.merge import counted_once, merge_writes
from vecdb.cluster.routing import Ring, split, split_ids
from vecdb.core.calls import Call
from vecdb.core.errors import (
    CollectionNotFound,
    DeadlineExceeded,
    ShardSealed,
    Unavailable,
)
from vecdb.core.ids import RecordId
from vecdb.core.records import Command, DeleteWhere, Record, WriteResult
from vecdb.ports.copies import Copies
from vecdb.ports.peers import Replicas
from vecdb.services.control import ControlReplica
from vecdb.services.copying import Copying
from vecdb.services.governor import Governor
from vecdb.services.leaders import Leaders, Task
from vecdb.services.operations.reshard import NewShard, Reshard
from vecdb.services.passing import copy_of
from vecdb.services.proposing import Proposer, Sources
from vecdb.services.replica import ShardReplica
from vecdb.shard import codec
from vecdb.testing.service_calls import Remote, SimPeers
from vecdb.testing.service_node import LoopClock, Process
from vecdb.testing.violation import Violation
from vecdb.testing.world import World

T = TypeVar("T")

NAME: Final = "birds"
SETTINGS: Final[Mapping[str, Any]] = {"grace_s": 1.0, "seal_s": 3.0, "lag": 10}


class Likeness:
    """Replicas of a group are alike at every log index; the :class:`~vecdb.testing.service_node.Ears`."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._shards: dict[tuple[int, int], tuple[str, int]] = {}
        self._control: dict[int, str] = {}
        self._leaders: dict[tuple[int, int], str] = {}

    def shard_applied(self, node: str, group: int, replica: ShardReplica, log_index: int, command: bytes | None,
                      outcome: object) -> None:
        found = replica.digest()
        first = self._shards.setdefault((group, found.log_index), (found.digest, found.records))
        if first != (found.digest, found.records):
            self._world.failure = Violation(f"{node}: group {group} at {found.log_index} has {found}, another {first}")
        if isinstance(outcome, ShardSealed):
            self._world.happened["writes_refused_sealed"] += 1
        self._world.happened["shard_states_checked"] += 1

    def control_applied(self, node: str, machine: ControlReplica) -> None:
        log_index, _, _, digest = machine.digest()
        if self._control.setdefault(log_index, digest) != digest:
            self._world.failure = Violation(f"{node}: another control state at {log_index}")

    def leads(self, group: int, term: int, replica: str) -> None:
        if self._leaders.setdefault((group, term), replica) != replica:
            self._world.failure = Violation(f"two leaders of group {group} in term {term}")


class Commands:
    """The control group's."""

    def add(self, job: int, collection: str, shards: list[NewShard]) -> bytes:
        return shards_add(job, collection, shards)

    def switch(self, job: int, collection: str, retire: list[int], activate: list[int]) -> bytes:
        return shards_switch(job, collection, retire, activate)

    def forget(self, groups: list[int]) -> bytes:
        return shards_forget(groups)


class Heard:
    """Nobody is ever thought to be away: who is finds out by asking."""

    def heard_s(self, node: str) -> float:
        return 0.0

    def word_s(self, node: str) -> float:
        return 0.0

    def stats(self, node: str) -> Mapping[str, float]:
        return {}

    def shard_loads(self) -> Mapping[int, ShardLoad]:
        return {}


class Extra:
    """What a process has beside the rest: a copier, a governor, and a router."""

    def __init__(self, process: Process) -> None:
        assert process.own is not None
        assert process.control is not None
        assert process.hosting is not None
        self.process, self.own, self.control = process, process.own, process.control
        world, calls = process.machine.world, process.machine.calls
        clock, peers = LoopClock(process.loop), SimPeers(calls, process)
        random = Random(world.random.getrandbits(64))  # noqa: S311
        self.copying = Copying(Sources(self.control, process.hosting),
                               Proposer(process.name, self.own, self.control, peers, clock, random),
                               draw=lambda: world.random.getrandbits(62) + 1, executor=process.threads(2, "copies"),
                               tell=process.tell)
        self._leaders = Leaders(process.name, self.own.leader, self._ask_leader, clock, random)
        self._peers = peers
        self._maps: list[list[ShardEntry]] = [[]]

        def replicas(node: str) -> Replicas:
            return self.own if node == process.name else peers.replicas(node)

        def copies(node: str) -> Copies:
            return self.copying if node == process.name else cast(Copies, Remote(calls, process, node, "extra"))

        operations = {kind: Reshard(kind, copies, cast(Any, Commands()), **SETTINGS) for kind in ("split", "merge")}
        self.governor = Governor(process.name, self.control, replicas, Heard(), clock, operations, tell=process.tell)
        self.governor.start()

    async def start(self, *args: Any) -> Any:
        """Of its copiers; likewise the next two."""
        return await self.copying.start(*args)

    async def status(self, *args: Any) -> Any:
        return await self.copying.status(*args)

    async def stop(self, *args: Any) -> Any:
        return await self.copying.stop(*args)

    async def _ask_leader(self, group: int, node: str) -> str | None:
        call = Call(deadline=self.process.loop.time() + 1.0)
        status = (await self._peers.replicas(node).status([group], call)).get(group)
        return None if status is None or status.leader is None else status.leader.rpartition("/")[0]

    # --- routing ----------------------------------------------------------------------------------

    def shards(self) -> Ring[ShardEntry]:
        """As this process knows them; now and then as it knew them before, for it may hear late."""
        shards = self.control.state.of(NAME)
        if shards != self._maps[-1]:
            self._maps = [*self._maps[-1:], shards]
        random = self.process.machine.world.random
        return Ring(self._maps[0] if self._maps[0] and random.random() < 0.2 else shards)

    async def _led(self, entry: ShardEntry, call: Call, reads: bool, ask: Callable[[str], Awaitable[T]]) -> T:
        async def asked(node: str) -> T:
            try:
                return await ask(node)
            except ShardSealed as error:
                raise DeadlineExceeded(error.message) from error  # what ends the search for a leader

        def still() -> None:
            if self.control.state.was_dropped(entry.group):
                raise CollectionNotFound(NAME)

        still()
        nodes = tuple(dict.fromkeys((*entry.desired, *self.process.machine.nodes)))
        return await self._leaders.ask(Task(entry.group, nodes, call, reads=reads, still=still), asked)

    async def write(self, command: Command, call: Call) -> WriteResult:
        parts = await self._parts(command, call, self.shards())
        results = counted_once(parts) if isinstance(command, DeleteWhere) else [one[3] for one in parts]
        return merge_writes(results, command) if results else WriteResult()

    async def _parts(self, command: Command, call: Call, ring: Ring[ShardEntry]
                     ) -> list[tuple[int, int, int, WriteResult]]:
        """What a sealed shard refuses is cut anew, alone, once there is another map: as routers do."""
        results = []
        for part in split(ring, command):
            data, entry = codec.encode(part.command, call.token), part.shard

            async def propose(node: str, data: bytes = data, entry: ShardEntry = entry) -> WriteResult:
                there = self.own if node == self.process.name else self._peers.replicas(node)
                done = await there.propose(entry.group, data, copy_of(call))
                assert isinstance(done.result, WriteResult)
                return replace(done.result, shard=entry.group, log_index=done.result.log_index or done.log_index)

            try:
                results.append((entry.group, entry.lo, entry.hi, await self._led(entry, call, False, propose)))
            except DeadlineExceeded:
                assert call.deadline is not None
                while entry in self.control.state.of(NAME):
                    if self.process.loop.time() >= call.deadline:
                        raise
                    await asyncio.sleep(0.02)
                results += await self._parts(part.command, call, Ring(self.control.state.of(NAME)))
        return results

    async def fetch(self, ids: tuple[RecordId, ...], call: Call) -> list[Record]:
        """As of now."""
        found: list[Record] = []
        for entry, places in split_ids(self.shards(), ids):
            wanted = ids if places is None else tuple(ids[place] for place in places.tolist())

            async def read(node: str, entry: ShardEntry = entry, wanted: tuple[RecordId, ...] = wanted) -> list[Record]:
                def work(there: Process) -> Awaitable[list[Record]]:
                    return _read(there, entry, wanted, there.translated(call, self.process))

                if node == self.process.name:
                    return await work(self.process)
                return await self.process.machine.calls.ask(self.process.name, node, "fetch", work)

            found += await self._led(entry, call, True, read)
        return found


async def _read(process: Process, entry: ShardEntry, ids: tuple[RecordId, ...], call: Call) -> list[Record]:
    own, database = process.own, process.database
    if own is None or database is None:
        raise Unavailable("the node is starting")
    before = own.replicator(entry.group)
    await own.read_index(entry.group, call)
    found = await process.loop.run_in_executor(None, database.fetch, entry.label, ids)
    if own.replicator(entry.group) is not before:
        raise Unavailable("the replica was replaced")
    return found
