"""An ordered walk over a store's rows that holds little memory and ends truthfully."""

import threading
from collections.abc import Callable

from rocksdict import RdictIter

from vecdb.core.errors import VecdbError

CHUNK_ROWS = 512
CHUNK_BYTES = 1 << 20


class RowScan:
    """Iterator of (key, value) from one RocksDB iterator, which is a snapshot taken when it was made.

    Rows are read ahead in chunks of at most 512 rows or about 1 MiB under one lock, so that ``close`` may come from
    another thread.  An open iterator keeps RocksDB, and the store's file lock, alive; therefore the store
    closes its scans before itself, and a scan so ended raises what ``ended`` makes.
    """

    def __init__(self, iterator: RdictIter, start: bytes, map_error: Callable[[BaseException], VecdbError],
                 ended: Callable[[], VecdbError]) -> None:
        self._lock = threading.Lock()
        self._iterator: RdictIter | None = iterator
        self._map_error = map_error
        self._ended = ended
        self._complete = False
        self._rows: list[tuple[bytes, bytes]] = []
        self._next = 0
        try:
            iterator.seek(start)
        except Exception as error:
            self.close()
            raise map_error(error) from error

    def __iter__(self) -> "RowScan":
        return self

    def __next__(self) -> tuple[bytes, bytes]:
        if self._next == len(self._rows):
            self._rows, self._next = self._read(), 0
            if not self._rows:
                raise StopIteration
        row = self._rows[self._next]
        self._next += 1
        return row

    def _read(self) -> list[tuple[bytes, bytes]]:
        with self._lock:
            if self._complete:
                return []
            iterator = self._iterator
            if iterator is None:
                raise self._ended()
            rows: list[tuple[bytes, bytes]] = []
            size = 0
            try:
                while len(rows) < CHUNK_ROWS and size < CHUNK_BYTES and iterator.valid():
                    value = iterator.value()
                    rows.append((iterator.key(), value))
                    size += len(value)
                    iterator.next()
                if not iterator.valid():
                    iterator.status()  # raises if it stopped at damage instead of the end
                    self._complete = True
                    self._iterator = None
            except Exception as error:
                self._iterator = None
                raise self._map_error(error) from error
            return rows

    def close(self) -> None:
        """Let go of RocksDB's iterator; rows already read ahead are still given out."""
        with self._lock:
            self._iterator = None
