"""A batcher with a clock and workers that the test drives."""

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor, Future

import numpy as np
import pytest

from vecdb.core.calls import Call
from vecdb.core.query import Cost, Matches, QueryRequest, QueryResult
from vecdb.ports.observer import NullObserver, Refusal
from vecdb.services import batching
from vecdb.services.batching import QueryBatcher


@pytest.fixture(autouse=True)
def gather_everything(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine here is slow so that queries must wait; how much is gathered has tests of its own."""
    if "bounded" not in request.node.name:
        monkeypatch.setattr(batching, "BATCH_S", 1e9)
        monkeypatch.setattr(batching, "HEAVY_S", 1e9)


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now

    def wall(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


class Workers(Executor):
    """Holds what is submitted until the test runs it."""

    def __init__(self) -> None:
        self.waiting: list[Callable[[], None]] = []

    def submit(self, fn, /, *args, **kwargs):  # type: ignore[no-untyped-def,override]
        self.waiting.append(lambda: fn(*args, **kwargs))
        return Future()

    def run_one(self) -> None:
        self.waiting.pop(0)()


class Told(NullObserver):
    def __init__(self) -> None:
        self.batches: list[tuple[int, int, bool]] = []
        self.refusals: list[Refusal] = []
        self.queries: list[Cost] = []

    def batch_ran(self, collection, rows, waits_s, compute_s, inline):  # type: ignore[no-untyped-def]
        self.batches.append((rows, len(waits_s), inline))

    def refused(self, reason):  # type: ignore[no-untyped-def]
        self.refusals.append(reason)

    def queried(self, collection, request, result, cost, call):  # type: ignore[no-untyped-def]
        self.queries.append(cost)


class Bench:
    """A batcher whose engine answers each row with its own first component as the id."""

    def __init__(self, *, workers: int = 1, queued_rows: int = 64, row_s: float = 1e-4) -> None:
        self.clock, self.pool, self.told = Clock(), Workers(), Told()
        self.row_s = row_s
        self.ran: list[tuple[QueryRequest, Call]] = []
        self.error: Exception | None = None
        self.batcher = QueryBatcher(self.run, self.pool, self.clock, self.told, workers=workers,
                                    queued_rows=queued_rows)

    def run(self, name: str, request: QueryRequest, call: Call) -> QueryResult:
        call.check()
        self.ran.append((request, call))
        self.clock.now += self.row_s * len(request.vectors)
        if self.error is not None:
            raise self.error
        matches = [Matches([int(row[0])], np.zeros(1, np.float32)) for row in request.vectors]
        return QueryResult(matches, {"plan": len(matches)} if request.explain else None,
                           cost=Cost(hops=7) if request.profile else None)

    def ask(self, *rows: int, call: Call | None = None, **options: object) -> "asyncio.Task[QueryResult]":
        vectors = np.array([[row, 0] for row in rows], np.float32)
        request = QueryRequest(vectors, 3, **options)  # type: ignore[arg-type]
        return asyncio.get_running_loop().create_task(self.batcher.query("c", request, call or Call()))

    async def know(self) -> None:
        """Let the lane be known: one that is slow is believed the second time."""
        while not self.batcher._took:
            first = self.ask(0)
            await settle()
            self.pool.run_one()
            await first
        del self.ran[1:]
        self.clock.now += 1.0


async def settle() -> None:
    """Let what was begun come to where it waits."""
    for _ in range(5):
        await asyncio.sleep(0)


def ids(result: QueryResult) -> list[int]:
    return [match.ids[0] for match in result.matches]  # type: ignore[misc]


def drive(test: Callable[[], object]) -> None:
    asyncio.run(asyncio.wait_for(test(), 60))  # type: ignore[arg-type]
