"""What is written comes back, aligned, read-only where mapped, whole or not at all."""

import mmap
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tests.faults import fill, needs_mount, remount, small_filesystem
from vecdb.core.errors import (
    DataCorrupted,
    FormatMismatch,
    InvalidArgument,
    StorageError,
    StorageFull,
    StorageReadOnly,
)
from vecdb.runtime.pool import KernelPool
from vecdb.segment.files import ArrayFile, StreamingWriter, write_arrays

DTYPES = ["bool", "u1", "i1", "<u2", "<i4", "<u8", "<i8", "<f2", "<f4", "<f8"]


def sample(dtype: str = "<f4", rows: int = 50_000, width: int = 16) -> np.ndarray:
    return np.arange(rows * width).reshape(rows, width).astype(dtype)


@settings(max_examples=40, deadline=None)
@given(arrays=st.dictionaries(st.text(max_size=8), st.sampled_from(DTYPES).flatmap(
    lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=1, max_dims=3, min_side=0, max_side=9))), max_size=4),
    meta=st.dictionaries(st.text(max_size=4), st.one_of(st.integers(-2**53, 2**53), st.text(max_size=4), st.none())))
def test_round_trip(tmp_path_factory: pytest.TempPathFactory, arrays: dict[str, np.ndarray],
                    meta: dict[str, Any]) -> None:
    path = tmp_path_factory.mktemp("round") / "a"
    size = write_arrays(path, "kind", arrays, meta)
    assert size == path.stat().st_size
    with ArrayFile.open(path, kind="kind") as file:
        assert (file.kind, file.meta, file.names) == ("kind", meta, tuple(arrays))
        for name, array in arrays.items():
            assert (file.shape(name), file.dtype(name), file.nbytes(name)) == (array.shape, array.dtype, array.nbytes)
            for got in (file.load(name), file.map(name)):
                assert (got.dtype, got.shape) == (array.dtype, array.shape)
                assert got.tobytes() == array.tobytes()


def test_mapped_rows_are_aligned_read_only_and_outlive_the_file(tmp_path: Path) -> None:
    rows = sample()
    write_arrays(tmp_path / "a", "k", {"one": np.arange(3, dtype=np.int8), "rows": rows})
    file = ArrayFile.open(tmp_path / "a")
    mapped = file.map("rows", random=True)
    assert mapped.ctypes.data % mmap.PAGESIZE == 0
    assert not mapped.flags.writeable
    assert mapped.flags.c_contiguous
    loaded = file.load("rows")
    assert loaded.flags.writeable
    file.close()
    (tmp_path / "a").unlink()
    assert np.array_equal(mapped, rows)
    assert np.array_equal(loaded, rows)
    with pytest.raises(StorageError, match="closed"):
        file.load("rows")
    with pytest.raises(StorageError, match="closed"):
        file.map("rows")


def test_streamed_equals_whole_whatever_the_chunks(tmp_path: Path) -> None:
    rows = sample(rows=60_000, width=12)
    write_arrays(tmp_path / "whole", "k", {"rows": rows, "n": np.arange(5)}, {"x": 1})
    for number, step in enumerate((7_919, 21_846, 60_000)):
        path = tmp_path / f"streamed{number}"
        with StreamingWriter(path, "k") as out:
            out.begin("rows", np.float32, (12,))
            for low in range(0, len(rows), step):
                out.append(rows[low:low + step])
            out.append(rows[:0])
            out.add("n", np.arange(5))
            out.finish({"x": 1})
        assert path.read_bytes() == (tmp_path / "whole").read_bytes()


def test_strided_and_big_endian_arrays_are_stored_plain(tmp_path: Path) -> None:
    rows = sample(width=32)
    write_arrays(tmp_path / "a", "k", {"strided": rows[::3, ::2], "fortran": np.asfortranarray(rows), "big":
                                       rows.astype(">f4")})
    with ArrayFile.open(tmp_path / "a") as file:
        assert np.array_equal(file.map("strided"), rows[::3, ::2])
        assert np.array_equal(file.map("fortran"), rows)
        assert np.array_equal(file.load("big"), rows)


