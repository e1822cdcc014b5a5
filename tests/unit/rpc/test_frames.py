"""Frames over real sockets of this machine: between nodes that come, go, are slow, or are somebody else."""

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import tracemalloc

import grpc
import pytest

from tests.peer_transports import CLUSTER, Transport, certificates, issued
from tests.waiting import until
from vecdb.rpc.frames import AWAY_BYTES
from vecdb.rpc.frames_codec import MAX_FRAME_BYTES, join
from vecdb.rpc.frames_server import STREAM_KEY
from vecdb.rpc.peer_channels import STUCK_S, PeerChannels
from vecdb.rpc.peer_names import Greeting

PATH = "/vecdb.internal.v1.Raft/Messages"


@pytest.fixture(params=["plaintext", "mutual TLS"])
def tls(request, tmp_path):
    """By node, what its transport is given."""
    if request.param == "plaintext":
        return lambda node: None
    folder = issued(tmp_path)
    return lambda node: certificates(folder, node)


@contextlib.asynccontextmanager
async def nodes(*names, tls=lambda node: None, **more):
    addresses = {}
    made = [await Transport(name, addresses, tls(name), **more).start() for name in names]
    try:
        yield made
    finally:
        for one in made:
            await one.stop()


def run(story):
    asyncio.run(asyncio.wait_for(story, 60))


# --- what comes, and how ------------------------------------------------------------------------------


def test_frames_come_whole_in_order_and_under_the_senders_name(tls):
    async def story():
        async with nodes("n1", "n2", "n3", tls=tls) as (one, two, three):
            frames = [bytes([at]) * size for at, size in enumerate((0, 1, 127, 128, 51_000, 1 << 20, 3 << 20, 5, 70))]
            await heard(one, two, b"there")
            await heard(two, one, b"there")
            one.got, two.got = [], []
            before = one.frames.counters["sent_frames"]
            for frame in frames:
                one.frames.send("n2", frame)
                two.frames.send("n1", frame)
            three.frames.send("n2", b"of the third")
            await until(lambda: len(two.got) == len(frames) + 1 and len(one.got) == len(frames))
            assert [frame for node, frame in two.got if node == "n1"] == frames
            assert [frame for node, frame in one.got if node == "n2"] == frames
            assert ("n3", b"of the third") in two.got
            assert one.frames.counters["sent_frames"] == before + len(frames)
            assert one.frames.connected("n2")
            assert not one.frames.connected("n3")

    run(story())


def test_the_largest_frame_goes_through_and_a_larger_one_is_dropped():
    async def story():
        async with nodes("n1", "n2") as (one, two):
            frame = os.urandom(1 << 20) * (MAX_FRAME_BYTES >> 20)
            one.frames.send("n2", frame + b"x")
            one.frames.send("n2", frame)
            await until(lambda: two.got)
            assert two.got == [("n1", frame)]
            assert one.frames.counters["dropped_too_long"] == 1
            assert ("frame_dropped", "too_long") in one.events()

    run(story())


def test_what_waits_goes_together():
    async def story():
        async with nodes("n1", "n2") as (one, two):
            for at in range(1_000):
                one.frames.send("n2", b"%d" % at)
            await until(lambda: len(two.got) == 1_000)
            assert two.got[-1] == ("n1", b"999")
            assert one.frames.counters["sent_messages"] <= 3

    run(story())


def test_what_is_bulky_does_not_hold_up_the_others():
    async def story():
        async with nodes("n1", "n2", bulk_window_bytes=64 << 20) as (one, two):
            await heard(one, two, b"there")
            one.frames.send("n2", b"first", bulk=True)
            await until(lambda: ("n1", b"first") in two.got)
            bulk = os.urandom(1 << 20)
            for _ in range(64):
                one.frames.send("n2", bulk, bulk=True)
            await asyncio.sleep(0)
            one.frames.send("n2", b"command")
            await until(lambda: two.got.count(("n1", bulk)) == 64)
            assert two.got.index(("n1", b"command")) < len(two.got) - 1

    run(story())


# --- windows ------------------------------------------------------------------------------------------


STUCK = """
import asyncio, sys, time
from tests.peer_transports import Transport

async def story():
    two = Transport("n2", {"n1": "127.0.0.1:9"})
    await two.start()
    two.frames.listen(lambda node, frame: time.sleep(3600))  # whoever listens is stuck, and with him the loop
    print(two.addresses["n2"], flush=True)
    await asyncio.sleep(3600)

asyncio.run(story())
"""


