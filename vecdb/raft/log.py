"""The logs of all groups of a process in one store: appended in memory at once, on stable storage a batch later.

A **turn** of the host appends to any number of logs; ``take`` hands out everything that has changed since as one
batch, a thread writes and syncs it, and ``done`` tells each log how far it is *stable*.  What a replica promises leaves
only then, and a leader counts itself only for stable entries.

**Rows.**  ``l | group | index`` → checksum, term, command; ``m | group`` → checksum and everything else: the replica's
number, term and vote, the base (the last place that was truncated away, with its term and configuration), the last
place, the commit index.  Both are in the same batch, so entries that do not end where the meta row says are damage, not
a crash.  A damaged log is never repaired by guessing: :meth:`LogStore.open` raises ``DataCorrupted``, and the replica
comes back under a new number, as a learner.

**Memory.**  Terms and sizes of all entries are held; commands only as far as those of all logs fit ``cache_bytes``, the
latest first; older ones are read back for a follower that lags.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import xxhash
from pysyncobj.journal import Journal

from vecdb.core.errors import DataCorrupted, Unavailable
from vecdb.ports.store import Store
from vecdb.raft.membership import Configuration
from vecdb.raft.messages import MEMBERS, Entry
from vecdb.shard.mutations import Mutations

_ENTRY_KEY: Final = struct.Struct(">cQQ")
_META_KEY: Final = struct.Struct(">cQ")
_ENTRY: Final = struct.Struct("<QQ")
_META: Final = struct.Struct("<BIQQQQQQQHHH")
_SUM: Final = struct.Struct("<Q")
_VERSION: Final = 1
_MASK: Final = (1 << 64) - 1

CACHE_BYTES: Final = 128 << 20
"""Commands that all logs of a process hold in memory."""


def entry_key(group: int, index: int) -> bytes:
    return _ENTRY_KEY.pack(b"l", group, index)


def meta_key(group: int) -> bytes:
    return _META_KEY.pack(b"m", group)


def _seed(group: int, index: int, term: int) -> int:
    """Binds an entry's checksum to its place, so that a row that strayed is not believed."""
    return (group * 0x9E3779B97F4A7C15 + index * 0xC2B2AE3D27D4EB4F + term * 0x165667B19E3779F9 + 1) & _MASK


@dataclass(frozen=True, slots=True)
class Intent:
    """A snapshot is about to become the state; the log is to begin behind it once that is done."""

    index: int
    term: int
    configuration: Configuration


@dataclass(slots=True)
class Meta:
    """The row that stands beside a log's entries."""

    number: int
    term: int
    vote: str | None
    base: int
    base_term: int
    last: int
    commit: int
    configuration: Configuration
    intent: "Intent | None" = None

    def to_bytes(self) -> bytes:
        vote, configuration = (self.vote or "").encode(), self.configuration.to_bytes()
        intent = self.intent or Intent(0, 0, Configuration())
        intended = intent.configuration.to_bytes()
        body = b"".join((_META.pack(_VERSION, self.number, self.term, self.base, self.base_term, self.last, self.commit,
                                    intent.index, intent.term, len(vote), len(configuration), len(intended)),
                         vote, configuration, intended))
        return _SUM.pack(xxhash.xxh3_64_intdigest(body)) + body

    @classmethod
    def from_bytes(cls, value: bytes) -> "Meta":
        """Raises ``ValueError`` where the bytes are not what was written."""
        body = value[_SUM.size:]
        if len(value) < _SUM.size + _META.size or _SUM.unpack_from(value)[0] != xxhash.xxh3_64_intdigest(body):
            raise ValueError("its meta row does not match its checksum")
        (version, number, term, base, base_term, last, commit, intent, intent_term, votes, configured,
         intended) = _META.unpack_from(body)
        if version != _VERSION or len(body) != _META.size + votes + configured + intended:
            raise ValueError(f"its meta row is of version {version}")
        at = _META.size + votes
        vote = body[_META.size:at].decode()
        configuration = Configuration.from_bytes(body[at:at + configured])
        coming = Intent(intent, intent_term, Configuration.from_bytes(body[at + configured:])) if intent else None
        return cls(number, term, vote or None, base, base_term, last, commit, configuration, coming)


