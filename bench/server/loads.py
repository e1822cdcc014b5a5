"""What one client process does to a server for some seconds: requests in flight, always so many.

A load returns the milliseconds of each call and how many calls there were before (warming up, counted into CPU time).
Raw loads send messages that were serialized before and do not read the answers: the same ones are sent to the floor, so
that what remains between the two is the server.  SDK loads are what a user's program does.
"""

import asyncio
import itertools
import time
from collections import deque
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import grpc
import numpy as np
import uvloop

from bench.server.pacing import CALL_S, WARM, Done, in_threads
from vecdb.v1 import queries_pb2, types_pb2

QUERY = "/vecdb.v1.Queries/Query"
STREAM = "/vecdb.v1.Queries/QueryStream"
OPTIONS = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1),
           ("grpc.use_local_subchannel_pool", 1)]  # fmt: skip


@dataclass(slots=True)
class Load:
    """``inflight`` calls of ``rows`` queries each at ``target`` until ``seconds`` have passed."""

    target: str
    vectors: np.ndarray
    collection: str = "bench"
    k: int = 10
    ef: int = 0
    inflight: int = 1
    rows: int = 1
    seconds: float = 1.0
    channels: int = 1
    loop: str = "uvloop"
    options: list[tuple[str, Any]] = field(default_factory=list)
    sdk: dict[str, Any] = field(default_factory=dict)


def messages(load: Load) -> list[bytes]:
    """QueryRequests over the vectors, as bytes."""
    made = []
    for low in range(0, max(1, len(load.vectors) - load.rows + 1), load.rows):
        part = np.ascontiguousarray(load.vectors[low : low + load.rows], "<f4")
        matrix = types_pb2.Matrix(rows=len(part), items=part.shape[1], dtype=types_pb2.DATA_TYPE_FLOAT32,
                                  data=part.tobytes())  # fmt: skip
        made.append(queries_pb2.QueryRequest(collection=load.collection, vectors=matrix, k=load.k,
                                             ef_search=load.ef).SerializeToString())  # fmt: skip
    return made


async def in_tasks(load: Load, ask: Callable[[int], Coroutine[Any, Any, Any]]) -> Done:
    """``await ask(i)`` from ``inflight`` tasks at once."""
    for place in range(WARM):
        await ask(place)
    counter = itertools.count()
    calls: list[float] = []
    began = time.perf_counter()
    end = began + load.seconds

    async def work() -> None:
        now = time.perf_counter()
        while not calls or now < end:  # one at least, however busy the machine
            await ask(next(counter))
            then, now = now, time.perf_counter()
            calls.append((now - then) * 1e3)

    await asyncio.gather(*(work() for _ in range(load.inflight)))
    return Done(calls, time.perf_counter() - began, WARM)


def _run(load: Load, work: Coroutine[Any, Any, Done]) -> Done:
    return uvloop.run(work) if load.loop == "uvloop" else asyncio.run(work)


def raw_sync(load: Load) -> Done:
    """grpc's synchronous client in threads."""
    made = messages(load)
    channels = [grpc.insecure_channel(load.target, OPTIONS + load.options) for _ in range(load.channels)]
    asks = [channel.unary_unary(QUERY) for channel in channels]
    try:
        return in_threads(load.inflight, load.seconds,
                          lambda i: asks[i % len(asks)](made[i % len(made)], timeout=CALL_S))  # fmt: skip
    finally:
        for channel in channels:
            channel.close()


def raw_aio(load: Load) -> Done:
    """grpc.aio's client in tasks."""
    made = messages(load)

    async def work() -> Done:
        channels = [grpc.aio.insecure_channel(load.target, OPTIONS + load.options) for _ in range(load.channels)]
        asks = [channel.unary_unary(QUERY) for channel in channels]

        async def ask(i: int) -> None:
            await asks[i % len(asks)](made[i % len(made)], timeout=CALL_S)

        try:
            return await in_tasks(load, ask)
        finally:
            for channel in channels:
                await channel.close()

    return _run(load, work())