def test_a_receiver_that_is_stuck_does_not_grow_the_sender():
    """He holds the connection and takes nothing more: what waits is the window, and what gRPC and sockets hold."""
    window, frame = 4 << 20, os.urandom(1 << 20)

    async def story(address):
        one = await Transport("n1", {"n2": address}, window_bytes=window).start()
        one.frames.send("n2", b"first")
        await until(lambda: one.frames.connected("n2"))
        tracemalloc.start()
        try:
            for _ in range(40):
                for _ in range(10):
                    one.frames.send("n2", bytes(frame))
                await asyncio.sleep(0.005)
                one.frames.send("n2", bytearray(frame))  # a copy each
                assert one.frames.counters["waiting_bytes"] <= window + len(frame)
            assert tracemalloc.get_traced_memory()[0] < 2 * window + 4 * len(frame)
        finally:
            tracemalloc.stop()
        counters = one.frames.counters
        assert counters["dropped_window"] > 300
        assert counters["sent_bytes"] + counters["waiting_bytes"] < 32 << 20
        assert one.events().count(("frame_dropped", "window_messages")) == 1
        await one.stop()

    child = subprocess.Popen([sys.executable, "-c", STUCK], stdout=subprocess.PIPE, text=True)
    try:
        run(story(child.stdout.readline().strip()))
    finally:
        child.kill()
        child.wait()


def test_for_who_is_away_only_a_little_is_kept_the_newest_and_not_for_long():
    async def story():
        addresses = {"n2": unbound()}
        one = await Transport("n1", addresses).start()
        for at in range(40):
            one.frames.send("n2", bytes([at]) * (1 << 17))
            assert one.frames.counters["waiting_bytes"] <= AWAY_BYTES
        assert one.frames.counters["dropped_away"] == 32
        await until(lambda: one.frames.counters["waiting_bytes"] == 0)
        assert ("peer_away", "messages") in one.events()
        await one.stop()

    run(story())


def test_to_whom_nothing_can_be_sent():
    async def story():
        async with nodes("n1") as (one,):
            for node in ("n1", "n9", ""):
                one.frames.send(node, b"x")
            assert one.frames.counters["dropped_unknown_node"] == 3
            await one.frames.close()
            one.addresses["n2"] = "127.0.0.1:9"
            one.frames.send("n2", b"x")
            assert one.frames.counters["dropped_unknown_node"] == 4

    run(story())


# --- streams that end and come again ------------------------------------------------------------------


def unbound() -> str:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return f"127.0.0.1:{server.getsockname()[1]}"


async def heard(one, two, what):
    """Send until it has come, as replication does."""
    while (one.node, what) not in two.got:
        one.frames.send(two.node, what)
        await asyncio.sleep(0.01)
    await asyncio.sleep(0.05)  # what is still on its way of the same


def test_streams_heal_when_the_other_node_comes_back(tls):
    async def story():
        addresses = {}
        one = await Transport("n1", addresses, tls("n1")).start()
        for life in range(3):
            two = await Transport("n2", addresses, tls("n2")).start(addresses.get("n2", "127.0.0.1:0"))
            await heard(one, two, b"hello %d" % life)
            assert one.frames.away() == {}
            two.frames.send("n1", b"and you %d" % life)
            await until(lambda life=life: ("n2", b"and you %d" % life) in one.got)
            await two.stop()
            await until(lambda: not one.frames.connected("n2"))
        assert one.frames.counters["connected"] >= 3
        assert one.events().count(("peer_away", "messages")) == 1, "told at most once a minute"
        await one.stop()

    run(story())


def test_a_node_that_calls_first_is_called_back_at_once():
    """Attempts to reach it have become rare by then: its own call brings the stream, not the next of them."""

    async def story():
        addresses = {"n2": unbound()}
        one = await Transport("n1", addresses).start()
        one.frames.send("n2", b"?")
        await until(lambda: ("peer_away", "messages") in one.events())
        hurried = []
        one.channels.hurry = lambda node: hurried.append(node) or False
        two = Transport("n2", addresses)
        await two.start(addresses["n2"])
        two.frames.send("n1", b"here I am")
        await until(lambda: one.frames.connected("n2"))
        await heard(one, two, b"there you are")
        assert hurried in ([], ["n2"])  # none if the next attempt was due just then
        await one.stop()
        await two.stop()

    run(story())


