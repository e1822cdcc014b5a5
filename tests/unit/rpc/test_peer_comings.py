"""Nodes that come, move and leave while others run: channels, frames and the listener follow."""

import asyncio

import grpc
import pytest

from tests.peer_transports import CLUSTER, Transport, certificates, issued
from tests.unit.rpc.test_peers_server import PATH, Service, ask, greeting, insecure
from tests.waiting import until
from vecdb.rpc.peer_channels import PeerChannels
from vecdb.rpc.peer_names import Greeting, certificate_name


def run(story):
    asyncio.run(asyncio.wait_for(story, 60))


async def listening(tls=None, nodes=None, removed=(), open_methods=()):
    """A listener of n2 whose nodes change; and the mutable sets of those known and removed."""
    from vecdb.rpc.peers_server import PeerServer, PeerServerOptions

    known, gone = set(nodes or {"n1", "n2"}), set(removed)
    service = Service()
    server = PeerServer(PeerServerOptions("n2", CLUSTER, "127.0.0.1:0", known,
                                          None if tls is None else tls.grpc_credentials(), insecure=tls is None,
                                          removed=lambda: gone, open_methods=open_methods), (service,))
    port = await server.start()
    two = Transport("n2", {"n2": f"127.0.0.1:{port}"})
    return two, server, known, gone, service


def test_the_listener_knows_who_came_and_refuses_who_left():
    async def story():
        two, server, known, gone, _ = await listening()
        agent = greeting(node="n9")
        assert (await ask(insecure(two, agent)))[2] == "unknown_node"
        known.add("n9")
        assert await ask(insecure(two, agent)) == b"n9 hello"
        known.discard("n9")
        gone.add("n9")
        code, why, kind = await ask(insecure(two, agent))
        assert (code, kind) == (grpc.StatusCode.FAILED_PRECONDITION, "removed")
        assert "join anew" in why
        await server.stop()

    run(story())


def test_open_methods_are_for_strangers_and_for_who_does_not_know_whom_it_reaches():
    async def story():
        two, server, _, _, service = await listening(open_methods={PATH + "unary"}, removed={"n8"})
        assert await ask(insecure(two, greeting(node="n9"))) == b"n9 hello"
        assert await ask(insecure(two, greeting(node="n9", to="n9"))) == b"n9 hello"
        assert await ask(insecure(two, greeting(node="n8", to="n8"))) == b"n8 hello", "to join anew"
        assert (await ask(insecure(two, greeting(node="n9", to="n3"))))[2] == "not_meant"
        assert (await ask(insecure(two, greeting(node="n9", cluster="other"))))[2] == "cluster"
        assert (await ask(insecure(two, greeting(node="n2", to="n2"))))[2] == "own_name"
        channel = insecure(two, greeting(node="n9", to="n9"))
        with pytest.raises(grpc.aio.AioRpcError):
            await channel.stream_unary(PATH + "takes")(iter(()))
        await channel.close()
        assert service.entered == ["unary"] * 3
        await server.stop()

    run(story())


def test_an_open_method_still_wants_a_certificate_of_the_name(tmp_path):
    async def story():
        folder = issued(tmp_path)
        two, server, _, _, _ = await listening(certificates(folder, "n2"), open_methods={PATH + "unary"},
                                               nodes={"n2"})

        def by(certificate, name):
            tls = certificates(folder, certificate)
            return grpc.aio.secure_channel(two.addresses["n2"], tls.channel_credentials(), [
                ("grpc.primary_user_agent", Greeting(CLUSTER, name, name, 1).agent()),
                ("grpc.ssl_target_name_override", certificate_name("n2", CLUSTER))])

        assert await ask(by("n3", "n3")) == b"n3 hello"
        assert (await ask(by("n3", "n1")))[2] == "not_certified"
        await server.stop()

    run(story())


def test_a_channel_follows_an_address_that_changed():
    async def story():
        addresses = {"n1": "127.0.0.1:1", "n2": "127.0.0.1:2"}
        channels = PeerChannels("n1", CLUSTER, addresses, None)
        before = channels.channel("n2")
        assert channels.channel("n2") is before
        addresses["n2"] = "127.0.0.1:3"
        after = channels.channel("n2")
        assert after is not before
        addresses["n3"] = "127.0.0.1:4"
        channels.channel("n3")
        assert channels.made == ["n2", "n3"]
        del addresses["n3"]
        channels.forget("n3")
        with pytest.raises(ValueError, match="another node"):
            channels.channel("n3")
        await channels.close()

    run(story())


def test_frames_reach_a_node_at_its_new_address_and_none_that_left():
    async def story():
        addresses = {}
        one, two = Transport("n1", addresses), Transport("n2", addresses)
        await one.start()
        await two.start()
        one.frames.send("n2", b"here")
        await until(lambda: two.got == [("n1", b"here")])
        await two.stop()
        moved = await Transport("n2", addresses).start()
        await until(lambda: not one.frames.connected("n2"))

        def heard():
            one.frames.send("n2", b"there")
            return moved.got

        await until(heard)
        address = addresses.pop("n2")
        one.frames.forget("n2")
        moved.frames.forget("n1")
        dropped = one.frames.counters.get("dropped_unknown_node", 0)
        one.frames.send("n2", b"nobody")
        assert one.frames.counters["dropped_unknown_node"] == dropped + 1
        assert not one.frames.connected("n2")
        addresses["n2"] = address
        seen = len(moved.got)
        await until(lambda: one.frames.send("n2", b"again") or len(moved.got) > seen)
        await one.stop()
        await moved.stop()

    run(story())
