"""Making, finding and dropping collections through the facade."""

import numpy as np
import pytest

from tests.memory_backend import MemoryBackend
from tests.unit.client.conftest import in_threads
from vecdb.client.database import Database
from vecdb.core.errors import CollectionExists, CollectionNotFound, InvalidArgument, LimitExceeded
from vecdb.core.schema import IndexKind, IndexSpec, Metric, Quantization, VectorType


@in_threads
def test_life_of_a_collection(db: Database) -> None:
    docs = db.create_collection("docs", dim=np.int64(3), metric=Metric.DOT)
    assert (docs.name, docs.dim, docs.metric) == ("docs", 3, "dot")
    assert db.list_collections() == ["docs"]
    assert "docs" in db
    assert db["docs"].schema == docs.schema
    assert len(docs) == 0
    assert bool(docs)
    assert repr(docs) == "<Collection 'docs' dim=3 dot float32>"
    db.drop_collection("docs")
    assert repr(docs) == "<Collection 'docs' (CollectionNotFound)>"
    for call in (lambda: docs.count(), lambda: docs.dim, lambda: docs.fetch([]), lambda: docs.delete(ids=[]),
                 lambda: docs.query([1, 2, 3]), lambda: db.collection("docs"), lambda: db.drop_collection("docs"),
                 lambda: docs.upsert([]), lambda: docs.scan()):
        with pytest.raises(CollectionNotFound, match="docs"):
            call()
    db.drop_collection("docs", missing_ok=True)


def test_a_handle_follows_its_name(db: Database) -> None:
    docs = db.create_collection("docs", dim=3)
    db.drop_collection("docs")
    db.create_collection("docs", dim=2, metric="l2")
    docs.upsert(ids=[1], vectors=[[1, 2]])
    assert docs.query([1, 2])[0].distance == 0.0


def test_every_index_parameter_by_its_names(db: Database) -> None:
    a = db.create_collection("a", 8, index="hnsw", M=32, efConstruction=100, ef=50, quantization="sq8", oversample=3,
                             dtype="float16", indexed_fields=["year", "a.b"])
    b = db.create_collection("b", 8, index={"kind": "hnsw", "m": 32, "ef_construction": 100, "ef": 50,
                                            "quantization": Quantization.SQ8, "oversample": 3.0},
                             vector_type=VectorType.FLOAT16, indexed_fields=("year", "a.b"))
    c = db.create_collection("c", 8, index=IndexSpec(IndexKind.HNSW, 32, 100, 50, Quantization.SQ8, oversample=3.0),
                             vector_type=np.float16, indexed_fields=["year", "a.b"])
    assert a.schema.index == b.schema.index == c.schema.index
    assert a.schema.index.m == 32
    assert [x.schema.vector_type for x in (a, b, c)] == ["float16"] * 3
    assert [x.schema.indexed_fields for x in (a, b, c)] == [("year", "a.b")] * 3
    assert db.create_collection("d", 8, index="ivf_pq", nlist=np.int32(64), nprobe=8).schema.index.nlist == 64


