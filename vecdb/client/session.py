"""One open backend shared by a Database, its Collections and any number of threads.

A call holds the session while it runs; ``close`` refuses new calls, waits for those that run and then
closes the backend, so no thread ever sees a store vanish under it.  A call that closes its own database
(from a progress callback, say) would wait for itself: then the last call to leave does the closing.

Sessions that ``connect`` opened are closed at the interpreter's end if nobody did: a background job would
otherwise meet a half taken down interpreter.  What was acknowledged is durable either way.

A session belongs to the process that opened it: in a forked child, which has none of the engine's threads and whose
locks may be held by nobody, every call is refused before a lock is touched, and ``close`` forgets.
"""

import atexit
import os
import threading
import time
from collections.abc import Iterable
from contextlib import suppress
from types import TracebackType
from typing import Final, TypeVar

from vecdb.client.asking import Bound
from vecdb.client.backend import Backend
from vecdb.client.deadlines import Limited
from vecdb.client.positions import Positions
from vecdb.client.steps import Steps, drive
from vecdb.core.calls import Call, Consistency
from vecdb.core.errors import DatabaseClosed, VecdbError

EXIT_WAIT_S: Final = 10.0
"""How long the interpreter's end waits for calls of daemon threads that still run."""

T = TypeVar("T")

_open: "set[Session]" = set()


def forked(label: str, pid: int) -> DatabaseClosed:
    """What a handle says in a child of the process that opened it."""
    return DatabaseClosed(
        f"the handle of the database {label} was opened in process {pid}, and this is process {os.getpid()}, forked "
        "from it; connect again in the new process, and start it by spawn or exec, not by fork (multiprocessing: "
        "get_context('spawn'))", target=label, opened_in=pid)


class Session:
    """Counts running calls; ``with session as backend`` is one call."""

    def __init__(self, backend: Backend, label: str, consistency: Consistency = Consistency.SESSION) -> None:
        self.label = label
        self.positions = Positions(consistency)
        self._backend = backend
        self._state = threading.Condition()
        self._running = 0
        self._closing = False
        self._ended = False
        self._mine = threading.local()
        self._pid = os.getpid()
        self._keeps_time = bool(getattr(backend, "keeps_time", False))
        self.batch_bytes: int | None = getattr(backend, "batch_bytes", None)

    @property
    def closed(self) -> bool:
        return self._closing or self._pid != os.getpid()

    def check_process(self) -> None:
        if self._pid != os.getpid():
            raise forked(self.label, self._pid)

    def check_open(self) -> None:
        self.check_process()
        if self._closing:
            raise DatabaseClosed(f"the database {self.label} is closed", target=self.label)

    def call(self) -> "_Call":
        return _Call(self)

    def run(self, steps: Steps[T], timeout: float | None = None, consistency: Consistency | None = None,
            partial: bool = False) -> T:
        """Run the steps of one call, at most ``timeout`` (checked) seconds, its reads by ``consistency``.

        ``partial``: they may be answered by some of the shards.
        """
        if timeout is None:
            backend = self.enter()
            try:
                return drive(steps, Bound(backend, None, self.positions, consistency, partial))
            finally:
                self.leave()
        if self._keeps_time:
            with _Call(self) as backend:
                call: Call | None = Call(time.monotonic() + timeout)
                return drive(steps, Bound(backend, call, self.positions, consistency, partial))
        with Limited(timeout) as call, _Call(self) as backend:
            return drive(steps, Bound(backend, call, self.positions, consistency, partial))

    def session_token(self, names: Iterable[str]) -> str:
        """What was written, as text; closed or not, but not in a forked child."""
        self.check_process()
        return self.positions.token(tuple(names) or None)

    def use_session_token(self, token: object) -> None:
        self.check_open()
        self.positions.use(token)

    def enter(self) -> Backend:
        if self._pid != os.getpid():
            self.check_open()
        with self._state:
            self.check_open()
            self._running += 1
        self._mine.depth = getattr(self._mine, "depth", 0) + 1
        return self._backend

    def leave(self) -> None:
        if self._pid != os.getpid():  # forked inside the call
            return
        self._mine.depth -= 1
        with self._state:
            self._running -= 1
            last = self._closing and self._running == 0
            if last:
                self._state.notify_all()
        if last:
            self._end()

    def close(self, timeout_s: float | None = None) -> None:
        """Close once; further calls do nothing.  If calls run on past ``timeout_s``, the last of them closes."""
        if self._pid != os.getpid():
            return
        with self._state:
            self._closing = True
            if getattr(self._mine, "depth", 0):
                return
            if not self._state.wait_for(lambda: self._running == 0, timeout_s):
                return
        self._end()

    def close_at_exit(self) -> None:
        _open.add(self)

    def _end(self) -> None:
        with self._state:
            if self._ended:
                return
            self._ended = True
        _open.discard(self)
        self._backend.close()


class _Call:
    """A context manager by hand: ``contextlib`` costs more than a whole exact query of a small collection."""

    __slots__ = ("_session",)

    def __init__(self, session: Session) -> None:
        self._session = session

    def __enter__(self) -> Backend:
        return self._session.enter()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self._session.leave()


@atexit.register
def _close_all() -> None:
    for session in tuple(_open):
        with suppress(VecdbError):
            session.close(EXIT_WAIT_S)
