"""The shards of a cluster: who holds what, whether all hold the same, leadership handed over."""

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from vecdb.cluster.control import ShardEntry
from vecdb.core.calls import Call
from vecdb.core.cluster import ShardState
from vecdb.core.errors import (
    DataCorrupted,
    DeadlineExceeded,
    InvalidArgument,
    NodeRemoved,
    StorageError,
    Unavailable,
    Unsupported,
    VecdbError,
)
from vecdb.core.shards import (
    CATCHING_UP,
    UNCHECKED,
    UNREACHABLE,
    ReplicaDigest,
    ReplicaInfo,
    ShardInfo,
    ShardVerification,
)
from vecdb.ports.clock import Clock
from vecdb.ports.peers import Peers, Replicas
from vecdb.ports.replicator import Committed, ReplicaStatus
from vecdb.services.leaders import Task
from vecdb.services.passing import copy_of
from vecdb.services.replicas import CONTROL, Controlled, Engine, OwnReplicas
from vecdb.services.replicated import Cluster, ReplicatedNode
from vecdb.shard.codec import encode
from vecdb.shard.marks import Mark, MarkResult

ANSWER_S: Final = 2.0
"""For a node to say how its replicas are; who does not is unreachable."""
LOOK_S: Final = 0.05
"""From one look for a new leader to the next."""
MARK_S: Final = 10.0
"""For a replica to come to a mark, at a time; who comes no nearer in :data:`STILL_S` is behind."""
STILL_S: Final = 30.0
LED_S: Final = 10.0
"""For a shard to have a leader who makes a mark: longer than elections take."""
REPLY_S: Final = 1.0
"""Of the time that a comparison has, what is kept for its answer; at most a quarter of it."""

WHY_CHARACTERS: Final = 200


class Statuses(dict[str, dict[int, ReplicaStatus]]):
    """By node; nodes that did not answer are left out.  ``away``: why those did not, as far as that is known."""

    def __init__(self, found: Mapping[str, dict[int, ReplicaStatus]] | None = None,
                 away: Mapping[str, str] | None = None) -> None:
        super().__init__(found or {})
        self.away = dict(away or {})

    def lacks(self, node: str, what: str = "such replica") -> str:
        """Why nothing is known of a node's replica."""
        if node in self:
            return f"it has no {what}"
        return f"it does not answer ({self.away[node]})" if self.away.get(node) else "it does not answer"


