"""What a shard that is being filled from others takes: their records, their commands, and the writes they remember.

**IMPORT** carries the next piece of a *lane*: a source shard's records as commands, then its commands as they came.  A
piece is applied once: the shard remembers of every lane the last sequence number, in the batch that applies it, so
pieces may be sent again for as long as nobody knows what became of them.  A *run* is one copier's one attempt; the
first to come is the only one, so a copier that was replaced, and lives on, cannot mix its records with its successor's.
The commands of a piece are applied one after another, each as a batch of its own, with how many are done; the log index
of the piece is the state's only after the last.  What says by itself which records it is for (a filter, or ids where
hashes are of a shard key) is done to those of the source's hashes alone: where two shards are merged it is in the log
of both, and each has its own moment.

**Idempotency keys.**  A write that a source has applied is not done again by the shard that took its place, for as long
as the source would have remembered its key: keys leave one by one, oldest first, as new ones come (by source: two that
are merged would each have had a window of its own).  Exactly:

- A retry finds its key under an *origin*, the shard that applied the write, and which hashes were that shard's.  What
  of the write is for those hashes is not done again; what is for others is, since another shard had them, which may
  never have seen the write.  So a retry of a write that had reached one of two shards, which were merged meanwhile,
  does the other half.
- The answer is what the write did: added up over the origins.  Of a write from before the copy began the source knows
  only what it did as a whole, so every shard that took a part of its hashes answers with the whole, and says so
  (``WriteResult.origin``); who adds up answers of several shards counts one origin once.
- A key that stood for another write is refused, as ever.  This compares the fingerprints of whole writes: parts of one
  write go to shards under the key and the fingerprint of the whole.
"""

import struct
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from vecdb.core.calls import WriteToken
from vecdb.core.errors import DataCorrupted, InvalidArgument
from vecdb.core.limits import MAX_WRITE_TOKENS
from vecdb.core.records import WriteResult
from vecdb.shard import rows
from vecdb.shard.mutations import Mutations

MAX_HASH: Final = (1 << 64) - 1
_LANE: Final = struct.Struct(">2Q")
"""Sequence number, commands done of the next piece."""
_ORIGIN: Final = struct.Struct(">3Q")
"""Run (0: it has sent nothing itself), first and last hash.  The shard key follows."""
_KEY: Final = struct.Struct(">6QB")
"""Log index here, fingerprint, inserted, updated, deleted, missing, whether that is a part.  The key follows."""


@dataclass(frozen=True, slots=True)
class Remembered:
    """A write that was applied elsewhere.  ``part``: the counts are of the hashes of this shard alone."""

    key: bytes
    fingerprint: int
    counts: tuple[int, int, int, int]
    part: bool = False


@dataclass(frozen=True, slots=True)
class Memory:
    """Writes that shard ``origin`` applied, which had the hashes ``lo`` to ``last``, the oldest first."""

    origin: int
    lo: int
    last: int
    writes: tuple[Remembered, ...]


@dataclass(frozen=True, slots=True)
class Import:
    """The command.  ``source``: the shard it is from, which had the hashes ``lo`` to ``last``.

    ``commands``: encoded, with the tokens they had at the source; ``memories``: what of earlier writes it remembers.
    ``shard_key``: of the collection, empty for none.  ``sequence``: from 1 on, by lane.
    """

    source: int
    run: int
    lane: int
    sequence: int
    lo: int
    last: int
    shard_key: str = ""
    commands: tuple[bytes, ...] = ()
    memories: tuple[Memory, ...] = ()


@dataclass(slots=True)
class Origin:
    """``writes``: by key, with the row of each."""

    run: int
    lo: int
    last: int
    shard_key: str
    writes: "OrderedDict[bytes, tuple[bytes, bytes]]" = field(default_factory=OrderedDict)

    def to_bytes(self) -> bytes:
        return _ORIGIN.pack(self.run, self.lo, self.last) + self.shard_key.encode()