@pytest.mark.parametrize(("arguments", "argument", "message"), [
    ({"dim": 0}, "dim", "1..32768"), ({"dim": True}, "dim", "integer"), ({"dim": 3.0}, "dim", "integer"),
    ({"dim": 40_000}, "dim", "32768"), ({"dim": None}, "dim", "integer"), ({"dim": 10 ** 30}, "dim", "a number"),
    ({"name": ""}, "name", "letters"), ({"name": "../x"}, "name", "letters"), ({"name": 3}, "name", "str"),
    ({"name": "x" * 129}, "name", "128"), ({"name": "a\n"}, "name", "letters"),
    ({"metric": "euclidean"}, "metric", "did you mean 'l2'"), ({"metric": "x"}, "metric", "cosine, dot, l2"),
    ({"metric": None}, "metric", "str"), ({"metric": "hamming"}, "metric", "binary"),
    ({"vector_type": "float64"}, "vector_type", "float16"), ({"vector_type": 32}, "vector_type", "str"),
    ({"vector_type": "binary"}, "metric", "hamming"), ({"vector_type": np.zeros(3)}, "vector_type", "str"),
    ({"dtype": "float16", "vector_type": "int8"}, "vector_type", "twice"),
    ({"index": "hsnw"}, "index", "hnsw"), ({"index": 3}, "index", "str"), ({"index": {"k": 3}}, "k", "kind"),
    ({"index": {3: 3}}, "index", "str"), ({"index": {"m": 3}, "m": 4}, "m", "both"),
    ({"index": IndexSpec(), "m": 4}, "m", "IndexSpec"), ({"index": {"m": 3, "M": 4}}, "m", "twice"),
    ({"m": 1}, "m", "2..128"), ({"M": 1000}, "m", "2..128"), ({"m": "16"}, "m", "integer"),
    ({"m": 3, "M": 3}, "m", "twice"), ({"ef_construction": 0}, "ef_construction", "1..20000"),
    ({"quantization": "sq9"}, "quantization", "sq8"), ({"oversample": float("nan")}, "oversample", "finite"),
    ({"oversample": "x"}, "oversample", "number"), ({"oversample": 1000}, "oversample", "0..100"),
    ({"vectors_on_disk": 1}, "vectors_on_disk", "True"), ({"ef_constructoin": 3}, "ef_constructoin", "did you mean"),
    ({"indexed_fields": "year"}, "indexed_fields", "list"), ({"indexed_fields": [3]}, "indexed_fields", "str"),
    ({"indexed_fields": [""]}, "indexed_fields", "non-empty"),
    ({"indexed_fields": [str(i) for i in range(257)]}, "indexed_fields", "256"),
    ({"if_exists": "maybe"}, "if_exists", "'ok'"), ({"if_exists": np.zeros(3)}, "if_exists", "str"),
    ({"kind": "hnsw"}, "kind", "unknown"),
])
def test_refusals(db: Database, backend: MemoryBackend, arguments: dict, argument: str, message: str) -> None:
    with pytest.raises(InvalidArgument) as info:
        db.create_collection(**{"name": "x", "dim": 4, **arguments})
    assert info.value.argument == argument
    assert message in str(info.value)
    assert backend.state() == {}


def test_limits_are_limit_errors(db: Database) -> None:
    with pytest.raises(LimitExceeded):
        db.create_collection("x", dim=32_769)


def test_exists(db: Database, backend: MemoryBackend) -> None:
    db.create_collection("docs", dim=3, m=16, indexed_fields=["a"])
    with pytest.raises(CollectionExists, match="'docs' exists"):
        db.create_collection("docs", dim=3)
    same = db.create_collection("docs", dim=3, m=16, indexed_fields=["a"], if_exists="ok")
    assert same.schema == db.get_or_create_collection("docs", 3, indexed_fields=["a"]).schema
    before = backend.state()
    with pytest.raises(CollectionExists) as info:
        db.create_collection("docs", dim=4, m=8, if_exists="ok")
    text = str(info.value)
    assert "dim is 3, not 4" in text
    assert "m is 16, not 8" in text
    assert "indexed_fields is ('a',), not None" in text
    assert info.value.fields["differs"]["m"] == (16, 8)
    assert backend.state() == before
    with pytest.raises(InvalidArgument):
        db.get_or_create_collection("docs", 3, if_exists="error")


@pytest.mark.parametrize("settings", [{"index": kind} for kind in ("ivf_flat", "ivf_pq")] + [
    {"quantization": codes} for codes in ("sq8", "sq4", "pq", "opq", "rabitq")])
def test_binary_vectors_take_no_index_or_codes_of_numbers(db: Database, settings: dict[str, str]) -> None:
    with pytest.raises(InvalidArgument) as caught:
        db.create_collection("bits", dim=64, metric="hamming", vector_type="binary", **settings)
    assert caught.value.fields["argument"] == next(iter(settings))
    assert db.list_collections() == []