def test_an_attempt_that_hangs_is_given_up_when_the_other_node_calls():
    """Nobody answers at its address, as in a network that was cut: the kernel drops what a full queue cannot hold."""

    async def story():
        with socket.create_server(("127.0.0.1", 0), backlog=0) as full:
            address = f"127.0.0.1:{full.getsockname()[1]}"
            fillers = [socket.socket() for _ in range(3)]
            for filler in fillers:
                filler.setblocking(False)
                filler.connect_ex(full.getsockname())
            one = await Transport("n1", {"n2": address}).start()
            one.frames.send("n2", b"?")
            hanging = one.channels.channel("n2")
            await asyncio.sleep(1.5 * STUCK_S)
            assert hanging.get_state() in (grpc.ChannelConnectivity.CONNECTING,
                                           grpc.ChannelConnectivity.TRANSIENT_FAILURE)
            assert not one.frames.connected("n2")
            for filler in fillers:
                filler.close()
        two = await Transport("n2", one.addresses).start()  # on another port: where it is reached has changed
        two.frames.send("n1", b"here I am")
        await until(lambda: one.frames.connected("n2"))
        assert one.channels.channel("n2") is not hanging
        await heard(one, two, b"there you are")
        await one.stop()
        await two.stop()

    run(story())


def test_streams_outlive_channels_that_cannot_be_had():
    async def story():
        async with nodes("n1", "n2") as (one, two):
            make, one.channels._make = one.channels._make, None
            one.frames.send("n2", b"x")
            await until(lambda: ("peer_away", "messages") in one.events())
            one.channels._make = make
            await heard(one, two, b"y")

    run(story())


SILENT = """
import asyncio
from tests.peer_transports import Transport

async def story():
    two = await Transport("n2", {"n1": "127.0.0.1:9"}).start()
    print(two.addresses["n2"], flush=True)
    await asyncio.sleep(3600)

asyncio.run(story())
"""


def test_a_connection_whose_other_end_has_fallen_silent_is_given_up():
    """A process that is stopped is, to us, a machine that has lost its power: nobody says goodbye."""
    async def story(address, child):
        one = await Transport("n1", {"n2": address}).start()
        one.frames.send("n2", b"x")
        await until(lambda: one.frames.connected("n2"))
        child.send_signal(signal.SIGSTOP)
        await until(lambda: not one.frames.connected("n2"))
        child.send_signal(signal.SIGCONT)
        await until(lambda: one.frames.connected("n2"))
        await one.stop()

    child = subprocess.Popen([sys.executable, "-c", SILENT], stdout=subprocess.PIPE, text=True)
    try:
        run(story(child.stdout.readline().strip(), child))
    finally:
        child.kill()
        child.wait()


def test_streams_are_held_up_by_no_listener_that_raises():
    async def story():
        async with nodes("n1", "n2") as (one, two):
            def received(node, frame):
                two.got.append((node, bytes(frame)))
                if frame == b"bad":
                    raise ValueError("a bug")

            two.frames.listen(received)
            for frame in (b"bad", b"good", b"bad", b"last"):
                one.frames.send("n2", frame)
            await until(lambda: len(two.got) == 4)
            assert two.frames.counters["failed_received"] == 2
            assert two.events().count(("frame_failed", "ValueError")) == 1

    run(story())


# --- streams by hand ----------------------------------------------------------------------------------


async def stream(address, number="1", agent=None, path=PATH):
    """A stream as a node would open it; returns the call once it was accepted or refused."""
    channel = grpc.aio.insecure_channel(address, [("grpc.primary_user_agent", agent)])
    call = channel.stream_unary(path)(metadata=((STREAM_KEY, number),))
    stream.channels.append(channel)
    await call.initial_metadata()
    return call


stream.channels = []


async def hang_up():
    while stream.channels:
        await stream.channels.pop().close()


def agent(incarnation=7, **other):
    return Greeting(**{"cluster": CLUSTER, "node": "n1", "to": "n2", "incarnation": incarnation, **other}).agent()


