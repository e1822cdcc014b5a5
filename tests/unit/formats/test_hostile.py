"""Files nobody should have made: each is refused with the file and the row in the message."""

import contextlib
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vecdb.core.errors import InvalidArgument
from vecdb.core.schema import CollectionSchema
from vecdb.formats import SUFFIXES, SourceOptions, open_sink, open_source


def consume(path: Path, options: SourceOptions) -> None:
    source = open_source(path, options)
    try:
        for batch in source.batches():
            assert batch.vectors.shape[0] == len(batch.ids)
    finally:
        source.close()


def refused(path: Path, words: str, **options) -> InvalidArgument:
    with pytest.raises(InvalidArgument) as caught:
        consume(path, SourceOptions(**options))
    assert path.name in caught.value.message or any(str(v) in caught.value.message for v in options.values())
    assert words in caught.value.message
    return caught.value


def fvecs(*rows: list[float], width: int | None = None) -> bytes:
    return b"".join(struct.pack(f"<i{len(r)}f", len(r) if width is None else width, *r) for r in rows)


@pytest.mark.parametrize(("content", "words"), [
    (b"", "too few"),
    (b"\x01\x00", "too few"),
    (struct.pack("<i", -4) + b"\0" * 16, "-4 components"),
    (struct.pack("<i", 0), "0 components"),
    (struct.pack("<i", 2**31 - 1) + b"\0" * 16, "components"),
    (fvecs([1, 2], [3, 4])[:-3], "row 1: the file is cut off"),
    (fvecs([1, 2]) + fvecs([3, 4], width=3), "row 1: the row says 3"),
    (fvecs([1, 2], [float("nan"), 4]), "row 1: the vector holds NaN"),
    (fvecs([1, 2], [3, 4], [float("inf"), 4]), "row 2: the vector holds NaN"),
])
def test_fvecs(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "bad.fvecs"
    path.write_bytes(content)
    refused(path, words)


@pytest.mark.parametrize(("content", "words"), [
    ("", "holds no records"),
    ("\n\n", "holds no records"),
    ("[1, 2]\n", "line 1: a JSON object is wanted"),
    ('{"vector": [1, 2]}\nnot json\n', "line 2: not JSON"),
    ('{"vector": [1, 2]}\n{"vector": [1, 2, 3]}\n', "line 2: the vector has 3 components"),
    ('{"vector": [1, 2]}\n{"vector": [1, "2"]}\n', "line 2: a component is str"),
    ('{"vector": [1, true]}\n', "line 1: a component is bool"),
    ('{"vector": [1, 1e39]}\n', "beyond float32"),
    ('{"vector": [1, NaN]}\n', "line 1: not JSON"),
    ('{"vector": []}\n', "0 components"),
    ('{"vector": 3}\n', "must be a list"),
    ('{"id": 3}\n', "no vector"),
    ('{"id": -1, "vector": [1]}\n', "line 1: integer id -1"),
    ('{"id": 1.5, "vector": [1]}\n', "line 1: an id must be"),
    ('{"id": "", "vector": [1]}\n', "must not be empty"),
    ('{"id": null, "vector": [1]}\n', "an id must be"),
    ('{"vector": [1]}\n' + "[" * 100_000 + "\n", "line 2: not JSON"),
])
def test_jsonl(tmp_path: Path, content: str, words: str) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text(content)
    refused(path, words)


def test_jsonl_with_an_endless_line(tmp_path: Path) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_bytes(b'{"vector": [' + b"1," * 4_000_000)
    refused(path, "line 1: longer than")


def test_npy(tmp_path: Path) -> None:
    path = tmp_path / "bad.npy"
    path.write_bytes(b"not numpy")
    refused(path, "not a readable .npy")
    np.save(path, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    refused(path, "not a readable .npy")
    path.write_bytes(pickle.dumps({"a": 1}))
    refused(path, "not a readable .npy")
    np.save(path, np.zeros(4, np.float32))
    refused(path, "1 dimensions")
    np.save(path, np.zeros((4, 0), np.float32))
    refused(path, "0 components")
    np.save(path, np.zeros((4, 2), np.complex64))
    refused(path, "not numbers")
    np.save(path, np.array([["a", "b"]]))
    refused(path, "not numbers")
    rows = np.ones((30, 2), np.float32)
    rows[17, 1] = np.nan
    np.save(path, rows)
    assert refused(path, "row 17").fields["row"] == 17
    np.save(path, rows.astype(np.float64) * 1e300)
    refused(path, "row 0: the vector holds NaN or infinity, or a value beyond float32")
    whole = path.read_bytes()
    path.write_bytes(whole[:-40])
    refused(path, "not a readable .npy")
    np.savez(tmp_path / "bad.npz", a=rows)
    (tmp_path / "bad.npz").rename(path)
    refused(path, "archive")


def test_metadata_beside_that_does_not_fit(tmp_path: Path) -> None:
    path, beside = tmp_path / "v.npy", tmp_path / "m.jsonl"
    np.save(path, np.ones((3, 2), np.float32))
    beside.write_text("{}\n{}\n")
    refused(path, "ends after 2 records", metadata_path=beside)
    beside.write_text("{}\n" * 4)
    refused(path, "more records than the 3 vectors", metadata_path=beside)
    beside.write_text('{"id": 1}\n{}\n{"id": 3}\n')
    refused(path, "line 2: some lines have an id", metadata_path=beside)
    refused(path, "no such file", metadata_path=tmp_path / "none.jsonl")
    refused(beside, "holds its metadata itself", metadata_path=beside)


def test_hdf5(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    path = tmp_path / "bad.hdf5"

    def make(**content) -> None:
        attrs = content.pop("attrs", {})
        with h5py.File(path, "w") as file:
            for name, value in content.items():
                file[name] = value
            file.attrs.update(attrs)

    path.write_bytes(b"\x89HDF\r\n")
    refused(path, "not a readable HDF5")
    make(test=np.ones((2, 2)))
    refused(path, "no dataset 'train'; it has test")
    make(train=np.ones(4))
    refused(path, "2 dimensions are wanted")
    make(train=np.array([["a", "b"]], dtype=object))
    refused(path, "not numbers")
    make(train=np.ones((2, 2)), attrs={"distance": "jaccard"})
    refused(path, "its distance is 'jaccard'")
    make(train=np.ones((2, 3), bool), attrs={"distance": "hamming"})
    refused(path, "not whole bytes")
    make(train=np.array([[1.0, 2.0], [3.0, np.inf]], np.float32))
    refused(path, "row 1")
    make(train=np.ones((2, 2)), name=np.arange(3))
    refused(path, "'name' has 3 entries for 2", id_column="name")
    make(train=np.ones((2, 2)), id=np.array([4, -4]))
    refused(path, "row 1: integer id -4")
    with h5py.File(path, "w") as file:
        file.create_group("train")
    refused(path, "no dataset 'train'")


def test_parquet(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq
    path = tmp_path / "bad.parquet"

    def make(**columns) -> None:
        pq.write_table(pa.table(columns), path)

    path.write_bytes(b"PAR1 nothing PAR1")
    refused(path, "not a readable Parquet")
    make(id=[1, 2])
    refused(path, "0 columns could be the vector")
    make(a=[[1.0]], b=[[1.0]])
    refused(path, "2 columns could be the vector (a, b)")
    make(vector=[[1.0, 2.0], [1.0]])
    refused(path, "row 1: 'vector' has 1 components")
    make(vector=[[1.0, 2.0], None])
    refused(path, "row 1: 'vector' is null")
    make(vector=[[1.0, 2.0], [3.0, None]])
    refused(path, "row 1: a component of 'vector' is null")
    make(vector=[[1.0, 2.0], [3.0, float("nan")]])
    refused(path, "row 1: the vector holds NaN")
    make(vector=pa.array([], pa.list_(pa.float32())))
    refused(path, "holds no rows")
    make(vector=[[1.0, 2.0]], id=[-7])
    refused(path, "row 0: integer id -7")
    make(vector=[[1.0, 2.0]], id=[1.5])
    refused(path, "row 0: an id must be")
    make(vector=[[1.0, 2.0]], name=["x"])
    refused(path, "column 'name' is string, not a list", vector_column="name")
    refused(path, "no column 'nope'", id_column="nope")
    make(vector=[[1.0, 2.0]], blob=[b"\xff\xfe"])
    refused(path, "row 0: column 'blob'")


@pytest.mark.parametrize("suffix", SUFFIXES)
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=200))
def test_noise_is_read_or_refused_and_never_crashes(tmp_path: Path, suffix: str, content: bytes) -> None:
    path = tmp_path / f"noise{suffix}"
    path.write_bytes(content)
    with contextlib.suppress(InvalidArgument):
        consume(path, SourceOptions())


def test_names_and_places(tmp_path: Path) -> None:
    refused(tmp_path / "x.csv", "known are .hdf5")
    for suffix in SUFFIXES:
        refused(tmp_path / f"none{suffix}", "no such file")
        (tmp_path / f"dir{suffix}").mkdir()
        refused(tmp_path / f"dir{suffix}", "is a directory")
    with pytest.raises(InvalidArgument, match="its directory does not exist"):
        open_sink(tmp_path / "no" / "out.jsonl", CollectionSchema("c", 2))
    with pytest.raises(InvalidArgument, match="known are"):
        open_sink(tmp_path / "out.ivecs", CollectionSchema("c", 2))


@pytest.mark.parametrize("suffix", [".parquet", ".hdf5"])
def test_a_column_of_ids_has_one_kind(tmp_path: Path, suffix: str) -> None:
    sink = open_sink(tmp_path / f"out{suffix}", CollectionSchema("c", 2))
    with pytest.raises(InvalidArgument, match="one kind"):
        sink.write([1, "a"], np.ones((2, 2), np.float32), [{}] * 2)
    sink.write([1], np.ones((1, 2), np.float32), [{}])
    with pytest.raises(InvalidArgument, match="one kind"):
        sink.write(["a"], np.ones((1, 2), np.float32), [{}])
    sink.abort()


@pytest.mark.parametrize(("said", "words"), [
    ('{"name": "c", "dim": 5, "metric": "l2", "vector_type": "float32"}', "it is of another file"),
    ('{"name": "c", "dim": 32, "metric": "l2", "vector_type": "binary"}', "hamming"),
    ('{"name": "c", "dim": 4, "metric": "manhattan", "vector_type": "float32"}', "manhattan"),
    ('{"name": "c", "dim": "4", "metric": "l2", "vector_type": "float32"}', "integer"),
    ('{"dim": 4}', "cannot be understood"), ("[]", "cannot be understood"), ("[" * 9_000, "cannot be understood"),
    ("", "cannot be understood"), ('{"name": null}', "cannot be understood"),
])
def test_what_stands_beside_a_file_is_checked(tmp_path: Path, said: str, words: str) -> None:
    np.save(tmp_path / "v.npy", np.ones((3, 4), np.float32))
    (tmp_path / "v.npy.vecdb.json").write_text(said)
    assert "v.npy.vecdb.json" in refused(tmp_path / "v.npy", words).message


def test_bits_must_be_bytes(tmp_path: Path) -> None:
    np.save(tmp_path / "v.npy", np.array([[1, 255], [1, 256]], np.float32))
    (tmp_path / "v.npy.vecdb.json").write_text('{"name": "c", "dim": 16, "metric": "hamming", "vector_type": "binary"}')
    assert refused(tmp_path / "v.npy", "no byte").fields["row"] == 1
