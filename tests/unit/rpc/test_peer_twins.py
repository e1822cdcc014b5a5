"""Two processes by one node's name: the one at the node's address is let in, and keeps its streams."""

import asyncio

import grpc

from tests.peer_transports import Transport
from tests.unit.rpc.test_peers_server import PATH, Service, ask, greeting, insecure
from tests.waiting import until
from vecdb.core.errors import Unavailable
from vecdb.rpc.peer_twins import AGAIN_S, Twins


def run(story):
    asyncio.run(asyncio.wait_for(story, 60))


class Address:
    """What answers at the address of n1; 0: an older release, None: nobody."""

    def __init__(self, process):
        self.process, self.asked, self.now = process, [], 100.0

    async def __call__(self, node, incarnation, host):
        self.asked.append((node, incarnation, host))
        if self.process is None:
            raise Unavailable("nobody")
        return self.process


def test_a_process_is_asked_for_only_where_another_one_calls():
    async def story():
        address = Address(5)
        twins = Twins(address, lambda: address.now)
        assert twins.settled("n1", 5)
        assert twins.settled("n1", 5)
        assert not twins.settled("n1", 6)
        assert not await twins.admits("n1", 6, "h")
        assert twins.settled("n1", 5), "the one at the address is the node"
        assert not await twins.admits("n1", 6, "h"), "and an answer is good for a moment"
        assert address.asked == [("n1", 6, "h")]
        address.now += AGAIN_S
        address.process = 6  # a restart
        assert await twins.admits("n1", 6, "h")
        assert (twins.confirmed("n1", 6), twins.confirmed("n1", 5)) == (True, False)

    run(story())


def test_where_nobody_answers_the_later_one_is_believed():
    async def story():
        for answer in (0, None):
            twins = Twins(Address(answer))
            assert twins.settled("n1", 5)
            assert await twins.admits("n1", 4, "h")
            assert twins.settled("n1", 4)
            assert not twins.confirmed("n1", 4)

    run(story())


def listening(address):
    return Transport("n2", {}, services=(Service(),), ask=address, unasked_methods=(PATH + "takes",)).start()


def test_calls_of_another_process_are_refused_counted_and_told():
    async def story():
        address = Address(7)
        two = await listening(address)
        assert await ask(insecure(two, greeting(incarnation=7))) == b"n1 hello"
        assert address.asked == []
        for _ in range(2):
            code, why, kind = await ask(insecure(two, greeting(incarnation=8)))
            assert (code, kind) == (grpc.StatusCode.FAILED_PRECONDITION, "node_twice")
            assert "two nodes have this name" in why
        channel = insecure(two, greeting(incarnation=8))
        assert await channel.stream_unary(PATH + "takes")(iter([b"a"])) == b"n1 a", "by which it is asked"
        await channel.close()
        assert await ask(insecure(two, greeting(incarnation=7))) == b"n1 hello"
        assert two.server.refused["node_twice"] == 2
        assert [(level, event, fields["about"]) for level, event, fields in two.told] == [("error", "node_twice", "n1")]
        assert address.asked[0] == ("n1", 8, "127.0.0.1")
        await two.stop()

    run(story())


def test_a_later_process_does_not_end_the_streams_of_the_node_and_loses_those_it_got():
    async def story():
        address = Address(None)
        two = await listening(address)
        one = await Transport("n1", two.addresses, incarnation=7).start()
        twin = await Transport("n1", dict(two.addresses), incarnation=8).start()
        one.frames.send("n2", b"one")
        await until(lambda: two.got == [("n1", b"one")])
        twin.frames.send("n2", b"twin")  # gets in, as nobody answers
        await until(lambda: ("n1", b"twin") in two.got)
        address.process = 7
        await until(lambda: one.frames.connected("n2") and not twin.frames.connected("n2"))
        for at in range(3):
            twin.frames.send("n2", b"twin again")
            one.frames.send("n2", b"%d" % at)
            await until(lambda at=at: ("n1", b"%d" % at) in two.got)
        assert ("n1", b"twin again") not in two.got
        assert one.frames.connected("n2")
        for node in (one, twin):
            await node.stop()
        await two.stop()

    run(story())
