"""What a run of ``bench.replication`` says of the parts that it was asked for."""

from typing import Any

import pytest

from bench.replication import cluster

FSYNC = {"p50_ms": 0.5}


def _batches(name: str, mb_s: float) -> dict[str, Any]:
    return {"bytes": 1, "mb_s": mb_s, "records_s": 10 * mb_s, "p50_ms": mb_s / 10, "p99_ms": mb_s, "name": len(name)}


class _Db:
    def __init__(self) -> None:
        self.dropped: list[str] = []

    def drop_collection(self, name: str) -> None:
        self.dropped.append(name)


def test_writes_are_medians_of_rounds_with_both_windows_beside_the_aim(monkeypatch: pytest.MonkeyPatch) -> None:
    speeds = iter(range(1, 1_000))
    monkeypatch.setattr(cluster, "batches", lambda db, name, *_: _batches(name, float(next(speeds))))
    monkeypatch.setattr(cluster, "ingest", lambda db, name, _: {**_batches(name, float(next(speeds))), "details": {}})
    db = _Db()
    found = cluster.writes(db, 3, 1.0)  # type: ignore[arg-type]
    assert len(set(db.dropped)) == 3 * len(found) == 15, "a collection of its own for each load of each round"
    assert [found[f"batches_1mb_{window}"]["mb_s"] for window in (8, 16)] == [7.0, 8.0], "the second of 2, 7, 12"
    rows = cluster.rows({"fsync": FSYNC, "writes": found})
    large = {what: aim for what, _, aim in rows if "1 MB" in what}
    assert len(large) == 2
    assert set(large.values()) == {"40 MB/s"}
    assert any("8 under way" in what for what in large)
    assert any("16 under way" in what for what in large)


def test_only_parts_that_were_measured_are_told() -> None:
    failover = {"kills": 4, "median_s": 1.25, "worst_s": 1.75}
    restore = {"mb": 2_048, "seconds": 30.5, "written_meanwhile": 77, "agree": False}
    (killed,) = cluster.rows({"fsync": FSYNC, "failover": failover})
    assert killed[0].startswith("leader killed, 4 times")
    assert "1.25" in killed[1]
    assert "1.75" in killed[1]
    (restored,) = cluster.rows({"fsync": FSYNC, "restore": restore})
    assert "2,048 MB" in restored[0]
    assert "DIFFER" in restored[1]
