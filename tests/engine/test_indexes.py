"""Every index and code through the public API: near the truth, and the same after a restart."""

from pathlib import Path

import numpy as np
import pytest

import vecdb

N, DIM = 2_500, 48


def _data(seed: int = 3) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((40, DIM))
    rows = centres[rng.integers(0, 40, N)] + 0.4 * rng.standard_normal((N, DIM))
    queries = centres[rng.integers(0, 40, 200)] + 0.4 * rng.standard_normal((200, DIM))
    return rows.astype(np.float32), queries.astype(np.float32)


def _recall(docs: vecdb.Collection, queries: np.ndarray, **options: object) -> float:
    want = docs.query(queries, k=10, exact=True)
    got = docs.query(queries, k=10, **options)
    return float(np.mean([len(set(a.ids) & set(b.ids)) / 10 for a, b in zip(want, got, strict=True)]))


@pytest.mark.parametrize(("index", "extra"), [
    ("hnsw", {"quantization": "none"}), ("hnsw", {"quantization": "sq8"}), ("hnsw", {"quantization": "sq4"}),
    ("hnsw", {"quantization": "pq"}), ("hnsw", {"quantization": "opq"}),
    ("hnsw", {"quantization": "rabitq", "bits": 1}), ("hnsw", {"quantization": "rabitq", "bits": 4}),
    ("ivf_flat", {}), ("ivf_pq", {}), ("flat", {}), ("hnsw", {"vectors_on_disk": True}),
])
def test_index_through_its_life(tmp_path: Path, index: str, extra: dict) -> None:
    rows, queries = _data()
    with vecdb.connect(tmp_path / "db", background=False) as db:
        docs = db.create_collection("c", DIM, metric="l2", index=index, m=12, ef_construction=80, **extra)
        docs.upsert(ids=np.arange(N), vectors=rows, metadata=[{"n": i % 10} for i in range(N)])
        docs.optimize()
        sealed = docs.describe().details["segments"][0]
        assert sealed["state"] == "sealed"
        assert sealed["index"]["kind"] == index
        assert _recall(docs, queries) >= 0.95
        before = [hits.ids for hits in docs.query(queries, k=10)]
        filtered = docs.query(queries, k=10, filter="n == 3", include=["metadata"])
        assert all(hit.metadata == {"n": 3} for hits in filtered for hit in hits)
        assert all(len(hits) == 10 for hits in filtered)
    with vecdb.connect(tmp_path / "db", background=False) as db:
        docs = db.collection("c")
        assert [hits.ids for hits in docs.query(queries, k=10)] == before
        docs.delete(ids=np.arange(0, N, 3))
        assert _recall(docs, queries) >= 0.95
        docs.upsert(ids=np.arange(0, N, 3), vectors=rows[::3])
        docs.optimize()
        assert docs.count() == N
        assert len(docs.describe().details["segments"]) == 2
        assert _recall(docs, queries) >= 0.95


@pytest.mark.parametrize(("metric", "vector_type"), [
    ("l2", "float16"), ("cosine", "float16"), ("l2", "int8"), ("cosine", "int8"), ("dot", "int8"), ("l2", "uint8"),
    ("cosine", "uint8"), ("hamming", "binary"), ("dot", "float32"),
])
@pytest.mark.parametrize("index", ["hnsw", "flat"])
def test_vector_types(tmp_path: Path, metric: str, vector_type: str, index: str) -> None:
    rows, queries = _data(4)
    dim = DIM
    if vector_type == "int8":
        rows, queries = (np.clip(np.rint(part * 30), -128, 127).astype(np.int8) for part in (rows, queries))
    elif vector_type == "uint8":
        rows, queries = (np.clip(np.rint(part * 25 + 128), 0, 255).astype(np.uint8) for part in (rows, queries))
    elif vector_type == "binary":
        rows, queries = (np.packbits(part > 0, axis=1) for part in (rows, queries))
    with vecdb.connect(tmp_path / "db", background=False) as db:
        docs = db.create_collection("c", dim, metric=metric, vector_type=vector_type, index=index, m=12,
                                    ef_construction=80)
        docs.upsert(ids=[f"id-{i}" for i in range(N)], vectors=rows)
        docs.optimize()
        want = docs.query(queries, k=10, exact=True)
        got = docs.query(queries, k=10)
        near = [np.mean(b.distances <= a.distances[-1] + 1e-4) for a, b in zip(want, got, strict=True)]
        assert np.mean(near) >= 0.95
        kept = docs.get("id-7").vector
        if vector_type in ("int8", "uint8", "binary"):
            assert (kept == rows[7]).all()


def test_memory_budget_moves_vectors_to_disk(tmp_path: Path) -> None:
    rows, queries = _data(5)
    with vecdb.connect(tmp_path / "db", background=False, memory_bytes=1 << 19) as db:
        docs = db.create_collection("c", DIM, metric="l2", index="hnsw", m=8, ef_construction=60)
        docs.upsert(ids=np.arange(N), vectors=rows)
        docs.optimize()
        sealed = docs.describe().details["segments"][0]["index"]
        assert "on disk" in sealed["reason"]
        assert docs.describe().details["memory_bytes"]["vectors"] == 0
        assert _recall(docs, queries) >= 0.95
        assert not list((tmp_path / "db").rglob("*.scratch"))


def test_range_search_returns_all_within_and_nothing_beyond(tmp_path: Path) -> None:
    rows, queries = _data(6)
    with vecdb.connect(tmp_path / "db", background=False) as db:
        docs = db.create_collection("c", DIM, metric="l2", index="hnsw", m=12, ef_construction=80)
        docs.upsert(ids=np.arange(N), vectors=rows)
        docs.optimize()
        for query in queries[:5]:
            truth = np.sqrt(((rows.astype(np.float64) - query) ** 2).sum(axis=1))
            radius = float(np.sort(truth)[40]) + 1e-4
            hits = docs.query(query, k=1_000, within=radius)
            assert (hits.distances <= radius).all()
            assert len(set(hits.ids) & set(np.flatnonzero(truth <= radius).tolist())) >= 39
            assert docs.query(query, k=5, within=1e-6).ids == []
