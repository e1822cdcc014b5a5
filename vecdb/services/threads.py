"""What a thread takes, for tasks that may be given up while it does."""

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor
from functools import partial
from typing import Any, TypeVar

T = TypeVar("T")


async def held(executor: Executor | None, let_go: Callable[[T], object], take: Callable[..., T], *args: Any) -> T:
    """What ``take(*args)`` returns, in a thread.

    A thread cannot be given up: where nobody waits for it any more, what it took is let go of as soon as it is there.
    """
    loop = asyncio.get_running_loop()
    taking = loop.run_in_executor(executor, partial(take, *args))

    def given_up(taken: "asyncio.Future[T]") -> None:
        if not taken.cancelled() and taken.exception() is None:
            loop.run_in_executor(None, let_go, taken.result())

    try:
        return await asyncio.shield(taking)
    except asyncio.CancelledError:
        taking.add_done_callback(given_up)
        raise
