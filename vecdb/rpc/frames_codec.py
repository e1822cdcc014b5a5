"""The bytes of ``vecdb.internal.v1.Frames``, written and read by hand.

Frames are copied once on the way out and not at all on the way in, which protobuf would do twice on either side.

A frame above :data:`PIECE_BYTES` is sent in pieces: memory beside the frame itself stays small on both sides, and other
streams of the connection get their turns.
"""

from collections.abc import Sequence
from typing import Final

from google.protobuf.message import DecodeError

from vecdb.core.limits import MAX_BATCH_BYTES
from vecdb.internal.v1 import raft_pb2

MAX_FRAME_BYTES: Final = MAX_BATCH_BYTES + (2 << 20)
"""Longest frame: one command of the largest batch, and what stands around it."""
PIECE_BYTES: Final = 1 << 20
MAX_FRAMES: Final = 65_536
"""Most frames of one message."""
_FRAME: Final = 0x0A
"""Field 1, with a length."""
_MORE: Final = b"\x10\x01"
"""Field 2, true."""


class BadFrames(ValueError):
    """Bytes that are no message of frames, or of frames too large."""


def join(frames: Sequence[bytes | memoryview], more: bool = False) -> bytes:
    """One message of these frames; ``more``: the last of them goes on."""
    parts: list[bytes | memoryview] = []
    for frame in frames:
        parts += (_head(len(frame)), frame)
    if more:
        parts.append(_MORE)
    return b"".join(parts)


def _head(length: int) -> bytes:
    head = bytearray((_FRAME,))
    while length > 0x7F:
        head.append(length & 0x7F | 0x80)
        length >>= 7
    head.append(length)
    return bytes(head)


def split(message: bytes) -> tuple[list[memoryview | bytes], bool]:
    """The frames of a message, borrowed, and whether the last goes on; raises :class:`BadFrames`."""
    frames: list[memoryview | bytes] = []
    view = memoryview(message)
    at, end = 0, len(message)
    while at < end:
        if message[at] != _FRAME:
            return (frames, True) if frames and message[at:] == _MORE else _parsed(message)
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
        if len(frames) == MAX_FRAMES:
            raise BadFrames(f"more than {MAX_FRAMES} frames in one message")
        frames.append(view[at:at + length])
        at += length
    return frames, False


def _parsed(message: bytes) -> tuple[list[memoryview | bytes], bool]:
    """By protobuf: a newer node may have fields that we do not know."""
    try:
        read = raft_pb2.Frames.FromString(message)
    except DecodeError:
        raise BadFrames(f"these {len(message)} bytes are no frames") from None
    frames: list[memoryview | bytes] = list(read.frames)
    if len(frames) > MAX_FRAMES or (read.more and not frames):
        raise BadFrames(f"{len(frames)} frames in one message, of which the last goes on" if read.more else
                        f"more than {MAX_FRAMES} frames in one message")
    return frames, read.more


class Gathering:
    """The messages of one stream, made frames again."""

    def __init__(self) -> None:
        self._pieces: list[memoryview | bytes] = []
        self._bytes = 0

    def take(self, message: bytes) -> list[memoryview | bytes]:
        """The frames that this message completes, borrowed.

        Raises :class:`BadFrames`; what had come of a frame is forgotten then.  What still comes of it becomes a frame
        that its own checksum gives away.
        """
        try:
            frames, more = split(message)
            if self._pieces and frames:
                self._keep(frames[0])
                if more and len(frames) == 1:
                    return []
                frames[0] = b"".join(self._pieces)
                self._forget()
            if more:
                self._keep(frames.pop())
            longest = max(map(len, frames), default=0)
            if longest > MAX_FRAME_BYTES:
                raise BadFrames(f"a frame of {longest} bytes: at most {MAX_FRAME_BYTES}")
        except BadFrames:
            self._forget()
            raise
        return frames

    def _keep(self, piece: memoryview | bytes) -> None:
        self._pieces.append(piece)
        self._bytes += len(piece)
        if self._bytes > MAX_FRAME_BYTES or len(self._pieces) > MAX_FRAMES:
            raise BadFrames(f"{self._bytes} bytes of a frame in {len(self._pieces)} pieces: at most {MAX_FRAME_BYTES} "
                            f"bytes in {MAX_FRAMES} pieces")

    def _forget(self) -> None:
        self._pieces, self._bytes = [], 0
