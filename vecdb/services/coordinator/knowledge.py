"""What a node knows of collections, shards and groups, and how it finds out what it does not.

**Collections** that this node has not heard of are looked for in the control group as it is now before anybody is told
that there are none: another node may have made them a moment ago.  So is what a session must have seen: a shard that it
wrote to and this node has not heard of, or one that it has dropped and this node still has.

**Shards that others took the place of** (:meth:`Knowledge.inherits`).  A session that wrote to a shard before it was
split names that shard, and a place in its log which the logs of its successors know nothing of.  Whatever was
acknowledged there is in them since calls go to them, so such a read asks its shard's leader how far it must have come;
once for each replica, for that does not go back.
"""

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from random import Random
from typing import Final

from vecdb.cluster.control import CollectionEntry, ControlState, ShardEntry
from vecdb.cluster.routing import Ring
from vecdb.core.calls import Call
from vecdb.core.cluster import ShardState
from vecdb.core.errors import CollectionNotFound, DeadlineExceeded, StaleShardMap, Unavailable, VecdbError
from vecdb.ports.clock import Clock
from vecdb.ports.peers import Peers
from vecdb.ports.replicator import Replicator
from vecdb.services.barriers import Barriers
from vecdb.services.coordinator.cut_off import CutOff
from vecdb.services.leaders import LONGEST_S, PAUSE_S, Leaders, Task
from vecdb.services.operations.placing import held_before
from vecdb.services.passing import copy_of
from vecdb.services.replicas import CONTROL, Controlled, OwnReplicas
from vecdb.services.unreachable import GONE

ASK_S: Final = 2.0
"""For questions to nodes that need not answer: who has what, who leads."""
LEARN_S: Final = 5.0
UNFOUNDED_S: Final = 0.5
"""How long a collection that is not known here is looked for; by a node that knows of nothing."""


@dataclass(frozen=True, slots=True)
class Cluster:
    """``me``: this node; ``nodes``: all of the cluster."""

    me: str
    nodes: Sequence[str]


@dataclass(slots=True)
class Counts:
    """What was done by way of other nodes, and what came of it; by what it is."""

    handed_on: dict[str, int] = field(default_factory=dict)

    def add(self, what: str) -> None:
        self.handed_on[what] = self.handed_on.get(what, 0) + 1


@dataclass(frozen=True, slots=True)
class Shards:
    """A collection and where its records are, as of one control state."""

    entry: CollectionEntry
    ring: Ring[ShardEntry]

    @property
    def name(self) -> str:
        return self.entry.name

    @property
    def all(self) -> tuple[ShardEntry, ...]:
        return self.ring.shards


