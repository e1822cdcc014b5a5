"""Bulk builds for tests, in this process."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vecdb.bulk import Built, Job, build
from vecdb.config import BackupSettings
from vecdb.core.schema import CollectionSchema, IndexKind, IndexSpec, Metric

DIM = 16
ROWS = np.random.default_rng(11).standard_normal((2_400, DIM)).astype(np.float32)


class Here:
    """An engine that runs pieces where it is asked; ``before`` is told of each, and may end it."""

    def __init__(self, before: Callable[[Any], None] = lambda piece: None) -> None:
        self.before = before
        self.ran: list[Any] = []

    def run(self, work: Callable[[Any], Any], pieces: Sequence[Any], done: Callable[[Any], None],
            idle: Callable[[], None]) -> None:
        for piece in pieces:
            self.before(piece)
            self.ran.append(piece)
            done(work(piece))
            idle()

    def close(self) -> None: ...


def job(folder: Path, rows: Any = ROWS, **more: Any) -> Job:
    """Of 2,400 records with the row number as id and a graph for index, in three shards."""
    path = folder / "rows.npy"
    if not path.exists():
        np.save(path, rows)
    schema = CollectionSchema("docs", rows.shape[1], Metric.L2, index=IndexSpec(IndexKind.HNSW))
    asked: dict[str, Any] = {"schema": schema, "files": (path,), "shards": 3, "url": f"file://{folder}/place",
                             "snapshot": "docs", "scratch": folder / "scratch", "replication_factor": 2}
    return Job(**(asked | more))


def built(folder: Path, engine: Any = None, **more: Any) -> Built:
    return build(job(folder, **more), engine or Here(), BackupSettings())
