"""Finding who leads a group, and asking there: what only a leader does.

The entry node asks whom it takes for the leader; ``NotLeader`` names another, who is asked at once; else the other
members are asked in turn, with pauses of 20 to 100 ms between the rounds, until the call's deadline.  An attempt that
is not answered is given up when somebody else is known to lead: a node that was frozen or cut off answers nobody.

**A node that is cut off** finds no leader for as long as it is.  A caller who knows of other nodes (``elsewhere``) is
told so where an attempt or a round of them came to nothing and no other member says anything: within some 1.3 s of the
cut, with ``elsewhere`` in the error's fields; the same write goes to another node then.  Other callers wait.

**What may have been done** is done again only where that does no harm: reads, and commands with an idempotency key.
Of others the end is unknown, and said to be.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from random import Random
from typing import Final, Protocol, TypeVar

from vecdb.core.calls import Call
from vecdb.core.errors import (
    Cancelled,
    DeadlineExceeded,
    NodeRemoved,
    NoNodeForReplica,
    NotLeader,
    OutcomeUnknown,
    Overloaded,
    Unavailable,
    VecdbError,
)
from vecdb.ports.clock import Clock

T = TypeVar("T")

PAUSE_S: Final = (0.02, 0.1)
PATIENCE_S: Final = 0.5
"""How long an attempt may take before it is asked whether somebody else leads, and between such questions."""
LONGEST_S: Final = 60.0
"""Of a call without a deadline."""
ALONE_S: Final = 0.75
"""How long the other members have to say anything at all: a busy node takes a while."""
FOUND_MOST: Final = 16_384
"""Groups of which it is remembered who led them when last asked, those that are no more among them: forgotten all at
once, and found again."""

AskLeader = Callable[[int, str], Awaitable[str | None]]
"""``(group, node)``: the node that leads the group, as that node knows it; raises ``VecdbError``."""


class Known(Protocol):
    """What this node's own replica knows."""

    def __call__(self, group: int) -> str | None:
        """The node that leads the group; None where that is not known or there is no replica here."""
        ...


@dataclass(frozen=True, slots=True)
class Task:
    """What a leader is asked for: ``once``: it must not be done twice.  ``reads``: whether it was done is no question.
    ``elsewhere``: who asks may ask other nodes, too.

    ``still``: raises where the group is no more.  ``name``: of the collection, for those who read errors.
    """

    group: int
    nodes: Sequence[str]
    call: Call
    once: bool = False
    reads: bool = False
    still: Callable[[], None] = lambda: None
    name: str = ""
    elsewhere: bool = False

    def __str__(self) -> str:
        return repr(self.name) if self.name else f"group {self.group}" if self.group else "the control group"


class _Alone(Exception):
    """No other member says anything; ``open``: what was asked for may have been done, or be done yet."""

    def __init__(self, *, open: bool) -> None:
        super().__init__()
        self.open = open


