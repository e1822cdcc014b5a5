"""Simulated clusters of whole nodes whose shards are split and merged while they are used and hurt.

The jobs, the governor that runs them, the copiers, the control group, hosting and the shards are the product's; who
routes is as simple as can be: it looks at the map of the node it came to, which may be old, and what is refused is
asked again of another node, under the same key.

The judges: replicas of a shard are alike after every command; what clients saw of each record, whichever shard had it,
is explained by some order of their calls; a write that comes once more is answered with the counts that it was answered
with, over however many splits and merges; once all is healed every job ends, nothing is sealed, loading or retired,
every record is in the shard of its hash and nowhere else, and a last read finds what was written.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final, TypeVar, cast

from vecdb.cluster.control import job_put
from vecdb.cluster.routing import Ring, hash_of_id
from vecdb.core.calls import Call, WriteToken
from vecdb.core.cluster import JobState
from vecdb.core.errors import (
    CollectionExists,
    CollectionNotFound,
    Unavailable,
    VecdbError,
)
from vecdb.core.ids import RecordId
from vecdb.core.records import WriteResult
from vecdb.core.schema import CollectionSchema, IndexSpec, Metric
from vecdb.services.settings import EngineSettings
from vecdb.testing.linear import NEVER, linearizable
from vecdb.testing.loop import virtual_loop
from vecdb.testing.network import Network
from vecdb.testing.records import MANY, RecordStep, Write, draw_write, value_in
from vecdb.testing.reshard_nodes import NAME, Extra, Likeness
from vecdb.testing.service_calls import Calls
from vecdb.testing.service_clients import ATTEMPT_S, CLIENT, GIVE_UP_S, THINK_S
from vecdb.testing.service_nemesis import ServiceNemesis
from vecdb.testing.service_node import Machine, Process
from vecdb.testing.service_sim import FOUNDING_S, RAFT
from vecdb.testing.shard_sim import scratch
from vecdb.testing.shards import DIM
from vecdb.testing.synced import Synced
from vecdb.testing.violation import Violation
from vecdb.testing.world import World

T = TypeVar("T")

CLIENTS: Final = 4
CALM_S: Final = 4.0
FAULTS_S: Final = 24.0
HEALING_S: Final = 120.0
MOST_SHARDS: Final = 4


def simulate_resharding(seed: int, world: World | None = None, faults_s: float = FAULTS_S) -> World:
    """One run; raises :class:`Violation`."""
    world = world or World(seed)
    with scratch() as (root, synced):
        run = ReshardRun(world, root, synced)
        try:
            run.run(faults_s)
        finally:
            run.end()
    return world


@dataclass(slots=True)
class ReshardClient:
    """One call at a time, made again elsewhere under the same key."""

    world: World
    calls: Calls
    nodes: list[str]
    number: int
    steps: dict[RecordId, list[RecordStep]]
    stopped: bool = False
    _sequence: int = 0
    _known: list[tuple[RecordId, int]] = field(default_factory=list)
    _told: list[tuple[Write, WriteToken, WriteResult]] = field(default_factory=list)

    async def run(self) -> None:
        while not self.stopped:
            await asyncio.sleep(self.world.random.random() * 2 * THINK_S)
            chance = self.world.random.random()
            if chance < 0.1 and self._told:
                await self.repeat()
            elif chance < 0.6:
                await self.write()
            else:
                await self.read(tuple(self.world.random.sample(MANY, self.world.random.choice((1, 1, 3)))))

    async def ask(self, method: str, ask: Callable[[Extra, Call], Awaitable[T]], token: WriteToken | None = None,
                  most_s: float = GIVE_UP_S) -> T:
        """Raises ``TimeoutError`` once it is too late."""
        began, random = self.world.now, self.world.random
        while self.world.now - began < most_s:
            async def work(process: Process) -> T:
                if process.extra is None:
                    raise Unavailable("the node is starting")
                try:
                    return await ask(process.extra, Call(deadline=process.loop.time() + ATTEMPT_S, token=token))
                except CollectionNotFound as error:
                    raise Unavailable(error.message) from error  # this node has not heard of it

            try:
                async with asyncio.timeout(ATTEMPT_S + 0.5):
                    answer = await self.calls.ask(CLIENT, random.choice(self.nodes), method, work)
            except (VecdbError, TimeoutError) as error:
                if isinstance(error, VecdbError) and not error.retryable:
                    raise
            else:
                self.world.happened["calls_answered"] += 1
                return answer
            self.world.happened["calls_retried"] += 1
            await asyncio.sleep(0.02 + random.random() * 0.1)
        self.world.happened["calls_given_up"] += 1
        raise TimeoutError

    async def create(self) -> None:
        schema = CollectionSchema(NAME, DIM, Metric.L2, index=IndexSpec())

        async def create(extra: Extra, call: Call) -> None:
            assert extra.process.node is not None
            await extra.process.node.create_collection(schema, call)

        try:
            await self.ask("create_collection", create, WriteToken(b"create"), 60.0)
        except CollectionExists:
            return

    async def write(self) -> bool:
        self._sequence += 1
        values = [self.number * 1_000_000 + 3 * self._sequence + at for at in range(3)]
        write = draw_write(self.world.random, MANY, values, self._known, DIM)
        token = WriteToken(b"c%d-%d" % (self.number, self._sequence), self._sequence)
        self._known = [*self._known, *((one, value) for one, (_, value, _) in write.touched.items() if value)][-20:]
        start, end, told = self.world.now, NEVER, None
        try:
            told = await self.ask("upsert", lambda extra, call: extra.write(write.command, call), token)
            end = self.world.now
        except TimeoutError:
            pass
        if told is not None:
            self._told = [*self._told[-30:], (write, token, told)]
        for one, (kind, value, expected) in write.touched.items():
            found = None if told is None else write.found(one, told)
            self.steps.setdefault(one, []).append(RecordStep(kind, start, end, value, expected, found))
        return told is not None

    async def repeat(self) -> None:
        """A write that was answered long ago comes once more: it is answered as it was, and does nothing, which is why
        it is no step of any history.
        """
        write, token, told = self.world.random.choice(self._told)
        try:
            again = await self.ask("upsert", lambda extra, call: extra.write(write.command, call), token)
        except TimeoutError:
            return
        self.world.happened["writes_repeated"] += 1
        if told.counts != again.counts:
            raise Violation(f"{write.command} under {token.key.decode()} did {told}, and is answered with {again}")

    async def read(self, ids: tuple[RecordId, ...]) -> bool:
        start = self.world.now
        try:
            found = await self.ask("fetch", lambda extra, call: extra.fetch(ids, call))
        except TimeoutError:
            return False
        values = {record.id: value_in(record.metadata) for record in found}
        if len(values) != len(found):
            raise Violation(f"a record is there twice: {[record.id for record in found]}")
        for one in ids:
            self.steps.setdefault(one, []).append(RecordStep("read", start, self.world.now, result=values.get(one, 0)))
        return True

    async def reshard(self) -> None:
        """Ask for a split or a merge, one after another, as long as this runs."""
        while not self.stopped:
            await asyncio.sleep(self.world.random.uniform(0.2, 1.0))
            try:
                await self.ask("upsert", self._begin, most_s=2.0)
            except (TimeoutError, VecdbError):
                continue

    async def _begin(self, extra: Extra, call: Call) -> None:
        if not extra.governor.governs:
            raise Unavailable("another node governs")
        state, random = extra.control.state, self.world.random
        if any(not job.state.ended for job in state.jobs.values()):
            return
        shards = state.of(NAME)
        if len(shards) > 1 and (len(shards) >= MOST_SHARDS or random.random() < 0.5):
            at = random.randrange(len(shards) - 1)
            job = job_put("merge", str(shards[at].group), {"with": shards[at + 1].group})
        else:
            one = random.choice(shards)
            args = random.choice(({}, {"into": 3}, {"bytes_per_s": 20_000}))
            job = job_put("split", str(one.group), args)
        self.world.happened["jobs_begun"] += 1
        await extra.governor.context.propose(job)


class Gentler(ServiceNemesis):
    """Leaves jobs the time to come to where it hurts."""

    def _next(self) -> None:
        if self.stopped:
            return
        weights = [weight for weight, _ in self._plagues]
        self._random.choices([plague for _, plague in self._plagues], weights)[0]()
        self.world.at(self._random.uniform(0.2, 3.0), self._next)


class ReshardRun:
    """One simulated cluster."""

    def __init__(self, world: World, root: Path, synced: Synced) -> None:
        self.world = world
        random = world.random
        self.nodes = ["n1", "n2", "n3", "n4"][:random.choice((3, 3, 4))]
        self.network = Network(world)
        self.calls = Calls(world, self.network, lambda name: self.machines[name].process)
        engine = EngineSettings(seal_records=random.choice((8, 16, 1 << 20)), merge_factor=2, background=False,
                                replicated=True)
        self.likeness = Likeness(world)
        self.machines = {name: Machine(world, name, self.nodes, self.network, self.calls, self.likeness, root, synced,
                                       replace(RAFT, window_bytes=1 << 16, uncommitted_bytes=1 << 17), engine)
                         for name in self.nodes}
        for machine in self.machines.values():
            machine.extend = Extra
        self.loop = virtual_loop(world, "clients")
        self.steps: dict[RecordId, list[RecordStep]] = {}
        self.clients = [self._client(number) for number in range(1, CLIENTS + 1)]
        world.say("world", "resharding", nodes=self.nodes, seal_records=engine.seal_records)

    def _client(self, number: int) -> ReshardClient:
        return ReshardClient(self.world, self.calls, self.nodes, number, self.steps)

    def end(self) -> None:
        for machine in self.machines.values():
            machine.end()
        self.loop.end()

    def run(self, faults_s: float) -> None:
        world = self.world
        for machine in self.machines.values():
            world.at(world.random.uniform(0.0, 1.0), machine.start)
        self._until(lambda: all(self._extra(name) is not None for name in self.nodes), FOUNDING_S, "nodes do not start")
        self.loop.run(self.clients[0].create(), HEALING_S)
        tasks = [self.loop.create_task(client.run()) for client in self.clients]
        tasks.append(self.loop.create_task(self.clients[0].reshard()))
        world.run(CALM_S)
        nemesis = Gentler(world, self.network, self.machines)
        nemesis.start()
        world.run(faults_s)
        nemesis.heal()
        for client in self.clients:
            client.stopped = True
        self._until(lambda: all(task.done() for task in tasks), HEALING_S, "calls that nobody answers")
        for task in tasks:
            task.result()
        self._recover()

    def _extra(self, name: str) -> Extra | None:
        process = self.machines[name].process
        return None if process is None else process.extra

    def _until(self, true: Callable[[], bool], at_most: float, what: str) -> None:
        if not self.world.run_until(true, at_most):
            raise Violation(f"{what} within {at_most} s:\n{self._said()}")

    def _said(self) -> str:
        extras = [extra for name in self.nodes if (extra := self._extra(name)) is not None]
        return "\n".join(f"{one.process.name}: jobs {list(one.control.state.jobs.values())} "
                         f"shards {list(one.control.state.shards.values())}" for one in extras)

    # --- afterwards -------------------------------------------------------------------------------

    def _recover(self) -> None:
        self._until(self._at_rest, HEALING_S, "jobs do not end")
        last = self._client(CLIENTS + 1)
        for _ in range(3):
            if not self.loop.run(last.write(), HEALING_S):
                raise Violation("no write is taken after healing")
        if not self.loop.run(last.read(MANY), HEALING_S):
            raise Violation("no read is answered after healing")
        self._until(self._equal, HEALING_S, "replicas do not become equal")
        self._judge_shards()
        for one, steps in self.steps.items():
            if not linearizable(steps):
                lines = "\n".join(f"  {step}" for step in sorted(steps, key=lambda step: step.start))
                raise Violation(f"record {one!r} is not linearizable:\n{lines}")
            self.world.happened["histories_checked"] += 1
            self.world.happened["operations_checked"] += len(steps)
        self.world.happened["recoveries_checked"] += 1

    def _at_rest(self) -> bool:
        """Every node knows that every job has ended, and holds what it should."""
        for machine in self.machines.values():
            process = machine.process
            if process is None or process.extra is None or process.hosting is None or not process.hosting.settled:
                return False
            state = process.extra.control.state
            if any(not job.state.ended for job in state.jobs.values()) or NAME not in state.collections:
                return False
        return len({machine.process.extra.control.state.log_index for machine in self.machines.values()
                    if machine.process is not None}) == 1

    def _equal(self) -> bool:
        positions: dict[int, set[int]] = {}
        for machine in self.machines.values():
            process = machine.process
            if process is None or process.driver is None:
                return False
            for replica in process.driver.host.replicas.values():
                if replica.core.applied != replica.core.log.last:
                    return False
                positions.setdefault(replica.group, set()).add(replica.core.applied)
        return all(len(found) == 1 for found in positions.values())

    def _judge_shards(self) -> None:
        """Nothing is left over; every record is in the shard of its hash, and nowhere else."""
        state = cast(Extra, self._extra(self.nodes[0])).control.state
        shards = state.of(NAME)
        if {one.group for one in shards} != set(state.shards):
            raise Violation(f"shards are left over: {list(state.shards.values())}")
        for job in state.jobs.values():
            self.world.happened[f"jobs_{job.state.value}"] += 1
            if job.state is JobState.FAILED and job.error.startswith(("DataCorrupted", "InvalidArgument")):
                raise Violation(f"a {job.kind} has failed: {job.error}")
        ring, seen = Ring(shards), dict[RecordId, int]()
        for machine in self.machines.values():
            process = machine.process
            assert process is not None
            assert process.database is not None
            for entry in shards:
                if entry.label not in process.database.hosted():
                    continue
                with machine.disk.at_work():
                    replica = process.database.replica(entry.label)
                    replica.check_sealed(None)
                    for record in replica.service.fetch(MANY, include_metadata=True, include_vectors=False):
                        if ring.at(hash_of_id(record.id)) is not entry:
                            raise Violation(f"{record.id!r} is in shard {entry.group}, and not of its hashes")
                        if seen.setdefault(record.id, value_in(record.metadata)) != value_in(record.metadata):
                            raise Violation(f"{record.id!r} has two values")
                    if not replica.verify()["equal"]:
                        raise Violation(f"shard {entry.group} on {machine.name} is not what it remembers")
        self.world.happened["shards_checked"] += len(shards)
