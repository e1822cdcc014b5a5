"""The way of frames between nodes: what replication needs of a transport."""

from collections.abc import Callable
from typing import Protocol


class Frames(Protocol):
    """Two streams a pair of nodes and direction, mutually authenticated: one for messages, one for what is bulky, so
    that heartbeats and commands never wait behind a snapshot.  Belongs to one event loop.

    Frames may be lost, and are whenever the stream is; within one stream they come in order.  A node's name is what its
    certificate proves, never what a frame says.
    """

    def send(self, node: str, frame: bytes, *, bulk: bool = False) -> None:
        """Queue a frame; never waits.  Above the byte window of that stream it is dropped: replication sends again."""
        ...

    def listen(self, received: Callable[[str, bytes | memoryview], None],
               gone: Callable[[str], None] | None = None) -> None:
        """Have ``received`` called in the event loop with the sender's name and each frame, and ``gone`` with the name
        of a node whose process seems to be there no more: it was connected, and is not to be connected again.

        A frame is borrowed: whoever keeps a part of it copies that.  ``gone`` may be wrong, late, or never called.
        """
        ...
