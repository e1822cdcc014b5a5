"""The Replicator port over an event loop, threads and RocksDB."""

import asyncio
import contextlib

import pytest

from tests.unit.raft.wires import LoopFrames
from vecdb.core.errors import DeadlineExceeded, InvalidArgument, NotLeader, OutcomeUnknown, Unavailable
from vecdb.raft.driver import Driver
from vecdb.raft.settings import RaftSettings
from vecdb.storage.rocksdict import RocksStore
from vecdb.testing.register import COMPARE_AND_SET, WRITE, RegisterDisk, RegisterMachine, command

NODES = ["n1", "n2", "n3"]
VOTERS = tuple(f"{node}/1" for node in NODES)


class Machines:
    """Three nodes with a group each, in this loop."""

    def __init__(self, tmp_path, settings):
        self.tmp_path, self.settings = tmp_path, settings
        self.wires, self.stores, self.drivers, self.groups, self.machines, self.disks = {}, {}, {}, {}, {}, {}

    def start(self, node, *, number=1, voters=VOTERS, existing=False):
        self.wires[node] = LoopFrames(self.wires, node)
        self.stores[node] = RocksStore(self.tmp_path / node)
        self.drivers[node] = Driver(node, self.stores[node], self.wires[node], seed=NODES.index(node) if node in NODES
                                    else 9, settings=self.settings)
        self.machines[node] = RegisterMachine(self.disks.setdefault(node, RegisterDisk()))
        self.groups[node] = self.drivers[node].add(7, self.machines[node], number=number, voters=voters,
                                                   existing=existing)

    def stop(self, node):
        self.wires.pop(node)
        self.drivers.pop(node).close()
        self.stores.pop(node).close()
        del self.groups[node]

    def stop_all(self):
        for node in list(self.drivers):
            self.stop(node)

    async def leader(self):
        while True:
            leading = [node for node, group in self.groups.items() if group.status().role == "leader"]
            if leading:
                return max(leading, key=lambda node: self.groups[node].status().term)
            await asyncio.sleep(0.01)


def run(tmp_path, settings, story):
    async def whole():
        machines = Machines(tmp_path, settings)
        try:
            for node in NODES:
                machines.start(node)
            async with asyncio.timeout(60):
                await story(machines)
        finally:
            machines.stop_all()

    asyncio.run(whole())


def test_a_command_is_answered_with_what_it_did_everywhere(tmp_path, quick):
    async def story(machines):
        leader = machines.groups[await machines.leader()]
        first = await leader.propose(command(WRITE, 1, 1, 5, 42), None)
        assert first.result is True
        missed = await leader.propose(command(COMPARE_AND_SET, 1, 2, 5, 1, 9), None)
        assert missed.result is False
        assert missed.log_index > first.log_index
        with pytest.raises(InvalidArgument):
            await leader.propose(command(77, 1, 3, 5, 1), None)
        assert await leader.read_index(None) >= missed.log_index
        for node, group in machines.groups.items():
            await group.wait_applied(missed.log_index, None)
            assert machines.machines[node].state.values == {5: 42}

    run(tmp_path, quick, story)


def test_a_command_that_raises_what_nobody_foresaw_is_told_of_where_it_did(tmp_path, quick):
    """It hinders no other command; where it is one replica's alone nothing else would say that it differs now."""
    async def story(machines):
        leader = await machines.leader()
        one = next(node for node in NODES if node != leader)
        told = {node: [] for node in NODES}
        for node, driver in machines.drivers.items():
            driver.host.tell = lambda level, event, node=node, **fields: told[node].append((level, event, fields))
        real = machines.machines[one].apply

        def apply(log_index, term, command):
            if log_index == index + 1:
                raise RuntimeError("of this node alone")
            return real(log_index, term, command)

        index = (await machines.groups[leader].propose(command(WRITE, 1, 1, 5, 42), None)).log_index
        machines.machines[one].apply = apply
        assert (await machines.groups[leader].propose(command(WRITE, 1, 2, 6, 43), None)).log_index == index + 1
        await machines.groups[leader].propose(command(WRITE, 1, 3, 7, 44), None)
        for group in machines.groups.values():
            await group.wait_applied(index + 2, None)
        failed = {node: [(level, fields["index"], fields["error"]) for level, event, fields in events
                         if event == "raft_command_failed"] for node, events in told.items()}
        assert failed == {node: [] for node in NODES if node != one} | {
            one: [("error", index + 1, "RuntimeError: of this node alone")]}
        assert machines.machines[one].state.values == {5: 42, 7: 44}

    run(tmp_path, quick, story)


