"""One read of several shards that this node has replicas of: each for itself, at the same time.

What one of them cannot say is told beside what the others do: who asks goes on with those elsewhere.  What is wrong
with the read itself is raised, and so is anything else that is nobody's turn to answer.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Final, TypeVar

from vecdb.core.calls import Call
from vecdb.core.errors import (
    Cancelled,
    CollectionNotFound,
    DatabaseClosed,
    DataCorrupted,
    OutcomeUnknown,
    Overloaded,
    StaleShardMap,
    StorageError,
    Unavailable,
    VecdbError,
)
from vecdb.ports.clock import Clock
from vecdb.services.passing import of_shard

T = TypeVar("T")

PARTIAL_S: Final = 5.0
"""How long a partial answer is waited for in a call without a deadline."""
RESERVE: Final = 0.1
"""Of the time that is left, kept for the way back of a partial answer; at most :data:`RESERVE_S`."""
RESERVE_S: Final = 0.25
TOLD: Final = (Unavailable, DatabaseClosed, DataCorrupted, StorageError, CollectionNotFound, OutcomeUnknown, Overloaded,
               Cancelled, StaleShardMap)
"""What one shard's replica may fail with, and others not."""


def partial_until(call: Call, now: float) -> tuple[float, float]:
    """When what has answered is the answer, where the call allows that, and when the call ends."""
    left = PARTIAL_S if call.deadline is None else max(0.0, call.deadline - now)
    return now + left - min(RESERVE_S, RESERVE * left), now + left


async def ask_each(groups: Sequence[int], call: Call, clock: Clock, read: Callable[[int, Call], Awaitable[T]]
                   ) -> tuple[list[T], dict[int, VecdbError]]:
    """What the shards answer, in their order, and what the others fail with.

    With ``allow_partial`` those that have not answered shortly before the deadline are ``Unavailable``.
    """
    loop = asyncio.get_running_loop()
    tasks = [loop.create_task(_task(read, group, of_shard(call, group))) for group in groups]
    timeout = None
    if call.allow_partial:
        now = clock.monotonic()
        timeout = partial_until(call, now)[0] - now
    try:
        await asyncio.wait(tasks, timeout=timeout, return_when=asyncio.FIRST_EXCEPTION)
        found: list[T] = []
        failed: dict[int, VecdbError] = {}
        for group, task in zip(groups, tasks, strict=True):
            if not task.done():
                failed[group] = Unavailable(f"shard {group} did not answer in time", group=group)
                continue
            answer, error = task.result()
            if error is not None:
                failed[group] = error
            else:
                found.append(answer)  # type: ignore[arg-type]
        return found, failed
    finally:
        for task in tasks:
            if not task.done():
                task.cancel()
            else:
                with suppress(asyncio.CancelledError):
                    task.exception()


async def _task(read: Callable[[int, Call], Awaitable[T]], group: int, call: Call
                ) -> tuple[T | None, VecdbError | None]:
    try:
        return await read(group, call), None
    except TOLD as error:
        return None, error
