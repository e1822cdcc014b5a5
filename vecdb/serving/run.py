"""A node as a process: until a signal comes, or only a start anew helps."""

import asyncio
import contextlib
import resource
import signal
from collections.abc import Callable
from typing import Any, Final

import uvloop

from vecdb.config import Settings
from vecdb.core.errors import VecdbError
from vecdb.runtime.logs import configure, logger
from vecdb.runtime.memory import reuse_freed
from vecdb.runtime.process import spare_the_collector
from vecdb.serving.compose import start, tell
from vecdb.serving.stopping import watched

AGAIN: Final = -1
"""For whoever started the node: let this process end, and start it anew."""
OnReady = Callable[[dict[str, Any]], None]


def run_node(settings: Settings, on_ready: OnReady | None = None,
             on_step: Callable[[str], None] = lambda step: None) -> int:
    """Serve until SIGTERM or SIGINT, drain, and return the exit code; :data:`AGAIN` to be started anew.

    ``on_ready`` is told the addresses once calls are answered: ``grpc``, ``grpc_port``, ``http``, ``http_port``.
    Raises what keeps the node from starting.
    """
    reuse_freed()
    return uvloop.run(_serve(settings, on_ready, on_step))


def _allow_files() -> None:
    """As many descriptors as this user may have: connections must not take those that the store needs."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


async def _serve(settings: Settings, on_ready: OnReady | None, on_step: Callable[[str], None]) -> int:
    loop = asyncio.get_running_loop()
    _allow_files()
    undo = configure(settings.log.level, settings.log.format)
    asked, again = asyncio.Event(), asyncio.Event()

    def on_signal() -> None:
        (again if asked.is_set() else asked).set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)
    starting = asyncio.create_task(start(settings, on_step=on_step))
    stopping = asyncio.create_task(asked.wait())
    await asyncio.wait((starting, stopping), return_when=asyncio.FIRST_COMPLETED)
    running = await starting  # a start that is under way is finished first: it holds the directory
    spare_the_collector()
    log = logger()
    if not asked.is_set():
        log.info("serving", **running.addresses)
        if on_ready is not None:
            try:
                on_ready(running.addresses)
            except BaseException:
                await running.close(0.0)
                raise
    failing = asyncio.create_task(running.failed())
    await asyncio.wait((stopping, failing), return_when=asyncio.FIRST_COMPLETED)
    failing.cancel()
    log.info("draining", running=running.running, at_most_s=settings.server.drain_s)
    closing = asyncio.create_task(running.close())
    impatient = asyncio.create_task(again.wait())
    with watched(closing, tell):
        await asyncio.wait((closing, impatient), return_when=asyncio.FIRST_COMPLETED)
        if not closing.done():
            log.warning("drain_cut_short", running=running.running)
            await running.cut_short()
        impatient.cancel()
        try:
            await closing
        except VecdbError as error:
            if asked.is_set():
                raise
            log.warning("closed_with_error", error=error.message)  # it is what the start anew is for
    log.info("stopped" if asked.is_set() else "starting_anew")
    undo()
    return 0 if asked.is_set() else AGAIN
