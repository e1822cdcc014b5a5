"""What replicas say to each other, and the bytes of it.

A **frame** is what one node sends another in one turn, for all groups they share: a checksum, then messages, each
with its length.  A message begins with its version, its kind, the group, the numbers of the replicas it is from and for
(the nodes are those of the stream) and the sender's term; integers are little-endian.  Nothing in it is code, every
length is checked before it is believed, and whatever does not fit raises :class:`Malformed`.

Unknown kinds and versions are malformed as well: a newer node speaks the older version until all are new.
"""

import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, Final, NamedTuple, TypeAlias

import xxhash

from vecdb.core.limits import MAX_BATCH_BYTES
from vecdb.ports.replicator import SnapshotFile
from vecdb.raft.membership import Configuration

VERSION: Final = 1
MAX_ENTRIES: Final = 65_536
"""Most entries of one message."""
MAX_COMMAND_BYTES: Final = MAX_BATCH_BYTES + (1 << 20)
"""Longest command: the largest batch, and what stands around it."""
NOOP: Final = b"\x01"
"""First byte of an entry: what a leadership begins with, in the original's form."""
COMMAND: Final = b"\x40"
"""A command for the state machine."""
MEMBERS: Final = b"\x41"
"""A configuration."""
MAX_FILES: Final = 100_000
"""Most files of one snapshot."""
MAX_NAME_BYTES: Final = 512
MAX_CHUNK_BYTES: Final = 4 << 20
MAX_TERM: Final = 1 << 62
"""No group comes to it by elections; who was told a later one could note none behind it."""
_LARGE_BYTES: Final = 1 << 16
"""From this on a frame is summed part by part, which spares a copy and costs more for each part."""


class Malformed(ValueError):
    """Bytes that no replica of this version sends."""


class Entry(NamedTuple):
    """A place in the log, in the original's order: ``command`` begins with its kind."""

    command: bytes
    index: int  # type: ignore[assignment]  # the word of the house, and of the original
    term: int


@dataclass(frozen=True, slots=True)
class Append:
    """Entries after ``prev``; without any, a heartbeat.  ``seq`` counts the leader's rounds, for ReadIndex."""

    kind: ClassVar[int] = 1
    term: int
    seq: int
    prev: int
    prev_term: int
    commit: int
    entries: tuple[Entry, ...] = ()


@dataclass(frozen=True, slots=True)
class Appended:
    """``success``: the log matches the leader's of ``term`` up to ``at``, on stable storage.

    Otherwise the log does not hold the ``prev`` of the message, and ``at`` is the last place where it may match.
    """

    kind: ClassVar[int] = 2
    term: int
    seq: int
    success: bool
    prev: int
    at: int


@dataclass(frozen=True, slots=True)
class PreVote:
    """Would you vote for me in ``term``?  Nobody's term changes."""

    kind: ClassVar[int] = 3
    term: int
    last: int
    last_term: int


@dataclass(frozen=True, slots=True)
class PreVoted:
    """``removed_at``: the log index of a committed configuration that does not have the asker any more, or 0."""

    kind: ClassVar[int] = 4
    term: int
    granted: bool
    removed_at: int = 0


@dataclass(frozen=True, slots=True)
class Vote:
    """``forced``: the leader has asked for this election, so nobody holds on to him."""

    kind: ClassVar[int] = 5
    term: int
    last: int
    last_term: int
    forced: bool = False


@dataclass(frozen=True, slots=True)
class Voted:
    kind: ClassVar[int] = 6
    term: int
    granted: bool


@dataclass(frozen=True, slots=True)
class TimeoutNow:
    """Begin an election at once: the leader hands over to you."""

    kind: ClassVar[int] = 7
    term: int


@dataclass(frozen=True, slots=True)
class Offer:
    """What you lack is in no log any more: take the state at ``index``.  Also a heartbeat."""

    kind: ClassVar[int] = 8
    term: int
    seq: int
    index: int
    index_term: int
    snapshot: int
    configuration: Configuration
    files: tuple[SnapshotFile, ...]


@dataclass(frozen=True, slots=True)
class Fetch:
    """Send me ``length`` bytes of a snapshot's file."""

    kind: ClassVar[int] = 9
    term: int
    snapshot: int
    file: int
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class Chunk:
    """``gone``: the snapshot is not held any more."""

    kind: ClassVar[int] = 10
    term: int
    snapshot: int
    file: int
    offset: int
    gone: bool
    data: bytes


@dataclass(frozen=True, slots=True)
class Gone:
    """The replica you speak to is no more: its log was damaged or lost.  ``successor`` asks to take its place, or 0."""

    kind: ClassVar[int] = 11
    term: int
    successor: int


Message: TypeAlias = (Append | Appended | PreVote | PreVoted | Vote | Voted | TimeoutNow | Offer | Fetch | Chunk | Gone)

