"""What a node tells of its shards: what they hold, and how busy they keep it."""

from types import SimpleNamespace
from typing import Any

import pytest

from tests.key_store import Clock
from vecdb.cluster.loads import ShardLoad
from vecdb.ports.observer import NullObserver
from vecdb.runtime.metrics import Metrics
from vecdb.services.hosts import HostedShard
from vecdb.serving.shard_loads import MEMORY_S, ShardLoads


def test_bytes_of_now_and_work_of_about_a_minute() -> None:
    metrics, clock = Metrics(), Clock()
    there: Any = object()
    shards = {"": HostedShard("", 0, there, ""), "docs@4": HostedShard("docs@4", 4, there, ""),
              "docs@5": HostedShard("docs@5", 5, None, ""), "users": HostedShard("users", 6, there, "")}
    sizes: Any = SimpleNamespace(held_bytes={"docs@4": 4_096, "users": 0}.__getitem__)
    loads = ShardLoads(sizes, metrics, lambda: shards, clock)
    assert loads() == {4: ShardLoad(4_096.0, 0.0), 6: ShardLoad(0.0, 0.0)}, "those that are open, without group 0"
    for _ in range(300):
        clock.now += 2.0
        metrics.batch_ran("docs@4", 1, [0.0], 0.5, inline=True)
        told = loads()
    assert told[4].busy == pytest.approx(0.25, rel=0.02)
    assert told[6].busy == 0.0
    clock.now += MEMORY_S
    assert 0.05 < loads()[4].busy < 0.1
    metrics.forget("docs@4")
    clock.now += 2.0
    assert loads()[4].busy < 0.1, "counted from nothing again, which is no work"


def test_where_nothing_is_measured_only_bytes_are_told() -> None:
    sizes: Any = SimpleNamespace(held_bytes=lambda label: 7)
    there: Any = object()
    loads = ShardLoads(sizes, NullObserver(), lambda: {"docs": HostedShard("docs", 1, there, "")}, Clock())
    assert loads() == {1: ShardLoad(7.0, 0.0)}
