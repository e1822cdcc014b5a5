"""What of a command must make sense whatever the state is.  All raise ``InvalidArgument``, or ``LimitExceeded``."""

import re
from collections.abc import Iterable, Mapping
from math import isfinite
from typing import Any, Final

import orjson

from vecdb.cluster.control.entries import node_of
from vecdb.core.cluster import HASH_SPACE, MAX_COLLECTION_SHARDS, MAX_SHARDS
from vecdb.core.errors import InvalidArgument, LimitExceeded
from vecdb.core.limits import MAX_WORD
from vecdb.core.nodes import check_label

MAX_VOTERS: Final = 7
"""Replicas of a new group: more only cost latency."""
MAX_TEXT: Final = 1_024
"""Characters of an address, a target, an error."""
MAX_JOB_BYTES: Final = 64 << 10
"""Of a job's arguments, and of what it remembers, as JSON."""
MAX_NUMBER: Final = (1 << 63) - 1

ShardPlan = tuple[int, int, tuple[str, ...]]
"""Of a new shard: the hashes it has (``lo``, ``hi``), and its group's first voters."""

_REPLICA: Final = re.compile(r"([^/\x00-\x1f]{1,64})/(0|[1-9][0-9]{0,9})")
_NODE: Final = re.compile(r"[^/\x00-\x1f]{1,64}")
_SETTING: Final = re.compile(r"[a-z][a-z0-9_.]{0,63}")
_ID: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")


def check_replicas(replicas: Iterable[object]) -> tuple[str, ...]:
    """Sorted; 1 to 7 of ``node/number``, each of another node."""
    checked: list[str] = []
    for one in replicas:
        match = _REPLICA.fullmatch(one) if isinstance(one, str) else None
        if match is None or int(match[2]) >= 1 << 32 or len(match[1].encode()) > 64:
            raise InvalidArgument("replicas", "must be named node/number", got=str(one)[:80], limit="n2/7")
        checked.append(match[0])
    if not 1 <= len(checked) <= MAX_VOTERS or len(set(map(node_of, checked))) != len(checked):
        raise InvalidArgument("replicas", f"must be 1 to {MAX_VOTERS}, each of another node", got=checked[:16],
                              limit=MAX_VOTERS)
    return tuple(sorted(checked))


def check_nodes(nodes: Iterable[object]) -> tuple[str, ...]:
    """Sorted; 1 to 7 names of nodes."""
    checked = []
    for one in nodes:
        if not isinstance(one, str) or not _NODE.fullmatch(one):
            raise InvalidArgument("desired", "must be names of nodes", got=str(one)[:80], limit="n2")
        checked.append(one)
    if not 1 <= len(checked) <= MAX_VOTERS or len(set(checked)) != len(checked):
        raise InvalidArgument("desired", f"must be 1 to {MAX_VOTERS} different nodes", got=checked[:16],
                              limit=MAX_VOTERS)
    return tuple(sorted(checked))


def check_shards(shards: Iterable[tuple[int, int, Iterable[object]]], *, whole: bool = True) -> tuple[ShardPlan, ...]:
    """In order and without gaps; ``whole``: they have every hash there is."""
    found: list[ShardPlan] = []
    at: int | None = 0 if whole else None
    for begin, end, replicas in shards:
        if type(begin) is not int or type(end) is not int or begin != (begin if at is None else at) \
                or not 0 <= begin < end <= HASH_SPACE:
            raise InvalidArgument("shards", "must be in order, without gaps, and not empty",
                                  got=[str(begin)[:80], str(end)[:80]], limit=str(at))
        if len(found) == MAX_COLLECTION_SHARDS:
            raise LimitExceeded("shards", f"more than {MAX_COLLECTION_SHARDS} of one collection",
                                limit=MAX_COLLECTION_SHARDS)
        found.append((begin, end, check_replicas(replicas)))
        at = end
    if not found or (whole and at != HASH_SPACE):
        raise InvalidArgument("shards", "do not have every hash", got=str(at), limit=str(HASH_SPACE))
    return tuple(found)


def check_factor(value: object) -> int:
    if type(value) is not int or not 1 <= value <= MAX_VOTERS:
        raise LimitExceeded("replication_factor", f"must be 1 to {MAX_VOTERS}", got=str(value)[:80],
                            limit=f"1..{MAX_VOTERS}")
    return value


def check_shard_key(value: object) -> str | None:
    """The dotted path of a metadata field, or None."""
    if value is not None and (not isinstance(value, str) or not 1 <= len(value) <= MAX_WORD or not value.isprintable()):
        raise InvalidArgument("shard_key", f"must be a metadata field of at most {MAX_WORD} characters",
                              got=str(value)[:80], limit=MAX_WORD)
    return value


def check_groups(values: Iterable[object]) -> tuple[int, ...]:
    """Sorted, each once."""
    found = sorted({check_number("groups", one, least=1) for one in values})
    if not 1 <= len(found) <= MAX_SHARDS:
        raise InvalidArgument("groups", "must be one at least", got=len(found), limit=f"1..{MAX_SHARDS}")
    return tuple(found)


def check_number(argument: str, value: object, *, least: int = 0, most: int = MAX_NUMBER) -> int:
    if type(value) is not int or not least <= value <= most:
        raise InvalidArgument(argument, "must be a whole number", got=str(value)[:80], limit=f"{least}..{most}")
    return value


def check_seconds(value: object) -> float:
    """A reading of a wall clock."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not isfinite(value) or not 0 <= value < 1e12:
        raise InvalidArgument("at_s", "must be seconds since 1970", got=str(value)[:80], limit=">= 0")
    return float(value)


def check_capacity(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 1e-9 <= value <= 1e9:
        raise InvalidArgument("capacity", "must be a number above 0", got=str(value)[:80], limit="> 0")
    return float(value)


def check_text(argument: str, value: object, most: int = MAX_TEXT, *, empty: bool = True) -> str:
    if not isinstance(value, str) or not (empty or value) or len(value) > most:
        raise InvalidArgument(argument, f"must be text of at most {most} characters", got=str(value)[:80], limit=most)
    return value


def check_node(value: object) -> str:
    try:
        return check_label(check_text("node", value, 64), "node")
    except ValueError as error:
        raise InvalidArgument("node", str(error), got=str(value)[:80], limit="a-z, 0-9 and -") from None


def check_id(argument: str, value: object) -> str:
    if not isinstance(value, str) or not _ID.fullmatch(value):
        raise InvalidArgument(argument, "must be an id", got=str(value)[:80], limit=_ID.pattern)
    return value


def check_job_json(argument: str, value: object) -> Mapping[str, Any]:
    """A JSON object of bounded size."""
    if not isinstance(value, dict):
        raise InvalidArgument(argument, "must be a JSON object", got=type(value).__name__, limit="object")
    size = len(orjson.dumps(value))
    if size > MAX_JOB_BYTES:
        raise LimitExceeded(argument, f"{size} bytes, more than {MAX_JOB_BYTES}", got=size, limit=MAX_JOB_BYTES)
    return value


def check_setting(name: object, value: object) -> tuple[str, Any]:
    if not isinstance(name, str) or not _SETTING.fullmatch(name):
        raise InvalidArgument("name", "must be a setting's", got=str(name)[:80], limit=_SETTING.pattern)
    if value is not None and not isinstance(value, bool | int | float):
        check_text("value", value)
    return name, value
