"""Records written, each batch durable when it is acknowledged: by unary calls, over a stream, over several, by the SDK.

A command takes the rows ``low`` to ``high`` of a matrix on disk in batches of ``rows``; ids are the rows' numbers.
"""

import asyncio
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import grpc
import numpy as np
import uvloop

from vecdb.v1 import records_pb2, types_pb2

UPSERT = "/vecdb.v1.Records/Upsert"
STREAM = "/vecdb.v1.Records/UpsertStream"
CALL_S = 120.0
WINDOW = 4
"""Batches a stream sends ahead of their acknowledgement."""
OPTIONS = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]


@dataclass(frozen=True, slots=True)
class Task:
    """``lanes``: calls or streams at once.  No batch begins after ``seconds``."""

    target: str
    vectors: np.ndarray
    low: int
    high: int
    rows: int = 500
    lanes: int = 1
    seconds: float = 30.0
    collection: str = "ingest"


def batches(task: Task) -> Iterator[bytes]:
    """UpsertRequests as bytes; their making counts as the client's work, as it would in any client."""
    end = time.perf_counter() + task.seconds
    for low in range(task.low, task.high, task.rows):
        if time.perf_counter() > end:
            return
        part = np.ascontiguousarray(task.vectors[low : min(low + task.rows, task.high)], "<f4")
        ids = types_pb2.Ids(integers=np.arange(low, low + len(part), dtype="<i8").tobytes())
        matrix = types_pb2.Matrix(rows=len(part), items=part.shape[1], dtype=types_pb2.DATA_TYPE_FLOAT32,
                                  data=part.tobytes())  # fmt: skip
        yield records_pb2.UpsertRequest(collection=task.collection, ids=ids, vectors=matrix).SerializeToString()


def acknowledged(raw: bytes) -> int:
    """Records of one reply; a refusal ends the measurement."""
    reply = records_pb2.UpsertReply.FromString(raw)
    if reply.HasField("error"):
        raise RuntimeError(f"{reply.error.kind}: {reply.error.message}")
    return int(reply.result.inserted + reply.result.updated)


def unary(task: Task) -> int:
    """``lanes`` calls in flight."""

    async def work() -> int:
        left, done = batches(task), 0
        async with grpc.aio.insecure_channel(task.target, OPTIONS) as channel:
            ask = channel.unary_unary(UPSERT)

            async def lane() -> None:
                nonlocal done
                for message in left:
                    records = acknowledged(await ask(message, timeout=CALL_S))
                    done += records  # after the await: others have counted meanwhile

            await asyncio.gather(*(lane() for _ in range(task.lanes)))
        return done

    return uvloop.run(work())


def stream(task: Task) -> int:
    """``lanes`` streams, each on a connection of its own, :data:`WINDOW` batches ahead."""

    async def work() -> int:
        left, done = batches(task), 0

        async def lane() -> None:
            nonlocal done
            async with grpc.aio.insecure_channel(task.target, [*OPTIONS, ("grpc.use_local_subchannel_pool", 1)]) as on:
                call = on.stream_stream(STREAM)(timeout=task.seconds + CALL_S)
                ahead = 0
                for message in left:
                    await call.write(message)
                    ahead += 1
                    if ahead >= WINDOW:
                        records = acknowledged(await call.read())
                        done += records
                        ahead -= 1
                await call.done_writing()
                for _ in range(ahead):
                    records = acknowledged(await call.read())
                    done += records

        await asyncio.gather(*(lane() for _ in range(task.lanes)))
        return done

    return uvloop.run(work())


def sdk(task: Task) -> int:
    """``upsert`` of everything in one call, as a program would."""
    import vecdb

    ids, vectors = np.arange(task.low, task.high), np.ascontiguousarray(task.vectors[task.low : task.high])
    with vecdb.connect(f"grpc://{task.target}") as database:
        result = database.collection(task.collection).upsert(ids=ids, vectors=vectors)
    return result.inserted + result.updated


HOW: dict[str, Callable[[Task], int]] = {"unary": unary, "stream": stream, "sdk": sdk}


def run(command: dict[str, Any]) -> dict[str, Any]:
    """The command of a driver."""
    known = {name: command[name] for name in Task.__dataclass_fields__ if name in command}
    task = Task(**{**known, "vectors": np.load(command["queries"], mmap_mode="r")})
    cpu, began = time.process_time(), time.perf_counter()
    records = HOW[command["how"]](task)
    return {"records": records, "seconds": time.perf_counter() - began, "cpu_s": time.process_time() - cpu}
