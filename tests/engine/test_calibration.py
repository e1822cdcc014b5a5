"""``vecdb plan --qps`` with what this machine measures, in small, and with what was measured before."""

from pathlib import Path

import orjson
import pytest

from tests.unit.cluster.test_capacity import MEASURED
from vecdb.cli import calibrating, capacity, main
from vecdb.core.schema import CollectionSchema, IndexKind, IndexSpec, Metric, VectorType

ASKED = ["plan", "--records", "1e9", "--dim", "128", "--qps", "100000"]


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "cache" / "calibration.json"
    monkeypatch.setattr(capacity, "cache_path", lambda: path)
    return path


def test_this_machine_is_measured() -> None:
    spec = IndexSpec(IndexKind.HNSW)
    found = calibrating.measure(CollectionSchema("calibration", 32, index=spec), (500, 1_000), 50, 20)
    assert [n for n, _ in found.searches] == [500, 1_000]
    assert found.call_cpu_us > 0
    assert found.call_us > 0
    assert found.spread[3] == pytest.approx(1.0)
    assert list(found.spread) == sorted(found.spread)


@pytest.mark.parametrize(("metric", "kind"), [(Metric.HAMMING, VectorType.BINARY), (Metric.DOT, VectorType.INT8),
                                              (Metric.COSINE, VectorType.UINT8), (Metric.L2, VectorType.FLOAT16)])
def test_of_every_kind_of_vectors(metric: Metric, kind: VectorType) -> None:
    schema = CollectionSchema("calibration", 32, metric, kind, IndexSpec(IndexKind.HNSW))
    cpu, spread = calibrating._searches(schema, 300, 20)
    assert cpu > 0
    assert spread[-1] >= 1.0


def test_it_is_measured_once_and_again_when_asked(kept: Path, monkeypatch: pytest.MonkeyPatch,
                                                  capsys: pytest.CaptureFixture[str]) -> None:
    measured = []

    def measure(schema: CollectionSchema) -> object:
        measured.append((schema.dim, schema.index.kind))
        return MEASURED

    monkeypatch.setattr(calibrating, "measure", measure)
    for _ in range(2):
        assert main([*ASKED, "--json", "--node-cores", "16", "--node-memory", "64GiB"]) == 0
    told = orjson.loads(capsys.readouterr().out.splitlines()[-1]) if len(measured) == 1 else None
    assert told is not None
    assert told["cluster"]["memory_bytes"] == told["memory_bytes"]
    assert told["cluster"]["nodes"] > 100
    assert told["cluster"]["assumptions"]
    assert main([*ASKED, "--recalibrate"]) == 0
    assert measured == [(128, IndexKind.HNSW)] * 2
    shown = capsys.readouterr()
    assert "latency p99" in shown.out
    assert "extrapolated" in shown.out + shown.err
    assert main([*ASKED[:4], "64", *ASKED[5:], "--json"]) == 0  # other vectors
    assert len(measured) == 3
    kept.write_bytes(b"nonsense")
    assert main([*ASKED, "--json"]) == 0
    assert len(measured) == 4
    assert main([*ASKED[:-1], "0"]) == 2
    assert main([*ASKED[:-1], "many"]) == 2
