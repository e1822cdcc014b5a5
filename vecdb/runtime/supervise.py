"""Child processes that are kept running: started by exec, started again when they end, drained when the parent stops.

**Started by exec.**  ``subprocess`` without a ``preexec_fn`` forks and execs in one step in C, so nothing of the
parent's threads, locks or gRPC is ever seen by Python code in a child.

**No orphans.**  Every child inherits the read end of one pipe, the *lifeline*, whose write end the parent alone holds.
When the parent ends, however it ends, the kernel closes it, and :func:`follow` in the child reads the end of the file.
This is what ``PR_SET_PDEATHSIG`` promises, without its traps: that one speaks of the thread that forked, and is lost if
the parent dies before the child asked for it.

**One thread a child** sleeps in ``waitpid``; there is nothing to poll.  Children stand in process groups of their own,
so a Ctrl-C at the terminal reaches the parent, which stops them in order.
"""

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

from vecdb.core.errors import Unavailable

Command = Callable[[int, int], Sequence[str]]
"""``(index, lifeline)`` to a command line; the child is to :func:`follow` that descriptor."""

FIRST_DELAY_S: Final = 0.1
LAST_DELAY_S: Final = 10.0
STEADY_S: Final = 30.0
"""A child that ran so long was well: its next end counts as the first one."""


@dataclass(frozen=True, slots=True)
class ChildEvent:
    """``ended``: by itself, with ``code`` (negative: a signal), to be started again in ``delay_s``; ``killed``: did not
    drain in time."""

    kind: Literal["started", "ended", "failed", "killed"]
    index: int
    pid: int
    code: int | None = None
    uptime_s: float = 0.0
    delay_s: float = 0.0


@dataclass(slots=True)
class _Child:
    index: int
    process: "subprocess.Popen[bytes] | None" = None
    thread: threading.Thread | None = None
    starts: int = 0
    failures: int = 0
    began: threading.Event = field(default_factory=threading.Event)
    refused: OSError | None = None


class Supervisor:
    """Keeps ``count`` processes running from :meth:`start` to :meth:`stop`; both may be called from any thread.

    ``on_event`` is called from the children's threads, one of each child at a time.
    """

    def __init__(self, command: Command, count: int, *, on_event: Callable[[ChildEvent], None] = lambda event: None,
                 first_delay_s: float = FIRST_DELAY_S, last_delay_s: float = LAST_DELAY_S,
                 steady_s: float = STEADY_S) -> None:
        self._command, self._tell = command, on_event
        self._delays, self._steady_s = (first_delay_s, last_delay_s), steady_s
        self._children = [_Child(index) for index in range(count)]
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._lifeline = (-1, -1)

    def start(self) -> None:
        """Start all; raises :class:`Unavailable` if one cannot be started at all, having stopped the others."""
        self._lifeline = os.pipe()
        for child in self._children:
            child.thread = threading.Thread(target=self._keep, args=(child,), name=f"vecdb-child-{child.index}",
                                            daemon=True)
            child.thread.start()
        for child in self._children:
            child.began.wait()
        refused = next((child for child in self._children if child.refused is not None), None)
        if refused is not None:
            self.stop(0.0)
            raise Unavailable(f"process {refused.index} cannot be started: {refused.refused}", index=refused.index)

    def stop(self, within_s: float) -> int:
        """Ask all to end (SIGTERM), wait at most ``within_s``, kill what is left; returns how many were killed."""
        with self._lock:
            self._stopping.set()
            running = [child for child in self._children if child.process is not None]
            for child in running:
                _signal(child, signal.SIGTERM)
        deadline = time.monotonic() + within_s
        killed = 0
        for child in self._children:
            if child.thread is None:
                continue
            child.thread.join(max(0.0, deadline - time.monotonic()))
            if child.thread.is_alive():
                killed += 1
                _signal(child, signal.SIGKILL)
                if child.process is not None:
                    self._tell(ChildEvent("killed", child.index, child.process.pid))
                child.thread.join()
        with self._lock:
            for descriptor in self._lifeline:
                if descriptor >= 0:
                    os.close(descriptor)
            self._lifeline = (-1, -1)
        return killed

    def pids(self) -> list[int | None]:
        """The processes that run now; None for one between its end and its next start."""
        with self._lock:
            return [None if child.process is None else child.process.pid for child in self._children]

    @property
    def restarts(self) -> int:
        """Since the start, of all children."""
        return sum(max(0, child.starts - 1) for child in self._children)

    def _keep(self, child: _Child) -> None:
        """Start a child, wait for its end, wait a little, and again; a thread's whole life."""
        while True:
            begin = time.monotonic()
            try:
                process = self._spawn(child)
            except OSError as error:
                if not child.starts:  # the first time it is start() that tells
                    child.refused = error
                    child.began.set()
                    return
                process = None
            child.began.set()
            if process is None:
                if self._stopping.is_set():
                    return
                delay = self._delay(child, 0.0)
                self._tell(ChildEvent("failed", child.index, 0, delay_s=delay))
            else:
                self._tell(ChildEvent("started", child.index, process.pid))
                code = process.wait()
                with self._lock:
                    child.process = None
                if self._stopping.is_set():
                    return
                spent = time.monotonic() - begin
                delay = self._delay(child, spent)
                self._tell(ChildEvent("ended", child.index, process.pid, code, spent, delay))
            if self._stopping.wait(delay):
                return

    def _delay(self, child: _Child, spent: float) -> float:
        """Count an end, and say how long to wait after it."""
        child.failures = 1 if spent >= self._steady_s else child.failures + 1
        first, last = self._delays
        return min(last, first * 2.0 ** min(child.failures - 1, 30))

    def _spawn(self, child: _Child) -> "subprocess.Popen[bytes] | None":
        """Start one unless all are being stopped: under the lock, so that stop() misses none."""
        with self._lock:
            if self._stopping.is_set():
                return None
            lifeline = self._lifeline[0]
            child.process = subprocess.Popen(  # noqa: S603  # the command is ours
                list(self._command(child.index, lifeline)), stdin=subprocess.DEVNULL, pass_fds=(lifeline,),
                process_group=0)
            child.starts += 1
            return child.process


def _signal(child: _Child, number: signal.Signals) -> None:
    process = child.process
    if process is not None:
        process.send_signal(number)  # does nothing for one that has ended


def follow(lifeline: int, *, within_s: float = 30.0, on_gone: Callable[[], None] | None = None) -> threading.Thread:
    """In a child: when the parent is gone, end as by SIGTERM, and outright after ``within_s``.

    ``on_gone`` is called instead of raising SIGTERM here, from a thread of its own.
    """
    def wait() -> None:
        try:
            while os.read(lifeline, 1):
                pass
        except OSError:  # a descriptor that is none: there is no parent to follow
            return
        if on_gone is not None:
            on_gone()
        else:
            os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(within_s)
        os._exit(1)

    thread = threading.Thread(target=wait, name="vecdb-lifeline", daemon=True)
    thread.start()
    return thread
