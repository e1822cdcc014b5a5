"""Messages that hold one large field, written in one copy.

Protobuf's own writing of a megabyte takes 2.4 ms, a join of the same bytes 0.15: it copies the field into the message,
and then the message into a buffer that it enlarges again and again.  The fields of a message may stand in any order, so
the large one is put behind what protobuf has written of the others.
"""

from typing import Final, TypeAlias

from google.protobuf.message import Message

Piece: TypeAlias = bytes | memoryview

_SIZED: Final = 2
"""The wire type of what has a length before it."""


def sized(field: int, size: int) -> bytes:
    """What stands before ``size`` bytes of a field of bytes, or of a message."""
    return _varint(field << 3 | _SIZED) + _varint(size)


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def with_bytes(rest: Message, field: int, data: Piece) -> list[Piece]:
    """The pieces of ``rest`` with ``data`` as its field of bytes ``field``, which it must not have."""
    return [rest.SerializeToString(), sized(field, len(data)), data]


def with_message(rest: Message, field: int, pieces: list[Piece]) -> bytes:
    """``rest`` with a message of these pieces as its ``field``, which it must not have."""
    return b"".join((rest.SerializeToString(), sized(field, sum(map(len, pieces))), *pieces))
