"""The reconciler: what this node holds is made to follow what the control group says.

One task looks whenever the control state changes, and every second.  What is to be done for a shard is done in a task
of its own, one at a time a shard and some at a time in all; what blocks runs in threads.  Every step may be the last
before the process is killed, and is found half done by the next one: nothing is remembered that cannot be read off the
disk.  A step that fails is tried again after a pause that grows, and told once.  A shard goes by its **label** here
(:mod:`vecdb.cluster.control`); what people read names the collection.

**A log that was lost is never taken for one that never was**, for a voter that forgets may vote twice; nor the other
way round, for if all nodes lose power while a collection is made there would be no voter left.  What decides:

- A log is made by one batch of the log store, and nothing is promised before that is durable; none is deleted while its
  group is wanted here.  So in a store that is whole, a log that is not there has never promised anything.
- A store that was lost, or is new, has lost its number with its logs (:mod:`vecdb.services.ledger`): this node's
  replica of the control group has another one then (:mod:`vecdb.cluster.founding`).  A group's first voters stand in
  its control entry by the numbers their nodes had in the control group when it was made.  So ``existing`` is said to
  the driver when the number of this node is not among them: the group was, or may have been, here before.  Such a
  replica begins without a vote, under a random number, and the leader puts it in the old one's place.
- It is said as well where there is a state, which without a log there cannot be.  A damaged log the driver sees by
  itself.

**A damaged state** is set aside and an empty one put in its place; the log stays, and if it no longer reaches back to
the beginning, the replica rejoins as a learner (the driver's doing) and is sent a snapshot.  A collection's only
replica is never set aside: it opens with what is left.  A replica that was **halted** by its disk is opened anew, from
its last checkpoint, and the log replays.  One that the group has **removed**, as another disk of this node took its
place, begins its log afresh and rejoins.

**What was dropped stays dropped.**  Group numbers are never used twice and rise, so a folder whose number is below
``next_group`` and which no entry has is deleted, its log first; one at or above it belongs to a later state than this
one, and is left alone.  An empty or old control state, after damage, therefore deletes nothing.  Nor does it bring
back anything: a state is on stable storage and its log index in the ledger before it is acted on, and earlier ones are
only read.  A collection that was dropped and made again has another number, and so another folder and log.

**What is wanted here no more** stays until its group has let go of it: the leader removes it once the others are there
(:mod:`vecdb.services.keeping`).  Then it is noted that this node has left the group (:mod:`vecdb.services.departures`),
and log and state are deleted.  One that nobody tells, because those who knew have left as well, has the leader asked.

**The control group itself** is hosted the same way, before all others.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import Any, Final, TypeVar

from vecdb.cluster.control import ControlState, ShardEntry, collection_of
from vecdb.cluster.founding import Founding
from vecdb.core.errors import DataCorrupted, DeadlineExceeded, StorageError, Unavailable
from vecdb.ports.replicator import Replicator
from vecdb.ports.tell import Tell, tell_nobody
from vecdb.services.control import CONTROL_GROUP, Control
from vecdb.services.departures import Departures
from vecdb.services.founding import Entrance, Founder, Witnesses
from vecdb.services.homes import folder_of, group_of
from vecdb.services.hosts import Groups, HostedShard, HostingSettings, LocalReplicas, Place, ShardMachine
from vecdb.services.ledger import Ledger
from vecdb.services.operations.placing import holds_alone
from vecdb.shard.marks import MarkResult

T = TypeVar("T")

__all__ = ["Groups", "HostedShard", "Hosting", "HostingSettings", "LocalReplicas", "ShardMachine"]

WORKERS: Final = 4
"""Collections that are opened, made or deleted at once."""
READY_LOOK_S: Final = 0.02
_ILL: Final = ("halted", "removed")


class Hosting:
    """See the module.  Belongs to one event loop; ends before the driver, the control state and the database do."""

    def __init__(self, me: str, nodes: Sequence[str], groups: Groups, database: LocalReplicas, control: Control,
                 ledger: Ledger, witnesses: Witnesses, *, draw: Callable[[], int], executor: Executor | None = None,
                 settings: HostingSettings | None = None, departures: Departures | None = None,
                 joiner: Entrance | None = None,
                 is_member: Callable[[ShardEntry], Awaitable[bool]] | None = None, tell: Tell = tell_nobody) -> None:
        """``me``: this node; ``nodes``: all.  ``draw``: a random number of :data:`vecdb.services.founding.NUMBERS`.

        ``departures`` and ``is_member`` (whether a shard's group has a replica of this node, as its leader says; True
        where that is not known): without them replicas that are wanted no more are kept.
        """
        self._me = me
        self._groups = groups
        self._database = database
        self._control = control
        self._ledger = ledger
        self._settings = settings or HostingSettings()
        self._tell = tell
        self._loop = asyncio.get_running_loop()
        self._executor = executor or ThreadPoolExecutor(WORKERS, "hosting")
        self.entrance: Entrance = joiner or Founder(me, nodes, ledger, witnesses, tell, draw=draw, thread=self._note)
        self._places: dict[str, Place] = {}
        self._control_place = Place("")
        self._replica = ""
        """This node's replica of the control group."""
        self._acting: ControlState | None = None
        self._wanted: dict[str, ShardEntry] = {}
        self._leaving: dict[str, ShardEntry] = {}
        """Shards that are here and should not be, which their groups have to let go of first."""
        self._departures = departures
        self._is_member = is_member
        self._free = asyncio.Semaphore(WORKERS)
        self._awake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._told = ""

    # --- life -------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin; returns at once."""
        if self._ledger.damaged:
            self._tell("error", "ledger_damaged", node=self._me)
        if self._database.catalog_lost:
            self._tell("error", "catalog_damaged", node=self._me)
        self._control.on_change(lambda state: self._changed())
        self._task = self._loop.create_task(self._run())

    async def stop(self) -> None:
        """End at the next step; what threads are at is waited for."""
        tasks = [one for one in (self._task, *(place.task for place in self._all())) if one is not None]
        self._task = None
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._loop.run_in_executor(None, self._executor.shutdown)

    def _changed(self) -> None:
        with suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._awake.set)

    def _all(self) -> list[Place]:
        return [self._control_place, *self._places.values()]

    # --- what others ask --------------------------------------------------------------------------

    @property
    def founding(self) -> Founding | None:
        """How far this node is with founding or joining the control group, for those who ask; None: not known yet."""
        return self._ledger.founding

    def replicator(self, label: str) -> Replicator:
        """Of a shard; ``CollectionNotFound`` where this node knows of none, ``Unavailable`` where it holds no replica
        or has not made it yet.
        """
        entry = self._control.state.labelled(label)
        place = self._places.get(label)
        if place is None or place.group != entry.group or place.replicator is None:
            raise Unavailable(f"there is no replica of {entry.name!r} on {self._me} now", collection=entry.name,
                              group=entry.group, why="" if place is None else place.error, retry_after_s=0.1)
        return place.replicator

    def group(self, label: str) -> int:
        """Of a shard, here or not; ``CollectionNotFound``."""
        return self._control.state.labelled(label).group

    def marks(self, label: str) -> Mapping[int, MarkResult]:
        """What the replica of a shard remembers of marks; errors as of :meth:`replicator`."""
        self.replicator(label)
        machine = self._places[label].machine
        return {} if machine is None else machine.marks()

    def machine(self, label: str) -> ShardMachine:
        """The replica of a shard here, as its log drives it; errors as of :meth:`replicator`."""
        self.replicator(label)
        machine = self._places[label].machine
        if machine is None:
            raise Unavailable("the replica is being taken away", retry_after_s=0.1)
        return machine

    def check_room(self, label: str) -> None:
        """Raise ``Overloaded`` while the replica of a shard should be given nothing more; and :meth:`replicator`'s
        errors.
        """
        self.replicator(label)
        machine = self._places[label].machine
        if machine is not None:
            machine.check_room()

    def check_sealed(self, label: str, command: bytes | None) -> None:
        """Raise ``ShardSealed`` where that would come of a command, or (None) a read must not be answered as of now."""
        place = self._places.get(label)
        if place is not None and place.machine is not None:
            place.machine.check_sealed(command)

    def statuses(self) -> dict[str, HostedShard]:
        """By label, of every shard that this node has or should have; the control group under the empty one."""
        control = self._control_place
        found = {"": HostedShard("", CONTROL_GROUP, self._control.status(), control.error)}
        for label in sorted({*self._wanted, *self._places}):
            entry = self._wanted.get(label) or self._leaving.get(label)
            place = self._places.get(label, Place(label))
            status = None if place.replicator is None else place.replicator.status()
            found[label] = HostedShard(place.name, place.group if entry is None else entry.group, status, place.error)
        return found

    @property
    def settled(self) -> bool:
        """Whether all is here that the control state asks for, as far as this node knows it, and nothing else."""
        places = self._places
        return (self._acting is not None and self._acting.epoch == self._control.state.epoch
                and self._control.replicator is not None and not any(place.task for place in self._all())
                and set(places) == set(self._wanted)
                and all(self._is_well(places[label], entry) for label, entry in self._wanted.items()))

    async def ready(self, label: str, deadline: float | None) -> ShardEntry:
        """Return once the shard is open for calls: its group has a leader, as far as this node can see.

        At once where the replicas are on other nodes.  ``deadline`` on the loop's clock; ``DeadlineExceeded``,
        ``CollectionNotFound``.
        """
        while True:
            entry = self._control.state.labelled(label)
            place = self._places.get(label)
            if self._me not in entry.nodes:
                return entry
            if place is not None and place.group == entry.group and place.replicator is not None \
                    and place.replicator.status().leader is not None:
                return entry
            if deadline is not None and self._loop.time() >= deadline:
                raise DeadlineExceeded(f"{entry.name!r} is not open for calls yet", collection=entry.name)
            await asyncio.sleep(READY_LOOK_S)

    # --- the reconciler ---------------------------------------------------------------------------

    async def _run(self) -> None:
        while True:
            self._awake.clear()
            try:
                await self._round()
                self._told = ""
            except Exception as error:  # whatever it is, it must not be the end
                self._tell_once(f"{type(error).__name__}: {error}")
            now = self._loop.time()
            due = [max(place.due - now, 0.01) for place in self._all() if place.waiting]
            pause = min(self._settings.look_s, *due) if due else self._settings.look_s
            with suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._awake.wait()

    def _tell_once(self, error: str) -> None:
        if error != self._told:
            self._told = error
            self._tell("error", "hosting_stuck", node=self._me, error=error)

    async def _round(self) -> None:
        if self._groups.failure is not None:
            raise StorageError(f"the logs cannot be written: {self._groups.failure}", path="raft")
        self._consider(self._control_place, self._control_is_well(), self._host_control)
        if self._replica and not self._control_place.ill:
            await self._learn()
        if self._acting is None:
            return
        hosted = self._database.hosted()
        for label in sorted({*self._wanted, *hosted, *self._places}):
            place = self._places.setdefault(label, Place(label))
            entry = self._wanted.get(label) or self._leaving.get(label)
            well = place.group < 0 and label not in hosted if entry is None else self._is_well(place, entry)
            self._consider(place, well, self._host)
            if entry is None and well and place.task is None:
                del self._places[label]
            elif well and label in self._leaving and place.task is None:
                self._ask_departed(place, self._leaving[label])

    async def _learn(self) -> None:
        """Let the control state be the one that is acted on, once that cannot be forgotten."""
        state = self._control.open_state
        before = self._acting
        if state is None or state.log_index < self._ledger.acted \
                or (before is not None and state.epoch == before.epoch):
            return
        try:
            await self._thread(self._control.checkpoint)
        except (StorageError, DataCorrupted) as error:
            # Its store takes nothing more until it is opened anew; Raft finds out only if somebody makes a collection.
            self._control_place.ill = "halted"
            self._failed(self._control_place, f"{type(error).__name__}: {error.message}")
            raise
        if state.log_index > self._ledger.acted:
            await self._note(self._ledger.write_acted, state.log_index)
        hosted = self._database.hosted()
        self._wanted = {entry.label: entry for entry in state.shards.values() if self._me in entry.nodes}
        self._leaving = {entry.label: entry for entry in state.shards.values()
                         if self._departures is not None and self._me not in entry.nodes and entry.label in hosted
                         and hosted[entry.label].folder == folder_of(entry.group)}
        self._acting = state
        if self._departures is not None:
            await self._note(self._departures.forget, [one for one in self._departures if state.was_dropped(one)])
        if before is None:
            self._forget_orphans(state)

    def _forget_orphans(self, state: ControlState) -> None:
        """Delete logs of groups that are gone, where the process was killed between the folder and the log."""
        wanted = {CONTROL_GROUP, *(entry.group for entry in self._wanted.values())}
        hosted = {group_of(entry.folder) for entry in self._database.hosted().values()}
        for group in self._groups.logs():
            if state.was_dropped(group) and group not in wanted and group not in hosted:
                self._groups.forget(group)

    def _is_well(self, place: Place, entry: ShardEntry) -> bool:
        if place.replicator is not None and place.label in self._leaving \
                and place.replicator.status().state in ("removed", "joining"):
            place.departed = True
        return place.group == entry.group and place.replicator is not None and not self._look(place) \
            and not place.departed

    def _ask_departed(self, place: Place, entry: ShardEntry) -> None:
        """Of a replica that hears of no leader: those who could tell it that it was removed may have left, too."""
        now, replicator = self._loop.time(), place.replicator
        if replicator is None or self._is_member is None or now - place.asked < self._settings.departed_s \
                or replicator.status().leader is not None:
            return
        place.asked = now

        async def ask(place: Place) -> None:
            assert self._is_member is not None
            place.departed = not await self._is_member(entry)

        place.task = self._loop.create_task(self._work(place, ask))

    def _control_is_well(self) -> bool:
        place = self._control_place
        return place.replicator is not None and not self._look(place)

    def _look(self, place: Place) -> str:
        """What ails a replica that the driver has; noted when it is seen first."""
        if not place.ill and place.replicator is not None:
            status, machine = place.replicator.status(), place.machine
            failure = None if machine is None else machine.failure
            if status.state == "removed" and place.label in self._leaving:
                return ""  # as it should be
            if status.state in _ILL or failure is not None:
                place.ill = status.state if status.state in _ILL else "halted"
                why = status.error or ("" if failure is None else failure.message)
                self._failed(place, f"{place.ill}: {why}" if why else place.ill)
        return place.ill

    def _consider(self, place: Place, well: bool, work: Callable[[Place], Any]) -> None:
        now = self._loop.time()
        place.waiting = not well and place.task is None and now < place.due
        if well:
            if place.failures and now - place.since > self._settings.well_s:
                place.failures = 0
        elif place.task is None and now >= place.due:
            place.task = self._loop.create_task(self._work(place, work))

    async def _work(self, place: Place, work: Callable[[Place], Any]) -> None:
        try:
            await work(place)
        except Exception as error:  # be it a mistake of ours: no other collection has to pay for it
            self._failed(place, f"{type(error).__name__}: {error}")
        else:
            if place.error:
                place.error = ""
                self._tell("info", "hosting_well_again", node=self._me, collection=place.name, group=place.group)
        finally:
            place.task = None
            self._awake.set()

    def _failed(self, place: Place, error: str) -> None:
        """Note it, tell it if it is news, and let the next attempt wait, unless all was well before."""
        now = self._loop.time()
        first, longest = self._settings.retry_s
        place.due = now + (min(first * 2.0 ** (place.failures - 1), longest) if place.failures else 0.0)
        place.failures, place.since = place.failures + 1, now
        if error != place.error:
            place.error = error
            self._tell("error", "hosting_failed", node=self._me, collection=place.name, group=place.group, error=error)

    async def _thread(self, work: Callable[..., T], *args: Any) -> T:
        return await self._loop.run_in_executor(self._executor, partial(work, *args))

    async def _note(self, write: Callable[..., T], *args: Any) -> T:
        """Write to the ledger.  Where its store has refused no log can be written either; this is not left for a log to
        find out, as none is written while nothing happens.
        """
        try:
            return await self._thread(write, *args)
        except (StorageError, DataCorrupted) as error:
            self._groups.fail(error)
            raise

    # --- steps ------------------------------------------------------------------------------------

    async def _take_away(self, place: Place) -> None:
        """Out of the driver's hands; once this returns no thread uses the machine."""
        place.replicator = place.machine = None
        await self._groups.remove(place.group)
        place.outcast = place.ill == "removed"
        place.group, place.ill = -1, ""

    async def _host(self, place: Place) -> None:
        """Bring one shard to where the control state wants it."""
        async with self._free:
            entry = self._wanted.get(place.label) or self._leaving.get(place.label)
            if place.group >= 0:
                await self._take_away(place)
            here = self._database.hosted().get(place.label)
            if place.departed and place.label in self._leaving:
                await self._depart(place)
                return
            place.departed = False
            if here is not None and (entry is None or here.folder != folder_of(entry.group)):
                await self._delete(place.label, group_of(here.folder))
                here, place.outcast = None, False
            if entry is None:
                return
            if here is None:
                await self._thread(self._database.host, entry.local_schema, folder_of(entry.group))
            if place.condemned:
                await self._thread(self._database.set_aside, place.label)
                place.condemned = False
            machine = await self._open(entry)
            self._add(place, entry, machine)

    async def _depart(self, place: Place) -> None:
        """Delete a replica that its group has removed; until that is done it is leaving, so that it is tried again."""
        entry = self._leaving[place.label]
        assert self._departures is not None
        await self._note(self._departures.note, entry.group)
        self._groups.forget(entry.group)
        if place.label in self._database.hosted():
            await self._thread(self._database.unhost, place.label)
        self._leaving.pop(place.label, None)
        place.departed = place.outcast = False
        self._tell("info", "replica_departed", node=self._me, collection=place.name, group=entry.group)

    async def rebuild(self, group: int, deadline: float | None) -> None:
        """Set the state of a replica here aside and have it built anew from the others, which must be there.

        Returns when that has begun; ``Unavailable`` where there is no replica, or nobody else to build it from.
        """
        place = next((one for one in self._places.values() if one.group == group and one.replicator is not None), None)
        status = None if place is None or place.replicator is None else place.replicator.status()
        if place is None or place.replicator is None or status is None:
            raise Unavailable(f"there is no replica of group {group} on {self._me} now", group=group)
        if len(status.voters) < 2:
            raise Unavailable(f"the replica of group {group} on {self._me} is the only one", group=group)
        if status.role == "leader":
            await place.replicator.transfer(None, deadline)
        place.condemned, place.ill = True, "condemned"
        self._tell("warning", "replica_condemned", node=self._me, collection=place.name, group=group)
        self._awake.set()

    async def _delete(self, label: str, group: int | None) -> None:
        name = collection_of(label)
        if group is None or self._acting is None or not self._acting.was_dropped(group):
            raise StorageError(f"what is here of {name!r} is of a group that the control group does not know of",
                               path=name, group=group)
        self._groups.forget(group)
        await self._thread(self._database.unhost, label)
        self._tell("info", "replica_deleted", node=self._me, collection=name, group=group)

    async def _open(self, entry: ShardEntry) -> ShardMachine:
        try:
            return await self._thread(self._database.replica, entry.label)
        except DataCorrupted as error:
            self._tell("error", "replica_state_damaged", node=self._me, collection=entry.name, group=entry.group,
                       error=error.message)
            if holds_alone(self._control.state, entry, self._me):
                return await self._thread(partial(self._database.replica, entry.label, allow_damage=True))
        await self._thread(self._database.set_aside, entry.label)
        return await self._thread(self._database.replica, entry.label)

    def _add(self, place: Place, entry: ShardEntry, machine: ShardMachine) -> None:
        if self._wanted.get(entry.label, self._leaving.get(entry.label)) != entry:
            return  # the state has changed meanwhile: the next round begins with that
        existing = self._replica not in entry.replicas or machine.position().log_index > 0 \
            or (self._departures is not None and entry.group in self._departures)
        replicator = self._groups.add(entry.group, machine, number=int(self._replica.rpartition("/")[2]),
                                      voters=() if existing else entry.replicas, existing=existing,
                                      afresh=place.outcast)
        place.group, place.replicator, place.machine = entry.group, replicator, machine
        self._tell("info", "replica_hosted", node=self._me, collection=entry.name, group=entry.group,
                   replica=replicator.status().me)

    async def _host_control(self, place: Place) -> None:
        """Bring the control group up."""
        if place.group >= 0:
            self._control.replicator = None
            await self._take_away(place)
        try:
            machine = await self._thread(self._control.open)
        except DataCorrupted as error:
            self._tell("error", "control_state_damaged", node=self._me, error=error.message)
            await self._thread(self._control.set_aside)
            machine = await self._thread(self._control.open)
        has_state = machine.position().log_index > 0
        founding = await self.entrance.found(has_state)
        existing = has_state or (founding.joined and not self.entrance.fresh)
        place.replicator = self._groups.add(CONTROL_GROUP, machine, number=founding.number,
                                            voters=() if existing else founding.members, existing=existing,
                                            afresh=place.outcast)
        place.group = CONTROL_GROUP
        self._control.replicator = place.replicator
        self._replica = place.replicator.status().me
