"""Why a node is not reached, in few words."""

import asyncio
from types import SimpleNamespace

import pytest

from tests.peer_transports import Transport, certificates, issued
from tests.waiting import until
from vecdb.rpc.reasons import short
from vecdb.serving.compose import _reasons


def test_who_is_not_reached_is_told_with_the_reason(tmp_path):
    """Of two nodes with different authorities one refuses the other's certificate, and the other is hung up on."""
    one_place, two_place = tmp_path / "one", tmp_path / "two"
    for place in (one_place, two_place):
        place.mkdir()
        issued(place)

    async def story():
        addresses = {"n3": "127.0.0.1:1"}
        one, two = [await Transport(name, addresses, certificates(place, name)).start()
                    for name, place in (("n1", one_place), ("n2", two_place))]
        assert one.frames.away() == {}
        for node in ("n2", "n3"):
            one.frames.send(node, b"x")
        await until(lambda: len(one.frames.away()) == 2)
        assert one.frames.away()["n2"].startswith("TLS: its certificate is refused")
        assert one.frames.away()["n3"] == "connection refused"
        await one.stop()
        await two.stop()

    asyncio.run(asyncio.wait_for(story(), 60))


@pytest.mark.parametrize(("text", "words"), [
    ("failed to connect to all addresses; last error: UNKNOWN: ipv4:127.0.0.1:2: Failed to connect to remote host: "
     "Connection refused", "connection refused"),
    ("failed to connect to all addresses; last error: UNKNOWN: ipv4:127.0.0.1:2: Tls handshake failed "
     "(TSI_PROTOCOL_FAILURE): SSL_ERROR_SSL: error:1000007d:SSL routines:OPENSSL_internal:CERTIFICATE_VERIFY_FAILED: "
     "unable to get local issuer certificate: OK",
     "TLS: its certificate is refused (unable to get local issuer certificate)"),
    ("last error: UNKNOWN: ipv4:10.0.0.1:2: Tls handshake failed (TSI_PROTOCOL_FAILURE): SSL_ERROR_SSL: error:1:SSL "
     "routines:OPENSSL_internal:WRONG_VERSION_NUMBER: Invalid certificate", "TLS fails (wrong version number)"),
    ("last error: UNAVAILABLE: ipv4:10.0.0.1:2: Socket closed",
     "it closes the connection; with TLS, it may refuse this node's certificate"),
    ("last error: UNKNOWN: ipv4:10.0.0.1:2: something new", "UNKNOWN: something new"),
    ("permission_denied: the node is of another cluster", "permission_denied: the node is of another cluster")])
def test_reasons_are_short_and_have_no_addresses(text: str, words: str):
    assert short(text) == words


def test_a_node_that_is_not_ready_says_whom_it_does_not_reach():
    frames = SimpleNamespace(away=lambda: {"n2": "TLS fails", "n3": "connection refused"})
    member = SimpleNamespace(frames=frames, reasons=lambda: ["nobody leads"])
    assert _reasons(member) == ["nobody leads", "node n2 is not reached: TLS fails",
                                "node n3 is not reached: connection refused"]
    member.reasons = list
    assert _reasons(member) == [], "one that serves is ready, whoever is away"
    assert _reasons(None) == []
