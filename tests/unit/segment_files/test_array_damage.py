"""Damage is found wherever it is, named with its place, and costs only the rows it touched."""

import copy
import random
from pathlib import Path

import numpy as np
import pytest
import xxhash

from tests.faults import flip_byte, run_python, truncate, unreadable, zero_bytes
from vecdb.core.errors import DataCorrupted, FormatMismatch, VecdbError
from vecdb.segment.files import ArrayFile, write_arrays
from vecdb.segment.files.layout import BLOCK_BYTES, PAGE_BYTES

SEED = 77
ROWS, WIDTH = 30_000, 32  # 3.7 MiB of float32: four blocks and a bit


@pytest.fixture
def path(tmp_path: Path) -> Path:
    rows = np.random.default_rng(SEED).standard_normal((ROWS, WIDTH)).astype(np.float32)
    write_arrays(tmp_path / "a", "vectors", {"rows": rows, "ids": np.arange(ROWS)}, {"count": ROWS})
    return tmp_path / "a"


def test_every_flipped_byte_is_found(path: Path) -> None:
    size = path.stat().st_size
    places = [*range(0, 64, 3), PAGE_BYTES - 1, PAGE_BYTES, size - 1, *range(size - 400, size, 37),
              *random.Random(SEED).sample(range(size), 40)]
    for place in places:
        flip_byte(path, place)
        with pytest.raises(DataCorrupted) as caught:
            ArrayFile.open(path)
        fields = caught.value.fields
        print(f"seed {SEED}: byte {place}: {caught.value}")
        assert fields["path"] == str(path)
        assert fields["region"] in ("header", "directory", "block table", "payload")
        assert any(low <= place < high for low, high in fields["ranges"]), f"byte {place} is not in {fields['ranges']}"
        flip_byte(path, place)
    assert ArrayFile.open(path).verify() == []


