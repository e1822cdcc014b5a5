"""The choice of an index says what and why."""

import pytest

from vecdb.ann.space import Space
from vecdb.core.schema import AUTO_HNSW_RECORDS, IndexKind, IndexSpec, Metric, Quantization, VectorType
from vecdb.segment.choice import choose

FLOATS = Space(Metric.L2, VectorType.FLOAT32, 128)


@pytest.mark.parametrize(("spec", "space", "count", "kind", "codes"), [
    (IndexSpec(), FLOATS, AUTO_HNSW_RECORDS - 1, IndexKind.FLAT, Quantization.NONE),
    (IndexSpec(), FLOATS, AUTO_HNSW_RECORDS, IndexKind.HNSW, Quantization.SQ8),
    (IndexSpec(), Space(Metric.L2, VectorType.UINT8, 128), 10**6, IndexKind.HNSW, Quantization.NONE),
    (IndexSpec(), Space(Metric.HAMMING, VectorType.BINARY, 128), 10**6, IndexKind.HNSW, Quantization.NONE),
    (IndexSpec(), Space(Metric.L2, VectorType.FLOAT32, 8), 10**6, IndexKind.HNSW, Quantization.NONE),
    (IndexSpec(vectors_on_disk=True), Space(Metric.L2, VectorType.FLOAT32, 8), 10**6, IndexKind.HNSW, Quantization.SQ8),
    (IndexSpec(kind="hnsw", quantization="rabitq"), FLOATS, 10, IndexKind.HNSW, Quantization.RABITQ),
    (IndexSpec(kind="ivf_pq"), FLOATS, 10, IndexKind.IVF_PQ, Quantization.PQ),
    (IndexSpec(kind="flat", quantization="sq8"), FLOATS, 10**6, IndexKind.FLAT, Quantization.NONE),
])
def test_choice(spec: IndexSpec, space: Space, count: int, kind: IndexKind, codes: Quantization) -> None:
    choice = choose(spec, space, count)
    assert choice.on_disk == spec.vectors_on_disk
    assert (choice.kind, choice.quantization) == (kind, codes)
    assert choice.reason
    assert IndexKind.AUTO is not choice.kind
    assert Quantization.AUTO is not choice.quantization


def test_less_memory_first_moves_vectors_to_disk_then_shrinks_codes() -> None:
    count = 10**6
    seen = []
    for budget in (2000, 700, 330, 250, 220, 190, 10):
        choice = choose(IndexSpec(), FLOATS, count, budget * count)
        seen.append((choice.on_disk, choice.quantization.value, choice.bits if choice.quantization == "rabitq" else 8))
    assert seen[0] == (False, "sq8", 8)
    assert (True, "sq8", 8) in seen
    assert seen[-1] == (True, "rabitq", 1)
    steps = list(dict.fromkeys(seen))
    assert steps == sorted(steps, key=lambda one: (one[0], -one[2]))
    assert "disk" in choose(IndexSpec(), FLOATS, count, 10).reason
