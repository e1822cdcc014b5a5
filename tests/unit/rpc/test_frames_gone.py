"""What is told of nodes whose process seems to be there no more."""

import asyncio

import pytest

from tests.peer_transports import Transport, certificates, issued
from tests.unit.rpc.test_frames import heard, nodes, run, unbound
from tests.waiting import until
from vecdb.rpc.frames import BROKEN_S
from vecdb.rpc.frames_server import MESSAGES


@pytest.fixture(params=["plaintext", "mutual TLS"])
def tls(request, tmp_path):
    """By node, what its transport is given."""
    if request.param == "plaintext":
        return lambda node: None
    folder = issued(tmp_path)
    return lambda node: certificates(folder, node)


def test_of_a_process_that_ends_is_told_once_and_of_one_that_never_was_nothing(tls):
    async def story():
        addresses = {"n3": unbound()}
        one = await Transport("n1", addresses, tls("n1")).start()
        one.frames.send("n3", b"?")
        await until(lambda: "n3" in one.frames.away())
        for life in range(2):
            two = await Transport("n2", addresses, tls("n2")).start(addresses.get("n2", "127.0.0.1:0"))
            await heard(one, two, b"hello %d" % life)
            assert one.gone == ["n2"] * life
            await two.stop()
            await until(lambda life=life: one.gone == ["n2"] * (life + 1))
            attempts = one.frames._streams["n2", MESSAGES].numbers
            await until(lambda attempts=attempts: one.frames._streams["n2", MESSAGES].numbers > attempts + 1)
        assert one.gone == ["n2", "n2"]
        await one.stop()

    run(story())


def test_a_stream_that_is_made_again_at_once_is_no_end():
    async def story():
        async with nodes("n1", "n2") as (one, two):
            await heard(one, two, b"before")
            stream = one.frames._streams["n2", MESSAGES]
            before = one.frames.counters["connected"]
            stream._attempt.cancel()
            await until(lambda: one.frames.counters["connected"] > before)
            assert stream._broken is None
            assert one.gone == []

    run(story())


def test_who_cannot_be_reached_after_a_break_counts_as_gone_unless_forgotten(monkeypatch):
    async def story():
        async with nodes("n1", "n2", "n3") as (one, two, three):
            await heard(one, two, b"before")
            await heard(one, three, b"before")
            reached = one.channels.channel
            monkeypatch.setattr(one.channels, "channel", lambda node: reached("n1"))  # which refuses otherwise
            for node in ("n2", "n3"):
                one.frames._streams[node, MESSAGES]._attempt.cancel()
            await until(lambda: one.frames._streams["n3", MESSAGES]._broken is not None)
            one.frames.forget("n3")
            await until(lambda: one.gone)
            await asyncio.sleep(BROKEN_S)
            assert one.gone == ["n2"]

    run(story())
