"""What a node of a simulated cluster keeps its groups' states in: it outlives the node's processes."""

from collections.abc import Callable
from random import Random
from typing import Any, Protocol

from vecdb.ports.replicator import Position, StateMachine
from vecdb.testing.register import RegisterDisk, RegisterMachine

Seen = Callable[[int, Position, int], None]
"""Told of the state a machine gets to: its group, its position, a digest."""


class Home(Protocol):
    """A node's; the machines that :meth:`machine` opens die with the process."""

    def begin(self) -> None:
        """A process starts."""
        ...

    def machine(self, group: int) -> StateMachine:
        """Open a group's state, or make it."""
        ...

    def let_go(self, group: int, *, forget: bool) -> None:
        """The process is done with a group's machine; ``forget``: and with its state."""
        ...

    def do(self, work: Callable[[], Any]) -> Any:
        """What a thread of the process does with machines."""
        ...

    def seconds(self, random: Random, lane: str) -> float:
        """How long a thread takes for a piece of work."""
        ...

    def half(self, work: Callable[[], Any]) -> bool:
        """What a power cut may leave of such work; whether it came within it, so that nothing was done after it."""
        ...

    def crash(self, random: Random) -> dict[str, object]:
        """The power goes; what is worth telling of what was lost."""
        ...

    def refuse(self, group: int, refusing: bool) -> bool:
        """Let the disk under a group's state refuse writes, or take them again; whether there is one."""
        ...

    def spoil(self, random: Random, group: int | None = None) -> bool:
        """Flip a bit in what has arrived of a snapshot, of a group or any; whether there was something."""
        ...

    def hurt(self, random: Random, group: int) -> str:
        """Damage a group's state while no process runs; what was done, empty if nothing."""
        ...


class RegisterHome:
    """Registers, each group's on a disk of its own."""

    def __init__(self, seen: Seen) -> None:
        self.disks: dict[int, RegisterDisk] = {}
        self._seen = seen

    def begin(self) -> None:
        """There is nothing to open."""

    def machine(self, group: int) -> RegisterMachine:
        disk = self.disks.setdefault(group, RegisterDisk())
        return RegisterMachine(disk, lambda position, digest: self._seen(group, position, digest))

    def let_go(self, group: int, *, forget: bool) -> None:
        if forget:
            self.disks.pop(group, None)

    def do(self, work: Callable[[], Any]) -> Any:
        return work()

    def seconds(self, random: Random, lane: str) -> float:
        return random.uniform(0.0001, 0.002)

    def half(self, work: Callable[[], Any]) -> bool:
        try:
            work()
        except Exception:
            return False  # the process is gone; nobody is told
        return False

    def crash(self, random: Random) -> dict[str, object]:
        return {}

    def refuse(self, group: int, refusing: bool) -> bool:
        disk = self.disks.get(group)
        if disk is not None:
            disk.failing = refusing
        return disk is not None

    def spoil(self, random: Random, group: int | None = None) -> bool:
        found = [disk for at, disk in self.disks.items() if group in (None, at) and any(disk.pieces.values())]
        if not found:
            return False
        pieces = random.choice(found).pieces
        checksum = next(checksum for checksum, piece in pieces.items() if piece)
        spoiled = bytearray(pieces[checksum])
        spoiled[random.randrange(len(spoiled))] ^= 1
        pieces[checksum] = bytes(spoiled)
        return True

    def hurt(self, random: Random, group: int) -> str:
        """Nobody notices a flipped register: only logs are damaged here."""
        return ""
