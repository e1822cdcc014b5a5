"""What a start says while kernels are compiled, minutes on a machine that has none yet, or loaded, which takes seconds.

Until it is over a node of a cluster neither answers the other nodes nor knows what they agreed on.  So who calls it is
told that it starts and how far it is, and not of what follows from that: keys that are not known, nodes that are away.
"""

import time
from collections.abc import Callable
from typing import Any, Final

from vecdb.core.access import Principal
from vecdb.core.errors import Unavailable
from vecdb.ports.tell import Tell
from vecdb.rpc.door import Authenticate

SOON_S: Final = 2.0
"""Before this there is nothing to tell."""
PERIOD_S: Final = 10.0
AGAIN_S: Final = 1.0
"""After which a client that came too early asks again."""


class Warming:
    """``reasons``: why the node is not ready, kept up.  ``warm(progress)`` compiles, or loads, all kernels, and blocks.

    ``compiled()``: how many were compiled since this process began; none as long as all are found on the disk.

    ``tell`` hears of ``compiling_kernels``, or ``loading_kernels``, every :data:`PERIOD_S` seconds once it takes longer
    than :data:`SOON_S`, and of ``kernels_compiled`` or ``kernels_loaded`` then; ``on_step`` of every step.
    """

    def __init__(self, reasons: list[str], tell: Tell, on_step: Callable[[str], None],
                 compiled: Callable[[], int], now: Callable[[], float] = time.monotonic) -> None:
        self._reasons = reasons
        self._tell = tell
        self._on_step = on_step
        self._compiled = compiled
        self._now = now
        self._over = False
        self._began = self._told = 0.0

    def run(self, warm: Callable[[Callable[[int, int, str], None]], object]) -> None:
        """Returns when all are there; in a thread."""
        self._began = self._told = self._now()
        self._reasons[:] = ["starting: kernels are loaded, or compiled"]
        warm(self._progress)
        if self._told > self._began:
            seconds = round(self._now() - self._began, 1)
            if count := self._compiled():
                self._tell("info", "kernels_compiled", count=count, seconds=seconds)
            else:
                self._tell("info", "kernels_loaded", seconds=seconds)

    def done(self) -> None:
        """The node has started: everybody is let in."""
        self._over = True
        self._reasons.clear()

    def _progress(self, done: int, of: int, step: str) -> None:
        self._on_step(f"kernels {done}/{of} {step}".strip())
        now = self._now()
        if now - self._began < SOON_S:
            return
        doing = "compiling" if self._compiled() else "loading"
        self._reasons[:] = [f"starting: {doing} kernels, {done} of {of} are done"]
        if self._told == self._began or now - self._told >= PERIOD_S:
            self._told = now
            self._tell("info", f"{doing}_kernels", done=done, of=of, next=step)

    def guarded(self, inner: Authenticate) -> Authenticate:
        """Nobody is let in before the start is over: ``Unavailable``, which says how far it is."""
        return _Gate(self, inner)

    def check(self) -> None:
        """Raise ``Unavailable`` until the start is over."""
        if not self._over:
            raise Unavailable(f"this node does not answer yet; {''.join(self._reasons[:1]) or 'starting'}",
                              retry_after_s=AGAIN_S)


class _Gate:
    def __init__(self, warming: Warming, inner: Authenticate) -> None:
        self._warming = warming
        self._inner = inner

    def check(self, metadata: Any, peer: str, certificate: str = "") -> Principal:
        self._warming.check()
        return self._inner.check(metadata, peer, certificate)