class Knowledge:
    """Belongs to one event loop."""

    def __init__(self, cluster: Cluster, own: OwnReplicas, control: Controlled, peers: Peers, clock: Clock,
                 random: Random, counts: Counts) -> None:
        self.cluster = cluster
        self.own = own
        self.control = control
        self.peers = peers
        self.clock = clock
        self.random = random
        self.counts = counts
        self.leaders = Leaders(cluster.me, own.leader, self.ask_leader, clock, random)
        self.barriers = Barriers(self._read_index)
        self._elsewhere = Barriers(lambda group: self._read_index(group, elsewhere=True))
        self.cut_off = CutOff(self.leaders.alone, lambda group: own.leader(group) not in (None, cluster.me), clock)
        self._state: ControlState | None = None
        self._rings: dict[str, Shards] = {}
        self._held_before: tuple[ControlState | None, dict[int, tuple[str, ...]]] = (None, {})
        self._whole: dict[int, Replicator] = {}
        """Replicas here that have all that their shards were made from."""

    # --- collections ------------------------------------------------------------------------------

    def known(self, name: str) -> Shards | None:
        """The collection as this node knows it."""
        state = self.control.state
        if state is not self._state:
            self._state, self._rings = state, {}
            self._whole = {group: one for group, one in self._whole.items() if group in state.shards}
        found = self._rings.get(name)
        if found is None and name in state.collections:
            found = self._rings[name] = Shards(state.collections[name], Ring(state.of(name)))
        return found

    async def shards(self, name: str, call: Call) -> Shards:
        """The collection, as this node knows it, or as the control group does; ``CollectionNotFound``."""
        self.check_hears(call)
        found = self.known(name)
        if found is not None and (not call.session or not self._behind(found.entry, call)):
            return found
        # What is asked for, or what the session has written to or dropped, may be newer than what this node has heard.
        try:
            await self.learn(self.brief(call, LEARN_S))
        except (Unavailable, DeadlineExceeded, TimeoutError) as error:
            call.check()
            if found is not None:  # of what the session wrote to this one may be a predecessor
                raise Unavailable(f"the session wrote to a shard of {name!r} that this node has not heard of",
                                  collection=name, retry_after_s=0.5) from error
            raise Unavailable(f"this node knows of no collection {name!r}, and the control group, which would know, "
                              "has no leader that answers", collection=name, retry_after_s=0.5) from error
        found = self.known(name)
        if found is None:
            raise CollectionNotFound(name)
        return found

    def check_hears(self, call: Call) -> None:
        """Raise ``Unavailable`` where a disk has ended this node's replica of the control group, and the caller knows
        of other nodes: whatever becomes of shards from then on, this one does not hear of it.
        """
        replicator = self.control.replicator if call.elsewhere else None
        if replicator is not None and (status := replicator.status()).state == "halted":
            raise Unavailable(f"this node hears of no changes to shards any more: {status.error}", elsewhere=True)

    def _behind(self, entry: CollectionEntry, call: Call) -> bool:
        """Whether the session has seen what this node has not: a shard it has not heard of, or knows as one that is
        being filled and was written to, or that it still has and was dropped.
        """
        state = self.control.state
        for shard, place in call.session:
            if shard >= state.next_group:
                return True
            if shard in entry.groups and (place >= GONE or (
                    place and shard in entry.apart and state.shards[shard].state is ShardState.LOADING)):
                return True
        return False

    def brief(self, call: Call, most_s: float) -> Call:
        """For learning; who knows nothing yet is not asked for long, as another node may know something."""
        if not self.control.state.log_index:
            most_s = UNFOUNDED_S
        return Call(deadline=min(self.leaders.deadline(call), self.clock.monotonic() + most_s),
                    elsewhere=call.elsewhere)

    async def learn(self, call: Call) -> None:
        """Return once this node knows of every collection that was made or dropped before the call."""
        async with asyncio.timeout_at(self.own.until(call)):
            log_index = await self.index(CONTROL, call)
        await self.know(log_index, call)

    async def know(self, log_index: int, call: Call) -> None:
        """Return once this node has applied so much of the control group's log, be it that it has just started."""
        while True:
            try:
                await self.own.replicator(CONTROL).wait_applied(log_index, self.own.until(call))
                return
            except Unavailable:
                call.check()
                if self.clock.monotonic() + PAUSE_S[1] >= self.leaders.deadline(call):
                    raise
            await asyncio.sleep(PAUSE_S[1])

    # --- shards -----------------------------------------------------------------------------------

    def still(self, shard: ShardEntry) -> None:
        """Raise where calls do not go to this shard any more, as far as is known: ``CollectionNotFound`` for one that
        went with its collection, ``StaleShardMap`` for one that others took the place of.
        """
        state = self.control.state
        now = state.shards.get(shard.group)
        if now is not None and now.state is ShardState.ACTIVE:
            return
        if now is None and shard.group >= state.next_group:
            return  # this node has lost its state, and hears of it again
        found = state.collections.get(shard.name)
        if found is None or found.created > shard.created:
            raise CollectionNotFound(shard.name)
        raise stale(shard.name, shard.group, state.epoch)

    def shard(self, name: str, group: int) -> ShardEntry:
        """A shard of a collection by its number; ``StaleShardMap`` where calls do not go to it."""
        state = self.control.state
        found = state.shards.get(group)
        if found is None or found.name != name or found.state is not ShardState.ACTIVE:
            if name not in state.collections:
                raise CollectionNotFound(name)
            raise stale(name, group, state.epoch)
        return found

    def members(self, shard: ShardEntry) -> list[str]:
        """The nodes of the group, as its replica here knows them; where there is none that does, those that it is
        placed on, and while it moves those that it was on: it may be they alone who have it.
        """
        status = self.own.look(shard.group)
        known = () if status is None else (*status.voters, *status.learners, *status.joining)
        if known:
            return list(dict.fromkeys((*(one.rpartition("/")[0] for one in known), *shard.nodes)))
        state = self.control.state
        if self._held_before[0] is not state:
            self._held_before = (state, held_before(state))
        return list(dict.fromkeys((*shard.nodes, *self._held_before[1].get(shard.group, ()))))

    def zone(self, node: str) -> str:
        """Where a node is, as it has announced."""
        found = self.control.state.nodes.get(node)
        return "" if found is None else found.zone

    def inherits(self, shard: ShardEntry, call: Call) -> bool:
        """Whether the session names shards that this one may have its records from: see the module."""
        state = self.control.state
        entry = state.collections.get(shard.name)
        if not call.session or entry is None or entry.created == shard.created:
            return False
        return any(0 < place < GONE and one < shard.group and one not in entry.shards
                   and not _of_another(state, one, shard) for one, place in call.session)

    def is_whole(self, group: int) -> bool:
        """Whether the replica here is known to have all that its shard was made from."""
        with suppress(VecdbError):
            return self._whole.get(group) is self.own.replicator(group)
        return False

    def note_whole(self, group: int) -> None:
        """It has what was committed after calls went to it."""
        with suppress(VecdbError):
            self._whole[group] = self.own.replicator(group)

    # --- leaders ----------------------------------------------------------------------------------

    async def ask_leader(self, group: int, node: str) -> str | None:
        """Who leads, as that node knows it."""
        call = Call(deadline=self.clock.monotonic() + ASK_S)
        status = (await self.peers.replicas(node).status([group], call)).get(group)
        return None if status is None or status.leader is None else status.leader.rpartition("/")[0]

    def task(self, shard: ShardEntry, call: Call, *, once: bool = False, reads: bool = False) -> Task:
        """Something to be asked of the leader of a shard."""
        return Task(shard.group, self.members(shard), call, once=once, reads=reads, still=lambda: self.still(shard),
                    name=shard.name, elsewhere=call.elsewhere)

    async def index(self, group: int, call: Call) -> int:
        """Where the log is now, as its leader says; ``Unavailable`` soon where this node reaches no other member, for
        a caller who knows of other nodes.
        """
        if not call.elsewhere:
            return await self.barriers.index(group)
        try:
            return await self._elsewhere.index(group)
        except Unavailable as error:
            if error.fields.get("elsewhere"):
                self.cut_off.note(group)
            raise

    async def _read_index(self, group: int, *, elsewhere: bool = False) -> int:
        """For :class:`Barriers`, which ends it when nobody waits."""
        call = Call(deadline=self.clock.monotonic() + LONGEST_S, elsewhere=elsewhere)

        async def ask(node: str) -> int:
            if node == self.cluster.me:
                return await self.own.read_index(group, call)
            return await self.peers.replicas(node).read_index(group, copy_of(call))

        if group == CONTROL:
            return await self.leaders.ask(Task(group, self.cluster.nodes, call, reads=True, elsewhere=elsewhere),
                                          ask)
        shard = self.control.state.shards.get(group)
        if shard is None:
            raise Unavailable(f"this node knows of no group {group}", group=group)
        return await self.leaders.ask(self.task(shard, call, reads=True), ask)

    def deadline_near(self, call: Call, seconds: float) -> bool:
        return self.clock.monotonic() + seconds >= self.leaders.deadline(call)


def _of_another(state: ControlState, group: int, shard: ShardEntry) -> bool:
    """Whether a group is known to be of another collection: its places say nothing of this one."""
    found = state.shards.get(group)
    return found is not None and found.name != shard.name


def stale(name: str, group: int, epoch: int) -> StaleShardMap:
    return StaleShardMap(f"shard {group} of {name!r} is no more: others took its place", collection=name, shard=group,
                         epoch=epoch)