def test_followers_refuse_with_a_hint_and_deadlines_hold(tmp_path, quick):
    async def story(machines):
        leader = await machines.leader()
        await machines.groups[leader].propose(command(WRITE, 1, 1, 5, 42), None)
        follower = machines.groups[next(node for node in NODES if node != leader)]
        loop = asyncio.get_running_loop()
        await follower.wait_applied((await machines.groups[leader].read_index(None)), loop.time() + 30)
        with pytest.raises(NotLeader) as refused:
            await follower.propose(command(WRITE, 1, 2, 5, 1), None)
        assert refused.value.leader == f"{leader}/1"
        with pytest.raises(NotLeader):
            await follower.read_index(None)
        with pytest.raises(DeadlineExceeded):
            await follower.wait_applied(10_000, loop.time() + 0.05)
        assert not follower._replica._waiting
        with pytest.raises(DeadlineExceeded):
            await machines.groups[leader].propose(command(WRITE, 1, 2, 5, 1), loop.time() - 1)
        for node in [node for node in NODES if node != leader]:
            machines.stop(node)
        with pytest.raises(OutcomeUnknown):
            await machines.groups[leader].propose(command(WRITE, 1, 2, 5, 1), loop.time() + 0.05)
        with pytest.raises((NotLeader, OutcomeUnknown)):
            await machines.groups[leader].propose(command(WRITE, 1, 3, 5, 1), None)

    run(tmp_path, quick, story)


def test_what_was_acknowledged_outlives_the_leader_and_a_restart_of_all(tmp_path, quick):
    async def story(machines):
        for at in range(1, 40):
            node = await machines.leader()
            await machines.groups[node].propose(command(WRITE, 1, at, at, at), None)
        machines.stop(node)
        other = await machines.leader()
        await machines.groups[other].propose(command(WRITE, 1, 40, 40, 40), None)
        machines.stop_all()
        for node in NODES:
            machines.start(node, existing=True)
        node = await machines.leader()
        await machines.groups[node].read_index(None)
        assert machines.machines[node].state.values == {at: at for at in range(1, 41)}

    run(tmp_path, quick, story)


def test_a_new_member_gets_a_snapshot_and_becomes_a_voter_and_one_leaves(tmp_path, quick):
    async def story(machines):
        async def insist(ask):
            """Who leads may change at any time on a busy machine."""
            while True:
                with contextlib.suppress(Unavailable, OutcomeUnknown):
                    return await ask(machines.groups[await machines.leader()])
                await asyncio.sleep(0.01)

        for at in range(1, 300):
            await insist(lambda group, at=at: group.propose(command(WRITE, 1, at, at % 7, at), None))
        while any(group.status().first == 2 for group in machines.groups.values()):
            at += 1
            await insist(lambda group, at=at: group.propose(command(WRITE, 1, at, 0, at), None))
            for replica in machines.groups.values():
                replica._replica._checkpoint()
            await asyncio.sleep(0.01)
        machines.start("n4", number=2, voters=())
        while "n4/2" not in machines.groups[await machines.leader()].status().voters:
            with contextlib.suppress(InvalidArgument):  # it is a member already, and not yet a voter
                await insist(lambda group: group.change_members("n4/2", None, None))
            await asyncio.sleep(0.01)
        assert machines.machines["n4"].installs >= 1
        leaving = after = await machines.leader()
        refused = []
        while f"{leaving}/1" in machines.groups[after].status().voters:
            try:
                await machines.groups[after].change_members(None, f"{leaving}/1", None)
            except (Unavailable, OutcomeUnknown) as error:
                refused.append(type(error))
                await asyncio.sleep(0.01)
                after = await machines.leader()
        assert NotLeader in refused, "who led was to leave, and handed over"
        assert after != leaving
        machines.stop(leaving)
        await insist(lambda group: group.propose(command(WRITE, 2, 1, 3, 33), None))
        assert len(machines.groups[await machines.leader()].status().voters) == 3

    run(tmp_path, quick, story)


