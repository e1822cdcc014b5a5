"""The product's own shard replicas in a simulated cluster: a database a node, on a disk that forgets.

Each life of a node opens its :class:`~vecdb.services.local.LocalDatabase` anew over what the last one left.  Nothing
runs by itself: sealing, merging and compacting happen a step at a time, as work of the node's threads.
"""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, Final, NoReturn

from vecdb.core.errors import DataCorrupted, VecdbError
from vecdb.core.schema import CollectionSchema, IndexSpec, Metric
from vecdb.ports.replicator import Incoming, Position, Snapshot, SnapshotFile
from vecdb.services.homes import folder_of
from vecdb.services.jobs import Job
from vecdb.services.local import LocalDatabase
from vecdb.services.replica import ShardReplica
from vecdb.services.settings import EngineSettings
from vecdb.testing.files import Disk
from vecdb.testing.synced import Synced
from vecdb.testing.violation import Violation
from vecdb.testing.world import World

DIM: Final = 4


def cut_after(random: Random) -> int:
    """The step of some work before which the power goes: a write has one or two, a merge or a snapshot a dozen."""
    return random.randint(1, random.choice((2, 6, 25)))


class VirtualClock:
    """The world's time as the :class:`~vecdb.ports.clock.Clock` of services."""

    def __init__(self, world: World) -> None:
        self._world = world

    def monotonic(self) -> float:
        return self._world.now

    def wall(self) -> float:
        return 1_700_000_000.0 + self._world.now

    def sleep(self, seconds: float) -> NoReturn:
        raise AssertionError("nothing sleeps in virtual time: who would wake it?")


class Serial:
    """A :class:`~vecdb.ports.compute.Compute` without threads."""

    threads = 1
    sharing = nullcontext(1)

    def run(self, thunks: Sequence[Callable[[], None]]) -> None:
        for thunk in thunks:
            thunk()


def name_of(group: int) -> str:
    """The collection whose shard a group replicates."""
    return f"collection{group}"


@dataclass(frozen=True, slots=True)
class ShardWorld:
    """What the shards of one simulated cluster have in common.

    ``applied`` is told of what every command did on every replica, and of every state installed (then with log index
    and command of None).
    """

    world: World
    root: Path
    synced: Synced
    settings: EngineSettings
    index: IndexSpec
    applied: "Callable[[str, int, ShardReplica, int, bytes | None, object], None]"

    def schema(self, group: int) -> CollectionSchema:
        return CollectionSchema(name_of(group), DIM, Metric.L2, index=self.index)

    def home(self, node: str) -> "ShardHome":
        return ShardHome(self, node)


