"""What watches a node: metrics, the recall sampler, the slow-query log, traces, the log itself."""

import asyncio
import random
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vecdb.config import Settings
from vecdb.ports.clock import Clock
from vecdb.runtime import logs, tracing
from vecdb.runtime.exposition import Exposition, interpreter
from vecdb.runtime.metrics import Metrics
from vecdb.runtime.process import Collections, EventLoopLag, Host
from vecdb.services.local import LocalDatabase
from vecdb.services.recall import RecallSampler
from vecdb.services.slow import SlowQueries


@dataclass(frozen=True, slots=True)
class Watch:
    """``slow`` and ``metrics`` are told of queries; ``exposition`` makes the page."""

    metrics: Metrics
    slow: SlowQueries
    exposition: Exposition


def tell(level: str, event: str, **fields: Any) -> None:
    """A part of the node has something to say: it goes to the log."""
    getattr(logs.logger(), level)(event, **fields)


def watch(settings: Settings, database: LocalDatabase, clock: Clock, metrics: Metrics, about: dict[str, str],
          write_limit: int, stack: AsyncExitStack, folder: Path | None = None) -> Watch:
    """Begin to watch; everything is undone by ``stack``.  ``folder``: where front processes leave their pages."""
    telemetry, log = settings.telemetry, settings.log
    slow = SlowQueries(log.slow_query_ms, lambda event, fields: logs.logger().warning(event, **fields), clock,
                       counted=metrics.slow_query)
    metrics.listen(slow.look)
    database.watch_jobs(lambda job, seconds: metrics.job_ended(job.kind, job.state, seconds))
    if telemetry.recall_samples_per_minute > 0 and telemetry.recall_cpu_share > 0:
        # Seeded from the system: which queries are sampled is nobody's business, and no result depends on it.
        sampler = RecallSampler(
            lambda name, request, call: database.query(name, request, call=call), metrics, clock, random.SystemRandom(),
            per_minute=telemetry.recall_samples_per_minute, cpu_share=telemetry.recall_cpu_share)
        metrics.listen(sampler.offer)
        sampler.start()
        stack.callback(sampler.close)
    stack.callback(tracing.configure(
        telemetry.otlp_endpoint, ratio=telemetry.trace_ratio, insecure=telemetry.otlp_insecure,
        attributes={"service.version": about["version"], "service.instance.id": about["node_id"]}))
    lag = EventLoopLag()
    beat = asyncio.get_running_loop().create_task(lag.run())
    stack.callback(beat.cancel)
    exposition = Exposition([*interpreter(), metrics, lag, Host(about["version"], settings.data_dir, write_limit, {}),
                            Collections(database.describe_open, metrics.names)],
                            process="" if folder is None else "engine", folder=folder)
    return Watch(metrics, slow, exposition)
