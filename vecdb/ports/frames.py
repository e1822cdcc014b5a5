"""The way of frames between nodes: what replication needs of a transport."""

from collections.abc import Callable
from typing import Protocol


class Frames(Protocol):
    """One stream a pair of nodes, mutually authenticated.  Belongs to one event loop.

    Frames may be lost, and are whenever the stream is; within one stream they come in order.  A node's name is what its
    certificate proves, never what a frame says.
    """

    def send(self, node: str, frame: bytes) -> None:
        """Queue a frame; never waits.  Above the byte window of that node it is dropped: replication sends again."""
        ...

    def listen(self, received: Callable[[str, bytes], None]) -> None:
        """Have ``received`` called in the event loop with the sender's name and each frame."""
        ...
