"""Shards that are asked of the same node in one call: a call between nodes costs more than a short search.

**Which** (:meth:`Bundles.plan`): of the shards that this node does not answer itself those that another node has
together.  Greedily, as in weighted set cover: the node comes next whose load (:mod:`.loads`), and what a call costs
whatever it asks, is least for each shard that it would be asked for.  So few calls are made where nodes are alike, and
one that is slow, busy or far is asked for less, or not.  No call is of more than :data:`MOST` shards where others have
them too, and heavy reads are divided among as many nodes as there are: what a search of many shards takes counts, too.
Fresh reads go to those who lead, as they would one by one.  What is left alone goes the way of :mod:`.shard_reads`.

**What becomes of it** (:class:`Asked`).  A shard that the node does not answer (it lags, is sealed, was moved) is
asked for by itself, of another one first, as is each of a node that fails; several of a kind once more together.  What
takes longer than the p95 of such calls is asked of others as well, as far as the budget goes, and what those do not
answer either each by itself; who answers first counts, and of answers about some of the same shards the one that is
about all of them.  A call that was not waited for is not counted on: what others fail with meanwhile is asked again.

A node of an earlier release knows no such calls: it says so, and is asked as before for :data:`OLDER_S`.
"""

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeVar

from vecdb.cluster.control import ShardEntry
from vecdb.core.calls import Call, Consistency
from vecdb.core.errors import Cancelled, StaleShardMap, Unavailable, VecdbError
from vecdb.ports.peers import Several
from vecdb.services.coordinator.knowledge import Knowledge
from vecdb.services.coordinator.shard_reads import FAR, MISSING, Reading, ShardReader, named
from vecdb.services.passing import copy_of

T = TypeVar("T")

MOST: Final = 8
"""Shards of one call, where another node could be asked for more."""
CALL_S: Final = 1e-3
"""What a call takes whatever it asks for."""
OLDER_S: Final = 30.0
"""How long a node that does not know such calls is not asked so again."""

Piece = tuple[tuple[ShardEntry, ...], Sequence[T]]
"""An answer and the shards that it is of; as the read has it, one for all or one for each."""


@dataclass(frozen=True, slots=True)
class Bundle:
    """Two shards or more, and the node that is asked for them."""

    node: str
    shards: tuple[ShardEntry, ...]


class Bundles:
    """Belongs to one event loop."""

    def __init__(self, know: Knowledge, reader: ShardReader) -> None:
        self.know = know
        self.reader = reader
        self._older: dict[str, float] = {}
        """Nodes that know no such calls, and until when that is believed."""

    def plan(self, chosen: Sequence[tuple[ShardEntry, Reading[Any]]], call: Call) -> list[Bundle]:
        """What is asked together; all other shards are asked for by themselves."""
        know = self.know
        far = [shard for shard, reading in chosen if reading.together is not None
               and not know.own.serves(shard.group) and not know.inherits(shard, call)]
        return self.cover(far, call, chosen[0][1].heavy) if len(far) > 1 else []

    def cover(self, shards: Sequence[ShardEntry], call: Call, heavy: bool, without: frozenset[str] = frozenset()
              ) -> list[Bundle]:
        """Some of these shards divided among nodes that have them, no node twice."""
        know, now = self.know, self.know.clock.monotonic()
        holders = {shard.group: self._holders(shard, call, without) for shard in shards}
        held: dict[str, list[ShardEntry]] = {}
        for shard in shards:
            for node in holders[shard.group]:
                held.setdefault(node, []).append(shard)
        names = list(held)
        if not names:
            return []
        know.random.shuffle(names)
        zone = know.zone(know.cluster.me)
        load = {one: CALL_S + self.reader.loads.load(one, now, know.zone(one) == zone) for one in names}
        even = _even(len(shards), len(names) if heavy else _even(len(shards), MOST))
        most = {one: 1 if self._is_older(one, now) else even for one in names}
        open_ = {one: len(held[one]) for one in names}
        taken: dict[str, list[ShardEntry]] = {}
        left = {shard.group: shard for shard in shards if holders[shard.group]}
        while left:
            free = [one for one in names if one not in taken and open_[one]]
            if not free:
                break
            node = min(free, key=lambda one: load[one] / min(open_[one], most[one]))
            mine = [shard for shard in held[node] if shard.group in left]
            if len(mine) > most[node]:  # it takes those that fewest others have
                mine.sort(key=lambda shard: len(holders[shard.group]))
            taken[node] = mine = mine[:most[node]]
            for shard in mine:
                del left[shard.group]
                for one in holders[shard.group]:
                    open_[one] -= 1
        for shard in left.values():  # there is nobody else
            taken[min(holders[shard.group], key=lambda one: len(taken[one]))].append(shard)
        return [Bundle(node, tuple(mine)) for node, mine in taken.items()
                if len(mine) > 1 and not self._is_older(node, now)]

    def _holders(self, shard: ShardEntry, call: Call, without: frozenset[str]) -> list[str]:
        know = self.know
        nodes = [one for one in know.members(shard) if one != know.cluster.me]
        if call.session or call.consistency is Consistency.LINEARIZABLE:
            likely = know.leaders.likely(shard.group)
            nodes = [likely] if likely in nodes else nodes
        return [one for one in nodes if one not in without]

    def _is_older(self, node: str, now: float) -> bool:
        return self._older.get(node, 0.0) > now

    def is_older(self, node: str) -> None:
        """It does not know such calls."""
        self._older[node] = self.know.clock.monotonic() + OLDER_S

    def ask(self, bundle: Bundle, readings: Mapping[int, Reading[T]], call: Call, partial_until: float | None
            ) -> "Asked[T]":
        """``partial_until``: when what has been answered counts, by the clock; None: all of it or nothing."""
        return Asked(self, bundle, readings, call, partial_until)


