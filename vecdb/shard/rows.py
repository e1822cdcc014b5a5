"""The key space of one shard's store.

=============  ==========================================  ====================================================
key            value                                       lives
=============  ==========================================  ====================================================
``s``          :class:`State`: applied, next rid, counts    always; written with every batch
``m``          the manifest: segments in rid order, JSON    always; written when the set of segments changes
``i`` id key   rid                                         while the record lives
``r`` rid      digest | id key | metadata JSON             while this version of the record lives
``v`` rid      block of vectors, first one's rid in the     until the segment of those rids is sealed into files
               key: stored components, row after row
``d`` rid      empty                                       from the version's death until its segment drops it
``t`` log idx  fingerprint | what the write did | its      while among the shard's last ``MAX_WRITE_TOKENS``; see
               idempotency key                             :mod:`vecdb.shard.tokens`
``k`` log idx  term | records | digest                      while among the last ``MAX_MARKS``; see
                                                           :mod:`vecdb.shard.marks`
``o`` group    run | first and last hash | shard key       from the first import on; see
                                                           :mod:`vecdb.shard.imports`
``p`` group    sequence number | commands done             likewise, by lane
``q`` group,   log idx | fingerprint | what the write      while the group would have remembered it
number         did | its idempotency key
``e``          the seal; see :mod:`vecdb.shard.seal`       from the first SEAL or UNSEAL on
=============  ==========================================  ====================================================

Rids, log indexes and lengths are big-endian, so that key order is their order.
"""

import struct
from dataclasses import dataclass
from typing import Final, Self

import numpy as np

from vecdb.core.errors import DataCorrupted

STATE_KEY: Final = b"s"
MANIFEST_KEY: Final = b"m"
TOKENS: Final = (b"t", b"u")
"""The range of the rows of idempotency keys."""
MARKS: Final = (b"k", b"l")
"""The range of the rows of marks."""
SEAL_KEY: Final = b"e"
ID: Final = b"i"
RECORD: Final = b"r"
VECTOR: Final = b"v"
ORIGIN, LANE, MEMORY = b"o", b"p", b"q"
IMPORTS: Final = (b"o", b"r")
"""The range of the rows of what was imported: origins, then lanes, then what is remembered."""
RECORDS: Final = (b"r", b"s")
"""The range of the rows of live records."""
DIGEST_BYTES: Final = 16

_LENGTHS: Final = tuple(bytes([length]) for length in range(256))
_RID = struct.Struct(">Q")
_STATE = struct.Struct(">BQQQ16sQ")
_STATE_VERSION: Final = 2
_STATE_1 = struct.Struct(">BQQQ16s")
"""Version 1, without the term."""


@dataclass(frozen=True, slots=True)
class State:
    """What every batch rewrites: ``digest`` is the running sum of the live records' digests, modulo 2**128.

    ``term``: of the log's entry at ``applied``; 0 where no log is behind it.
    """

    applied: int = 0
    next_rid: int = 0
    records: int = 0
    digest: int = 0
    term: int = 0

    def to_bytes(self) -> bytes:
        return _STATE.pack(_STATE_VERSION, self.applied, self.next_rid, self.records,
                           self.digest.to_bytes(DIGEST_BYTES, "big"), self.term)

    @classmethod
    def from_bytes(cls, value: bytes) -> Self:
        term = 0
        if len(value) == _STATE.size and value[0] == _STATE_VERSION:
            _, applied, next_rid, records, digest, term = _STATE.unpack(value)
        elif len(value) == _STATE_1.size and value[0] == 1:
            _, applied, next_rid, records, digest = _STATE_1.unpack(value)
        else:
            raise DataCorrupted("the shard's state row cannot be understood", path="row s", got=len(value))
        return cls(applied, next_rid, records, int.from_bytes(digest, "big"), term)


def id_row(id_key: bytes) -> bytes:
    return ID + id_key


def record_row(rid: int) -> bytes:
    return RECORD + _RID.pack(rid)


def vector_row(rid: int) -> bytes:
    return VECTOR + _RID.pack(rid)


def dead_row(rid: int) -> bytes:
    return b"d" + _RID.pack(rid)


def token_row(log_index: int) -> bytes:
    return b"t" + _RID.pack(log_index)


def mark_row(log_index: int) -> bytes:
    return b"k" + _RID.pack(log_index)


def origin_row(group: int) -> bytes:
    return ORIGIN + _RID.pack(group)


def lane_row(group: int, lane: int) -> bytes:
    return LANE + _RID.pack(group) + bytes([lane])


def memory_row(group: int, number: int) -> bytes:
    return MEMORY + _RID.pack(group) + _RID.pack(number)


def memory_number(key: bytes) -> int:
    """The number in a ``q`` key."""
    return int(_RID.unpack_from(key, 9)[0])


def number_of(key: bytes) -> int:
    """The rid in an ``r``, ``v`` or ``d`` key, the log index in a ``t`` or ``k`` key, the group in others."""
    return int(_RID.unpack_from(key, 1)[0])


def packed_rids(first: int, count: int) -> list[bytes]:
    """Consecutive rids as they stand in keys and values."""
    data = np.arange(first, first + count, dtype=">u8").tobytes()
    return [data[at : at + 8] for at in range(0, len(data), 8)]


def unpack_rid(value: bytes) -> int:
    return int(_RID.unpack(value)[0])


def sized(id_key: bytes) -> bytes:
    """An id key behind its length: what stands in a record row between digest and metadata."""
    return _LENGTHS[len(id_key)] + id_key


def record_digest(value: bytes) -> bytes:
    return value[:DIGEST_BYTES]


def record_id_key(value: bytes) -> bytes:
    return value[DIGEST_BYTES + 1 : DIGEST_BYTES + 1 + value[DIGEST_BYTES]]


def record_metadata(value: bytes) -> bytes:
    return value[DIGEST_BYTES + 1 + value[DIGEST_BYTES] :]
