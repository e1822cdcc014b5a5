"""All replicas of one process: one log store, one stream a node, one turn for whatever has happened.

**A turn**: messages and proposals that have come are taken in, each group touched sends what its followers lack and
hands on what can be applied; what changed in the logs goes to a thread as one batch; messages to one node leave as one
frame, chunks of snapshots apart from it.
**Promises** (votes, requests for votes, acknowledgements) are held until the batch they speak of is on stable storage;
the next turn's changes gather meanwhile, so the disk is never waited for twice.

The host knows no sockets, threads or clock: they are its :class:`Shell`'s, asyncio's in a node and virtual in a
simulation.
"""

import math
from collections import Counter
from collections.abc import Callable
from random import Random
from typing import Protocol, TypeVar

from vecdb.core.errors import DataCorrupted, InvalidArgument
from vecdb.ports.replicator import Position, StateMachine
from vecdb.ports.tell import Tell, tell_nobody
from vecdb.raft.leading import NEWS_S
from vecdb.raft.log import Batch, GroupLog, LogStore
from vecdb.raft.membership import MAX_NUMBER, Configuration, replica_id
from vecdb.raft.messages import Chunk, Envelope, Malformed, decode, encode, encode_frame, split_frame
from vecdb.raft.replica import Replica
from vecdb.raft.settings import RaftSettings
from vecdb.raft.stock import LEADER
from vecdb.raft.syncing import SyncTimes

T = TypeVar("T")


class Shell(Protocol):
    """The outside of a host.  All callbacks come in the host's own thread, never inside the call that asked."""

    def send(self, node: str, frame: bytes, *, bulk: bool = False) -> None:
        """Best effort; may be lost, late, twice.  Drops what is above its window rather than growing.

        What is bulky goes a way of its own, and may be overtaken.
        """
        ...

    def store(self, batch: Batch, done: Callable[[BaseException | None], None]) -> None:
        """``batch.write`` in a thread, then ``done``.  The host asks for one at a time."""
        ...

    def after(self, seconds: float, act: Callable[[], None]) -> None:
        """Call ``act`` after some time, unless the process has ended."""
        ...

    def run(self, lane: str, work: Callable[[], T], done: Callable[[T | None, BaseException | None], None]) -> None:
        """Run ``work`` in a thread, one at a time a lane in the order given, then ``done`` with its result or error."""
        ...


