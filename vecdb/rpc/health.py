"""``grpc.health.v1`` and reflection, for strangers: they ask for no key, so how many may listen at once is bounded.

The library's servicers answer; what is added is that bound, and an end: a watcher that stays would hold a drain
until its last second, and thousands of them every call that the server takes at all.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

import grpc
from grpc_health.v1 import _async as health_aio
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha._async import ReflectionServicer

WATCHERS: Final = 256
WATCH_S: Final = 3_600.0
REFLECTIONS: Final = 16
REFLECTION_S: Final = 60.0


class Listeners:
    """At most ``most`` streams, each for ``seconds`` at most, all ended by ``end``."""

    def __init__(self, what: str, most: int, seconds: float) -> None:
        self._what, self._most, self._seconds = what, most, seconds
        self._tasks: set[asyncio.Task[Any]] = set()

    def __len__(self) -> int:
        return len(self._tasks)

    async def admit(self, rpc: Any) -> None:
        if len(self._tasks) >= self._most:
            await rpc.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, f"{self._most} {self._what} are open already")

    @contextmanager
    def listening(self) -> Iterator[None]:
        """For the time of one stream; it is cancelled when its time is over."""
        task = asyncio.current_task()
        assert task is not None
        timer = asyncio.get_running_loop().call_later(self._seconds, task.cancel)
        self._tasks.add(task)
        try:
            yield
        finally:
            timer.cancel()
            self._tasks.discard(task)

    def end(self) -> None:
        for task in self._tasks:
            task.cancel()


class BoundedHealth(health_aio.HealthServicer):  # type: ignore[misc]  # the library has no types
    """The library's, with watchers bounded."""

    def __init__(self) -> None:
        super().__init__()
        self.watchers = Listeners("health watchers", WATCHERS, WATCH_S)

    async def Watch(self, request: health_pb2.HealthCheckRequest, context: Any) -> None:  # noqa: N802 - gRPC's name
        await self.watchers.admit(context)
        with self.watchers.listening():
            await super().Watch(request, context)


class BoundedReflection(ReflectionServicer):  # type: ignore[misc]  # the library has no types
    """The library's, with streams bounded."""

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__(names)
        self.streams = Listeners("reflection streams", REFLECTIONS, REFLECTION_S)

    async def ServerReflectionInfo(self, request_iterator: Any, unused_context: Any  # noqa: N802 - gRPC's name
                                   ) -> AsyncIterator[Any]:
        await self.streams.admit(unused_context)
        with self.streams.listening():
            async for reply in super().ServerReflectionInfo(request_iterator, unused_context):
                yield reply
