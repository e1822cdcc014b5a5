"""A front process: ``python -m vecdb.serving.front``, started by the node it stands before.

What it must know comes as one line of JSON on its standard input, so that nothing stands on a command line; that the
input ends is how it learns that the node is gone.  It answers with one line once it listens, or with why it cannot.
"""

import asyncio
import contextlib
import shutil
import signal
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import grpc
import orjson
import uvloop

from vecdb.core.errors import VecdbError
from vecdb.ports.observer import Watched
from vecdb.rpc.exchange import Exchange
from vecdb.rpc.front import Front
from vecdb.rpc.server import MAX_METADATA_BYTES, GrpcServer, ServerOptions
from vecdb.rpc.tls import open_certificates
from vecdb.runtime.clock import SystemClock
from vecdb.runtime.exposition import Exposition, interpreter, publish
from vecdb.runtime.logs import configure, logger
from vecdb.runtime.metrics import Metrics
from vecdb.runtime.process import EventLoopLag, spare_the_collector

SOCKET: Final = "engine"
CHANNEL: Final = (("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1),
                  ("grpc.max_metadata_size", 4 * MAX_METADATA_BYTES), ("grpc.enable_retries", 0),
                  ("grpc.use_local_subchannel_pool", 1))
"""A call is handed on once: whether it may be repeated is the client's to know."""


@dataclass(frozen=True, slots=True)
class FrontSettings:
    """``folder``: the node's own, where the engine's socket is and pages of metrics are left.

    ``calls`` and ``inflight_bytes``: what one front takes on.
    """

    name: str
    folder: Path
    address: str
    message_bytes: int
    calls: int
    inflight_bytes: int
    connections: int
    reflect: bool
    drain_s: float
    log_level: str
    log_format: str
    cert_file: Path | None = None
    key_file: Path | None = None
    client_ca_file: Path | None = None
    reload_s: float = 10.0

    @property
    def socket(self) -> str:
        return f"unix:{self.folder}/{SOCKET}"

    def to_json(self) -> bytes:
        return orjson.dumps({name: str(value) if isinstance(value, Path) else value
                             for name, value in asdict(self).items()})

    @classmethod
    def from_json(cls, data: bytes) -> "FrontSettings":
        values = orjson.loads(data)
        values["folder"] = Path(values["folder"])
        for name in ("cert_file", "key_file", "client_ca_file"):
            values[name] = Path(values[name]) if values[name] else None
        return cls(**values)


class Ending:
    """Why a front ends: ``asked`` to, which leaves its calls the time to end, or ``orphaned``, the node being gone."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.orphaned = asyncio.Event()

    def orphan(self) -> None:
        self.orphaned.set()
        self.asked.set()


async def serve(settings: FrontSettings, ending: Ending, on_listening: Callable[[], None]) -> None:
    """Serve until asked to end, then drain."""
    def tell(level: str, event: str, **fields: Any) -> None:
        getattr(logger(), level)(event, front=settings.name, **fields)

    certificates = open_certificates(settings, SystemClock(), tell)
    metrics = Metrics()
    channel = grpc.aio.insecure_channel(settings.socket, options=CHANNEL)
    exchange = Exchange(channel, settings.name, tell)
    front = Front(channel, exchange, certificates=certificates is not None and certificates.mutual,
                  calls=settings.calls, inflight_bytes=settings.inflight_bytes, observer=metrics)
    server = GrpcServer([front], ServerOptions(
        settings.address, settings.message_bytes, 2 * settings.calls,
        None if certificates is None else certificates.grpc_credentials(), True, settings.reflect,
        connections=settings.connections))
    metrics.watch(Watched.INFLIGHT_BYTES, lambda: float(front.budget.used))
    metrics.watch(Watched.STREAMS, lambda: float(front.streams))
    lag = EventLoopLag()
    page = Exposition([metrics, *interpreter(), lag], process=settings.name)
    tasks = [asyncio.create_task(lag.run()), asyncio.create_task(publish(page, settings.folder, settings.name))]
    if certificates is not None:
        tasks.append(asyncio.create_task(certificates.watch()))
    try:
        await server.start()
        await server.ready()
        on_listening()
        spare_the_collector()
        await ending.asked.wait()
    finally:
        await _drain(server, ending, settings.drain_s)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await exchange.close()
        await channel.close(None)
        if ending.orphaned.is_set():  # whoever should have cleared up was killed
            shutil.rmtree(settings.folder, ignore_errors=True)


async def _drain(server: GrpcServer, ending: Ending, drain_s: float) -> None:
    """Let calls end while there is an engine to answer them."""
    draining = asyncio.create_task(server.stop(drain_s))
    orphaned = asyncio.create_task(ending.orphaned.wait())
    await asyncio.wait((draining, orphaned), return_when=asyncio.FIRST_COMPLETED)
    orphaned.cancel()
    if not draining.done():
        await server.stop(0.0)
    await draining


class _Parent(asyncio.Protocol):
    """The pipe from the node: its end is the node's end."""

    def __init__(self, ending: Ending) -> None:
        self._ending = ending

    def connection_lost(self, exc: Exception | None) -> None:
        self._ending.orphan()


async def _main(settings: FrontSettings) -> int:
    loop = asyncio.get_running_loop()
    ending = Ending()
    loop.add_signal_handler(signal.SIGTERM, ending.asked.set)
    loop.add_signal_handler(signal.SIGINT, lambda: None)  # the terminal tells every process; the node tells us when
    await loop.connect_read_pipe(lambda: _Parent(ending), sys.stdin)

    def say(told: dict[str, Any]) -> None:
        with contextlib.suppress(BrokenPipeError):
            sys.stdout.buffer.write(orjson.dumps(told) + b"\n")
            sys.stdout.buffer.flush()

    try:
        await serve(settings, ending, lambda: say({"listening": True}))
    except VecdbError as error:
        say({"error": error.message})
        return 1
    return 0


def main() -> None:
    # Unbuffered: the pipe is read on, and nothing may stay behind in a buffer.
    line = bytearray()
    while not line.endswith(b"\n") and (one := sys.stdin.buffer.raw.read(1)):  # type: ignore[union-attr]
        line += one
    if not line.endswith(b"\n"):
        sys.exit("a front process is started by its node: vecdb serve --processes N")
    settings = FrontSettings.from_json(bytes(line))
    configure(settings.log_level, settings.log_format)  # type: ignore[arg-type]  # checked by the node's settings
    sys.exit(uvloop.run(_main(settings)))


if __name__ == "__main__":
    main()
