"""A replica that follows: its log taken from the leader, its configuration read off its log."""

from collections.abc import Callable
from random import Random
from typing import Protocol

from vecdb.core.errors import DataCorrupted
from vecdb.raft.log import GroupLog
from vecdb.raft.membership import Configuration
from vecdb.raft.messages import MEMBERS, Append, Appended, Entry, Message, Offer
from vecdb.raft.settings import RaftSettings
from vecdb.raft.stock import FOLLOWER, LEADER, Stock


class Surroundings(Protocol):
    """What a replica does to the world; the host's side."""

    def send(self, to: str, message: Message) -> None:
        """At the end of the turn, promises once everything stored so far is on stable storage.  May lose it."""
        ...

    def touched(self) -> None:
        """There is something to flush, apply or store."""
        ...

    def offered(self, sender: str, offer: Offer) -> None:
        """The leader wants us to take a snapshot; told at each of its heartbeats."""
        ...

    def snapshot_wanted(self, follower: str) -> None:
        """A follower needs what the log does not hold any more; told at each heartbeat until there is one."""
        ...

    def tell(self, level: str, event: str, **fields: object) -> None: ...


class Following(Stock):
    """Appends of the leader; see :class:`vecdb.raft.core.RaftCore` for the whole."""

    def __init__(self, me: str, log: GroupLog, around: Surroundings, clock: Callable[[], float], random: Random,
                 settings: RaftSettings) -> None:
        self.log = log
        self.around = around
        self.clock = clock
        self.settings = settings
        self._random = random
        voters = log.base_configuration.voters
        # A new group's first leader is the same voter everywhere: it asks until a majority has the group, as long as
        # an election may take, so that nobody has to wait for a timeout.  Who it is varies, so that leaders do.
        begins = bool(voters) and voters[log.group % len(voters)] == me
        self._begins_until = clock() + settings.election_s_max if begins else float("-inf")
        self.leader_seen = float("-inf")
        self._heard_since = float("inf")
        self._owed: int | None = None
        """What this replica must have applied to be as far as its group was when it first heard of it."""
        self.handed_over = False
        self._answered: tuple[str, int, int, int] | None = None
        """The last acknowledgement: to whom, in which term, of which number, up to which index."""
        self.configurations: list[tuple[int, Configuration]] = [(log.base, log.base_configuration)]
        for index in log.configured:
            self._note(log.read(index, index, 0, 1)[0])
        super().__init__(me, log, self._timeout)  # looks at every attribute there is: ours are set before
        self.election_deadline = clock() + self._timeout()

    def _timeout(self) -> float:
        if self.log.getCurrentTerm() == 0 and self.clock() < self._begins_until:
            return self.settings.heartbeat_s
        low, high = self.settings.election_s_min, self.settings.election_s_max
        voters = self.configuration.voters
        if not self.term and voters and self.me == voters[self.log.group % len(voters)]:
            # Nobody has ever led this group, so nobody's silence has to be waited for.  One replica asks at once, and
            # again until the others are there; which one it is spreads the leaders of many groups over the nodes.
            low, high = self.settings.heartbeat_s, 2 * self.settings.heartbeat_s
        return low + (high - low) * self._random.random()

    # --- the configuration ------------------------------------------------------------------------

    @property
    def configuration(self) -> Configuration:
        """In force: the last in the log, committed or not."""
        return self.configurations[-1][1]

    def configuration_at(self, index: int) -> Configuration:
        return next(found for at, found in reversed(self.configurations) if at <= index)

    def _note(self, entry: Entry) -> None:
        if entry.command[:1] == MEMBERS:
            try:
                configuration = Configuration.from_bytes(entry.command[1:])
            except ValueError as error:
                raise DataCorrupted(f"entry {entry.index} is no configuration", path="log",
                                    group=self.log.group) from error
            self.configurations.append((entry.index, configuration))

    def _reconfigured(self) -> None:
        """The configuration in force has changed."""

    def append(self, entries: list[Entry] | tuple[Entry, ...]) -> None:
        """Put entries behind the log's end."""
        before = self.configuration
        for entry in entries:
            self._note(entry)
            self.log.add(*entry)
        if self.configuration is not before:
            self._reconfigured()

    def truncate_from(self, index: int) -> None:
        before = self.configuration
        self.delete_from(index)
        while self.configurations[-1][0] >= index:
            self.configurations.pop()
        if self.configuration is not before:
            self._reconfigured()

    def truncate_to(self, index: int) -> None:
        """Forget entries up to ``index``, which is stable, applied and in a flushed checkpoint."""
        index = min(index, self.log.stable, self.applied)
        if index <= self.log.base:
            return
        self.log.base_configuration = self.configuration_at(index)
        self.delete_to(index)
        self.configurations = [(index, self.log.base_configuration),
                               *(pair for pair in self.configurations if pair[0] > index)]
        self.around.touched()

    def installed(self, index: int, term: int, configuration: Configuration) -> None:
        """The state machine has taken a snapshot of the state at ``(index, term)``."""
        if self.log.term_at(index) == term and index >= self.log.base:
            self.commit = max(self.commit, index)  # what follows it in the log is still good (R fig. 13, 6)
            self.applied = max(self.applied, index)
            self.truncate_to(index)
        else:
            self.log.reset(index, term, configuration)
            self.configurations = [(index, configuration)]
            self.commit, self.applied = index, index
            self._reconfigured()
        self.log.setRaftCommitIndex(self.commit)
        self.around.touched()

    # --- the leader's word ------------------------------------------------------------------------

    def follow(self, term: int, leader: str | None) -> None:
        """Step down, into ``term`` if that is later; who leads is ``leader``, or not known."""
        self.handed_over = False
        if term > self.term:
            self.store_term(term, None)
        if self.role != FOLLOWER:
            self.enter(FOLLOWER)
            self.election_deadline = self.clock() + self._timeout()
        self.know_leader(leader)
        self.around.touched()

    def _hear(self, sender: str, term: int) -> bool:
        """Take ``sender`` for the leader of ``term``; False (and an answer) if it is a leader of the past."""
        if term < self.term or (term == self.term and self.role == LEADER):
            return False
        if term > self.term or self.role != FOLLOWER or self.leader != sender:
            self.follow(term, sender)
        now = self.clock()
        self.leader_seen = now
        if not self.handed_over:
            self.election_deadline = now + self._timeout()
        return True

    def on_append(self, sender: str, message: Append) -> None:
        """R fig. 2, AppendEntries: delete only on conflict, never shorten what matches."""
        if not self._hear(sender, message.term):
            self._tell_of_the_past(sender, message.term)
            return
        log = self.log
        prev, entries = message.prev, message.entries
        if prev < log.base:  # what is below the base is committed, so it matches
            entries = tuple(entry for entry in entries if entry.index > log.base)
            prev = log.base
        elif log.term_at(prev) != message.prev_term:
            self.around.send(sender, Appended(self.term, message.seq, False, prev, self._hint(prev)))
            return
        match = entries[-1].index if entries else prev
        new = next((at for at, entry in enumerate(entries) if log.term_at(entry.index) != entry.term), len(entries))
        if new < len(entries):
            first = entries[new].index
            if first <= self.commit:
                self.around.tell("error", "raft_conflict_below_commit", group=log.group, index=first, sender=sender)
                return
            if first <= log.last:
                self.truncate_from(first)
            self.append(entries[new:])
        self._committed(min(message.commit, match))
        self._learn_owed(message)
        answer = (sender, self.term, message.seq, match)
        # News of a commit, between two heartbeats: who sends it has this answer, or asks again with the next heartbeat.
        if entries or answer != self._answered:
            self._answered = answer
            self.around.send(sender, Appended(self.term, message.seq, True, message.prev, match))

    def _tell_of_the_past(self, sender: str, term: int) -> None:
        """A leader of an earlier term hears of this one, and nothing else: it may lead this one by now, and would take
        an answer to what it sent then for an answer to what it sends now.
        """
        if term < self.term:
            self.around.send(sender, Appended(self.term, 0, False, 0, 0))

    def _hint(self, prev: int) -> int:
        """The last place that may match, passing over a whole term at once (D 3.3)."""
        if prev > self.log.last:
            return self.log.last
        return max(self.log.first_of_term(prev, self.commit) - 1, min(self.commit, prev - 1))

    def _learn_owed(self, message: Append) -> None:
        """Not from a leader that has committed nothing of its own, who may know of too little, nor from the first that
        is heard: messages have waited on their way while this replica was away, and are of then.
        """
        now, log = self.clock(), self.log
        self._heard_since = min(self._heard_since, now)
        if self._owed is None and now - self._heard_since >= self.settings.election_s_min \
                and log.base <= message.commit <= log.last and log.term_at(message.commit) == message.term:
            self._owed = message.commit

    @property
    def current(self) -> bool:
        """Whether this replica, since it was opened, has been as far as its group: what was committed before a leader
        was first heard (or led) is applied.  Before that it may have gone back to any earlier state.
        """
        return self._owed is not None and self.applied >= self._owed

    def _committed(self, index: int) -> None:
        if index > self.commit:
            self.commit = index
            self.log.setRaftCommitIndex(index)
            self.around.touched()

    def on_offer(self, sender: str, message: Offer) -> None:
        if not self._hear(sender, message.term):
            self._tell_of_the_past(sender, message.term)
            return
        if message.index <= self.commit:
            self.around.send(sender, Appended(self.term, message.seq, True, message.index, self.commit))
            return
        self.around.send(sender, Appended(self.term, message.seq, False, message.index, self.commit))
        self.around.offered(sender, message)
