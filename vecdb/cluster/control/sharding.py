"""Collections and their shards: made, dropped, placed, and replaced by others."""

from dataclasses import replace

from vecdb.cluster.control.change import Change
from vecdb.cluster.control.checks import ShardPlan
from vecdb.cluster.control.commands import (
    Create,
    Drop,
    Place,
    Replication,
    ShardsAdd,
    ShardsForget,
    ShardsSwitch,
)
from vecdb.cluster.control.entries import CollectionEntry, ShardEntry, node_of
from vecdb.cluster.control.state import ControlState, full
from vecdb.core.cluster import MAX_COLLECTION_SHARDS, MAX_SHARDS, NodeState, ShardState
from vecdb.core.errors import CollectionExists, InvalidArgument, LimitExceeded
from vecdb.core.limits import MAX_COLLECTIONS
from vecdb.core.schema import CollectionSchema


def create(change: Change, command: Create) -> CollectionEntry:
    state, name = change.before, command.schema.name
    check_new(state, name)
    alone = len(command.shards) == 1
    made = [new_shard(change, command.schema, plan, group, name if alone else f"{name}@{group}")
            for group, plan in numbered(change, command.shards)]
    entry = CollectionEntry(command.schema, tuple(one.group for one in made), command.replication_factor,
                            command.shard_key, change.log_index)
    change.put("collections", name, entry)
    for one in made:
        change.put("shards", one.group, one)
    change.moved()
    return entry


def check_new(state: ControlState, name: str) -> None:
    """Raise ``CollectionExists`` or ``LimitExceeded`` unless there may be a collection of that name."""
    if name in state.loading:
        raise CollectionExists(name, state.shards[state.loading[name].shards[0]].job)
    if name in state.collections:
        raise CollectionExists(name)
    if len(state.collections) + len(state.loading) >= MAX_COLLECTIONS:
        raise full()


def numbered(change: Change, plans: tuple[ShardPlan, ...]) -> list[tuple[int, ShardPlan]]:
    """With the numbers of new groups."""
    state = change.before
    if len(state.shards) + len(plans) > MAX_SHARDS:
        raise LimitExceeded("shards", f"there would be more than {MAX_SHARDS}", got=len(state.shards) + len(plans),
                            limit=MAX_SHARDS)
    change.number("next_group", state.next_group + len(plans))
    return list(enumerate(plans, state.next_group))


def new_shard(change: Change, schema: CollectionSchema, plan: ShardPlan, group: int, label: str) -> ShardEntry:
    lo, hi, replicas = plan
    return ShardEntry(schema, group, label, lo, hi, replicas, tuple(map(node_of, replicas)), created=change.log_index)


def drop(change: Change, command: Drop) -> CollectionEntry:
    entry = change.before.get(command.name)
    change.take("collections", command.name)
    for group in entry.groups:
        change.take("shards", group)
    change.moved()
    return entry


def place(change: Change, command: Place) -> tuple[int, ...]:
    state = change.before
    entry = shard_of(state, command.group)
    if entry.state is ShardState.RETIRED:
        raise InvalidArgument("shard", f"{command.group} was replaced by others", got=command.group)
    for name in command.desired:
        node = state.nodes.get(name)
        if name not in entry.desired and (node is None or node.state is NodeState.LEFT or not node.role.holds):
            raise InvalidArgument("desired", f"{name!r} is no node that holds replicas", got=name)
    if command.desired != entry.desired:
        change.put("shards", entry.group, replace(entry, desired=command.desired))
        change.moved()
    return (entry.group,)


def shard_of(state: ControlState, group: int) -> ShardEntry:
    found = state.shards.get(group)
    if found is None:
        raise InvalidArgument("shard", f"there is no shard {group}", got=group)
    return found


def replication(change: Change, command: Replication) -> CollectionEntry:
    entry = change.before.get(command.name)
    if entry.replication_factor == command.factor:
        return entry
    after = replace(entry, replication_factor=command.factor)
    change.put("collections", command.name, after)
    change.moved()
    return after


# --- shards that take the place of others ---------------------------------------------------------


