"""The ring of API keys: against a simple model through crashes and refusing disks, and by example."""

import json
import random
import tempfile
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from vecdb.core.access import KEY_ID, SECRET, Grant, Role
from vecdb.core.errors import (
    DataCorrupted,
    InvalidArgument,
    KeyNotFound,
    LimitExceeded,
    StorageError,
    StorageFull,
    StorageReadOnly,
    Unauthenticated,
)
from vecdb.services import keys as keys_module
from vecdb.services.keys import KEPT_DEAD_S, KeyRing
from vecdb.shard.mutations import Mutations
from vecdb.storage.rocksdict import RocksStore

READ = (Grant(Role.READ),)


class Clock:
    def __init__(self) -> None:
        self.now = 1_700_000_000.0

    def wall(self) -> float:
        return self.now

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@dataclass
class Disk:
    """What is durable, what is only written, and what fails next: "write", "landed write" or "sync"."""

    durable: dict[bytes, bytes] = field(default_factory=dict)
    pending: list[Mutations] = field(default_factory=list)
    fails: str = ""
    writes: int = 0

    def open(self, path: Path, *, read_only: bool = False) -> "DiskStore":
        path.mkdir(exist_ok=True)
        return DiskStore(self)

    def crash(self, survive: int) -> None:
        """Lose all but the first ``survive`` batches that were not synced."""
        for batch in self.pending[:survive]:
            _apply(self.durable, batch)
        self.pending.clear()


class DiskStore:
    """As the real one: after a refusal it takes nothing more."""

    def __init__(self, disk: Disk) -> None:
        self.disk, self.failed = disk, False

    def rows(self) -> dict[bytes, bytes]:
        rows = dict(self.disk.durable)
        for batch in self.disk.pending:
            _apply(rows, batch)
        return rows

    def multi_get(self, keys: Sequence[bytes]) -> list[bytes | None]:
        rows = self.rows()
        return [rows.get(key) for key in keys]

    def scan(self, start: bytes, stop: bytes) -> Iterator[tuple[bytes, bytes]]:
        yield from sorted((key, value) for key, value in self.rows().items() if start <= key < stop)

    def write(self, batch: Mutations) -> None:
        self._fail_if("write")
        self.disk.writes += 1
        self.disk.pending.append(batch)
        self._fail_if("landed write")

    def sync(self) -> None:
        self._fail_if("sync")
        self.disk.crash(len(self.disk.pending))

    def _fail_if(self, what: str) -> None:
        if self.disk.fails == what:
            self.failed, self.disk.fails = True, ""
        if self.failed:
            raise StorageFull("no space")

    def compact(self, start: bytes, stop: bytes) -> None:
        return None

    def checkpoint(self, target: Path) -> None:
        return None

    def close(self) -> None:
        return None


def _apply(rows: dict[bytes, bytes], batch: Mutations) -> None:
    for key in batch.deletes:
        rows.pop(key, None)
    rows.update(batch.puts)


# --- the model -------------------------------------------------------------------------------------

@dataclass
class Known:
    """What the holder of a key may believe.  ``secrets``: until when each is good (None: as long as the key).

    ``doubtful``: a refused change may have ended secrets; ``told_revoked``: refused here whatever the disk says.
    """

    expires: float
    secrets: dict[str, float | None]
    revoked: bool = False
    doubtful: bool = False
    barred: bool = False

    def good(self, secret: str, now: float) -> bool:
        until = self.secrets[secret]
        return not self.revoked and (not self.expires or now < self.expires) and (until is None or now < until)