class Host:
    """See the module.  Everything but the work handed to the shell belongs to one thread."""

    def __init__(self, node: str, store: LogStore, shell: Shell, *, clock: Callable[[], float], random: Random,
                 settings: RaftSettings | None = None, tell: Tell = tell_nobody) -> None:
        self.node = node
        self.store = store
        self.shell = shell
        self.clock = clock
        self.tell = tell
        self.settings = settings or RaftSettings()
        self.replicas: dict[int, Replica] = {}
        self.dropped: Counter[str] = Counter()
        """Messages that were not for us or made no sense, by why."""
        self.failure: BaseException | None = None
        self._random = random
        self._touched: dict[int, Replica] = {}
        self._owing: dict[int, Replica] = {}
        """Replicas whose followers are to hear of a commit, in a moment if nothing else is said to them before."""
        self._out: dict[str, list[bytes]] = {}
        self._bulky: list[tuple[str, bytes]] = []
        """Chunks of snapshots, each a frame of its own, so that no command waits behind them."""
        self._held: list[tuple[int, str, bytes]] = []
        self._held_by_sync: list[tuple[int, str, bytes]] = []
        self._syncing = False
        self._turning = False
        self.syncs = SyncTimes()
        self._gave_way = -math.inf

    # --- groups -----------------------------------------------------------------------------------

    def add(self, group: int, machine: StateMachine, *, number: int, voters: tuple[str, ...] = (),
            existing: bool = False, afresh: bool = False) -> Replica:
        """Take up a group: its log as it is on the disk, or a new one.

        ``voters``: the members of a new group, this replica among them; none where it is to join one as a learner.
        ``Unavailable`` if it was removed a moment ago and its last batch is still being written: try again.

        ``existing``: there was a log, as whoever keeps the catalog knows; if it is gone or damaged the replica comes
        back under a new, random number, says so, and the leader puts it in the old one's place as a learner.
        ``afresh``: the same, whatever log there is; for a replica that its group has removed.
        """
        if group in self.replicas:
            raise InvalidArgument("group", "is here already", got=group)
        position = machine.position()
        rejoining, damaged = "", True
        log: GroupLog | None = None
        try:
            log = self.store.open(group)
            if afresh:
                rejoining, damaged = "its group has removed it", False
            elif log is not None:
                _agree(log, position)
            elif existing:
                # Where there is no state either nothing is known to be lost: it is new here, as after a move.
                damaged = position.log_index > 0
                rejoining = "its log is gone" if damaged else "neither log nor state of it are here"
        except DataCorrupted as error:
            rejoining = error.message
        if rejoining:
            number = self._random.randrange(1 << 16, MAX_NUMBER)
            self.tell("error" if damaged else "info", "raft_log_damaged" if damaged else "raft_joins_anew",
                      node=self.node, group=group, why=rejoining, number=number)
            if log is not None:
                self.store.close(log)
            log = None
        if log is None:
            configuration = Configuration() if rejoining else Configuration.of(voters)
            if voters and not rejoining and replica_id(self.node, number) not in voters:
                raise InvalidArgument("voters", "this replica is not among them", got=list(voters),
                                      limit=replica_id(self.node, number))
            log = self.store.create(group, number, configuration, max(position.log_index, 1), position.term)
        elif log.intent is not None:
            if _half_installed(log, position):
                log.reset(log.intent.index, log.intent.term, log.intent.configuration)
            else:
                log.intend(None)
        replica = Replica(self, group, log, machine, Random(self._random.getrandbits(64)))  # noqa: S311
        self.replicas[group] = replica
        self.touched(replica)
        return replica

    def remove(self, group: int, *, forget: bool = False) -> None:
        """Let go of a group; ``forget``: and of its log."""
        replica = self.replicas.pop(group)
        self._touched.pop(group, None)
        self._owing.pop(group, None)
        replica.close()
        # What was not yet on its way to the disk is forgotten, and with it every promise that spoke of it.
        self.store.close(replica.core.log)
        self._held = [one for one in self._held if one[0] != group]
        self._held_by_sync = [one for one in self._held_by_sync if one[0] != group]
        if forget:
            self.store.drop(group)
            self.turn()

    def forget(self, group: int) -> None:
        """Delete the log of a group that is not taken up, if there is one."""
        if group in self.replicas:
            raise InvalidArgument("group", "is here: remove it", got=group)
        self.store.drop(group)
        self.turn()

    # --- what happens -----------------------------------------------------------------------------

    def receive(self, node: str, frame: bytes | memoryview) -> None:
        """A frame of another node, whose name the stream has proved; nothing of it is kept."""
        if self.failure is not None:
            return
        try:
            for data in split_frame(frame):
                self._take(node, decode(data))
        except Malformed as error:
            self.dropped["malformed"] += 1
            self.tell("warning", "raft_malformed", node=self.node, sender=node, why=str(error))
        self.turn()

    def _take(self, node: str, envelope: Envelope) -> None:
        replica = self.replicas.get(envelope.group)
        if replica is None:
            self.dropped["unknown_group"] += 1
            return
        sender = replica_id(node, envelope.sender)
        if envelope.to != replica.core.log.number:
            self.dropped["unknown_replica"] += 1
            replica.mistaken(sender, envelope)
            return
        replica.receive(sender, envelope.message)

    def tick(self) -> None:
        """Time has passed: called at least twice a heartbeat."""
        for replica in list(self.replicas.values()):
            replica.tick()
        self._give_way()
        self.turn()

    def gone(self, node: str) -> None:
        """The process of another node is not there any more, as far as its connections tell."""
        for replica in self.replicas.values():
            replica.core.gone(node)

    def _give_way(self) -> None:
        """Hand over what this node leads once its disk hangs: for as long as an election takes at most, no batch has
        come to its end.  Others have a majority without this disk, but a leader answers what it has applied, and
        applies what it has stored: it would lead on, as its heartbeats say, and acknowledge nothing.  It cannot be
        elected again before the disk has its vote.  Who waits here for what the next leader does asks him.
        """
        now, limit = self.clock(), self.settings.election_s_max
        waiting = self.syncs.waiting_s(now)
        if waiting < limit:
            return
        for one in self.replicas.values():
            one.core.disk_hangs()
        if now - self._gave_way < limit:
            return
        led = [one for one in self.replicas.values()
               if one.core.role == LEADER and len(one.core.configuration.voters) > 1]
        if led:
            self._gave_way = now
            self.tell("error", "raft_disk_hangs", node=self.node, seconds=round(waiting, 1), leads=len(led))
        for replica in led:
            replica.core.transfer(None, None)

    # --- a turn -----------------------------------------------------------------------------------

    def touched(self, replica: Replica) -> None:
        self._touched[replica.group] = replica

    def owe(self, replica: Replica) -> None:
        if not self._owing:
            self.shell.after(NEWS_S, self._news)
        self._owing[replica.group] = replica

    def _news(self) -> None:
        owing, self._owing = self._owing, {}
        for replica in owing.values():
            replica.core.tell_news()
        self.turn()

    def post(self, node: str, envelope: Envelope, promise: bool) -> None:
        data = encode(envelope)
        if isinstance(envelope.message, Chunk):
            self._bulky.append((node, data))
        elif promise and self.store.dirty:
            self._held.append((envelope.group, node, data))
        elif promise and self._syncing:
            self._held_by_sync.append((envelope.group, node, data))
        else:
            self._out.setdefault(node, []).append(data)

    def turn(self) -> None:
        """Let everything that was touched do what follows from it, and send what there is to send."""
        if self._turning or self.failure is not None:
            return
        self._turning = True
        try:
            while self._touched:
                touched, self._touched = self._touched, {}
                for replica in touched.values():
                    replica.turn()
            if self.store.dirty and not self._syncing:
                self._sync()
            out, self._out = self._out, {}
            bulky, self._bulky = self._bulky, []
        finally:
            self._turning = False
        for node, messages in out.items():
            self._send(node, messages)
        for node, data in bulky:
            self.shell.send(node, encode_frame([data]), bulk=True)

    def _send(self, node: str, messages: list[bytes]) -> None:
        frame: list[bytes] = []
        size = 0
        for message in messages:
            if frame and size + len(message) > self.settings.batch_bytes:
                self.shell.send(node, encode_frame(frame))
                frame, size = [], 0
            frame.append(message)
            size += len(message)
        self.shell.send(node, encode_frame(frame))

    def _sync(self) -> None:
        self._syncing = True
        batch = self.store.take()
        self._held, self._held_by_sync = [], self._held
        self.syncs.begun(self.clock())
        self.shell.store(batch, lambda error: self._synced(batch, error))

    def _synced(self, batch: Batch, error: BaseException | None) -> None:
        self._syncing = False
        self.syncs.ended(self.clock())
        if error is not None:
            self.store.failed()
            self.fail(error)
            return
        for _, node, data in self._held_by_sync:
            self._out.setdefault(node, []).append(data)
        self._held_by_sync = []
        for group in self.store.done(batch):
            replica = self.replicas.get(group)
            if replica is not None and not replica.halted:
                replica.core.synced()
        self.turn()

    def fail(self, error: BaseException) -> None:
        """The logs' disk refused, and nobody knows what of the batch is there: this process promises nothing more."""
        if self.failure is not None:
            return
        self.failure = error
        self.tell("error", "raft_log_failed", node=self.node, error=f"{type(error).__name__}: {error}")
        self._held, self._held_by_sync, self._out, self._bulky = [], [], {}, []
        for replica in self.replicas.values():
            replica.halt(error)


def _half_installed(log: GroupLog, position: Position) -> bool:
    """Whether the process was killed after a snapshot had become the state, and before the log began behind it."""
    intent = log.intent
    return intent is not None and intent.index == position.log_index > log.base \
        and intent.term == position.term != log.term_at(intent.index)


def _agree(log: GroupLog, position: Position) -> None:
    """Raise ``DataCorrupted`` where log and state cannot both be right."""
    index = position.log_index
    if _half_installed(log, position):
        return
    if index < log.base and log.base > 1:
        raise DataCorrupted(f"the state of group {log.group} ends at {index}, before its log begins at {log.base}",
                            path="log", group=log.group)
    if index > 1 and log.term_at(index) != position.term:
        raise DataCorrupted(f"the log of group {log.group} does not hold what the state at {index} was made of",
                            path="log", group=log.group)
