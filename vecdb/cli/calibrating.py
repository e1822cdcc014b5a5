"""What ``vecdb plan --qps`` adds up, measured on this machine in some seconds and kept in a file.

Searches are timed one after another in embedded databases of three sizes; calls and hops in a cluster of three nodes in
this process, whose shards hold next to nothing, so that what is left is the way there and back.  CPU is the process's,
of the client and of all nodes together.
"""

import asyncio
import logging
import os
import platform
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import orjson

from vecdb.cluster.capacity import QUANTILES, Calibration
from vecdb.core.errors import InvalidArgument
from vecdb.core.schema import CollectionSchema, IndexSpec

if TYPE_CHECKING:
    import numpy.typing as npt

SIZES: Final = (5_000, 15_000, 45_000)
SEARCHES: Final = 1_000
CALLS: Final = 300
AT_ONCE: Final = 64
NODES: Final = ("a", "b", "c")
K: Final = 10
Say = Callable[[str], None]


def calibration(schema: CollectionSchema, spec: IndexSpec, path: Path, *, anew: bool, say: Say) -> Calibration:
    """What was measured for such vectors and such an index, now if it was not before or is to be ``anew``.

    ``spec``: without ``auto``.  A file that cannot be read or written is done without.
    """
    key = orjson.dumps([schema.dim, schema.metric.value, schema.vector_type.value, replace(spec, ef_search=0)],
                       default=str).decode()
    known = _known(path)
    if not anew and key in known:
        try:
            return Calibration.from_json(known[key])
        except InvalidArgument:
            say(f"{path} holds something else: it is measured again")
    say("measuring this machine, for some seconds to a minute; it should have nothing else to do")
    found = measure(CollectionSchema("calibration", schema.dim, schema.metric, schema.vector_type, spec))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f"{path.name}.partial")
        partial.write_bytes(orjson.dumps({**known, key: found.to_json()}))
        partial.replace(path)
    except OSError as error:
        say(f"{path} cannot be written ({error.strerror}): it is measured again the next time")
    return found


def _known(path: Path) -> dict[str, Any]:
    try:
        value = orjson.loads(path.read_bytes())
    except (OSError, orjson.JSONDecodeError):
        return {}
    return value if isinstance(value, dict) else {}


def measure(schema: CollectionSchema, sizes: tuple[int, ...] = SIZES, searches: int = SEARCHES, calls: int = CALLS
            ) -> Calibration:
    """Measure; blocks for some seconds."""
    cpus: list[tuple[int, float]] = []
    spread: tuple[float, ...] = ()
    for size in sizes:
        cpu, spread = _searches(schema, size, searches)
        cpus.append((size, cpu))
    near, far = _calls(schema, calls)
    others = len(NODES) - 1
    return Calibration(_processor(), os.cpu_count() or 1, tuple(cpus), spread,
                       near.cpu_us, near.wall_us, max(0.0, far.cpu_us - near.cpu_us) / others,
                       max(0.0, far.wall_us - near.wall_us))


