"""Work that goes on after its request was answered."""

import asyncio
import time
from collections.abc import Callable

from vecdb.core.calls import Call, Stopped
from vecdb.core.errors import Overloaded, VecdbError
from vecdb.rpc.http.operations import Request

MOST = 16


class Background:
    """One optimize a collection; a second request for it is content with the first.

    ``on_fault(error, request_id, method)`` hears of what ended otherwise than by an error of ours.
    """

    def __init__(self, deadline_s: float, on_fault: Callable[[BaseException, str, str], None]) -> None:
        self._deadline_s = deadline_s
        self._on_fault = on_fault
        self._running: dict[str, tuple[asyncio.Task[None], Call]] = {}

    def start(self, name: str, request: Request) -> None:
        if name in self._running:
            return
        if len(self._running) >= MOST:
            raise Overloaded(f"{MOST} collections are being optimized already", retry_after_s=10.0, limit=MOST)
        outer = request.call
        call = Call(time.monotonic() + self._deadline_s, None, outer.request_id, outer.principal,
                    outer.consistency, outer.session)
        task = asyncio.get_running_loop().create_task(self._run(name, request, call))
        self._running[name] = (task, call)
        task.add_done_callback(lambda _: self._running.pop(name, None))

    async def _run(self, name: str, request: Request, call: Call) -> None:
        try:
            await request.node.optimize(name, call)
        except VecdbError:
            pass  # told by the jobs of the collection
        except Exception as error:
            self._on_fault(error, call.request_id, "Collections/Optimize")

    async def stop(self) -> None:
        """End what runs, and wait for it."""
        tasks = []
        for task, call in self._running.values():
            call.end(Stopped.CANCELLED)
            task.cancel()
            tasks.append(task)
        await asyncio.gather(*tasks, return_exceptions=True)
