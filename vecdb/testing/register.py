"""A small state machine: registers by key, written, compared-and-set and read; retries known by client and sequence.

A command is ``opcode | version | client | sequence | key | value | expected``.  The machine keeps, beside its
registers, a chain of digests over everything it has applied, so that two replicas can be held against each other at any
log index.
"""

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

import orjson
import xxhash

from vecdb.core.errors import DataCorrupted, InvalidArgument, StorageError
from vecdb.ports.replicator import Position, SnapshotFile

_COMMAND: Final = struct.Struct("<BBQQIqq")
VERSION: Final = 1
WRITE: Final = 1
COMPARE_AND_SET: Final = 2
RAISE: Final = 3
"""A bug in the machine, for scenarios."""


def command(opcode: int, client: int, sequence: int, key: int, value: int, expected: int = 0) -> bytes:
    return _COMMAND.pack(opcode, VERSION, client, sequence, key, value, expected)


@dataclass(slots=True)
class Registers:
    """The replicated state; plain numbers, so that it can be written as JSON."""

    position: Position = field(default_factory=lambda: Position(0, 0))
    digest: int = 0
    values: dict[int, int] = field(default_factory=dict)
    last: dict[int, tuple[int, bool]] = field(default_factory=dict)
    """By client: its last sequence and what came of it."""
    applied: dict[int, int] = field(default_factory=dict)
    """By client and sequence, as one number: how often its effect took place."""

    def to_bytes(self) -> bytes:
        return orjson.dumps([*self.position, self.digest, sorted(self.values.items()), sorted(self.last.items()),
                             sorted(self.applied.items())])

    @classmethod
    def from_bytes(cls, value: bytes) -> "Registers":
        index, term, digest, values, last, applied = orjson.loads(value)
        return cls(Position(index, term), digest, dict(values), {client: (seq, done) for client, (seq, done) in last},
                   dict(applied))


@dataclass(slots=True)
class RegisterDisk:
    """What of a machine outlives its process: the state of its last checkpoint, pieces of snapshots."""

    state: bytes = field(default_factory=lambda: Registers().to_bytes())
    pieces: dict[int, bytes] = field(default_factory=dict)
    """By checksum of the whole file."""
    failing: bool = False
    """Refuse writes."""


class RegisterMachine:
    """The :class:`~vecdb.ports.replicator.StateMachine` of a simulation; ``seen`` is told of each state it gets to."""

    def __init__(self, disk: RegisterDisk, seen: Callable[[Position, int], None] = lambda position, digest: None,
                 dedupe: bool = True) -> None:
        self.disk = disk
        self.state = Registers.from_bytes(disk.state)
        self.seen = seen
        self.dedupe = dedupe
        self.installs = 0

    def position(self) -> Position:
        return self.state.position

    def apply(self, log_index: int, term: int, command: bytes) -> object:
        state = self.state
        if self.disk.failing:
            raise StorageError("the simulated disk refuses")
        assert log_index > state.position.log_index, "applied in order, each once"
        opcode, version, client, sequence, key, value, expected = _COMMAND.unpack(command)
        if version != VERSION or opcode not in (WRITE, COMPARE_AND_SET):
            if opcode == RAISE:
                raise RuntimeError("a bug")
            return InvalidArgument("opcode", "unknown", got=opcode)
        known, done = state.last.get(client, (0, False))
        if not self.dedupe or sequence > known:
            done = opcode == WRITE or state.values.get(key, 0) == expected
            if done:
                state.values[key] = value
            state.last[client] = (sequence, done)
            at = client << 32 | sequence
            state.applied[at] = state.applied.get(at, 0) + 1
        state.position = Position(log_index, term)
        state.digest = xxhash.xxh3_64_intdigest(command, state.digest ^ (log_index * 31 + term))
        self.seen(state.position, state.digest)
        return done

    def checkpoint(self) -> Position:
        self.disk.state = self.state.to_bytes()
        return self.state.position

    def snapshot(self) -> "RegisterSnapshot":
        self.checkpoint()
        whole = self.disk.state
        middle = len(whole) // 2
        return RegisterSnapshot(self.state.position, (whole[:middle], whole[middle:]))

    def receive(self, position: Position, files: Sequence[SnapshotFile]) -> "RegisterIncoming":
        return RegisterIncoming(self, position, list(files))


class RegisterSnapshot:
    """A state cut in two files."""

    def __init__(self, position: Position, parts: tuple[bytes, ...]) -> None:
        self.position = position
        self._parts = parts
        self.files: Sequence[SnapshotFile] = [
            SnapshotFile(f"part{at}", len(part), xxhash.xxh3_64_intdigest(part)) for at, part in enumerate(parts)]
        self.released = False

    def read(self, file: int, offset: int, length: int) -> bytes:
        assert not self.released, "released once nobody reads"
        return self._parts[file][offset:offset + length]

    def release(self) -> None:
        self.released = True


class RegisterIncoming:
    """Pieces are kept by checksum, so an attempt goes on where an earlier one was cut."""

    def __init__(self, machine: RegisterMachine, position: Position, files: list[SnapshotFile]) -> None:
        self._machine = machine
        self._position = position
        self._files = files

    def have(self, file: int) -> int:
        return len(self._machine.disk.pieces.get(self._files[file].checksum, b""))

    def write(self, file: int, offset: int, data: bytes) -> None:
        pieces, checksum = self._machine.disk.pieces, self._files[file].checksum
        assert self.have(file) == offset, "in order"
        pieces[checksum] = pieces.get(checksum, b"") + data

    def install(self) -> None:
        pieces = self._machine.disk.pieces
        for file in self._files:
            if xxhash.xxh3_64_intdigest(pieces.get(file.checksum, b"")) != file.checksum:
                pieces.pop(file.checksum, None)
                raise DataCorrupted("a file of the snapshot does not match its checksum", path=file.name)
        whole = b"".join(pieces[file.checksum] for file in self._files)
        pieces.clear()
        state = Registers.from_bytes(whole)
        assert state.position == self._position, "the snapshot is of the place it says"
        self._machine.disk.state = whole
        self._machine.state = state
        self._machine.installs += 1
        self._machine.seen(state.position, state.digest)

    def close(self) -> None:
        """What has come stays."""
