"""The front processes of a node: started by exec, watched, started anew when they die, drained at the end."""

import asyncio
import contextlib
import errno
import socket
import sys
from dataclasses import replace
from typing import Any, Final

import orjson

from vecdb.core.errors import Unavailable
from vecdb.ports.tell import Tell
from vecdb.serving.front import FrontSettings

START_S: Final = 30.0
GRACE_S: Final = 5.0
"""Beyond the drain, before a front that does not end is killed."""
BACKOFF_S: Final = (0.1, 5.0)
STEADY_S: Final = 30.0
"""A front that lived this long did not fail at its start."""


def reserve(host: str, port: int) -> socket.socket:
    """Bind the port so that fronts may share it and nobody else has it; raises Unavailable.  It never listens."""
    host = host.strip("[]")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM) as alone:
            alone.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            alone.bind((host, port))
            port = int(alone.getsockname()[1])
        try:
            return _shared(family, host, port, again=False)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            # It was free a moment ago: connections of a server that shared nothing wait out their time.
            return _shared(family, host, port, again=True)
    except OSError as error:
        raise Unavailable(f"cannot listen on {host}:{port}: {(error.strerror or str(error)).lower()}",
                          address=f"{host}:{port}") from None


def _shared(family: socket.AddressFamily, host: str, port: int, *, again: bool) -> socket.socket:
    """``again``: beside what stays of ended connections; not at first, for beside another's reservation it would be."""
    made = socket.socket(family, socket.SOCK_STREAM)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, int(again))
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        made.bind((host, port))
    except OSError:
        made.close()
        raise
    return made


def _read(line: bytes) -> dict[str, Any]:
    """What a front said first; something else than JSON comes from what the interpreter prints when it fails."""
    try:
        told = orjson.loads(line)
    except orjson.JSONDecodeError:
        told = None
    return told if isinstance(told, dict) else {"error": f"it ended or did not answer ({line[:200]!r})"}


class Fronts:
    """``count`` processes before the engine's socket; belongs to one event loop."""

    def __init__(self, settings: FrontSettings, count: int, tell: Tell) -> None:
        self._settings = settings
        self._count = count
        self._tell = tell
        self._processes: dict[int, asyncio.subprocess.Process] = {}
        self._keepers: list[asyncio.Task[None]] = []

    @property
    def pids(self) -> list[int]:
        return [process.pid for _, process in sorted(self._processes.items())]

    async def start(self) -> None:
        """Start them all; raises Unavailable with what the first one says that cannot listen."""
        starting = [asyncio.create_task(self._spawn(number)) for number in range(self._count)]
        try:
            started = await asyncio.gather(*starting)
        except BaseException:
            for task in starting:
                task.cancel()
            await asyncio.gather(*starting, return_exceptions=True)
            await self.stop(0.0)
            raise
        self._keepers = [asyncio.create_task(self._keep(number, process)) for number, process in enumerate(started)]

    async def _spawn(self, number: int) -> asyncio.subprocess.Process:
        """One that listens; raises Unavailable."""
        try:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "vecdb.serving.front", stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE, start_new_session=True)
        except OSError as error:
            raise Unavailable(f"front process {number} cannot be started: {error.strerror or error}",
                              address=self._settings.address) from None
        self._processes[number] = process
        told = await self._told(number, process)
        if "error" in told:
            await self._end(process, 0.0)
            raise Unavailable(f"front process {number}: {told['error']}", address=self._settings.address)
        return process

    async def _told(self, number: int, process: asyncio.subprocess.Process) -> dict[str, Any]:
        """What it says of its start."""
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            async with asyncio.timeout(START_S):
                process.stdin.write(replace(self._settings, name=f"front-{number}").to_json() + b"\n")
                await process.stdin.drain()
                return _read(await process.stdout.readline())
        except (TimeoutError, OSError):
            return _read(b"")

    async def _keep(self, number: int, process: asyncio.subprocess.Process) -> None:
        """Wait for the end of one, and start the next in its place: soon, and less soon each time it fails again."""
        pause_s = BACKOFF_S[0]
        loop = asyncio.get_running_loop()
        while True:
            began = loop.time()
            code = await process.wait()
            if loop.time() - began > STEADY_S:
                pause_s = BACKOFF_S[0]
            self._tell("error", "front_ended", front=number, pid=process.pid, code=code, again_in_s=pause_s)
            while True:
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, BACKOFF_S[1])
                try:
                    process = await self._spawn(number)
                    break
                except Unavailable as error:
                    self._tell("error", "front_failed", front=number, error=error.message, again_in_s=pause_s)

    async def stop(self, drain_s: float) -> None:
        """Tell them to drain, wait as long as that may take, and kill what is left."""
        for keeper in self._keepers:  # first, so that none is started any more
            keeper.cancel()
        await asyncio.gather(*self._keepers, return_exceptions=True)
        await asyncio.gather(*(self._end(process, drain_s + GRACE_S if drain_s else 0.0)
                               for process in self._processes.values()))

    async def _end(self, process: asyncio.subprocess.Process, within_s: float) -> None:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
            try:
                async with asyncio.timeout(within_s):
                    await process.wait()
            except TimeoutError:
                process.kill()
                await process.wait()