PROMISES: Final = (Appended, Vote, Voted)
"""What may leave only when everything stored before it is on stable storage."""


class Envelope(NamedTuple):
    """A message with its way: replicas' numbers on the two nodes of the stream."""

    group: int
    sender: int
    to: int
    message: Message


_HEAD: Final = struct.Struct("<BBQIIQ")
_LENGTH: Final = struct.Struct("<I")
_SUM: Final = struct.Struct("<Q")
_APPEND: Final = struct.Struct("<QQQQI")
_ENTRY: Final = struct.Struct("<QQI")
_APPENDED: Final = struct.Struct("<Q?QQ")
_ASK: Final = struct.Struct("<QQ")
_FORCED: Final = struct.Struct("<QQ?")
_PRE_VOTED: Final = struct.Struct("<?Q")
_FLAG: Final = struct.Struct("<?")
_NUMBER: Final = struct.Struct("<I")
_OFFER: Final = struct.Struct("<QQQQII")
_FILE: Final = struct.Struct("<HQQ")
_FETCH: Final = struct.Struct("<QIQI")
_CHUNK: Final = struct.Struct("<QIQ?I")


def _body(message: Message) -> list[bytes]:
    match message:
        case Append():
            heads = [_APPEND.pack(message.seq, message.prev, message.prev_term, message.commit, len(message.entries))]
            heads += (_ENTRY.pack(entry.index, entry.term, len(entry.command)) for entry in message.entries)
            return heads + [entry.command for entry in message.entries]
        case Appended():
            return [_APPENDED.pack(message.seq, message.success, message.prev, message.at)]
        case PreVote():
            return [_ASK.pack(message.last, message.last_term)]
        case PreVoted():
            return [_PRE_VOTED.pack(message.granted, message.removed_at)]
        case Vote():
            return [_FORCED.pack(message.last, message.last_term, message.forced)]
        case Voted():
            return [_FLAG.pack(message.granted)]
        case TimeoutNow():
            return []
        case Offer():
            configuration = message.configuration.to_bytes()
            parts = [_OFFER.pack(message.seq, message.index, message.index_term, message.snapshot, len(configuration),
                                 len(message.files)), configuration]
            for file in message.files:
                name = file.name.encode()
                parts += (_FILE.pack(len(name), file.bytes, file.checksum), name)
            return parts
        case Fetch():
            return [_FETCH.pack(message.snapshot, message.file, message.offset, message.length)]
        case Chunk():
            return [_CHUNK.pack(message.snapshot, message.file, message.offset, message.gone, len(message.data)),
                    message.data]
        case Gone():
            return [_NUMBER.pack(message.successor)]


def encode(envelope: Envelope) -> bytes:
    """One message, without its length."""
    group, sender, to, message = envelope
    return b"".join((_HEAD.pack(VERSION, message.kind, group, sender, to, message.term), *_body(message)))


def encode_frame(messages: Sequence[bytes]) -> bytes:
    """Messages as :func:`encode` made them."""
    parts = [b""]
    for message in messages:
        parts += (_LENGTH.pack(len(message)), message)
    if sum(map(len, messages)) < _LARGE_BYTES:
        body = b"".join(parts)
        return _SUM.pack(xxhash.xxh3_64_intdigest(body)) + body
    digest = xxhash.xxh3_64()
    for part in parts:
        digest.update(part)
    parts[0] = _SUM.pack(digest.intdigest())
    return b"".join(parts)


def split_frame(frame: bytes | memoryview) -> Iterator[memoryview]:
    """The messages of a frame, borrowed."""
    if len(frame) < _SUM.size:
        raise Malformed("a frame too short for its checksum")
    view = memoryview(frame)
    if xxhash.xxh3_64_intdigest(view[_SUM.size:]) != _SUM.unpack_from(frame)[0]:
        raise Malformed("a frame that does not match its checksum")
    at, end = _SUM.size, len(frame)
    while at < end:
        if end - at < _LENGTH.size:
            raise Malformed("a frame that ends in a length")
        (length,) = _LENGTH.unpack_from(frame, at)
        at += _LENGTH.size
        if length > end - at:
            raise Malformed("a message longer than its frame")
        yield view[at:at + length]
        at += length


def decode(data: bytes | memoryview) -> Envelope:
    """The message in ``data``; raises :class:`Malformed`."""
    try:
        version, kind, group, sender, to, term = _HEAD.unpack_from(data)
        read = _READERS.get(kind)
        if version != VERSION or read is None:
            raise Malformed(f"version {version}, kind {kind}")
        if term > MAX_TERM:
            raise Malformed(f"the term {term}")
        message, end = read(term, memoryview(data), _HEAD.size)
    except (struct.error, UnicodeDecodeError) as error:
        raise Malformed("a message cut short") from error
    if end != len(data):
        raise Malformed(f"{len(data) - end} bytes too many")
    return Envelope(group, sender, to, message)


