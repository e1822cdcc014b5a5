"""Calls of a key ring that take long: they hold none of the loop's threads, and are bounded."""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from vecdb.core.access import Key
from vecdb.core.errors import KeyNotFound, Unavailable, Unsupported
from vecdb.rpc.admin import AdminServicer
from vecdb.rpc.http.admin import AdminOperations
from vecdb.services.key_calls import AT_ONCE, KeyCalls
from vecdb.v1 import admin_pb2 as pb

LONG_S = 120.0


class Slow:
    """Keys of a cluster that nobody leads."""

    def __init__(self) -> None:
        self.go, self.lock, self.inside = threading.Event(), threading.Lock(), 0

    def list(self) -> list[Key]:
        with self.lock:
            self.inside += 1
        assert self.go.wait(LONG_S)
        with self.lock:
            self.inside -= 1
        return []


async def until(condition: Any) -> None:
    async with asyncio.timeout(LONG_S):
        while not condition():
            await asyncio.sleep(0.005)


@pytest.mark.parametrize("face", ["grpc", "http"])
def test_key_calls_without_a_leader_leave_the_loops_threads_to_others(face: str) -> None:
    keys = Slow()
    node: Any = None

    def call() -> Any:
        if face == "grpc":
            return servicer.list_keys(pb.ListKeysRequest(), node)
        return operations.list_keys(node)

    async def run() -> None:
        loop = asyncio.get_running_loop()
        loop.set_default_executor(ThreadPoolExecutor(2))
        calls = [asyncio.ensure_future(call()) for _ in range(40)]
        try:
            await until(lambda: keys.inside == AT_ONCE)
            async with asyncio.timeout(LONG_S):
                assert await loop.run_in_executor(None, lambda: 7) == 7, "a file, say"
            await until(lambda: sum(one.done() for one in calls) == len(calls) - AT_ONCE)
        finally:
            keys.go.set()
        found = await asyncio.gather(*calls, return_exceptions=True)
        refused = [one for one in found if isinstance(one, Unavailable)]
        assert len(refused) == len(calls) - AT_ONCE, "the others are done"
        assert all(one.fields["retry_after_s"] > 0 for one in refused)
        await call()  # and so are those that come later

    servicer = AdminServicer(node, keys, dict)  # type: ignore[arg-type]
    operations = AdminOperations(keys, dict)  # type: ignore[arg-type]
    asyncio.run(run())


def test_what_comes_of_a_call_is_what_the_ring_says_and_who_gave_up_leaves_his_turn() -> None:
    keys = Slow()

    def absent(ring: Slow) -> None:
        raise KeyNotFound("no API key of the id x")

    async def run() -> None:
        calls = KeyCalls(keys, at_once=1, turn_s=LONG_S)
        with pytest.raises(KeyNotFound):
            await calls(absent)
        given_up = asyncio.ensure_future(calls(Slow.list))
        await until(lambda: keys.inside == 1)
        given_up.cancel()
        waiting = asyncio.ensure_future(calls(lambda ring: ring.inside))
        await asyncio.wait((given_up,))
        assert not waiting.done(), "the thread is taken yet"
        keys.go.set()
        assert await waiting == 0
        with pytest.raises(Unsupported):
            await KeyCalls(None)(absent)  # type: ignore[arg-type]

    asyncio.run(run())
