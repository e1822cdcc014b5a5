"""A node put together from settings."""

import asyncio
import os
import secrets
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any, Final

from vecdb.app import open_embedded, open_store
from vecdb.client.backend import Backend
from vecdb.config import Settings
from vecdb.ports.observer import Watched
from vecdb.rpc.admin import AdminServicer
from vecdb.rpc.auth import Authenticator
from vecdb.rpc.edge import Edge, Guards
from vecdb.rpc.rates import InflightBytes, RateLimiter
from vecdb.rpc.server import GrpcServer, ServerOptions
from vecdb.rpc.servicers import CollectionsServicer, QueriesServicer, RecordsServicer
from vecdb.runtime.clock import SystemClock
from vecdb.runtime.logs import logger
from vecdb.runtime.memory import held_bytes, memory
from vecdb.runtime.metrics import Metrics
from vecdb.runtime.pool import available_cores
from vecdb.services.keys import KeyRing
from vecdb.services.node import LocalNode, NodeLimits

KEYS: Final = "keys"
NODE_ID: Final = "node.id"
MEMORY_SHARE: Final = 0.8
"""Of the memory the process may use, where writes begin to be refused."""
ENGINE_SHARE: Final = 0.7
"""Of that, what segments may take."""
EDGE_THREADS: Final = 2


def memory_limit(settings: Settings) -> int:
    """Bytes from which writes are refused."""
    return settings.limits.memory_bytes or int(memory().total_bytes * MEMORY_SHARE)


def open_backend(settings: Settings) -> Backend:
    """The engine, with what segments may take bounded by what the process may."""
    options = settings.engine.model_dump()
    options["memory_bytes"] = options["memory_bytes"] or int(memory_limit(settings) * ENGINE_SHARE)
    return open_embedded(settings.data_dir, **options)


def node_id(settings: Settings) -> str:
    """The node's name: as set, else what it was called when it first started here."""
    if settings.server.node_id:
        return settings.server.node_id
    path = settings.data_dir / NODE_ID
    try:
        return path.read_text(encoding="ascii").strip()
    except FileNotFoundError:
        made = secrets.token_hex(6)
        partial = path.with_suffix(".partial")
        partial.write_text(made + "\n", encoding="ascii")
        os.replace(partial, path)
        return made


@dataclass(slots=True)
class Running:
    """A node that serves; ``close`` drains it."""

    node: LocalNode
    grpc: GrpcServer
    metrics: Metrics
    about: Callable[[], dict[str, Any]]
    addresses: dict[str, Any]
    _stack: AsyncExitStack
    _drain_s: float

    async def close(self, drain_s: float | None = None) -> None:
        await self.grpc.stop(self._drain_s if drain_s is None else drain_s)
        await self._stack.aclose()


async def start(settings: Settings, *, on_step: Callable[[str], None] = lambda step: None) -> Running:
    """Open, bind, warm up, serve.  Raises what opening and binding raise, having let go of everything."""
    async with AsyncExitStack() as stack:
        running = await _compose(settings, stack, on_step)
        running._stack = stack.pop_all()
        return running


async def _compose(settings: Settings, stack: AsyncExitStack, on_step: Callable[[str], None]) -> Running:
    loop = asyncio.get_running_loop()
    clock, metrics, log = SystemClock(), Metrics(), logger()
    on_step("opening")
    backend = await loop.run_in_executor(None, open_backend, settings)
    limits = settings.limits
    node = LocalNode(backend, clock, metrics, NodeLimits(  # type: ignore[arg-type]
        settings.engine.threads or available_cores(), limits.write_threads, limits.queued_queries,
        memory_limit(settings)), held_bytes)
    stack.push_async_callback(node.close)
    keys = KeyRing(settings.data_dir / KEYS, open_store, clock)
    stack.callback(keys.close)
    metrics.watch(Watched.API_KEYS, lambda: float(len(keys.list())))
    budget = InflightBytes(limits.inflight_bytes)
    metrics.watch(Watched.INFLIGHT_BYTES, lambda: float(budget.used))
    workers = ThreadPoolExecutor(EDGE_THREADS, thread_name_prefix="vecdb-edge")
    stack.callback(workers.shutdown)

    def fault(error: BaseException, request_id: str, method: str) -> None:
        log.error("fault", method=method, request_id=request_id, exc_info=error)

    guards = Guards(Authenticator(keys, settings.security, clock), RateLimiter(limits.rate, limits.burst, clock),
                    budget, _Logged(), metrics, fault, limits.concurrent_calls, limits.deadline_s,
                    limits.deadline_max_s)
    about = _about(settings, node_id(settings), node)
    methods = [*CollectionsServicer(node).methods(), *RecordsServicer(node).methods(),
               *QueriesServicer(node, limits.deadline_s).methods(), *AdminServicer(node, keys, about).methods()]
    grpc = GrpcServer([Edge(methods, guards, workers)], ServerOptions(
        f"{settings.server.host}:{settings.server.grpc_port}", limits.message_bytes, 2 * limits.concurrent_calls,
        None, settings.server.processes > 1, settings.server.reflection))
    port = await grpc.start()
    stack.push_async_callback(grpc.stop, 0.0)
    if settings.server.warm_up:
        await loop.run_in_executor(None, _warm_up, on_step)
    await grpc.ready()
    addresses = {"grpc": f"{settings.server.host}:{port}", "grpc_port": port}
    return Running(node, grpc, metrics, about, addresses, stack, settings.server.drain_s)


class _Logged:
    """Admin calls in the node's log."""

    def record(self, **told: Any) -> None:
        told["principal"] = told["principal"].label
        logger().info("admin_call", **told)


def _warm_up(on_step: Callable[[str], None]) -> None:
    from vecdb.ann.warmup import warmup

    warmup(progress=lambda done, of, step: on_step(f"kernels {done}/{of} {step}".strip()))


def _about(settings: Settings, name: str, node: LocalNode) -> Callable[[], dict[str, Any]]:
    from importlib.metadata import PackageNotFoundError, version

    try:
        number = version("vecdb")
    except PackageNotFoundError:
        number = "0+unknown"

    def about() -> dict[str, Any]:
        return {"version": number, "node_id": name, "wall_s": SystemClock().wall(), "data_dir": str(settings.data_dir),
                "memory": {"held_bytes": node.guard.used(), "limit_bytes": node.guard.limit},
                "queued_queries": node.batcher.queued_rows, "running_batches": node.batcher.running,
                "pid": os.getpid()}

    return about