class ShardHome:
    """A node's :class:`~vecdb.testing.homes.Home`."""

    def __init__(self, shards: ShardWorld, node: str) -> None:
        self._shards = shards
        self._node = node
        self.disk = Disk(shards.root / node, shards.synced)
        self.disk.chance = shards.world.random
        self.damaged: dict[int, bool] = {}
        """Groups whose state was hurt on purpose, and not made anew since."""
        self._database: LocalDatabase | None = None

    @property
    def database(self) -> LocalDatabase:
        assert self._database is not None, "asked while a process runs"
        return self._database

    def begin(self) -> None:
        shards = self._shards
        self._database = LocalDatabase(self.disk.root, self.disk.open_store, Serial(), VirtualClock(shards.world),
                                       shards.settings, on_job_error=_no_jobs, on_close=lambda: None)

    def machine(self, group: int) -> "Watched":
        database, name = self.database, name_of(group)
        database.host(self._shards.schema(group), folder_of(group))
        try:
            replica = database.replica(name)
        except DataCorrupted as error:
            if not self.damaged.pop(group, False):
                raise Violation(f"{self._node}: the state of group {group} is damaged, and nobody did that: "
                                f"{error.message}") from error
            self._shards.world.happened["states_set_aside"] += 1
            database.set_aside(name)
            replica = database.replica(name)
        return Watched(replica, self._node, group, self._shards.applied)

    def let_go(self, group: int, *, forget: bool) -> None:
        name = name_of(group)
        if forget and name in self.database.hosted():
            self.database.unhost(name)
            self.damaged.pop(group, None)

    def tend(self, group: int) -> str | None:
        """A step of what background jobs would do."""
        return self.database.tend(name_of(group))

    # --- faults -----------------------------------------------------------------------------------

    def do(self, work: Callable[[], Any]) -> Any:
        with self.disk.at_work():
            return work()

    def seconds(self, random: Random, lane: str) -> float:
        """Commands and reads are quick, what is long is not always: so that the power goes while it is under way."""
        slow = {"checkpoint": 0.5, "snapshot": 0.5, "upkeep": 0.5, "install": 0.1}.get(lane.partition("/")[0], 0.0)
        return random.uniform(0.01, 0.4) if random.random() < slow else random.uniform(0.0001, 0.002)

    def half(self, work: Callable[[], Any]) -> bool:
        cut = self.disk.cut_within(work, cut_after(self._shards.world.random))
        self._shards.world.happened["cuts_within"] += cut
        return cut

    def crash(self, random: Random) -> dict[str, object]:
        self._database = None
        batches, lost = self.disk.crash(random)
        happened = self._shards.world.happened
        happened["batches_lost"] += batches
        happened["names_lost"] += len(lost)
        return {"rows_lost": batches, "files_lost": lost}

    def refuse(self, group: int, refusing: bool) -> bool:
        self.disk.failing = refusing
        return True

    def spoil(self, random: Random, group: int | None = None) -> bool:
        assert group is not None
        folder = self.disk.root / "collections" / folder_of(group) / "incoming"
        pieces = [path for path in sorted(folder.glob("*")) if path.stat().st_size]
        if pieces:
            flip(random.choice(pieces), random)
            self.damaged[group] = True
        return bool(pieces)

    def hurt(self, random: Random, group: int) -> str:
        folder = self.disk.root / "collections" / folder_of(group)
        files = sorted(folder.glob("*/segments/*/*.vdb"))
        stores = self.disk.stores_below(folder)
        done = ""
        if files and random.random() < 0.7:
            path = random.choice(files)
            done = f"{path.relative_to(folder)} byte {flip(path, random)}"
        elif stores:
            row = random.choice(stores).spoil(random)
            done = "" if row is None else f"row {row.hex()}"
        if done:
            self.damaged[group] = True
        return done


class Watched:
    """A replica as a :class:`~vecdb.ports.replicator.StateMachine` that judges hear."""

    def __init__(self, replica: ShardReplica, node: str, group: int,
                 applied: Callable[[str, int, ShardReplica, int, bytes | None, object], None]) -> None:
        self.replica = replica
        self._node = node
        self._group = group
        self._applied = applied

    def position(self) -> Position:
        return self.replica.position()

    def apply(self, log_index: int, term: int, command: bytes) -> object:
        outcome = self.replica.apply(log_index, term, command)
        self._applied(self._node, self._group, self.replica, log_index, command, outcome)
        return outcome

    def checkpoint(self) -> Position:
        return self.replica.checkpoint()

    def snapshot(self) -> Snapshot:
        return self.replica.snapshot()

    def receive(self, position: Position, files: Sequence[SnapshotFile]) -> Incoming:
        return WatchedIncoming(self.replica.receive(position, files), self.installed)

    def installed(self) -> None:
        self._applied(self._node, self._group, self.replica, self.replica.position().log_index, None, None)


class WatchedIncoming:
    """A snapshot on its way to a replica that judges hear."""

    def __init__(self, incoming: Incoming, installed: Callable[[], None]) -> None:
        self._incoming = incoming
        self._installed = installed

    def have(self, file: int) -> int:
        return self._incoming.have(file)

    def write(self, file: int, offset: int, data: bytes) -> None:
        self._incoming.write(file, offset, data)

    def install(self) -> None:
        self._incoming.install()
        self._installed()

    def close(self) -> None:
        self._incoming.close()


def flip(path: Path, random: Random) -> int:
    """Flip a bit of a file; in which byte."""
    at = random.randrange(path.stat().st_size)
    with open(path, "r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 1 << random.randrange(8)]))
    return at


def _no_jobs(job: Job, error: Exception) -> None:
    raise AssertionError(f"no job runs by itself: {job.kind}: {error}")


def quietly(work: Callable[[], Any]) -> str:
    """Do what may be refused; why it was."""
    try:
        work()
    except (VecdbError, OSError) as error:
        return f"{type(error).__name__}: {error}"
    return ""
