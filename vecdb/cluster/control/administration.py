"""Nodes, tokens, API keys, jobs and settings."""

from dataclasses import replace
from typing import Final

from vecdb.cluster.control.change import Change
from vecdb.cluster.control.commands import (
    ApiKeyPut,
    ApiKeyRevoke,
    JobCancel,
    JobPut,
    JobUpdate,
    NodePut,
    NodeRemove,
    NodeStatePut,
    SettingPut,
    TokenPut,
    TokenRevoke,
)
from vecdb.cluster.control.entries import ApiKeyEntry, JobEntry, NodeEntry, TokenEntry
from vecdb.cluster.control.state import ControlState
from vecdb.core.cluster import (
    MAX_CLUSTER_NODES,
    MAX_CLUSTER_SETTINGS,
    MAX_JOBS_KEPT,
    MAX_JOBS_OPEN,
    MAX_JOIN_TOKENS,
    JobState,
    NodeState,
    ShardState,
)
from vecdb.core.errors import InvalidArgument, KeyNotFound, LimitExceeded
from vecdb.core.limits import MAX_KEYS

KEPT_DEAD_S: Final = 90 * 86_400.0
"""How long a revoked or expired API key stays in the list, for those who read the audit log."""


# --- nodes ----------------------------------------------------------------------------------------


def node_put(change: Change, command: NodePut) -> NodeEntry:
    """A node that is there keeps its state and when it joined.  One that has left is there again if it says that it
    joined later; else this was said before it left, and comes late.
    """
    state, entry = change.before, command.entry
    before = state.nodes.get(entry.name)
    if before is not None and before.state is not NodeState.LEFT:
        entry = replace(entry, state=before.state, joined_s=before.joined_s)
        if entry == replace(before, updated_s=entry.updated_s):
            return before
    else:
        if before is not None and entry.joined_s <= before.joined_s:
            raise InvalidArgument("node", f"{entry.name} was removed: it has to join anew", got=entry.name)
        live = sum(one.state is not NodeState.LEFT for one in state.nodes.values())
        if live >= MAX_CLUSTER_NODES:
            raise LimitExceeded("node", f"there are {live} nodes already", got=live, limit=MAX_CLUSTER_NODES)
        entry = replace(entry, state=NodeState.ACTIVE)
    change.put("nodes", entry.name, entry)
    return entry


def _node(state: ControlState, name: str) -> NodeEntry:
    found = state.nodes.get(name)
    if found is None or found.state is NodeState.LEFT:
        raise InvalidArgument("node", f"there is no node {name!r}", got=name, limit=sorted(state.nodes)[:64])
    return found


def node_state(change: Change, command: NodeStatePut) -> NodeEntry:
    entry = _node(change.before, command.name)
    if command.state is NodeState.LEFT:
        raise InvalidArgument("state", "is what removing a node gives it", got=command.state.value,
                              limit=[NodeState.ACTIVE, NodeState.DRAINING, NodeState.DRAINED])
    if entry.state is command.state:
        return entry
    after = replace(entry, state=command.state, updated_s=max(entry.updated_s, command.at_s))
    change.put("nodes", entry.name, after)
    return after


def node_remove(change: Change, command: NodeRemove) -> NodeEntry:
    """Done again it does nothing.  Of those that have left as many are remembered as there may be nodes."""
    state = change.before
    known = state.nodes.get(command.name)
    if known is not None and known.state is NodeState.LEFT:
        return known
    entry = _node(state, command.name)
    held = sum(command.name in shard.desired and shard.state is not ShardState.RETIRED
               for shard in state.shards.values())
    if held:
        raise InvalidArgument("node", f"{command.name} should hold {held} replicas yet: drain it first",
                              got=command.name)
    left = sorted((one for one in state.nodes.values() if one.state is NodeState.LEFT),
                  key=lambda one: (one.updated_s, one.name))
    for one in left[:max(0, len(left) + 1 - MAX_CLUSTER_NODES)]:
        change.take("nodes", one.name)
    after = replace(entry, state=NodeState.LEFT, updated_s=max(entry.updated_s, command.at_s))
    change.put("nodes", entry.name, after)
    return after


# --- tokens and keys ------------------------------------------------------------------------------


def token_put(change: Change, command: TokenPut) -> TokenEntry:
    """Those that expired before this one was made go."""
    state, entry = change.before, command.entry
    if entry.id in state.tokens:
        raise InvalidArgument("token", f"there is a token {entry.id} already", got=entry.id)
    dead = [one.id for one in state.tokens.values() if 0.0 < one.expires_s < entry.created_s]
    if len(state.tokens) - len(dead) >= MAX_JOIN_TOKENS:
        raise LimitExceeded("token", f"there are {MAX_JOIN_TOKENS} tokens already: revoke some", got=len(state.tokens),
                            limit=MAX_JOIN_TOKENS)
    for id in dead:
        change.take("tokens", id)
    change.put("tokens", entry.id, entry)
    return entry


