"""Where frames of other nodes come in: the Raft service of a peer server."""

import asyncio
from collections import Counter
from collections.abc import Callable
from typing import Any, Final, TypeAlias

import grpc

from vecdb.rpc.frames_codec import BadFrames, Gathering
from vecdb.rpc.peer_names import Greeting
from vecdb.rpc.peers_server import peer_greeting
from vecdb.rpc.reading import EOF
from vecdb.rpc.seldom import Seldom

MESSAGES: Final = "Messages"
BULK: Final = "Bulk"
STREAM_KEY: Final = "vecdb-stream"
ACCEPTED_KEY: Final = "vecdb-accepted"
"""In the answer's initial metadata, which of a call that was refused is empty."""

AT_ONCE: Final = 256
"""Frames taken in a row; then others of the loop have their turn."""

Received: TypeAlias = Callable[[str, bytes | memoryview], None]


class FrameService(grpc.GenericRpcHandler):  # type: ignore[type-arg]  # generic in the stubs alone
    """One stream of a kind from each node is read; every frame goes to ``received``, in the event loop.

    ``came`` hears of every stream that was accepted.
    """

    def __init__(self, counts: "Counter[str]", seldom: Seldom, came: Callable[[str], None]) -> None:
        self.received: Received | None = None
        self._counts, self._seldom, self._came = counts, seldom, came
        self._streams: dict[tuple[str, str], tuple[tuple[int, int], asyncio.Task[None]]] = {}
        self._draining = False
        self._handlers = {f"/vecdb.internal.v1.Raft/{lane}": grpc.stream_unary_rpc_method_handler(self._handler(lane))
                          for lane in (MESSAGES, BULK)}

    def service(self, handler_call_details: Any) -> Any:
        return self._handlers.get(handler_call_details.method)

    def forget(self, node: str) -> None:
        """End the streams of a node."""
        for (name, _), (_, reading) in list(self._streams.items()):
            if name == node:
                reading.cancel()

    def drain(self) -> None:
        """End all streams, and take no others."""
        self._draining = True
        for _, reading in self._streams.values():
            reading.cancel()

    def _handler(self, lane: str) -> Any:
        async def run(_: Any, context: Any) -> bytes:
            return await self._run(lane, peer_greeting(context), context)

        return run

    async def _run(self, lane: str, greeting: Greeting, context: Any) -> bytes:
        if self._draining:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "the node is stopping")
        key, age = (greeting.node, lane), (greeting.incarnation, _number(context))
        before = self._streams.get(key)
        if before is not None:
            if age <= before[0] and not (greeting.confirmed and age[0] != before[0][0]):
                await self._refuse_older(key, age, before[0], context)
            before[1].cancel()
            self._counts["replaced"] += 1
        await context.send_initial_metadata(((ACCEPTED_KEY, "1"),))
        reading = asyncio.get_running_loop().create_task(self._read(greeting.node, context))
        self._streams[key] = (age, reading)
        self._came(greeting.node)
        try:
            await asyncio.wait((reading,))
        finally:
            reading.cancel()
            if self._streams.get(key) == (age, reading):
                del self._streams[key]
        if reading.cancelled():
            await context.abort(grpc.StatusCode.ABORTED,
                                "the node is stopping" if self._draining else "a newer stream took its place")
        return b""

    async def _refuse_older(self, key: tuple[str, str], age: tuple[int, int], newer: tuple[int, int], context: Any
                            ) -> None:
        self._counts["refused_older"] += 1
        if age[0] != newer[0]:
            self._seldom("error", "peer_refused", "older", key[0],
                         why="a process that was started later has this node's name: are there two?")
        await context.abort(grpc.StatusCode.ABORTED, "there is a newer stream of this node")

    async def _read(self, node: str, context: Any) -> None:
        counts, gathering = self._counts, Gathering()
        while True:
            message = await context.read()
            if message is EOF:
                return
            try:
                frames = gathering.take(message)
            except BadFrames as error:
                counts["dropped_malformed"] += 1
                self._seldom("warning", "frames_malformed", "malformed", node, why=str(error))
                continue
            counts["received_messages"] += 1
            counts["received_frames"] += len(frames)
            counts["received_bytes"] += len(message)
            received = self.received
            if received is None:
                counts["dropped_early"] += len(frames)
                continue
            for at, frame in enumerate(frames, 1):
                if not at % AT_ONCE:
                    await asyncio.sleep(0)
                try:
                    received(node, frame)
                except Exception as error:  # ours, not the sender's; the stream must not die of it
                    counts["failed_received"] += 1
                    self._seldom("error", "frame_failed", type(error).__name__, node, error=str(error)[:300])


def _number(context: Any) -> int:
    """Which of its process the stream is; 0 if it does not say."""
    said = next((value for key, value in context.invocation_metadata() or () if key == STREAM_KEY), "")
    return int(said) if isinstance(said, str) and said.isascii() and said.isdigit() and len(said) < 16 else 0
