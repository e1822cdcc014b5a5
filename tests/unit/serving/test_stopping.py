"""What a long stop is said to wait for."""

import asyncio
import threading
import time
from types import SimpleNamespace
from typing import Any

from vecdb.raft.replica import apply_all
from vecdb.services.barriers import Barriers
from vecdb.serving.stopping import watched


def test_the_places_are_told_where_a_stop_and_threads_stand() -> None:
    told: list[dict[str, Any]] = []
    enough, begun = threading.Event(), threading.Event()

    def tell(level: str, event: str, **fields: Any) -> None:
        assert (level, event) == ("info", "still_stopping")
        told.append(fields)
        if len(told) == 3:
            enough.set()

    def apply(*_: Any) -> None:
        begun.set()
        while not enough.is_set():  # it is at work: who waits for work is not told of
            time.sleep(0.001)

    async def nobody_answers(group: int) -> int:
        await asyncio.Event().wait()
        return group

    async def run() -> None:
        barriers = Barriers(nobody_answers)

        async def close() -> None:
            await barriers.index(7)

        closing = asyncio.create_task(close())
        work = asyncio.create_task(asyncio.to_thread(
            apply_all, SimpleNamespace(apply=apply), [(1, 1, b"")], []))
        async with asyncio.timeout(30):
            while not begun.is_set():
                await asyncio.sleep(0.01)
            with watched(closing, tell, 0.05):
                await work
        closing.cancel()

    asyncio.run(run())
    assert told[1]["seconds"] == 2 * told[0]["seconds"]
    waits = [one for fields in told for one in fields["waits"]]
    assert any(one.startswith("services/barriers.py:") and one.endswith(" index") for one in waits), waits
    assert any(one.startswith("raft/replica.py:") and " apply_all (thread " in one for one in waits), waits


def test_a_stop_that_is_short_tells_nothing() -> None:
    told: list[str] = []

    async def run() -> None:
        closing = asyncio.create_task(asyncio.sleep(0))
        with watched(closing, lambda level, event, **fields: told.append(event), 60.0):
            await closing

    asyncio.run(run())
    assert told == []
