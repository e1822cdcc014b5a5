"""Marks: places in the log at which replicas can be compared.

A mark is a command that changes no record.  Every replica that applies it notes its digest and its number of records
at that log index, in a row of the same batch; so what two replicas noted at one log index must be equal, whenever it is
asked, and a replica that was restored from another's snapshot has the other's marks.
"""

import struct
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from vecdb.core.errors import DataCorrupted
from vecdb.shard import rows
from vecdb.shard.mutations import Mutations

MAX_MARKS: Final = 64
"""Marks kept: the last ones."""

_ROW: Final = struct.Struct(">QQ16s")


@dataclass(frozen=True, slots=True)
class Mark:
    """The command."""


@dataclass(frozen=True, slots=True)
class MarkResult:
    """A shard at a place in its log: ``digest`` is of its live records, in hex."""

    log_index: int
    term: int
    records: int
    digest: str


class Marks:
    """The last marks, oldest first; one caller at a time changes them, anybody reads ``known``."""

    def __init__(self, found: Iterable[tuple[bytes, bytes]] = ()) -> None:
        """``found``: the rows of marks by ascending key, as a store has them."""
        self.known: dict[int, MarkResult] = {}
        for key, value in found:
            if len(value) != _ROW.size:
                raise DataCorrupted("the row of a mark cannot be understood", path="row k", got=len(value))
            term, records, digest = _ROW.unpack(value)
            log_index = rows.number_of(key)
            self.known[log_index] = MarkResult(log_index, term, records, digest.hex())

    def add(self, mutations: Mutations, mark: MarkResult) -> None:
        """Add to ``mutations`` the row of a mark and the deletion of those it pushes out."""
        excess = len(self.known) + 1 - MAX_MARKS
        mutations.deletes += [rows.mark_row(log_index) for log_index in list(self.known)[:max(0, excess)]]
        mutations.puts.append((rows.mark_row(mark.log_index),
                               _ROW.pack(mark.term, mark.records, bytes.fromhex(mark.digest))))

    def commit(self, mark: MarkResult) -> None:
        """Call it once the rows are written."""
        kept = list(self.known.values())[1 - MAX_MARKS:]
        self.known = {one.log_index: one for one in [*kept, mark]}
