"""What the disk itself takes for one small durable write."""

import os
import time
from pathlib import Path
from statistics import median
from typing import Any

RECORD = 512


def fsyncs(place: Path, seconds: float = 2.0) -> dict[str, Any]:
    """Append :data:`RECORD` bytes and ``fdatasync``, one after the other: median and p99 in ms, and how many a second.

    The file is grown before, as RocksDB grows its logs, so that a sync writes data and little else.
    """
    path = place / "fsync.probe"
    taken: list[float] = []
    body = os.urandom(RECORD)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        os.posix_fallocate(descriptor, 0, 16 << 20)
        os.fsync(descriptor)
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            began = time.perf_counter()
            os.write(descriptor, body)
            os.fdatasync(descriptor)
            taken.append((time.perf_counter() - began) * 1e3)
    finally:
        os.close(descriptor)
        path.unlink()
    taken.sort()
    return {"p50_ms": round(median(taken), 3), "p99_ms": round(taken[int(len(taken) * 0.99)], 3),
            "a_second": round(len(taken) / (sum(taken) / 1e3))}  # fmt: skip
