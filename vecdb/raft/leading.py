"""A replica that leads: what each follower has, what is committed, reads that are confirmed, leadership handed over."""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import Final, TypeAlias

from vecdb.core.errors import InvalidArgument, NotLeader, Unavailable, VecdbError
from vecdb.raft.following import Following, Surroundings
from vecdb.raft.log import GroupLog
from vecdb.raft.membership import MAX_NUMBER, Change, Configuration, node_of, promoted, replica_id
from vecdb.raft.messages import MEMBERS, Append, Appended, Entry, Gone, Offer, TimeoutNow
from vecdb.raft.settings import RaftSettings
from vecdb.raft.stock import LEADER

OBSERVED_BEATS: Final = 4
"""Heartbeats of which an observer hears one: it only has to know that there is a leader."""

NEWS_S: Final = 0.001
"""For which the news of a commit waits.  It costs two messages of gRPC's a command, which the answer and the next
command would stand behind."""

Done: TypeAlias = Callable[[int, object, VecdbError | None], None]
"""Told once: the log index and the result, or the error.  Must not raise."""


@dataclass(slots=True)
class Progress:
    """What the leader knows of one follower."""

    next: int
    heard: float
    match: int = 0
    match_seq: int = 0
    """Of messages that were sent after the match had been heard of, the number is above this."""
    seq: int = 0
    probing: bool = True
    """Until the first match: one message at a time, without entries ahead."""
    asked: bool = False
    commit_sent: int = 0
    window: deque[tuple[int, int]] = field(default_factory=deque)
    """(last index, bytes) of messages that are not acknowledged."""
    window_bytes: int = 0
    offer: Offer | None = None
    lacking: bool = False
    """Needs what the log does not hold any more."""
    observes: bool = False
    since: float = 0.0
    """Since when it has been heard without a pause as long as the shortest election timeout."""

    def matched(self, index: int) -> None:
        self.match = max(self.match, index)
        self.next = max(self.next, self.match + 1)
        while self.window and self.window[0][0] <= self.match:
            self.window_bytes -= self.window.popleft()[1]

    def rewind(self, index: int) -> None:
        """Send again from ``index``, never below what is known to match."""
        self.next = max(self.match + 1, index)
        self.window.clear()
        self.window_bytes = 0


@dataclass(slots=True)
class _Read:
    seq: int
    index: int
    done: Done


@dataclass(slots=True)
class _Transfer:
    to: str
    until: float
    done: Done | None
    told: bool = False


