"""The bytes of ``vecdb.internal.v1.Frames``, written and read by hand.

A frame is up to 66 MB, and protobuf copies it twice on either side; here it is copied once (measured for 1 MB: see
:mod:`vecdb.rpc.frames`).  Whatever is not in the plain form, an unknown field for one, is given to protobuf.
"""

from collections.abc import Sequence
from typing import Final

from google.protobuf.message import DecodeError

from vecdb.core.limits import MAX_BATCH_BYTES
from vecdb.internal.v1 import raft_pb2

MAX_FRAME_BYTES: Final = MAX_BATCH_BYTES + (2 << 20)
"""Longest frame: one command of the largest batch, and what stands around it."""
MAX_FRAMES: Final = 65_536
"""Most frames of one message."""
_TAG: Final = 0x0A
"""Field 1, with a length."""


class BadFrames(ValueError):
    """Bytes that are no message of frames, or of frames too large."""


def join(frames: Sequence[bytes]) -> bytes:
    """One message of these frames."""
    parts: list[bytes] = []
    for frame in frames:
        parts += (_head(len(frame)), frame)
    return b"".join(parts)


def _head(length: int) -> bytes:
    head = bytearray((_TAG,))
    while length > 0x7F:
        head.append(length & 0x7F | 0x80)
        length >>= 7
    head.append(length)
    return bytes(head)


def split(message: bytes) -> list[bytes]:
    """The frames of a message; raises :class:`BadFrames`."""
    frames: list[bytes] = []
    at, end = 0, len(message)
    while at < end:
        if message[at] != _TAG:
            return _parsed(message)
        length = shift = 0
        at += 1
        while True:
            if at >= end or shift > 28:
                return _parsed(message)
            byte = message[at]
            at += 1
            length |= (byte & 0x7F) << shift
            if byte < 0x80:
                break
            shift += 7
        if length > end - at:
            raise BadFrames(f"a frame of {length} bytes in a message that ends before it")
        if length > MAX_FRAME_BYTES or len(frames) == MAX_FRAMES:
            raise BadFrames(f"frame {len(frames) + 1}, of {length} bytes: at most {MAX_FRAMES} of {MAX_FRAME_BYTES}")
        frames.append(message[at:at + length])
        at += length
    return frames


def _parsed(message: bytes) -> list[bytes]:
    try:
        frames = list(raft_pb2.Frames.FromString(message).frames)
    except DecodeError:
        raise BadFrames(f"these {len(message)} bytes are no frames") from None
    if len(frames) > MAX_FRAMES or any(len(frame) > MAX_FRAME_BYTES for frame in frames):
        raise BadFrames(f"{len(frames)} frames: at most {MAX_FRAMES} of {MAX_FRAME_BYTES} bytes")
    return frames
