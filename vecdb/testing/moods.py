"""A replicator that fails by chance where Raft seldom would: refusals and lost answers, as often as a test likes."""

from random import Random

from vecdb.core.errors import NotLeader, OutcomeUnknown, Overloaded
from vecdb.ports.replicator import Committed, ReplicaStatus, Replicator
from vecdb.testing.replicator import Chances


class Moody:
    """Another :class:`~vecdb.ports.replicator.Replicator` with :class:`~vecdb.testing.replicator.Chances`."""

    def __init__(self, replicator: Replicator, chances: Chances, random: Random) -> None:
        self._replicator, self._chances, self._random = replicator, chances, random

    async def propose(self, command: bytes, deadline: float | None) -> Committed:
        chances, chance, status = self._chances, self._random.random, self._replicator.status()
        if chance() < chances.deposed:
            raise NotLeader("another leads, or thinks so", leader=None)
        if chance() < chances.overloaded:
            raise Overloaded("too much is under way", retry_after_s=0.01)
        if status.role == "leader" and chance() < chances.lost:
            raise OutcomeUnknown("the leadership ended before the command was committed")
        done = await self._replicator.propose(command, deadline)
        if chance() < chances.unheard:
            raise OutcomeUnknown("the deadline passed before the command was known to be committed")
        return done

    async def read_index(self, deadline: float | None) -> int:
        if self._random.random() < self._chances.deposed:
            raise NotLeader("another leads, or thinks so", leader=None)
        return await self._replicator.read_index(deadline)

    async def wait_applied(self, log_index: int, deadline: float | None) -> None:
        await self._replicator.wait_applied(log_index, deadline)

    async def change_members(self, add: str | None, remove: str | None, deadline: float | None, *,
                             observe: bool = False) -> None:
        await self._replicator.change_members(add, remove, deadline, observe=observe)

    async def transfer(self, to: str | None, deadline: float | None) -> None:
        await self._replicator.transfer(to, deadline)

    def status(self) -> ReplicaStatus:
        return self._replicator.status()
