"""Folders and buckets are one port: the same tests for both."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.objects_server import SECRET, make_bucket, s3_server
from vecdb.core.backups import check_snapshot_name, parse_place
from vecdb.core.errors import DataCorrupted, InvalidArgument, StorageError, VecdbError
from vecdb.ports.objects import Objects
from vecdb.storage.objects import PART_BYTES, PARTIAL, ObjectAccess, open_objects


@pytest.fixture(scope="module")
def access() -> Iterator[ObjectAccess]:
    with s3_server() as found:
        make_bucket(found, "vecdb-objects")
        yield found


@pytest.fixture(params=["file", "s3"])
def objects(request: pytest.FixtureRequest, tmp_path: Path) -> Objects:
    if request.param == "file":
        return open_objects(f"file://{tmp_path}/place")
    return open_objects(f"s3://vecdb-objects/{tmp_path.name}", request.getfixturevalue("access"))


def test_what_is_put_is_there(objects: Objects) -> None:
    assert objects.get("a/b") is None
    assert objects.stat("a/b") is None
    assert objects.put("a/b", b"hello")
    assert objects.get("a/b") == b"hello"
    assert objects.put("a/b", b"hello again")
    assert objects.get("a/b") == b"hello again"
    found = objects.stat("a/b")
    assert found is not None
    assert (found.key, found.bytes) == ("a/b", 11)
    assert found.modified_s > 0


def test_of_two_that_make_the_same_one_wins(objects: Objects) -> None:
    assert objects.put("one", b"first", new=True)
    assert not objects.put("one", b"second", new=True)
    assert objects.get("one") == b"first"


def test_ranges(objects: Objects) -> None:
    objects.put("ten", b"0123456789")
    assert objects.read("ten", 3, 4) == b"3456"
    assert objects.read("ten", 8, 100) == b"89"
    with pytest.raises(DataCorrupted, match="missing"):
        objects.read("eleven", 0, 1)


def test_lists_and_deletes(objects: Objects) -> None:
    keys = {f"set/{number % 7}/{number}" for number in range(40)}
    for key in keys:
        objects.put(key, key.encode())
    objects.put("other", b"")
    assert {one.key for one in objects.list("set/")} == keys
    assert {one.key for one in objects.list("")} == {*keys, "other"}
    assert [*objects.list("nothing/")] == []
    gone = {key for key in keys if key.startswith("set/3/")}
    objects.delete([*gone, "set/3/never-was"])
    assert {one.key for one in objects.list("set/")} == keys - gone
    assert {one.bytes for one in objects.list("other/")} == set()


def test_large_objects_go_in_parts(objects: Objects) -> None:
    pieces = [os.urandom(1 << 20) for _ in range(2 * (PART_BYTES >> 20) + 1)]
    size = sum(map(len, pieces))
    objects.upload("large", iter(pieces), size)
    found = objects.stat("large")
    assert found is not None
    assert found.bytes == size
    assert objects.read("large", PART_BYTES - 5, 10) == b"".join(pieces)[PART_BYTES - 5 : PART_BYTES + 5]
    assert objects.get("large") == b"".join(pieces)


@pytest.mark.parametrize("size", [3, 3 * PART_BYTES])
def test_an_upload_that_fails_leaves_nothing(objects: Objects, size: int) -> None:
    def broken() -> Iterator[bytes]:
        for _ in range(3):
            yield bytes(size // 3)
        raise DataCorrupted("the source is damaged", path="source")

    with pytest.raises(DataCorrupted, match="the source is damaged"):
        objects.upload("half", broken(), size)
    with pytest.raises(DataCorrupted, match="should have"):
        objects.upload("half", [bytes(size)], size + 1)
    assert objects.stat("half") is None
    assert [*objects.list("")] == []


def test_keys_stay_below_the_place(objects: Objects) -> None:
    for key in ("../out", "a/../../out", "/etc/passwd", "a//b", "", PARTIAL, "ä"):
        with pytest.raises(InvalidArgument):
            objects.put(key, b"")


def test_a_folder_forgets_what_killed_writers_left(tmp_path: Path) -> None:
    place = tmp_path / "place"
    (place / PARTIAL).mkdir(parents=True)
    for name, when in (("old", 1_000.0), ("new", None)):
        (place / PARTIAL / name).write_bytes(b"half")
        if when is not None:
            os.utime(place / PARTIAL / name, (when, when))
    objects = open_objects(f"file://{place}")
    assert [path.name for path in (place / PARTIAL).iterdir()] == ["new"]
    assert [*objects.list("")] == []


def test_a_missing_bucket_is_said(access: ObjectAccess) -> None:
    objects = open_objects("s3://vecdb-nobody-made/x", access)
    with pytest.raises(VecdbError) as caught:
        objects.put("a", b"a")
    assert SECRET not in str(caught.value)
    assert "vecdb-nobody-made" in str(caught.value)


def test_nobody_there_is_a_storage_error() -> None:
    access = ObjectAccess("http://127.0.0.1:9", "us-east-1", "key", SECRET, retry_s=0.2)
    with pytest.raises(StorageError) as caught:
        open_objects("s3://some-bucket", access).stat("a")
    assert SECRET not in repr(access) + str(caught.value)


@pytest.mark.parametrize(("url", "same"), [
    ("file:///srv/backups/", "file:///srv/backups"),
    ("file://localhost/srv/a%20b", "file:///srv/a b"),
    ("s3://bucket", "s3://bucket"),
    ("s3://bucket//a/b/", "s3://bucket/a/b"),
])
def test_places(url: str, same: str) -> None:
    assert parse_place(url).url == same


@pytest.mark.parametrize("url", [
    "", "/srv", "http://host/x", "file://host/x", "file:relative", "s3://", "s3://Bucket", "file:///a/../etc",
    "s3://key:secret@bucket/x", "s3://bucket/x?secret=1", "s3://bucket/a/../b", "s3://[/", None, 7,
    "file:///" + "x" * 2_000,
])
def test_what_is_no_place_is_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        parse_place(url)
    assert "secret" not in str(caught.value)


def test_names() -> None:
    assert check_snapshot_name("2026-11-23T10.00_a") == "2026-11-23T10.00_a"
    for name in ("", ".x", "a/b", "a b", "x" * 129, "ü", None):
        with pytest.raises(InvalidArgument):
            check_snapshot_name(name)
