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
- Nor does such a shard take one part of a write for another: parts that were cut for two shards, and refused by both,
  come to the shard that both became one by one, under one key.  Of what it does itself under a key it remembers the
  range of the hashes (*piece*), between the first and the last of the command's records: a part has all of a write's
  records in the range it was cut for, so what of the write lies in a piece was done, and nothing else was.  Filters
  have no such range; they come whole, and stand for all hashes.  What a source did a part of, and had others' word for
  the rest, goes to the targets as that part.
- The answer is what the write did to the records it names: the sum of the *outcomes* that have any of them.  An outcome
  is what one shard did when the write came to it, under a name that it keeps however often its records move: the shard,
  and the first hash of the piece, if it did the write in pieces.  The copier tells it to the targets with the command,
  and no target adds one for what it merely carries out again.  Several shards may know of one outcome, whose records
  they share: they all tell it whole and by name (``WriteResult.outcomes``), and who adds up counts each name once.  So
  the same write is answered with the same counts, over any number of reshards.
  Commands that a copier of an earlier release passed on bring their keys with them and not their outcomes; of these
  the target remembers what it did itself.  Of such a write, and of one that an earlier release adds up, a late retry
  may be told other counts; it is not done again for that.
- A key that stood for another write is refused, as ever.  This compares the fingerprints of whole writes: parts of one
  write go to shards under the key and the fingerprint of the whole.
"""

import struct
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from vecdb.core.calls import WriteToken
from vecdb.core.errors import DataCorrupted, InvalidArgument
from vecdb.core.limits import MAX_WRITE_TOKENS
from vecdb.core.records import Outcome, WriteResult
from vecdb.shard import rows
from vecdb.shard.mutations import Mutations

MAX_HASH: Final = (1 << 64) - 1
_LANE: Final = struct.Struct(">2Q")
"""Sequence number, commands done of the next piece."""
_ORIGIN: Final = struct.Struct(">3Q")
"""Run (0: it has sent nothing itself), first and last hash.  The shard key follows."""
_KEY: Final = struct.Struct(">8QB")
"""Log index here, fingerprint, inserted, updated, deleted, missing, first and last hash, whether that is a part.  The
key follows.
"""


@dataclass(frozen=True, slots=True)
class Remembered:
    """A write that was applied elsewhere, for the hashes ``lo`` to ``last``.  ``part``: the origin did it in pieces, of
    which this is the one from ``lo`` on; else it is all that it did.
    """

    key: bytes
    fingerprint: int
    counts: tuple[int, int, int, int]
    lo: int = 0
    last: int = MAX_HASH
    part: bool = False

    def within(self, lo: int, last: int) -> "Remembered":
        """As what a shard with these hashes did; it has no others to speak for."""
        return replace(self, lo=max(lo, self.lo), last=min(last, self.last))


@dataclass(frozen=True, slots=True)
class Memory:
    """Writes that shard ``origin`` applied, the oldest first."""

    origin: int
    writes: tuple[Remembered, ...]


@dataclass(frozen=True, slots=True)
class Import:
    """The command.  ``source``: the shard it is from, which had the hashes ``lo`` to ``last``.

    ``commands``: encoded; from a copier of an earlier release with the tokens they had at the source.  ``memories``:
    what of earlier writes it remembers, and what it did under keys that the commands had.  ``shard_key``: of the
    collection, empty for none.  ``sequence``: from 1 on, by lane.
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
    """``writes``: by key and the first hash of a piece that was done, with its row; ``pieces``: these hashes by key."""

    run: int
    lo: int
    last: int
    shard_key: str
    writes: "OrderedDict[tuple[bytes, int], tuple[bytes, bytes]]" = field(default_factory=OrderedDict)
    pieces: dict[bytes, tuple[int, ...]] = field(default_factory=dict)

    def add(self, key: bytes, row: bytes, value: bytes) -> None:
        lo: int = _KEY.unpack(value)[6]
        self.writes[key, lo] = row, value
        self.pieces[key] = (*self.pieces.get(key, ()), lo)

    def forget(self, key: bytes, lo: int) -> None:
        del self.writes[key, lo]
        left = tuple(one for one in self.pieces.pop(key) if one != lo)
        if left:
            self.pieces[key] = left

    def to_bytes(self) -> bytes:
        return _ORIGIN.pack(self.run, self.lo, self.last) + self.shard_key.encode()


@dataclass(frozen=True, slots=True)
class Piece:
    """What was done under a key for the hashes ``lo`` to ``last``; ``origin``: by which shard, 0: by this one.
    ``whole``: it did no other piece.
    """

    lo: int
    last: int
    counts: tuple[int, int, int, int]
    origin: int = 0
    whole: bool = False

    @property
    def outcome(self) -> Outcome:
        return Outcome(self.origin, None if self.whole else self.lo, self.counts)

    def has(self, places: Sequence[int] | None) -> bool:
        """Whether any of these hashes is in it; None: of all."""
        return places is None or any(self.lo <= one <= self.last for one in places)


