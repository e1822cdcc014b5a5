"""Waiting for what comes about in an event loop, however loaded the machine is."""

import asyncio
from collections.abc import Callable


async def until(found: Callable[[], object], seconds: float = 60.0) -> None:
    """Return once ``found()`` is true; the limit is no promise, only an end for what has gone wrong."""
    async with asyncio.timeout(seconds):
        while not found():
            await asyncio.sleep(0.002)
