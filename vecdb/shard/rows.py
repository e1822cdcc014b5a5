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
=============  ==========================================  ====================================================

Rids, log indexes and lengths are big-endian, so that key order is their order.
"""

import struct
from dataclasses import dataclass
from typing import Final, Self

from vecdb.core.errors import DataCorrupted

STATE_KEY: Final = b"s"
MANIFEST_KEY: Final = b"m"
TOKENS: Final = (b"t", b"u")
"""The range of the rows of idempotency keys."""
DIGEST_BYTES: Final = 16

_RID = struct.Struct(">Q")
_STATE = struct.Struct(">BQQQ16s")
_STATE_VERSION: Final = 1


@dataclass(frozen=True, slots=True)
class State:
    """What every batch rewrites: ``digest`` is the running sum of the live records' digests, modulo 2**128."""

    applied: int = 0
    next_rid: int = 0
    records: int = 0
    digest: int = 0

    def to_bytes(self) -> bytes:
        return _STATE.pack(_STATE_VERSION, self.applied, self.next_rid, self.records,
                           self.digest.to_bytes(DIGEST_BYTES, "big"))

    @classmethod
    def from_bytes(cls, value: bytes) -> Self:
        if len(value) != _STATE.size or value[0] != _STATE_VERSION:
            raise DataCorrupted("the shard's state row cannot be understood", path="row s", got=len(value))
        _, applied, next_rid, records, digest = _STATE.unpack(value)
        return cls(applied, next_rid, records, int.from_bytes(digest, "big"))


def id_row(id_key: bytes) -> bytes:
    return b"i" + id_key


def record_row(rid: int) -> bytes:
    return b"r" + _RID.pack(rid)


def vector_row(rid: int) -> bytes:
    return b"v" + _RID.pack(rid)


def dead_row(rid: int) -> bytes:
    return b"d" + _RID.pack(rid)


def token_row(log_index: int) -> bytes:
    return b"t" + _RID.pack(log_index)


def token_log_index(key: bytes) -> int:
    return int(_RID.unpack_from(key, 1)[0])


def rid_of(key: bytes) -> int:
    """The rid in an ``r``, ``v`` or ``d`` key."""
    return int(_RID.unpack_from(key, 1)[0])


def pack_rid(rid: int) -> bytes:
    return _RID.pack(rid)


def unpack_rid(value: bytes) -> int:
    return int(_RID.unpack(value)[0])


def pack_record(digest: bytes, id_key: bytes, metadata: bytes) -> bytes:
    return b"".join((digest, len(id_key).to_bytes(1, "big"), id_key, metadata))


def record_digest(value: bytes) -> bytes:
    return value[:DIGEST_BYTES]


def record_id_key(value: bytes) -> bytes:
    return value[DIGEST_BYTES + 1 : DIGEST_BYTES + 1 + value[DIGEST_BYTES]]


def record_metadata(value: bytes) -> bytes:
    return value[DIGEST_BYTES + 1 + value[DIGEST_BYTES] :]
