"""pyarrow tables and pandas frames."""

import datetime as dt
import decimal

import numpy as np
import pytest

from tests.unit.client.conftest import Refused
from vecdb.client.collection import Collection
from vecdb.client.database import Database
from vecdb.core.errors import DimensionMismatch, InvalidArgument, InvalidId, InvalidMetadata, NonFiniteVector

pa = pytest.importorskip("pyarrow")
pd = pytest.importorskip("pandas")

MATRIX = np.arange(20, dtype=np.float32).reshape(5, 4)
WHEN = dt.datetime(2024, 5, 1, 12, 30)


@pytest.fixture
def empty(db: Database) -> Collection:
    return db.create_collection("empty", dim=4, metric="l2")


def fixed(rows: np.ndarray = MATRIX) -> "pa.Array":
    return pa.FixedSizeListArray.from_arrays(pa.array(rows.ravel()), rows.shape[1])


def table(vectors: object = None, ids: object = None) -> "pa.Table":
    return pa.table({"id": ids or ["a", "b", "c", "d", "e"], "vector": fixed() if vectors is None else vectors,
                     "n": [1, 2, None, 4, 5], "tags": [["x"], [], None, ["y", "z"], ["x"]], "when": [WHEN] * 5,
                     "price": [decimal.Decimal("1.5")] * 5})


WANTED = [{"n": 1, "tags": ["x"]}, {"n": 2, "tags": []}, {}, {"n": 4, "tags": ["y", "z"]}, {"n": 5, "tags": ["x"]}]


def check(docs: Collection, ids: list) -> None:
    # By id: a server is sent several batches at once, and their order is nobody's promise.
    found = sorted(docs.scan(include=["metadata", "vector"]), key=lambda record: ids.index(record.id))
    assert [record.id for record in found] == ids
    np.testing.assert_array_equal(np.stack([record.vector for record in found]), MATRIX)
    assert [{k: v for k, v in record.metadata.items() if k in ("n", "tags")} for record in found] == WANTED
    assert all(record.metadata["when"].startswith("2024-05-01T12:30:00") for record in found)
    assert {record.metadata["price"] for record in found} == {1.5}


FORMS = ["table", "batch", "reader", "chunked", "list", "large_list", "double", "sliced", "ns"]


@pytest.mark.parametrize("form", FORMS)
def test_arrow(empty: Collection, form: str) -> None:
    rows = {"list": lambda: pa.array(MATRIX.tolist(), pa.list_(pa.float32())),
            "large_list": lambda: pa.array(MATRIX.tolist(), pa.large_list(pa.float64())),
            "double": lambda: fixed(MATRIX.astype(np.float64))}.get(form, fixed)()
    value = table(rows)
    if form == "batch":
        value = value.to_batches()[0]
    elif form == "reader":
        value = value.to_reader(max_chunksize=2)
    elif form == "chunked":
        value = pa.concat_tables([value.slice(0, 2), value.slice(2)])
    elif form == "sliced":
        value = pa.concat_tables([value, value]).slice(5, 5)
    elif form == "ns":
        value = value.set_column(4, "when", value["when"].cast(pa.timestamp("ns")))
    assert empty.upsert(value, batch_size=2).inserted == 5
    check(empty, ["a", "b", "c", "d", "e"])


def test_integer_ids_and_named_columns(empty: Collection) -> None:
    value = table(ids=[5, 6, 7, 8, 9]).rename_columns(["key", "embedding", "n", "tags", "when", "price"])
    empty.upsert(value, id_column="key", vector_column="embedding", metadata_columns=["n"])
    assert [(record.id, record.metadata) for record in empty.scan()] == [
        (5, {"n": 1}), (6, {"n": 2}), (7, {}), (8, {"n": 4}), (9, {"n": 5})]
    empty.upsert(records=value, id_column="key", vector_column="embedding", metadata_columns=[])
    assert [record.metadata for record in empty.scan()] == [{}] * 5


def test_pandas(empty: Collection) -> None:
    frame = pd.DataFrame({"id": list("abcde"), "vector": list(MATRIX), "n": pd.array([1, 2, None, 4, 5], dtype="Int64"),
                          "tags": [["x"], [], None, ["y", "z"], ["x"]], "when": pd.to_datetime([WHEN] * 5),
                          "price": [1.5] * 5, "nan": [np.nan] * 5, "nat": [pd.NaT] * 5})
    empty.upsert(frame, batch_size=2)
    check(empty, list("abcde"))
    assert "nan" not in empty.get("a").metadata
    assert "nat" not in empty.get("a").metadata


