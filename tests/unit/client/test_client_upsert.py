"""Every form of input writes the same records; every refusal changes nothing."""

import copy

import numpy as np
import pytest

from tests.memory_backend import MemoryBackend
from tests.unit.client.conftest import Refused
from vecdb.client import parts
from vecdb.client.collection import Collection
from vecdb.client.database import Database
from vecdb.core.errors import (
    DimensionMismatch,
    InvalidArgument,
    InvalidId,
    InvalidMetadata,
    LimitExceeded,
    NonFiniteVector,
)
from vecdb.core.records import UpsertBatch

IDS = [10, "b", 30]
MATRIX = np.arange(12, dtype=np.float32).reshape(3, 4)
METADATA = [{"n": 1}, {}, {"n": 3, "deep": {"list": [1, None, "x"]}}]


def contents(docs: Collection) -> list:
    found = docs.scan(include=["metadata", "vector"])
    return [(record.id, record.metadata, record.vector.tolist()) for record in found]


@pytest.fixture
def empty(db: Database) -> Collection:
    return db.create_collection("empty", dim=4, metric="l2")


FORMS = ["columns", "positional", "lists", "tuples", "generator", "dicts", "records", "iterators"]


@pytest.mark.parametrize("form", FORMS)
def test_forms_agree(empty: Collection, form: str) -> None:
    rows = list(zip(IDS, MATRIX, METADATA, strict=True))
    if form == "columns":
        result = empty.upsert(ids=IDS, vectors=MATRIX, metadata=METADATA)
    elif form == "positional":
        result = empty.upsert(IDS, MATRIX.astype(np.float64), METADATA)
    elif form == "lists":
        result = empty.upsert(ids=tuple(IDS), vectors=MATRIX.tolist(), metadata=tuple(METADATA))
    elif form == "tuples":
        result = empty.upsert(rows)
    elif form == "generator":
        result = empty.upsert(row for row in rows)
    elif form == "dicts":
        result = empty.upsert({"id": i, "vector": v.tolist(), "metadata": m} for i, v, m in rows)
    elif form == "records":
        result = empty.upsert(records=[list(row) for row in rows], batch_size=1)
    else:
        result = empty.upsert(ids=iter(IDS), vectors=MATRIX, metadata=(m for m in METADATA))
    assert (result.inserted, result.updated, result.log_index) == (3, 0, 3 if form == "records" else 1)
    assert contents(empty) == [(i, m, v.tolist()) for i, v, m in rows]


def test_metadata_may_be_absent(empty: Collection) -> None:
    empty.upsert(ids=np.array([1, 2, 3]), vectors=MATRIX)
    empty.upsert([(4, MATRIX[0]), (5, MATRIX[1], None), {"id": 6, "vector": MATRIX[2]}])
    assert [record.metadata for record in empty.scan()] == [{}] * 6


def test_the_last_of_equal_ids_wins_in_a_batch_and_across(empty: Collection) -> None:
    result = empty.upsert(ids=[1, 2, 1, "1", 2], vectors=np.eye(5, 4), metadata=[{"n": n} for n in range(5)])
    assert result.inserted == 3
    assert [(r.id, r.metadata["n"]) for r in empty.scan()] == [(1, 2), ("1", 3), (2, 4)]
    result = empty.upsert(ids=[7, 7, 7], vectors=MATRIX, batch_size=1)
    assert (result.inserted, result.updated) == (1, 2)
    assert empty.get(7).vector.tolist() == MATRIX[2].tolist()


