"""Replicas that are wanted here no more: kept until their group has let go of them, and never begun as if new."""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from tests.waiting import until
from vecdb.cluster.control import CollectionEntry, ControlState, ShardEntry
from vecdb.cluster.founding import Founding
from vecdb.core.errors import StorageError, Unavailable
from vecdb.core.schema import CollectionSchema
from vecdb.ports.replicator import Position, ReplicaStatus
from vecdb.services.catalog import Entry
from vecdb.services.departures import Departures
from vecdb.services.homes import folder_of
from vecdb.services.hosting import Hosting, HostingSettings
from vecdb.services.ledger import Ledger
from vecdb.testing.disk import MemoryStore

SCHEMA = CollectionSchema("docs", 4)
ENTRY = ShardEntry.only(SCHEMA, 1, ("n1/70000", "n2/2", "n3/3"))


class Machine:
    failure = None

    def position(self) -> Position:
        return Position(0, 0)


class Replica:
    def __init__(self, me: str, voters: tuple[str, ...], existing: bool) -> None:
        self.now = ReplicaStatus(me, "ok", "follower", 1, "n2/2", 1, 1, 1, 1, 0, voters)
        self.existing = existing
        self.handed: list[str | None] = []

    def status(self) -> ReplicaStatus:
        return self.now

    async def transfer(self, to: str | None, deadline: float | None) -> None:
        self.handed.append(to)
        self.now = replace(self.now, role="follower")


class Node:
    """Everything that a Hosting stands on, and what it did to it."""

    def __init__(self) -> None:
        self.state = ControlState()
        self.open_state = self.state
        self.listener: Callable[[ControlState], None] = lambda state: None
        self.replicator: Any = None
        self.failure = None
        self.catalog_lost = False
        self.replicas: dict[int, Replica] = {}
        self.kept: dict[str, Entry] = {}
        self.forgotten: list[int] = []
        self.aside: list[str] = []
        self.members: bool = True
        self.store = MemoryStore()
        self.order: list[str] = []

    # control
    def open(self) -> Machine:
        return Machine()

    def checkpoint(self) -> None: ...

    def on_change(self, listener: Callable[[ControlState], None]) -> None:
        self.listener = listener

    def status(self) -> Any:
        return None

    def show(self, entry: ShardEntry | None) -> None:
        shards = {} if entry is None else {entry.group: entry}
        collections = {} if entry is None else {"docs": CollectionEntry(SCHEMA, (1,), 3)}
        self.state = self.open_state = replace(self.state, shards=shards, collections=collections, next_group=2,
                                               epoch=self.state.epoch + 1, log_index=self.state.log_index + 1)
        self.listener(self.state)

    # groups
    def add(self, group: int, machine: Any, *, number: int, voters: tuple[str, ...] = (), existing: bool = False,
            afresh: bool = False) -> Replica:
        self.replicas[group] = Replica(f"n1/{number}", voters or ("n1/1", "n2/2", "n3/3"), existing)
        return self.replicas[group]

    async def remove(self, group: int) -> None:
        del self.replicas[group]

    def forget(self, group: int) -> None:
        self.order.append("log")
        self.forgotten.append(group)

    def logs(self) -> list[int]:
        return []

    def fail(self, error: BaseException) -> None:
        raise AssertionError(error)

    # database
    def host(self, schema: CollectionSchema, folder: str) -> None:
        self.kept[schema.name] = Entry(schema, folder)

    def unhost(self, name: str) -> None:
        self.order.append("state")
        del self.kept[name]

    def hosted(self) -> dict[str, Entry]:
        return dict(self.kept)

    def replica(self, name: str, *, allow_damage: bool = False) -> Machine:
        return Machine()

    def set_aside(self, name: str) -> None:
        self.aside.append(name)

    async def is_member(self, entry: ShardEntry) -> bool:
        return self.members

    def hosting(self, departures: Departures | None = None) -> Hosting:
        ledger = Ledger(self.store)
        if ledger.founding is None:
            ledger.write_founding(Founding(70_000, members=("n1/70000", "n2/2", "n3/3")))
        made: Any = Hosting
        hosting: Hosting = made("n1", ["n1", "n2", "n3"], self, self, self, ledger, None, draw=lambda: 70_000,
                                settings=HostingSettings(look_s=0.01, departed_s=0.01),
                                departures=departures or Departures(self.store), is_member=self.is_member)
        hosting.start()
        return hosting


def elsewhere() -> ShardEntry:
    return replace(ENTRY, desired=("n2", "n3", "n4"))


