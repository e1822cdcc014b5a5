"""What of a node steers the cluster, put together: members of groups that it leads, jobs, what it tells operators."""

import asyncio
from contextlib import suppress
from typing import Final

from vecdb.cluster.control import ControlState, ShardEntry, node_of
from vecdb.core.calls import Call
from vecdb.core.cluster import ShardState
from vecdb.core.errors import VecdbError
from vecdb.ports.clock import Clock
from vecdb.ports.peers import Peers, Replicas
from vecdb.ports.replicator import ReplicaStatus
from vecdb.ports.tell import Tell
from vecdb.services.control import Control
from vecdb.services.keeping import MemberKeeper, Wanted
from vecdb.services.replicas import OwnReplicas

ASK_S: Final = 2.0


class Governing:
    """Belongs to one event loop.  ``own``, ``peers``: replicas here and elsewhere."""

    def __init__(self, me: str, control: Control, own: OwnReplicas, peers: Peers, clock: Clock, tell: Tell) -> None:
        self._me = me
        self._own = own
        self._peers = peers
        self._clock = clock
        self._control = control
        self._keeper = MemberKeeper(me, own, lambda: wanted(control.state), peers.replicas, clock, tell=tell)

    def start(self) -> None:
        """Begin; returns at once."""
        self._keeper.start()

    async def stop(self) -> None:
        """Change nothing any more."""
        await self._keeper.stop()

    def replicas(self, node: str) -> Replicas:
        """Of any node."""
        return self._own if node == self._me else self._peers.replicas(node)

    async def leader(self, group: int, nodes: tuple[str, ...]) -> ReplicaStatus | None:
        """What the leader of a group says of it, as far as it is on one of these nodes and answers."""

        async def ask(node: str) -> ReplicaStatus | None:
            with suppress(VecdbError):
                call = Call(deadline=self._clock.monotonic() + ASK_S)
                return (await self.replicas(node).status([group], call)).get(group)
            return None

        found = [one for one in await asyncio.gather(*map(ask, nodes)) if one is not None and one.role == "leader"]
        return max(found, key=lambda one: one.term) if found else None


async def is_member(me: str, governing: Governing, entry: ShardEntry) -> bool:
    """Whether this node has a replica of a shard that its group counts; True where its leader does not say."""
    status = await governing.leader(entry.group, entry.desired)
    return status is None or me in map(node_of, (*status.voters, *status.learners, *status.joining))


def wanted(state: ControlState) -> list[Wanted]:
    """The nodes that every shard should be on; one that is retired is left as it is."""
    return [Wanted(entry.group, entry.desired, entry.name) for entry in state.shards.values()
            if entry.state is not ShardState.RETIRED]
