"""A node put together from settings."""

import asyncio
import os
import resource
import secrets
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir
from typing import TYPE_CHECKING, Any, Final

from vecdb.app import open_embedded, open_store
from vecdb.cluster.joining import Release
from vecdb.config import Settings
from vecdb.core.errors import VecdbError
from vecdb.core.nodes import is_loopback
from vecdb.ports.node import Node
from vecdb.ports.observer import Watched
from vecdb.rpc.admin import AdminServicer
from vecdb.rpc.audit import AuditLog
from vecdb.rpc.auth import Authenticator, loud_binding
from vecdb.rpc.cluster import ClusterServicer
from vecdb.rpc.door import Guards, Inside
from vecdb.rpc.edge import Edge
from vecdb.rpc.http.app import HttpApp
from vecdb.rpc.http.face import HttpFace, HttpOptions
from vecdb.rpc.methods import Method
from vecdb.rpc.operations import OperationsServicer
from vecdb.rpc.peer import PEER_PREFIX, PeerServicer, peer_guards
from vecdb.rpc.rates import InflightBytes, RateLimiter
from vecdb.rpc.server import GrpcServer, ServerOptions
from vecdb.rpc.servicers import CollectionsServicer, QueriesServicer, RecordsServicer
from vecdb.rpc.shards import ShardsServicer
from vecdb.rpc.tls import Certificates, open_certificates
from vecdb.runtime import tracing
from vecdb.runtime.clock import SystemClock
from vecdb.runtime.logs import logger
from vecdb.runtime.memory import held_bytes, memory
from vecdb.runtime.metrics import Metrics
from vecdb.runtime.pool import available_cores
from vecdb.runtime.replication import Replication
from vecdb.runtime.telemetry import Telemetry, TelemetryOptions
from vecdb.services.administration import LONE
from vecdb.services.alone import LoneShards
from vecdb.services.aside import kept
from vecdb.services.cluster_keys import ClusterKeys
from vecdb.services.keys import KeyRing
from vecdb.services.local import LocalDatabase
from vecdb.services.node import LocalNode, NodeLimits
from vecdb.serving.front import FrontSettings
from vecdb.serving.fronts import Fronts, reserve
from vecdb.serving.warming import Warming
from vecdb.storage.paths import replace_file
from vecdb.wire.filters import FILTERS

if TYPE_CHECKING:
    from vecdb.serving.cluster import Member

KEYS: Final = "keys"
NODE_ID: Final = "node.id"
MEMORY_SHARE: Final = 0.8
"""Of the memory the process may use, where writes begin to be refused."""
ENGINE_SHARE: Final = 0.7
"""Of that, what segments may take."""
EDGE_THREADS: Final = 2
FILES_KEPT: Final = 256
"""Descriptors that are not for connections: tables, logs and segments of the store, and what libraries open."""
HARD: Final = 2
"""Times the calls that are let in: beyond it gRPC itself refuses, in fewer words."""
CORES_PER_FRONT: Final = 4
MOST_FRONTS: Final = 4
MAX_TEMP_PATH: Final = 80
"""A socket's path may have 107 bytes."""
RECORD_USES_S: Final = 60.0
KNOWN_S: Final = 0.2
OnStep = Callable[[str], None]


def memory_limit(settings: Settings) -> int:
    """Bytes from which writes are refused."""
    return settings.limits.memory_bytes or int(memory().total_bytes * MEMORY_SHARE)


def _open_database(settings: Settings) -> LocalDatabase:
    """The engine, with what segments may take bounded by what the process may."""
    options = settings.engine.model_dump() | {"replicated": bool(settings.cluster.name)}
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
        replace_file(path, made + "\n")
        return made


def installed_version() -> str:
    try:
        return version("vecdb")
    except PackageNotFoundError:
        return "0+unknown"


