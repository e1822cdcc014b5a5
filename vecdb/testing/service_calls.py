"""Calls between simulated processes: late, cut off on their way or on their way back, answered by who is still there.

A call that never arrived was not done, and says so (``Unavailable``); of one whose answer is lost nobody knows, which
for commands is ``OutcomeUnknown``.  Deadlines travel as what is left of them, as clocks differ.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast

from vecdb.cluster.founding import Founding
from vecdb.core.calls import Call
from vecdb.core.errors import OutcomeUnknown, Unavailable, VecdbError
from vecdb.ports.node import Node
from vecdb.ports.peers import Replicas
from vecdb.testing.loop import VirtualLoop
from vecdb.testing.network import Network
from vecdb.testing.world import World

if TYPE_CHECKING:
    from vecdb.testing.service_node import Process

T = TypeVar("T")
NOTICED_S: Final = (0.3, 2.0)
"""Until a connection is known to be dead."""
COMMANDS: Final = frozenset({"propose", "change", "upsert", "delete", "update_metadata", "create_collection",
                             "drop_collection"})


@dataclass(slots=True)
class Calls:
    """The way between processes.  ``find``: the process of a name, None while there is none."""

    world: World
    network: Network
    find: "Callable[[str], Process | None]"

    async def ask(self, sender: str, receiver: str, method: str, work: "Callable[[Process], Awaitable[T]]") -> T:
        """``work`` done by the process ``receiver``; its result or its ``VecdbError``."""
        loop = cast(VirtualLoop, asyncio.get_running_loop())
        attempt = _Attempt(self, loop, sender, receiver, method, cast(Any, work))
        attempt.send()
        try:
            return cast(T, await attempt.answer)
        except asyncio.CancelledError:
            attempt.give_up()
            raise

    def delay(self) -> float:
        weather, random = self.network.weather, self.world.random
        return weather.delay + random.random() * weather.jitter

    def broken(self, sender: str, receiver: str) -> bool:
        """Whether nothing gets from one to the other now."""
        lost = self.world.random.random() < self.network.weather.lost
        return lost or not self.network.reaches(sender, receiver)


class _Attempt:
    """One call on its way."""

    def __init__(self, calls: Calls, loop: VirtualLoop, sender: str, receiver: str, method: str,
                 work: "Callable[[Process], Awaitable[Any]]") -> None:
        self.calls, self.loop, self.sender, self.receiver = calls, loop, sender, receiver
        self.answer: asyncio.Future[Any] = loop.create_future()
        self._method = method
        self._work = work
        self._process: Process | None = None
        self._task: asyncio.Task[Any] | None = None

    def send(self) -> None:
        world, calls = self.calls.world, self.calls
        world.happened["calls_between"] += 1
        if calls.broken(self.sender, self.receiver) or calls.find(self.receiver) is None:
            world.happened["calls_refused"] += 1
            world.at(calls.delay(), partial(self._end, None, Unavailable(f"{self.receiver} cannot be reached")))
        else:
            world.at(calls.delay(), self._arrive)

    def _arrive(self) -> None:
        process = self.calls.find(self.receiver)
        if process is None or not self.calls.network.reaches(self.sender, self.receiver):
            self._lost()
            return
        self._process = process
        process.loop.call_soon(self._begin)
        process.on_death.append(self._lost)

    def _begin(self) -> None:
        assert self._process is not None
        self._task = self._process.loop.create_task(self._do(self._process))

    async def _do(self, process: "Process") -> None:
        result: Any = None
        error: VecdbError | None = None
        try:
            result = await self._work(process)
        except VecdbError as raised:
            error = raised
        except asyncio.CancelledError:
            return
        except Exception as raised:
            self.calls.world.failure = self.calls.world.failure or raised
            raise
        process.on_death.remove(self._lost)
        if self.calls.broken(self.receiver, self.sender):
            self._lost()
        else:
            self.calls.world.at(self.calls.delay(), partial(self._end, result, error))

    def _lost(self) -> None:
        """The connection is gone, which is noticed after a while."""
        world = self.calls.world
        world.happened["calls_lost"] += 1
        error: VecdbError = Unavailable(f"the connection to {self.receiver} is gone")
        if self._method in COMMANDS:
            error = OutcomeUnknown(f"the connection to {self.receiver} is gone")
        world.at(world.random.uniform(*NOTICED_S), partial(self._end, None, error))

    def _end(self, result: Any, error: VecdbError | None) -> None:
        def tell() -> None:
            if self.answer.done():
                return
            if error is None:
                self.answer.set_result(result)
            else:
                self.answer.set_exception(error)

        self.loop.call_soon(tell)

    def give_up(self) -> None:
        """The caller waits no more: the callee hears of it, if he can."""
        if self._task is not None and self.calls.network.reaches(self.sender, self.receiver):
            self.calls.world.at(self.calls.delay(), self._cancel)

    def _cancel(self) -> None:
        assert self._task is not None
        self._task.cancel()


class Remote:
    """An object of another process, by its methods' names."""

    def __init__(self, calls: Calls, sender: "Process", receiver: str, which: str) -> None:
        self._calls, self._sender, self._receiver, self._which = calls, sender, receiver, which

    def __getattr__(self, method: str) -> Callable[..., Awaitable[Any]]:
        async def ask(*args: Any, **kwargs: Any) -> Any:
            def work(process: "Process") -> Awaitable[Any]:
                here = [process.translated(one, self._sender) if isinstance(one, Call) else one for one in args]
                target = getattr(process, self._which)
                if target is None:
                    raise Unavailable(f"{self._receiver} is starting")
                return cast(Awaitable[Any], getattr(target, method)(*here, **kwargs))

            return await self._calls.ask(self._sender.name, self._receiver, method, work)

        return ask


class SimPeers:
    """The :class:`~vecdb.ports.peers.Peers` and :class:`~vecdb.services.founding.Witnesses` of a process."""

    def __init__(self, calls: Calls, sender: "Process") -> None:
        self._calls, self._sender = calls, sender

    def node(self, name: str) -> Node:
        return cast(Node, Remote(self._calls, self._sender, name, "own"))

    def replicas(self, name: str) -> Replicas:
        return cast(Replicas, Remote(self._calls, self._sender, name, "own"))

    async def founding(self, node: str) -> Founding:
        async def work(process: "Process") -> Founding:
            hosting = process.hosting
            if hosting is None or hosting.founding is None:
                raise Unavailable(f"{node} does not know yet")
            return hosting.founding

        return await self._calls.ask(self._sender.name, node, "founding", work)
