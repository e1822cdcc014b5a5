"""The control machine: what a committed command does to the state."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice
from types import MappingProxyType
from typing import Final

from vecdb.cluster.control.commands import Command, Create, Drop, decode, fingerprint
from vecdb.cluster.control.entries import CollectionEntry, ShardEntry, node_of
from vecdb.cluster.control.rows import Row, collection_row, done_row, shard_row, state_row, sum_of
from vecdb.cluster.control.state import MAX_KEYS_KEPT, ControlState, Done, Refusal, full
from vecdb.core.cluster import MAX_SHARDS
from vecdb.core.errors import CollectionExists, InvalidArgument, LimitExceeded, VecdbError
from vecdb.core.limits import MAX_COLLECTIONS

_MASK: Final = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class Applied:
    """``outcome``: the :class:`CollectionEntry` made or taken away, or the error.  ``puts`` and ``deletes`` are to be
    written in one batch; then ``state`` is the state.
    """

    state: ControlState
    outcome: CollectionEntry | VecdbError
    puts: tuple[Row, ...]
    deletes: tuple[bytes, ...]


def apply(state: ControlState, log_index: int, term: int, command: bytes) -> Applied:
    """What a committed command does.  ``log_index`` is above the state's."""
    here = replace(state, log_index=log_index, term=term)
    try:
        decoded, key = decode(command)
        known = state.keys.get(key)
        if known is not None:
            if known.fingerprint != fingerprint(decoded):
                raise InvalidArgument("idempotency_key", f"was used for another command, applied at log index "
                                      f"{known.log_index}", got=key.hex(), limit="a key of its own for every command")
            return _applied(here, known.entry.error() if isinstance(known.entry, Refusal) else known.entry)
    except VecdbError as error:
        return _applied(here, error)
    try:
        return _create(here, decoded, key) if isinstance(decoded, Create) else _drop(here, decoded, key)
    except VecdbError as error:
        return _applied(here, error, key, decoded)


def _create(state: ControlState, command: Create, key: bytes) -> Applied:
    name = command.schema.name
    if name in state.collections:
        raise CollectionExists(name)
    if len(state.collections) >= MAX_COLLECTIONS:
        raise full()
    if len(state.shards) + len(command.shards) > MAX_SHARDS:
        raise LimitExceeded("shards", f"there would be more than {MAX_SHARDS}", got=len(state.shards),
                            limit=MAX_SHARDS)
    first, alone = state.next_group, len(command.shards) == 1
    made = [ShardEntry(command.schema, group, name if alone else f"{name}@{group}", lo, hi, replicas,
                       tuple(map(node_of, replicas)), created=state.log_index)
            for group, (lo, hi, replicas) in enumerate(command.shards, first)]
    entry = CollectionEntry(command.schema, tuple(one.group for one in made), command.replication_factor,
                            command.shard_key, state.log_index)
    after = replace(state, collections=MappingProxyType({**state.collections, name: entry}),
                    shards=MappingProxyType({**state.shards, **{one.group: one for one in made}}),
                    next_group=first + len(made), epoch=state.epoch + 1)
    return _applied(after, entry, key, command, puts=[collection_row(entry), *map(shard_row, made)])


def _drop(state: ControlState, command: Drop, key: bytes) -> Applied:
    entry = state.get(command.name)
    collections, shards = dict(state.collections), dict(state.shards)
    del collections[command.name]
    gone = [collection_row(entry), *(shard_row(shards.pop(group)) for group in entry.groups)]
    after = replace(state, collections=MappingProxyType(collections), shards=MappingProxyType(shards),
                    epoch=state.epoch + 1)
    return _applied(after, entry, key, command, gone=gone)


def _applied(state: ControlState, outcome: CollectionEntry | VecdbError, key: bytes = b"",
             command: Command | None = None, *, puts: Sequence[Row] = (), gone: Sequence[Row] = ()) -> Applied:
    """``puts``: rows that are new; ``gone``: rows as they were, those that others take the place of too."""
    new, lost = list(puts), list(gone)
    if key and command is not None:
        kept = outcome if isinstance(outcome, CollectionEntry) else Refusal.of(outcome, command.subject)
        done = Done(fingerprint(command), state.log_index, kept)
        forgotten = list(islice(state.keys.items(), max(0, len(state.keys) + 1 - MAX_KEYS_KEPT)))
        keys = {**state.keys, key: done}
        for one, _ in forgotten:
            del keys[one]
        state = replace(state, keys=MappingProxyType(keys))
        new.append(done_row(key, done))
        lost += [done_row(*one) for one in forgotten]
    digest = state.digest + sum(map(sum_of, new)) - sum(map(sum_of, lost))
    state = replace(state, digest=digest & _MASK)
    there = {row for row, _ in new}
    return Applied(state, outcome, (*new, state_row(state)), tuple(row for row, _ in lost if row not in there))