@pytest.mark.parametrize("told", ["removed", "joining", "asked"])
def test_it_stays_until_its_group_has_let_go_of_it_and_is_then_deleted(told: str) -> None:
    async def run() -> None:
        node = Node()
        hosting = node.hosting()
        node.show(ENTRY)
        await until(lambda: 1 in node.replicas)
        assert not node.replicas[1].existing
        node.show(elsewhere())
        await asyncio.sleep(0.1)
        assert 1 in node.replicas, "it is a member yet"
        assert node.kept["docs"].folder == folder_of(1)
        if told == "asked":
            node.members = False
            node.replicas[1].now = replace(node.replicas[1].now, leader=None)
        else:
            node.replicas[1].now = replace(node.replicas[1].now, state=told)
        await until(lambda: not node.kept)
        assert node.forgotten == [1]
        assert node.order == ["log", "state"]
        assert 1 in Departures(node.store), "noted for good"
        await until(lambda: hosting.settled)
        node.show(ENTRY)
        await until(lambda: 1 in node.replicas)
        assert node.replicas[1].existing, "what it promised in its first life it has forgotten"
        node.show(None)
        await until(lambda: 1 not in Departures(node.store))
        await hosting.stop()

    asyncio.run(run())


@pytest.mark.parametrize("step", ["note", "log", "state"])
def test_a_step_that_fails_is_tried_again_by_itself(step: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twice: the first time there is no pause."""
    failures = [StorageError("no space is left"), StorageError("no space is left")]

    def failing(work: Callable[..., Any]) -> Callable[..., Any]:
        def attempt(*args: Any) -> Any:
            if failures:
                raise failures.pop()
            return work(*args)

        return attempt

    async def run() -> None:
        node = Node()
        departures = Departures(node.store)
        hosting = node.hosting(departures)
        node.show(ENTRY)
        await until(lambda: 1 in node.replicas)
        node.show(elsewhere())
        await until(lambda: hosting._acting is not None and hosting._acting.epoch == node.state.epoch)
        of, name = {"note": (departures, "note"), "log": (node, "forget"), "state": (node, "unhost")}[step]
        monkeypatch.setattr(of, name, failing(getattr(of, name)))
        monkeypatch.setattr(node, "fail", lambda error: None)
        node.replicas[1].now = replace(node.replicas[1].now, state="removed")
        await until(lambda: not node.kept)
        assert not failures
        assert 1 in Departures(node.store)
        await until(lambda: hosting.settled)
        await hosting.stop()

    asyncio.run(run())


def test_one_that_was_being_deleted_when_the_process_died_is_deleted_by_the_next() -> None:
    async def run() -> None:
        node = Node()
        departures = Departures(node.store)
        departures.note(1)
        node.kept["docs"] = Entry(SCHEMA, folder_of(1))
        hosting = node.hosting(departures)
        node.show(elsewhere())
        await until(lambda: 1 in node.replicas)
        assert node.replicas[1].existing
        node.replicas[1].now = replace(node.replicas[1].now, state="joining", voters=())
        await until(lambda: not node.kept)
        await hosting.stop()

    asyncio.run(run())


@pytest.mark.parametrize("group", [1, 2])
def test_a_log_without_a_folder_goes_with_its_group_alone(group: int) -> None:
    """The catalog was lost: of what is wanted elsewhere by now only the log says that promises were made."""
    async def run() -> None:
        node = Node()
        node.logs = lambda: [0, group]  # type: ignore[method-assign]
        hosting = node.hosting()
        node.show(elsewhere())
        node.state = node.open_state = replace(node.state, next_group=3)
        if group == 2:
            await until(lambda: node.forgotten == [2])
        await until(lambda: hosting.settled)
        await asyncio.sleep(0.05)
        assert node.forgotten == ([] if group == 1 else [2])
        await hosting.stop()

    asyncio.run(run())


def test_a_move_that_is_taken_back_leaves_the_replica_where_it_is() -> None:
    async def run() -> None:
        node = Node()
        hosting = node.hosting()
        node.show(ENTRY)
        await until(lambda: 1 in node.replicas)
        node.show(elsewhere())
        await asyncio.sleep(0.05)
        node.show(ENTRY)
        await until(lambda: hosting.settled)
        assert not node.forgotten
        await hosting.stop()

    asyncio.run(run())


def test_a_condemned_state_is_set_aside_and_its_leadership_given_away_before() -> None:
    async def run() -> None:
        node = Node()
        hosting = node.hosting()
        node.show(ENTRY)
        await until(lambda: 1 in node.replicas)
        first = node.replicas[1]
        first.now = replace(first.now, role="leader")
        await hosting.rebuild(1, None)
        await until(lambda: node.aside == ["docs"] and node.replicas.get(1) not in (None, first))
        assert first.handed == [None]
        assert not node.forgotten, "the log stays: it may have promised"
        node.replicas[1].now = replace(node.replicas[1].now, voters=("n1/1",))
        with pytest.raises(Unavailable, match="only one"):
            await hosting.rebuild(1, None)
        with pytest.raises(Unavailable):
            await hosting.rebuild(7, None)
        await hosting.stop()

    asyncio.run(run())