def test_columns_of_tables(empty: Collection) -> None:
    frame = pd.DataFrame({"id": range(5), "vector": list(MATRIX), "n": [1, 2, 3, 4, 5]})
    empty.upsert(ids=frame["id"], vectors=frame["vector"], metadata=frame[["n"]])
    arrow = table()
    empty.upsert(ids=arrow["id"], vectors=arrow["vector"], metadata=arrow.select(["n"]))
    assert len(empty) == 10
    assert empty.get("a").vector.tolist() == empty.get(0).vector.tolist() == MATRIX[0].tolist()
    assert empty.get("e").metadata == empty.get(4).metadata == {"n": 5}


def test_binary_columns(db: Database) -> None:
    docs = db.create_collection("bits", dim=16, metric="hamming", vector_type="binary")
    docs.upsert(pa.table({"id": [1, 2], "vector": pa.array([b"\x01\x02", b"\xff\x00"], pa.binary(2))}))
    assert docs.get(2).vector.tolist() == [255, 0]


def test_empty_tables_do_nothing(empty: Collection) -> None:
    assert empty.upsert(table().slice(0, 0)).inserted == 0
    assert empty.upsert(table().slice(0, 0).to_pandas()).inserted == 0


def nulls() -> "pa.Array":
    return pa.array([[1, 2, 3, 4], None, [1, 2, 3, 4], [1, 2, 3, 4], [1, 2, 3, 4]], pa.list_(pa.float32(), 4))


@pytest.mark.parametrize(("value", "arguments", "kind", "argument"), [
    (lambda: table(nulls()), {}, NonFiniteVector, "vectors[1]"),
    (lambda: table(nulls()).slice(1), {"batch_size": 1}, NonFiniteVector, "vectors[0]"),
    (lambda: table(pa.array([[1, 2, 3, 4]] * 4 + [[1, None, 3, 4]], pa.list_(pa.float32(), 4))), {}, NonFiniteVector,
     "vectors[4]"),
    (lambda: table(pa.array([[1, 2, 3, 4]] * 4 + [[1, 2]])), {}, DimensionMismatch, "vectors[4]"),
    (lambda: table(fixed(MATRIX.reshape(5, 2, 2)[:, 0])), {}, DimensionMismatch, "vectors"),
    (lambda: table(pa.array(["x"] * 5)), {}, InvalidArgument, "vectors"),
    (lambda: table(pa.array([["x"]] * 5)), {}, InvalidArgument, "vectors"),
    (lambda: table(ids=["a", None, "c", "d", "e"]), {"batch_size": 1}, InvalidId, "ids[1]"),
    (lambda: table(ids=[1, 2, -3, 4, 5]), {"batch_size": 2}, InvalidId, "ids[2]"),
    (lambda: table(ids=[1.0, 2, 3, 4, 5]), {}, InvalidId, "ids[0]"),
    (lambda: table(), {"id_column": "ids"}, InvalidArgument, "id_column"),
    (lambda: table(), {"vector_column": "vectors"}, InvalidArgument, "vector_column"),
    (lambda: table(), {"metadata_columns": ["nn"]}, InvalidArgument, "metadata_columns"),
    (lambda: table().append_column("n", pa.array([1] * 5)), {}, InvalidArgument, "records"),
    (lambda: table().append_column("x", pa.array([np.nan] * 5)), {}, InvalidMetadata, "metadata[0].x"),
    (lambda: table().append_column("x", pa.array([b"x"] * 5)), {}, InvalidMetadata, "metadata[0].x"),
    (lambda: pd.DataFrame({"id": [1, 2], "vector": [[1, 2, 3, 4], [1, 2, 3]]}), {}, DimensionMismatch, "vectors[1]"),
    (lambda: pd.DataFrame({"id": [1, 2], "vector": [[1, 2, 3, 4], None]}), {}, InvalidArgument, "vectors"),
    (lambda: pd.DataFrame({"id": [1, None], "vector": [[1, 2, 3, 4]] * 2}), {}, InvalidId, "ids[0]"),
    (lambda: pd.DataFrame({"id": [1], "vector": [[1, 2, 3, 4]], 7: [1]}), {}, InvalidArgument, "records"),
])
def test_refusals(docs: Collection, refused: Refused, value, arguments: dict, kind: type, argument: str) -> None:
    with refused(kind, argument):
        docs.upsert(value(), **arguments)