class Leading(Following):
    """What a leader does; nothing of it is in force in another role."""

    def __init__(self, me: str, log: GroupLog, around: Surroundings, clock: Callable[[], float], random: Random,
                 settings: RaftSettings) -> None:
        self.progress: dict[str, Progress] = {}
        self._seq = 0
        self._seq_sent = 0
        self._reads: list[_Read] = []
        self._transfer: _Transfer | None = None
        self._next_beat = 0.0
        self._next_observed = 0.0
        self._observed = False
        """Observers are to hear the heartbeat that is due."""
        self._next_check = 0.0
        self._uncommitted = 0
        self._commit_before = self._commit_at_beat = 0
        self.owes_news = False
        """Followers have not been told of a commit: that waits a moment, for the next command, which tells it as well,
        mostly follows the answer to the last."""
        self._news_now = False
        super().__init__(me, log, around, clock, random, settings)

    # --- beginning and end ------------------------------------------------------------------------

    def lead(self) -> None:
        now = self.clock()
        self.progress = {}
        self._seq = self._seq_sent = 0
        self.begin_leadership()
        self._owed = self.log.last if self._owed is None else self._owed
        self._uncommitted = self.log.size_of(self.commit + 1, self.log.last + 1)
        self._commit_before = self._commit_at_beat = self.log.last
        self._next_check = now + self.settings.election_s_max
        self._reconfigured()
        self._beat(now)

    def _reconfigured(self) -> None:
        if self.role != LEADER:
            return
        others = [one for one in self.configuration.everybody if one != self.me]
        now = self.clock()
        self.progress = {one: self.progress.get(one) or Progress(next=self.log.last + 1, heard=now, since=now)
                         for one in others}
        observers = set(self.configuration.learners)
        for one, progress in self.progress.items():
            progress.observes = one in observers
        self._advance()

    def follow(self, term: int, leader: str | None) -> None:
        led = self.role == LEADER
        super().follow(term, leader)
        if led:
            self.progress = {}
            self._end_transfer(leader)
            reads, self._reads = self._reads, []
            for read in reads:
                read.done(0, None, self.not_leader())
            self._stepped_down()

    def _stepped_down(self) -> None:
        """Waiters are told."""

    def not_leader(self) -> NotLeader:
        leader = self.leader if self.leader != self.me else None
        if self._transfer is not None:
            leader = self._transfer.to
        return NotLeader(f"{leader} leads this group" if leader else "this group has no leader at the moment",
                         leader=leader)

    # --- time -------------------------------------------------------------------------------------

    def tick_leader(self, now: float) -> None:
        if now >= self._next_check:
            # D 6.2: who has heard of no majority for an election timeout leads nobody any more.
            self._next_check = now + self.settings.election_s_min / 2
            heard = [one for one, progress in self.progress.items() if not progress.observes
                     and now - progress.heard <= self.settings.election_s_max]
            if not self.configuration.agreed([*heard, self.me]):
                self.around.tell("warning", "raft_leader_without_quorum", group=self.log.group, term=self.term)
                self.follow(self.term, None)
                return
        if self._transfer is not None and now >= self._transfer.until:
            self._end_transfer(None)
        if now >= self._next_beat:
            self._beat(now)
        self._promote()

    def _beat(self, now: float) -> None:
        self._next_beat = now + self.settings.heartbeat_s
        self._commit_before, self._commit_at_beat = self._commit_at_beat, self.commit
        if now >= self._next_observed:
            limits = self.settings
            self._observed = True
            self._next_observed = now + max(limits.heartbeat_s, min(OBSERVED_BEATS * limits.heartbeat_s,
                                                                    limits.election_s_min / 3))
        self._seq += 1
        self.around.touched()

    # --- sending ----------------------------------------------------------------------------------

    def flush(self) -> None:
        """At the end of a turn: everything that followers do not have yet, in as few messages as it fits."""
        self.owes_news = False
        if self.role != LEADER:
            return
        beat = self._seq > self._seq_sent
        self._seq_sent = self._seq
        observed, self._observed = self._observed, False
        for follower, progress in self.progress.items():
            due = observed if progress.observes else beat
            if progress.lacking or progress.next <= self.log.base:
                self._offer(follower, progress, due)
                continue
            sent = self._send_entries(follower, progress)
            news = not progress.probing and min(self.commit, progress.match) > progress.commit_sent
            if not sent and (due or (news and self._news_now)):
                self._send(follower, progress, ())
            elif news and not sent:
                self.owes_news = True
        self._news_now = False

    def tell_news(self) -> None:
        """The moment is over."""
        if self.owes_news:
            self._news_now = True
            self.around.touched()

    def _send_entries(self, follower: str, progress: Progress) -> bool:
        sent = False
        limits = self.settings
        while progress.next <= self.log.last and not (progress.probing and progress.asked):
            room = limits.window_bytes - progress.window_bytes
            if progress.window and (room <= 0 or len(progress.window) >= limits.window_messages):
                break
            entries = self.log.read(progress.next, self.log.last, min(limits.batch_bytes, max(room, 1)),
                                    limits.batch_entries)
            size = sum(len(entry.command) for entry in entries)
            self._send(follower, progress, tuple(entries))
            progress.window.append((entries[-1].index, size))
            progress.window_bytes += size
            if not progress.probing:
                progress.next = entries[-1].index + 1
            sent = True
        return sent

    def _send(self, follower: str, progress: Progress, entries: tuple[Entry, ...]) -> None:
        prev = progress.next - 1
        term = self.log.term_at(prev)
        assert term is not None, "next is above the base"
        progress.asked = True
        progress.commit_sent = self.commit
        self.around.send(follower, Append(self.term, self._seq, prev, term, self.commit, entries))

    def _offer(self, follower: str, progress: Progress, beat: bool) -> None:
        if progress.offer is None or progress.offer.index < self.log.base:
            progress.lacking, progress.offer = True, None
            self.around.snapshot_wanted(follower)
        if progress.offer is not None and beat:
            offer = progress.offer
            self.around.send(follower, Offer(self.term, self._seq, offer.index, offer.index_term, offer.snapshot,
                                             offer.configuration, offer.files))
        elif beat:  # it must still hear that it has a leader
            self.around.send(follower, Append(self.term, self._seq, self.log.base, self.log.base_term, 0))

    def offer(self, follower: str, offer: Offer) -> None:
        """A snapshot for a follower that lacks too much is there."""
        progress = self.progress.get(follower)
        if progress is not None and progress.lacking:
            progress.offer = offer
            self._observed = self._observed or progress.observes
            self._beat(self.clock())

    def for_observers(self, snapshot: int) -> bool:
        """Whether a snapshot was offered, and to observers alone."""
        offered = [one for one in self.progress.values() if one.offer is not None and one.offer.snapshot == snapshot]
        return bool(offered) and all(one.observes for one in offered)

    def lags(self) -> list[int]:
        """Places of followers that get entries rather than a snapshot, as long as there is room: of voters, and of
        observers that are heard.
        """
        now = self.clock()
        return [one.match for one in self.progress.values() if one.match and not one.lacking and not (
            one.observes and now - one.heard > self.settings.election_s_max)]

    def awaited(self, snapshot: int) -> bool:
        """Whether a follower that is heard was offered a snapshot and has not said yet that it has it."""
        now = self.clock()
        return any(progress.offer is not None and progress.offer.snapshot == snapshot
                   and now - progress.heard <= self.settings.election_s_max for progress in self.progress.values())

    def withdraw(self, snapshot: int) -> None:
        """A snapshot is held no more: who was offered it is offered another."""
        for progress in self.progress.values():
            if progress.offer is not None and progress.offer.snapshot == snapshot:
                progress.offer = None

    # --- answers ----------------------------------------------------------------------------------

    def on_appended(self, sender: str, message: Appended) -> None:
        if message.term > self.term:
            self.follow(message.term, None)
            return
        progress = self.progress.get(sender)
        if message.term < self.term or self.role != LEADER or progress is None or not (message.seq or message.success):
            return  # a refusal without a number: an answer to somebody's earlier term
        now = self.clock()
        if now - progress.heard > self.settings.election_s_min:
            progress.since = now
        progress.heard = now
        progress.seq = max(progress.seq, min(message.seq, self._seq))
        if message.success:
            self._on_match(sender, progress, message)
        else:
            self._on_mismatch(sender, progress, message)
        self._confirm()
        self.around.touched()

    def _on_match(self, sender: str, progress: Progress, message: Appended) -> None:
        if message.at > self.log.last:
            self.around.tell("warning", "raft_match_beyond_log", group=self.log.group, sender=sender, at=message.at)
            return
        if progress.probing or progress.lacking:
            progress.rewind(message.at + 1)
        progress.probing = progress.lacking = progress.asked = False
        progress.offer = None
        if message.at > progress.match:
            progress.match_seq = self._seq
        progress.matched(message.at)
        self._advance()
        if self._transfer is not None and self._transfer.to == sender:
            self._hand_over()

    def _on_mismatch(self, sender: str, progress: Progress, message: Appended) -> None:
        if message.prev <= progress.match and message.seq > progress.match_seq:
            self._on_broken_promise(sender, progress, message)
            return
        if progress.lacking:
            if message.at >= self.log.base:  # it has caught up by other means
                progress.lacking, progress.probing = False, True
                progress.rewind(message.at + 1)
            return
        if message.prev <= progress.match or message.at >= message.prev:
            return  # overtaken by an acknowledgement
        if progress.probing and message.prev != progress.next - 1:
            return  # the answer to an earlier probe
        progress.probing, progress.asked = True, False
        progress.rewind(min(message.at, message.prev - 1) + 1)

    def _on_broken_promise(self, sender: str, progress: Progress, message: Appended) -> None:
        """It was sent a place it had acknowledged, after it had, and does not hold it: its disk has lost the end of its
        log without a word.  It would never catch up, and may not vote: out it goes, and is told so when it asks.

        Who begins afresh on its node answers for a number that is not his (:class:`Gone`), and only members are sent
        anything.  So the place is kept, without a vote, by a number that nobody has.
        """
        if not self._free_to_change():
            return
        nobody = replica_id(node_of(sender), self._random.randrange(1 << 16, MAX_NUMBER))
        try:
            after = Change(add=nobody, remove=sender, join=sender not in self.configuration.learners).applied_to(
                self.configuration)
        except InvalidArgument:
            return
        self.around.tell("error", "raft_promise_broken", group=self.log.group, replica=sender,
                         promised=progress.match, holds=message.at)
        self.reconfigure(after)

    def on_gone(self, sender: str, message: Gone) -> None:
        """A replica has lost its log: a learner takes its place in one step, and is promoted when it has caught up."""
        if message.term < self.term or self.role != LEADER or not message.successor or not self._free_to_change():
            return
        successor = replica_id(node_of(sender), message.successor)
        try:
            after = Change(add=successor, remove=sender, join=sender not in self.configuration.learners).applied_to(
                self.configuration)
        except InvalidArgument:
            return  # it is out already, or the only voter
        self.around.tell("warning", "raft_replica_replaced", group=self.log.group, lost=sender, successor=successor)
        self.reconfigure(after)

    # --- commitment -------------------------------------------------------------------------------

    def _advance(self) -> None:
        """R fig. 2, leaders: a majority of voters has it on stable storage, and it is of this term (R 5.4.2)."""
        if self.role != LEADER:
            return
        voters = self.configuration.voters
        matches = sorted((self.log.stable if one == self.me else self.progress[one].match for one in voters),
                         reverse=True)
        index = matches[len(voters) // 2] if voters else 0
        if index > self.commit and self.log.term_at(index) == self.term:
            self._uncommitted -= self.log.size_of(self.commit + 1, index + 1)
            self._committed(index)
            self._confirm()

    # --- reads ------------------------------------------------------------------------------------

    def read_index(self, done: Done) -> None:
        """D 6.4: told the index a linearizable read must wait for, once a majority has confirmed this leadership.

        Reads of one turn share a round of heartbeats.
        """
        if self.role != LEADER:
            done(0, None, self.not_leader())
            return
        if self._seq == self._seq_sent:
            self._seq += 1
        # A leader's own no-op must be committed before it knows what is (D 6.4, step 1).
        self._reads.append(_Read(self._seq, max(self.commit, self.noop_index or 0), done))
        self._confirm()
        self.around.touched()

    def _confirm(self) -> None:
        while self._reads and self.role == LEADER:
            read = self._reads[0]
            answered = [one for one, progress in self.progress.items()
                        if not progress.observes and progress.seq >= read.seq]
            if read.index > self.commit or not self.configuration.agreed([*answered, self.me]):
                return
            self._reads.pop(0)
            read.done(read.index, None, None)

    # --- handing over -----------------------------------------------------------------------------

    @property
    def handing_over(self) -> bool:
        return self._transfer is not None

    def transfer(self, to: str | None, done: Done | None) -> None:
        """D 3.10: take no more proposals, let ``to`` (or who is furthest) catch up, tell it to begin an election."""
        if self.role != LEADER:
            if done:
                done(0, None, self.not_leader())
            return
        others = [one for one in self.configuration.voters if one != self.me]
        if to is None and others:
            to = max(others, key=lambda one: (self.progress[one].heard >= self.clock() - self.settings.election_s_min,
                                              self.progress[one].match))
        if to not in others or self._transfer is not None:
            if done:
                done(0, None, Unavailable(f"leadership cannot be handed to {to} now", to=to))
            return
        self._transfer = _Transfer(to, self.clock() + self.settings.election_s_max, done)
        self._beat(self.clock())
        self._hand_over()

    def _hand_over(self) -> None:
        transfer = self._transfer
        if transfer is None or transfer.told:
            return
        if self.progress[transfer.to].match == self.log.last:
            transfer.told = True
            self.around.send(transfer.to, TimeoutNow(self.term))

    def _end_transfer(self, leader: str | None) -> None:
        transfer, self._transfer = self._transfer, None
        if transfer is not None and transfer.done is not None:
            if self.role != LEADER:
                transfer.done(0, leader, None)
            else:
                transfer.done(0, None, Unavailable(f"{transfer.to} did not take over in time", to=transfer.to))

    # --- members ----------------------------------------------------------------------------------

    def answers(self, replica: str) -> bool:
        """Whether a replica was heard within the shortest election timeout."""
        progress = self.progress.get(replica)
        return replica == self.me or (progress is not None and progress.match > 0
                                      and self.clock() - progress.heard <= self.settings.election_s_min)

    def _free_to_change(self) -> bool:
        """D 4.1, and the amendment of 2015: the last change is committed, and something of this term."""
        return self.configurations[-1][0] <= self.commit and self.commit >= (self.noop_index or 0)

    def reconfigure(self, after: Configuration) -> int:
        """Append a configuration; in force at once.  The caller has asked :meth:`_free_to_change`."""
        index = self.log.last + 1
        command = MEMBERS + after.to_bytes()
        self._uncommitted += len(command)
        self.append([Entry(command, index, self.term)])
        self.around.touched()
        return index

    def _promote(self) -> None:
        """Learners that asked for it become voters once they have what was committed a heartbeat ago."""
        if not self.configuration.joining or not self._free_to_change() or self.handing_over:
            return
        now = self.clock()
        for one in self.configuration.joining:
            progress = self.progress[one]
            if not progress.lacking and not progress.probing and progress.match >= self._commit_before \
                    and now - progress.heard <= 2 * self.settings.heartbeat_s:
                self.reconfigure(promoted(self.configuration, one))
                return
