"""Where shards should be moved to: pure functions of the control state, for jobs and for whoever wants to see the plan.

Every planner answers with **wishes**: shards with the nodes they should be on, in the order in which they are best
moved.  They are asked anew while the moves go on, and are stable then: what they wished for and was done they do not
wish for again, so a job ends when they wish for nothing.

**What a replica may go to**: a node that is active, holds replicas (is no mere coordinator), has none of that shard and
is not away.  Of several it is the one whose zone has the fewest of the shard's other replicas, then the one with the
least load for its capacity, then the best rendezvous score (:mod:`~vecdb.cluster.placement`), so that many shards that
leave one node spread over the others.  Loads count what was wished for already.  Nodes whose disks are
nearly full come last, and are given nothing to make loads even; where that is so of all, no difference is made.

**Rebalancing** moves as little as it can: one replica at a time from the node that is fullest for its capacity to the
one that is emptiest, as long as one of the two is further from its share than a whole replica and
:data:`~vecdb.cluster.placement.SLACK`, and that brings them closer; never into a zone where the shard has more replicas
than in the one it leaves.  Replicas weigh 1, or what was measured of them says (:mod:`vecdb.cluster.loads`); then the
one is moved that comes nearest to making both even.  The sum of the squares of the loads falls with each, so it ends.
To make all exactly even would move twice as much when a node joins a hundred others (:mod:`vecdb.testing.scale`), and
gain nothing.
"""

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from vecdb.cluster.control import MAX_VOTERS, ControlState, NodeEntry, ShardEntry
from vecdb.cluster.placement import SLACK, Candidate, check_heard, score
from vecdb.core.cluster import NodeState, ShardState
from vecdb.core.errors import InvalidArgument, NoNodeForReplica, ShardNotFound

_ALIKE: Final[Mapping[int, float]] = {}
MOST_WISHES: Final = 100_000
"""Of one plan; more than there are replicas."""


@dataclass(frozen=True, slots=True)
class Wish:
    """A shard and the nodes it should be on."""

    group: int
    desired: tuple[str, ...]


class Away(list[str]):
    """Nodes that are not heard, and ``low``: those whose disks are nearly full."""

    def __init__(self, silent: Iterable[str] = (), low: Iterable[str] = ()) -> None:
        super().__init__(silent)
        self.low = frozenset(low)


class Room:
    """Who may be given replicas, and what everybody has; changes as wishes are made."""

    def __init__(self, state: ControlState, away: Collection[str] = (), weights: Mapping[int, float] = _ALIKE) -> None:
        """``weights``: of replicas by shard, 1 where nothing is said."""
        self.nodes: Mapping[str, NodeEntry] = state.nodes
        self.away = frozenset(away)
        low = away.low if isinstance(away, Away) else frozenset[str]()
        self.low = low if any(self.open(node) for node in self.nodes if node not in low) else frozenset[str]()
        self.load: Counter[str] = Counter()
        self._weights = weights
        self.least = min([1.0, *weights.values()])
        for entry in state.shards.values():
            self.moved((), entry.desired, self.weight(entry.group))

    def weight(self, group: int) -> float:
        return self._weights.get(group, 1)

    def open(self, node: str) -> bool:
        """Whether it may be given one more."""
        entry = self.nodes.get(node)
        return entry is not None and entry.state is NodeState.ACTIVE and entry.role.holds and node not in self.away

    def zone(self, node: str) -> str:
        entry = self.nodes.get(node)
        return "" if entry is None else entry.zone

    def fullness(self, node: str, more: float = 0) -> float:
        """Load for a unit of capacity."""
        entry = self.nodes.get(node)
        return (self.load[node] + more) / (1.0 if entry is None else entry.capacity)

    def best(self, group: int, keep: Sequence[str], without: Collection[str] = ()) -> str | None:
        """The node that a shard with replicas on ``keep`` should have another one on."""
        return self._best(group, keep, without, self.open)

    def _best(self, group: int, keep: Sequence[str], without: Collection[str], may: Callable[[str], bool]
              ) -> str | None:
        zones = Counter(map(self.zone, keep))
        able = [node for node in self.nodes if node not in keep and node not in without and may(node)]
        if not able:
            return None
        return min(able, key=lambda node: (node in self.low, zones[self.zone(node)], self.fullness(node, 1),
                                           -score(group, Candidate(node, self.nodes[node].capacity)), node))

    def silent(self, node: str) -> bool:
        """Whether it could be given one more, but for not being heard."""
        entry = self.nodes.get(node)
        return node in self.away and entry is not None and entry.state is NodeState.ACTIVE and entry.role.holds

    def placed(self, group: int, factor: int, without: Collection[str] = ()) -> tuple[str, ...]:
        """The nodes of a new shard with ``factor`` replicas, or as many as there are nodes: those that are heard first
        (:mod:`vecdb.cluster.placement`), which count as holding it from here on.  None where there are no nodes.

        Raises ``Unavailable`` where fewer than a majority of them are heard.
        """
        nodes: list[str] = []
        for able in (self.open, self.silent):
            while len(nodes) < factor and (other := self._best(group, nodes, without, able)) is not None:
                nodes.append(other)
        check_heard([nodes], self.away)
        self.moved((), nodes)
        return tuple(nodes)

    def moved(self, before: Iterable[str], after: Iterable[str], weight: float = 1) -> None:
        for node in before:
            self.load[node] -= weight  # type: ignore[assignment]  # a number of replicas, or what they weigh
        for node in after:
            self.load[node] += weight  # type: ignore[assignment]


