"""What a write says, in 64 bits: so that an idempotency key used for another write is known from a repetition.

It is of the command as a shard would carry it out (ids in their order, stored components, metadata as compact JSON, the
filter's tree), not of the message that brought it: the same write is the same one by the SDK, by gRPC from elsewhere,
by REST and in a directory, whichever face repeats it.  Not of the collection, for each remembers its own keys.

Equal is what comes to the same bits.  Numbers that a caller writes with fewer digits to one face than to the other may
be stored otherwise in the last bit, and are another write then; so are metadata whose keys stand in another order,
which is kept.  The other way round, that two writes of one key are taken for one although they differ, takes a
collision of xxh3's 64 bits; keys are the caller's own, and nobody else's are compared.
"""

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import TypeAlias

import numpy as np
import xxhash

from vecdb.core.calls import WriteToken
from vecdb.core.filters.text import to_text
from vecdb.core.ids import RecordId
from vecdb.core.records import Command, DeleteIds, DeleteWhere, UpsertBatch

Piece: TypeAlias = bytes | memoryview


def token_of(key: bytes, command: Command) -> WriteToken | None:
    """The token of a write under ``key`` (1 to 64 bytes; empty: none)."""
    return WriteToken(key, fingerprint(command)) if key else None


def fingerprint(command: Command) -> int:
    """xxh3_64 of what a write says, each part behind its length."""
    digest = xxhash.xxh3_64()
    for part in _parts(command):
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.intdigest()


def _parts(command: Command) -> Iterator[Piece]:
    if isinstance(command, DeleteWhere):
        yield b"delete where"
        yield to_text(command.filter).encode()
    elif isinstance(command, DeleteIds):
        yield b"delete"
        yield from _ids(command.ids)
    elif isinstance(command, UpsertBatch):
        vectors = np.ascontiguousarray(command.vectors, command.vectors.dtype.newbyteorder("<"))
        yield f"upsert {vectors.dtype.str} {vectors.shape}".encode()
        yield from _ids(command.ids)
        yield vectors.reshape(-1).view(np.uint8).data
        yield from _joined(command.metadata)
    else:
        yield b"merge" if command.merge else b"replace"
        yield from _ids(command.ids)
        yield from _joined(command.patch)


def _ids(ids: Sequence[RecordId]) -> Iterator[Piece]:
    """Kinds, integers and strings apart: two columns are summed much faster than a hundred thousand ids."""
    strings = [one.encode() for one in ids if isinstance(one, str)]
    yield bytes(isinstance(one, str) for one in ids) if strings else b""
    numbers = ids if not strings else [one for one in ids if not isinstance(one, str)]
    yield np.fromiter(numbers, "<i8", len(ids) - len(strings)).tobytes()
    yield from _joined(strings)


def _joined(pieces: Sequence[bytes]) -> Iterator[Piece]:
    yield np.fromiter(chain((len(pieces),), map(len, pieces)), "<i8", 1 + len(pieces)).tobytes()
    yield b"".join(pieces)
