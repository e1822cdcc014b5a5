"""Collections that a job fills before anybody sees them: those of a snapshot that is restored.

Until it is ready such a collection stands apart, so that nothing which goes through collections meets it half done; its
shards are shards like any other to the nodes that hold them.  The name is taken all the while.
"""

from dataclasses import replace

from vecdb.cluster.control.change import Change
from vecdb.cluster.control.commands import CollectionAbandon, CollectionLoad, CollectionReady
from vecdb.cluster.control.entries import CollectionEntry
from vecdb.cluster.control.sharding import check_job, check_new, new_shard, numbered
from vecdb.cluster.control.state import ControlState
from vecdb.core.cluster import ShardState
from vecdb.core.errors import CollectionExists, InvalidArgument


def load(change: Change, command: CollectionLoad) -> CollectionEntry:
    """Done again by the same job it does nothing: the entry that is there."""
    state, name = change.before, command.schema.name
    known = state.loading.get(name)
    if known is not None and job_of(state, known) == command.job:
        return known
    check_job(state, command.job)
    check_new(state, name)
    made = [replace(new_shard(change, command.schema, plan, group, f"{name}@{group}"), state=ShardState.LOADING,
                    job=command.job) for group, plan in numbered(change, command.shards)]
    entry = CollectionEntry(command.schema, tuple(one.group for one in made), command.replication_factor,
                            command.shard_key, change.log_index)
    change.put("loading", name, entry)
    for one in made:
        change.put("shards", one.group, one)
    change.moved()
    return entry


def job_of(state: ControlState, entry: CollectionEntry) -> int:
    """The job that fills, or filled, a collection."""
    return state.shards[entry.shards[0]].job


def ready(change: Change, command: CollectionReady) -> CollectionEntry:
    state = change.before
    entry = state.loading.get(command.name)
    if entry is None:
        done = state.collections.get(command.name)
        if done is not None and job_of(state, done) == command.job:
            return done
    if entry is None or job_of(state, entry) != command.job:
        raise InvalidArgument("name", f"job {command.job} fills no collection {command.name!r}", got=command.name)
    check_job(state, command.job)
    change.take("loading", command.name)
    for group in entry.shards:
        change.put("shards", group, replace(state.shards[group], state=ShardState.ACTIVE))
    after = replace(entry, created=change.log_index)
    change.put("collections", command.name, after)
    change.moved()
    return after


def abandon(change: Change, command: CollectionAbandon) -> tuple[int, ...]:
    """The groups that are no more by this: none where the job fills none of that name."""
    state = change.before
    entry = state.loading.get(command.name)
    if entry is None or job_of(state, entry) != command.job:
        done = state.collections.get(command.name)
        if done is not None and job_of(state, done) == command.job:
            raise CollectionExists(command.name)
        return ()
    change.take("loading", command.name)
    for group in entry.groups:
        change.take("shards", group)
    change.moved()
    return entry.groups