@dataclass(frozen=True, slots=True)
class Earlier:
    """What is known of a write: ``result`` of what was done, and the ranges of hashes that it was done for."""

    result: WriteResult
    ranges: tuple[tuple[int, int], ...]
    shard_key: str

    def done_for(self, hashed: int | None) -> bool:
        return hashed is not None and any(lo <= hashed <= last for lo, last in self.ranges)

    @classmethod
    def of_others(cls, piece: Import) -> "Earlier":
        """For a command of a source: to records of other sources it is done by these, in their own time."""
        around = ((0, piece.lo - 1), (piece.last + 1, MAX_HASH))
        return cls(WriteResult(), tuple((lo, last) for lo, last in around if lo <= last), piece.shard_key)


@dataclass(slots=True)
class ImportChange:
    """What :meth:`Imports.commit` shows."""

    lane: tuple[tuple[int, int], tuple[int, int]] | None = None
    origins: list[tuple[int, Origin]] = field(default_factory=list)
    added: list[tuple[int, bytes, bytes, bytes]] = field(default_factory=list)
    """Origin, key, row, value."""
    forgotten: list[tuple[int, bytes]] = field(default_factory=list)


class Imports:
    """One caller at a time changes it."""

    def __init__(self, found: Iterable[tuple[bytes, bytes]] = (), most: int = MAX_WRITE_TOKENS) -> None:
        """``found``: the rows of imports by ascending key, as a store has them."""
        self._most = most
        self.lanes: dict[tuple[int, int], tuple[int, int]] = {}
        self.origins: dict[int, Origin] = {}
        for key, value in found:
            try:
                if key[:1] == rows.ORIGIN:
                    run, lo, last = _ORIGIN.unpack_from(value)
                    self.origins[rows.number_of(key)] = Origin(run, lo, last, value[_ORIGIN.size:].decode())
                elif key[:1] == rows.LANE:
                    sequence, done = _LANE.unpack(value)
                    self.lanes[rows.number_of(key), key[-1]] = sequence, done
                else:
                    self.origins[rows.number_of(key)].writes[value[_KEY.size:]] = key, value[: _KEY.size]
            except (struct.error, KeyError, UnicodeDecodeError) as error:
                raise DataCorrupted("a row of what was imported cannot be understood", path=f"row {key[:1]!r}",
                                    got=len(value)) from error

    def __contains__(self, key: bytes) -> bool:
        return any(key in origin.writes for origin in list(self.origins.values()))

    def find(self, token: WriteToken) -> Earlier | None:
        """What is known of a write; raises ``InvalidArgument`` if its key stood for another."""
        found: list[tuple[int, Origin, tuple[int, ...]]] = []
        for number, origin in self.origins.items():
            known = origin.writes.get(token.key)
            if known is not None:
                found.append((number, origin, _KEY.unpack(known[1])))
        if not found:
            return None
        if any(values[1] != token.fingerprint for _, _, values in found):
            raise InvalidArgument("idempotency_key", "was used for another write, applied before the records came here",
                                  got=token.key.hex(), limit="a key of its own for every write")
        inserted, updated, deleted, missing = (sum(values[at] for _, _, values in found) for at in range(2, 6))
        whole = min((number for number, _, values in found if not values[6]), default=0)
        result = WriteResult(inserted, updated, deleted, missing, max(values[0] for _, _, values in found),
                             origin=whole)
        return Earlier(result, tuple((origin.lo, origin.last) for _, origin, _ in found), found[0][1].shard_key)

    # --- taking -----------------------------------------------------------------------------------

    def begin(self, command: Import) -> int | None:
        """How many of a piece's commands are done already, None: all; raises ``InvalidArgument`` where it is refused.
        """
        origin = self.origins.get(command.source)
        if origin is not None and origin.run not in (0, command.run):
            raise InvalidArgument("run", "is of another copier than the one that fills this shard", got=command.run,
                                  limit=origin.run)
        sequence, done = self.lanes.get((command.source, command.lane), (0, 0))
        if command.sequence > sequence + 1:
            raise InvalidArgument("sequence", f"{command.sequence} comes before {sequence + 1}", got=command.sequence,
                                  limit=sequence + 1)
        return done if command.sequence == sequence + 1 else None

    def progress(self, mutations: Mutations, command: Import, done: int | None) -> ImportChange:
        """Note that so many commands of a piece are done, None: all of it."""
        change = ImportChange()
        lane = command.source, command.lane
        change.lane = lane, ((command.sequence, 0) if done is None else (command.sequence - 1, done))
        mutations.puts.append((rows.lane_row(*lane), _LANE.pack(*change.lane[1])))
        known = self.origins.get(command.source)
        if known is None or not known.run:
            self._origin(mutations, change, command.source,
                         Origin(command.run, command.lo, command.last, command.shard_key))
        return change

    def _origin(self, mutations: Mutations, change: ImportChange, number: int, origin: Origin) -> None:
        change.origins.append((number, origin))
        mutations.puts.append((rows.origin_row(number), origin.to_bytes()))

    def remember(self, mutations: Mutations, change: ImportChange, log_index: int, command: Import,
                 memories: Sequence[Memory]) -> None:
        """Add keys of writes that were applied elsewhere."""
        for memory in memories:
            known = self.origins.get(memory.origin)
            if known is None and all(number != memory.origin for number, _ in change.origins):
                self._origin(mutations, change, memory.origin, Origin(0, memory.lo, memory.last, command.shard_key))
            before = self._number_after(memory.origin)
            fresh = [one for one in memory.writes if known is None or one.key not in known.writes]
            for place, one in enumerate(fresh):
                row = rows.memory_row(memory.origin, before + place)
                value = _KEY.pack(log_index, one.fingerprint, *one.counts, one.part)
                mutations.puts.append((row, value + one.key))
                change.added.append((memory.origin, one.key, row, value))
            excess = len(fresh) + (0 if known is None else len(known.writes)) - self._most
            self._forget(mutations, change, memory.origin, excess)

    def _number_after(self, origin: int) -> int:
        known = self.origins.get(origin)
        if known is None or not known.writes:
            return 0
        return rows.memory_number(next(reversed(known.writes.values()))[0]) + 1

    def make_room(self, mutations: Mutations, natural: int) -> ImportChange | None:
        """A key of the shard's own comes, which then has so many: of every origin as many leave as do not fit."""
        change = ImportChange()
        for number, origin in self.origins.items():
            self._forget(mutations, change, number, len(origin.writes) + natural - self._most)
        return change if change.forgotten else None

    def _forget(self, mutations: Mutations, change: ImportChange, number: int, excess: int) -> None:
        known = self.origins.get(number)
        if excess <= 0 or known is None:
            return
        for key, (row, _) in known.writes.items():
            if excess <= 0:
                break
            excess -= 1
            change.forgotten.append((number, key))
            mutations.deletes.append(row)

    def commit(self, change: ImportChange) -> None:
        """Call it once the rows are written."""
        if change.lane is not None:
            self.lanes[change.lane[0]] = change.lane[1]
        for number, origin in change.origins:
            known = self.origins.get(number)
            if known is not None:
                origin.writes = known.writes
            self.origins[number] = origin
        for number, key in change.forgotten:
            del self.origins[number].writes[key]
        for number, key, row, value in change.added:
            self.origins[number].writes[key] = row, value

    # --- handing on -------------------------------------------------------------------------------

    def memories(self) -> Iterator[Memory]:
        """Everything remembered, for a shard that takes this one's place."""
        for number, origin in self.origins.items():
            writes = []
            for key, (_, value) in origin.writes.items():
                _, fingerprint, *counts, part = _KEY.unpack(value)
                writes.append(Remembered(key, fingerprint, (counts[0], counts[1], counts[2], counts[3]), bool(part)))
            if writes:
                yield Memory(number, origin.lo, origin.last, tuple(writes))
