"""Reads of one shard: by the replica of this node wherever it can, whatever the consistency, else by another one's.

- *eventual*: as it is.
- *session*: once it has applied what the session wrote.
- *linearizable*: once it has applied all that was committed when the read began, which only the leader can say.  So
  the question goes to the leader, one for all reads of a moment (:mod:`~vecdb.services.barriers`), and not the reads:
  it is a round trip either way, but the vectors, the answers and the kernels' work stay here, and a group answers as
  many linearizable reads as its replicas can together.

A replica here that is behind for longer than :data:`CATCH_UP_S`, has failed, is damaged or not there hands the read on:
to the leader where it must be fresh, else to the other with the least load (:mod:`.loads`).  What one does not answer
in the time that 95 of 100 such reads take is asked of a second one as well, the first answer counts and the other call
is cancelled; what fails is asked of the next at once.  A call fails only if none can serve it before its deadline, or
if this node reaches none of them and the caller knows of other nodes (:mod:`.cut_off`).

What this node's own replica is at is not asked for twice: it is here that it would be answered soonest.
"""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeVar

from vecdb.cluster.control import ShardEntry
from vecdb.core.calls import Call, Consistency, Stopped
from vecdb.core.errors import (
    Cancelled,
    CollectionNotFound,
    DatabaseClosed,
    DataCorrupted,
    DeadlineExceeded,
    NodeRemoved,
    OutcomeUnknown,
    Overloaded,
    StaleShardMap,
    StorageError,
    Unavailable,
    VecdbError,
)
from vecdb.ports.node import Node
from vecdb.ports.peers import Several
from vecdb.services.coordinator.knowledge import ASK_S, Knowledge
from vecdb.services.coordinator.loads import Loads
from vecdb.services.leaders import PAUSE_S
from vecdb.services.passing import of_shard
from vecdb.services.unreachable import refuse_unreachable

T = TypeVar("T")

CATCH_UP_S: Final = 0.3
"""How long a read waits for this node's replica while another could answer."""
AT_ONCE_S: Final = 0.01
"""The same where it is known that no other member of its group can be reached."""
LONG_S: Final = 3_600.0
"""Between looks where there is nobody left to ask."""

ELSEWHERE: Final = (Unavailable, DatabaseClosed, DataCorrupted, StorageError, CollectionNotFound)
"""What one replica fails with and another may not."""
PASSING: Final = (Unavailable, DatabaseClosed, CollectionNotFound, OutcomeUnknown, Cancelled)
"""Of these, what may be otherwise in a moment."""
FAR: Final = (*ELSEWHERE, OutcomeUnknown, Overloaded, Cancelled)
"""The same of one on another node."""
MISSING: Final = (Unavailable, Overloaded, DeadlineExceeded, Cancelled, StorageError, DataCorrupted)
"""What a shard may fail with that a partial answer goes without."""


@dataclass(frozen=True, slots=True)
class Reading(Generic[T]):
    """What is asked of a shard: ``here(shard, call)`` of this node's engine, ``there(shard, node, name, call)`` of
    another node, whose name says whom it is.  ``kind``: of like reads, for what they take.

    ``retired``: a shard whose place others have taken may answer as well, as it was then.

    ``together(groups, name, call)``: the same of several shards of another node in one call (:mod:`.bundles`), None
    where that is not to be; those of one collection that are read alike share it.  ``heavy``: it is work that is better
    divided among nodes, whatever calls cost.
    """

    kind: str
    here: Callable[[ShardEntry, Call], Awaitable[T]]
    there: Callable[[ShardEntry, Node, str, Call], Awaitable[T]]
    retired: bool = False
    together: Callable[[tuple[int, ...], str, Call], Awaitable[Several[T]]] | None = None
    heavy: bool = False


@dataclass(frozen=True, slots=True)
class _Attempt:
    node: str
    began: float


