"""One replica of one group: the hardened SyncObj.

**Theory of operation.**  A replica is driven by one thread and knows no socket, disk or clock of its own: ``receive``
takes a message, ``tick`` lets time pass, ``propose``, ``read_index``, ``transfer`` and ``change`` are what callers ask,
``synced`` says that a batch of the log has reached stable storage, ``flush`` ends a turn, ``to_apply`` and
``applied_to`` lead what is committed to the state machine.  What it wants done goes to its
:class:`~vecdb.raft.following.Surroundings`.  The rules are those of the Raft paper (R) and of the dissertation (D).

===========  ==================================================  ===================================================
role         becomes                                              when
===========  ==================================================  ===================================================
follower     asks for pre-votes, stays a follower (D 9.6)         no leader heard for an election timeout
follower     candidate of the next term (R 5.2)                   a majority would vote for it, or the leader says so
candidate    leader (R 5.2)                                       a majority of voters has voted, its own vote synced
leader       follower                                             a later term, or no majority heard (D 6.2)
===========  ==================================================  ===================================================

**Soon again.**  Silence is waited out for an election timeout.  A round that cannot be won any more (two asked at the
same instant, or who was asked still heard the leader, or has the longer log) is not: the next comes after a few tenths
of a second, and so does the first where a leader's process is known to be gone (:meth:`RaftCore.gone`).  Such rounds
are few until a leader is heard again, so who is cut off does not go on with it.  Nothing but the time of elections
depends on any of this: reads are confirmed by a majority, never by a lease.

A vote is refused while a leader is heard (D 4.2.3), unless he himself wants the election.  A replica that is no voter
of its own configuration never asks for votes; whether its vote counts is judged by the candidate's configuration
(D 4.2.1).  A replica of no configuration (new, or after damage) waits for a leader.

**Waiters.**  Who proposed is told once: the result when the entry was applied here; ``OutcomeUnknown`` if the
leadership ended before it was committed (the next leader may still do so), or before the disk here had it, which
hangs; ``NotLeader`` if nothing was done.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Final

from vecdb.core.errors import InvalidArgument, LimitExceeded, OutcomeUnknown, Overloaded, Unavailable, VecdbError
from vecdb.raft.following import Surroundings
from vecdb.raft.leading import Done, Leading
from vecdb.raft.log import GroupLog
from vecdb.raft.membership import Change, Configuration, node_of
from vecdb.raft.messages import (
    COMMAND,
    Append,
    Appended,
    Entry,
    Gone,
    Message,
    Offer,
    PreVote,
    PreVoted,
    TimeoutNow,
    Vote,
    Voted,
)
from vecdb.raft.settings import RaftSettings
from vecdb.raft.stock import CANDIDATE, FOLLOWER, LEADER

AGAIN: Final = 6
"""Rounds that are not waited a timeout for, from one leader to the next."""


@dataclass(slots=True)
class _Campaign:
    """``real``: a vote; otherwise the question whether one would be won."""

    term: int
    real: bool
    forced: bool
    votes: set[str]
    refused: set[str] = field(default_factory=set)
    asked: bool = False
    """Its own vote is stable, so the others have been asked."""


class RaftCore(Leading):
    """See the module."""

    def __init__(self, me: str, log: GroupLog, around: Surroundings, *, applied: int, clock: Callable[[], float],
                 random: Random, settings: RaftSettings) -> None:
        """``applied``: the last log index in the state machine, at least the log's base."""
        self._campaign: _Campaign | None = None
        self._waiters: dict[int, tuple[int, Done]] = {}
        self._again = AGAIN
        self._led = ""
        """Who was last heard to lead."""
        self.removed = False
        super().__init__(me, log, around, clock, random, settings)
        self.applied = max(applied, log.base)
        self.commit = max(self.commit, self.applied)
        self._taken = self.applied

    # --- messages ---------------------------------------------------------------------------------

    def receive(self, sender: str, message: Message) -> None:
        """Take in one message; anything may come in any order, any number of times."""
        match message:
            case Append():
                self.on_append(sender, message)
            case Appended():
                self.on_appended(sender, message)
            case PreVote():
                self._on_pre_vote(sender, message)
            case PreVoted():
                self._on_pre_voted(sender, message)
            case Vote():
                self._on_vote(sender, message)
            case Voted():
                self._on_voted(sender, message)
            case TimeoutNow():
                self._on_timeout_now(sender, message)
            case Offer():
                self.on_offer(sender, message)
            case Gone():
                self.on_gone(sender, message)
            case _:
                raise TypeError(f"{type(message).__name__} is the host's affair")

    def tick(self) -> None:
        """Let time pass: elections, heartbeats, check quorum."""
        now = self.clock()
        if self.role == LEADER:
            self.tick_leader(now)
        elif now >= self.election_deadline and not self._waits_for_its_disk():
            self.election_deadline = now + self._timeout()
            self.handed_over = False
            if self.me in self.configuration.voters:
                self._ask(real=False, forced=False)
            else:
                self._ask_after_itself()

    def synced(self) -> None:
        """Something of this log has reached stable storage."""
        campaign = self._campaign
        if campaign is not None and campaign.real and not campaign.asked \
                and self.log.stable_vote == (campaign.term, self.me):
            campaign.asked = True
            self.election_deadline = self.clock() + self._timeout()
        self._count()
        self._advance()
        self.around.touched()

    # --- elections --------------------------------------------------------------------------------

    def _ask(self, *, real: bool, forced: bool) -> None:
        log = self.log
        self.know_leader(None)
        if real:
            self.enter(CANDIDATE)
            self.store_term(self.term + 1, self.me)
            term = self.term
        else:
            if self.role == CANDIDATE:
                self.enter(FOLLOWER)
            term = self.term + 1
        self._campaign = _Campaign(term, real, forced, {self.me})
        for voter in self.configuration.voters:
            if voter != self.me:
                self.around.send(voter, Vote(term, log.last, log.last_term, forced) if real else
                                 PreVote(term, log.last, log.last_term))
        self._count()
        self.around.touched()

    def _count(self) -> None:
        campaign = self._campaign
        if campaign is None:
            return
        votes = set(campaign.votes)
        if campaign.real and self.log.stable_vote != (campaign.term, self.me):
            votes.discard(self.me)  # its own vote is a promise like any other
        if not self.configuration.agreed(votes):
            return
        self._campaign = None
        if campaign.real:
            self.around.tell("info", "raft_leader", group=self.log.group, term=self.term, replica=self.me)
            self._again, self._led = AGAIN, self.me
            self.lead()
        else:
            self._ask(real=True, forced=campaign.forced)

    def _waits_for_its_disk(self) -> bool:
        """Its requests for votes are held until its own vote is stable: to give up before costs a term for nothing."""
        return self.role == CANDIDATE and self._campaign is not None \
            and self.log.stable_vote != (self._campaign.term, self.me)

    def _soon(self) -> None:
        low, high = self.settings.again_s
        if self._again > 0 and self.me in self.configuration.voters and self.election_deadline > self.clock() + high:
            self._again -= 1
            self.election_deadline = min(self.election_deadline,
                                         self.clock() + low + (high - low) * self._random.random())

    def _refused(self, sender: str) -> None:
        """Who led is not waited for: it is why there is an election."""
        campaign = self._campaign
        if campaign is None or sender in campaign.refused:
            return
        campaign.refused.add(sender)
        may = {*self.configuration.voters} - campaign.refused - ({self._led} - campaign.votes)
        if not self.configuration.agreed(may):
            self._soon()

    def gone(self, node: str) -> None:
        """The process of a node is not there any more, as its connections say; it may be wrong, or another by now."""
        if self.role == FOLLOWER and self.leader is not None and node_of(self.leader) == node:
            self.leader_seen = float("-inf")
            self._soon()

    def _hear(self, sender: str, term: int) -> bool:
        heard = super()._hear(sender, term)
        if heard:
            self._again, self._led = AGAIN, sender
        return heard

    def _up_to_date(self, last: int, last_term: int) -> bool:
        """R 5.4.1."""
        return (last_term, last) >= (self.log.last_term, self.log.last)

    def _held_by_leader(self) -> bool:
        """D 4.2.3: a leader was heard within the shortest election timeout, or is ourselves."""
        return self.role == LEADER or (
            self.leader is not None and self.clock() - self.leader_seen < self.settings.election_s_min)

    def _ask_after_itself(self) -> None:
        """A learner that no leader speaks to asks the voters, who say if it is none: the change that made it one may
        have been lost with its leader.
        """
        if self.leader is not None:
            self.know_leader(None)
        if self.me in self.configuration.everybody:
            for voter in self.configuration.voters:
                self.around.send(voter, PreVote(self.term + 1, self.log.last, self.log.last_term))

    def _removed_at(self, replica: str) -> int:
        """Up to where it is committed that the replica is no member, not any more or not yet; 0 where it is one."""
        configuration = next(pair for pair in reversed(self.configurations) if pair[0] <= self.commit)[1]
        return self.commit if configuration.voters and replica not in configuration.everybody \
            and replica not in self.configuration.everybody else 0

    def _on_pre_vote(self, sender: str, message: PreVote) -> None:
        granted = (message.term > self.term and not self._held_by_leader()
                   and self._up_to_date(message.last, message.last_term))
        if not granted and self.role == FOLLOWER and self._campaign is None and not self._held_by_leader() \
                and not self._up_to_date(message.last, message.last_term):
            self._soon()  # who asks cannot win, and this one may
        removed_at = 0 if granted else self._removed_at(sender)
        self.around.send(sender, PreVoted(message.term if granted else self.term, granted, removed_at))

    def _on_pre_voted(self, sender: str, message: PreVoted) -> None:
        if message.removed_at > self.configurations[-1][0]:
            self._leave()
            return
        campaign = self._campaign
        if message.granted:
            if campaign is not None and not campaign.real and message.term == campaign.term:
                campaign.votes.add(sender)
                self._count()
        elif message.term > self.term:
            self.follow(message.term, None)
            self._soon()
        elif campaign is not None and not campaign.real:
            self._refused(sender)

    def _on_vote(self, sender: str, message: Vote) -> None:
        if message.term > self.term and self._held_by_leader() and not message.forced:
            return  # not even the term is taken: a leader is at work
        if message.term > self.term:
            self.follow(message.term, None)
        granted = (message.term == self.term and self.vote in (None, sender) and self.role == FOLLOWER
                   and self._up_to_date(message.last, message.last_term))
        if granted:
            self.store_term(self.term, sender)
            self.election_deadline = self.clock() + self._timeout()
            self._campaign = None
        self.around.send(sender, Voted(self.term, granted))
        self.around.touched()

    def _on_voted(self, sender: str, message: Voted) -> None:
        if message.term > self.term:
            self.follow(message.term, None)
            return
        campaign = self._campaign
        if campaign is not None and campaign.real and message.granted and message.term == self.term == campaign.term:
            campaign.votes.add(sender)
            self._count()
        elif campaign is not None and campaign.real and message.term == self.term == campaign.term:
            self._refused(sender)

    def _on_timeout_now(self, sender: str, message: TimeoutNow) -> None:
        if message.term == self.term and sender == self.leader and self.me in self.configuration.voters:
            self.handed_over = True  # the heartbeats of who hands over are not to put it off
            self.election_deadline = self.clock() + self._timeout()
            self._ask(real=True, forced=True)

    def follow(self, term: int, leader: str | None) -> None:
        self._campaign = None
        super().follow(term, leader)

    def _leave(self) -> None:
        if not self.removed:
            self.removed = True
            self.around.tell("info", "raft_removed", group=self.log.group, replica=self.me)
        self.follow(self.term, None)

    # --- callers ----------------------------------------------------------------------------------

    def propose(self, command: bytes, done: Done) -> None:
        """Append a command; ``done`` is told what came of it when it is applied here."""
        error = self._refusal(len(command))
        if error is not None:
            done(0, None, error)
            return
        index = self._append_own(COMMAND + command)
        self._waiters[index] = (self.term, done)

    def _refusal(self, size: int) -> VecdbError | None:
        limit = self.settings.command_bytes
        if not 0 < size <= limit:
            return LimitExceeded("command", f"{size} bytes", got=size, limit=limit)
        if self.role != LEADER or self.handing_over:
            return self.not_leader()
        if self._uncommitted and self._uncommitted + size > self.settings.uncommitted_bytes:
            return Overloaded("the group has not yet committed what it was given", retry_after_s=0.1,
                              got=self._uncommitted, limit=self.settings.uncommitted_bytes)
        return None

    def _append_own(self, command: bytes) -> int:
        index = self.log.last + 1
        self.log.add(command, index, self.term)
        self._uncommitted += len(command)
        self.around.touched()
        return index

    def change(self, change: Change, done: Done) -> None:
        """Change the members; ``done`` is told when it is committed and applied here.

        A leader that is to leave hands over first: the caller is answered with ``NotLeader`` and asks the next.
        """
        if self.role != LEADER or self.handing_over:
            done(0, None, self.not_leader())
            return
        try:
            after = change.applied_to(self.configuration)
        except InvalidArgument as error:
            done(0, None, error)
            return
        voters = [one for one in after.voters if self.answers(one)]
        if change.add is not None and change.remove in self.configuration.voters and self.answers(change.remove):
            # In between there would be a voter less, and its loss could not be mended.
            done(0, None, InvalidArgument("remove", "is alive: remove it once the new replica is a voter",
                                          got=change.remove))
        elif not self._free_to_change():
            done(0, None, Unavailable("another change of members is not yet committed", retry_after_s=0.1))
        elif change.remove == self.me:
            self.transfer(None, lambda _, leader, error: done(0, None, error or self.not_leader()))
        elif not after.agreed(voters):
            done(0, None, Unavailable("no majority of the voters that would remain is heard", voters=list(after.voters),
                                      heard=voters, retry_after_s=1.0))
        else:
            index = self.reconfigure(after)
            self._waiters[index] = (self.term, done)

    def _stepped_down(self) -> None:
        lost = [index for index in self._waiters if index > self.commit]
        for index in sorted(lost):
            self._waiters.pop(index)[1](index, None, OutcomeUnknown(
                "the leadership ended before the write was committed", log_index=index, leader=self.leader))

    def disk_hangs(self) -> None:
        """Others lead by now, and the disk here does not say what it has: who waits for it is told to ask them."""
        if self.role == LEADER:
            return
        for index in sorted(at for at in self._waiters if at > self.log.stable):
            self._waiters.pop(index)[1](index, None, OutcomeUnknown(
                "the disk of the node that led hangs: what others have of the write is not known here",
                log_index=index, leader=self.leader))

    # --- applying ---------------------------------------------------------------------------------

    def to_apply(self) -> Sequence[Entry]:
        """Committed entries that are stable here and not yet taken, in order; taken by this call."""
        last = min(self.commit, self.log.stable)
        if self._taken >= last:
            return ()
        entries = self.log.read(self._taken + 1, last, self.settings.apply_bytes, self.settings.batch_entries)
        self._taken = entries[-1].index
        return entries

    def applied_to(self, entries: Sequence[Entry], outcomes: Sequence[object]) -> None:
        """The state machine has taken these; an outcome that is an exception is the command's error."""
        for entry, outcome in zip(entries, outcomes, strict=True):
            if entry.index <= self.applied:
                continue  # a snapshot has come meanwhile
            self.applied = entry.index
            waiter = self._waiters.pop(entry.index, None)
            if waiter is None:
                continue
            term, done = waiter
            if term != entry.term:
                done(entry.index, None, OutcomeUnknown("another leader's entry took the place", log_index=entry.index))
            elif isinstance(outcome, VecdbError):
                done(entry.index, None, outcome)
            else:
                done(entry.index, outcome, None)
        self.around.touched()

    def installed(self, index: int, term: int, configuration: Configuration) -> None:
        super().installed(index, term, configuration)
        self._taken = max(self._taken, self.applied)
        for at in sorted(at for at in self._waiters if at <= index):
            self._waiters.pop(at)[1](at, None, OutcomeUnknown("a snapshot took the place", log_index=at))

    def fail_waiters(self, error: VecdbError) -> None:
        """The replica is stopped: nobody will be told anything else."""
        waiters, self._waiters = self._waiters, {}
        for index in sorted(waiters):
            waiters[index][1](index, None, error)
        reads, self._reads = self._reads, []
        for read in reads:
            read.done(0, None, self.not_leader())
