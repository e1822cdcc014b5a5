"""Rules of nodes and their hosting taken away, one at a time: the judges of whole nodes must notice."""

from dataclasses import replace

from vecdb.cluster.control import ControlState
from vecdb.ports.replicator import Position
from vecdb.services import control, local
from vecdb.services.control import Control, ControlReplica
from vecdb.services.coordinator import writes
from vecdb.services.coordinator.knowledge import Knowledge
from vecdb.services.coordinator.shard_reads import ShardReader
from vecdb.services.coordinator.writes import Writer
from vecdb.services.hosting import Hosting
from vecdb.services.local import LocalDatabase
from vecdb.services.replicas import OwnReplicas


def reads_do_not_wait(patch):
    async def settle(self, entry, call):
        return None

    patch.setattr(ShardReader, "settle", settle)


def nobody_waits_for_anybody(patch):
    """Not the node that is asked, and not the one it hands on to."""
    async def settle(self, *given):
        return None

    reads_do_not_wait(patch)
    patch.setattr(OwnReplicas, "settle", settle)


def drops_the_token_on_the_way(patch):
    async def encoded(self, command, token, size):
        return writes.encode(command, None)

    patch.setattr(Writer, "_encoded", encoded)


def says_there_is_none_without_asking(patch):
    async def shards(self, name, call):
        self.control.state.get(name)
        return self.known(name)

    patch.setattr(Knowledge, "shards", shards)


def lists_what_it_knows(patch):
    async def learn(self, call):
        return None

    patch.setattr(Knowledge, "learn", learn)


def uses_numbers_again(patch):
    whole = control.apply

    def apply(state, *given):
        done = whole(state, *given)
        used = max(done.state.shards, default=0)
        return replace(done, state=replace(done.state, next_group=used + 1))

    patch.setattr(control, "apply", apply)


def keeps_what_was_dropped(patch):
    async def delete(self, label, group):
        self._groups.forget(group)

    patch.setattr(Hosting, "_delete", delete)


def deletes_what_it_does_not_know(patch):
    patch.setattr(ControlState, "was_dropped", lambda self, group: True)


def acts_on_any_state(patch):
    async def learn(self):
        state = self._control.open_state
        if state is None or (self._acting is not None and state.epoch == self._acting.epoch):
            return
        self._wanted = {entry.label: entry for entry in state.shards.values() if self._me in entry.nodes}
        self._acting = state

    patch.setattr(Hosting, "_learn", learn)


def leaves_folders_behind(patch):
    patch.setattr(local.Home, "remove", lambda self: None)


def checkpoints_control_without_the_disk(patch):
    def checkpoint(self):
        return Position(self.state.log_index, self.state.term)

    patch.setattr(ControlReplica, "checkpoint", checkpoint)


def forgets_collections_when_it_restarts(patch):
    whole = Control.open

    def opened(self):
        replica = whole(self)
        state = replica.state
        replica.state = replace(state, collections={}, shards={})
        return replica

    patch.setattr(Control, "open", opened)


def hosts_without_the_disk(patch):
    patch.setattr(LocalDatabase, "_found", lambda self, state: self._open_store(state / "rows", wal=False).die())


EVERY = [reads_do_not_wait, nobody_waits_for_anybody, drops_the_token_on_the_way, says_there_is_none_without_asking,
         lists_what_it_knows, uses_numbers_again, keeps_what_was_dropped, acts_on_any_state, leaves_folders_behind,
         checkpoints_control_without_the_disk, forgets_collections_when_it_restarts, hosts_without_the_disk]