class ShardReader:
    """Belongs to one event loop."""

    def __init__(self, know: Knowledge) -> None:
        self._know = know
        self.loads = Loads()

    async def read(self, shard: ShardEntry, call: Call, reading: Reading[T], last: frozenset[str] = frozenset()) -> T:
        """Raises ``StaleShardMap`` or ``CollectionNotFound`` once calls do not go to the shard any more.

        ``last``: nodes that have been asked already, and come after the others the first time.
        """
        know = self._know
        asked = False
        while True:
            failures: list[VecdbError] = []
            if know.own.serves(shard.group):
                try:
                    if not call.session and call.consistency is not Consistency.LINEARIZABLE:
                        return await reading.here(shard, call)
                    return await know.own.settled(shard.group, lambda: self.settle(shard, call),
                                                  lambda: reading.here(shard, call))
                except StaleShardMap:
                    raise
                except ELSEWHERE as error:
                    failures.append(error)
                if call.session and not asked:
                    asked = True
                    await refuse_unreachable(shard, call, lambda group: know.index(group, call), ASK_S)
            self._check_reached(shard, call)
            nodes = self._others(shard, call)
            if last:
                nodes.sort(key=lambda one: one in last)
                last = frozenset()
            if nodes:
                self.check_time(call)
                try:
                    return await self._reached(shard, call, self._elsewhere(shard, nodes, call, reading, failures))
                except _NobodyError:
                    if call.elsewhere:
                        await know.cut_off.look(know.task(shard, call, reads=True))
            self.check_time(call)
            if not reading.retired:
                know.still(shard)
            elif know.control.state.was_dropped(shard.group):
                raise CollectionNotFound(shard.name)
            await self._pause(shard, call, failures)

    async def settle(self, shard: ShardEntry, call: Call) -> None:
        """Return once this node's replica has what the call must see; ``Unavailable`` if that takes too long."""
        know, group, me = self._know, shard.group, self._know.cluster.me
        patience = CATCH_UP_S if call.session or any(one != me for one in know.members(shard)) else None
        heir = know.inherits(shard, call) and not know.is_whole(group)
        if call.elsewhere and know.cut_off.known(know.task(shard, call, reads=True)):
            if heir or call.consistency is Consistency.LINEARIZABLE:
                self._check_reached(shard, call)
            patience = AT_ONCE_S
        try:
            if not heir and (call.consistency is not Consistency.LINEARIZABLE or know.own.leader(group) == me):
                await know.own.settle(group, call, patience)
                return
            async with asyncio.timeout_at(know.own.until(call)):
                log_index = await know.index(group, call)
            replicator = know.own.replicator(group)
            await replicator.wait_applied(log_index, know.own.until(call, patience))
            if heir:
                if know.own.replicator(group) is replicator:  # else another waits for nothing yet
                    know.note_whole(group)
                await know.own.settle(group, call, patience)
        except (TimeoutError, DeadlineExceeded):
            self.check_time(call)
            raise Unavailable(f"this node's replica of {shard.name!r} is behind", group=group) from None

    def _check_reached(self, shard: ShardEntry, call: Call) -> None:
        """Raise ``Unavailable`` where no other member of the group can be reached, and the caller knows of others."""
        if call.elsewhere:
            self._know.cut_off.check(self._know.task(shard, call, reads=True))

    async def _reached(self, shard: ShardEntry, call: Call, work: Coroutine[Any, Any, T]) -> T:
        """What ``work`` of others comes to; ``Unavailable`` as above instead of waiting for nobody."""
        if not call.elsewhere:
            return await work
        return await self._know.cut_off.watch(self._know.task(shard, call, reads=True), work)

    def check_time(self, call: Call) -> None:
        """Raise what ends the call, if it is over."""
        if call.deadline is not None and self._know.clock.monotonic() >= call.deadline:
            call.end(Stopped.DEADLINE)
        call.check()

    async def _pause(self, shard: ShardEntry, call: Call, failures: list[VecdbError]) -> None:
        """Before every replica is asked once more; raises what they failed with where that is no use."""
        know = self._know
        pause = know.random.uniform(*PAUSE_S)
        passing = not failures or any(isinstance(one, PASSING) for one in failures)
        removed = next((one for one in failures if isinstance(one, NodeRemoved) and one.here), None)
        if removed is not None:
            raise removed
        if not passing or know.deadline_near(call, pause):
            raise failures[-1] if failures else Unavailable(f"no replica of {shard.name!r} serves",
                                                            collection=shard.name, shard=shard.group)
        await asyncio.sleep(pause)

    # --- other nodes ------------------------------------------------------------------------------

    def _others(self, shard: ShardEntry, call: Call) -> list[str]:
        """Other nodes with a replica, the least loaded first; where freshness counts the leader first."""
        know = self._know
        nodes = [one for one in know.members(shard) if one != know.cluster.me]
        if len(nodes) > 1:
            know.random.shuffle(nodes)
            now, zone = know.clock.monotonic(), know.zone(know.cluster.me)
            nodes.sort(key=lambda one: self.loads.load(one, now, know.zone(one) == zone))
            if call.session or call.consistency is Consistency.LINEARIZABLE:
                likely = know.leaders.likely(shard.group)
                nodes.sort(key=lambda one: one != likely)
        return nodes

    async def _elsewhere(self, shard: ShardEntry, nodes: list[str], call: Call, reading: Reading[T],
                         failures: list[VecdbError]) -> T:
        """The first answer of these; ``_NobodyError`` if each has failed, with what, in ``failures``."""
        if len(nodes) == 1:
            return await self._alone(shard, nodes[0], call, reading, failures)
        left = iter(nodes)
        flying: dict[asyncio.Task[T], _Attempt] = {}
        began = self._know.clock.monotonic()
        self.loads.budget.gain()
        self._start(shard, next(left), call, reading, flying)
        try:
            return await self._first(shard, left, call, reading, flying, failures, began)
        finally:
            now = self._know.clock.monotonic()
            for task, attempt in flying.items():
                self.loads.ended(attempt.node, now, now - attempt.began, given_up=True)
                task.cancel()

    async def _alone(self, shard: ShardEntry, node: str, call: Call, reading: Reading[T],
                     failures: list[VecdbError]) -> T:
        """There is nobody else who could be asked."""
        began = self._know.clock.monotonic()
        failed, given_up = False, True
        self.loads.began(node)
        try:
            result = await self._ask(shard, node, call, reading)
            given_up = False
            return result
        except StaleShardMap:
            raise
        except FAR as error:
            failed = True
            failures.append(error)
            raise _NobodyError from None
        finally:
            now = self._know.clock.monotonic()
            self.loads.ended(node, now, now - began, failed=failed, given_up=given_up)

    async def _first(self, shard: ShardEntry, left: Iterator[str], call: Call, reading: Reading[T],
                     flying: "dict[asyncio.Task[T], _Attempt]", failures: list[VecdbError], began: float) -> T:
        know, loads = self._know, self.loads
        hedge, stuck = loads.hedge_after(shard.group, reading.kind), loads.stuck_after(shard.group, reading.kind)
        last, unpaid, over = began, False, False
        again: list[str] = []
        while flying:
            limit = stuck if unpaid else hedge
            if over:
                limit = know.random.uniform(*PAUSE_S) if again else LONG_S
            wait = limit - (know.clock.monotonic() - last)
            done, _ = await asyncio.wait(flying, timeout=max(0.0, wait), return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                attempt = flying.pop(task)
                now = know.clock.monotonic()
                error = task.exception() if not task.cancelled() else Cancelled("the attempt was given up")
                loads.ended(attempt.node, now, now - attempt.began, failed=isinstance(error, FAR))
                if error is None:
                    loads.answered(shard.group, reading.kind, now - attempt.began)
                    return task.result()
                if isinstance(error, StaleShardMap) or not isinstance(error, FAR):
                    raise error
                failures.append(error)
                if isinstance(error, PASSING):
                    again.append(attempt.node)
                last = now if over else last
            if not done and not over and not unpaid and not loads.budget.take():
                unpaid = True  # a second one is made all the same if the first one hangs
                continue
            if done and flying:
                continue  # the other attempt is under way already
            node = again.pop(0) if over and again else next(left, None)
            over = over or node is None  # from then on who has failed is asked once more while another hangs
            if node is not None:
                if not done:
                    know.counts.add("hedge")
                self._start(shard, node, call, reading, flying)
            last, unpaid = know.clock.monotonic(), False
        raise _NobodyError

    def _start(self, shard: ShardEntry, node: str, call: Call, reading: Reading[T],
               flying: "dict[asyncio.Task[T], _Attempt]") -> None:
        self.loads.began(node)
        task = asyncio.get_running_loop().create_task(self._ask(shard, node, call, reading))
        task.add_done_callback(_looked_at)
        flying[task] = _Attempt(node, self._know.clock.monotonic())

    async def _ask(self, shard: ShardEntry, node: str, call: Call, reading: Reading[T]) -> T:
        know = self._know
        know.counts.add("read")
        mine = of_shard(call, shard.group)
        if know.inherits(shard, call):
            mine.consistency = Consistency.LINEARIZABLE
        return await reading.there(shard, know.peers.node(node), node, mine)



class _NobodyError(Exception):
    """Every other node has failed."""


def _looked_at(task: "asyncio.Task[Any]") -> None:
    """One that is given up may fail all the same, and nobody would ask it why."""
    if not task.cancelled():
        task.exception()


def named(error: BaseException, group: int) -> BaseException:
    """An error that says of which shard it is."""
    if isinstance(error, VecdbError):
        error.fields.setdefault("shard", group)
    return error
