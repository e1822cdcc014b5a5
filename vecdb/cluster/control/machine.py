"""The control machine: what a committed command does to the state."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final

from vecdb.cluster.control import administration, loading, sharding
from vecdb.cluster.control import commands as c
from vecdb.cluster.control.change import Change
from vecdb.cluster.control.commands import decoded
from vecdb.cluster.control.rows import Row
from vecdb.cluster.control.state import MAX_KEYS_KEPT, ControlState, Done, Outcome, Refusal
from vecdb.core.errors import InvalidArgument, VecdbError


@dataclass(frozen=True, slots=True)
class Applied:
    """``outcome``: what the command made or took away, or the error.  ``puts`` and ``deletes`` are to be written in one
    batch; then ``state`` is the state.
    """

    state: ControlState
    outcome: Outcome | VecdbError
    puts: tuple[Row, ...]
    deletes: tuple[bytes, ...]


_DO: Final[dict[type, Callable[[Change, Any], Outcome]]] = {
    c.Create: sharding.create, c.Drop: sharding.drop, c.Place: sharding.place, c.Replication: sharding.replication,
    c.ShardsAdd: sharding.add, c.ShardsSwitch: sharding.switch, c.ShardsForget: sharding.forget,
    c.NodePut: administration.node_put, c.NodeStatePut: administration.node_state,
    c.NodeRemove: administration.node_remove, c.TokenPut: administration.token_put,
    c.TokenRevoke: administration.token_revoke, c.ApiKeyPut: administration.api_key_put,
    c.ApiKeyRevoke: administration.api_key_revoke, c.JobPut: administration.job_put,
    c.JobUpdate: administration.job_update, c.JobCancel: administration.job_cancel,
    c.SettingPut: administration.setting_put, c.CollectionLoad: loading.load, c.CollectionReady: loading.ready,
    c.CollectionAbandon: loading.abandon,
}


def apply(state: ControlState, log_index: int, term: int, command: bytes, reads: int = c.VERSION) -> Applied:
    """What a committed command does.  ``log_index`` is above the state's; ``reads``: the latest version understood."""
    change = Change(state, log_index, term)
    try:
        found, key, fingerprint = decoded(command, reads)
        known = state.keys.get(key)
        if known is not None:
            if known.fingerprint != fingerprint:
                raise InvalidArgument("idempotency_key", f"was used for another command, applied at log index "
                                      f"{known.log_index}", got=key.hex(), limit="a key of its own for every command")
            return _applied(change, known.entry.error() if isinstance(known.entry, Refusal) else known.entry)
    except VecdbError as error:
        return _applied(change, error)
    outcome: Outcome | VecdbError
    try:
        outcome = _DO[type(found)](change, found)
    except VecdbError as error:
        change, outcome = Change(state, log_index, term), error  # nothing of it happens, but for the position
    if key:
        _remember(change, key, Done(fingerprint, log_index,
                                    Refusal.of(outcome) if isinstance(outcome, VecdbError) else outcome))
    return _applied(change, outcome)


def _remember(change: Change, key: bytes, done: Done) -> None:
    keys = change.before.keys
    for one in list(islice(keys, max(0, len(keys) + 1 - MAX_KEYS_KEPT))):
        change.take("keys", one)
    change.put("keys", key, done)


def _applied(change: Change, outcome: Outcome | VecdbError) -> Applied:
    state, puts, deletes = change.done()
    return Applied(state, outcome, puts, deletes)
