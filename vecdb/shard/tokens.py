"""Writes that happen once: what was done under the idempotency keys of late, and the window they stay in.

A row beside the write, in its batch, says what the write did; so the two are durable together or not at all, and a
repetition, after a lost answer or a crash, is answered from it.  The window is counted in writes that carry a key and
moves with the log, so every replica forgets the same key at the same log index.
"""

import struct
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from vecdb.core.calls import WriteToken
from vecdb.core.errors import DataCorrupted, InvalidArgument
from vecdb.core.limits import MAX_WRITE_TOKENS
from vecdb.core.records import WriteResult
from vecdb.shard import rows
from vecdb.shard.imports import MAX_HASH, Piece, Remembered
from vecdb.shard.mutations import Mutations

_ROW: Final = struct.Struct(">5Q")
"""Fingerprint; inserted, updated, deleted, missing.  The key follows, the log index is in the row's key.

In a shard that was filled from others (``wide``) the pieces of :mod:`vecdb.shard.imports` stand between: their number,
and of each the first and the last hash and its four counts.
"""
_PIECE: Final = struct.Struct(">6Q")
MAX_PIECES: Final = 255


@dataclass(frozen=True, slots=True)
class TokenChange:
    """What :meth:`Tokens.commit` shows: a key with its row, and the keys that leave the window for it."""

    key: bytes
    log_index: int
    value: bytes
    forgotten: tuple[bytes, ...]
    pieces: bytes = b""


class Tokens:
    """The window, oldest first; one caller at a time."""

    def __init__(self, found: Iterable[tuple[bytes, bytes]] = (), most: int = MAX_WRITE_TOKENS, *, wide: bool = False
                 ) -> None:
        """``found``: the rows of the window by ascending key, as a store has them."""
        self._most = most
        self._pieces: dict[bytes, bytes] = {}
        # ordered: the first entry of a plain dict is found by passing over all that were deleted before it
        self._known: OrderedDict[bytes, tuple[int, bytes]] = OrderedDict()
        for key, value in found:
            if len(value) <= _ROW.size:
                raise DataCorrupted("the row of an idempotency key cannot be understood", path="row t", got=len(value))
            start = _ROW.size
            if wide:
                start += 1 + value[start] * _PIECE.size
                if len(value) <= start:
                    raise DataCorrupted("the row of an idempotency key is cut short", path="row t", got=len(value))
                self._pieces[value[start:]] = value[_ROW.size:start]
            self._known[value[start:]] = (rows.number_of(key), value[: _ROW.size])

    def __contains__(self, key: bytes) -> bool:
        return key in self._known

    def __len__(self) -> int:
        return len(self._known)

    def find(self, token: WriteToken) -> WriteResult | None:
        """What the write with this key did, None if it is not known; raises if the key stood for another write."""
        known = self._known.get(token.key)
        if known is None:
            return None
        log_index, value = known
        fingerprint, inserted, updated, deleted, missing = _ROW.unpack(value)
        if fingerprint != token.fingerprint:
            raise InvalidArgument("idempotency_key", f"was used for another write, applied at log index {log_index}",
                                  got=token.key.hex(), limit="a key of its own for every write")
        return WriteResult(inserted, updated, deleted, missing, log_index)

    def pieces(self, key: bytes) -> tuple[Piece, ...]:
        """What was done here under a key, piece by piece; nothing unless the shard was filled from others."""
        packed = self._pieces.get(key, b"")
        return tuple(Piece(lo, last, (inserted, updated, deleted, missing), whole=(lo, last) == (0, MAX_HASH))
                     for lo, last, inserted, updated, deleted, missing in _PIECE.iter_unpack(packed[1:]))

    def remembered(self, lo: int, last: int) -> Iterator[Remembered]:
        """All of the window, oldest first; done for the hashes ``lo`` to ``last``, or for pieces of these: between two
        there may be a part of the write that was never done.
        """
        for key, (_, value) in self._known.items():
            fingerprint, inserted, updated, deleted, missing = _ROW.unpack(value)
            pieces = self.pieces(key)
            if not pieces:
                yield Remembered(key, fingerprint, (inserted, updated, deleted, missing), lo, last)
                continue
            for one in pieces:
                yield Remembered(key, fingerprint, one.counts, one.lo, one.last, not one.whole).within(lo, last)

    def remember(self, mutations: Mutations, log_index: int, token: WriteToken, result: WriteResult,
                 pieces: Sequence[Piece] | None = None) -> TokenChange:
        """Add to ``mutations`` the row of a key and the deletion of those it pushes out, and of what it had before.

        ``pieces``: in a shard that was filled from others.
        """
        value = _ROW.pack(token.fingerprint, result.inserted, result.updated, result.deleted, result.missing)
        forgotten: list[bytes] = []
        packed = b""
        if pieces is not None:
            kept = pieces[-MAX_PIECES:]
            packed = bytes([len(kept)]) + b"".join(_PIECE.pack(one.lo, one.last, *one.counts) for one in kept)
        before = self._known.get(token.key)
        if before is not None:
            forgotten.append(token.key)
            mutations.deletes.append(rows.token_row(before[0]))
        excess = len(self._known) + 1 - self._most
        for key, (old, _) in self._known.items():
            if len(forgotten) >= excess:
                break
            if key == token.key:
                continue
            forgotten.append(key)
            mutations.deletes.append(rows.token_row(old))
        mutations.puts.append((rows.token_row(log_index), b"".join((value, packed, token.key))))
        return TokenChange(token.key, log_index, value, tuple(forgotten), packed)

    def commit(self, change: TokenChange) -> None:
        """Call it once the rows are written."""
        for key in change.forgotten:
            del self._known[key]
            self._pieces.pop(key, None)
        self._known[change.key] = (change.log_index, change.value)
        if change.pieces:
            self._pieces[change.key] = change.pieces
