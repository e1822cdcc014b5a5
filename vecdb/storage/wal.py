"""Look at RocksDB's write-ahead logs before RocksDB replays them, for what its replay would pass over.

RocksDB (mode ``kTolerateCorruptedTailRecords``) reports a record whose checksum is wrong.  Three kinds of
damage it takes for a crash's torn tail, and drops acknowledged records without a word:

1. a flipped length field in a log's last 32 KiB: the record seems to run past the end of the file;
2. a zeroed page: a header of zeros makes the reader skip to the next block;
3. a log cut short while a newer log goes on.

Here the chain is followed: the log's format is blocks of 32 KiB holding fragments ``crc32c u32 | length
u16 | type u8 | payload``, a record being one full fragment or first, middle..., last; its payload begins
``sequence u64 | count u32``.  Each record must begin at the sequence number the one before ended at, which
convicts 2 and 3; and a fragment that runs past the end is torn only if no prefix of what is there matches
its checksum, which convicts 1.  Checksums of whole fragments are left to RocksDB.  The cost is one read of
the logs, which replay repeats from the page cache.
"""

import os
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from vecdb.core.errors import DataCorrupted
from vecdb.segment.files.errors import from_os_error

BLOCK_BYTES = 32 << 10
HEADER = struct.Struct("<IHB")
_CHAIN = struct.Struct("<QI")
FULL, FIRST, MIDDLE, LAST = 1, 2, 3, 4
LOG_NAME = re.compile(r"(\d+)\.log")


@dataclass(frozen=True, slots=True)
class Fragment:
    """A piece of a record: its place in the file, its kind, and its payload's bytes as far as the file has them."""

    offset: int
    kind: int
    payload: bytes
    torn: bool = False


def logs_of(directory: Path, oldest: int = 0) -> list[Path]:
    """The logs numbered ``oldest`` and above, oldest first; raises ``OSError``."""
    names = os.listdir(directory) if directory.is_dir() else []
    logs = (directory / name for name in names if LOG_NAME.fullmatch(name))
    return sorted((log for log in logs if int(log.stem) >= oldest), key=lambda log: int(log.stem))


def check_logs(directory: Path, oldest: int = 0, cut: tuple[Path, int] | None = None) -> None:
    """Raise :class:`DataCorrupted`, naming file and offset, if a log numbered ``oldest`` or above lost records.

    ``cut``: a log, and the size it is to be taken for.
    """
    try:
        torn_before: tuple[Path, int] | None = None
        after = None
        for log in logs_of(directory, oldest):
            first, last, torn_at = _follow(log, cut[1] if cut is not None and cut[0] == log else None)
            if torn_before is not None and first is not None and after is not None and first > after:
                raise _damaged(*torn_before, f"the log ends early and {log.name} goes on {first - after} writes later")
            if last is not None:
                after = last
            torn_before = None if torn_at is None else (log, torn_at)
    except OSError as error:
        raise from_os_error(error, directory, "checking the logs of") from error


def _follow(log: Path, size: int | None) -> tuple[int | None, int | None, int | None]:
    """Return the first record's sequence number, the one after the last's, and where a torn tail begins."""
    first: int | None = None
    expected: int | None = None
    head = b""
    began: int | None = None
    for fragment in _fragments(log, size):
        if fragment.torn:
            return first, expected, fragment.offset if began is None else began
        starts = fragment.kind in (FULL, FIRST)
        if starts == (began is not None):
            raise _damaged(log, fragment.offset, "a piece of a record is missing")
        if starts:
            began, head = fragment.offset, b""
        if len(head) < _CHAIN.size:
            head += fragment.payload[:_CHAIN.size]
        if fragment.kind in (FULL, LAST) and began is not None:
            if len(head) < _CHAIN.size:
                raise _damaged(log, began, "a record is shorter than its own header")
            sequence, count = _CHAIN.unpack_from(head)
            if expected is not None and sequence != expected:
                raise _damaged(log, began, f"write {sequence} follows where {expected} should: writes between are gone")
            first = sequence if first is None else first
            expected = sequence + count
            began = None
    return first, expected, began


def _fragments(log: Path, size: int | None = None) -> Iterator[Fragment]:
    with log.open("rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size if size is None else size
        for start in range(0, size, BLOCK_BYTES):
            block = os.pread(file.fileno(), min(BLOCK_BYTES, size - start), start)
            at = 0
            while len(block) - at >= HEADER.size:
                crc, length, kind = HEADER.unpack_from(block, at)
                if kind == 0 and length == 0:
                    if _zero_to_end(file.fileno(), start + at):
                        return  # space allocated ahead of the writer
                    raise _damaged(log, start + at, "zeros where a record should be")
                if kind not in (FULL, FIRST, MIDDLE, LAST):
                    raise _damaged(log, start + at, f"unknown kind of record {kind}")
                payload = block[at + HEADER.size:at + HEADER.size + length]
                torn = len(payload) < length
                if torn and len(block) == BLOCK_BYTES:
                    raise _damaged(log, start + at, "a record runs past its block")
                if torn and matches_a_prefix(crc, kind, payload):
                    raise _damaged(log, start + at, "a record's length is wrong")
                yield Fragment(start + at, kind, payload, torn)
                at += HEADER.size + length
            if len(block) < BLOCK_BYTES and len(block) - at > 0:
                yield Fragment(start + at, FULL, b"", torn=True)


def _zero_to_end(handle: int, start: int) -> bool:
    while piece := os.pread(handle, 1 << 20, start):
        if piece.count(0) != len(piece):
            return False
        start += len(piece)
    return True


def matches_a_prefix(masked_crc: int, kind: int, payload: bytes) -> bool:
    """Whether the checksum is that of some first part of ``payload``: then only the length is wrong."""
    table = _crc32c_table()
    wanted = unmasked(masked_crc) ^ 0xFFFFFFFF
    crc = 0xFFFFFFFF
    for byte in (kind, *payload):
        crc = table[(crc ^ byte) & 0xFF] ^ (crc >> 8)
        if crc == wanted:
            return True
    return False


def unmasked(stored: int) -> int:
    """The checksum itself: LevelDB and RocksDB store it rotated and shifted."""
    rotated = (stored - 0xA282EAD8) & 0xFFFFFFFF
    return ((rotated >> 17) | (rotated << 15)) & 0xFFFFFFFF


def crc32c(data: bytes, before: int = 0) -> int:
    """CRC-32C of ``data``, going on from the checksum ``before`` of what precedes it.  Slow: for looking at damage."""
    table = _crc32c_table()
    crc = before ^ 0xFFFFFFFF
    for byte in data:
        crc = table[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    return crc ^ 0xFFFFFFFF


@cache
def _crc32c_table() -> tuple[int, ...]:
    """CRC-32C (Castagnoli), reflected polynomial 0x82F63B78."""
    def entry(value: int) -> int:
        for _ in range(8):
            value = (value >> 1) ^ (0x82F63B78 if value & 1 else 0)
        return value

    return tuple(entry(value) for value in range(256))


def _damaged(log: Path, offset: int, what: str) -> DataCorrupted:
    return DataCorrupted(f"{log} is damaged at byte {offset}: {what}", path=str(log), region="log", offset=offset)
