"""RocksDB does not live through ``fork``: what a child must not do with what it inherited.

The child gets a copy of the handle, its open files and its mutexes as they stood, but none of RocksDB's threads.
A write through it is acknowledged and lost, or lands in the middle of the parent's log; a flush waits for ever;
even freeing the handle writes.  So in a child every call is refused, the inherited objects are never freed (one more
reference that nobody gives back), and no store can be opened, since RocksDB's threads are gone for good.
"""

import ctypes
import os
import weakref
from typing import Protocol

from vecdb.core.errors import DatabaseClosed

ADVICE = ("connect in the new process instead, and start it by spawn or exec, not by fork "
          "(multiprocessing: get_context('spawn'))")


class Inherited(Protocol):
    """What holds native objects that must outlive a forked child."""

    def native(self) -> list[object]: ...


_holders: "weakref.WeakSet[Inherited]" = weakref.WeakSet()
_used = False
_orphaned = False


def guard(holder: Inherited) -> None:
    """Never free ``holder``'s native objects in a child forked later."""
    global _used
    _used = True
    _holders.add(holder)


def check_may_open(path: object) -> None:
    """Raise :class:`DatabaseClosed` in a child of a process that had used RocksDB before it forked."""
    if _orphaned:
        raise DatabaseClosed(f"the store at {path} cannot be opened: process {os.getpid()} was forked from one that "
                             f"had used a database, and the engine's threads are not forked with it; {ADVICE}",
                             path=str(path))


def foreign(path: object, opened_in: int) -> DatabaseClosed:
    """The error for a handle used outside the process that opened it."""
    return DatabaseClosed(f"the store at {path} was opened in process {opened_in}, and this is process {os.getpid()}, "
                          f"forked from it; {ADVICE}", path=str(path), opened_in=opened_in)


def _after_fork() -> None:
    global _orphaned
    _orphaned = _orphaned or _used
    for holder in list(_holders):
        for one in holder.native():
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(one))


os.register_at_fork(after_in_child=_after_fork)
