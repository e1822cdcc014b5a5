"""The ring of API keys, by example; :mod:`test_keys_model` holds it against a model."""

import json
import random
import threading
from pathlib import Path
from typing import Any

import pytest

from tests.key_store import Clock, Disk
from vecdb.core.access import KEY_ID, SECRET, Grant, Role
from vecdb.core.errors import (
    DataCorrupted,
    InvalidArgument,
    KeyNotFound,
    LimitExceeded,
    StorageFull,
    StorageReadOnly,
    Unauthenticated,
)
from vecdb.services import keys as keys_module
from vecdb.services.keys import KEPT_DEAD_S, KeyRing
from vecdb.storage.rocksdict import RocksStore

READ = (Grant(Role.READ),)


@pytest.fixture
def disk() -> Disk:
    return Disk()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def ring(tmp_path: Path, disk: Disk, clock: Clock) -> KeyRing:
    return KeyRing(tmp_path / "keys", disk.open, clock)


def reason(ring: KeyRing, secret: str) -> str:
    with pytest.raises(Unauthenticated) as caught:
        ring.check(secret)
    return str(caught.value.fields["reason"])


def test_the_real_store_keeps_keys_and_knows_no_secret(tmp_path: Path, clock: Clock) -> None:
    folder = tmp_path / "keys"
    ring = KeyRing(folder, RocksStore, clock)
    assert not ring.required
    assert ring.list() == []
    ring.record_uses()
    assert not folder.exists(), "no key, no folder"
    key, secret = ring.create("ingest of Ünïcode", [Grant(Role.WRITE, ("docs", "team-*"))], ttl_s=3600)
    assert KEY_ID.fullmatch(key.id)
    assert SECRET.fullmatch(secret)
    assert secret.startswith(f"vdb_{key.id}_")
    ring.check(secret)
    ring.close()
    held = b"".join(file.read_bytes() for file in folder.iterdir())
    assert b"ingest of" in held
    assert secret.encode() not in held
    assert secret.split("_")[2].encode() not in held
    again = KeyRing(folder, RocksStore, clock)
    assert again.required
    (told,) = again.list()
    assert told.last_used_s == clock.now
    assert (told.id, told.name, told.grants, told.expires_s) == (key.id, key.name, key.grants, clock.now + 3600)
    assert again.principal(secret).grants == key.grants
    again.close()
    reader = KeyRing(folder, lambda path, *, read_only=False: RocksStore(path, read_only=read_only), clock,
                     read_only=True)
    assert reader.check(secret).id == key.id
    with pytest.raises(StorageReadOnly):
        reader.create("x", READ)
    with pytest.raises(StorageReadOnly):
        reader.revoke(key.id)
    assert reason(reader, secret) == "revoked"
    reader.close()


def test_strangers_learn_nothing_about_ids(ring: KeyRing) -> None:
    key, secret = ring.create("a", READ)
    wrong = secret[:-1] + ("a" if secret[-1] != "a" else "b")
    texts = set()
    for presented in (wrong, secret.replace(key.id, "aaaaaaaaaaaa"), secret.upper(), secret[:-1], secret + "a", "",
                      "x" * 69, "\ud800" * 69, "vdb__", "é" * 69):
        with pytest.raises(Unauthenticated) as caught:
            ring.check(presented)
        texts.add(str(caught.value))
        assert caught.value.fields == {"reason": "unknown"}
    assert len(texts) == 1


def test_why_a_good_secret_is_refused_is_told_to_its_holder(ring: KeyRing, clock: Clock) -> None:
    key, first = ring.create("a", READ, ttl_s=100)
    _, second = ring.rotate(key.id, overlap_s=10)
    assert ring.check(first) == ring.check(second)
    clock.now += 10
    assert reason(ring, first) == "rotated"
    clock.now += 90
    assert reason(ring, second) == "expired"
    with pytest.raises(InvalidArgument, match="expired"):
        ring.rotate(key.id)
    other, third = ring.create("b", READ)
    ring.check(third)
    assert ring.revoke(other.id).revoked
    assert ring.revoke(other.id).revoked, "once more does nothing"
    assert reason(ring, third) == "revoked"
    with pytest.raises(InvalidArgument, match="revoked"):
        ring.rotate(other.id)


