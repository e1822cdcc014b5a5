"""What a sink writes, a source reads back: ids, vectors bit for bit, metadata as objects."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vecdb.core.schema import CollectionSchema, Metric, VectorType
from vecdb.formats import SourceOptions, open_sink, open_source

_SETTINGS = settings(max_examples=25, deadline=None,
                     suppress_health_check=[HealthCheck.function_scoped_fixture])

json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-2**53, 2**53) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3), max_leaves=6)
# Keys at the top that mean something else in a line of JSON are the file's own words.
keys = st.text(min_size=1, max_size=6).filter(lambda key: key != "metadata")
metadatas = st.dictionaries(keys, json_values, max_size=4)


@st.composite
def records(draw, dtype):
    count = draw(st.integers(1, 12))
    if draw(st.booleans()):
        ids = draw(st.lists(st.integers(0, 2**63 - 1), min_size=count, max_size=count))
    else:
        ids = draw(st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1,
                                    max_size=20), min_size=count, max_size=count))
    seed = draw(st.integers(0, 2**32 - 1))
    rng = np.random.default_rng(seed)
    raw = rng.normal(size=(count, 8)) * 50
    vectors = raw.astype(dtype) if dtype != "uint8" else rng.integers(0, 256, (count, 8)).astype(np.uint8)
    return ids, vectors, draw(st.lists(metadatas, min_size=count, max_size=count))


def schema_of(dtype: str) -> CollectionSchema:
    return CollectionSchema("c", 8, Metric.L2, VectorType(dtype))


def read_all(source, size):
    ids, vectors, metadata = [], [], []
    first = 0
    for batch in source.batches(size):
        assert batch.first_row == first
        first += len(batch)
        ids += batch.ids.tolist() if isinstance(batch.ids, np.ndarray) else batch.ids
        vectors.append(batch.vectors)
        metadata += batch.metadata
    source.close()
    return ids, np.concatenate(vectors), metadata


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet", ".hdf5", ".npy", ".fvecs"])
@_SETTINGS
@given(data=st.data(), size=st.integers(1, 13), cut=st.integers(0, 12))
def test_every_format_gives_back_what_it_was_given(tmp_path: Path, suffix: str, data, size: int, cut: int) -> None:
    ids, vectors, metadata = data.draw(records("float32"))
    path = tmp_path / f"out{suffix}"
    sink = open_sink(path, schema_of("float32"))
    for part in (slice(0, cut), slice(cut, None)):
        if ids[part]:
            sink.write(ids[part], vectors[part], metadata[part])
    sink.close()
    beside = path.with_suffix(".jsonl") if suffix in (".npy", ".fvecs") else None
    source = open_source(path, SourceOptions(metadata_path=beside))
    assert source.dim == 8
    assert source.rows in (None, len(ids))
    got_ids, got_vectors, got_metadata = read_all(source, size)
    assert got_ids == ids
    np.testing.assert_array_equal(got_vectors, vectors)
    assert got_metadata == metadata


@pytest.mark.parametrize("suffix", [".parquet", ".hdf5", ".npy"])
@pytest.mark.parametrize("dtype", ["float16", "int8", "uint8"])
def test_narrow_vectors_keep_their_type(tmp_path: Path, suffix: str, dtype: str) -> None:
    vectors = np.arange(32).reshape(4, 8).astype(dtype)
    path = tmp_path / f"out{suffix}"
    sink = open_sink(path, schema_of(dtype))
    sink.write([1, 2, 3, 4], vectors, [{}] * 4)
    sink.close()
    source = open_source(path)
    (batch,) = source.batches()
    source.close()
    assert batch.vectors.dtype == np.dtype(dtype)
    np.testing.assert_array_equal(batch.vectors, vectors)


def test_bits_are_packed_from_bools_and_stay_packed(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    bits = np.random.default_rng(3).integers(0, 2, (5, 16)).astype(bool)
    with h5py.File(tmp_path / "in.hdf5", "w") as file:
        file["train"] = bits
        file.attrs["distance"] = "hamming"
    source = open_source(tmp_path / "in.hdf5")
    assert (source.dim, source.metric, source.vector_type) == (16, "hamming", "binary")
    (batch,) = source.batches()
    np.testing.assert_array_equal(np.unpackbits(batch.vectors, axis=1), bits)
    source.close()
    sink = open_sink(tmp_path / "out.hdf5", CollectionSchema("c", 16, Metric.HAMMING, VectorType.BINARY))
    sink.write(list(range(5)), batch.vectors, [{}] * 5)
    sink.close()
    again = open_source(tmp_path / "out.hdf5")
    assert (again.dim, again.vector_type) == (16, "binary")
    (copy,) = again.batches()
    np.testing.assert_array_equal(copy.vectors, batch.vectors)
    again.close()


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet", ".hdf5", ".npy", ".fvecs"])
@pytest.mark.parametrize(("metric", "vector_type"), [("l2", "float32"), ("dot", "float16"), ("cosine", "int8"),
                                                     ("l2", "uint8"), ("hamming", "binary")])
def test_metric_and_vector_type_travel_with_the_file(tmp_path: Path, suffix: str, metric: str,
                                                     vector_type: str) -> None:
    schema = CollectionSchema("c", 16, Metric(metric), VectorType(vector_type))
    dtype = np.uint8 if vector_type == "binary" else vector_type
    vectors = np.arange(3 * schema.row_items).reshape(3, -1).astype(dtype)
    sink = open_sink(tmp_path / f"out{suffix}", schema)
    sink.write([1, 2, 3], vectors, [{}] * 3)
    sink.close()
    source = open_source(tmp_path / f"out{suffix}")
    assert (source.metric, source.vector_type, source.dim) == (metric, vector_type, 16)
    (batch,) = source.batches()
    source.close()
    np.testing.assert_array_equal(batch.vectors, vectors)
    if vector_type == "binary":
        assert batch.vectors.dtype == np.uint8


def test_a_table_cut_to_another_width_says_nothing_of_its_metric(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq
    path = tmp_path / "out.parquet"
    sink = open_sink(path, schema_of("float32"))
    sink.write([1], np.ones((1, 8), np.float32), [{}])
    sink.close()
    table = pq.read_table(path)
    cut = pa.FixedSizeListArray.from_arrays(pa.array(np.ones(4, np.float32)), 4)
    pq.write_table(table.set_column(1, "vector", cut).replace_schema_metadata(table.schema.metadata), path)
    source = open_source(path)
    assert (source.metric, source.dim) == (None, 4)
    source.close()


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet", ".hdf5", ".npy"])
def test_an_aborted_file_leaves_nothing(tmp_path: Path, suffix: str) -> None:
    sink = open_sink(tmp_path / f"out{suffix}", schema_of("float32"))
    sink.write([1], np.ones((1, 8), np.float32), [{"a": 1}])
    sink.abort()
    assert list(tmp_path.iterdir()) == []


def test_a_file_is_under_its_name_only_when_whole(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    path.write_text("old\n")
    sink = open_sink(path, schema_of("float32"))
    sink.write([1], np.ones((1, 8), np.float32), [{}])
    assert path.read_text() == "old\n"
    sink.close()
    assert path.read_text().startswith('{"id":1,')


def test_ann_benchmarks_columns_become_metadata(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "in.hdf5", "w") as file:
        file["train"] = np.ones((3, 4), np.float64)
        file["test"] = np.ones((3, 4), np.float32)
        file["train_words"] = np.array(["a", "b", "ü"], dtype=object)
        file["test_words"] = np.array(["x", "y", "z"], dtype=object)
        file["label"] = np.array([1.5, np.nan, 2.0])
        file["other"] = np.arange(7)
        file.attrs["distance"] = "angular"
    source = open_source(tmp_path / "in.hdf5")
    assert (source.metric, source.rows, source.dim) == ("cosine", 3, 4)
    (batch,) = source.batches()
    source.close()
    assert batch.metadata == [{"label": 1.5, "words": "a"}, {"words": "b"}, {"label": 2.0, "words": "ü"}]
    assert batch.ids.tolist() == [0, 1, 2]
    assert batch.vectors.dtype == np.float32


def test_parquet_columns_of_any_type_become_json(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    from datetime import UTC, date, datetime
    from decimal import Decimal

    import pyarrow.parquet as pq
    table = pa.table({
        "key": ["a", "b"], "embedding": [[1.0, 2.0], [3.0, 4.0]],
        "at": [datetime(2024, 5, 6, 7, 8, 9, tzinfo=UTC), None], "day": [date(2024, 1, 2), date(2025, 1, 2)],
        "price": [Decimal("1.50"), Decimal("2.25")], "tags": [["x", "y"], []], "deep": [{"n": 1}, {"n": 2}]})
    pq.write_table(table, tmp_path / "in.parquet")
    source = open_source(tmp_path / "in.parquet", SourceOptions(id_column="key"))
    (batch,) = source.batches()
    source.close()
    assert batch.ids == ["a", "b"]
    assert batch.metadata[0] == {"at": "2024-05-06T07:08:09Z", "day": "2024-01-02T00:00:00Z", "price": 1.5,
                                 "tags": ["x", "y"], "deep": {"n": 1}}
    assert "at" not in batch.metadata[1]


def test_jsonl_takes_metadata_beside_the_vector_or_nested(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_text('\ufeff{"id": "a", "vector": [1, 2], "year": 1999, "metadata": {"lang": "en"}}\n\n'
                    '{"vector": [3, 4.5], "gone": null}\n')
    (batch,) = open_source(path).batches()
    assert batch.ids == ["a", 1]
    assert batch.metadata == [{"year": 1999, "lang": "en"}, {"gone": None}]
    np.testing.assert_array_equal(batch.vectors, np.array([[1, 2], [3, 4.5]], np.float32))
