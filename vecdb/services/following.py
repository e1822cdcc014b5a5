"""What a shard holds at one place in its log, and every change after it: for who makes a copy of it elsewhere.

**The moment.**  A view of the segments, which stay readable as long as it is held, and a walk over the records' rows
that began at the same log index: a walk sees the store as it was when it began.  So records are read in chunks, as they
were, vectors as they are stored, while commands go on being applied; what died meanwhile is among them, since the
commands that changed it need it where they are carried out again.

**The changes**: each command that did something, or that an idempotency key will be remembered of, as its bytes, with
what it did under its key.  Where the shard did a part of a write, as others had done the rest before their records came
to it, commands that say that part stand for it: who carried out the whole would do the rest again.  To whom
it matters, metadata that is replaced is told as the records that these are then.  A change is handed
over by the thread that applies, which never waits for who follows: what is not taken stands in memory up to a bound,
then in a file that nobody else sees, up to another; then the following has failed, and a copy has to be begun anew.
"""

import os
import struct
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import IO, Final, Self

import numpy as np

from vecdb.core.errors import DatabaseClosed, DataCorrupted, Overloaded, VecdbError
from vecdb.core.ids import id_from_key
from vecdb.core.records import UpsertBatch
from vecdb.ports.store import Store
from vecdb.segment.files import from_os_error
from vecdb.shard import codec, rows
from vecdb.shard.imports import Imports, Memory, Remembered
from vecdb.shard.machine import ShardMachine
from vecdb.shard.tokens import Tokens
from vecdb.shard.view import ShardView, rid_array

CHUNK_ROWS: Final = 4_096
"""Most records of one chunk."""
MOST_CHANGES: Final = 1_024
"""Most changes taken at once."""
BESIDE_BYTES: Final = 512
"""What a change takes in memory beside its commands: of small ones most of it."""
_FRAME: Final = struct.Struct("<QI")
_COUNT: Final = struct.Struct("<I")
Row = tuple[bytes, bytes]


@dataclass(frozen=True, slots=True)
class FollowLimits:
    """Bytes of changes that wait: in memory, and in the file after that; 0: there is none."""

    memory_bytes: int = 32 << 20
    file_bytes: int = 4 << 30


@dataclass(frozen=True, slots=True)
class Told:
    """What the shard did at one place of its log.  ``commands``: encoded, the one that is there, or those that say what
    part of it was done.  ``write``: what was done under its key, if it had one.
    """

    log_index: int
    commands: tuple[bytes, ...]
    write: Remembered | None = None

    @property
    def size(self) -> int:
        """Bytes that it takes in memory, about."""
        return BESIDE_BYTES + sum(map(len, self.commands))

    def to_bytes(self) -> bytes:
        parts = [b"" if self.write is None else codec.encode_write(self.write), *self.commands]
        return b"".join((_COUNT.pack(len(parts)), *(_COUNT.pack(len(one)) for one in parts), *parts))

    @classmethod
    def from_bytes(cls, log_index: int, data: bytes) -> Self:
        (count,) = _COUNT.unpack_from(data)
        at = _COUNT.size * (1 + count)
        parts = []
        for (length,) in _COUNT.iter_unpack(data[_COUNT.size:at]):
            parts.append(data[at:at + length])
            at += length
        return cls(log_index, tuple(parts[1:]), codec.decode_write(parts[0]) if parts[0] else None)


@dataclass(frozen=True, slots=True)
class Taken:
    """Changes in the order of the log, and the log index up to which these and those before are all there were."""

    changes: tuple[Told, ...]
    upto: int