def test_what_is_no_message_of_frames_is_dropped_counted_and_told_once():
    async def story():
        async with nodes("n2") as (two,):
            call = await stream(two.addresses["n2"], agent=agent())
            for message in (b"\x0a\x7f", b"\xff\xff", join([b"good"]), b"\x10\x01", b"\x0a" + b"\x80" * 6, join([]),
                            b"\x1a\x01?", join([b"last"])):  # the last but one has a field that is not known
                await call.write(message)
            await until(lambda: ("n1", b"last") in two.got)
            assert two.got == [("n1", b"good"), ("n1", b"last")]
            assert two.frames.counters["dropped_malformed"] == 4
            assert two.events() == [("frames_malformed", "malformed")]
            await hang_up()

    run(story())


def test_a_newer_stream_takes_the_olders_place_and_an_older_one_none():
    async def story():
        async with nodes("n2") as (two,):
            address = two.addresses["n2"]
            first = await stream(address, "5", agent())
            second = await stream(address, "6", agent())
            assert await first.code() is grpc.StatusCode.ABORTED
            for number, incarnation in (("6", 7), ("5", 7), ("nonsense", 7), ("9", 6)):
                older = await stream(address, number, agent(incarnation))
                assert await older.code() is grpc.StatusCode.ABORTED
            third = await stream(address, "1", agent(8))
            assert await second.code() is grpc.StatusCode.ABORTED
            await third.write(join([b"x"]))
            await until(lambda: two.got == [("n1", b"x")])
            other = await stream(address, "1", agent(3), "/vecdb.internal.v1.Raft/Bulk")
            assert not other.done()
            counters = two.frames.counters
            assert (counters["replaced"], counters["refused_older"]) == (2, 4)
            assert two.events() == [("peer_refused", "older")]
            await hang_up()
            # Once the newer one has gone, nothing is in the way of one that counts from a clock set back.
            await until(lambda: not two.frames.servicer()._streams)
            again = await stream(address, "1", agent(2))
            assert not again.done()
            await hang_up()

    run(story())


def test_two_processes_of_one_name_do_not_take_turns():
    async def story():
        addresses = {}
        two = await Transport("n2", addresses).start()
        newer = await Transport("n1", addresses, incarnation=20).start()
        await heard(newer, two, b"newer")
        older = await Transport("n1", dict(addresses), incarnation=10).start()
        older.frames.send("n2", b"older")
        await until(lambda: two.frames.counters.get("refused_older", 0) >= 3)
        assert newer.frames.connected("n2")
        assert two.frames.counters.get("replaced", 0) == 0
        assert ("n1", b"older") not in two.got
        for one in (older, newer, two):
            await one.stop()

    run(story())


def test_frames_that_come_before_anybody_listens_are_dropped():
    async def story():
        async with nodes("n1", "n2") as (one, two):
            two.frames.servicer().received = None
            one.frames.send("n2", b"x")
            await until(lambda: two.frames.counters.get("dropped_early") == 1)

    run(story())


def test_a_server_that_stops_ends_the_streams():
    async def story():
        addresses = {}
        one, two = await Transport("n1", addresses).start(), await Transport("n2", addresses).start()
        await heard(one, two, b"x")
        await asyncio.wait_for(two.server.stop(30.0), 20)
        await until(lambda: not one.frames.connected("n2"))
        await one.stop()
        await two.stop()

    run(story())


def test_certificates_are_loaded_anew(tmp_path):
    """The node's own is replaced on its disk; streams opened from then on show the new one."""
    from vecdb.rpc.peer_certificates import issue

    folder = issued(tmp_path)

    async def story():
        addresses = {}
        one, two = [await Transport(name, addresses, certificates(folder, name)).start() for name in ("n1", "n2")]
        await heard(one, two, b"before")
        before = one.channels.channel("n2")
        issue(folder, CLUSTER, ["n1"], renew=True)
        assert one.tls.refresh()
        assert one.channels.channel("n2") is not before
        assert one.channels.channel("n2") is one.channels.channel("n2")
        await heard(one, two, b"after")
        await one.stop()
        await two.stop()

    run(story())


def test_channels_lead_to_other_nodes_alone():
    async def story():
        channels = PeerChannels("n1", CLUSTER, {"n1": "127.0.0.1:1", "n2": "127.0.0.1:2"}, None)
        for node in ("n1", "n3"):
            with pytest.raises(ValueError, match="another node"):
                channels.channel(node)
        channels.channel("n2")
        await channels.close()
        with pytest.raises(ValueError, match="another node"):
            channels.channel("n2")

    run(story())