class ClusterShards:
    """A :class:`vecdb.ports.shards.Shards`.  Belongs to one event loop."""

    def __init__(self, cluster: Cluster, node: ReplicatedNode, own: OwnReplicas, control: Controlled, engine: Engine,
                 peers: Peers, clock: Clock) -> None:
        self._cluster = cluster
        self._node = node
        self._own = own
        self._control = control
        self._engine = engine
        self._peers = peers
        self._clock = clock

    def _replicas(self, node: str) -> Replicas:
        return self._own if node == self._cluster.me else self._peers.replicas(node)

    def _brief(self, call: Call, seconds: float) -> Call:
        now = self._clock.monotonic()
        until = now + seconds if call.deadline is None else min(call.deadline, now + seconds)
        return Call(until, None, call.request_id, call.principal)

    # --- how they are -----------------------------------------------------------------------------

    async def list(self, name: str | None, call: Call) -> "list[ShardInfo]":
        if name is not None:
            entries = await self._node.shards(name, call)
            nodes = dict.fromkeys(node for entry in entries for node in self._node.members(entry))
            statuses = await self._statuses(nodes, [entry.group for entry in entries], call)
            return [_info(name, entry.group, entry.nodes, statuses, entry.state, self._wanted(entry))
                    for entry in entries]
        statuses = await self._statuses(self._cluster.nodes, [], call)
        every = sorted(self._control.state.shards.values(), key=lambda one: (one.name, one.lo, one.group))
        return [_info("", CONTROL, self._cluster.nodes, statuses),
                *(_info(one.name, one.group, one.nodes, statuses, one.state, self._wanted(one)) for one in every)]

    def _wanted(self, entry: ShardEntry) -> int:
        """How many replicas a shard is to have that calls go to."""
        collection = self._control.state.collections.get(entry.name)
        return 0 if collection is None or entry.state is not ShardState.ACTIVE else collection.replication_factor

    async def _statuses(self, nodes: Iterable[str], groups: Sequence[int], call: Call) -> Statuses:
        found, away = dict[str, dict[int, ReplicaStatus]](), dict[str, str]()

        async def ask(node: str) -> None:
            try:
                async with asyncio.timeout(ANSWER_S):
                    found[node] = await self._replicas(node).status(groups, self._brief(call, ANSWER_S))
            except VecdbError as error:
                away[node] = error.message.removeprefix(f"node {node} cannot be reached: ")[:WHY_CHARACTERS]
            except TimeoutError:
                pass

        asked = list(nodes)
        await asyncio.gather(*map(ask, asked))
        return Statuses({node: found[node] for node in asked if node in found}, away)

    # --- whether they hold the same ---------------------------------------------------------------

    async def verify(self, name: str, call: Call, *, deep: bool = False) -> ShardVerification:
        """All replicas at one mark, which is made for it; where nobody leads none is, and each replica says so."""
        entry = await self._node.one_shard(name, call)
        members = self._node.members(entry)
        command = encode(Mark())
        now = self._clock.monotonic()
        if call.deadline is not None:
            call = self._brief(call, call.deadline - now - min(REPLY_S, (call.deadline - now) / 4))
        mine = self._brief(call, LED_S if call.deadline is None else min(LED_S, (call.deadline - now) / 2))

        async def propose(node: str) -> Committed:
            return await self._replicas(node).propose(entry.group, command, copy_of(mine))

        try:
            done = await self._node.leaders.ask(Task(entry.group, members, mine, reads=True,
                                                     still=lambda: self._node.still(entry), name=name), propose)
        except NodeRemoved:
            raise
        except (Unavailable, DeadlineExceeded) as error:
            return await self._unmarked(name, entry, members, call, error)
        told = await asyncio.gather(*(self._digest(node, entry, done.log_index, call, deep) for node in members))
        found = [one for one in told if one is not None]
        held = {(one.digest, one.records) for one in found if one.digest}
        agree = len(held) <= 1 and all(one.state != "damaged" for one in found)
        return ShardVerification(name, entry.group, done.log_index, tuple(sorted(found, key=lambda one: one.name)),
                                 agree=agree, complete=all(one.digest for one in found))

    async def _unmarked(self, name: str, entry: ShardEntry, members: Sequence[str], call: Call, error: VecdbError
                        ) -> ShardVerification:
        """Of a shard without a place to compare at; raises ``error`` where the others do not answer, either, for they
        may tell more to who asks them.
        """
        statuses = await self._statuses(members, [entry.group], call)
        if not any(entry.group in found for node, found in statuses.items() if node != self._cluster.me):
            raise error
        shard = _info(name, entry.group, members, statuses, entry.state)
        why = f"{shard.leader} leads, and did not mark a place in the log in time" if shard.leader else \
            "nobody leads the shard, so no place in its log can be marked to compare at"
        told = [ReplicaDigest(one.name, one.state if one.state == UNREACHABLE else UNCHECKED, error=one.error or why)
                for one in shard.replicas]
        return ShardVerification(name, entry.group, 0, tuple(told), agree=True, complete=False)

    async def _marked(self, node: str, group: int, log_index: int, status: ReplicaStatus, call: Call) -> MarkResult:
        """``DeadlineExceeded`` of a replica that is not there in time, or comes no nearer: one that replays its log
        takes as long as it takes.
        """
        applied, since = status.applied, self._clock.monotonic()
        while True:
            try:
                return await self._replicas(node).mark(group, log_index, self._brief(call, MARK_S))
            except (DeadlineExceeded, Unavailable):
                now = self._clock.monotonic()
                found = (await self._statuses([node], [group], call)).get(node, {}).get(group)
                if found is not None and found.applied != applied:
                    applied, since = found.applied, now
                if found is None or found.applied >= log_index or now - since >= STILL_S \
                        or (call.deadline is not None and now >= call.deadline):
                    raise
            await asyncio.sleep(LOOK_S)

    async def _digest(self, node: str, entry: ShardEntry, log_index: int, call: Call, deep: bool
                      ) -> ReplicaDigest | None:
        statuses = await self._statuses([node], [entry.group], call)
        status = statuses.get(node, {}).get(entry.group)
        if status is None:
            placed = next((one for one in entry.replicas if one.rpartition("/")[0] == node), node)
            return ReplicaDigest(placed, UNREACHABLE, error=statuses.lacks(node, "replica"))
        try:
            mark = await self._marked(node, entry.group, log_index, status, call)
        except DeadlineExceeded:
            return ReplicaDigest(status.me, "behind", error=f"it has applied {status.applied} of {log_index}")
        except VecdbError as error:
            return ReplicaDigest(status.me, status.state if status.state != "ok" else "behind", error=error.message)
        return await self._deep(node, entry, status.me, mark, call) if deep else \
            ReplicaDigest(status.me, "ok", mark.digest, mark.records)

    async def _deep(self, node: str, entry: ShardEntry, replica: str, mark: MarkResult, call: Call) -> ReplicaDigest:
        """Every record read again: held against what the replica remembers of the moment it ends in."""
        own = self._engine if node == self._cluster.me else self._peers.node(node)
        mine = Call(call.deadline, None, call.request_id, call.principal)
        try:
            found = await own.verify(entry.label, mine)
        except DataCorrupted as error:
            return ReplicaDigest(replica, "damaged", mark.digest, mark.records, "", error.message)
        except StorageError as error:  # its disk is full, say: what is on it may be as good as that of the others
            return ReplicaDigest(replica, UNCHECKED, error=error.message)
        except VecdbError as error:  # busy, stopping, cut off: of its records that says nothing
            return ReplicaDigest(replica, UNREACHABLE, error=error.message)
        equal = bool(found["equal"])
        return ReplicaDigest(replica, "ok" if equal else "damaged", mark.digest, mark.records, str(found["computed"]),
                             "" if equal else f"its records have {found['computed']}, and it remembers "
                             f"{found['digest']}")

    # --- who leads --------------------------------------------------------------------------------

    async def transfer(self, name: str, to: str | None, call: Call) -> None:
        entry = await self._node.one_shard(name, call) if name else None
        group = CONTROL if entry is None else entry.group
        nodes = list(self._cluster.nodes) if entry is None else self._node.members(entry)
        statuses = await self._statuses(nodes, [group], call)
        names = [status[group].me for status in statuses.values() if group in status and status[group].state == "ok"]
        target = None if to is None else _target(to, names)
        if len(nodes) < 2:
            raise Unsupported(f"{nodes[0]} holds the only replica: there is nobody to hand the leadership to")
        if target is not None and any(status[group].role == "leader" and status[group].me == target
                                      for status in statuses.values() if group in status):
            return

        mine = self._brief(call, MARK_S)

        async def ask(node: str) -> None:
            await self._replicas(node).transfer(group, target, copy_of(mine))

        await self._node.leaders.ask(Task(group, nodes, mine, reads=True, name=name), ask)
        await self._led_again(group, nodes, name, call)

    async def _led_again(self, group: int, nodes: Iterable[str], name: str, call: Call) -> None:
        """A leader gives up before the next is elected, and another than the one meant may be: wait for whoever it is.
        """
        until = self._node.leaders.deadline(call)
        while True:
            statuses = await self._statuses(nodes, [group], call)
            if any(status[group].role == "leader" for status in statuses.values() if group in status):
                return
            if self._clock.monotonic() + LOOK_S >= until:
                raise Unavailable(f"the leadership of {repr(name) if name else 'the control group'} was given up, and "
                                  "no replica leads in its place yet", retry_after_s=LOOK_S)
            await asyncio.sleep(LOOK_S)