class Follow:
    """One follower's; made by ``ShardService.follow``.  ``log_index``: the place its records are of.

    ``applied`` and ``end`` are for the shard, from the thread that applies; the rest is for one follower's thread.
    """

    def __init__(self, machine: ShardMachine, store: Store, directory: Path, limits: FollowLimits,
                 leave: Callable[["Follow"], None], moving: bool = False) -> None:
        """Inside the shard's lock."""
        self.moving = moving
        """Whether metadata that is replaced is told with its vectors."""
        self._view: ShardView | None = machine.view
        self._space = machine.growing.space
        self._directory = directory
        self._limits = limits
        self._leave = leave
        self.log_index = machine.state.applied
        self.records = machine.state.records
        self._rows: Iterator[Row] = _begun(store.scan(*rows.RECORDS))
        self._tokens: Iterator[Row] = _begun(store.scan(*rows.TOKENS))
        self._imports: Iterator[Row] = _begun(store.scan(*rows.IMPORTS))
        self._lock = threading.Lock()
        self._waiting: deque[Told] = deque()
        self._waiting_bytes = 0
        self._file: IO[bytes] | None = None
        self._read_at = self._write_at = 0
        self._reading = False
        self._seen = self.log_index
        self.come_bytes = 0
        """Of all changes since the moment."""
        self._error: VecdbError | None = None

    # --- the moment -------------------------------------------------------------------------------

    def chunks(self, most_bytes: int) -> Iterator[UpsertBatch]:
        """The records of the moment in the order of their rids, about ``most_bytes`` at a time; to be walked once.

        Raises ``DataCorrupted`` where some cannot be read, ``DatabaseClosed`` once the shard has let go of its store.
        """
        view = self._view
        if view is None:
            raise DatabaseClosed("the following has ended")
        while chunk := self._next_rows(most_bytes):
            rids = rid_array([rows.number_of(key) for key, _ in chunk])
            vectors, readable = view.vectors(rids, self._space.row_items, self._space.row_dtype)
            ids = tuple(id_from_key(rows.record_id_key(value)) for _, value in chunk)
            if not readable.all():
                lost = tuple(ids[int(place)] for place in np.flatnonzero(~readable))
                raise DataCorrupted(f"the vectors of {len(lost)} records are damaged on disk",
                                    path=str(self._directory), ids=lost)
            yield UpsertBatch(ids, vectors, tuple(rows.record_metadata(value) for _, value in chunk))

    def _next_rows(self, most_bytes: int) -> list[Row]:
        vector_bytes = self._space.row_items * self._space.row_dtype.itemsize
        chunk: list[Row] = []
        for row in self._rows:
            chunk.append(row)
            most_bytes -= len(row[1]) + vector_bytes
            if most_bytes <= 0 or len(chunk) == CHUNK_ROWS:
                break
        return chunk

    def memories(self, group: int, lo: int, hi: int) -> list[Memory]:
        """The writes that were remembered at the moment, for shards that take the place of this one, which is of
        ``group`` and has the hashes from ``lo`` to ``hi`` (exclusive); to be asked once.
        """
        imports = Imports(self._imports)
        own = tuple(Tokens(self._tokens, wide=bool(imports.origins)).remembered(lo, hi - 1))
        return [*imports.memories(), *([Memory(group, own)] if own else [])]

    # --- the changes ------------------------------------------------------------------------------

    def take(self, most_bytes: int) -> Taken:
        """The next changes, some ``most_bytes`` of them; raises what ended the following."""
        found: list[Told] = []
        size = 0
        with self._lock:
            if self._error is not None:
                raise self._error
            while self._waiting and size < most_bytes and len(found) < MOST_CHANGES:
                one = self._waiting.popleft()
                found.append(one)
                size += one.size
            self._waiting_bytes -= size
            if self._waiting or self._file is None:
                return Taken(tuple(found), self._seen if not self._waiting else found[-1].log_index)
            file, start, stop = self._file, self._read_at, self._write_at
            self._reading = True
        try:  # without the lock: who applies does not wait for a disk
            start = self._read_file(file, start, stop, most_bytes - size, found)
        finally:
            with self._lock:
                self._reading = False
                if self._error is not None:
                    self._forget()
        with self._lock:
            if self._error is not None:
                raise self._error
            self._read_at = start
            if start < self._write_at:
                return Taken(tuple(found), found[-1].log_index)
            self._forget()
            return Taken(tuple(found), self._seen)

    def _read_file(self, file: IO[bytes], start: int, stop: int, most_bytes: int, found: list[Told]) -> int:
        """Add changes of ``[start, stop)`` to ``found``; returns where the next begins.  At least one, if any."""
        try:
            while start < stop:
                log_index, length = _FRAME.unpack(os.pread(file.fileno(), _FRAME.size, start))
                if found and (length > most_bytes or len(found) >= MOST_CHANGES):
                    break
                data = os.pread(file.fileno(), length, start + _FRAME.size)
                if len(data) != length:
                    raise DataCorrupted("a file of changes is shorter than it was", path=str(self._directory))
                found.append(Told.from_bytes(log_index, data))
                most_bytes -= length
                start += _FRAME.size + length
        except OSError as error:
            raise from_os_error(error, self._directory, "reading commands from") from error
        return start

    def applied(self, log_index: int, change: Told | None) -> None:
        """The shard has applied a command; None of one that did nothing."""
        with self._lock:
            self._seen = log_index
            if change is None or self._error is not None:
                return
            self.come_bytes += change.size
            if self._file is None and self._waiting_bytes + change.size <= self._limits.memory_bytes:
                self._waiting.append(change)
                self._waiting_bytes += change.size
                return
            try:
                self._spill(log_index, change.to_bytes())
            except OSError as error:
                self._error = from_os_error(error, self._directory, "writing commands to")
                self._forget()

    def _spill(self, log_index: int, change: bytes) -> None:
        size = _FRAME.size + len(change)
        if self._write_at - self._read_at + size > self._limits.file_bytes:
            self._error = Overloaded("the shard changes faster than its changes are copied", got=self._write_at,
                                     limit=self._limits.file_bytes)
            self._forget()
            return
        if self._file is None:
            self._file = tempfile.TemporaryFile(dir=self._directory, buffering=0)  # noqa: SIM115
        data = memoryview(_FRAME.pack(log_index, len(change)) + change)
        at = self._write_at
        while data:
            written = os.pwrite(self._file.fileno(), data, at)
            data, at = data[written:], at + written
        self._write_at = at

    def end(self, error: VecdbError) -> None:
        """The shard tells no more."""
        with self._lock:
            self._error = self._error or error
            self._forget()

    def _forget(self) -> None:
        self._waiting.clear()
        self._waiting_bytes = 0
        self._read_at = self._write_at = 0
        if self._file is not None and not self._reading:
            self._file.close()
            self._file = None

    @property
    def seen(self) -> int:
        """The last log index the shard has told of."""
        return self._seen

    @property
    def waiting_bytes(self) -> int:
        """Of commands that were not taken yet."""
        return self._waiting_bytes + self._write_at - self._read_at

    def close(self) -> None:
        """Let go of everything.  Not inside the shard's lock."""
        self._leave(self)
        self.end(DatabaseClosed("the following has ended"))
        self._view = None
        self._rows = self._tokens = self._imports = iter(())


def _begun(scan: Iterator[Row]) -> Iterator[Row]:
    """A walk that has taken its first step: what it sees is of now."""
    first = next(scan, None)
    return iter(()) if first is None else chain((first,), scan)