class Leaders:
    """Belongs to one event loop.  ``me``: this node, asked without a network."""

    def __init__(self, me: str, known: Known, ask_leader: AskLeader, clock: Clock, random: Random) -> None:
        self._me = me
        self._known = known
        self._ask_leader = ask_leader
        self._clock = clock
        self._random = random
        self._found: dict[int, str] = {}

    def likely(self, group: int) -> str | None:
        """Who probably leads: as this node's replica knows, else who did when somebody was asked last."""
        return self._known(group) or self._found.get(group)

    def _remember(self, group: int, node: str) -> None:
        if len(self._found) >= FOUND_MOST and group not in self._found:
            self._found.clear()
        self._found[group] = node

    def deadline(self, call: Call) -> float:
        return self._clock.monotonic() + LONGEST_S if call.deadline is None else call.deadline

    async def ask(self, task: Task, ask: Callable[[str], Awaitable[T]]) -> T:
        """``ask(node)`` of the leader; raises what it raises, and ``Unavailable`` if none was found in time.

        ``ask`` raises ``NotLeader`` or ``Unavailable`` where nothing was done, ``OutcomeUnknown`` where that is open.
        """
        until = self.deadline(task.call)
        patient = self._clock.monotonic() + PATIENCE_S
        unsure: VecdbError | None = None
        last: VecdbError | None = None
        hint = self.likely(task.group)
        while True:
            asked: set[str] = set()
            while (node := self._next(task, hint, asked)) is not None:
                asked.add(node)
                hint = None
                try:
                    result = await self._attempt(task, node, ask)
                except OutcomeUnknown as error:
                    if task.once:
                        raise
                    unsure = last = error
                    hint = _node(error.fields.get("leader"))
                except NotLeader as error:
                    last, hint = error, _node(error.leader)
                except NoNodeForReplica as error:
                    raise _open(error, unsure) from None
                except NodeRemoved as error:
                    if error.here:  # whoever else is asked says the same
                        raise _open(error, unsure) from None
                    last = error
                except Unavailable as error:
                    last = error
                except (Overloaded, DeadlineExceeded, Cancelled) as error:
                    raise _open(error, unsure) from None
                except _Alone as found:
                    raise _cut_off(task, unsure is not None or found.open) from None
                else:
                    self._remember(task.group, node)
                    return result
                try:
                    task.call.check()
                except VecdbError as error:
                    raise _open(error, unsure) from None
                task.still()
            if task.elsewhere and self._clock.monotonic() >= patient and await self.alone(task):
                raise _cut_off(task, unsure is not None)
            pause = self._random.uniform(*PAUSE_S)
            if self._clock.monotonic() + pause >= until:
                raise _late(task, unsure, last)
            await asyncio.sleep(pause)
            hint = self._known(task.group)

    def _next(self, task: Task, hint: str | None, asked: set[str]) -> str | None:
        """Whom to ask now in this round: the one hinted at, or a member not asked yet."""
        if hint is not None and hint not in asked and hint in task.nodes:
            return hint
        left = [one for one in task.nodes if one not in asked]
        if not left:
            return None
        likely = self._known(task.group)
        return likely if likely in left else self._random.choice(left)

    async def _attempt(self, task: Task, node: str, ask: Callable[[str], Awaitable[T]]) -> T:
        if node == self._me and not task.elsewhere:
            return await ask(node)  # Raft itself ends what waits when the leadership does
        attempt = asyncio.ensure_future(ask(node))
        # One that is given up may fail all the same, and nobody would ask it why.
        attempt.add_done_callback(lambda ended: ended.cancelled() or ended.exception())
        try:
            while True:
                done, _ = await asyncio.wait((attempt,), timeout=PATIENCE_S)
                if done:
                    return attempt.result()
                other = await self._moved(task, node) if node != self._me else None
                if other is not None and not attempt.done():
                    raise self._abandoned(task, node, other)
                if task.elsewhere and await self.alone(task) and not attempt.done():
                    raise _Alone(open=not task.reads)
        finally:
            if not attempt.done():
                attempt.cancel()
                await asyncio.wait((attempt,))

    async def alone(self, task: Task) -> bool:
        """Whether no other member says anything: who it takes for the leader, or that it knows of none."""
        others = [one for one in task.nodes if one != self._me]
        if not others:
            return False

        async def says(node: str) -> None:
            async with asyncio.timeout(ALONE_S):
                await self._ask_leader(task.group, node)

        asked = [asyncio.ensure_future(says(one)) for one in others]
        try:
            for one in asyncio.as_completed(asked):
                with suppress(TimeoutError, VecdbError):
                    await one
                    return False
        finally:
            for one in asked:
                one.cancel()
            await asyncio.gather(*asked, return_exceptions=True)
        return True

    def _abandoned(self, task: Task, node: str, other: str) -> VecdbError:
        """What has arrived there may be done yet, or be done already."""
        why, leader = f"{node} did not answer, and {other} leads by now", f"{other}/0"
        if task.reads:
            return NotLeader(why, leader=leader)
        return OutcomeUnknown(f"{why}: nobody knows whether it was done", leader=leader)

    async def _moved(self, task: Task, node: str) -> str | None:
        """Another node that leads, as far as can be known."""
        leader = self._known(task.group)
        if leader is not None:
            return leader if leader != node else None
        others = [one for one in task.nodes if one not in (node, self._me)]
        if not others:
            return None
        try:
            async with asyncio.timeout(PATIENCE_S):
                leader = await self._ask_leader(task.group, self._random.choice(others))
        except (TimeoutError, VecdbError):
            return None
        return leader if leader != node else None


def _node(replica: str | None) -> str | None:
    return replica.rpartition("/")[0] if replica else None


def _open(error: VecdbError, unsure: VecdbError | None) -> VecdbError:
    """The end of a call of which an attempt may have been done."""
    if unsure is None:
        return error
    return OutcomeUnknown(f"nobody knows whether it was done: {error.message}", **error.fields)


def _cut_off(task: Task, unsure: bool) -> VecdbError:
    why = f"this node reaches no other member of {task}"
    if unsure:
        return OutcomeUnknown(f"{why}: nobody knows whether it was done", elsewhere=True)
    return Unavailable(f"{why}, and nothing was done", elsewhere=True)


def _late(task: Task, unsure: VecdbError | None, last: VecdbError | None) -> VecdbError:
    if unsure is not None:
        since = "" if last is None or last is unsure else f"; since then: {last.message}"
        return OutcomeUnknown(f"the deadline came before the end was known: {unsure.message}{since}", **unsure.fields)
    why = "nobody was asked" if last is None else last.message
    fields = {} if last is None else last.fields
    return Unavailable(f"no leader of {task} answered in time: {why}",
                       **{"retry_after_s": 0.2, **fields})
