"""Proposing to a group from any node of the cluster, and the replicas of this node that a copier may read."""

from random import Random
from typing import Protocol, cast

from vecdb.cluster.control import ControlState
from vecdb.core.calls import Call
from vecdb.core.errors import CollectionNotFound, Unavailable
from vecdb.ports.clock import Clock
from vecdb.ports.copies import CopyTarget
from vecdb.ports.peers import Peers
from vecdb.services.copying import Followed
from vecdb.services.leaders import Leaders, Task
from vecdb.services.passing import copy_of
from vecdb.services.replicas import OwnReplicas

ASK_S = 2.0


class Stated(Protocol):
    """The control group: :class:`vecdb.services.control.Control`."""

    @property
    def state(self) -> ControlState: ...


class Machines(Protocol):
    """What this node holds: :class:`vecdb.services.hosting.Hosting`."""

    def machine(self, label: str) -> object: ...


class Proposer:
    """A :class:`vecdb.services.copying.Propose`.  Belongs to one event loop."""

    def __init__(self, me: str, own: OwnReplicas, control: Stated, peers: Peers, clock: Clock, random: Random) -> None:
        self._me = me
        self._own = own
        self._control = control
        self._peers = peers
        self._clock = clock
        self._leaders = Leaders(me, own.leader, self._ask_leader, clock, random)

    async def _ask_leader(self, group: int, node: str) -> str | None:
        status = (await self._peers.replicas(node).status([group], Call(self._clock.monotonic() + ASK_S))).get(group)
        return None if status is None or status.leader is None else status.leader.rpartition("/")[0]

    async def __call__(self, target: CopyTarget, command: bytes, seconds: float) -> object:
        group, call = target.group, Call(deadline=self._clock.monotonic() + seconds)

        def still() -> None:
            if self._control.state.was_dropped(group):
                raise CollectionNotFound(f"group {group}")

        async def ask(node: str) -> object:
            mine = copy_of(call)
            if node == self._me:
                return await self._own.propose(group, command, mine)
            return await self._peers.replicas(node).propose(group, command, mine)

        still()
        entry = self._control.state.shards.get(group)
        nodes = target.nodes if entry is None else tuple(dict.fromkeys((*entry.desired, *target.nodes)))
        return await self._leaders.ask(Task(group, nodes, call, still=still), ask)


class Sources:
    """This node's replicas by group, for :class:`vecdb.services.copying.Copying`."""

    def __init__(self, control: Stated, hosting: Machines) -> None:
        self._control = control
        self._hosting = hosting

    def __call__(self, group: int) -> Followed:
        entry = self._control.state.shards.get(group)
        if entry is None:
            raise Unavailable(f"this node knows of no group {group}", group=group)
        return cast(Followed, self._hosting.machine(entry.label))
