"""The ring of API keys against a simple model, through crashes and refusing disks."""

import tempfile
from dataclasses import dataclass
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tests.key_store import Clock, Disk
from vecdb.core.access import Grant, Role
from vecdb.core.errors import InvalidArgument, StorageError, Unauthenticated
from vecdb.services.keys import KeyRing

READ = (Grant(Role.READ),)


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
