"""Frames between drivers of one event loop."""

import asyncio
from collections.abc import Callable


class LoopFrames:
    """Frames between drivers of one event loop."""

    def __init__(self, wires, node):
        self.wires, self.node = wires, node
        self.received = lambda node, frame: None
        self.sent = 0

    def send(self, node, frame, *, bulk=False):
        self.sent += 1
        other = self.wires.get(node)
        if other is not None:
            asyncio.get_running_loop().call_soon(other.received, self.node, frame)

    def listen(self, received: Callable[[str, bytes], None], gone: Callable[[str], None] | None = None) -> None:
        self.received = received
