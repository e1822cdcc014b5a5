"""Asking the other nodes how far they are until it is known whether the control group is to be founded or joined."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, Protocol, TypeVar

from vecdb.cluster.founding import Founding, decide, strangers
from vecdb.core.errors import VecdbError
from vecdb.ports.tell import Tell
from vecdb.services.ledger import Ledger

T = TypeVar("T")

ASK_S: Final = 2.0
PAUSE_S: Final = (0.1, 1.0)
"""Between rounds that brought nothing new: the first, and the longest."""
PATIENCE_S: Final = 5.0
"""Nodes that are started together come up within this, so before it nobody is told who is missing."""
TELL_S: Final = 60.0
"""Until the same is told again."""
CHANGED_S: Final = 10.0
"""Until it is told that the same nodes are missing for another reason."""
NUMBERS: Final = (1 << 16, (1 << 32) - 1)
"""Numbers of disks: of 32 bits, and none that a person would write."""


class Witnesses(Protocol):
    """The other nodes, as far as they can be asked."""

    async def founding(self, node: str) -> Founding:
        """How far the node is, on stable storage; ``VecdbError`` says why it does not answer, or does not know yet."""
        ...


class Entrance(Protocol):
    """How a node comes to be a member.  ``fresh``: a log of the control group that is not there never was;
    ``missing``: nodes that it waits for, and why each did not answer; ``late``: for longer than nodes take that are
    started together, so that whoever calls need not wait for them.
    """

    fresh: bool
    missing: dict[str, str]
    late: bool

    async def found(self, has_state: bool) -> Founding: ...


class Founder:
    """``thread`` runs what blocks; ``draw`` is the process's entropy (:data:`NUMBERS`)."""

    fresh = False

    def __init__(self, me: str, nodes: Sequence[str], ledger: Ledger, witnesses: Witnesses, tell: Tell, *,
                 draw: Callable[[], int], thread: Callable[..., Awaitable[Any]]) -> None:
        self._me = me
        self._nodes = sorted({me, *nodes})
        self._ledger = ledger
        self._witnesses = witnesses
        self._tell = tell
        self._draw = draw
        self._thread = thread
        self._told: dict[str, tuple[Any, float]] = {}
        self.missing: dict[str, str] = {}
        """Nodes that did not answer in the last round, and why; none once it is over."""
        self.late = False

    async def found(self, has_state: bool) -> Founding:
        """Return once there is nothing more to learn.

        ``has_state``: this node holds a control state.  Then there was a group, whatever became of its log here.
        """
        mine = self._ledger.founding
        if mine is None:
            mine = await self._write(Founding(self._draw(), joined=has_state))
        pause, began = PAUSE_S[0], asyncio.get_running_loop().time()
        while not mine.over:
            answers = await self._ask_all()
            after = decide(self._me, self._nodes, mine, answers)
            if after != mine:
                mine, pause = await self._write(after), PAUSE_S[0]
                continue
            differing = strangers(self._nodes, answers)
            self._tell_seldom("cluster_nodes_differ", differing, nodes=self._nodes,
                              others={node: list(theirs) for node, theirs in differing.items()})
            if asyncio.get_running_loop().time() - began > PATIENCE_S:
                self.late = bool(self.missing)
                self._tell_missing()
            await asyncio.sleep(pause)
            pause = min(2 * pause, PAUSE_S[1])
        self.missing, self.late = {}, False
        return mine

    async def _write(self, founding: Founding) -> Founding:
        await self._thread(self._ledger.write_founding, founding)
        if founding.over:
            self._tell("info", "cluster_joined" if founding.joined else "cluster_founded", node=self._me,
                       number=founding.number, members=list(founding.members))
        return founding

    async def _ask_all(self) -> dict[str, Founding]:
        others = [node for node in self._nodes if node != self._me]
        answers = dict(zip(others, await asyncio.gather(*map(self._ask, others)), strict=True))
        self.missing = {node: answer for node, answer in answers.items() if isinstance(answer, str)}
        return {node: answer for node, answer in answers.items() if isinstance(answer, Founding)}

    async def _ask(self, node: str) -> Founding | str:
        """Its answer, or why there is none."""
        try:
            async with asyncio.timeout(ASK_S):
                return await self._witnesses.founding(node)
        except TimeoutError:
            return f"no answer within {ASK_S:g} s"
        except VecdbError as error:
            return error.message

    def _tell_missing(self) -> None:
        """Who is missing is told at once when it is news; another reason for it not each time: they may alternate."""
        event, missing = "cluster_waits_for_nodes", sorted(self.missing)
        (known, why), at = self._told.get(event, (((), {}), 0.0))
        waited_s = asyncio.get_running_loop().time() - at
        if missing and missing == known and why != self.missing and waited_s <= CHANGED_S:
            return
        self._tell_seldom(event, (missing, dict(self.missing)) if missing else None, missing=missing,
                          why=dict(self.missing))

    def _tell_seldom(self, event: str, what: object, **fields: object) -> None:
        """When it is news, and now and then while it lasts."""
        now = asyncio.get_running_loop().time()
        known, at = self._told.get(event, (None, 0.0))
        if what and (what != known or now - at > TELL_S):
            self._told[event] = (what, now)
            self._tell("error", event, node=self._me, **fields)