@dataclass(frozen=True, slots=True)
class Earlier:
    """What of a write was done before, and where hashes come from."""

    pieces: tuple[Piece, ...]
    shard_key: str
    log_index: int = 0

    def done_for(self, hashed: int | None) -> bool:
        return hashed is not None and any(one.lo <= hashed <= one.last for one in self.pieces)

    def covers(self, lo: int, last: int) -> bool:
        """Whether it was done for all of these hashes."""
        for one in sorted(self.pieces, key=lambda piece: piece.lo):
            if one.lo > lo:
                break
            lo = max(lo, one.last + 1)
        return lo > last

    def answer(self, places: Sequence[int] | None, fresh: Piece | None, log_index: int) -> WriteResult:
        """What was done to records at ``places`` (None: everywhere), with what of it was done just now, at
        ``log_index``.
        """
        told = [one.outcome for one in self.pieces if one.has(places)] + ([fresh.outcome] if fresh else [])
        outcomes = {(one.origin, one.lo): one for one in told}
        inserted, updated, deleted, missing = (sum(one.counts[at] for one in outcomes.values()) for at in range(4))
        return WriteResult(inserted, updated, deleted, missing, log_index if fresh or not self.log_index
                           else self.log_index, outcomes=tuple(outcomes.values()))

    @classmethod
    def of_others(cls, piece: Import) -> "Earlier":
        """For a command of a source: to records of other sources it is done by these, in their own time."""
        around = ((0, piece.lo - 1), (piece.last + 1, MAX_HASH))
        return cls(tuple(Piece(lo, last, (0, 0, 0, 0)) for lo, last in around if lo <= last), piece.shard_key)


@dataclass(slots=True)
class ImportChange:
    """What :meth:`Imports.commit` shows."""

    lane: tuple[tuple[int, int], tuple[int, int]] | None = None
    origins: list[tuple[int, Origin]] = field(default_factory=list)
    added: list[tuple[int, bytes, bytes, bytes]] = field(default_factory=list)
    """Origin, key, row, value."""
    forgotten: list[tuple[int, tuple[bytes, int]]] = field(default_factory=list)
    """Origin, key and first hash."""


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
                    self.origins[rows.number_of(key)].add(value[_KEY.size:], key, value[: _KEY.size])
            except (struct.error, KeyError, UnicodeDecodeError) as error:
                raise DataCorrupted("a row of what was imported cannot be understood", path=f"row {key[:1]!r}",
                                    got=len(value)) from error

    def __contains__(self, key: bytes) -> bool:
        return any(key in origin.pieces for origin in list(self.origins.values()))

    @property
    def shard_key(self) -> str:
        """Of the collection, as whoever filled this shard has it."""
        return next((one.shard_key for one in self.origins.values()), "")

    @property
    def span(self) -> tuple[int, int]:
        """The first and the last hash of the shards that filled this one: no record's is outside."""
        return (min(one.lo for one in self.origins.values()), max(one.last for one in self.origins.values()))

    def find(self, token: WriteToken) -> Earlier | None:
        """What is known of a write; raises ``InvalidArgument`` if its key stood for another."""
        found: list[tuple[int, tuple[int, ...]]] = []
        for number, origin in self.origins.items():
            found += [(number, _KEY.unpack(origin.writes[token.key, lo][1])) for lo in origin.pieces.get(token.key, ())]
        if not found:
            return None
        if any(values[1] != token.fingerprint for _, values in found):
            raise InvalidArgument("idempotency_key", "was used for another write, applied before the records came here",
                                  got=token.key.hex(), limit="a key of its own for every write")
        pieces = tuple(Piece(values[6], values[7], (values[2], values[3], values[4], values[5]),
                             number, not values[8]) for number, values in found)
        return Earlier(pieces, self.shard_key, max(values[0] for _, values in found))

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

    def own_of(self, piece: Import, token: WriteToken, places: Sequence[int] | None) -> Remembered | None:
        """What is to be remembered, but for its counts, of a command that came with a key, for records at ``places``
        (None: it does not say): None where that is known.
        """
        try:
            known = self.find(token)
        except InvalidArgument:  # of another write, which the source has forgotten
            known = None
        left = places if known is None or places is None else [one for one in places if not known.done_for(one)]
        if left == []:
            return None
        lo, last = (piece.lo, piece.last) if left is None else (min(left), max(left))
        return Remembered(token.key, token.fingerprint, (0, 0, 0, 0), lo, last, part=True)

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
                self._origin(mutations, change, memory.origin, Origin(0, command.lo, command.last, command.shard_key))
            before = self._number_after(memory.origin)
            fresh = [one for one in memory.writes if known is None or (one.key, one.lo) not in known.writes]
            for place, one in enumerate(fresh):
                row = rows.memory_row(memory.origin, before + place)
                value = _KEY.pack(log_index, one.fingerprint, *one.counts, one.lo, one.last, one.part)
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
        for write, (row, _) in known.writes.items():
            if excess <= 0:
                break
            excess -= 1
            change.forgotten.append((number, write))
            mutations.deletes.append(row)

    def commit(self, change: ImportChange) -> None:
        """Call it once the rows are written."""
        if change.lane is not None:
            self.lanes[change.lane[0]] = change.lane[1]
        for number, origin in change.origins:
            known = self.origins.get(number)
            if known is not None:
                origin.writes, origin.pieces = known.writes, known.pieces
            self.origins[number] = origin
        for number, write in change.forgotten:
            self.origins[number].forget(*write)
        for number, key, row, value in change.added:
            self.origins[number].add(key, row, value)

    # --- handing on -------------------------------------------------------------------------------

    def memories(self) -> Iterator[Memory]:
        """Everything remembered, for a shard that takes this one's place."""
        for number, origin in self.origins.items():
            writes = []
            for (key, _), (_, value) in origin.writes.items():
                _, fingerprint, inserted, updated, deleted, missing, lo, last, part = _KEY.unpack(value)
                writes.append(Remembered(key, fingerprint, (inserted, updated, deleted, missing), lo, last, bool(part)))
            if writes:
                yield Memory(number, tuple(writes))