@dataclass(slots=True)
class GrpcFace:
    """The public gRPC port: this process's own server, or ``fronts`` before it."""

    server: GrpcServer
    fronts: Fronts | None = None
    port: int = 0

    @property
    def running(self) -> int:
        return self.server.running

    @property
    def streams(self) -> int:
        """Streams that are open, those of fronts included."""
        return self.server.streams

    async def start(self) -> int:
        """Bind; returns the public port."""
        port = await self.server.start()
        self.port = self.port or port
        return self.port

    async def ready(self) -> None:
        await self.server.ready()
        if self.fronts is not None:
            await self.fronts.start()

    async def stop(self, drain_s: float) -> None:
        if self.fronts is not None:
            await self.fronts.stop(drain_s)
        await self.server.stop(drain_s)


@dataclass(slots=True)
class Running:
    """A node that serves; ``close`` drains it.  ``addresses``: where, as ``grpc``, ``grpc_port``, ``http``, …"""

    grpc: GrpcFace
    http: HttpFace | None
    metrics: Metrics
    addresses: dict[str, Any]
    drain_s: float
    _ready: list[str]
    _stack: AsyncExitStack = field(repr=False)
    _member: "Member | None" = None

    async def failed(self) -> None:
        """Return when only a start anew helps; for a node that is alone, never."""
        if self._member is None:
            await asyncio.Event().wait()
        else:
            await self._member.failed()

    @property
    def running(self) -> int:
        """Calls that have begun and not ended."""
        return self.grpc.running + (self.http.app.running if self.http is not None else 0)

    async def close(self, drain_s: float | None = None) -> None:
        """Say no to new calls, let those that run end within ``drain_s``, make everything durable."""
        self._ready[:] = ["draining"]
        wait_s = self.drain_s if drain_s is None else drain_s
        if self._member is not None:
            await self._member.hand_over()
        faces = [self.grpc.stop(wait_s), *([] if self.http is None else [self.http.stop(wait_s)])]
        await asyncio.gather(*faces)
        await self._stack.aclose()

    async def cut_short(self) -> None:
        """End the calls that a drain still waits for."""
        await self.grpc.stop(0.0)
        if self.http is not None:
            await self.http.stop(0.0)


async def start(settings: Settings, *, on_step: OnStep = lambda step: None, release: Release | None = None) -> Running:
    """Open, bind, warm up, serve.  Raises what opening and binding raise, having let go of everything.

    ``release``: what the node says it is; what is installed unless given.
    """
    async with AsyncExitStack() as stack:
        running = await _compose(settings, stack, on_step, release or Release(installed_version()))
        running._stack = stack.pop_all()
        return running


