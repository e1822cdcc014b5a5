"""Rules taken away, one at a time: whoever judges must notice."""

from vecdb.raft.core import RaftCore
from vecdb.raft.following import Following
from vecdb.raft.host import Host
from vecdb.raft.leading import Leading
from vecdb.raft.log import GroupLog
from vecdb.raft.messages import Appended
from vecdb.raft.stock import LEADER


def deletes_what_matches(patch):
    whole = Following.on_append

    def on_append(self, sender, message):
        if message.term >= self.term and message.entries and message.prev >= max(self.log.base, self.commit) \
                and self.log.term_at(message.prev) == message.prev_term and self.log.last > message.prev:
            self.truncate_from(message.prev + 1)
        whole(self, sender, message)

    patch.setattr(Following, "on_append", on_append)


def believes_old_acknowledgements(patch):
    whole = Leading.on_appended

    def on_appended(self, sender, message):
        whole(self, sender, Appended(max(self.term, message.term), message.seq, message.success, message.prev,
                                     min(message.at, self.log.last)))

    patch.setattr(Leading, "on_appended", on_appended)


def promises_before_the_disk(patch):
    whole = Host.post
    patch.setattr(Host, "post", lambda self, node, envelope, promise: whole(self, node, envelope, False))


def counts_itself_before_the_disk(patch):
    patch.setattr(GroupLog, "stable", property(lambda self: self.last, lambda self, value: None), raising=False)


def counts_learners(patch):
    def advance(self):
        if self.role != LEADER:
            return
        matches = sorted((self.log.stable if one == self.me else self.progress[one].match
                          for one in self.configuration.everybody), reverse=True)
        index = matches[len(self.configuration.voters) // 2]
        if index > self.commit and self.log.term_at(index) == self.term:
            self._committed(index)

    patch.setattr(Leading, "_advance", advance)


def commits_what_earlier_terms_left(patch):
    def advance(self):
        if self.role == LEADER:
            matches = sorted((self.log.stable if one == self.me else self.progress[one].match
                              for one in self.configuration.voters), reverse=True)
            self._committed(matches[len(matches) // 2])

    patch.setattr(Leading, "_advance", advance)


def votes_for_anybody(patch):
    patch.setattr(RaftCore, "_up_to_date", lambda self, last, last_term: True)


def votes_twice(patch):
    whole = RaftCore._on_vote

    def on_vote(self, sender, message):
        if message.term == self.term and self.vote not in (None, sender, self.me):
            self.store_term(self.term, None)
        whole(self, sender, message)

    patch.setattr(RaftCore, "_on_vote", on_vote)


def reads_unconfirmed(patch):
    def read_index(self, done):
        if self.role == LEADER:
            done(self.commit, None, None)
        else:
            done(0, None, self.not_leader())

    patch.setattr(Leading, "read_index", read_index)


def changes_members_twice(patch):
    patch.setattr(Leading, "_free_to_change", lambda self: True)


EVERY = [deletes_what_matches, believes_old_acknowledgements, promises_before_the_disk, counts_itself_before_the_disk,
         counts_learners, commits_what_earlier_terms_left, votes_for_anybody, votes_twice, reads_unconfirmed,
         changes_members_twice]
