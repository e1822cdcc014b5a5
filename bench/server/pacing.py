"""Calls from threads, always so many at once.  Imports nothing of ours: peers' interpreters run it."""

import itertools
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

WARM = 5
CALL_S = 60.0


@dataclass(slots=True)
class Done:
    """``calls_ms`` of the calls within the window of ``seconds``; ``warm`` calls came before; ``refused`` by status."""

    calls_ms: list[float]
    seconds: float
    warm: int
    refused: dict[str, int] = field(default_factory=dict)


def in_threads(inflight: int, seconds: float, ask: Callable[[int], Any]) -> Done:
    """``ask(i)`` from ``inflight`` threads at once; what one of them raises is raised here."""
    for place in range(WARM):
        ask(place)
    counter = itertools.count()
    calls: list[list[float]] = [[] for _ in range(inflight)]
    faults: list[BaseException] = []
    barrier = threading.Barrier(inflight + 1)

    def work(mine: list[float]) -> None:
        barrier.wait()
        now = time.perf_counter()
        end = now + seconds
        try:
            while now < end:
                ask(next(counter))
                then, now = now, time.perf_counter()
                mine.append((now - then) * 1e3)
        except BaseException as error:
            faults.append(error)

    threads = [threading.Thread(target=work, args=(mine,), daemon=True) for mine in calls]
    for thread in threads:
        thread.start()
    barrier.wait()
    began = time.perf_counter()
    for thread in threads:
        thread.join(seconds + 2 * CALL_S)
    if faults:
        raise faults[0]
    return Done([one for mine in calls for one in mine], time.perf_counter() - began, WARM)