async def _compose(settings: Settings, stack: AsyncExitStack, on_step: OnStep, release: Release) -> Running:
    loop = asyncio.get_running_loop()
    clock = SystemClock()
    certificates = open_certificates(settings.tls, clock, tell)
    on_step("opening")
    database = await loop.run_in_executor(None, _open_database, settings)
    stack.callback(database.close)
    about = {"version": release.version, "node_id": node_id(settings)}
    folder = Path(stack.enter_context(_folder())) if processes(settings) > 1 else None
    telemetry = _telemetry(settings, database, about, folder, stack)
    metrics = telemetry.metrics
    limits = settings.limits
    engine = LocalNode(database, clock, metrics, NodeLimits(
        settings.engine.threads or available_cores(), limits.write_threads, limits.queued_queries,
        memory_limit(settings)), held_bytes, telemetry.slow.wants_plan)
    stack.push_async_callback(engine.close)
    member = await _join(settings, database, engine, telemetry, release, stack)
    node: Node = engine if member is None else member.node
    ring = KeyRing(settings.data_dir / KEYS, open_store, clock)
    stack.callback(ring.close)
    keys: KeyRing | ClusterKeys = ring if member is None else member.keys(ring)
    uses = loop.create_task(_record_uses(ring))
    stack.callback(uses.cancel)
    authenticator = Authenticator(keys, settings.security, clock)
    guards = _guards(settings, keys, authenticator, metrics, certificates, stack)
    starting = ["starting"]
    warming = Warming(starting, tell, on_step, _compiled)
    workers = ThreadPoolExecutor(EDGE_THREADS, thread_name_prefix="vecdb-edge")
    stack.push_async_callback(asyncio.to_thread, workers.shutdown)  # what they do may wait for the loop
    if member is not None:
        assert isinstance(keys, ClusterKeys)
        guards = replace(guards, authenticator=warming.guarded(
            member.membership.guarded(guards.authenticator, keys, lambda: _reasons(member),
                                                                     lambda: member.unfounded)))
    details = _about(settings, about, engine)
    methods = [*CollectionsServicer(node).methods(), *RecordsServicer(node, metrics).methods(),
               *QueriesServicer(node, metrics, limits.deadline_s).methods(),
               *AdminServicer(node, keys, details).methods(),
               *ShardsServicer(LoneShards(node, about["node_id"]) if member is None else member.shards).methods(),
               *ClusterServicer(None if member is None else member.node).methods(),
               *OperationsServicer(lambda: LONE if member is None else member.governing.administration).methods()]
    face = _grpc_face(settings, methods, guards, workers, certificates, about, folder, stack)
    metrics.watch(Watched.STREAMS, lambda: float(face.streams))
    metrics.watch(Watched.DRAINING, lambda: float("draining" in starting))
    http = None
    if settings.server.http_port >= 0:
        http = HttpFace(HttpApp(
            node, guards, workers, keys=keys, about=details, readiness=lambda: starting or _reasons(member),
            metrics=telemetry.page, message_bytes=limits.message_bytes, open_metrics=settings.server.open_metrics,
            known_host=_known_host(settings, authenticator),
            warnings=list if member is None else member.warnings), HttpOptions(
                settings.server.host, settings.server.http_port, connections(settings),
                None if certificates is None else certificates.ssl_context()), metrics)
    engine.batcher.alone = lambda: guards.inside.calls <= 1
    addresses = await _bind(settings, face, http, stack)
    if settings.server.warm_up:
        await loop.run_in_executor(None, warming.run, _warm_up)
    if member is not None:
        addresses["peer_port"] = await member.start(guards, workers, details, addresses, stack)
    await face.ready()
    warming.done()
    return Running(face, http, metrics, addresses, settings.server.drain_s, starting, stack, member)


async def _join(settings: Settings, database: LocalDatabase, engine: LocalNode, telemetry: Telemetry,
                release: Release, stack: AsyncExitStack) -> "Member | None":
    """This node's part in its cluster, if it has one."""
    if not settings.cluster.name:
        return None
    from vecdb.serving.cluster import join  # a node that is alone needs nothing of it

    member = await join(settings, database, engine, telemetry.metrics, release, tell, stack)
    telemetry.add(Replication(member.figures, telemetry.metrics.names))
    return member


def _reasons(member: "Member | None") -> list[str]:
    """Why a member does not serve, and, if it does not, which nodes it does not reach."""
    reasons = [] if member is None else member.reasons()
    if member is None or not reasons:
        return reasons
    return reasons + [f"node {node} is not reached: {why}" for node, why in member.frames.away().items()]


def _telemetry(settings: Settings, database: LocalDatabase, about: dict[str, str], pages: Path | None,
               stack: AsyncExitStack) -> Telemetry:
    """Metrics, samples, slow queries and traces, begun; ``pages``: where front processes leave theirs."""
    watched = settings.telemetry
    stack.callback(tracing.configure(
        watched.otlp_endpoint, ratio=watched.trace_ratio, insecure=watched.otlp_insecure,
        attributes={"service.version": about["version"], "service.instance.id": about["node_id"]}))
    telemetry = Telemetry(TelemetryOptions(
        about["version"], settings.data_dir, slow_query_ms=settings.log.slow_query_ms,
        recall_samples_per_minute=watched.recall_samples_per_minute, recall_cpu_share=watched.recall_cpu_share,
        write_limit_bytes=memory_limit(settings), process="" if pages is None else "engine", pages=pages,
        build={"node": about["node_id"]}), SystemClock(), database)
    telemetry.start()
    stack.push_async_callback(telemetry.close)
    return telemetry