def test_a_group_can_be_closed_and_opened_and_forgotten(tmp_path, quick):
    async def story(machines):
        node = await machines.leader()
        group, driver = machines.groups[node], machines.drivers[node]
        proposals = [asyncio.ensure_future(group.propose(command(WRITE, 1, at, at, at), None)) for at in range(1, 30)]
        waiting = asyncio.ensure_future(group.wait_applied(10_000, None))
        await asyncio.sleep(0)
        await driver.remove(7)
        for outcome in await asyncio.gather(*proposals, return_exceptions=True):
            assert not isinstance(outcome, BaseException) or isinstance(outcome, OutcomeUnknown)
        with pytest.raises(Unavailable):
            await waiting
        machines.groups[node] = driver.add(7, RegisterMachine(RegisterDisk()), number=1, existing=True)
        assert machines.groups[node].status().me == f"{node}/1"
        after = await machines.leader()
        index = (await machines.groups[after].propose(command(WRITE, 2, 1, 1, 1), None)).log_index
        await machines.groups[node].wait_applied(index, None)
        await driver.remove(7, forget=True)
        assert list(driver.host.store.groups()) == []

    run(tmp_path, quick, story)


def test_leadership_is_handed_over(tmp_path, quick):
    async def story(machines):
        leader = await machines.leader()
        group = machines.groups[leader]
        await group.propose(command(WRITE, 1, 1, 1, 1), None)
        to = next(node for node in NODES if node != leader)
        while machines.groups[to].status().role != "leader":
            leads = await machines.leader()
            if leads != to:
                with contextlib.suppress(NotLeader, Unavailable):  # too late on a busy machine: asked for again
                    await machines.groups[leads].transfer(f"{to}/1", None)
            await asyncio.sleep(0.01)
        with pytest.raises(NotLeader):
            await group.transfer(None, None)

    run(tmp_path, quick, story)


def test_a_closed_driver_refuses(tmp_path, quick):
    async def story(machines):
        node = await machines.leader()
        group, driver = machines.groups[node], machines.drivers[node]
        machines.stop(node)
        with pytest.raises(Unavailable):
            await group.propose(b"x", None)
        with pytest.raises(Unavailable):
            driver.add(8, RegisterMachine(RegisterDisk()), number=1, voters=VOTERS)
        driver.close()

    run(tmp_path, quick, story)


def test_a_new_group_waits_for_no_timeout_and_its_first_leader_is_known(tmp_path):
    patient = RaftSettings(heartbeat_s=0.02, election_s_min=300.0, election_s_max=600.0)

    async def story(machines):
        assert await machines.leader() == "n2"  # 7 modulo 3 of the voters
        await machines.groups["n2"].propose(command(WRITE, 1, 1, 5, 42), None)

    run(tmp_path, patient, story)


def test_who_was_removed_and_begins_afresh_is_put_in_its_old_place(tmp_path, quick):
    async def story(machines):
        leader = await machines.leader()
        group, other = machines.groups[leader], next(node for node in NODES if node != leader)
        await group.propose(command(WRITE, 1, 1, 5, 42), None)
        await machines.drivers[other].remove(7)
        machines.groups[other] = machines.drivers[other].add(7, machines.machines[other], number=1, existing=True,
                                                             afresh=True)
        me = machines.groups[other].status().me
        assert me != f"{other}/1"
        while me not in group.status().voters:
            await asyncio.sleep(0.01)
        assert f"{other}/1" not in group.status().voters
        assert machines.drivers[other].logs() == [7]
        with pytest.raises(InvalidArgument):
            machines.drivers[other].forget(7)
        await machines.drivers[other].remove(7)
        machines.drivers[other].forget(7)
        while machines.drivers[other].logs():
            await asyncio.sleep(0.01)
        assert machines.drivers[other].failure is None

    run(tmp_path, quick, story)
