"""Who calls: metadata to principal, modes, addresses, wrong keys, and what a node says at its start."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from vecdb.config import Settings
from vecdb.core.access import Grant, Principal, Role
from vecdb.core.errors import InvalidArgument, Overloaded, Unauthenticated
from vecdb.core.nodes import is_loopback
from vecdb.rpc import auth
from vecdb.rpc.auth import Authenticator, Failures, certificate_name, loud_binding, peer_address

GOOD, ADMIN = "vdb_abcdefghijkl_" + "a" * 52, "a long enough admin secret"
PEER = "ipv4:10.0.0.7:4000"


class Clock:
    now = 100.0

    def monotonic(self) -> float:
        return self.now

    def wall(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


class Ring:
    """Knows one secret."""

    def __init__(self, *, required: bool = True) -> None:
        self.required, self.asked = required, 0

    def principal(self, secret: str) -> Principal:
        self.asked += 1
        if secret != GOOD:
            raise Unauthenticated("unknown", reason="unknown")
        return Principal("abcdefghijkl", "ingest", (Grant(Role.WRITE),))


def make(ring: Ring | None = None, mode: str = "auto", admin: str = "", clock: Clock | None = None) -> Authenticator:
    settings = Settings(security={"require_keys": mode, "admin_key": admin})
    return Authenticator(ring, settings.security, clock or Clock())


def reason(made: Authenticator, metadata: Any) -> str:
    with pytest.raises(Unauthenticated) as caught:
        made.check(metadata, PEER)
    assert GOOD not in str(caught.value)
    return str(caught.value.fields["reason"])


@pytest.mark.parametrize("metadata", [
    [("authorization", f"Bearer {GOOD}")], [("user-agent", "x"), ("authorization", f"bearer  {GOOD} ")],
    [("x-api-key", GOOD)], {"x-api-key": GOOD}, {"authorization": f"BEARER {GOOD}"},
    [("authorization", b"Bearer " + GOOD.encode())],
    [("authorization", "Basic cHJveHk6cHJveHk="), ("x-api-key", GOOD)],
    [("authorization", f"Bearer {GOOD}"), ("x-api-key", GOOD)]])
def test_where_a_key_may_stand(metadata: Any) -> None:
    assert make(Ring()).check(metadata, PEER).id == "abcdefghijkl"


@pytest.mark.parametrize(("metadata", "why"), [
    ([], "missing"), ({}, "missing"), ([("authorization", "")], "missing"), ([("authorization", "Bearer ")], "missing"),
    ([("authorization", GOOD)], "missing"), ([("authorization", f"Basic {GOOD}")], "missing"),
    ([("x-api-key", "wrong")], "unknown"), ([("x-api-key", "x" * 100_000)], "unknown"),
    ([("x-api-key", b"\xff\xfe")], "unknown"), ([("x-api-key", "\ud800")], "unknown"),
    ([("authorization", f"Bearer {GOOD}"), ("x-api-key", "other")], "ambiguous"),
    ([("authorization", f"Bearer {GOOD}"), ("authorization", "Bearer other")], "ambiguous")])
def test_what_is_no_key(metadata: Any, why: str) -> None:
    assert reason(make(Ring(), admin=ADMIN), metadata) == why


def test_when_keys_are_asked_for() -> None:
    ring = Ring(required=False)
    first = make(ring)
    assert not first.required
    anonymous = first.check([("x-api-key", "whatever")], PEER)
    assert (anonymous.id, anonymous.name, anonymous.everywhere) == ("", "anonymous", Role.ADMIN)
    assert anonymous.address == "10.0.0.7"
    ring.required = True
    assert reason(first, []) == "missing", "as soon as one exists"
    assert not make(None).required
    assert make(None, admin=ADMIN).required
    assert reason(make(None, "always"), []) == "missing"
    assert reason(make(None, "always"), [("x-api-key", GOOD)]) == "unknown"
    assert make(Ring(), "never", ADMIN).check([], PEER).name == "anonymous"


def test_the_admin_key_of_the_settings_is_admin_everywhere_and_long() -> None:
    made = make(Ring(), admin=ADMIN)
    found = made.check([("authorization", f"Bearer {ADMIN}")], PEER)
    assert (found.name, found.everywhere, found.address) == ("admin_key", Role.ADMIN, "10.0.0.7")
    assert made.check([("x-api-key", GOOD)], PEER).everywhere is Role.WRITE
    with pytest.raises(InvalidArgument, match="admin_key") as caught:
        make(admin="short and sweet")
    assert "short and sweet" not in str(caught.value)


def test_a_client_certificate_names_who_has_no_key() -> None:
    made = make(Ring(), admin=ADMIN)
    assert made.check([("x-api-key", GOOD)], PEER, "node-1").label == "ingest[abcdefghijkl]"
    assert made.check([("x-api-key", GOOD)], PEER, "node-1").certificate == "node-1"
    assert made.check([("x-api-key", ADMIN)], PEER, "node-1").name == "admin_key"
    assert make(None).check([], PEER, "node-1").name == "node-1"
    assert reason(made, []) == "missing", "it replaces none"
    assert certificate_name({"x509_common_name": [b"cn"], "x509_subject_alternative_name": [b"spiffe://a/b"]}) \
        == "spiffe://a/b"
    assert certificate_name({"x509_common_name": [b"cn\n\xff"]}) == "'cn\\n\\ufffd'"
    assert certificate_name({}) == ""


# --- wrong keys ------------------------------------------------------------------------------------

def test_an_address_that_guesses_is_stopped_and_good_keys_behind_it_go_on() -> None:
    clock, ring = Clock(), Ring()
    made = make(ring, admin=ADMIN, clock=clock)
    for number in range(auth.FAILURES_AT_ONCE):
        assert reason(made, [("x-api-key", f"guess {number}")]) == "unknown"
    with pytest.raises(Overloaded) as caught:
        made.check([("x-api-key", ADMIN)], "ipv4:10.0.0.7:5000")
    assert made.check([("x-api-key", GOOD)], PEER).id == "abcdefghijkl"
    assert made.check([("x-api-key", ADMIN)], "ipv4:10.0.0.8:5000").name == "admin_key"
    assert made.failures == auth.FAILURES_AT_ONCE + 1
    clock.now += caught.value.fields["retry_after_s"]
    assert made.check([("x-api-key", ADMIN)], PEER).name == "admin_key"
    assert reason(made, [("x-api-key", "guess")]) == "unknown"
    with pytest.raises(Overloaded):
        made.check([("x-api-key", "guess")], PEER)


def test_missing_keys_are_no_guesses() -> None:
    made = make(Ring())
    for _ in range(100):
        assert reason(made, []) == "missing"
    assert made.failures == 0


def test_a_million_addresses_take_no_more_memory_than_the_table() -> None:
    table = Failures(Clock(), most=50)
    for number in range(1_000):
        table.note(str(number))
        table.note("steady")
    assert len(table) == 50
    with pytest.raises(Overloaded):
        table.check("steady")
    made = make(None)
    for number in range(auth.MAX_ADDRESSES + 100):
        made.check([], f"ipv4:10.0.{number >> 8}.{number & 255}:{number}")
    assert len(made._anonymous) == auth.MAX_ADDRESSES


@pytest.mark.parametrize(("peer", "address"), [
    ("ipv4:1.2.3.4:55", "1.2.3.4"), ("1.2.3.4", "1.2.3.4"), ("unix:", "unix"), ("unix:/run/x", "unix"),
    ("unix-abstract:x", "unix"), ("ipv6:[2001:db8:1:2:3::4]:50", "2001:db8:1:2::/64"),
    ("ipv6:%5B2001:db8:1:2::9%5D:51", "2001:db8:1:2::/64"), ("2001:db8:1:2::1", "2001:db8:1:2::/64"),
    ("ipv6:[fe80::1%25eth0]:5", "fe80::/64"), ("ipv6:[::ffff:1.2.3.4]:4", "1.2.3.4"), ("testclient", "testclient"),
    ("", ""), ("ipv6:[::::]:1", "::::")])
def test_addresses_without_ports_and_the_network_of_ipv6(peer: str, address: str) -> None:
    assert peer_address(peer) == address


# --- what a node says ------------------------------------------------------------------------------

@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.1", "localhost", "::1", "[::1]", "unix:/run/x",
                                  "::ffff:127.0.0.1"])
def test_on_loopback_nothing_is_said(host: str) -> None:
    assert is_loopback(host)
    assert loud_binding(Settings(server={"host": host}), keys_required=False) == []


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.7", "db.example.org", "127.0.0.1.example.org"])
def test_elsewhere_the_missing_are_named(host: str, tmp_path: Path) -> None:
    assert not is_loopback(host)
    bare = Settings(server={"host": host})
    keys, tls = loud_binding(bare, keys_required=False)
    assert "without API keys: everyone who reaches it" in keys
    assert "without TLS" in tls
    (only,) = loud_binding(bare, keys_required=True)
    assert "API keys, vectors and metadata cross the network in the clear" in only
    file = tmp_path / "x.pem"
    secure = Settings(server={"host": host}, tls={"cert_file": file, "key_file": file})
    assert loud_binding(secure, keys_required=True) == []
    mutual = Settings(server={"host": host}, tls={"cert_file": file, "key_file": file, "client_ca_file": file})
    assert loud_binding(mutual, keys_required=True) == []
    assert "every holder of a client certificate" in loud_binding(mutual, keys_required=False)[0]


def test_settings_are_read_as_they_are() -> None:
    settings = SimpleNamespace(require_keys="auto", admin_key=SimpleNamespace(get_secret_value=lambda: ""))
    assert not Authenticator(None, settings, Clock()).required