class Ring(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.disk, self.clock = Disk(), Clock()
        self.known: dict[str, Known] = {}
        self.unheard: set[str] = set()
        self.asked = False
        self.ring = self._open()

    def _open(self) -> KeyRing:
        return KeyRing(Path(self.folder.name) / "keys", self.disk.open, self.clock)

    def teardown(self) -> None:
        self.folder.cleanup()

    def _pick(self, number: int) -> str:
        return sorted(self.known)[number % len(self.known)]

    @rule(ttl=st.sampled_from([0, 30, 1_000]))
    def create(self, ttl: float) -> None:
        before, armed = set(self.known) | self.unheard, self.disk.fails
        try:
            key, secret = self.ring.create("a key", READ, ttl)
        except StorageError:
            assert armed, "the disk takes what it is given, and an earlier refusal is settled"
            return
        assert key.id not in before
        self.asked = True
        self.known[key.id] = Known(self.clock.now + ttl if ttl else 0.0, {secret: None})

    @precondition(lambda self: self.known)
    @rule(number=st.integers(0, 50), overlap=st.sampled_from([0, 20, 500]))
    def rotate(self, number: int, overlap: float) -> None:
        id = self._pick(number)
        known, armed = self.known[id], self.disk.fails
        dead = known.revoked or (known.expires and self.clock.now >= known.expires)
        try:
            _, secret = self.ring.rotate(id, overlap)
        except StorageError:
            assert armed
            known.doubtful = True
        except InvalidArgument:
            assert dead or (known.doubtful and known.barred)
        else:
            assert not dead
            self._newest_ends(known, overlap)
            known.secrets[secret] = None
            known.doubtful = False

    def _newest_ends(self, known: Known, overlap: float) -> None:
        if known.doubtful:  # a rotation nobody heard of may have come between
            known.secrets.clear()
        for secret, until in known.secrets.items():
            known.secrets[secret] = -1.0 if until is not None else self.clock.now + overlap

    @precondition(lambda self: self.known)
    @rule(number=st.integers(0, 50))
    def revoke(self, number: int) -> None:
        known, armed = self.known[self._pick(number)], self.disk.fails
        try:
            assert self.ring.revoke(self._pick(number)).revoked
        except StorageError:
            assert armed
            known.doubtful = known.barred = True
        else:
            known.revoked, known.doubtful = True, False

    @rule(seconds=st.sampled_from([1, 10, 100, 2_000]))
    def wait(self, seconds: float) -> None:
        self.clock.now += seconds

    @rule()
    def record(self) -> None:
        self.ring.record_uses()

    @rule(fails=st.sampled_from(["write", "landed write", "sync"]))
    def refuse_next(self, fails: str) -> None:
        self.disk.fails = fails

    @rule(survive=st.integers(0, 3))
    def crash(self, survive: int) -> None:
        self.disk.fails = ""
        self.disk.crash(survive)
        self._again()

    @rule()
    def reopen(self) -> None:
        self.disk.fails = ""
        self.ring.close()
        self._again()

    def _again(self) -> None:
        self.ring = self._open()
        for known in self.known.values():
            known.barred = False
        listed = {key.id: key for key in self.ring.list()}
        for id, known in self.known.items():
            if known.doubtful and listed[id].revoked:
                known.revoked, known.doubtful = True, False

    @invariant()
    def every_secret_is_worth_what_its_holder_was_told(self) -> None:
        now = self.clock.now
        for id, known in self.known.items():
            for secret in known.secrets:
                try:
                    found = self.ring.check(secret).id == id
                except Unauthenticated:
                    found = False
                if known.barred:
                    assert not found, "a revocation holds in this process, whatever the disk said"
                elif not known.doubtful:
                    assert found == known.good(secret, now)

    @invariant()
    def the_list_is_complete(self) -> None:
        listed = {key.id: key for key in self.ring.list()}
        assert set(self.known) <= set(listed)
        self.unheard = set(listed) - set(self.known)
        for id, known in self.known.items():
            if not known.doubtful:
                assert listed[id].revoked == known.revoked
                assert listed[id].expires_s == known.expires
        assert self.ring.required or not self.asked


Ring.TestCase.settings = settings(max_examples=150, stateful_step_count=30, deadline=None,
                                  suppress_health_check=[HealthCheck.too_slow])
TestRing = Ring.TestCase


# --- by example ------------------------------------------------------------------------------------

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