async def _warn_exposed(settings: Settings, keys: KeyRing | ClusterKeys, authenticator: Authenticator) -> None:
    """Say who can reach what, once it is known whether there are keys."""
    while not keys.known:
        await asyncio.sleep(KNOWN_S)
    for warning in loud_binding(settings, keys_required=authenticator.required):
        tell("warning", "exposed", warning=warning)


async def _record_uses(keys: KeyRing) -> None:
    """When each key was last used, made durable now and then."""
    while True:
        await asyncio.sleep(RECORD_USES_S)
        try:
            await asyncio.to_thread(keys.record_uses)
        except VecdbError as error:  # a disk that refuses is told where it matters more
            tell("warning", "key_uses_not_recorded", error=error.message)


def tell(level: str, event: str, **fields: Any) -> None:
    """A part of the node has something to say: it goes to the log."""
    getattr(logger(), level)(event, **fields)


def _folder() -> TemporaryDirectory[str]:
    """For the socket, where only this user may enter; its path must not be long, whatever TMPDIR says."""
    place = None if len(gettempdir()) <= MAX_TEMP_PATH else "/tmp"  # noqa: S108  # made with a name of its own, 0700
    return TemporaryDirectory(prefix="vecdb-", dir=place, ignore_cleanup_errors=True)


