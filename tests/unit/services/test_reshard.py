"""Splits and merges while there are writers: whoever is killed, and whatever is lost, no acknowledged write is."""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from itertools import count
from pathlib import Path
from random import Random
from types import MappingProxyType
from typing import Any

import numpy as np
import orjson
import pytest

from tests.replicas import DIM, open_replicas
from vecdb.cluster.control import CollectionEntry, ControlState, ShardEntry
from vecdb.cluster.routing import Ring, hash_of_id
from vecdb.core.calls import Call, WriteToken
from vecdb.core.cluster import HASH_SPACE, JobState, ShardState
from vecdb.core.errors import (
    CollectionNotFound,
    InvalidArgument,
    NotLeader,
    OutcomeUnknown,
    ShardSealed,
    Unavailable,
    VecdbError,
)
from vecdb.core.ids import RecordId
from vecdb.core.records import DeleteIds, UpsertBatch, WriteResult
from vecdb.core.schema import CollectionSchema, Metric
from vecdb.ports.copies import CopyTarget
from vecdb.ports.replicator import Committed, ReplicaStatus
from vecdb.runtime.clock import SystemClock
from vecdb.services.copying import Copying
from vecdb.services.homes import folder_of
from vecdb.services.local import LocalDatabase
from vecdb.services.operations import reshard
from vecdb.services.operations.base import Step
from vecdb.services.operations.reshard import NewShard, Reshard
from vecdb.services.replica import ShardReplica
from vecdb.shard import codec
from vecdb.shard.codec import LogCommand

SCHEMA = CollectionSchema("c", DIM, Metric.L2)
MIDDLE = HASH_SPACE // 2
IDS: tuple[RecordId, ...] = (*range(24), *(f"s{at}" for at in range(12)))
NODES = ("n1", "n2", "n3")


class JsonCommands:
    """The control group's commands, as this test's control group reads them."""

    def add(self, job: int, collection: str, shards: Sequence[NewShard]) -> bytes:
        return orjson.dumps(["add", job, collection, [[str(lo), str(hi), nodes] for lo, hi, nodes in shards]])

    def switch(self, job: int, collection: str, retire: Sequence[int], activate: Sequence[int]) -> bytes:
        return orjson.dumps(["switch", job, collection, list(retire), list(activate)])

    def forget(self, groups: Sequence[int]) -> bytes:
        return orjson.dumps(["forget", list(groups)])


class Running:
    """As the control state has a job."""

    def __init__(self, kind: str, target: str, args: Mapping[str, Any], id: int = 1) -> None:
        self.id, self.kind, self.target, self.args = id, kind, target, args
        self.state, self.phase, self.done, self.total = "running", "", 0, 0
        self.data: Mapping[str, Any] = {}
        self.given_up: list[str] = []

    def note(self, step: Step) -> None:
        self.phase, self.done, self.total = step.phase, step.done, step.total
        self.data = orjson.loads(orjson.dumps(dict(step.data)))
        if step.phase == "abandon":
            self.given_up.append(str(self.data["why"]))
        self.state = step.state.value