def holding(state: ControlState) -> list[NodeEntry]:
    """Nodes that are given replicas, heard or not."""
    return [one for one in state.nodes.values() if one.state is NodeState.ACTIVE and one.role.holds]


def vacated(state: ControlState, node: str, away: Collection[str] = ()) -> list[Wish]:
    """A drain or a repair: every shard of ``node`` with another node in its place.

    Shards for which there is no other are left out: see :func:`homeless`.
    """
    room, wishes = Room(state, away), []
    for entry in _held_by(state, node):
        keep = [one for one in entry.desired if one != node]
        other = room.best(entry.group, keep, {node})
        if other is not None:
            wishes.append(_wish(room, entry, (*keep, other)))
    return wishes


def homeless(state: ControlState, node: str, away: Collection[str] = ()) -> list[ShardEntry]:
    """Shards of ``node`` that no other node could take its replica of."""
    room = Room(state, away)
    return [entry for entry in _held_by(state, node)
            if room.best(entry.group, [one for one in entry.desired if one != node], {node}) is None]


def replicated(state: ControlState, name: str, factor: int, away: Collection[str] = ()) -> list[Wish]:
    """Shards of a collection with ``factor`` replicas each; ``CollectionNotFound``, ``InvalidArgument``.

    A replica more goes where :class:`Room` says; one less is that of a node that is away or leaves, of the zone that
    has most, of the fullest.
    """
    if not 1 <= factor <= MAX_VOTERS:
        raise InvalidArgument("replication_factor", f"must be 1 to {MAX_VOTERS}", got=factor, limit=MAX_VOTERS)
    room, wishes = Room(state, away), []
    for entry in state.all_of(name):
        if entry.state is ShardState.RETIRED:
            continue
        after = list(entry.desired)
        while len(after) > factor:
            zones = Counter(map(room.zone, after))
            after.remove(max(after, key=lambda one: (not room.open(one), zones[room.zone(one)], room.fullness(one),
                                                     one)))
        while len(after) < factor and (other := room.best(entry.group, after)) is not None:
            after.append(other)
        if len(after) != len(entry.desired):
            wishes.append(_wish(room, entry, tuple(after)))
    return wishes


def lacking(state: ControlState, away: Collection[str] = ()) -> list[str]:
    """Collections with shards that have fewer replicas than they are to have, where a node could take one."""
    able = [one.name for one in holding(state) if one.name not in away]
    found = {}
    for entry in state.shards.values():
        collection = state.collections.get(entry.name)
        if collection is not None and entry.state is ShardState.ACTIVE \
                and len(entry.desired) < collection.replication_factor and not set(able) <= set(entry.desired):
            found[entry.name] = True
    return list(found)


def completed(state: ControlState, name: str, factor: int, away: Collection[str] = ()) -> list[Wish]:
    """The replicas that shards of a collection lack which calls go to; none is taken away, nor where it is to have
    another number by now.
    """
    if name not in state.collections or state.get(name).replication_factor != factor:
        return []
    return [one for one in replicated(state, name, factor, away) if state.shards[one.group].state is ShardState.ACTIVE
            and len(one.desired) > len(state.shards[one.group].desired)]