def test_a_flipped_byte_costs_the_rows_of_its_block(path: Path) -> None:
    with ArrayFile.open(path) as file:
        rows, ids = file.load("rows"), file.load("ids")
    flip_byte(path, PAGE_BYTES + BLOCK_BYTES + 5)
    with ArrayFile.open(path, verify=False) as file:
        assert file.verify() == [(PAGE_BYTES + BLOCK_BYTES, PAGE_BYTES + 2 * BLOCK_BYTES)]
        bad = file.bad_rows("rows")
        row_bytes = WIDTH * 4
        assert bad.tolist() == list(range(BLOCK_BYTES // row_bytes, 2 * BLOCK_BYTES // row_bytes))
        assert file.bad_rows("ids").tolist() == []
        with pytest.raises(DataCorrupted) as caught:
            file.load("rows")
        assert caught.value.fields["ranges"] == ((PAGE_BYTES + BLOCK_BYTES, PAGE_BYTES + 2 * BLOCK_BYTES),)
        assert np.array_equal(file.load("ids"), ids)
        good = np.setdiff1d(np.arange(ROWS), bad)
        assert np.array_equal(file.map("rows")[good], rows[good])
        with pytest.raises(DataCorrupted):
            file.check()


def test_a_block_two_arrays_share_spoils_rows_of_both(path: Path) -> None:
    with ArrayFile.open(path) as file:
        boundary = file._entry("ids").offset
        rows_bytes = file.nbytes("rows")
    flip_byte(path, boundary)
    with ArrayFile.open(path, verify=False) as file:
        ((low, high),) = file.verify()
        assert low < boundary < high
        row_bytes = WIDTH * 4
        assert file.bad_rows("rows").tolist() == list(range((low - PAGE_BYTES) // row_bytes, rows_bytes // row_bytes))
        assert file.bad_rows("ids").tolist() == list(range(min(ROWS, -(-(high - boundary) // 8))))


def test_rows_across_a_block_border_belong_to_both(tmp_path: Path) -> None:
    rows = np.zeros((3000, 1000), np.uint8)
    write_arrays(tmp_path / "a", "k", {"rows": rows})
    flip_byte(tmp_path / "a", PAGE_BYTES)
    with ArrayFile.open(tmp_path / "a", verify=False) as file:
        assert file.bad_rows("rows").tolist() == list(range(1049))  # 1 MiB is 1048.576 rows
    flip_byte(tmp_path / "a", PAGE_BYTES)
    flip_byte(tmp_path / "a", PAGE_BYTES + BLOCK_BYTES)
    with ArrayFile.open(tmp_path / "a", verify=False) as file:
        assert file.bad_rows("rows").tolist() == list(range(1048, 2098))


def test_a_lost_page_is_found(path: Path) -> None:
    zero_bytes(path, PAGE_BYTES + 3 * 4096, 4096)
    with pytest.raises(DataCorrupted, match="payload, bytes 4096 to"):
        ArrayFile.open(path)


@pytest.mark.parametrize("size", [0, 1, 63, PAGE_BYTES - 1, PAGE_BYTES, PAGE_BYTES + 1, -1, -100, -2_000_000])
def test_a_file_cut_short_is_never_mapped(path: Path, size: int) -> None:
    truncate(path, size)
    for verify in (True, False):
        with pytest.raises(DataCorrupted) as caught:
            ArrayFile.open(path, verify=verify)
        assert caught.value.fields["region"] in ("header", "end")


def test_bytes_added_at_the_end_are_noticed(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"more")
    with pytest.raises(DataCorrupted, match="its end"):
        ArrayFile.open(path)


def reseal(path: Path, change: bytes, at: int) -> None:
    """Change the first page and give it the hash that goes with it: another writer's work, not damage."""
    page = bytearray(path.read_bytes()[:PAGE_BYTES])
    page[at:at + len(change)] = change
    page[-8:] = xxhash.xxh3_64_intdigest(bytes(page[:-8])).to_bytes(8, "little")
    with path.open("r+b") as file:
        file.write(page)


def test_another_format_is_not_called_damage(path: Path, tmp_path: Path) -> None:
    (tmp_path / "other").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(10_000))
    with pytest.raises(FormatMismatch, match="no array file"):
        ArrayFile.open(tmp_path / "other")
    reseal(path, (2).to_bytes(4, "little"), 8)
    with pytest.raises(FormatMismatch, match="version 2; this version reads 1") as caught:
        ArrayFile.open(path)
    assert caught.value.fields["version"] == 2


def test_random_bytes_never_crash(tmp_path: Path) -> None:
    noise = random.Random(SEED)
    path = tmp_path / "noise"
    for _ in range(200):
        path.write_bytes(noise.randbytes(noise.choice([0, 1, 100, 4096, 4097, 9000])))
        with pytest.raises((DataCorrupted, FormatMismatch)):
            ArrayFile.open(path)


@pytest.mark.parametrize("directory", [
    b"[]", b"{}", b"null", b'{"kind":"k","arrays":[{}],"meta":{}}', b"\xff",
    b'{"kind":"k","arrays":[{"name":"x","dtype":"O","shape":[1],"offset":4096}],"meta":{}}',
    b'{"kind":"k","arrays":[{"name":"x","dtype":"<f4","shape":[-1],"offset":4096}],"meta":{}}',
    b'{"kind":"k","arrays":[{"name":"x","dtype":"<f4","shape":[9999999999],"offset":4096}],"meta":{}}',
    b'{"kind":"k","arrays":[{"name":"x","dtype":"<f4","shape":[1],"offset":0}],"meta":{}}',
    b'{"kind":"k","arrays":[{"name":"x","dtype":"<f4","shape":[1],"offset":4097}],"meta":{}}',
])
def test_a_directory_that_makes_no_sense_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                    directory: bytes) -> None:
    monkeypatch.setattr("vecdb.segment.files.writer.pack_directory", lambda _: directory)
    write_arrays(tmp_path / "a", "k", {"x": np.arange(3, dtype=np.float32)})
    with pytest.raises(FormatMismatch, match="directory"):
        ArrayFile.open(tmp_path / "a")


def test_a_medium_that_cannot_be_read_is_damage_of_its_block(path: Path) -> None:
    want = ArrayFile.open(path).load("rows")
    row_bytes = WIDTH * 4
    with unreadable(path, PAGE_BYTES + BLOCK_BYTES + 5_000), ArrayFile.open(path, verify=False) as file:
        for use in (file.check, lambda: file.load("rows")):
            with pytest.raises(DataCorrupted, match=f"bytes {PAGE_BYTES + BLOCK_BYTES} to"):
                use()
        bad = file.bad_rows("rows")
        assert bad.tolist() == list(range(BLOCK_BYTES // row_bytes, 2 * BLOCK_BYTES // row_bytes))
        assert file.bad_rows("ids").tolist() == []
        rows, lost = file.salvage("rows")
        assert lost.tolist() == bad.tolist()
        want[bad] = 0
        assert np.array_equal(rows, want)
    with unreadable(path, 100), pytest.raises(DataCorrupted, match="Input/output error"):
        ArrayFile.open(path)


def test_blanked_blocks_are_zero_where_they_are_mapped(path: Path) -> None:
    want = ArrayFile.open(path).load("rows")
    flip_byte(path, PAGE_BYTES + BLOCK_BYTES + 5_000)
    with ArrayFile.open(path, verify=False) as file:
        bad = file.blank("rows")
        assert len(bad) == BLOCK_BYTES // (WIDTH * 4)
        want[bad] = 0
        assert np.array_equal(file.map("rows"), want)
        assert np.array_equal(file.map("ids"), np.arange(ROWS))
        assert file.blank("ids").tolist() == []


def test_cut_short_after_opening_is_an_error_not_a_signal(path: Path) -> None:
    code = """
import os, sys
from vecdb.core.errors import DataCorrupted
from vecdb.segment.files import ArrayFile
file = ArrayFile.open(sys.argv[1])
os.truncate(sys.argv[1], 5000)
for use in (file.verify, lambda: file.load("rows"), lambda: file.map("rows")):
    try:
        use()
        print("no error")
    except DataCorrupted as error:
        print(error.fields["region"])
"""
    assert run_python(code, path).split() == ["end"] * 3


def test_errors_survive_a_process_border(path: Path) -> None:
    flip_byte(path, PAGE_BYTES)
    with pytest.raises(VecdbError) as caught:
        ArrayFile.open(path)
    twin = copy.copy(caught.value)
    assert (type(twin), str(twin), twin.fields) == (type(caught.value), str(caught.value), caught.value.fields)
