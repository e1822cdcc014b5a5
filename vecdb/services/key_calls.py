"""Calls of a key ring, which block: for a disk, or for whoever leads the cluster.

A change of a cluster's keys waits for the control group, and where nobody leads it that takes ten seconds to come to
nothing.  So these calls have **threads of their own**, few of them, and none of the event loop's, which files, folders
and figures of the node wait for.  Who finds all of them taken waits a moment for a turn and is then told to come again:
what holds them is over for all of them once there is a leader.
"""

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Final, Generic, TypeVar

from vecdb.core.errors import Unavailable, Unsupported

K = TypeVar("K")
T = TypeVar("T")

AT_ONCE: Final = 4
"""Calls that have a thread at the same time."""
WAITING: Final = 32
"""Calls that wait for a turn at the same time."""
TURN_S: Final = 2.0
RETRY_S: Final = 1.0


class KeyCalls(Generic[K]):
    """``await calls(work)``: what ``work(keys)`` returns or raises.  Belongs to one event loop.

    Raises ``Unsupported`` where ``keys`` is None, for a process that has no key ring, and ``Unavailable`` where other
    calls have all the threads.  Who is given up leaves his thread to what it does; it keeps no process from ending.
    """

    def __init__(self, keys: K | None, *, at_once: int = AT_ONCE, waiting: int = WAITING, turn_s: float = TURN_S
                 ) -> None:
        self._keys = keys
        self._turns = asyncio.Semaphore(at_once)
        self._most = waiting
        self._turn_s = turn_s
        self._waiting = 0

    async def __call__(self, work: Callable[[K], T]) -> T:
        if self._keys is None:
            raise Unsupported("this node keeps no API keys")
        await self._turn()
        loop = asyncio.get_running_loop()
        done: asyncio.Future[T] = loop.create_future()
        # A daemon, as no call may keep a process from ending that waits for a loop that has ended.
        thread = threading.Thread(target=self._run, args=(work, self._keys, loop, done), name="vecdb-keys", daemon=True)
        try:
            thread.start()
        except RuntimeError:
            self._turns.release()
            raise Unavailable("there is no thread for a call of API keys", retry_after_s=RETRY_S) from None
        return await done

    async def _turn(self) -> None:
        if self._turns.locked() and self._waiting >= self._most:
            raise _busy()
        self._waiting += 1
        try:
            async with asyncio.timeout(self._turn_s):
                await self._turns.acquire()
        except TimeoutError:
            raise _busy() from None
        finally:
            self._waiting -= 1

    def _run(self, work: Callable[[K], T], keys: K, loop: asyncio.AbstractEventLoop, done: "asyncio.Future[T]") -> None:
        result: T | None = None
        error: BaseException | None = None
        try:
            result = work(keys)
        except BaseException as raised:
            error = raised

        def tell() -> None:
            self._turns.release()
            if done.done():
                return  # whoever asked has gone
            if error is not None:
                done.set_exception(error)
            else:
                done.set_result(result)  # type: ignore[arg-type]  # of ``work``, which may return None

        with suppress(RuntimeError):  # the loop has ended, and with it who waited
            loop.call_soon_threadsafe(tell)


def _busy() -> Unavailable:
    return Unavailable("other calls of API keys take long, as where nobody leads the control group; nothing was done",
                       retry_after_s=RETRY_S)