def moved(state: ControlState, group: int, source: str, to: str, away: Collection[str] = ()) -> Wish:
    """One replica of a shard from a node to another; ``ShardNotFound``, ``InvalidArgument`` or ``NoNodeForReplica`` say
    why not.
    """
    entry = state.shards.get(group)
    if entry is None or entry.state is ShardState.RETIRED:
        raise ShardNotFound(f"there is no shard {group}", shard=group)
    if source not in entry.desired:
        raise InvalidArgument("from", f"has no replica of shard {group}", got=source, limit=list(entry.desired))
    if to in entry.desired:
        raise InvalidArgument("to", f"has a replica of shard {group} already", got=to, limit="another node")
    room = Room(state, away)
    if to not in state.nodes:
        raise InvalidArgument("to", f"there is no node {to!r}", got=to, limit=sorted(state.nodes))
    if not state.nodes[to].role.holds:
        raise InvalidArgument("to", f"{to} is a coordinator and holds no replicas", got=to)
    if not room.open(to):
        why = "was not heard of late" if to in room.away else f"is {state.nodes[to].state.value}"
        raise NoNodeForReplica(f"{to} {why}, and is given no replicas", node=to)
    return Wish(group, tuple(to if one == source else one for one in entry.desired))


def rebalanced(state: ControlState, away: Collection[str] = (), *, only: str = "", onto: str = "",
               weights: Mapping[int, float] = _ALIKE) -> list[Wish]:
    """What makes loads even: one wish a shard, as few as it takes.

    ``only``: of the shards of this collection alone; ``onto``: only what goes to this node.  Loads are of all.
    ``weights``: of a replica of each shard, 1 where nothing is said.
    """
    room = Room(state, away, weights)
    nodes = [node for node in room.nodes if room.open(node)]
    capacity = sum(room.nodes[node].capacity for node in nodes)
    if len(nodes) < 2:
        return []
    here: dict[str, list[ShardEntry]] = {node: [] for node in nodes}
    for entry in state.shards.values():
        if entry.state is not ShardState.RETIRED and only in ("", entry.name):
            for node in entry.desired:
                if node in here:
                    here[node].append(entry)
    share = sum(room.load[node] for node in nodes) / capacity
    wishes: dict[int, Wish] = {}
    while len(wishes) < MOST_WISHES:
        move = next((one for one in _moves(room, nodes, here, share, wishes) if onto in ("", one[2])), None)
        if move is None:
            return list(wishes.values())
        entry, source, to = move
        wishes[entry.group] = _wish(room, entry, tuple(to if one == source else one for one in entry.desired))
    return list(wishes.values())


def _moves(room: Room, nodes: Sequence[str], here: Mapping[str, Sequence[ShardEntry]], share: float,
           wishes: Mapping[int, Wish]) -> Iterator[tuple[ShardEntry, str, str]]:
    """Shards with where from and where to, the most useful first."""
    ranked = sorted(nodes, key=lambda node: (room.fullness(node), node))
    takers = [to for to in ranked if to not in room.low]
    empty = [to for to in takers if room.fullness(to) < share - _slack(room, to, share)]
    for source in reversed(ranked):
        for to in takers if room.fullness(source) > share + _slack(room, source, share) else empty:
            gap = room.fullness(source) - room.fullness(to)
            if room.fullness(to, room.least) >= room.fullness(source):
                break
            fitting = [entry for entry in here[source] if entry.group not in wishes and to not in entry.desired
                       and room.fullness(to, room.weight(entry.group)) < room.fullness(source)
                       and _zones_allow(room, entry, source, to)]
            if fitting:
                candidate = Candidate(to, room.nodes[to].capacity)
                ideal = gap / (1 / room.nodes[source].capacity + 1 / candidate.capacity)
                yield max(fitting, key=lambda entry: (-abs(room.weight(entry.group) - ideal),
                                                      score(entry.group, candidate), entry.group)), source, to


def _slack(room: Room, node: str, share: float) -> float:
    """How far from its share a node may stay."""
    return max(share * SLACK, 1 / room.nodes[node].capacity)


def _zones_allow(room: Room, entry: ShardEntry, source: str, to: str) -> bool:
    zones = Counter(room.zone(one) for one in entry.desired if one != source)
    return zones[room.zone(to)] <= zones[room.zone(source)]


def _held_by(state: ControlState, node: str) -> list[ShardEntry]:
    return [entry for entry in state.shards.values()
            if node in entry.desired and entry.state is not ShardState.RETIRED]


def _wish(room: Room, entry: ShardEntry, after: tuple[str, ...]) -> Wish:
    room.moved(entry.desired, after, room.weight(entry.group))
    return Wish(entry.group, after)