def add(change: Change, command: ShardsAdd) -> tuple[int, ...]:
    """The new groups."""
    state = change.before
    entry = state.get(command.name)
    check_job(state, command.job)
    lo, hi = command.shards[0][0], command.shards[-1][1]
    sources = [one for one in state.of(command.name) if one.lo < hi and lo < one.hi]
    if sources[0].lo != lo or sources[-1].hi != hi:
        raise InvalidArgument("shards", "begin or end within a shard that there is", got=[str(lo), str(hi)],
                              limit=[str(sources[0].lo), str(sources[-1].hi)])
    for one in (state.shards[group] for group in entry.apart):
        if one.state is ShardState.LOADING and one.lo < hi and lo < one.hi:
            raise InvalidArgument("shards", f"the shard {one.group} is being filled with some of these hashes by job "
                                  f"{one.job}", got=[str(lo), str(hi)], limit="one at a time")
    if len(entry.shards) - len(sources) + len(command.shards) > MAX_COLLECTION_SHARDS:
        raise LimitExceeded("shards", f"{command.name!r} would have more than {MAX_COLLECTION_SHARDS}",
                            got=len(entry.shards), limit=MAX_COLLECTION_SHARDS)
    made = [replace(new_shard(change, entry.schema, plan, group, f"{command.name}@{group}"), state=ShardState.LOADING,
                    job=command.job) for group, plan in numbered(change, command.shards)]
    for one in made:
        change.put("shards", one.group, one)
    groups = tuple(one.group for one in made)
    change.put("collections", command.name, replace(entry, apart=(*entry.apart, *groups)))
    change.moved()
    return groups


def check_job(state: ControlState, id: int) -> None:
    job = state.jobs.get(id)
    if job is None or job.state.ended:
        raise InvalidArgument("job", f"there is no job {id} that could do this", got=id)


def switch(change: Change, command: ShardsSwitch) -> CollectionEntry:
    """Done again it does nothing."""
    state = change.before
    entry = state.get(command.name)
    retire = [shard_of(state, group) for group in command.retire]
    activate = sorted((shard_of(state, group) for group in command.activate), key=lambda one: one.lo)
    if any(one.group not in entry.groups for one in (*retire, *activate)):
        raise InvalidArgument("shards", f"are not all of {command.name!r}",
                              got=[*command.retire, *command.activate][:16])
    if {one.state for one in activate} == {ShardState.ACTIVE} and {one.state for one in retire} == {
            ShardState.RETIRED}:
        return entry
    check_job(state, command.job)
    if any(one.state is not ShardState.LOADING or one.job != command.job for one in activate):
        raise InvalidArgument("activate", f"are not all filled by job {command.job}", got=list(command.activate)[:16])
    if any(one.state is not ShardState.ACTIVE for one in retire):
        raise InvalidArgument("retire", "are not all in use", got=list(command.retire)[:16])
    if _ranges(activate) != _ranges(sorted(retire, key=lambda one: one.lo)):
        raise InvalidArgument("shards", "do not have the same hashes as those they are to take the place of",
                              got=list(command.activate)[:16], limit=list(command.retire)[:16])
    for one in retire:
        change.put("shards", one.group, replace(one, state=ShardState.RETIRED, job=command.job))
    for one in activate:
        change.put("shards", one.group, replace(one, state=ShardState.ACTIVE))
    gone, new = set(command.retire), set(command.activate)
    kept = [state.shards[group] for group in entry.shards if group not in gone]
    after = replace(entry, shards=tuple(one.group for one in sorted((*kept, *activate), key=lambda one: one.lo)),
                    apart=(*(group for group in entry.apart if group not in new), *command.retire))
    change.put("collections", command.name, after)
    change.moved()
    return after


def _ranges(shards: list[ShardEntry]) -> list[tuple[int, int]]:
    """What they have together, in order."""
    found: list[tuple[int, int]] = []
    for one in shards:
        if found and found[-1][1] == one.lo:
            found[-1] = (found[-1][0], one.hi)
        else:
            found.append((one.lo, one.hi))
    return found


def forget(change: Change, command: ShardsForget) -> tuple[int, ...]:
    """The groups that are no more by this."""
    state = change.before
    groups = [group for group in command.groups if group in state.shards]
    for group in command.groups:
        if group >= state.next_group or (group in state.shards and state.shards[group].state is ShardState.ACTIVE):
            raise InvalidArgument("groups", f"{group} is in use, or never was", got=group)
    names = dict.fromkeys(state.shards[group].name for group in groups)
    if names.keys() & state.loading.keys():
        raise InvalidArgument("groups", "are of a collection that is being loaded: its job abandons it",
                              got=list(groups)[:16])
    for name in names:
        entry = state.get(name)
        change.put("collections", name, replace(entry, apart=tuple(one for one in entry.apart if one not in groups)))
    for group in groups:
        change.take("shards", group)
    if groups:
        change.moved()
    return tuple(groups)