class World:
    """A cluster in one process, without logs: shards that apply at once; a control group; copiers; a context."""

    def __init__(self, path: Path, random: Random, ranges: Sequence[tuple[int, int]], *, lost: float = 0.0,
                 shard_key: str | None = None) -> None:
        self.random, self.lost = random, lost
        self.database: LocalDatabase = open_replicas(path, seal_records=60)
        self.replicas_by_group: dict[int, ShardReplica] = {}
        entries = [ShardEntry(SCHEMA, group, f"c@{group}", lo, hi, ("n1/1",), ("n1",))
                   for group, (lo, hi) in enumerate(ranges, 1)]
        collection = CollectionEntry(SCHEMA, tuple(one.group for one in entries), 1, shard_key)
        self.control = ControlState(MappingProxyType({"c": collection}),
                                    MappingProxyType({one.group: one for one in entries}), next_group=len(entries) + 1)
        self._runs = count(1)
        self.copying: dict[str, Copying] = {}
        for node in NODES:
            self.renew(node)
        for entry in entries:
            self._make(entry)

    def _make(self, entry: ShardEntry) -> None:
        self.database.host(entry.local_schema, folder_of(entry.group))
        self.replicas_by_group[entry.group] = self.database.replica(entry.label)

    def renew(self, node: str) -> None:
        """A node's process is another."""
        self.copying[node] = Copying(self._replica, self._carry, draw=lambda: next(self._runs))

    def _replica(self, group: int) -> ShardReplica:
        return self.replicas_by_group[group]

    async def _carry(self, target: CopyTarget, command: bytes, seconds: float) -> object:
        if target.group not in self.control.shards:
            raise CollectionNotFound("c")
        return (await self.propose_to(target.group, command)).result

    async def propose_to(self, group: int, command: bytes) -> Committed:
        """To whoever leads a shard; it may be lost there and back."""
        await asyncio.sleep(0)
        chance = self.random.random()
        if chance < self.lost:
            raise self.random.choice((Unavailable, OutcomeUnknown, NotLeader))("lost")
        if group not in self.control.shards:
            raise Unavailable("no replica here")
        done = self.apply(group, command)
        if isinstance(done, VecdbError):
            raise done
        if chance < 2 * self.lost:
            raise OutcomeUnknown("unheard")
        return Committed(self.replicas_by_group[group].position().log_index, done)

    def apply(self, group: int, command: LogCommand | bytes, token: WriteToken | None = None) -> object:
        replica = self.replicas_by_group[group]
        data = command if isinstance(command, bytes) else codec.encode(command, token)
        return replica.apply(replica.position().log_index + 1, 1, data)

    # --- the control group ------------------------------------------------------------------------

    def agreed(self, command: bytes) -> object:
        kind, *rest = orjson.loads(command)
        state = self.control
        shards, collection = dict(state.shards), state.collections["c"]
        if kind == "add":
            job, _, given = rest
            if any(one.state is ShardState.LOADING for one in shards.values()):
                return InvalidArgument("shards", "are being filled", got=given)
            fresh = [ShardEntry(SCHEMA, state.next_group + at, f"c@{state.next_group + at}", int(lo), int(hi),
                                tuple(nodes), tuple(one.partition("/")[0] for one in nodes), ShardState.LOADING, 0, job)
                     for at, (lo, hi, nodes) in enumerate(given)]
            shards.update({one.group: one for one in fresh})
            for one in fresh:
                self._make(one)
            self.control = replace(state, shards=MappingProxyType(shards), next_group=state.next_group + len(fresh))
            return collection
        if kind == "switch":
            job, _, retire, activate = rest
            if any(group not in shards or shards[group].state is not ShardState.LOADING or shards[group].job != job
                   for group in activate) or any(group not in collection.shards for group in retire):
                return InvalidArgument("activate", "are not there", got=activate)
            for group in activate:
                shards[group] = replace(shards[group], state=ShardState.ACTIVE)
            for group in retire:
                shards[group] = replace(shards[group], state=ShardState.RETIRED)
            active = sorted((one for one in shards.values() if one.state is ShardState.ACTIVE), key=lambda one: one.lo)
            collection = replace(collection, shards=tuple(one.group for one in active))
            self.control = replace(state, shards=MappingProxyType(shards), epoch=state.epoch + 1,
                                   collections=MappingProxyType({"c": collection}))
            return collection
        for group in rest[0]:
            if group in shards and shards[group].state is ShardState.ACTIVE:
                return InvalidArgument("groups", "calls go to them", got=rest[0])
            shards.pop(group, None)
        self.control = replace(state, shards=MappingProxyType(shards))
        return collection

    # --- the context of steps ---------------------------------------------------------------------

    me = "n1"
    clock = SystemClock()

    def tell(self, level: str, event: str, **fields: object) -> None:
        """Nobody listens."""

    def state(self) -> ControlState:
        return self.control

    async def propose(self, command: bytes) -> object:
        await asyncio.sleep(0)
        if self.random.random() < self.lost:
            raise Unavailable("no majority")
        done = self.agreed(command)
        if self.random.random() < self.lost:
            raise OutcomeUnknown("unheard")
        return done

    def replicas(self, node: str) -> Any:
        world = self

        class There:
            async def propose(self, group: int, command: bytes, call: Call) -> Committed:
                return await world.propose_to(group, command)

            async def status(self, groups: Sequence[int], call: Call) -> dict[int, ReplicaStatus]:
                return {0: ReplicaStatus("n1/1", "ok", "leader", 1, "n1/1", 1, 1, 1, 1, 1, ("n1/1", "n2/2", "n3/3"))}

        return There()

    async def leader(self, group: int) -> ReplicaStatus | None:
        await asyncio.sleep(0)
        if group not in self.control.shards or self.random.random() < self.lost:
            return None
        return ReplicaStatus("n1/1", "ok", "leader", 1, "n1/1", 1, 1, 1, 1, 1, ("n1/1", "n2/2"))

    def heard_s(self, node: str) -> float:
        return 0.0

    def stats(self, node: str) -> Mapping[str, float]:
        return {}

    @asynccontextmanager
    async def deciding(self, job: int) -> AsyncIterator[None]:
        yield

    def copies(self, node: str) -> Copying:
        return self.copying[node]

    async def close(self) -> None:
        for copying in self.copying.values():
            await copying.close()
        self.database.close()


