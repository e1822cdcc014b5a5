"""``idempotency_key=``: a write that is repeated with its key happens once.

A long call is several writes.  The first carries the caller's key as it is, up to 64 bytes of ASCII, so the same key
in another face of the server (``Idempotency-Key``) is the same key; longer and other ones are hashed, and the later
writes carry keys made of the caller's and their number.  The same input in the same batches gives the same keys, and a
batch that was applied before is answered with what it did then.  The fingerprint holds a key to its content
(:mod:`vecdb.core.fingerprint`): the same write through another face is the same, another one under the same key is
refused.
"""

from hashlib import blake2b

from vecdb.client.options import kind_of
from vecdb.core.calls import MAX_KEY_BYTES, WriteToken
from vecdb.core.errors import InvalidArgument
from vecdb.core.fingerprint import token_of
from vecdb.core.records import Command


def check_key(value: object) -> bytes | None:
    """The bytes of a key, a str's in UTF-8; None stays None."""
    if value is None:
        return None
    if not isinstance(value, str | bytes):
        raise InvalidArgument("idempotency_key", f"must be a str or bytes, not {kind_of(value)}", got=kind_of(value),
                              limit="a str or bytes")
    raw = value if isinstance(value, bytes) else value.encode("utf-8", "surrogatepass")
    if not raw:
        raise InvalidArgument("idempotency_key", "is empty", got="nothing", limit="1 byte or more")
    return raw


def token(key: bytes | None, number: int, command: Command) -> WriteToken | None:
    """The token of the ``number``-th write of a call."""
    if key is None:
        return None
    own = key
    if number or len(key) > MAX_KEY_BYTES or not key.isascii():
        own = blake2b(number.to_bytes(8, "little") + key, digest_size=16).digest()
    return token_of(own, command)