def test_loading_into_given_memory_on_several_threads(tmp_path: Path) -> None:
    rows = np.random.default_rng(5).integers(0, 256, (70_001, 1024), dtype=np.uint8)  # 68 blocks: two tasks
    write_arrays(tmp_path / "a", "k", {"pad": np.arange(5000), "rows": rows})
    asked: list[tuple[tuple[int, ...], np.dtype[Any]]] = []

    def allocate(shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray:
        asked.append((shape, dtype))
        return np.full(shape, 7, dtype)

    with KernelPool(2) as pool, ArrayFile.open(tmp_path / "a", run=pool.run) as file:
        loaded = file.load("rows", allocate, run=pool.run)
        assert file.verify(run=pool.run) == []
    assert asked == [((70_001, 1024), np.dtype(np.uint8))]
    assert np.array_equal(loaded, rows)


@pytest.mark.parametrize("array", [np.array(["text"]), np.array([None]), np.zeros(2, "c8"), np.zeros(2, "M8[s]"),
                                   np.zeros(2, [("a", "i4")])], ids=lambda array: str(array.dtype))
def test_only_plain_numbers_are_stored(tmp_path: Path, array: np.ndarray) -> None:
    with pytest.raises(InvalidArgument, match="cannot be stored"):
        write_arrays(tmp_path / "a", "k", {"x": array})
    assert list(tmp_path.iterdir()) == []


def test_misuse_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    with StreamingWriter(tmp_path / "a", "k") as out:
        with pytest.raises(InvalidArgument, match="begun"):
            out.append(np.zeros(3))
        out.begin("x", np.float32, (4,))
        for wrong in (np.zeros((2, 5), np.float32), np.zeros((2, 4)), np.zeros(4, np.float32)):
            with pytest.raises(InvalidArgument, match="rows are"):
                out.append(wrong)
        with pytest.raises(InvalidArgument, match="already"):
            out.begin("x", np.float32)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(InvalidArgument, match="finished or aborted"):
        out.finish()


def test_an_unfinished_file_is_never_seen(tmp_path: Path) -> None:
    write_arrays(tmp_path / "a", "k", {"x": np.arange(3)})
    with StreamingWriter(tmp_path / "a", "k") as out:
        out.add("x", np.arange(100_000))
        assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "a.partial"]
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert np.array_equal(ArrayFile.open(tmp_path / "a").load("x"), np.arange(3))
    (tmp_path / "a.partial").write_bytes(b"left by a killed process")
    write_arrays(tmp_path / "a", "k", {"x": np.arange(4)})
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_names_and_kinds_are_checked(tmp_path: Path) -> None:
    write_arrays(tmp_path / "a", "graph", {"x": np.arange(3)})
    with pytest.raises(FormatMismatch, match="'graph'"):
        ArrayFile.open(tmp_path / "a", kind="vectors")
    with ArrayFile.open(tmp_path / "a") as file, pytest.raises(InvalidArgument, match="no array 'y'"):
        file.map("y")
    with pytest.raises(DataCorrupted, match="missing"):
        ArrayFile.open(tmp_path / "none")
    with pytest.raises(StorageError):
        write_arrays(tmp_path / "no folder" / "a", "k", {})


def test_files_do_not_leak_descriptors(tmp_path: Path) -> None:
    write_arrays(tmp_path / "a", "k", {"x": np.arange(3)})
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        ArrayFile.open(tmp_path / "a").load("x")
        with pytest.raises(FormatMismatch):
            ArrayFile.open(tmp_path / "a", kind="other")
    assert len(os.listdir("/proc/self/fd")) == before


@needs_mount
def test_full_and_read_only_disks(tmp_path: Path) -> None:
    with small_filesystem(tmp_path / "small", 4 << 20) as folder:
        write_arrays(folder / "a", "k", {"x": np.arange(1000)})
        with pytest.raises(StorageFull):
            write_arrays(folder / "b", "k", {"x": sample(rows=200_000)})
        assert [path.name for path in folder.iterdir()] == ["a"], "a refused file keeps its room"
        fill(folder)
        with pytest.raises(StorageFull):
            write_arrays(folder / "c", "k", {"x": np.arange(1000)})
        assert np.array_equal(ArrayFile.open(folder / "a").load("x"), np.arange(1000))
        remount(folder, read_only=True)
        with pytest.raises(StorageReadOnly):
            write_arrays(folder / "d", "k", {"x": np.arange(3)})
        assert np.array_equal(ArrayFile.open(folder / "a").load("x"), np.arange(1000))
        remount(folder, read_only=False)