class Writer:
    """Writes records that nobody else does, each until it is told so, and reads them back; its map may be old."""

    def __init__(self, world: World, number: int, ids: Sequence[RecordId]) -> None:
        self.world, self.number, self.ids = world, number, ids
        self.told: dict[RecordId, int] = {}
        self.answers: list[tuple[RecordId, WriteToken, UpsertBatch | DeleteIds, WriteResult]] = []
        self._map = world.control
        self.stopped = False

    async def run(self) -> None:
        for sequence in count(1):
            if self.stopped:
                return
            one = self.world.random.choice(self.ids)
            token = WriteToken(b"w%d-%d" % (self.number, sequence))
            command: UpsertBatch | DeleteIds = DeleteIds((one,))
            if self.world.random.random() < 0.8:
                command = UpsertBatch((one,), np.full((1, DIM), sequence, np.float32), (b'{"v":%d}' % sequence,))
            done = await self._done(one, command, token)
            had = one in self.told
            self.answers.append((one, token, command, done))
            if isinstance(command, DeleteIds):
                assert (done.deleted, done.missing) == (had, not had), "it is done once, to what was there"
                self.told.pop(one, None)
            else:
                assert (done.inserted, done.updated) == (not had, had)
                self.told[one] = sequence
            await asyncio.sleep(0.001)
            self.read(one)

    def _shard(self, one: RecordId) -> ShardEntry:
        return Ring(self._map.of("c")).at(hash_of_id(one))

    async def _done(self, one: RecordId, command: UpsertBatch | DeleteIds, token: WriteToken) -> WriteResult:
        while True:
            group = self._shard(one).group
            try:
                if group not in self.world.control.shards:
                    raise Unavailable("it was forgotten")
                done = (await self.world.propose_to(group, codec.encode(command, token))).result
                assert isinstance(done, WriteResult)
                return done
            except (ShardSealed, Unavailable, OutcomeUnknown):
                self._map = self.world.control
                await asyncio.sleep(0.002)

    def read(self, one: RecordId) -> None:
        """A read as of now: by whatever map, its answer is what was told last, or none is given."""
        group = self._shard(one).group
        if group not in self.world.control.shards:
            return
        replica = self.world.replicas_by_group[group]
        try:
            replica.check_sealed(None)
        except ShardSealed:
            return
        found = replica.service.fetch([one], include_metadata=True, include_vectors=False)
        assert [record.metadata["v"] for record in found] == ([self.told[one]] if one in self.told else [])


def make_operation(world: World, kind: str, **settings: Any) -> Reshard:
    return Reshard(kind, world.copies, JsonCommands(), **{"grace_s": 0.05, "lag": 20, **settings})


