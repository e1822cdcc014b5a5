"""A node's copiers, asked by another over a real listener."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from tests.unit.rpc.test_peers import _Refusing, soon
from vecdb.core.calls import Call
from vecdb.core.cluster import HASH_SPACE
from vecdb.core.errors import InvalidArgument, Unavailable, VecdbError
from vecdb.ports.copies import CopyOrder, CopyStatus, CopyTarget
from vecdb.ports.observer import NullObserver
from vecdb.rpc.copies import CopiesServicer, RemoteCopies
from vecdb.rpc.door import Guards
from vecdb.rpc.edge import Edge
from vecdb.rpc.peer import PEER_PREFIX
from vecdb.rpc.peer_channels import PeerChannels
from vecdb.rpc.peers import RemoteReplicas, cluster_guards
from vecdb.rpc.peers_server import PeerServer, PeerServerOptions
from vecdb.runtime.clock import SystemClock

HALF = HASH_SPACE // 2
TARGETS = (CopyTarget(9, 0, HALF, ("n1", "n2")), CopyTarget(10, HALF, HASH_SPACE, ("n3",)))
ORDER = CopyOrder(3, 9, 4, 0, HASH_SPACE, TARGETS, "tenant", 5 << 20)
STATUS = CopyStatus(3, 9, 4, "following", 100, 110, 1 << 40, 77, 80, "none")


class Own:
    def __init__(self) -> None:
        self.seen: list[object] = []
        self.failing: VecdbError | None = None
        self.found: CopyStatus | None = STATUS

    async def start(self, order: CopyOrder, call: Call) -> CopyStatus:
        self.seen.append(order)
        if self.failing is not None:
            raise self.failing
        return STATUS

    async def status(self, job: int, source: int, call: Call) -> CopyStatus | None:
        self.seen.append(("status", job, source))
        return self.found

    async def stop(self, job: int, source: int, call: Call) -> None:
        self.seen.append(("stop", job, source))


def _run(test: object) -> None:
    async def whole() -> None:
        own, refusing = Own(), _Refusing()
        guards = cluster_guards(Guards(refusing, refusing, refusing, refusing, NullObserver(), lambda *fault: None))
        with ThreadPoolExecutor(1) as workers:
            edges = [Edge(CopiesServicer(own).methods(), guards, workers, prefix=PEER_PREFIX)]
            server = PeerServer(PeerServerOptions("n2", "tests", "127.0.0.1:0", ("n1", "n2"), insecure=True), edges)
            port = await server.start()
            channels = PeerChannels("n1", "tests", {"n1": "127.0.0.1:1", "n2": f"127.0.0.1:{port}"}, None)
            try:
                async with asyncio.timeout(30):
                    await test(own, RemoteCopies(RemoteReplicas(channels, "n2", SystemClock())))  # type: ignore[operator]
            finally:
                await channels.close()
                await server.stop()

    asyncio.run(whole())


def test_everything_comes_back_as_it_was() -> None:
    async def test(own: Own, there: RemoteCopies) -> None:
        assert await there.start(ORDER, soon()) == STATUS
        assert await there.status(3, 4, soon()) == STATUS
        own.found = None
        assert await there.status(3, 4, soon()) is None
        await there.stop(3, 4, soon())
        assert own.seen == [ORDER, ("status", 3, 4), ("status", 3, 4), ("stop", 3, 4)]
        own.failing = Unavailable("no replica here", group=4)
        with pytest.raises(Unavailable, match="no replica here"):
            await there.start(ORDER, soon())

    _run(test)


@pytest.mark.parametrize("targets", [
    (), TARGETS[:1], TARGETS[1:], TARGETS[::-1], (replace(TARGETS[0], nodes=()), TARGETS[1]),
    (replace(TARGETS[0], group=0), TARGETS[1])])
def test_an_order_that_makes_no_sense_is_refused(targets: tuple[CopyTarget, ...]) -> None:
    async def test(own: Own, there: RemoteCopies) -> None:
        with pytest.raises(InvalidArgument):
            await there.start(replace(ORDER, targets=targets), soon())
        assert own.seen == []

    _run(test)