class GroupLog(Journal):  # type: ignore[misc]  # untyped base
    """One group's log.  The base stands at place 0 of the original's list, as an entry without a command."""

    def __init__(self, store: "LogStore", group: int, meta: Meta) -> None:
        self._store = store
        self.group = group
        self.number = meta.number
        self._term, self._vote, self._commit = meta.term, meta.vote, meta.commit
        self.base, self.base_term = meta.base, meta.base_term
        self.base_configuration = meta.configuration
        self._terms: list[int] = []
        self._sizes: list[int] = []
        self._commands: list[bytes | None] = []
        self.cached, self._cached_from = 0, 0
        self.bytes = 0
        """Of all commands, on disk."""
        self.configured: list[int] = []
        """Places of configurations."""
        self.stable = self.last
        """Entries up to here are on stable storage."""
        self.stable_vote = (self._term, self._vote)
        """As is this term with this vote."""
        self.intent = self.stable_intent = meta.intent
        self.pending: dict[bytes, bytes | None] = {}
        self.ranges: list[tuple[bytes, bytes]] = []

    def restore(self, command: bytes, term: int) -> None:
        """The next entry as it stands on the disk."""
        self._push(command, term)
        self.stable = self.last
        self._store.trim(self)

    # --- places -----------------------------------------------------------------------------------

    @property
    def last(self) -> int:
        return self.base + len(self._terms)

    @property
    def last_term(self) -> int:
        return self._terms[-1] if self._terms else self.base_term

    def term_at(self, index: int) -> int | None:
        """None where there is no such place (any more)."""
        if index == self.base:
            return self.base_term
        at = index - self.base - 1
        return self._terms[at] if 0 <= at < len(self._terms) else None

    def first_of_term(self, index: int, floor: int) -> int:
        """The first place, above ``floor``, of the run of equal terms that ends at ``index``."""
        term = self.term_at(index)
        while index - 1 > floor and self.term_at(index - 1) == term:
            index -= 1
        return index

    def size_of(self, start: int, stop: int) -> int:
        """Bytes of the commands of ``[start, stop)``."""
        low = max(start - self.base - 1, 0)
        return sum(self._sizes[low:max(stop - self.base - 1, low)])

    def read(self, start: int, last: int, max_bytes: int, max_entries: int) -> list[Entry]:
        """Entries from ``start`` to at most ``last``: at least one, then as many as fit."""
        chosen: list[int] = []
        size = 0
        for index in range(start, min(last, self.last) + 1):
            size += self._sizes[index - self.base - 1]
            if chosen and (size > max_bytes or len(chosen) >= max_entries):
                break
            chosen.append(index)
        missing = [index for index in chosen if self._commands[index - self.base - 1] is None]
        if missing:
            return self._read_back(chosen, missing)
        low = start - self.base - 1
        return [Entry(command or b"", index, term) for command, index, term in zip(
            self._commands[low:low + len(chosen)], chosen, self._terms[low:low + len(chosen)], strict=True)]

    def _read_back(self, chosen: list[int], missing: list[int]) -> list[Entry]:
        found = dict(zip(missing, self._store.fetch(self.group, missing), strict=True))
        result: list[Entry] = []
        for index in chosen:
            command, term = self._commands[index - self.base - 1], self._terms[index - self.base - 1]
            if command is None:
                command = _checked(self.group, index, found[index], term)
            result.append(Entry(command, index, term))
        return result

    # --- the original's interface -----------------------------------------------------------------

    def add(self, command: bytes, idx: int, term: int) -> None:
        assert idx == self.last + 1, "a log has no holes"
        self._push(command, term)
        head = _ENTRY.pack(xxhash.xxh3_64_intdigest(command, _seed(self.group, idx, term)), term)
        self.pending[entry_key(self.group, idx)] = head + command
        self._touch()
        self._store.trim(self)

    def __len__(self) -> int:
        return len(self._terms) + 1

    def __getitem__(self, item: int) -> Entry:
        at = item if item >= 0 else len(self) + item
        if at == 0:
            return Entry(b"\x01", self.base, self.base_term)
        return self.read(self.base + at, self.base + at, 0, 1)[0]

    def deleteEntriesFrom(self, entryFrom: int) -> None:  # noqa: N802
        """``entryFrom``: a place in the list, above 0."""
        for index in range(self.base + entryFrom, self.last + 1):
            self.pending[entry_key(self.group, index)] = None
        cut = entryFrom - 1
        self.bytes -= sum(self._sizes[cut:])
        self._uncache(sum(len(command) for command in self._commands[cut:] if command is not None))
        del self._terms[cut:], self._sizes[cut:], self._commands[cut:]
        self._cached_from = min(self._cached_from, len(self._commands))
        self.configured = [index for index in self.configured if index <= self.last]
        self.stable = min(self.stable, self.last)
        self._touch()

    def deleteEntriesTo(self, entryTo: int) -> None:  # noqa: N802
        """``entryTo``: the place that becomes the base.  Only stable, applied entries: see :meth:`truncate`."""
        if entryTo <= 0:
            return
        base, term = self.base + entryTo, self._terms[entryTo - 1]
        self.ranges.append((entry_key(self.group, 0), entry_key(self.group, base + 1)))
        self.bytes -= sum(self._sizes[:entryTo])
        self._uncache(sum(len(command) for command in self._commands[:entryTo] if command is not None))
        del self._terms[:entryTo], self._sizes[:entryTo], self._commands[:entryTo]
        self._cached_from = max(0, self._cached_from - entryTo)
        self.base, self.base_term = base, term
        self.configured = [index for index in self.configured if index > base]
        self._touch()

    def setRaftCommitIndex(self, raftCommitIndex: int) -> None:  # noqa: N802
        """Rides on the next batch: Raft does not need it on disk."""
        self._commit = raftCommitIndex

    def getRaftCommitIndex(self) -> int:  # noqa: N802
        return max(self._commit, self.base)

    def setCurrentTerm(self, term: int, votedForNodeId: str | None) -> None:  # noqa: N802
        self._term, self._vote = term, votedForNodeId
        self._touch()

    def getCurrentTerm(self) -> int:  # noqa: N802
        return self._term

    def getVotedForNodeId(self) -> str | None:  # noqa: N802
        return self._vote

    def clear(self) -> None:
        self.reset(self.base, self.base_term, self.base_configuration)

    def _destroy(self) -> None:
        """The store is the host's."""

    # --- beyond it --------------------------------------------------------------------------------

    def reset(self, index: int, term: int, configuration: Configuration) -> None:
        """Forget all entries; the state at ``(index, term)`` has come from elsewhere."""
        self.pending.clear()
        self.ranges.append((entry_key(self.group, 0), entry_key(self.group, _MASK)))
        self._terms, self._sizes, self._commands, self.configured = [], [], [], []
        self._uncache(self.cached)
        self._cached_from = self.bytes = 0
        self.base, self.base_term, self.base_configuration = index, term, configuration
        self.stable = min(self.stable, index)
        self.intent = None
        self._touch()

    def intend(self, intent: Intent | None) -> None:
        """Note that a snapshot is about to be installed: stable before it is, so that a crash between the two is told
        from damage.
        """
        self.intent = intent
        self._touch()

    def meta(self) -> Meta:
        return Meta(self.number, self._term, self._vote, self.base, self.base_term, self.last, self._commit,
                    self.base_configuration, self.intent)

    def became_stable(self, mark: "Mark") -> None:
        """A batch that ended in this state was synced; what has been truncated since does not count."""
        if self.term_at(mark.last) == mark.last_term:
            self.stable = max(self.stable, mark.last)
        self.stable_vote = mark.vote
        self.stable_intent = mark.intent

    def _push(self, command: bytes, term: int) -> None:
        self._terms.append(term)
        self._sizes.append(len(command))
        self._commands.append(command)
        if command[:1] == MEMBERS:
            self.configured.append(self.last)
        self.bytes += len(command)
        self._uncache(-len(command))

    def forget(self) -> None:
        """Hold nothing in memory any more."""
        self._commands = [None] * len(self._commands)
        self._uncache(self.cached)

    def _uncache(self, size: int) -> None:
        self.cached -= size
        self._store.cached -= size

    def shed(self) -> None:
        """Let go of the oldest stable commands, until the logs of the process are within their bound."""
        limit = min(self.stable - self.base, len(self._commands))
        while self._store.cached > self._store.cache_bytes and self._cached_from < limit:
            command = self._commands[self._cached_from]
            if command is not None:
                self._uncache(len(command))
                self._commands[self._cached_from] = None
            self._cached_from += 1

    def _touch(self) -> None:
        self._store.touch(self)


