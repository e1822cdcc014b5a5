"""Nodes ask each other how far they are, over the peer port."""

import asyncio

import pytest

from vecdb.cluster.founding import Founding
from vecdb.core.errors import Unavailable
from vecdb.rpc.founding import FoundingPeers, FoundingService
from vecdb.rpc.peer_channels import PeerChannels
from vecdb.rpc.peers_server import PeerServer, PeerServerOptions

NODES = ("n1", "n2")


def test_what_a_node_tells_arrives_and_silence_is_said():
    async def story():
        told = [None]
        server = PeerServer(PeerServerOptions("n1", "prod", "127.0.0.1:0", NODES, insecure=True),
                            [FoundingService(lambda: told[0])])
        port = await server.start()
        channels = PeerChannels("n2", "prod", {"n1": f"127.0.0.1:{port}", "n2": "127.0.0.1:1"}, None)
        strangers = PeerChannels("n2", "test", {"n1": f"127.0.0.1:{port}", "n2": "127.0.0.1:1"}, None)
        try:
            peers = FoundingPeers(channels)
            with pytest.raises(Unavailable):
                await peers.founding("n1")
            for founding in (Founding(7), Founding((1 << 32) - 1, ("n1/7", "n2/8")),
                             Founding(7, ("n1/7", "n2/8"), ("n1/7", "n2/8")), Founding(9, (), ("n1/7",), True)):
                told[0] = founding
                assert await peers.founding("n1") == founding
            with pytest.raises(Unavailable):
                await FoundingPeers(strangers).founding("n1")
            await server.stop()
            with pytest.raises(Unavailable):
                await peers.founding("n1")
        finally:
            await channels.close()
            await strangers.close()
            await server.stop()

    asyncio.run(story())
