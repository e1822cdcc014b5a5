"""What any node has done by whoever leads the control group, and waits for until it has applied it itself."""

from collections.abc import Awaitable, Callable, Sequence
from typing import Final, TypeVar

from vecdb.core.calls import Call
from vecdb.core.errors import Unavailable
from vecdb.ports.clock import Clock
from vecdb.ports.peers import Replicas
from vecdb.ports.replicator import Replicator
from vecdb.services.leaders import Leaders, Task
from vecdb.services.passing import copy_of
from vecdb.services.replicas import CONTROL

T = TypeVar("T")

CHANGE_S: Final = 10.0


class ControlCalls:
    """Belongs to one event loop.  ``nodes()``: members of the control group; ``replicas``: of any node, this one too;
    ``replicator()``: this node's of the control group, None while there is none.

    Each takes at most :data:`CHANGE_S` seconds until it is done, and as many until it is applied here; what no leader
    did in time raises ``Unavailable``.
    """

    def __init__(self, leaders: Leaders, nodes: Callable[[], Sequence[str]], replicas: Callable[[str], Replicas],
                 replicator: Callable[[], Replicator | None], clock: Clock) -> None:
        self._leaders = leaders
        self._nodes = nodes
        self._replicas = replicas
        self._replicator = replicator
        self._clock = clock

    async def change(self, command: bytes) -> None:
        """Have a command done, which says itself that it happens once."""
        done = await self._ask(lambda one, mine: one.propose(CONTROL, command, mine), reads=False)
        await self._applied(done.log_index)

    async def catch_up(self) -> None:
        """Let this node learn all that was acknowledged before."""
        await self._applied(await self._ask(lambda one, mine: one.read_index(CONTROL, mine), reads=True))

    async def _ask(self, ask: Callable[[Replicas, Call], Awaitable[T]], *, reads: bool) -> T:
        call = Call(deadline=self._clock.monotonic() + CHANGE_S)
        return await self._leaders.ask(Task(CONTROL, self._nodes(), call, reads=reads),
                                       lambda node: ask(self._replicas(node), copy_of(call)))

    async def _applied(self, log_index: int) -> None:
        replicator = self._replicator()
        if replicator is None:
            raise Unavailable("the control group is not here yet", retry_after_s=0.1)
        await replicator.wait_applied(log_index, self._clock.monotonic() + CHANGE_S)