class Led:
    """The context of one step's leader, who may find that he leads no more."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.leads = True

    def __getattr__(self, name: str) -> Any:
        return getattr(self._world, name)

    async def propose(self, command: bytes) -> object:
        if not self.leads:
            raise NotLeader("another leads the control group")
        return await self._world.propose(command)


async def _drive(world: World, operation: Reshard, job: Running, *, kills: float = 0.0, cancel: bool = False) -> None:
    """The governor: steps that may be killed at any moment, so that their notes are lost, or live on for a while."""
    zombies: list[asyncio.Future[Step]] = []
    async with asyncio.timeout(60):
        while not JobState(job.state).ended:
            act = operation.cancel if job.state == "cancelling" else operation.step
            led = Led(world)
            task = asyncio.ensure_future(act(job, led))
            killed = world.random.random() < kills
            done, _ = await asyncio.wait((task,), timeout=world.random.uniform(0, 0.03) if killed else None)
            if killed and world.random.random() < 0.3:
                world.renew("n2")  # another process, whose copiers are others; those of the one before live on
            if not done:
                led.leads = False
                zombies.append(task)
                if world.random.random() < 0.5:
                    task.cancel()
                continue
            try:
                step = task.result()
            except (Unavailable, OutcomeUnknown):
                await asyncio.sleep(0.005)
                continue
            if killed:
                continue  # it was done, and nobody noted it
            job.note(step)
            if cancel and job.phase in ("copy", "seal"):
                job.state, cancel = "cancelling", False
            await asyncio.sleep(min(step.again_s, 0.01))
        await asyncio.gather(*zombies, return_exceptions=True)


def _check(world: World, writers: Sequence[Writer]) -> None:
    """What there is is what was told, once; nothing is sealed or left over; every write is answered as it was."""
    active = world.control.of("c")
    assert {one.group for one in world.control.shards.values()} == {one.group for one in active}
    ring = Ring(active)
    expected = {one: value for writer in writers for one, value in writer.told.items()}
    found: dict[RecordId, int] = {}
    for entry in active:
        replica = world.replicas_by_group[entry.group]
        replica.check_sealed(None)
        for record in replica.service.fetch(IDS, include_metadata=True, include_vectors=False):
            assert record.id not in found, "in one shard alone"
            assert ring.at(hash_of_id(record.id)) is entry
            found[record.id] = record.metadata["v"]
        assert replica.verify()["equal"]
    assert found == expected
    for writer in writers:
        for one, token, command, told in writer.answers:
            again = world.apply(ring.at(hash_of_id(one)).group, command, token)
            assert isinstance(again, WriteResult)
            assert replace(again, log_index=0) == replace(told, log_index=0)
    for entry in active:
        assert world.replicas_by_group[entry.group].digest().records == sum(
            ring.at(hash_of_id(one)) is entry for one in expected)


async def _while_written(world: World, work: Any, seconds: float = 0.0) -> list[Writer]:
    writers = [Writer(world, number, IDS[number::3]) for number in range(3)]
    tasks = [asyncio.ensure_future(writer.run()) for writer in writers]
    try:
        await asyncio.sleep(0.05)
        await work
        await asyncio.sleep(0.02)
        for writer in writers:
            writer.stopped = True
        async with asyncio.timeout(30):
            await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
    return writers


def _run(path: Path, seed: int, ranges: Sequence[tuple[int, int]], job: Running, *, lost: float = 0.0,
         kills: float = 0.0, cancel: bool = False, **settings: Any) -> World:
    print(f"seed {seed}")
    world = World(path, Random(seed), ranges, lost=lost)

    async def whole() -> None:
        try:
            operation = make_operation(world, job.kind, **settings)
            writers = await _while_written(world, _drive(world, operation, job, kills=kills, cancel=cancel))
            await asyncio.sleep(0.01)
            _check(world, writers)
        finally:
            await world.close()

    asyncio.run(whole())
    return world


def test_a_shard_is_split_at_the_middle(tmp_path: Path) -> None:
    job = Running("split", "1", {})
    world = _run(tmp_path, 1, [(0, HASH_SPACE)], job)
    assert job.state == "done"
    assert [(one.lo, one.hi) for one in world.control.of("c")] == [(0, MIDDLE), (MIDDLE, HASH_SPACE)]
    assert job.done == job.total > 0


def test_neighbours_are_merged(tmp_path: Path) -> None:
    job = Running("merge", "2", {"with": 1})
    world = _run(tmp_path, 2, [(0, MIDDLE // 2), (MIDDLE // 2, MIDDLE), (MIDDLE, HASH_SPACE)], job)
    assert job.state == "done"
    assert [(one.lo, one.hi) for one in world.control.of("c")] == [(0, MIDDLE), (MIDDLE, HASH_SPACE)]


def test_a_command_that_takes_effect_late_makes_shards_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody hears of the first command to make them, which the log has; the next one comes behind it."""
    held: list[bytes] = []
    propose = World.propose

    async def late(self: World, command: bytes) -> object:
        if orjson.loads(command)[0] != "add":
            return await propose(self, command)
        held.append(command)
        if len(held) == 1:
            raise OutcomeUnknown("unheard")
        outcomes = [self.agreed(one) for one in held]
        assert isinstance(outcomes[-1], InvalidArgument)
        return outcomes[-1]

    monkeypatch.setattr(World, "propose", late)
    job = Running("split", "1", {})
    world = _run(tmp_path, 4, [(0, HASH_SPACE)], job)
    assert (job.state, job.given_up, len(held)) == ("done", [], 2)
    assert [one.group for one in world.control.of("c")] == [2, 3]


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("kind", ["split", "merge"])
def test_whoever_is_killed_and_whatever_is_lost(tmp_path: Path, seed: int, kind: str) -> None:
    job = Running("split", "1", {"into": 3}) if kind == "split" else Running("merge", "1", {"with": 2})
    ranges = [(0, HASH_SPACE)] if kind == "split" else [(0, MIDDLE), (MIDDLE, HASH_SPACE)]
    world = _run(tmp_path, seed, ranges, job, lost=0.05, kills=0.4, seal_s=Random(seed).choice((0.1, 10.0)))
    assert job.state in ("done", "failed"), "failed after many attempts, with nothing left behind"
    print(f"{job.state}, given up: {job.given_up}")
    assert len(world.control.of("c")) == ({"split": 3, "merge": 1}[kind] if job.state == "done" else len(ranges))


