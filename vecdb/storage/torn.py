"""Tell the torn end of the newest log, which an interrupted write leaves, from damage to what was promised.

A power cut may leave of the last, never synced write its length without its bytes: zeros, or what the disk held
there before.  RocksDB reports that as corruption and the store would not open any more.  Here the log is searched
from its end for the last good record.  If behind it is nothing but bytes of which no part is a whole, valid start of
a record, that rest is a torn end: it is copied to ``<log>.<offset>.torn``, and cut off.

It stays damage, which nobody repairs in silence,

- where a valid record follows, in this log or a newer one: later writes were begun, so this one may have been promised;
- where one flipped bit, or a wrong length, explains the bad record: a torn write loses sectors, not bits;
- where it is noted that those bytes had been synced (:mod:`vecdb.storage.synced`, asked by the store).

What remains: where that note is gone, too, bytes of the newest log's last records lost *after* they were synced, by
zeros or garbage, look the same as a torn write.  Only a log that was not yet flushed runs that risk; closing flushes,
and leaves none.
"""

import os
import struct
from dataclasses import dataclass
from pathlib import Path

from vecdb.segment.files.durable import sync_directory
from vecdb.segment.files.errors import from_os_error
from vecdb.storage.wal import (
    BLOCK_BYTES,
    FIRST,
    FULL,
    HEADER,
    LAST,
    MIDDLE,
    crc32c,
    logs_of,
    matches_a_prefix,
    unmasked,
)

_START = struct.Struct("<QI")
_SEQUENCE_LIMIT = 1 << 56
_COUNT_LIMIT = 1 << 28


@dataclass(frozen=True, slots=True)
class TornTail:
    """An interrupted write's remains: ``dropped_bytes`` from ``offset`` of ``log`` on; ``kept``: a copy, or None."""

    log: Path
    offset: int
    dropped_bytes: int
    kept: Path | None = None


@dataclass(slots=True)
class _Block:
    starts: list[int]
    """Offsets of the valid fragments that begin a record, before the first bad byte."""
    last: int | None = None
    """The kind of the last valid fragment before the first bad byte."""
    bad: int | None = None
    hidden: bool = False
    """Whether a valid beginning of a record follows the first bad byte, or a small error explains that byte."""


def find(directory: Path, oldest: int = 0) -> TornTail | None:
    """Return the torn end of the newest log numbered ``oldest`` or above; None if it has none, or is damaged before."""
    try:
        logs = [log for log in logs_of(directory, oldest) if log.stat().st_size]
        return _find(logs[-1]) if logs else None
    except OSError as error:
        raise from_os_error(error, directory, "checking the logs of") from error


def cut_off(tail: TornTail) -> TornTail:
    """Copy ``tail`` to a file of its own, durably, and then shorten the log; raises ``StorageError``."""
    kept = tail.log.with_name(f"{tail.log.name}.{tail.offset}.torn")
    try:
        with open(tail.log, "rb") as source, open(kept, "wb") as copy:
            source.seek(tail.offset)
            while piece := source.read(1 << 20):
                copy.write(piece)
            copy.flush()
            os.fsync(copy.fileno())
        sync_directory(kept.parent)
        with open(tail.log, "r+b") as log:
            log.truncate(tail.offset)
            os.fsync(log.fileno())
    except OSError as error:
        raise from_os_error(error, kept, "keeping a log's torn end as") from error
    return TornTail(tail.log, tail.offset, tail.dropped_bytes, kept)


def ends_in_zeros(directory: Path) -> bool:
    """Whether the newest log may end in zeros, which RocksDB passes over."""
    try:
        logs = [log for log in logs_of(directory) if log.stat().st_size]
        if not logs:
            return False
        with logs[-1].open("rb") as file:
            file.seek(max(0, logs[-1].stat().st_size - HEADER.size))
            return not any(file.read())
    except OSError as error:
        raise from_os_error(error, directory, "checking the logs of") from error


def _find(log: Path) -> TornTail | None:
    size = log.stat().st_size
    bad: int | None = None
    roll_back: bool | None = None  # whether the record that the bad byte is in began before; None: not seen yet
    with log.open("rb", buffering=0) as file:
        for start in range((size - 1) // BLOCK_BYTES * BLOCK_BYTES, -1, -BLOCK_BYTES):
            block = _look(os.pread(file.fileno(), BLOCK_BYTES, start), start)
            if block.hidden:
                return None
            if block.bad is not None:
                bad, roll_back = block.bad, None
            if roll_back is None and block.last is not None:
                roll_back = block.last in (FIRST, MIDDLE)
            if block.starts:
                if bad is not None and roll_back:
                    bad = block.starts[-1]
                break
    return None if bad is None else TornTail(log, bad, size - bad)


def _look(block: bytes, start: int) -> _Block:
    found = _Block([])
    at = 0
    while len(block) - at >= HEADER.size:
        crc, length, kind = HEADER.unpack_from(block, at)
        end = at + HEADER.size + length
        if (kind not in (FULL, FIRST, MIDDLE, LAST) or end > len(block)
                or crc32c(block[at + 6:at + 7] + block[at + HEADER.size:end]) != unmasked(crc)):
            found.bad = start + at
            found.hidden = _explained(block, at) or _goes_on(block, at + 1)
            return found
        if kind in (FULL, FIRST):
            found.starts.append(start + at)
        found.last = kind
        at = end
    rest = block[at:]
    if any(rest) or (rest and len(block) < BLOCK_BYTES):
        found.bad = start + at
    return found


def _goes_on(block: bytes, first: int) -> bool:
    """Whether a record validly begins anywhere from ``first`` on."""
    for at in range(first, len(block) - HEADER.size - _START.size + 1):
        kind = block[at + 6]
        if kind not in (FULL, FIRST):
            continue
        crc, length, _ = HEADER.unpack_from(block, at)
        end = at + HEADER.size + length
        if length < _START.size or end > len(block) or (kind == FIRST and end != BLOCK_BYTES):
            continue
        sequence, count = _START.unpack_from(block, at + HEADER.size)
        if sequence < _SEQUENCE_LIMIT and count < _COUNT_LIMIT and \
                crc32c(block[at + 6:at + 7] + block[at + HEADER.size:end]) == unmasked(crc):
            return True
    return False


def _explained(block: bytes, at: int) -> bool:
    """Whether a wrong length, or one flipped bit elsewhere, makes the fragment at ``at`` valid."""
    crc, length, kind = HEADER.unpack_from(block, at)
    if not crc and not length and not kind:
        return False
    wanted = unmasked(crc)
    if matches_a_prefix(crc, kind, block[at + HEADER.size:]):
        return True
    end = at + HEADER.size + length
    if end > len(block):
        return False
    body = block[at + 6:at + 7] + block[at + HEADER.size:end]
    actual = crc32c(body)
    if any(unmasked(crc ^ 1 << bit) == actual for bit in range(32)):
        return True
    # CRC is linear: flipping bit b of the byte that n bytes follow changes it by what b gives when n zeros follow it.
    changes = [crc32c(bytes([1 << bit])) ^ crc32c(b"\0") for bit in range(8)]
    difference = actual ^ wanted
    for _ in body:
        if difference in changes:
            return True
        changes = [crc32c(b"\0", change ^ 0xFFFFFFFF) ^ 0xFFFFFFFF for change in changes]
    return False
