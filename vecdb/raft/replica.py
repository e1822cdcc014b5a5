"""A replica with its state machine: commands applied in a thread, checkpoints, the log kept short, snapshots."""

import heapq
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from random import Random
from typing import TYPE_CHECKING, Any, Final, TypeVar

from vecdb.core.errors import DataCorrupted, OutcomeUnknown, StorageError, Unavailable, VecdbError
from vecdb.ports.replicator import Based, Position, ReplicaStatus, StateMachine
from vecdb.raft.core import RaftCore
from vecdb.raft.leading import Done
from vecdb.raft.log import GroupLog, Intent
from vecdb.raft.membership import replica_id
from vecdb.raft.messages import COMMAND, PROMISES, Append, Appended, Chunk, Envelope, Fetch, Gone, Message, Offer
from vecdb.raft.snapshots import Outgoing, Receiving, gone

if TYPE_CHECKING:
    from vecdb.raft.host import Host

T = TypeVar("T")
_HALTING: Final = (StorageError, DataCorrupted, OSError, MemoryError)


def apply_all(machine: StateMachine, commands: list[tuple[int, int, bytes]],
              mistakes: list[tuple[int, Exception]]) -> list[object]:
    """Outcomes of the commands; an error of one that is not the machine's own trouble is its outcome.

    ``mistakes`` are added: places and errors that no machine should raise.
    """
    outcomes: list[object] = []
    for log_index, term, command in commands:
        try:
            outcomes.append(machine.apply(log_index, term, command))
        except _HALTING:
            raise
        except VecdbError as error:
            outcomes.append(error)
        except Exception as error:
            mistakes.append((log_index, error))
            outcomes.append(VecdbError(f"the command could not be applied: {type(error).__name__}",
                                       log_index=log_index))
    return outcomes


