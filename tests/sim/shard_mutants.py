"""Rules of the shard taken away, one at a time: the judges of shard clusters must notice."""

from vecdb.ports.replicator import Position
from vecdb.raft.replica import Replica
from vecdb.segment.growing import GrowingView
from vecdb.segment.sealed import SealedView
from vecdb.services import homes, maintenance, recovery, replica
from vecdb.services.local import LocalDatabase
from vecdb.services.replica import ShardReplica
from vecdb.shard import change, machine
from vecdb.shard.marks import Marks
from vecdb.shard.tokens import Tokens


def does_again_what_was_done(patch):
    patch.setattr(Tokens, "find", lambda self, token: None)


def forgets_tokens_when_it_restarts(patch):
    patch.setattr(recovery, "Tokens", lambda found, **more: Tokens())


def forgets_who_died_in_sealed_segments(patch):
    whole = recovery._open_sealed
    patch.setattr(recovery, "_open_sealed", lambda *given: whole(*given).segment.view)


def finds_the_dead(patch):
    patch.setattr(SealedView, "without", lambda self, ordinals: self)


def checkpoints_without_the_disk(patch):
    def checkpoint(self):
        state = self.service.machine.state
        return Position(state.applied, state.term)

    patch.setattr(ShardReplica, "checkpoint", checkpoint)


def copies_without_what_is_in_memory(patch):
    """A snapshot whose rows are of a moment before its position."""
    whole = replica.taken

    def taken(folder, view):
        found = whole(folder, view)
        found.position = Position(found.position.log_index + 1, found.position.term)
        return found

    patch.setattr(replica, "taken", taken)


def switches_states_without_the_disk(patch):
    patch.setattr(homes, "sync_directory", lambda path: None)


def names_segments_without_the_disk(patch):
    patch.setattr(maintenance, "sync_directory", lambda path: None)


def sums_up_who_died(patch):
    patch.setattr(change.Change, "bury", lambda self, rid, record: _bury(self, rid, record))


def _bury(one, rid, record):
    BURY(one, rid, record)
    one.added.append(one.buried.pop())


BURY = change.Change.bury


def marks_with_an_old_count(patch):
    whole = Marks.add

    def add(self, mutations, mark):
        object.__setattr__(mark, "records", mark.records + 1)
        whole(self, mutations, mark)

    patch.setattr(Marks, "add", add)


def replaces_where_it_should_merge(patch):
    patch.setattr(machine, "patched", lambda old, patches, merge: patches[-1][:-1] + b',"x":1}')


def sessions_do_not_wait(patch):
    patch.setattr(Replica, "wait_applied", lambda self, log_index, done: done(None) or 0)


def leads_without_asking(patch):
    patch.setattr(Replica, "read_index", lambda self, done: done(self.core.applied, None, None))


def keeps_what_is_damaged(patch):
    whole = LocalDatabase.replica
    patch.setattr(LocalDatabase, "replica", lambda self, name: whole(self, name, allow_damage=True))


def tells_nearest_last(patch):
    whole = GrowingView.ids
    patch.setattr(GrowingView, "ids", lambda self, ordinals: whole(self, ordinals[::-1]))


EVERY = [does_again_what_was_done, forgets_tokens_when_it_restarts, forgets_who_died_in_sealed_segments, finds_the_dead,
         checkpoints_without_the_disk, copies_without_what_is_in_memory, switches_states_without_the_disk,
         names_segments_without_the_disk, sums_up_who_died, marks_with_an_old_count, replaces_where_it_should_merge,
         sessions_do_not_wait, leads_without_asking, tells_nearest_last]
