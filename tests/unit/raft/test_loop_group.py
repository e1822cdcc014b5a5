"""The port without Raft behaves as the port says, when it is let go wrong as well."""

import asyncio

import pytest

from vecdb.core.errors import DeadlineExceeded, InvalidArgument, NotLeader, OutcomeUnknown, Overloaded
from vecdb.ports.replicator import Replicator, StateMachine
from vecdb.raft.driver import GroupReplicator
from vecdb.testing.register import WRITE, RegisterDisk, RegisterMachine, command
from vecdb.testing.replicator import Chances, LoopGroup, LoopReplicator


def machine() -> StateMachine:
    return RegisterMachine(RegisterDisk())


def group(**more):
    return LoopGroup({name: machine() for name in ("a/1", "b/1", "c/1")}, **more)


def test_both_are_the_port():
    for kind in (LoopReplicator, GroupReplicator):
        for name in ("propose", "read_index", "wait_applied", "change_members", "transfer", "status"):
            assert callable(getattr(kind, name))
    replicator: Replicator = group().replicators["a/1"]
    assert replicator.status().role == "leader"


def test_commands_reach_everybody_or_those_who_lag_when_told():
    async def story():
        every = group(lagging=True)
        done = await every.replicators["a/1"].propose(command(WRITE, 1, 1, 3, 7), None)
        assert (done.log_index, done.result) == (1, True)
        assert every.machines["b/1"].state.values == {}
        with pytest.raises(DeadlineExceeded):
            await every.replicators["b/1"].wait_applied(1, asyncio.get_running_loop().time())
        waiting = asyncio.ensure_future(every.replicators["b/1"].wait_applied(1, None))
        await asyncio.sleep(0)
        every.catch_up("b/1")
        await waiting
        assert every.machines["b/1"].state.values == {3: 7}
        with pytest.raises(NotLeader) as refused:
            await every.replicators["b/1"].propose(b"", None)
        assert refused.value.leader == "a/1"
        with pytest.raises(InvalidArgument):
            await every.replicators["a/1"].propose(command(99, 1, 2, 3, 7), None)
        every.rebuild("c/1", machine())
        assert every.machines["c/1"].state == every.machines["a/1"].state
        await every.replicators["a/1"].transfer("c/1", None)
        assert await every.replicators["c/1"].read_index(None) == 2

    asyncio.run(story())


def test_what_goes_wrong_is_told_as_the_port_says():
    async def story():
        every = group(seed=4, chances=Chances(deposed=0.1, overloaded=0.1, lost=0.2, unheard=0.2))
        told, sequence = [], 0
        for _ in range(300):
            sequence += 1
            while True:
                try:
                    assert every.leader is not None
                    await every.replicators[every.leader].propose(command(WRITE, 1, sequence, 1, sequence), None)
                except (NotLeader, Overloaded, OutcomeUnknown) as error:
                    told.append(type(error))
                else:
                    break
        assert set(told) == {NotLeader, Overloaded, OutcomeUnknown}
        for one in every.machines.values():
            assert one.state.applied == {1 << 32 | at: 1 for at in range(1, sequence + 1)}
        assert len(every.log) > 300

    asyncio.run(story())
