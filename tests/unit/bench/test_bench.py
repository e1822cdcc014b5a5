"""The harness counts rightly: a wrong ruler would flatter everything measured with it."""

import json
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

from bench import ann, hdf5, report
from bench.filters import ranks, strategies
from bench.systems import SYSTEMS, MissingError, Settings, System

METRICS = ("cosine", "l2", "dot")


def small(metric: str, count: int = 300, queries: int = 20) -> hdf5.AnnSet:
    random = np.random.default_rng(3)
    train = random.standard_normal((count, 8)).astype(np.float32)
    test = random.standard_normal((queries, 8)).astype(np.float32)
    neighbors, distances = hdf5.exact(train, test, metric)
    return hdf5.AnnSet("small", metric, train, test, neighbors, distances)


@pytest.mark.parametrize("metric", METRICS)
def test_exact_neighbours_are_those_of_the_definition(metric: str) -> None:
    data = small(metric)
    everything = np.arange(len(data.train))
    for row, query in enumerate(data.test):
        true = hdf5.true_distances(data.train, query, everything, metric)
        order = np.lexsort((everything, true))[: hdf5.TRUTH]
        assert data.neighbors[row].tolist() == order.tolist()
        np.testing.assert_allclose(data.distances[row], true[order], rtol=1e-6)


@pytest.mark.parametrize("metric", METRICS)
def test_recall_counts_distinct_true_neighbours(metric: str) -> None:
    data = small(metric)
    perfect = data.neighbors[:, :10].astype(np.int64)
    assert hdf5.recall(data, perfect, 10) == 1.0
    assert hdf5.recall(data, perfect[:, ::-1], 10) == 1.0
    half = np.concatenate([perfect[:, :5], data.neighbors[:, 50:55]], axis=1)
    assert hdf5.recall(data, half, 10) == 0.5
    assert hdf5.recall(data, np.repeat(perfect[:, :1], 10, axis=1), 10) == pytest.approx(0.1)
    assert hdf5.recall(data, np.full((20, 10), -1), 10) == 0.0


def test_ties_cost_nobody_anything() -> None:
    train = np.repeat(np.eye(2, dtype=np.float32), 20, axis=0)
    test = np.array([[1.0, 0.1]], np.float32)
    neighbors, distances = hdf5.exact(train, test, "l2")
    data = hdf5.AnnSet("ties", "l2", train, test, neighbors, distances)
    assert hdf5.recall(data, np.arange(10, 20)[None], 10) == 1.0
    assert hdf5.recall(data, np.arange(20, 30)[None], 10) == 0.0


def test_a_limit_computes_its_own_truth(tmp_path: Path) -> None:
    data = small("l2")
    path = tmp_path / "tiny.hdf5"
    hdf5.write(path, data.train, data.test, "l2", {"words": ["a", "b"]}, "made here")
    whole, part = hdf5.read(path), hdf5.read(path, limit=150, queries=5)
    assert (whole.neighbors == data.neighbors).all()
    assert len(part.test) == 5
    assert part.name == "tiny@150"
    assert part.neighbors.max() < 150
    with h5py.File(path) as file:
        assert file["words"].asstr()[:].tolist() == ["a", "b"]
        assert file.attrs["distance"] == "euclidean"


def row(recall: float, qps: float, system: str = "x") -> dict:
    return {"system": system, "mode": "single", "recall": recall, "qps": qps}


def test_qps_is_read_off_the_frontier() -> None:
    rows = [row(0.90, 1000.0), row(1.0, 10.0), row(0.93, 5.0)]
    found = report.qps_at(rows, 0.95)
    assert found is not None
    assert found == (pytest.approx(100.0), "")
    assert report.qps_at([row(0.97, 50.0), row(0.99, 20.0)], 0.95) == (50.0, ">=")
    assert report.qps_at([row(0.90, 1000.0)], 0.95) is None


def test_ranks_are_shares_below() -> None:
    assert ranks(np.array([3.0, 1.0, 2.0, 1.0])).tolist() == [0.75, 0.0, 0.5, 0.25]


def test_strategies_are_found_in_any_plan() -> None:
    plan = {"segments": [{"strategy": "exact"}, {"part": {"strategy": "scan", "k": 3}}], "other": 1}
    assert strategies(plan) == ["exact", "scan"]
    assert strategies(None) == []


class Exact(System):
    """Answers rightly; effort below 20 forgets the last."""

    def build(self, train: np.ndarray) -> None:
        self.train = train

    def set_effort(self, effort: int) -> None:
        self.effort = effort

    def search(self, queries: np.ndarray) -> np.ndarray:
        found = hdf5.exact(self.train, queries, self.settings.metric)[0][:, : self.settings.k].astype(np.int64)
        found[:, -1] = found[:, -1] if self.effort >= 20 else -1
        return found

    def bytes_per_vector(self) -> float:
        return 32.0


def absent(settings: Settings) -> System:
    raise MissingError("absent is not installed")


def test_a_run_writes_the_promised_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data = small("cosine", count=200, queries=60)
    path, out = tmp_path / "tiny.hdf5", tmp_path / "out.json"
    hdf5.write(path, data.train, data.test, "cosine", {}, "made here")
    monkeypatch.setitem(SYSTEMS, "exact", Exact)
    monkeypatch.setitem(SYSTEMS, "absent", absent)
    arguments = ["--data", str(path), "--out", str(out), "--systems", "exact,absent", "--sweep", "5,10,20"]
    monkeypatch.setattr(sys, "argv", ["bench.ann", *arguments, "--rounds", "2"])
    ann.main()
    rows = json.loads(out.read_text())
    keys = "system params threads mode k recall qps p50_ms p99_ms build_seconds bytes_per_vector dataset"
    assert all(sorted(one) == sorted(keys.split()) for one in rows)
    assert [(one["params"]["ef_search"], one["mode"], one["recall"]) for one in rows] == [
        (10, "single", 0.9),
        (10, "batch", 0.9),
        (20, "single", 1.0),
        (20, "batch", 1.0),
    ]
    assert all(one["qps"] > 0 and one["p99_ms"] >= one["p50_ms"] for one in rows)
    assert "absent: left out, absent is not installed" in capsys.readouterr().out