@pytest.mark.parametrize("seed", range(3))
def test_what_is_cancelled_leaves_nothing_behind(tmp_path: Path, seed: int) -> None:
    job = Running("split", "1", {})
    world = _run(tmp_path, seed, [(0, HASH_SPACE)], job, lost=0.02, kills=0.2, cancel=True)
    assert job.state in ("cancelled", "done")
    assert len(world.control.of("c")) == (1 if job.state == "cancelled" else 2)


def test_a_seal_that_lasts_too_long_is_lifted_and_the_job_ends_at_last(tmp_path: Path,
                                                                       monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reshard, "MOST_ATTEMPTS", 2)
    job = Running("split", "1", {})
    world = _run(tmp_path, 3, [(0, HASH_SPACE)], job, seal_s=0.0)
    assert job.state == "failed"
    assert job.data == {} or job.phase == "failed"
    assert len(world.control.of("c")) == 1


def test_shards_that_differ_from_what_they_were_copied_from_are_not_switched_to(tmp_path: Path) -> None:
    job = Running("split", "1", {})
    world = World(tmp_path, Random(1), [(0, HASH_SPACE)])

    async def whole() -> None:
        operation = make_operation(world, "split")
        world.apply(1, UpsertBatch((1,), np.ones((1, DIM), np.float32), (b"{}",)))
        while job.phase != "seal":
            job.note(await operation.step(job, world))
            await asyncio.sleep(0.005)
        world.apply(2, UpsertBatch((10**6,), np.ones((1, DIM), np.float32), (b"{}",)))
        await _drive(world, operation, job)
        assert job.state == "failed"
        assert [one.group for one in world.control.of("c")] == list(world.control.shards) == [1]
        world.replicas_by_group[1].check_sealed(None)
        await world.close()

    asyncio.run(whole())
