"""How busy other nodes are, how long shards take, and how often a read may be asked for twice.

A node's **load** is what a call to it took lately (a moving average) times the calls that wait for it now, one more
than there are: who is slow, or has much to do, is asked less.  A node of the same zone counts half: another zone is
asked when it is twice as quick.  What is known of a node is forgotten by and by (halved every :data:`HALVED_S`), so
that one that was slow once is tried again; one that failed counts as slow for a while.

The time after which a read of a shard is asked for a second time elsewhere is the **p95** of the last ones (J. Dean,
L. A. Barroso, *The Tail at Scale*, CACM 2013): so one in twenty is, and the :class:`Budget` sees to it that no more
are where all become slow at once, which more calls would not make better.
"""

import math
from collections import deque
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Final

FORGET: Final = 0.2
"""Weight of the newest call."""
HALVED_S: Final = 5.0
LEAST: Final = 1e-4
"""Seconds that are taken for one with what is quicker, and with what is not known."""
FAILED_S: Final = 1.0
"""What a call counts as that failed, for so long too."""
OTHER_ZONE: Final = 2.0
SAMPLES: Final = 64
"""Reads of a shard that its p95 is of."""
SURE: Final = 16
"""From so many on."""
LEAST_S: Final = 2e-3
"""No read is asked for twice sooner: a timer of the loop and another node's busy one may take as long."""
UNSURE_S: Final = 0.25
"""When it is where little is known of the shard."""
STUCK: Final = 4.0
STUCK_S: Final = 0.5
"""An attempt that takes longer than both this and so many times the p95 is given up on: another is made in any case."""
EXTRA: Final = 0.05
"""Second calls for each first one."""
SAVED: Final = 10.0
MOST_SHARDS: Final = 8_192


@dataclass(slots=True)
class _Node:
    seconds: float = 0.0
    at: float = 0.0
    """When that was."""
    flying: int = 0
    failed_until: float = 0.0

    def took(self, now: float) -> float:
        """What a call is taken to need."""
        return max(LEAST, self.seconds * math.exp2(-min(60.0, max(0.0, now - self.at) / HALVED_S)))


@dataclass(slots=True)
class _Shard:
    took: "deque[float]" = field(default_factory=lambda: deque(maxlen=SAMPLES))
    p95: float = 0.0
    due: int = SURE
    """Calls until the p95 is found anew."""


class Budget:
    """Second calls that may be made: each first call adds :data:`EXTRA`, and :data:`SAVED` are the most."""

    def __init__(self) -> None:
        self._saved = 1.0

    def gain(self) -> None:
        self._saved = min(SAVED, self._saved + EXTRA)

    def take(self) -> bool:
        if self._saved < 1.0:
            return False
        self._saved -= 1.0
        return True


class Loads:
    """Belongs to one event loop; times are the clock's, in seconds."""

    def __init__(self) -> None:
        self._nodes: dict[str, _Node] = {}
        self._shards: dict[tuple[Hashable, str], _Shard] = {}
        self.budget = Budget()

    def _node(self, node: str) -> _Node:
        found = self._nodes.get(node)
        if found is None:
            found = self._nodes[node] = _Node()
        return found

    def load(self, node: str, now: float, near: bool) -> float:
        """The less, the better."""
        one = self._node(node)
        seconds = max(one.took(now), FAILED_S) if one.failed_until > now else one.took(now)
        return seconds * (one.flying + 1) * (1.0 if near else OTHER_ZONE)

    def began(self, node: str) -> None:
        self._node(node).flying += 1

    def ended(self, node: str, now: float, seconds: float, *, failed: bool = False, given_up: bool = False) -> None:
        """A call is over.  ``given_up``: nobody waited for its answer, which would have taken longer yet."""
        one = self._node(node)
        one.flying -= 1
        if failed:
            one.failed_until = now + FAILED_S
            return
        before = one.took(now)
        if not given_up or seconds > before:
            one.seconds = before + FORGET * (seconds - before) if one.seconds else seconds
            one.at = now

    # --- shards -----------------------------------------------------------------------------------

    def answered(self, of: Hashable, kind: str, seconds: float) -> None:
        """A read of a shard, or of shards that were asked together, took so long, from its beginning on."""
        key = (of, kind)
        one = self._shards.pop(key, None) or _Shard()
        self._shards[key] = one  # the last one to be forgotten
        if len(self._shards) > MOST_SHARDS:
            del self._shards[next(iter(self._shards))]
        one.took.append(seconds)
        one.due -= 1
        if not one.due:
            one.due = SURE
            ranked = sorted(one.took)
            one.p95 = ranked[min(len(ranked) - 1, int(0.95 * len(ranked)))]

    def hedge_after(self, of: Hashable, kind: str) -> float:
        """Seconds after which the budget may pay for a second attempt."""
        one = self._shards.get((of, kind))
        return UNSURE_S if one is None or not one.p95 else max(LEAST_S, one.p95)

    def stuck_after(self, of: Hashable, kind: str) -> float:
        """Seconds after which it is made in any case."""
        return max(STUCK_S, STUCK * self.hedge_after(of, kind))