@dataclass(frozen=True, slots=True)
class Mark:
    """How a log stood when a batch was taken."""

    log: GroupLog
    last: int
    last_term: int
    vote: tuple[int, str | None]
    intent: Intent | None


@dataclass(slots=True)
class Batch:
    """Everything that changed in one turn; ``write`` belongs in a thread."""

    store: Store
    mutations: Mutations
    marks: list[Mark] = field(default_factory=list)

    def write(self) -> None:
        """Return once the batch is on stable storage; raises ``StorageError``."""
        self.store.write(self.mutations)
        self.store.sync()


class LogStore:
    """The logs of a process.  All but ``Batch.write`` belongs to one thread."""

    def __init__(self, store: Store, *, cache_bytes: int = CACHE_BYTES) -> None:
        self._store = store
        self.cache_bytes = cache_bytes
        self.cached = 0
        """Bytes of commands that all logs hold in memory."""
        self._open: dict[int, GroupLog] = {}
        self._dirty: dict[int, GroupLog] = {}
        self._in_flight: dict[int, bool] = {}

    @property
    def dirty(self) -> bool:
        return bool(self._dirty)

    def trim(self, latest: GroupLog) -> None:
        """Keep to the bound of memory: first by what ``latest`` has of old, then by the others."""
        if self.cached > self.cache_bytes:
            for log in (latest, *self._open.values()):
                log.shed()
                if self.cached <= self.cache_bytes:
                    return

    def writing(self, group: int) -> bool:
        """Whether a batch about this group is on its way to the disk."""
        return group in self._in_flight

    def touch(self, log: GroupLog) -> None:
        self._dirty[log.group] = log

    def groups(self) -> Iterator[tuple[int, int]]:
        """Groups that have a log here with their replica's number, -1 where the meta row is damaged."""
        for key, value in self._store.scan(b"m", b"n"):
            try:
                number = Meta.from_bytes(value).number
            except ValueError:
                number = -1
            yield _META_KEY.unpack(key)[1], number

    def create(self, group: int, number: int, configuration: Configuration, base: int = 1,
               base_term: int = 0) -> GroupLog:
        """A log that begins behind ``base``, with these members (none: a learner to be); durable with the next batch.

        Whatever the group had here before is deleted.  ``number`` must be one this node has not used for the group.
        """
        log = GroupLog(self, group, Meta(number, base_term, None, base, base_term, base, base, configuration))
        log.stable = 0
        self.close(self._open.get(group, log))  # a damaged one, as far as it was read
        self._open[group] = log
        log.ranges.append((entry_key(group, 0), entry_key(group, _MASK)))
        self.touch(log)
        return log

    def open(self, group: int) -> GroupLog | None:
        """The log as it was last synced; None if there is none.

        Raises ``DataCorrupted`` if it is damaged, ``Unavailable`` while a batch about an earlier handle is not written.
        """
        if self.writing(group) or group in self._dirty:
            raise Unavailable(f"the log of group {group} is being written", retry_after_s=0.05)
        (row,) = self._store.multi_get([meta_key(group)])
        try:
            meta = None if row is None else Meta.from_bytes(row)
        except ValueError as error:
            raise _damaged(group, str(error)) from error
        log = None if meta is None else GroupLog(self, group, meta)
        if log is not None:
            self._open[group] = log
        for key, value in self._store.scan(entry_key(group, 0), entry_key(group, _MASK)):
            index = _ENTRY_KEY.unpack(key)[2]
            if log is None or index != log.last + 1:
                raise _damaged(group, f"entry {index} stands where it should not")
            log.restore(*_parsed(group, index, value, log.last_term))
        if log is not None and meta is not None and log.last != meta.last:
            raise _damaged(group, f"it ends at {log.last}, not at {meta.last}")
        return log

    def drop(self, group: int) -> None:
        """Forget a group that has left this node, with the next batch."""
        log = GroupLog(self, group, Meta(0, 0, None, 0, 0, 0, 0, Configuration()))
        log.number = -1
        log.ranges.append((entry_key(group, 0), entry_key(group, _MASK)))
        self.touch(log)

    def close(self, log: GroupLog) -> None:
        """Let go of a log: what of it was not handed to a batch yet is forgotten, as in a crash."""
        if self._dirty.get(log.group) is log:
            del self._dirty[log.group]
        if self._open.get(log.group) is log:
            del self._open[log.group]
        log.forget()

    def fetch(self, group: int, indexes: list[int]) -> list[bytes | None]:
        return self._store.multi_get([entry_key(group, index) for index in indexes])

    def take(self) -> Batch:
        """What has changed since the last call, in one batch."""
        mutations = Mutations()
        batch = Batch(self._store, mutations)
        for log in self._dirty.values():
            mutations.ranges += log.ranges
            for key, value in log.pending.items():
                if value is None:
                    mutations.deletes.append(key)
                else:
                    mutations.puts.append((key, value))
            log.pending, log.ranges = {}, []
            if log.number < 0:
                mutations.deletes.append(meta_key(log.group))
            else:
                mutations.puts.append((meta_key(log.group), log.meta().to_bytes()))
                batch.marks.append(Mark(log, log.last, log.last_term, (log.getCurrentTerm(), log.getVotedForNodeId()),
                                        log.intent))
        self._in_flight = dict.fromkeys(self._dirty, True)
        self._dirty = {}
        return batch

    def failed(self) -> None:
        """The batch could not be written, and nobody knows what of it was; no thread is at it any more."""
        self._in_flight = {}

    def done(self, batch: Batch) -> list[int]:
        """The batch is on stable storage; returns the groups it was about."""
        self._in_flight = {}
        for mark in batch.marks:
            mark.log.became_stable(mark)
        return [mark.log.group for mark in batch.marks]


def _parsed(group: int, index: int, value: bytes, least_term: int) -> tuple[bytes, int]:
    if len(value) <= _ENTRY.size:
        raise _damaged(group, f"entry {index} is cut short")
    checksum, term = _ENTRY.unpack_from(value)
    command = value[_ENTRY.size:]
    if term < least_term or checksum != xxhash.xxh3_64_intdigest(command, _seed(group, index, term)):
        raise _damaged(group, f"entry {index} does not match its checksum")
    return command, term


def _checked(group: int, index: int, value: Any, term: int) -> bytes:
    if value is None:
        raise _damaged(group, f"entry {index} is gone")
    command, found = _parsed(group, index, bytes(value), term)
    if found != term:
        raise _damaged(group, f"entry {index} is of term {found}, not {term}")
    return command


def _damaged(group: int, what: str) -> DataCorrupted:
    return DataCorrupted(f"the log of group {group} is damaged: {what}", path="log", group=group)