def _append(term: int, data: memoryview, at: int) -> tuple[Append, int]:
    seq, prev, prev_term, commit, count = _APPEND.unpack_from(data, at)
    at += _APPEND.size
    if count > MAX_ENTRIES or count * _ENTRY.size > len(data) - at:
        raise Malformed(f"{count} entries")
    heads = [_ENTRY.unpack_from(data, at + place * _ENTRY.size) for place in range(count)]
    at += count * _ENTRY.size
    entries: list[Entry] = []
    before, before_term = prev, prev_term
    for index, entry_term, length in heads:
        if index != before + 1 or not before_term <= entry_term <= term or not 1 <= length <= MAX_COMMAND_BYTES:
            raise Malformed("entries out of order")
        if length > len(data) - at:
            raise Malformed("an entry longer than its message")
        entries.append(Entry(_entry(bytes(data[at:at + length])), index, entry_term))
        at += length
        before, before_term = index, entry_term
    return Append(term, seq, prev, prev_term, commit, tuple(entries)), at


def _entry(command: bytes) -> bytes:
    """An entry of a kind that this version knows, and if it is a configuration a good one."""
    kind = command[:1]
    if kind == MEMBERS:
        try:
            Configuration.from_bytes(command[1:])
        except ValueError as error:
            raise Malformed(str(error)) from error
    elif kind not in (COMMAND, NOOP):
        raise Malformed(f"an entry of kind {command[0]}")
    return command


def _appended(term: int, data: memoryview, at: int) -> tuple[Appended, int]:
    return Appended(term, *_APPENDED.unpack_from(data, at)), at + _APPENDED.size


def _pre_vote(term: int, data: memoryview, at: int) -> tuple[PreVote, int]:
    return PreVote(term, *_ASK.unpack_from(data, at)), at + _ASK.size


def _pre_voted(term: int, data: memoryview, at: int) -> tuple[PreVoted, int]:
    return PreVoted(term, *_PRE_VOTED.unpack_from(data, at)), at + _PRE_VOTED.size


def _vote(term: int, data: memoryview, at: int) -> tuple[Vote, int]:
    return Vote(term, *_FORCED.unpack_from(data, at)), at + _FORCED.size


def _voted(term: int, data: memoryview, at: int) -> tuple[Voted, int]:
    return Voted(term, *_FLAG.unpack_from(data, at)), at + _FLAG.size


def _timeout_now(term: int, data: memoryview, at: int) -> tuple[TimeoutNow, int]:
    return TimeoutNow(term), at


def _offer(term: int, data: memoryview, at: int) -> tuple[Offer, int]:
    seq, index, index_term, snapshot, length, count = _OFFER.unpack_from(data, at)
    at += _OFFER.size
    if count > MAX_FILES or length > len(data) - at:
        raise Malformed("an offer longer than its message")
    try:
        configuration = Configuration.from_bytes(bytes(data[at:at + length]))
    except ValueError as error:
        raise Malformed(str(error)) from error
    at += length
    files: list[SnapshotFile] = []
    for _ in range(count):
        name_bytes, size, checksum = _FILE.unpack_from(data, at)
        at += _FILE.size
        name = bytes(data[at:at + name_bytes])
        if not 1 <= name_bytes <= MAX_NAME_BYTES or len(name) != name_bytes:
            raise Malformed("a file's name")
        files.append(SnapshotFile(name.decode(), size, checksum))
        at += name_bytes
    return Offer(term, seq, index, index_term, snapshot, configuration, tuple(files)), at


def _fetch(term: int, data: memoryview, at: int) -> tuple[Fetch, int]:
    message = Fetch(term, *_FETCH.unpack_from(data, at))
    if message.length > MAX_CHUNK_BYTES:
        raise Malformed(f"a chunk of {message.length} bytes")
    return message, at + _FETCH.size


def _chunk(term: int, data: memoryview, at: int) -> tuple[Chunk, int]:
    snapshot, file, offset, gone, length = _CHUNK.unpack_from(data, at)
    at += _CHUNK.size
    if length > MAX_CHUNK_BYTES or length > len(data) - at:
        raise Malformed(f"a chunk of {length} bytes")
    return Chunk(term, snapshot, file, offset, gone, bytes(data[at:at + length])), at + length


def _gone(term: int, data: memoryview, at: int) -> tuple[Gone, int]:
    return Gone(term, *_NUMBER.unpack_from(data, at)), at + _NUMBER.size


_Reader: TypeAlias = Callable[[int, memoryview, int], tuple[Message, int]]
_READERS: Final[dict[int, _Reader]] = {1: _append, 2: _appended, 3: _pre_vote, 4: _pre_voted, 5: _vote,
                                       6: _voted, 7: _timeout_now, 8: _offer, 9: _fetch, 10: _chunk, 11: _gone}