def test_batches_by_rows_and_by_bytes(empty: Collection, backend: MemoryBackend,
                                      monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []  # as they are applied: over the network several streams are, beside each other
    upsert = backend.upsert

    def spy(name: str, batch: UpsertBatch, call: object = None):
        sizes.append(len(batch.ids))
        return upsert(name, batch)

    monkeypatch.setattr(backend, "upsert", spy)
    seen: list = []
    empty.upsert(ids=range(10), vectors=np.ones((10, 4)), batch_size=4, progress=lambda *step: seen.append(step))
    assert sorted(sizes) == [2, 4, 4]
    assert seen == [("upsert", 4, 10), ("upsert", 8, 10), ("upsert", 10, 10)]
    monkeypatch.setattr(parts, "DEFAULT_BATCH_BYTES", 1_000)
    sizes.clear()
    empty.upsert(ids=range(10), vectors=np.ones((10, 4)),
                 metadata=[{"t": "x" * (2_000 if n == 3 else 400)} for n in range(10)])
    assert sorted(sizes) == [1, 1, 2, 2, 2, 2]
    sizes.clear()
    empty.upsert(ids=range(100), vectors=np.ones((100, 4)))
    assert sorted(sizes) == [7, 31, 31, 31]


@pytest.mark.parametrize(("arguments", "kind", "argument"), [
    ({}, InvalidArgument, "records"),
    ({"ids": [1]}, InvalidArgument, "records[0]"),
    ({"vectors": MATRIX}, InvalidArgument, "ids"),
    ({"ids": [1], "metadata": [{}]}, InvalidArgument, "vectors"),
    ({"ids": [], "vectors": []}, InvalidArgument, "vectors"),
    ({"ids": np.array([]), "vectors": np.zeros((0, 4))}, InvalidArgument, "vectors"),
    ({"ids": [1, 2], "vectors": MATRIX}, InvalidArgument, "ids"),
    ({"ids": iter(range(99)), "vectors": MATRIX}, InvalidArgument, "ids"),
    ({"ids": [1, 2, 3], "vectors": MATRIX, "metadata": [{}]}, InvalidArgument, "metadata"),
    ({"ids": [1, 2, 3], "vectors": MATRIX, "metadata": {"a": 1}}, InvalidMetadata, "metadata"),
    ({"ids": [1, 2, 3], "vectors": MATRIX, "metadata": 7}, InvalidMetadata, "metadata"),
    ({"ids": [1, 2, 3], "vectors": MATRIX, "metadata": [{}, {}, {"a": np.nan}]}, InvalidMetadata, "metadata[2].a"),
    ({"ids": [1, 2, 3], "vectors": MATRIX, "metadata": [{}, [], {}]}, InvalidMetadata, "metadata[1]"),
    ({"ids": [1, 2, 3], "vectors": MATRIX[:, :3]}, DimensionMismatch, "vectors"),
    ({"ids": [1, 2, -3], "vectors": MATRIX}, InvalidId, "ids[2]"),
    ({"ids": np.array([1, 2, -3]), "vectors": MATRIX}, InvalidId, "ids[2]"),
    ({"ids": [1, True, 3], "vectors": MATRIX}, InvalidId, "ids[1]"),
    ({"ids": [1, 2.0, 3], "vectors": MATRIX}, InvalidId, "ids[1]"),
    ({"ids": ["", "a", "b"], "vectors": MATRIX}, InvalidId, "ids[0]"),
    ({"ids": ["x" * 129, "a", "b"], "vectors": MATRIX}, InvalidId, "ids[0]"),
    ({"ids": "abc", "vectors": MATRIX}, InvalidId, "ids"),
    ({"ids": 5, "vectors": MATRIX}, InvalidId, "ids"),
    ({"ids": {1, 2, 3}, "vectors": MATRIX}, InvalidArgument, "ids"),
    ({"ids": [1], "vectors": [1, 2, 3, 4]}, InvalidArgument, "vectors"),
    ({"records": [(1, [1, 2, 3, 4])], "ids": [1]}, InvalidArgument, "ids"),
    ({"records": "abc"}, InvalidArgument, "records"), ({"records": 5}, InvalidArgument, "records"),
    ({"records": {"id": 1}}, InvalidArgument, "records"), ({"records": MATRIX}, InvalidArgument, "records"),
    ({"records": [(1, [1, 2, 3, 4]), (2,)]}, InvalidArgument, "records[1]"),
    ({"records": [{"id": 1}]}, InvalidArgument, "records[0]"),
    ({"records": [{"id": 1, "vektor": [1, 2, 3, 4]}]}, InvalidArgument, "records[0]"),
    ({"records": [(1, [1, 2, 3, 4]), (2, [1, 2, 3])]}, DimensionMismatch, "vectors[1]"),
    ({"records": iter([(1, [1, 2, 3, 4]), (None, [1, 2, 3, 4])])}, InvalidId, "ids[1]"),
    ({"records": [(1, [1, 2, 3, 4], {"a": {1: 2}})]}, InvalidMetadata, "metadata[0].a"),
    ({"records": [], "batch_size": 0}, LimitExceeded, "batch_size"),
    ({"records": [], "batch_size": True}, InvalidArgument, "batch_size"),
    ({"records": [], "progress": 3}, InvalidArgument, "progress"),
    ({"records": [], "id_column": 3}, InvalidArgument, "id_column"),
    ({"records": [], "metadata_columns": "a"}, InvalidArgument, "metadata_columns"),
])
def test_refusals(docs: Collection, refused: Refused, arguments: dict, kind: type, argument: str) -> None:
    with refused(kind, argument):
        docs.upsert(**copy.deepcopy(arguments))  # an iterator is used up by the first of several runs


def test_a_late_fault_in_columns_or_lists_changes_nothing(docs: Collection, refused: Refused) -> None:
    bad = np.ones((50, 4))
    bad[43, 2] = np.nan
    with refused(NonFiniteVector, "vectors[43]"):
        docs.upsert(ids=range(50), vectors=bad, batch_size=10)
    with refused(NonFiniteVector, "vectors[43]"):
        docs.upsert(records=list(enumerate(bad)), batch_size=10)
    with refused(InvalidId, "ids[49]"):
        docs.upsert(ids=[*range(49), -1], vectors=np.ones((50, 4)), batch_size=10)


def test_a_late_fault_in_a_stream_says_what_was_applied(docs: Collection) -> None:
    bad = np.ones((50, 4))
    bad[43, 2] = np.nan
    with pytest.raises(NonFiniteVector, match=r"vectors\[43\]") as info:
        docs.upsert(((n + 100, row) for n, row in enumerate(bad)), batch_size=10)
    assert info.value.fields["rows_applied"] == 40
    assert "first 40 rows" in info.value.__notes__[0]
    assert docs.count() == 43

    def failing():
        yield (500, [1, 2, 3, 4])
        raise OSError("the source broke")

    with pytest.raises(OSError, match="broke") as broken:
        docs.upsert(failing(), batch_size=1)
    assert docs.get(500) is not None
    assert broken.value.__notes__


def test_nothing_is_no_error_for_iterables(docs: Collection, backend: MemoryBackend) -> None:
    before = backend.state()
    for nothing in ([], (), iter([])):
        assert docs.upsert(nothing).inserted == 0
    assert backend.state() == before


def test_the_input_is_not_changed_and_not_kept(empty: Collection, db: Database) -> None:
    raw = np.full((2, 4), 2.0, dtype=np.float32)
    rows = [{"a": [1]}, {}]
    cosine = db.create_collection("cosine", dim=4)
    for collection in (empty, cosine):
        collection.upsert(ids=[1, 2], vectors=raw, metadata=rows)
    raw[:] = 9
    rows[0]["a"].append(2)
    assert empty.get(1).vector.tolist() == [2, 2, 2, 2]
    assert cosine.get(1).vector.tolist() == [0.5] * 4
    assert empty.get(1).metadata == {"a": [1]}