def stream(load: Load) -> Done:
    """One bidirectional stream with ``inflight`` queries under way; answers may come in any order."""
    made = messages(load)

    async def work() -> Done:
        async with grpc.aio.insecure_channel(load.target, OPTIONS + load.options) as channel:
            call = channel.stream_stream(STREAM)(timeout=load.seconds + 2 * CALL_S)
            sent: dict[int, float] = {}
            order: deque[int] = deque()
            counter = itertools.count(1)
            calls: list[float] = []
            warm = WARM

            async def send() -> None:
                tag = next(counter)
                sent[tag] = time.perf_counter()
                order.append(tag)
                # Fields of a message may follow each other in any order, so the tag is put behind it.
                await call.write(made[tag % len(made)] + b"\x70" + _varint(tag))

            for _ in range(load.inflight):
                await send()
            began = time.perf_counter()
            end = began + load.seconds
            while sent:
                reply = queries_pb2.QueryReply.FromString(await call.read())
                now = time.perf_counter()
                if reply.HasField("error"):
                    raise RuntimeError(f"in the stream: {reply.error.kind}: {reply.error.message}")
                first = order.popleft()
                if reply.tag and reply.tag != first:
                    order.remove(reply.tag)
                    order.appendleft(first)
                calls.append((now - sent.pop(reply.tag or first)) * 1e3)
                if now < end or len(calls) + len(sent) <= warm:  # one at least is counted, however busy the machine
                    await send()
            seconds = time.perf_counter() - began
            await call.done_writing()
            with suppress(grpc.aio.AioRpcError):
                await call.read()
            return Done(calls[warm:], seconds, min(warm, len(calls)))

    return _run(load, work())


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def sdk_sync(load: Load) -> Done:
    """``vecdb.connect("grpc://…")`` in threads; ``rows`` queries a call."""
    import vecdb

    with vecdb.connect(f"grpc://{load.target}", **load.sdk) as database:
        docs = database.collection(load.collection)
        return in_threads(load.inflight, load.seconds,
                          lambda i: docs.query(_queries(load, i), k=load.k, ef_search=load.ef or None))  # fmt: skip


def sdk_async(load: Load) -> Done:
    """``vecdb.connect_async("grpc://…")`` in tasks."""
    import vecdb

    async def work() -> Done:
        async with await vecdb.connect_async(f"grpc://{load.target}", **load.sdk) as database:
            docs = await database.collection(load.collection)

            async def ask(i: int) -> None:
                await docs.query(_queries(load, i), k=load.k, ef_search=load.ef or None)

            return await in_tasks(load, ask)

    return _run(load, work())


def _queries(load: Load, place: int) -> np.ndarray:
    if load.rows == 1:
        return load.vectors[place % len(load.vectors)]
    low = place * load.rows % max(1, len(load.vectors) - load.rows + 1)
    return load.vectors[low : low + load.rows]


def flood(load: Load) -> Done:
    """``inflight`` calls at once whatever the server says: those it takes are timed, those it refuses counted.

    Beyond a connection's streams gRPC would hold calls back here, so there is a connection for every 200 of them.
    """
    made = messages(load)
    calls: list[float] = []
    refused: dict[str, int] = {}

    async def work() -> Done:
        count = -(-load.inflight // 200)
        channels = [grpc.aio.insecure_channel(load.target, OPTIONS + load.options) for _ in range(count)]
        asks = [channel.unary_unary(QUERY) for channel in channels]
        began = time.perf_counter()
        end = began + load.seconds

        async def lane(place: int) -> None:
            ask = asks[place % count]
            while True:  # once at least: where it takes long to begin them, all are under way all the same
                now = time.perf_counter()
                try:
                    await ask(made[place % len(made)], timeout=CALL_S)
                    calls.append((time.perf_counter() - now) * 1e3)
                except grpc.aio.AioRpcError as error:
                    name = error.code().name
                    refused[name] = refused.get(name, 0) + 1
                if time.perf_counter() >= end:
                    break

        await asyncio.gather(*(lane(place) for place in range(load.inflight)))
        seconds = time.perf_counter() - began
        for channel in channels:
            await channel.close()
        return Done(calls, seconds, 0, refused)

    return _run(load, work())


LOADS: dict[str, Callable[[Load], Done]] = {
    "raw-sync": raw_sync, "raw-aio": raw_aio, "stream": stream, "sdk-sync": sdk_sync, "sdk-async": sdk_async,
    "flood": flood,
}  # fmt: skip


def answers(load: Load) -> np.ndarray:
    """int64 (queries, k): the ids found for each query, -1 where there are none; by batches, over one channel."""
    found = np.full((len(load.vectors), load.k), -1, np.int64)
    with grpc.insecure_channel(load.target, OPTIONS) as channel:
        ask = channel.unary_unary(QUERY)
        row = 0
        for low in range(0, len(load.vectors), load.rows):
            part = Load(load.target, load.vectors[low : low + load.rows], load.collection, load.k, load.ef,
                        rows=min(load.rows, len(load.vectors) - low))  # fmt: skip
            reply = queries_pb2.QueryReply.FromString(ask(messages(part)[0], timeout=CALL_S))
            ids, place = np.frombuffer(reply.ids.integers, "<i8"), 0
            for count in reply.counts:
                found[row, :count] = ids[place : place + count]
                row, place = row + 1, place + count
    return found