def _even(many: int, parts: int) -> int:
    """What each gets at most of so many."""
    return -(-many // parts)


@dataclass(frozen=True, slots=True)
class _Attempt:
    """``node`` empty: one shard, wherever."""

    node: str
    shards: tuple[ShardEntry, ...]
    began: float


class Asked(Generic[T]):
    """A bundle on its way; ``pieces``: what has been answered of it by now."""

    def __init__(self, bundles: Bundles, bundle: Bundle, readings: Mapping[int, Reading[T]], call: Call,
                 partial_until: float | None) -> None:
        self.pieces: list[Piece[T]] = []
        self.shards = bundle.shards
        self._bundles, self._bundle = bundles, bundle
        self._readings, self._call, self._partial_until = readings, call, partial_until
        self._reading = readings[bundle.shards[0].group]
        self._tried = frozenset((bundle.node,))
        self._slow: set[asyncio.Task[Any]] = set()
        """Calls whose shards others have been asked for as well."""
        self._failed: dict[int, VecdbError] = {}
        self._flying: dict[asyncio.Task[Any], _Attempt] = {}

    async def whole(self) -> None:
        """Return once there are pieces of all shards; raises what a shard fails with, at once unless what there is
        counts in the end.
        """
        know, loads = self._bundles.know, self._bundles.reader.loads
        like = (self.shards[0].name, len(self.shards)), self._reading.kind
        wait, stuck = loads.hedge_after(*like), loads.stuck_after(*like)
        unpaid = False
        began = 0.0
        loads.budget.gain()
        self._start(self._bundle)
        try:
            while self._flying:
                left = None  # shards that are asked for by themselves see to that
                waited = [one.began for task, one in self._flying.items() if one.node and task not in self._slow]
                if waited:
                    if waited[-1] != began:
                        began, unpaid = waited[-1], False
                    left = max(0.0, began + (stuck if unpaid else wait) - know.clock.monotonic())
                done, _ = await asyncio.wait(self._flying, timeout=left, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    self._ended(task, like)
                if not any(self._open()):
                    break
                if not done:
                    if unpaid or loads.budget.take():
                        self._others_too()
                    unpaid = True  # a second one is made all the same if the first one hangs
        finally:
            self._give_up()
        if self._failed:
            raise next(iter(self._failed.values()))

    def _open(self) -> Iterator[ShardEntry]:
        """Shards that may be answered yet and are not."""
        answered = {shard.group for shards, _ in self.pieces for shard in shards}
        return (shard for shard in self.shards if shard.group not in answered and shard.group not in self._failed)

    # --- attempts ---------------------------------------------------------------------------------

    def _start(self, bundle: Bundle) -> None:
        know = self._bundles.know
        self._bundles.reader.loads.began(bundle.node)
        know.counts.add("read")
        groups = tuple(shard.group for shard in bundle.shards)
        call = copy_of(self._call)
        call.shards = groups
        call.session = tuple(one for one in call.session if one[0] in groups)
        if self._partial_until is not None:
            call.allow_partial, call.deadline = True, self._partial_until
        assert self._reading.together is not None
        self._fly(self._reading.together(groups, bundle.node, call), bundle.node, bundle.shards)

    def _alone(self, shard: ShardEntry) -> None:
        reading = self._readings[shard.group]
        self._fly(self._bundles.reader.read(shard, copy_of(self._call), reading, self._tried), "", (shard,))

    def _fly(self, work: Any, node: str, shards: tuple[ShardEntry, ...]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        task.add_done_callback(_looked_at)
        self._flying[task] = _Attempt(node, shards, self._bundles.know.clock.monotonic())

    def _others_too(self) -> None:
        """What is slow is asked of others as well; shards that are asked for by themselves see to that too."""
        self._slow |= {task for task, one in self._flying.items() if one.node}
        know = self._bundles.know
        alone = {one.shards[0].group for one in self._flying.values() if not one.node}
        slow = [shard for shard in self._open() if shard.group not in alone and any(
            one not in self._tried and one != know.cluster.me for one in know.members(shard))]
        if slow:
            know.counts.add("hedge")
            self._elsewhere(slow)

    def _elsewhere(self, shards: Sequence[ShardEntry]) -> None:
        """As few calls as there are others; each by itself where that is no use."""
        bundles = [] if len(shards) < 2 or len(self._tried) > 1 else \
            self._bundles.cover(shards, self._call, self._reading.heavy, self._tried)
        together = {shard.group for bundle in bundles for shard in bundle.shards}
        for shard in shards:
            if shard.group not in together:
                self._alone(shard)
        for bundle in bundles:
            self._start(bundle)
        self._tried |= {bundle.node for bundle in bundles}

    def _ended(self, task: "asyncio.Task[Any]", like: tuple[Any, str]) -> None:
        attempt = self._flying.pop(task)
        self._slow.discard(task)
        loads, now = self._bundles.reader.loads, self._bundles.know.clock.monotonic()
        error = task.exception() if not task.cancelled() else Cancelled("the attempt was given up")
        if not attempt.node:
            if error is None:
                self._take(attempt.shards, [task.result()])
            elif self._partial_until is None or isinstance(error, StaleShardMap) or not isinstance(error, MISSING):
                raise named(error, attempt.shards[0].group)
            else:
                self._failed[attempt.shards[0].group] = error
            return
        loads.ended(attempt.node, now, now - attempt.began, failed=isinstance(error, FAR) and not _is_unknown(error))
        if error is None:
            self._answered(attempt, task.result(), like, now)
        elif isinstance(error, StaleShardMap) or not isinstance(error, FAR):
            raise error
        elif _is_unknown(error):
            self._bundles.is_older(attempt.node)
        self._go_on(attempt)

    def _answered(self, attempt: _Attempt, several: Several[T], like: tuple[Any, str], now: float) -> None:
        for group, error in several.failed.items():
            if isinstance(error, StaleShardMap) or not isinstance(error, FAR):
                raise named(error, group)
        if not several.failed and len(attempt.shards) == len(self.shards):
            self._bundles.reader.loads.answered(*like, now - attempt.began)
        if several.found:
            self._take(tuple(shard for shard in attempt.shards if shard.group not in several.failed), several.found)

    def _take(self, shards: tuple[ShardEntry, ...], found: Sequence[T]) -> None:
        """An answer that is about shards which others have answered is good if it is about all of theirs, too."""
        groups = {shard.group for shard in shards}
        same = [piece for piece in self.pieces if any(shard.group in groups for shard in piece[0])]
        if all(shard.group in groups for piece in same for shard in piece[0]) \
                and len(groups) > sum(len(piece[0]) for piece in same):
            self.pieces[:] = [piece for piece in self.pieces if piece not in same] + [(shards, found)]

    def _go_on(self, attempt: _Attempt) -> None:
        """Of its shards those that nobody has answered or is asked for now, but for those who may hang."""
        asked = {shard.group for task, one in self._flying.items() if task not in self._slow for shard in one.shards}
        mine = {shard.group for shard in attempt.shards}
        rest = [shard for shard in self._open() if shard.group in mine and shard.group not in asked]
        if rest:
            self._elsewhere(rest)

    def _give_up(self) -> None:
        now = self._bundles.know.clock.monotonic()
        for task, attempt in self._flying.items():
            if attempt.node:
                self._bundles.reader.loads.ended(attempt.node, now, now - attempt.began, given_up=True)
            task.cancel()


def _is_unknown(error: BaseException) -> bool:
    return isinstance(error, Unavailable) and bool(error.fields.get("unknown_call"))


def _looked_at(task: "asyncio.Task[Any]") -> None:
    """One that is given up may fail all the same, and nobody would ask it why."""
    if not task.cancelled():
        task.exception()
