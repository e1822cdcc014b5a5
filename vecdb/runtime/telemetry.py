"""Metrics, recall sampler and slow-query log of one process, put together: what a composition root opens and closes."""

import asyncio
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any, Protocol

from vecdb.core.calls import Call
from vecdb.core.query import Description, QueryRequest, QueryResult
from vecdb.ports.clock import Clock
from vecdb.runtime.exposition import Exposition, Source, interpreter, publish
from vecdb.runtime.logs import logger
from vecdb.runtime.metrics import Metrics
from vecdb.runtime.process import Collections, EventLoopLag, Host
from vecdb.services.jobs import Job
from vecdb.services.recall import RecallSampler
from vecdb.services.slow import SlowQueries


class Engine(Protocol):
    """What is looked at: :class:`vecdb.services.local.LocalDatabase`."""

    def query(self, name: str, request: QueryRequest, *, call: Call | None = None) -> QueryResult: ...

    def describe_open(self) -> Iterable[Description]: ...

    def watch_jobs(self, on_end: Callable[[Job, float], None]) -> None: ...


@dataclass(frozen=True, slots=True)
class TelemetryOptions:
    """Settings ``log``, ``telemetry`` and ``limits`` as far as they matter here.

    ``process``: this process's name beside others, "" alone.  ``pages``: the folder where front processes leave
    their pages for the engine's.  ``build``: further labels of ``vecdb_build_info``.
    """

    version: str
    data_dir: Path
    slow_query_ms: float = 250.0
    recall_samples_per_minute: float = 30.0
    recall_cpu_share: float = 0.02
    write_limit_bytes: int = 0
    process: str = ""
    pages: Path | None = None
    build: dict[str, str] = field(default_factory=dict)


class Telemetry:
    """``engine`` None: a front process, which publishes its page instead of showing those of others.

    ``metrics`` is the observer of everything in the process; :meth:`page` is ``/metrics``, to be called in a thread.
    """

    def __init__(self, options: TelemetryOptions, clock: Clock, engine: Engine | None) -> None:
        self.metrics = metrics = Metrics()
        self._options = options
        self._is_front = engine is None
        self._lag = EventLoopLag()
        self._tasks: list[asyncio.Task[None]] = []
        self._sampler: RecallSampler | None = None
        self.slow = SlowQueries(options.slow_query_ms, _log_slow, clock, counted=metrics.slow_query)
        sources: list[Source] = [metrics, self._lag, *interpreter(),
                                 Host(options.version, options.data_dir, options.write_limit_bytes, options.build)]
        if engine is not None:
            sources.append(Collections(engine.describe_open, metrics.names))
            self._look_at(engine, clock)
        others = None if engine is None else options.pages
        self._exposition = Exposition(sources, process=options.process, folder=others)
        self.page = self._exposition.text
        self.add = self._exposition.add

    def _look_at(self, engine: Engine, clock: Clock) -> None:
        metrics, options = self.metrics, self._options
        engine.watch_jobs(lambda job, seconds: metrics.job_ended(job.kind, job.state, seconds))
        if options.slow_query_ms:
            metrics.listen(self.slow.look)
        if options.recall_samples_per_minute and options.recall_cpu_share:
            self._sampler = RecallSampler(lambda name, request, call: engine.query(name, request, call=call), metrics,
                                          clock, Random(), per_minute=options.recall_samples_per_minute,  # noqa: S311
                                          cpu_share=options.recall_cpu_share)
            metrics.listen(self._sampler.offer, self._sampler.offer_brief)

    def start(self) -> None:
        """Begin to beat, to sample, and in a front to publish; on the process's event loop."""
        loop = asyncio.get_running_loop()
        self._tasks.append(loop.create_task(self._lag.run()))
        if self._is_front and self._options.pages is not None:
            self._tasks.append(loop.create_task(publish(self._exposition, self._options.pages, self._options.process)))
        if self._sampler is not None:
            self._sampler.start()

    async def close(self) -> None:
        """End all of it; before the engine is closed."""
        for task in self._tasks:
            task.cancel()
        for task in self._tasks:
            with suppress(asyncio.CancelledError):
                await task
        self._tasks.clear()
        if self._sampler is not None:
            await asyncio.to_thread(self._sampler.close)


def _log_slow(event: str, fields: dict[str, Any]) -> None:
    logger().warning(event, **fields)