def _processor() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    names = [line.partition(":")[2].strip() for line in text.splitlines() if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _rows(schema: CollectionSchema, count: int, seed: int) -> "npt.NDArray[Any]":
    """Vectors whose variance falls with the dimension, as that of embeddings does along their principal axes: without
    it they would all be as far from each other, in clusters too easy to find.
    """
    import numpy as np

    from vecdb.core.schema import VectorType

    scale = np.arange(1, schema.dim + 1, dtype=np.float32) ** -0.5
    rows = np.random.default_rng(seed).standard_normal((count, schema.dim)).astype(np.float32) * scale
    if schema.vector_type is VectorType.BINARY:
        return np.packbits(rows > 0, axis=1)
    if schema.vector_type in (VectorType.INT8, VectorType.UINT8):
        low = 0 if schema.vector_type is VectorType.UINT8 else -128
        whole: npt.NDArray[Any] = np.clip(rows * 30 + (128 + low), low, low + 255).astype(schema.vector_type.value)
        return whole
    plain: npt.NDArray[Any] = rows.astype(np.float32)
    return plain


def _searches(schema: CollectionSchema, size: int, searches: int) -> tuple[float, tuple[float, ...]]:
    """CPU of a search in a segment of so many records, and how its times are spread."""
    import numpy as np

    from vecdb.app import open_embedded
    from vecdb.client.ingest import from_columns
    from vecdb.client.parts import batches
    from vecdb.core.query import QueryRequest
    from vecdb.core.vectors import check_queries

    with tempfile.TemporaryDirectory(prefix="vecdb-plan-") as folder:
        database = open_embedded(folder, background=False, seal_records=size)
        try:
            database.create_collection(schema)
            parts = from_columns(np.arange(size), _rows(schema, size, 2), None).parts
            for _, batch in batches(parts, schema, None, whole=False):
                database.upsert(schema.name, batch)
            database.optimize(schema.name)
            requests = [QueryRequest(check_queries(schema, row[None])[0], k=K) for row in _rows(schema, searches, 3)]
            for request in requests[: searches // 5]:
                database.query(schema.name, request)
            times = []
            cpu = time.process_time()
            for request in requests:
                begin = time.perf_counter()
                database.query(schema.name, request)
                times.append(time.perf_counter() - begin)
            cpu = time.process_time() - cpu
        finally:
            database.close()
    shares = np.quantile(times, QUANTILES) / np.median(times)
    return cpu / searches * 1e6, tuple(float(one) for one in shares)


@dataclass(frozen=True, slots=True)
class _Cost:
    cpu_us: float
    wall_us: float


def _calls(schema: CollectionSchema, calls: int) -> tuple[_Cost, _Cost]:
    """Of a query whose one shard is where it is asked, and of one to a shard on each of three nodes."""
    from vecdb.client.connect import connect

    with tempfile.TemporaryDirectory(prefix="vecdb-plan-") as folder, _cluster(Path(folder)) as addresses:
        with connect("grpc://" + ",".join(addresses.values())) as database:
            rows = _rows(schema, 64, 4)
            one: str = ""
            for name, shards in (("one", 1), ("each", len(NODES))):
                made = database.create_collection(name, dim=schema.dim, metric=schema.metric.value,
                                                  vector_type=schema.vector_type.value, shards=shards,
                                                  replication_factor=1)
                made.upsert(list(range(len(rows))), rows)
                one = one or database.admin.shards(name)[0].replicas[0].node
        return asyncio.run(_both(f"grpc://{addresses[one]}", rows, calls))


async def _both(url: str, rows: Any, calls: int) -> tuple[_Cost, _Cost]:
    from vecdb.client.async_database import connect_async

    async with connect_async(url) as database:
        near = await _timed(await database.collection("one"), rows, calls)
        return near, await _timed(await database.collection("each"), rows, calls)


async def _timed(collection: Any, rows: Any, calls: int) -> _Cost:
    """Time with one query under way, CPU with :data:`AT_ONCE`, as a node that has much to do."""
    async def some(count: int) -> None:
        for number in range(count):
            await collection.query(rows[number % len(rows)], k=K)

    await some(len(rows))
    times = []
    for number in range(calls):
        begin = time.perf_counter()
        await collection.query(rows[number % len(rows)], k=K)
        times.append(time.perf_counter() - begin)
    each = max(1, 4 * calls // AT_ONCE)
    cpu = time.process_time()
    await asyncio.gather(*(some(each) for _ in range(AT_ONCE)))
    cpu = time.process_time() - cpu
    return _Cost(cpu / (each * AT_ONCE) * 1e6, sorted(times)[calls // 2] * 1e6)


@contextmanager
def _cluster(folder: Path) -> Iterator[dict[str, str]]:
    """Three nodes on the loopback, in a thread: where clients find each."""
    from vecdb.config import ClusterSettings, EngineSettings, ServerSettings, Settings, TelemetrySettings
    from vecdb.serving.compose import start

    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in NODES]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        peers = {name: f"127.0.0.1:{one.getsockname()[1]}" for name, one in zip(NODES, sockets, strict=True)}
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="calibration", daemon=True)
    thread.start()

    def do(work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, loop).result(60)

    running: dict[str, Any] = {}
    log = logging.getLogger("vecdb")
    level = log.level
    log.setLevel(logging.CRITICAL)  # of nodes that are stopped while others talk to them
    try:
        for name in NODES:
            running[name] = do(start(Settings(
                data_dir=folder / name, engine=EngineSettings(threads=1),
                server=ServerSettings(grpc_port=0, http_port=-1, warm_up=False, node_id=name),
                telemetry=TelemetrySettings(recall_samples_per_minute=0.0),
                cluster=ClusterSettings(name="calibration", nodes=peers, balance_leaders=False))))
        yield {name: f"127.0.0.1:{one.addresses['grpc_port']}" for name, one in running.items()}
    finally:
        for one in running.values():
            do(one.close(2.0))
        log.setLevel(level)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(30)
        loop.close()
