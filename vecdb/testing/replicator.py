"""The ``Replicator`` port without Raft: one log in memory that a test lets go wrong as it likes.

For tests of what stands on the port: which replica leads, how far followers are behind, whether an answer is lost on
its way, are all the test's to say, or chance's by a seed.  Everything happens at once, in one event loop, without time.
"""

import asyncio
from dataclasses import dataclass
from random import Random

from vecdb.core.errors import DeadlineExceeded, InvalidArgument, NotLeader, OutcomeUnknown, Overloaded, VecdbError
from vecdb.ports.replicator import Committed, Position, ReplicaStatus, StateMachine


@dataclass(slots=True)
class Chances:
    """Of one proposal, by a seed: each between 0 and 1, tried in this order."""

    deposed: float = 0.0
    """Another replica leads from now on; ``NotLeader``."""
    overloaded: float = 0.0
    lost: float = 0.0
    """``OutcomeUnknown``, and it was not done."""
    unheard: float = 0.0
    """``OutcomeUnknown``, and it was."""


class LoopGroup:
    """Replicas that share a log.  ``lagging``: followers apply only when told to by :meth:`catch_up`."""

    def __init__(self, machines: dict[str, StateMachine], *, seed: int = 0, chances: Chances | None = None,
                 lagging: bool = False) -> None:
        self.log: list[tuple[int, bytes]] = []
        """Terms and commands; the first stands at log index 1."""
        self.machines = machines
        self.replicators = {name: LoopReplicator(self, name) for name in machines}
        self.leader: str | None = next(iter(machines), None)
        self.term = 1
        self.chances = chances or Chances()
        self.lagging = lagging
        self._random = Random(seed)  # noqa: S311
        self._waiting: list[tuple[str, int, asyncio.Future[None]]] = []

    def lead(self, name: str | None) -> None:
        """Let another replica lead, or none; who leads has applied everything."""
        self.leader = name
        self.term += 1
        if name is not None:
            self.catch_up(name)

    def commit(self, command: bytes) -> Committed:
        """Append a command, apply it where the leader is, and on the followers unless they lag."""
        assert self.leader is not None, "somebody leads"
        self.catch_up(self.leader)
        self.log.append((self.term, command))
        result = self.catch_up(self.leader)
        if not self.lagging:
            for name in self.machines:
                self.catch_up(name)
        return Committed(len(self.log), result)

    def catch_up(self, name: str, to: int | None = None) -> object:
        """Apply on a replica what it lacks, up to the log index ``to``; returns what the last command did."""
        machine, result = self.machines[name], None
        upto = len(self.log) if to is None else to
        for at in range(machine.position().log_index, upto):
            term, command = self.log[at]
            result = machine.apply(at + 1, term, command)
        waiting, self._waiting = self._waiting, []
        for who, index, future in waiting:
            if who == name and index <= machine.position().log_index:
                if not future.done():
                    future.set_result(None)
            else:
                self._waiting.append((who, index, future))
        return result

    def rebuild(self, name: str, machine: StateMachine) -> None:
        """Replace a replica by an empty one that takes the leader's snapshot."""
        assert self.leader is not None, "somebody leads"
        snapshot = self.machines[self.leader].snapshot()
        incoming = machine.receive(Position(*snapshot.position), snapshot.files)
        for at, file in enumerate(snapshot.files):
            offset = incoming.have(at)
            incoming.write(at, offset, snapshot.read(at, offset, file.bytes - offset))
        incoming.install()
        incoming.close()
        snapshot.release()
        self.machines[name] = machine
        self.catch_up(name)

    def propose(self, name: str, command: bytes) -> Committed:
        """What becomes of a proposal, chance permitting."""
        chances, chance = self.chances, self._random.random
        if chance() < chances.deposed:
            self.lead(self._random.choice(list(self.machines)))
        if name != self.leader:
            raise NotLeader(f"{self.leader} leads", leader=self.leader)
        if chance() < chances.overloaded:
            raise Overloaded("too much is under way", retry_after_s=0.01)
        if chance() < chances.lost:
            raise OutcomeUnknown("the leadership ended before the write was committed")
        done = self.commit(command)
        if chance() < chances.unheard:
            raise OutcomeUnknown("the deadline passed before the write was known to be committed")
        if isinstance(done.result, VecdbError):
            raise done.result
        return done

    async def wait(self, name: str, log_index: int, deadline: float | None) -> None:
        if self.machines[name].position().log_index >= log_index:
            return
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((name, log_index, future))
        try:
            async with asyncio.timeout_at(deadline):
                await future
        except TimeoutError:
            raise DeadlineExceeded("the deadline passed before the replica had applied it") from None


class LoopReplicator:
    """One replica's :class:`~vecdb.ports.replicator.Replicator`."""

    def __init__(self, group: LoopGroup, name: str) -> None:
        self._group = group
        self._name = name

    async def propose(self, command: bytes, deadline: float | None) -> Committed:
        return self._group.propose(self._name, command)

    async def read_index(self, deadline: float | None) -> int:
        if self._group.leader != self._name:
            raise NotLeader(f"{self._group.leader} leads", leader=self._group.leader)
        self._group.catch_up(self._name)
        return len(self._group.log)

    async def wait_applied(self, log_index: int, deadline: float | None) -> None:
        await self._group.wait(self._name, log_index, deadline)

    async def change_members(self, add: str | None, remove: str | None, deadline: float | None, *,
                             observe: bool = False) -> None:
        if add is not None:
            raise InvalidArgument("add", "a machine is needed: see LoopGroup.rebuild", got=add)
        if remove is not None:
            del self._group.machines[remove], self._group.replicators[remove]

    async def transfer(self, to: str | None, deadline: float | None) -> None:
        others = [name for name in self._group.machines if name != self._name]
        self._group.lead(to or others[0])

    def status(self) -> ReplicaStatus:
        group = self._group
        applied = group.machines[self._name].position().log_index
        return ReplicaStatus(
            me=self._name, state="ok", role="leader" if group.leader == self._name else "follower", term=group.term,
            leader=group.leader, commit=len(group.log), applied=applied, first=1, last=len(group.log),
            log_bytes=sum(len(command) for _, command in group.log), voters=tuple(group.machines))