def test_a_second_rotation_ends_the_secret_before_last(ring: KeyRing) -> None:
    key, first = ring.create("a", READ)
    _, second = ring.rotate(key.id, overlap_s=1_000)
    _, third = ring.rotate(key.id, overlap_s=1_000)
    assert reason(ring, first) == "unknown"
    assert ring.check(second) == ring.check(third)


def test_unknown_ids_are_not_repeated_when_they_are_secrets(ring: KeyRing) -> None:
    _, secret = ring.create("a", READ)
    for wrong in (secret, "x" * 1_000, 5):
        for call in (ring.revoke, ring.rotate, ring.get):
            with pytest.raises(KeyNotFound) as caught:
                call(wrong)  # type: ignore[operator]
            assert secret not in repr(caught.value)
            assert secret not in str(caught.value.fields)
            assert len(str(caught.value)) < 100
    with pytest.raises(KeyNotFound, match="aaaaaaaaaaaa"):
        ring.revoke("aaaaaaaaaaaa")


@pytest.mark.parametrize(("asked", "told"), [
    ("aaaaaaaaaaaa", "aaaaaaaaaaaa"), ("my-key", "my-key"), ("", ""), (f"vdb_{'a' * 12}", f"vdb_{'a' * 12}"),
    (f"vdb_{'a' * 12}_{'b' * 52}", f"vdb_{'a' * 12}_***"), ("b" * 52, "bbbb…"), (7, "7")])
def test_an_unknown_id_is_told_as_it_was_asked_for(ring: KeyRing, asked: object, told: str) -> None:
    with pytest.raises(KeyNotFound) as caught:
        ring.get(asked)  # type: ignore[arg-type]
    assert caught.value.fields["id"] == told
    assert told in str(caught.value)


def test_no_secret_is_in_any_repr(ring: KeyRing) -> None:
    key, secret = ring.create("a", READ)
    shown = repr((key, ring.list(), ring.principal(secret), ring))
    assert secret.split("_")[2] not in shown


def test_uses_are_noted_once_a_minute_and_written_lazily(ring: KeyRing, disk: Disk, clock: Clock) -> None:
    key, secret = ring.create("a", READ)
    assert ring.get(key.id).last_used_s == 0.0
    writes, noted = disk.writes, clock.now
    for _ in range(100):
        ring.check(secret)
        clock.now += 0.5
    assert ring.get(key.id).last_used_s == noted
    assert disk.writes == writes, "a check touches no disk"
    ring.record_uses()
    ring.record_uses()
    assert disk.writes == writes + 1
    clock.now += 30
    ring.check(secret)
    assert ring.get(key.id).last_used_s == clock.now
    clock.now -= 3600
    ring.check(secret)
    assert ring.get(key.id).last_used_s == clock.now, "a clock that was set back"
    disk.fails = "write"
    ring.record_uses()
    ring.record_uses()
    assert disk.writes == writes + 2, "written once the disk takes it"


