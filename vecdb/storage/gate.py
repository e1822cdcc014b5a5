"""A gate operations pass through and ``close`` shuts.

rocksdict's ``close`` borrows the handle exclusively: while another thread is inside a call that freed the
GIL it raises instead of waiting.  So every call enters here, and closing waits until all have left.

In a forked child its lock may be held by a thread that is not there: there nobody enters, and shutting does nothing.
"""

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from vecdb.core.errors import VecdbError


class Gate:
    """Counts who is inside; once shut, entering raises what ``refusal`` makes, in another process what ``foreign``."""

    def __init__(self, refusal: Callable[[], VecdbError], foreign: Callable[[int], VecdbError]) -> None:
        self._refusal = refusal
        self._foreign = foreign
        self._pid = os.getpid()
        self._changed = threading.Condition()
        self._inside = 0
        self._open = False

    def check_process(self) -> None:
        """Raise in a process other than the one that made the gate."""
        if self._pid != os.getpid():
            raise self._foreign(self._pid)

    @contextmanager
    def entered(self) -> Iterator[None]:
        self.check_process()
        with self._changed:
            if not self._open:
                raise self._refusal()
            self._inside += 1
        try:
            yield
        finally:
            with self._changed:
                self._inside -= 1
                if not self._inside:
                    self._changed.notify_all()

    def open(self) -> None:
        with self._changed:
            self._open = True

    def shut(self) -> bool:
        """Refuse newcomers, wait for those inside; False if it was shut already, or belongs to another process."""
        if self._pid != os.getpid():
            return False
        with self._changed:
            if not self._open:
                return False
            self._open = False
            while self._inside:
                self._changed.wait()
            return True