def _target(to: str, names: Iterable[str]) -> str:
    """A replica by its name or its node's."""
    known = sorted(names)
    found = next((one for one in known if to in (one, one.rpartition("/")[0])), None)
    if found is None:
        raise InvalidArgument("to", f"{to[:100]!r} holds no replica that could lead", got=to[:100],
                              limit=", ".join(known))
    return found


def _info(name: str, group: int, nodes: Iterable[str], statuses: Statuses,
          state: ShardState = ShardState.ACTIVE, wanted: int = 0) -> ShardInfo:
    """What the nodes said of one group."""
    here = {node: found[group] for node, found in statuses.items() if group in found}
    leading = max((one for one in here.values() if one.role == "leader"), key=lambda one: one.term, default=None)
    config = leading or max(here.values(), key=lambda one: (one.term, one.commit), default=None)
    voters, learners = ((), ()) if config is None else (config.voters, (*config.learners, *config.joining))
    # Of the control group the other learners are observers, which stay without a vote.
    awaited = () if config is None else (*config.joining, *(config.learners if group != CONTROL else ()))
    infos = [_replica(node, status, leading, voters, learners, awaited) for node, status in here.items()]
    told = {info.name for info in infos}
    lost = [one for one in (*voters, *learners) if one not in told]
    infos += [ReplicaInfo(one, one.rpartition("/")[0], UNREACHABLE, "learner" if one in learners else "",
                          error=statuses.lacks(one.rpartition("/")[0])) for one in lost]
    named = {info.node for info in infos}
    infos += [ReplicaInfo(node, node, UNREACHABLE, member=False, error=statuses.lacks(node)) for node in nodes
              if node not in named]
    return ShardInfo(name, group, None if leading is None else leading.me,
                     tuple(sorted(infos, key=lambda one: one.name)), state.value, wanted)


def _replica(node: str, status: ReplicaStatus, leading: ReplicaStatus | None, voters: Iterable[str],
             learners: Iterable[str], awaited: Iterable[str]) -> ReplicaInfo:
    state = status.state
    if state in ("ok", "joining") and (status.me in awaited or not (status.current or leading is None)):
        state = CATCHING_UP
    role = "learner" if status.me in learners else status.role
    lag = -1 if leading is None else max(0, leading.commit - status.applied)
    behind = -1 if leading is None else max(0, leading.last - status.last)
    return ReplicaInfo(status.me, node, state, role, status.term, status.commit, status.applied, status.first,
                       status.last, status.log_bytes, lag, behind, status.me in voters or status.me in learners,
                       status.error)