def token_revoke(change: Change, command: TokenRevoke) -> tuple[int, ...]:
    if command.id in change.before.tokens:
        change.take("tokens", command.id)
    return ()


def api_key_put(change: Change, command: ApiKeyPut) -> ApiKeyEntry:
    """One that is new, or other secrets, grants or a name of one that is not revoked; long dead ones go."""
    state, entry = change.before, command.entry
    before = state.api_keys.get(entry.id)
    if before is not None and before.revoked_s:
        raise InvalidArgument("id", f"the API key {entry.id} is revoked; create a new one", got="revoked",
                              limit="a key in use")
    if before is None:
        dead = [one.id for one in state.api_keys.values() if 0.0 < _dead_since_s(one) < command.at_s - KEPT_DEAD_S]
        if len(state.api_keys) - len(dead) >= MAX_KEYS:
            raise LimitExceeded("keys", f"there are {MAX_KEYS} keys; those revoked or expired are removed after "
                                f"{KEPT_DEAD_S / 86_400:.0f} days", got=len(state.api_keys), limit=MAX_KEYS)
        for id in dead:
            change.take("api_keys", id)
    change.put("api_keys", entry.id, entry)
    return entry


def _dead_since_s(entry: ApiKeyEntry) -> float:
    return min((end for end in (entry.revoked_s, entry.expires_s) if end), default=0.0)


def api_key_revoke(change: Change, command: ApiKeyRevoke) -> ApiKeyEntry:
    """Done again it does nothing."""
    entry = change.before.api_keys.get(command.id)
    if entry is None:
        raise KeyNotFound(f"no API key of the id {command.id}", id=command.id)
    if entry.revoked_s:
        return entry
    after = replace(entry, revoked_s=command.at_s or 1.0)
    change.put("api_keys", entry.id, after)
    return after


# --- jobs -----------------------------------------------------------------------------------------


def job_put(change: Change, command: JobPut) -> JobEntry:
    state = change.before
    open_jobs = sum(not job.state.ended for job in state.jobs.values())
    if open_jobs >= MAX_JOBS_OPEN:
        raise LimitExceeded("job", f"there are {open_jobs} jobs that have not ended", got=open_jobs,
                            limit=MAX_JOBS_OPEN)
    entry = JobEntry(state.next_job, command.kind, command.target, command.args, created_s=command.at_s,
                     updated_s=command.at_s)
    change.number("next_job", entry.id + 1)
    change.put("jobs", entry.id, entry)
    return entry


def _job(state: ControlState, id: int) -> JobEntry:
    found = state.jobs.get(id)
    if found is None:
        raise InvalidArgument("job", f"there is no job {id}", got=id)
    return found


def job_update(change: Change, command: JobUpdate) -> JobEntry:
    entry = _job(change.before, command.id)
    if entry.state.ended:
        raise InvalidArgument("job", f"{entry.id} has ended: it is {entry.state.value}", got=entry.state.value)
    # Who says that it runs may not have heard that it is to end.
    cancelling = entry.state is JobState.CANCELLING and not command.state.ended
    after = replace(entry, state=JobState.CANCELLING if cancelling else command.state, phase=command.phase,
                    done=command.done, total=command.total, unit=command.unit, error=command.error, data=command.data,
                    updated_s=max(entry.updated_s, command.at_s))
    if after.state.ended:
        ended = sorted(job.id for job in change.before.jobs.values() if job.state.ended)
        for id in ended[:max(0, len(ended) + 1 - MAX_JOBS_KEPT)]:
            change.take("jobs", id)
    change.put("jobs", entry.id, after)
    return after


def job_cancel(change: Change, command: JobCancel) -> JobEntry:
    entry = _job(change.before, command.id)
    if entry.state.ended or entry.state is JobState.CANCELLING:
        return entry
    after = replace(entry, state=JobState.CANCELLING, updated_s=max(entry.updated_s, command.at_s))
    change.put("jobs", entry.id, after)
    return after


# --- settings -------------------------------------------------------------------------------------


def setting_put(change: Change, command: SettingPut) -> tuple[int, ...]:
    settings = change.before.settings
    if command.value is None:
        if command.name in settings:
            change.take("settings", command.name)
        return ()
    if command.name not in settings and len(settings) >= MAX_CLUSTER_SETTINGS:
        raise LimitExceeded("name", f"there are {MAX_CLUSTER_SETTINGS} settings already", got=len(settings),
                            limit=MAX_CLUSTER_SETTINGS)
    change.put("settings", command.name, command.value)
    return ()
