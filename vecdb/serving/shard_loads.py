"""What the shards of this node hold, and how busy they keep it: told to who leads, who makes loads even."""

from collections.abc import Callable, Mapping
from math import exp
from typing import Final, Protocol

from vecdb.cluster.loads import ShardLoad
from vecdb.ports.clock import Clock
from vecdb.ports.observer import Observer
from vecdb.runtime.metrics import Metrics
from vecdb.services.hosts import HostedShard

MEMORY_S: Final = 60.0
"""In which what was counts for a third of what it did."""


class Sizes(Protocol):
    """The engine: :class:`vecdb.services.local.LocalDatabase`."""

    def held_bytes(self, name: str) -> int: ...


class ShardLoads:
    """Called now and then, from one thread; ``statuses()``: the shards that are here, by label."""

    def __init__(self, database: Sizes, observer: Observer, statuses: Callable[[], Mapping[str, HostedShard]],
                 clock: Clock) -> None:
        self._database = database
        self._compute_s = observer.compute_s if isinstance(observer, Metrics) else dict[str, float]
        self._statuses = statuses
        self._clock = clock
        self._at = clock.monotonic()
        self._before: Mapping[str, float] = self._compute_s()
        self._busy: dict[str, float] = {}

    def __call__(self) -> dict[int, ShardLoad]:
        """By group."""
        now, after = self._clock.monotonic(), self._compute_s()
        shards = {label: one.group for label, one in self._statuses().items() if label and one.status is not None}
        passed = now - self._at
        if passed > 0:
            kept = exp(-passed / MEMORY_S)
            self._busy = {label: kept * self._busy.get(label, 0.0) + (1.0 - kept) * max(
                0.0, after.get(label, 0.0) - self._before.get(label, 0.0)) / passed for label in shards}
            self._at, self._before = now, after
        return {group: ShardLoad(float(self._database.held_bytes(label)), self._busy.get(label, 0.0))
                for label, group in shards.items()}