def connections(settings: Settings) -> int:
    """Connections of one face at once: as set, and no more than leave the store its descriptors."""
    allowed = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if allowed == resource.RLIM_INFINITY:
        return settings.limits.connections
    return min(settings.limits.connections, max(8, (allowed - FILES_KEPT) // 2))


def processes(settings: Settings) -> int:
    """Front processes; 1: none, the engine's own process serves.

    Chosen by the cores: none below eight, then one for every four, at most four.  Measured with short queries from
    many clients (20,000 vectors of 64 dimensions, CPU of each process with its kernels): one process spends some 500
    microseconds on each, nearly all on its loop's one core however many there are; with fronts the engine spends 170
    and a front 170 (256 under way; 230 each at 64), for messages between them are shared.  So fronts bring the loop to
    almost three times as many queries, two of them fill it, and a third and fourth are for TLS and for what is not
    gathered.  They cost memory (70 MB each), and a query that is alone half a millisecond more and twice the CPU: where
    cores are few, kernels need them more.  Batches and streams, whose messages bring much, gain little.
    """
    asked = settings.server.processes
    if asked:
        return asked
    return max(1, min(MOST_FRONTS, (settings.engine.threads or available_cores()) // CORES_PER_FRONT))


def _grpc_face(settings: Settings, methods: list[Method], guards: Guards, workers: Executor,
               certificates: Certificates | None, about: dict[str, str], folder: Path | None,
               stack: AsyncExitStack) -> GrpcFace:
    server, limits = settings.server, settings.limits
    credentials = None if certificates is None else certificates.grpc_credentials()
    if folder is None:
        return GrpcFace(GrpcServer([Edge(methods, guards, workers)], ServerOptions(
            join_host_port(server.host, server.grpc_port), limits.message_bytes, HARD * limits.concurrent_calls,
            credentials, False, server.reflection, connections=connections(settings))))
    relayed = replace(guards, relayed=True)
    public = Edge(methods, relayed, workers)
    inner = replace(peer_guards(relayed), inside=Inside())  # what comes in its streams is counted as calls of public
    peer = Edge(PeerServicer(public, about["node_id"], about["version"]).methods(), inner, workers,
                prefix=PEER_PREFIX)
    held = reserve(server.host, server.grpc_port)
    stack.callback(held.close)
    port = int(held.getsockname()[1])
    count = processes(settings)
    front = FrontSettings(
        "front", folder, join_host_port(server.host, port), limits.message_bytes, limits.concurrent_calls,
        limits.inflight_bytes // count, max(8, connections(settings) // count), server.reflection, server.drain_s,
        settings.log.level, settings.log.format,
        settings.tls.cert_file, settings.tls.key_file, settings.tls.client_ca_file, settings.tls.reload_s)
    # A front's calls come over one connection: who fills it with streams must not keep out the calls of others.
    calls = HARD * limits.concurrent_calls
    options = ServerOptions(front.socket, -1, count * (calls + 1), None, False, False, calls + 1)
    return GrpcFace(GrpcServer([public], options, inner=[peer]), Fronts(front, count, tell), port)


def _known_host(settings: Settings, authenticator: Authenticator) -> Callable[[str], bool]:
    """By which names the HTTP face answers: any, once it asks for keys or others than this machine reach it."""
    names = {name.lower() for name in settings.server.http_hosts} | {"", "localhost", settings.server.host.lower()}
    guarded = is_loopback(settings.server.host)
    return lambda name: not guarded or authenticator.required or name in names or is_loopback(name)


async def _bind(settings: Settings, face: GrpcFace, http: HttpFace | None, stack: AsyncExitStack) -> dict[str, Any]:
    host = settings.server.host
    port = await face.start()
    stack.push_async_callback(face.stop, 0.0)
    addresses: dict[str, Any] = {"grpc": join_host_port(host, port), "grpc_port": port}
    if http is not None:
        port = await http.start()
        stack.push_async_callback(http.stop, 0.0)
        addresses |= {"http": join_host_port(host, port), "http_port": port}
    return addresses


def _guards(settings: Settings, keys: KeyRing | ClusterKeys, authenticator: Authenticator, metrics: Metrics,
            certificates: Certificates | None, stack: AsyncExitStack) -> Guards:
    clock, limits = SystemClock(), settings.limits
    audit = AuditLog(settings.security.audit_file or settings.data_dir / "audit.jsonl", clock, tell)
    stack.callback(audit.close)
    budget = InflightBytes(limits.inflight_bytes)
    metrics.watch(Watched.API_KEYS, lambda: float(keys.good()))
    metrics.watch(Watched.INFLIGHT_BYTES, lambda: float(budget.used))
    if certificates is not None:
        metrics.watch(Watched.CERTIFICATE_EXPIRY, lambda: certificates.ends_s["certificate"])
        reload = asyncio.get_running_loop().create_task(certificates.watch())
        stack.callback(reload.cancel)
    metrics.watch(Watched.CACHE_HITS, lambda: float(FILTERS.hits), "filters")
    metrics.watch(Watched.CACHE_MISSES, lambda: float(FILTERS.misses), "filters")
    metrics.watch(Watched.CACHE_ENTRIES, lambda: float(len(FILTERS)), "filters")
    exposed = asyncio.get_running_loop().create_task(_warn_exposed(settings, keys, authenticator))
    stack.callback(exposed.cancel)

    def fault(error: BaseException, request_id: str, method: str) -> None:
        logger().error("fault", method=method, request_id=request_id, exc_info=error)

    return Guards(authenticator, RateLimiter(limits.rate, limits.burst, clock), budget, audit, metrics, fault,
                  limits.concurrent_calls, limits.deadline_s, limits.deadline_max_s,
                  certificates is not None and certificates.mutual)


def join_host_port(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host and not host.startswith("[") else f"{host}:{port}"


def _warm_up(progress: Callable[[int, int, str], None]) -> None:
    from vecdb.ann.warmup import warmup

    warmup(progress=progress)


def _compiled() -> int:
    from vecdb.kernels._jit import Compiled

    return Compiled.count


def _about(settings: Settings, about: dict[str, str], node: LocalNode) -> Callable[[], dict[str, Any]]:
    clock = SystemClock()

    def told() -> dict[str, Any]:
        return {**about, "wall_s": clock.wall(), "data_dir": str(settings.data_dir), "pid": os.getpid(),
                "set_aside": kept(settings.data_dir),
                "memory": {"held_bytes": node.guard.used(), "limit_bytes": node.guard.limit},
                "queued_queries": node.batcher.queued_rows, "running_batches": node.batcher.running}

    return told