@pytest.mark.parametrize(("given", "error", "match"), [
    ({"name": ""}, InvalidArgument, "name"), ({"name": "a\nb"}, InvalidArgument, "printable"),
    ({"name": 5}, InvalidArgument, "name"), ({"name": "x" * 129}, LimitExceeded, "128"),
    ({"name": "\ud800"}, InvalidArgument, "printable"),
    ({"grants": []}, InvalidArgument, "grants"), ({"grants": READ * 65}, LimitExceeded, "64"),
    ({"ttl_s": -1}, InvalidArgument, "ttl_s"), ({"ttl_s": float("nan")}, InvalidArgument, "ttl_s"),
    ({"ttl_s": float("inf")}, InvalidArgument, "ttl_s"), ({"ttl_s": True}, InvalidArgument, "ttl_s"),
])
def test_what_no_key_can_be_made_of(ring: KeyRing, given: dict[str, Any], error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        ring.create(**{"name": "a", "grants": READ, **given})
    assert not ring.required


def test_keys_are_bounded_and_the_long_dead_make_room(ring: KeyRing, clock: Clock,
                                                     monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keys_module, "MAX_KEYS", 3)
    first, secret = ring.create("a", READ)
    ring.check(secret)
    ring.create("b", READ, ttl_s=10)
    ring.create("c", READ)
    ring.revoke(first.id)
    with pytest.raises(LimitExceeded, match="keys"):
        ring.create("d", READ)
    clock.now += KEPT_DEAD_S + 11
    ring.create("d", READ)
    assert [key.name for key in ring.list()] == ["c", "d"]
    assert reason(ring, secret) == "unknown"
    ring.record_uses()
    with pytest.raises(KeyNotFound):
        ring.get(first.id)


def test_doors_stay_shut_once_there_was_a_key(tmp_path: Path, disk: Disk, clock: Clock, ring: KeyRing) -> None:
    key, _ = ring.create("a", READ)
    ring.revoke(key.id)
    assert ring.required
    clock.now += KEPT_DEAD_S + 1
    assert KeyRing(tmp_path / "keys", disk.open, clock).required
    torn = KeyRing(tmp_path / "keys", Disk().open, clock)
    assert torn.required, "a folder without rows: an interrupted first create"
    assert torn.list() == []


@pytest.mark.parametrize("damage", ["json", "shape", "role", "format", "first"])
def test_rows_that_cannot_be_understood_are_damage(tmp_path: Path, disk: Disk, clock: Clock, ring: KeyRing,
                                                   damage: str) -> None:
    key, _ = ring.create("a", READ)
    row = b"k" + key.id.encode()
    parts = json.loads(disk.durable[row])
    if damage == "json":
        disk.durable[row] = b"{"
    elif damage == "shape":
        disk.durable[row] = json.dumps({**parts, "secrets": [["zz", "", 0]]}).encode()
    elif damage == "role":
        disk.durable[row] = json.dumps({**parts, "grants": [["king", []]]}).encode()
    elif damage == "format":
        disk.durable[b"f"] = b"2"
    else:
        del disk.durable[b"f"]
    with pytest.raises(DataCorrupted):
        KeyRing(tmp_path / "keys", disk.open, clock)


def test_a_refused_change_is_told_and_settled_by_the_next(ring: KeyRing, disk: Disk) -> None:
    key, secret = ring.create("a", READ)
    for fails in ("write", "landed write", "sync"):
        disk.fails = fails
        with pytest.raises(StorageFull):
            ring.create("b", READ)
        assert ring.check(secret).id == key.id
    disk.fails = "sync"
    with pytest.raises(StorageFull):
        ring.revoke(key.id)
    assert reason(ring, secret) == "revoked"
    assert ring.get(key.id).revoked
    assert ring.revoke(key.id).revoked
    ring.create("c", READ)
    assert reason(ring, secret) == "revoked"


def test_a_key_whose_revocation_was_refused_gets_no_new_secret(ring: KeyRing, disk: Disk) -> None:
    key, _ = ring.create("a", READ)
    disk.fails = "write"
    with pytest.raises(StorageFull):
        ring.revoke(key.id)
    with pytest.raises(InvalidArgument, match="revoked"):
        ring.rotate(key.id)


def test_what_a_killed_process_had_only_written_is_made_durable_before_it_is_told(
        tmp_path: Path, disk: Disk, clock: Clock, ring: KeyRing) -> None:
    key, secret = ring.create("a", READ)
    disk.fails = "landed write"
    with pytest.raises(StorageFull):
        ring.revoke(key.id)
    second = KeyRing(tmp_path / "keys", disk.open, clock)
    assert reason(second, secret) == "revoked"
    disk.crash(0)
    assert reason(KeyRing(tmp_path / "keys", disk.open, clock), secret) == "revoked"
    disk.fails = "sync"
    assert KeyRing(tmp_path / "keys", disk.open, clock).get(key.id).revoked, "a disk that refuses can still be read"


def test_many_threads_check_while_keys_change(ring: KeyRing) -> None:
    seed = random.randrange(1 << 30)
    print("seed", seed)
    chance = random.Random(seed)
    kept_key, kept = ring.create("kept", READ)
    gone, stop, wrong = set[str](), threading.Event(), list[str]()
    pairs = [ring.create(str(n), READ) for n in range(30)]

    def look() -> None:
        while not stop.is_set():
            if ring.check(kept).id != kept_key.id:
                wrong.append("kept")
            for key, secret in pairs:
                was_gone = key.id in gone
                try:
                    ring.check(secret)
                    if was_gone:
                        wrong.append(key.id)
                except Unauthenticated:
                    continue

    threads = [threading.Thread(target=look) for _ in range(3)]
    for thread in threads:
        thread.start()
    for key, _ in chance.sample(pairs, 20):
        ring.revoke(key.id)
        gone.add(key.id)
    stop.set()
    for thread in threads:
        thread.join()
    assert wrong == []
