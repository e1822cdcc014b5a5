"""Processes of a measurement: started here, asked for their CPU time, ended here whatever happens."""

import atexit
import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

READY_S = 300.0
"""A first start may have to compile kernels."""
END_S = 20.0
_TICKS = os.sysconf("SC_CLK_TCK")


class Child:
    """A process of ours; its words go to ``log``.  Ended by :meth:`end`, and at the latest when this one ends.

    ``cores``: those it may run on; None: all that this one may.
    """

    def __init__(self, command: Sequence[str], *, log: Path, stdin: int | None = subprocess.DEVNULL,
                 stdout: int | None = None, environment: dict[str, str] | None = None,
                 directory: Path | None = None, cores: set[int] | None = None) -> None:  # fmt: skip
        self.log = log
        with open(log, "ab") as words, _on(cores):
            self.process = subprocess.Popen(
                command, stdin=stdin, stdout=words if stdout is None else stdout, stderr=words, cwd=directory,
                env=None if environment is None else {**os.environ, **environment})  # fmt: skip
        atexit.register(self.kill)

    @property
    def pid(self) -> int:
        return self.process.pid

    def cpu_s(self) -> float:
        """CPU seconds of the process and of the children it has, ended or running."""
        return sum(_cpu_s(pid) for pid in family(self.pid))

    def rss_bytes(self) -> int:
        """Resident memory of the process and its children."""
        return sum(_rss(pid) for pid in family(self.pid))

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def end(self, seconds: float = END_S) -> int:
        """SIGTERM, then SIGKILL; returns the exit code."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(seconds)
            except subprocess.TimeoutExpired:
                self.kill()
        atexit.unregister(self.kill)
        return int(self.process.returncode)

    def kill(self) -> None:
        """SIGKILL, its children first: a server that forks must not outlive the run."""
        if self.process.poll() is None:
            for pid in reversed(family(self.pid)):
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
            self.process.wait()

    def last_words(self, count: int = 2_000) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace")[-count:]


@contextmanager
def _on(cores: set[int] | None) -> Iterator[None]:
    """What is started meanwhile, by this thread, runs on these cores: from its first thread on, which a core that is
    set later would miss."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, before if cores is None else cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def family(pid: int) -> list[int]:
    """A process and its descendants, parents first."""
    found = [pid]
    for one in found:
        try:
            for task in os.listdir(f"/proc/{one}/task"):
                found += map(int, Path(f"/proc/{one}/task/{task}/children").read_text(encoding="ascii").split())
        except OSError:
            continue
    return found


def _cpu_s(pid: int) -> float:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rsplit(")", 1)[1].split()
    except OSError:
        return 0.0
    return sum(map(int, fields[11:15])) / _TICKS


def _rss(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


def wait_for_file(child: Child, path: Path, seconds: float = READY_S) -> dict[str, Any]:
    """The JSON that a process writes when it is ready."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if child.process.poll() is not None:
            raise SystemExit(f"a process ended with {child.process.returncode} before it was ready:\n"
                             f"{child.last_words()}")  # fmt: skip
        if path.exists() and (text := path.read_text(encoding="utf-8")).strip().endswith("}"):
            found: dict[str, Any] = json.loads(text)
            return found
        time.sleep(0.02)
    raise SystemExit(f"a process was not ready after {seconds:.0f} s:\n{child.last_words()}")


def start_node(data: Path, place: Path, environment: dict[str, str] | None = None,
               name: str = "node", cores: set[int] | None = None) -> tuple[Child, dict[str, Any]]:
    """``vecdb serve`` on free loopback ports; returns it with what its ready file says."""
    ready = place / f"{name}.ready.json"
    ready.unlink(missing_ok=True)
    command = [sys.executable, "-m", "vecdb.cli", "serve", "--data", str(data), "--port", "0", "--http-port", "0",
               "--ready-file", str(ready)]  # fmt: skip
    child = Child(command, log=place / f"{name}.log", environment=environment, cores=cores)
    return child, wait_for_file(child, ready)


def start_floor(place: Path, arguments: Sequence[str], name: str = "floor", cores: set[int] | None = None
                ) -> tuple[Child, int]:  # fmt: skip
    """The empty server of :mod:`bench.server.floor`; returns it with its port."""
    ready = place / f"{name}.ready.json"
    ready.unlink(missing_ok=True)
    command = [sys.executable, "-m", "bench.server.floor", "--ready-file", str(ready), *arguments]
    child = Child(command, log=place / f"{name}.log", cores=cores)
    return child, int(wait_for_file(child, ready)["grpc_port"])


class Driver:
    """One client process (:mod:`bench.server.drive` unless told): a command a line in, an answer a line out."""

    def __init__(self, place: Path, name: str, command: Sequence[str] = (), cores: set[int] | None = None) -> None:
        self.child = Child(command or [sys.executable, "-m", "bench.server.drive"], log=place / f"{name}.log",
                           stdin=subprocess.PIPE, stdout=subprocess.PIPE, cores=cores)  # fmt: skip

    def tell(self, command: dict[str, Any]) -> None:
        stdin = self.child.process.stdin
        assert stdin is not None
        stdin.write(json.dumps(command).encode() + b"\n")
        stdin.flush()

    def answer(self, seconds: float) -> dict[str, Any]:
        """The next answer; a driver that does not answer in time, or ended, ends the run."""
        stdout = self.child.process.stdout
        assert stdout is not None
        with selectors.DefaultSelector() as ready:
            ready.register(stdout, selectors.EVENT_READ)
            line = stdout.readline() if ready.select(seconds) else b""
        if not line:
            raise SystemExit(f"a client did not answer within {seconds:.0f} s:\n{self.child.last_words()}")
        answer: dict[str, Any] = json.loads(line)
        if "missing" not in answer and "fault" in answer:
            raise SystemExit(f"a client failed: {answer['fault']}")
        return answer

    def end(self) -> None:
        stdin = self.child.process.stdin
        assert stdin is not None
        stdin.close()
        self.child.end(5.0)
