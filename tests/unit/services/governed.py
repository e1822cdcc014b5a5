"""A control group without Raft, and groups whose members follow what is wanted as slowly as a test likes."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from vecdb.cluster.control import (
    ControlState,
    JobEntry,
    NodeEntry,
    apply,
    create_shards,
    job_put,
    node_put,
)
from vecdb.cluster.loads import ShardLoad
from vecdb.core.cluster import HASH_SPACE, Role
from vecdb.core.errors import NotLeader, Unsupported, VecdbError
from vecdb.core.schema import CollectionSchema
from vecdb.ports.replicator import Committed, ReplicaStatus
from vecdb.ports.tell import tell_nobody


class TestClock:
    __test__ = False

    def __init__(self) -> None:
        self.now = 1_000.0

    def monotonic(self) -> float:
        return self.now

    def wall(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


class Governed:
    """Meets the governor's ``Controlled`` and ``Heard``, and an operation's ``Context``."""

    me = "c1"
    tell = staticmethod(tell_nobody)

    def __init__(self, nodes: int = 5, zones: str = "a") -> None:
        self.now = ControlState()
        self.clock = TestClock()
        self.silent: dict[str, float] = {}
        self.leads = True
        self.term = 1
        self.behind: list[bytes] = []
        """Commands of the leader before, which were committed and are not applied yet."""
        self.there: dict[int, tuple[str, ...]] = {}
        self.measured: dict[int, ShardLoad] = {}
        self.stuck: set[str] = set()
        """Nodes that no replica gets to."""
        for at in range(1, nodes + 1):
            self.do(node_put(NodeEntry(f"n{at}", f"h{at}:1", role=Role.SHARD, zone=zones[at % len(zones)], commands=2,
                                       joined_s=1.0)))

    def collection(self, name: str, *shards: tuple[str, ...]) -> None:
        width = HASH_SPACE // len(shards)
        self.do(create_shards(CollectionSchema(name, 4), [
            (at * width, HASH_SPACE if at == len(shards) - 1 else (at + 1) * width, [f"{node}/1" for node in nodes])
            for at, nodes in enumerate(shards)], len(shards[0]), None))
        for group in self.now.get(name).shards:
            self.there[group] = self.now.shards[group].desired

    def do(self, command: bytes) -> object:
        done = apply(self.now, self.now.log_index + 1, 1, command)
        self.now = done.state
        if isinstance(done.outcome, VecdbError):
            raise done.outcome
        return done.outcome

    def begin(self, kind: str, target: str, **args: Any) -> JobEntry:
        made = self.do(job_put(kind, target, args, at_s=self.clock.now))
        assert isinstance(made, JobEntry)
        return made

    def move(self) -> None:
        """Groups do one thing each: a replica comes, or one that is too many goes."""
        for group, here in self.there.items():
            entry = self.now.shards.get(group)
            if entry is None:
                continue
            new = [node for node in entry.desired if node not in here and node not in self.stuck]
            extra = [node for node in here if node not in entry.desired]
            if new:
                self.there[group] = (*here, new[0])
            elif extra and set(entry.desired) <= set(here):
                self.there[group] = tuple(node for node in here if node != extra[0])

    # --- Controlled, Heard, Context ---------------------------------------------------------------

    def state(self) -> ControlState:
        return self.now

    @property
    def replicator(self) -> Any:
        return self

    def status(self) -> ReplicaStatus:
        role = "leader" if self.leads else "follower"
        return ReplicaStatus("c1/1", "ok", role, self.term, "c1/1", 1, 1, 1, 1, 0, ("c1/1",))

    async def read_index(self, deadline: float | None) -> int:
        if not self.leads:
            raise NotLeader("c2 leads", leader="c2/1")
        self._catch_up()
        return self.now.log_index

    def _catch_up(self) -> None:
        behind, self.behind = self.behind, []
        for one in behind:
            self.now = apply(self.now, self.now.log_index + 1, 1, one).state

    async def propose(self, command: bytes, deadline: float | None = None) -> Any:
        if not self.leads:
            raise NotLeader("c2 leads", leader="c2/1")
        self._catch_up()
        done = apply(self.now, self.now.log_index + 1, 1, command)
        self.now = done.state
        return Committed(self.now.log_index, done.outcome) if deadline is not None else done.outcome

    async def leader(self, group: int) -> ReplicaStatus | None:
        here = self.there.get(group)
        return None if here is None else ReplicaStatus(
            f"{here[0]}/1", "ok", "leader", 1, f"{here[0]}/1", 1, 1, 1, 1, 0, tuple(f"{one}/1" for one in here))

    def replicas(self, node: str) -> Any:
        class Replicas:
            async def status(_, groups: Any, call: Any) -> dict[int, ReplicaStatus]:  # noqa: N805
                found = {group: await self.leader(group) for group in groups}
                return {group: one for group, one in found.items()
                        if one is not None and one.me.startswith(f"{node}/")}

        return Replicas()

    def heard_s(self, node: str) -> float:
        return self.silent.get(node, 0.0)

    def word_s(self, node: str) -> float:
        return self.silent.get(node, 0.0)

    def stats(self, node: str) -> Mapping[str, float]:
        return {}

    @asynccontextmanager
    async def deciding(self, job: int) -> AsyncIterator[None]:
        yield

    def shard_loads(self) -> Mapping[int, ShardLoad]:
        return self.measured


class Control:
    """The same, as the governor has it: its state is an attribute."""

    def __init__(self, governed: Governed) -> None:
        self._governed = governed

    @property
    def state(self) -> ControlState:
        return self._governed.now

    @property
    def replicator(self) -> Any:
        return self._governed

    def check_read(self, version: int) -> None:
        """As :meth:`vecdb.services.control.Control.check_read`."""
        old = [one.name for one in self._governed.now.nodes.values() if one.commands < version]
        if old:
            raise Unsupported(f"{old} would not understand it", nodes=old)