class Replica:
    """What a host knows of one group.  Implements :class:`~vecdb.raft.following.Surroundings` for its core."""

    def __init__(self, host: "Host", group: int, log: GroupLog, machine: StateMachine, random: Random) -> None:
        self.host = host
        self.group = group
        self.machine = machine
        self._based = machine if isinstance(machine, Based) else None
        self.settings = host.settings
        self.state = "ok"
        self.error = ""
        self._busy = False
        """A thread applies, or installs."""
        self._waiting: list[tuple[int, int, Callable[[VecdbError | None], None]]] = []
        self._waits = 0
        self._outgoing: Outgoing | None = None
        self._making: int | None = None
        """Of a snapshot that is being made, a log index that it is not behind."""
        self._wanting: list[str] = []
        self._receiving: Receiving | None = None
        self._checkpointing = False
        self._checkpointed = self._counted = log.base
        self._gathered = 0
        """Bytes of the log between the two: summed anew at every tick they cost idle groups half a core."""
        self._random = random
        self.core = RaftCore(replica_id(host.node, log.number), log, self, applied=machine.position().log_index,
                             clock=host.clock, random=random, settings=host.settings)

    # --- what the core does to the world ----------------------------------------------------------

    def send(self, to: str, message: Message) -> None:
        node, _, number = to.rpartition("/")
        self.host.post(node, Envelope(self.group, self.core.log.number, int(number), message),
                       isinstance(message, PROMISES))

    def touched(self) -> None:
        self.host.touched(self)

    def tell(self, level: str, event: str, **fields: Any) -> None:
        self.host.tell(level, event, node=self.host.node, **fields)

    def offered(self, sender: str, offer: Offer) -> None:
        if self.halted:
            return
        now = self._receiving
        if now is not None and (now.installing or (now.sender, now.offer.snapshot) == (sender, offer.snapshot)):
            return
        if now is not None:
            now.incoming.close()
        self._receiving = None
        try:
            self._receiving = Receiving.begin(sender, offer, self.machine, self.settings, self.host.clock)
        except _HALTING as error:
            self._halt(error)
            return
        self.tell("info", "raft_snapshot_begins", group=self.group, index=offer.index, sender=sender)
        self._receive()

    def snapshot_wanted(self, follower: str) -> None:
        if follower not in self._wanting:
            self._wanting.append(follower)
        if self._outgoing is not None and self._outgoing.snapshot.position.log_index < self.core.log.base:
            self._release()
        if self._outgoing is not None:
            self._offer()
        elif self._making is None and not self.halted:
            self._making = self.machine.position().log_index
            self._run("snapshot", self.machine.snapshot, self._made, lambda snapshot: snapshot.release())

    # --- messages that are not the core's ---------------------------------------------------------

    def receive(self, sender: str, message: Message) -> None:
        with self._guarded():
            if isinstance(message, Fetch):
                self._serve(sender, message)
            elif isinstance(message, Chunk):
                self._arrived(message)
            elif not self.halted:
                self.core.receive(sender, message)

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        """A log that cannot be read back, or a disk that refuses, halts this replica and nobody else."""
        try:
            yield
        except _HALTING as error:
            self._halt(error)

    def mistaken(self, sender: str, envelope: Envelope) -> None:
        """A message for another number of ours: who leads is told that it is no more, if we wait to take its place."""
        message = envelope.message
        if isinstance(message, Append | Offer) and not self.core.configuration.voters:
            node, _, number = sender.rpartition("/")
            self.host.post(node, Envelope(self.group, envelope.to, int(number),
                                          Gone(message.term, self.core.log.number)), True)

    # --- a turn -----------------------------------------------------------------------------------

    @property
    def receiving(self) -> tuple[int, int] | None:
        """Of a snapshot on its way here, the bytes that have come or are asked for, and all."""
        return None if self._receiving is None else self._receiving.progress

    @property
    def halted(self) -> bool:
        return self.state == "halted"

    def turn(self) -> None:
        if self.halted:
            return
        with self._guarded():
            self.core.flush()
            if self.core.owes_news:
                self.host.owe(self)
            self._apply()

    def tick(self) -> None:
        if self.halted:
            return
        with self._guarded():
            self.core.tick()
            if self._receiving is not None:
                self._receive()
        outgoing, now = self._outgoing, self.host.clock()
        if outgoing is not None:
            if self.core.awaited(outgoing.number):  # who installs it fetches nothing, and needs what follows it next
                outgoing.used = now
            elif now - outgoing.used > self.settings.snapshot_idle_s:
                self._release()
        self._checkpoint()

    def _run(self, lane: str, work: Callable[[], T], done: Callable[[T], None],
             late: Callable[[T], None] = lambda result: None) -> None:
        """``late`` instead of ``done``, if the replica was let go of meanwhile."""
        def ended(result: T | None, error: BaseException | None) -> None:
            if self.host.replicas.get(self.group) is not self:
                if error is None:
                    late(result)  # type: ignore[arg-type]  # the work's own result
                return
            if error is None:
                done(result)  # type: ignore[arg-type]  # the work's own result
            else:
                self._halt(error)
            self.touched()
            self.host.turn()

        self.host.shell.run(f"{lane}/{self.group}", work, ended)

    # --- applying ---------------------------------------------------------------------------------

    def _apply(self) -> None:
        while not self._busy and not (self._receiving is not None and self._receiving.installing):
            entries = self.core.to_apply()
            if not entries:
                return
            commands = [(entry.index, entry.term, entry.command[1:]) for entry in entries
                        if entry.command[:1] == COMMAND]
            if not commands:
                self._applied(entries, [], [])
                continue
            self._busy = True
            mistakes: list[tuple[int, Exception]] = []
            self._run("apply", partial(apply_all, self.machine, commands, mistakes),
                      partial(self._applied, entries, mistakes))

    def _applied(self, entries: Any, mistakes: list[tuple[int, Exception]], outcomes: list[object]) -> None:
        self._busy = False
        for log_index, error in mistakes:  # of the command all replicas make the same; of something here this one alone
            self.tell("error", "raft_command_failed", group=self.group, index=log_index,
                      error=f"{type(error).__name__}: {error}")
        each = iter(outcomes)
        self.core.applied_to(entries, [next(each) if entry.command[:1] == COMMAND else None for entry in entries])
        self._wake()

    def wait_applied(self, log_index: int, done: Callable[[VecdbError | None], None]) -> int:
        """Told once this replica has applied ``log_index``, or ended; returns what :meth:`wait_no_more` needs."""
        self._waits += 1
        heapq.heappush(self._waiting, (log_index, self._waits, done))
        self._wake()
        return self._waits

    def wait_no_more(self, wait: int) -> None:
        if any(one[1] == wait for one in self._waiting):
            self._waiting = [one for one in self._waiting if one[1] != wait]
            heapq.heapify(self._waiting)

    def _wake(self) -> None:
        while self._waiting and self._waiting[0][0] <= self.core.applied:
            heapq.heappop(self._waiting)[2](None)

    def read_index(self, done: Done) -> None:
        """Told, with the index, once this replica has applied all that was committed at the call."""
        def confirmed(index: int, result: object, error: VecdbError | None) -> None:
            if error is not None:
                done(index, None, error)
            else:
                self.wait_applied(index, lambda error: done(index, None, error))

        self.core.read_index(confirmed)

    # --- the log kept short -----------------------------------------------------------------------

    def _checkpoint(self) -> None:
        core, log = self.core, self.core.log
        if core.applied > self._counted:
            self._gathered += log.size_of(self._counted + 1, core.applied + 1)
            self._counted = core.applied
        due = self._gathered >= self.settings.checkpoint_bytes \
            or core.applied - self._checkpointed >= 64 * self.settings.keep_entries \
            or log.base < self._floor <= core.applied
        if due and not self._checkpointing and not self._busy:
            self._checkpointing = True
            self._run("checkpoint", self.machine.checkpoint, self._flushed)

    @property
    def _floor(self) -> int:
        return 0 if self._based is None else self._based.floor

    def _flushed(self, position: Position) -> None:
        self._checkpointing = False
        core, log = self.core, self.core.log
        self._kept(position.log_index)
        index = position.log_index
        if log.bytes <= self.settings.log_bytes:
            index -= self.settings.keep_entries
            index = min([index, *core.lags()])
        elif self._outgoing is not None and log.bytes > 2 * self.settings.log_bytes \
                and core.for_observers(self._outgoing.number):
            self._release()  # nobody's commands wait for an observer: it is offered another
        if self._floor <= position.log_index:
            index = max(index, self._floor)
        if self._outgoing is not None:
            index = min(index, self._outgoing.snapshot.position.log_index)
        if self._making is not None:  # or it would be too old once it is made, and the next one as well
            index = min(index, self._making)
        core.truncate_to(index)

    def _kept(self, index: int) -> None:
        """The state is on stable storage up to ``index``."""
        self._checkpointed = max(self._checkpointed, index)
        self._counted = max(self._counted, self._checkpointed)
        self._gathered = self.core.log.size_of(self._checkpointed + 1, self._counted + 1)

    # --- a snapshot for others --------------------------------------------------------------------

    def _made(self, snapshot: Any) -> None:
        self._making = None
        self._release()
        self._outgoing = Outgoing(self._random.getrandbits(63), snapshot, self.host.clock())
        self._offer()

    def _offer(self) -> None:
        outgoing, core = self._outgoing, self.core
        assert outgoing is not None
        position = outgoing.snapshot.position
        wanting, self._wanting = self._wanting, []
        if position.log_index < core.log.base or core.role != 2:
            return  # too old already: at the next heartbeat another is made
        intent = Intent(position.log_index, position.term, core.configuration_at(position.log_index))
        outgoing.used = self.host.clock()
        for follower in wanting:
            core.offer(follower, outgoing.offer(core.term, intent))

    def _release(self) -> None:
        outgoing, self._outgoing = self._outgoing, None
        if outgoing is not None:
            self.core.withdraw(outgoing.number)
            outgoing.end()

    def _serve(self, sender: str, fetch: Fetch) -> None:
        outgoing, term = self._outgoing, self.core.term
        if outgoing is None or fetch.snapshot != outgoing.number:
            self.core.withdraw(fetch.snapshot)
            self.send(sender, gone(term, fetch))
            return

        def served(chunk: Chunk | None, error: BaseException | None) -> None:
            outgoing.was_read()
            if error is not None:
                self.tell("error", "raft_snapshot_unreadable", group=self.group,
                          error=f"{type(error).__name__}: {error}")
                if self._outgoing is outgoing:
                    self._release()
            self.send(sender, gone(term, fetch) if chunk is None else chunk)
            self.host.turn()

        outgoing.used = self.host.clock()
        outgoing.readers += 1
        self.host.shell.run(f"serve/{self.group}", partial(outgoing.chunk, term, fetch), served)

    # --- a snapshot for us ------------------------------------------------------------------------

    def _receive(self) -> None:
        now = self._receiving
        if now is None or now.installing:
            return
        for fetch in now.step():
            self.send(now.sender, fetch)
        write = now.next_write()
        if write is not None:
            self._run("install", partial(now.incoming.write, *write), partial(self._written, now))
        elif now.complete and not self._busy:
            self._intend(now)

    def _arrived(self, chunk: Chunk) -> None:
        now = self._receiving
        if now is None or now.installing or chunk.snapshot != now.offer.snapshot:
            return
        if chunk.gone:
            now.incoming.close()
            self._receiving = None
            return
        now.take(chunk)
        self._receive()

    def _written(self, receiving: Receiving, _: None) -> None:
        receiving.writing = False
        if self._receiving is receiving:
            self._receive()

    def _intend(self, now: Receiving) -> None:
        """First it is noted in the log what is about to happen, then it happens, then the log begins anew behind it."""
        core = self.core
        if now.offer.index <= core.applied:
            now.incoming.close()
            self._receiving = None
            if core.log.intent is not None:
                core.log.intend(None)
            return
        if core.log.stable_intent != now.intent:
            if core.log.intent != now.intent:
                core.log.intend(now.intent)
                self.touched()
            return  # the next tick finds it stable
        now.installing = self._busy = True
        self._run("install", partial(_install, now), partial(self._installed, now))

    def _installed(self, now: Receiving, error: DataCorrupted | None) -> None:
        self._busy = False
        self._receiving = None
        now.incoming.close()
        if error is not None:
            self.tell("warning", "raft_snapshot_damaged", group=self.group, error=error.message)
            return
        offer = now.offer
        self.core.installed(offer.index, offer.index_term, offer.configuration)
        if self.core.log.intent is not None:
            self.core.log.intend(None)
        self._kept(offer.index)
        self.tell("info", "raft_snapshot_installed", group=self.group, index=offer.index)
        if self.core.leader is not None and self.core.leader != self.core.me:
            self.send(self.core.leader, Appended(self.core.term, 0, True, offer.index, offer.index))
        self._wake()

    # --- ends -------------------------------------------------------------------------------------

    def _halt(self, error: BaseException) -> None:
        """This replica can do no more until it is opened anew; the others go on without it."""
        if self.halted:
            return
        self.state, self.error = "halted", f"{type(error).__name__}: {error}"
        self.tell("error", "raft_replica_halted", group=self.group, error=self.error)
        self._end("this replica was halted", error=self.error)

    def _end(self, why: str, **fields: str) -> None:
        self.core.follow(self.core.term, None)
        self.core.fail_waiters(OutcomeUnknown(why, **fields))
        waiting, self._waiting = self._waiting, []
        for _, _, done in sorted(waiting, key=lambda one: one[:2]):
            done(Unavailable(why, **fields))

    def close(self) -> None:
        """Let go of snapshots; waiters are told that the outcome is unknown."""
        self._release()
        if self._receiving is not None:
            self._receiving.incoming.close()
        self._end("this replica was closed")

    def halt(self, error: BaseException) -> None:
        self._halt(error)

    def status(self) -> ReplicaStatus:
        core = self.core
        now = self.host.clock()
        configuration = core.configuration
        state = self.state
        if state == "ok":
            state = "removed" if core.removed else "ok" if configuration.voters else "joining"
        return ReplicaStatus(
            me=core.me, state=state, role=("follower", "candidate", "leader")[core.role], term=core.term,
            leader=core.leader, commit=core.commit, applied=core.applied, first=core.log.base + 1, last=core.log.last,
            log_bytes=core.log.bytes, voters=configuration.voters, learners=configuration.learners,
            joining=configuration.joining, error=self.error, current=core.current,
            matches={one: progress.match for one, progress in sorted(core.progress.items())},
            heard_s={one: now - progress.heard for one, progress in sorted(core.progress.items())},
            steady_s={one: now - progress.since for one, progress in sorted(core.progress.items())})


def _install(receiving: Receiving) -> DataCorrupted | None:
    try:
        receiving.incoming.install()
    except DataCorrupted as error:
        return error
    return None
