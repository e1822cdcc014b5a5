"""``idempotency_key=``: a write that is repeated with its key happens once.

A long call is several writes, so each gets a key made of the caller's and its number; the same input in the same
batches gives the same keys, and a batch that was applied before is answered with what it did then.  The
fingerprint holds a key to its content: another write under the same key is refused.
"""

from hashlib import blake2b

from vecdb.client.options import kind_of
from vecdb.core.calls import MAX_KEY_BYTES, WriteToken
from vecdb.core.errors import InvalidArgument, LimitExceeded
from vecdb.core.records import Command, DeleteIds, DeleteWhere, UpsertBatch


def check_key(value: object) -> bytes | None:
    """1 to 64 bytes, or a str of as many in UTF-8; None stays None."""
    if value is None:
        return None
    if not isinstance(value, str | bytes):
        raise InvalidArgument("idempotency_key", f"must be a str or bytes, not {kind_of(value)}", got=kind_of(value),
                              limit=f"1..{MAX_KEY_BYTES} bytes")
    raw = value if isinstance(value, bytes) else value.encode("utf-8", "surrogatepass")
    if not raw:
        raise InvalidArgument("idempotency_key", "is empty", got="nothing", limit=f"1..{MAX_KEY_BYTES} bytes")
    if len(raw) > MAX_KEY_BYTES:
        raise LimitExceeded("idempotency_key", f"{len(raw)} bytes, more than {MAX_KEY_BYTES}", got=len(raw),
                            limit=MAX_KEY_BYTES)
    return raw


def token(key: bytes | None, number: int, command: Command) -> WriteToken | None:
    """The token of the ``number``-th write of a call."""
    if key is None:
        return None
    return WriteToken(blake2b(number.to_bytes(8, "little") + key, digest_size=16).digest(), _fingerprint(command))


def _fingerprint(command: Command) -> int:
    digest = blake2b(digest_size=8)
    if isinstance(command, UpsertBatch):
        parts = [repr(command.ids).encode(), command.vectors.tobytes(), *command.metadata]
    elif isinstance(command, DeleteIds | DeleteWhere):
        parts = [repr(command).encode()]
    else:
        parts = [repr((command.ids, command.merge)).encode(), *command.patch]
    for part in parts:
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return int.from_bytes(digest.digest(), "little")
