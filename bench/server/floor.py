"""What the transport alone costs: a server that answers every query with bytes made before.

    python -m bench.server.floor --ready-file F [--kind aio|aio-plain|aio-sync-handler|sync] [--dim 128] [--k 10]

Requests are not parsed; the answer is as long as a real one for as many rows as the request's length says.
``aio`` is the stack of the server, grpc.aio on uvloop; the others are for comparing (:mod:`bench.transport`).
"""

import argparse
import asyncio
import json
import signal
import threading
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc

from vecdb.v1 import queries_pb2, records_pb2, types_pb2

KINDS = ("aio", "aio-plain", "aio-sync-handler", "sync")
OPTIONS = [("grpc.max_receive_message_length", 72 << 20), ("grpc.max_send_message_length", -1),
           ("grpc.so_reuseport", 0)]  # fmt: skip
UPSERTED = records_pb2.UpsertReply(result=types_pb2.WriteResult(inserted=1000, log_index=1_000_000)).SerializeToString()


class Answers:
    """Replies by the number of rows."""

    def __init__(self, dim: int, k: int) -> None:
        self._row_bytes = 4 * dim
        self._k = k
        self._made: dict[int, bytes] = {}

    def __call__(self, request: bytes) -> bytes:
        rows = max(1, len(request) // self._row_bytes)
        reply = self._made.get(rows)
        if reply is None:
            reply = self._made[rows] = empty_reply(rows, self._k)
        return reply


def empty_reply(rows: int, k: int) -> bytes:
    """A QueryReply of the size of a real one."""
    return queries_pb2.QueryReply(
        counts=[k] * rows, ids=types_pb2.Ids(integers=bytes(8 * k * rows)), distances=bytes(4 * k * rows)
    ).SerializeToString()


class Handlers(grpc.GenericRpcHandler):
    """Methods by their path."""

    def __init__(self, methods: dict[str, Any]) -> None:
        self._methods = methods

    def service(self, handler_call_details: Any) -> Any:
        return self._methods.get(handler_call_details.method)


def asynchronous(answers: Answers) -> Handlers:
    async def query(request: bytes, context: Any) -> bytes:
        return answers(request)

    async def stream(requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        async for request in requests:
            yield answers(request)

    async def upsert(request: bytes, context: Any) -> bytes:
        return UPSERTED

    async def upserts(requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        async for _ in requests:
            yield UPSERTED

    return Handlers({
        "/vecdb.v1.Queries/Query": grpc.unary_unary_rpc_method_handler(query),
        "/vecdb.v1.Queries/QueryStream": grpc.stream_stream_rpc_method_handler(stream),
        "/vecdb.v1.Records/Upsert": grpc.unary_unary_rpc_method_handler(upsert),
        "/vecdb.v1.Records/UpsertStream": grpc.stream_stream_rpc_method_handler(upserts),
    })  # fmt: skip


def synchronous(answers: Answers) -> Handlers:
    def query(request: bytes, context: Any) -> bytes:
        return answers(request)

    def stream(requests: Iterator[bytes], context: Any) -> Iterator[bytes]:
        for request in requests:
            yield answers(request)

    return Handlers({
        "/vecdb.v1.Queries/Query": grpc.unary_unary_rpc_method_handler(query),
        "/vecdb.v1.Queries/QueryStream": grpc.stream_stream_rpc_method_handler(stream),
    })  # fmt: skip


def tell(path: Path, port: int) -> None:
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps({"grpc_port": port}), encoding="utf-8")
    partial.replace(path)


async def serve(handlers: Handlers, ready: Path, threads: int) -> None:
    server = grpc.aio.server(migration_thread_pool=ThreadPoolExecutor(threads), options=OPTIONS)
    server.add_generic_rpc_handlers((handlers,))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    tell(ready, port)
    asked = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, asked.set)
    await asked.wait()
    await server.stop(0.0)


def serve_threads(handlers: Handlers, ready: Path, threads: int) -> None:
    server = grpc.server(ThreadPoolExecutor(threads), options=OPTIONS)
    server.add_generic_rpc_handlers((handlers,))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    tell(ready, port)
    asked = threading.Event()
    signal.signal(signal.SIGTERM, lambda number, frame: asked.set())
    asked.wait()
    server.stop(0.0)


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench.server.floor", description=str(__doc__).split("\n", 1)[0])
    parser.add_argument("--ready-file", type=Path, required=True)
    parser.add_argument("--kind", choices=KINDS, default="aio")
    parser.add_argument("--threads", type=int, default=8, help="of kinds whose handlers run in threads")
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--k", type=int, default=10)
    options = parser.parse_args()
    answers = Answers(options.dim, options.k)
    if options.kind == "sync":
        serve_threads(synchronous(answers), options.ready_file, options.threads)
        return
    handlers = synchronous(answers) if options.kind == "aio-sync-handler" else asynchronous(answers)
    work = serve(handlers, options.ready_file, options.threads)
    if options.kind == "aio-plain":
        asyncio.run(work)
    else:
        import uvloop

        uvloop.run(work)


if __name__ == "__main__":
    main()
