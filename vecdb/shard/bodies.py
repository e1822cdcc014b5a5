"""Ids and metadata of commands, checked: they may come from anywhere."""

from collections.abc import Callable, Sequence
from typing import Any

import orjson

from vecdb.core.errors import InvalidMetadata
from vecdb.core.ids import RecordId, check_id, id_key
from vecdb.core.limits import MAX_METADATA_BYTES
from vecdb.core.records import DeleteIds, UpdateMetadata, UpsertBatch

Place = Callable[[bytes, bytes, str], int | None]
"""The hash of a record by id key, metadata and shard key (empty: none); None where it has no value of that."""


def places_of(command: object, place: Place, shard_key: str) -> list[int] | None:
    """The hashes of a command's records; None where it does not say them all."""
    if isinstance(command, UpsertBatch):
        found = [place(key, body, shard_key) for key, body in zip(keys_of(command.ids), command.metadata, strict=False)]
    elif isinstance(command, DeleteIds | UpdateMetadata) and not shard_key:
        found = [place(key, b"{}", shard_key) for key in keys_of(command.ids)]
    else:
        return None
    places = [one for one in found if one is not None]
    return places if len(places) == len(found) else None


def keys_of(ids: Sequence[RecordId]) -> list[bytes]:
    """Keys of ids, which are checked."""
    return [id_key(check_id(one, position)) for position, one in enumerate(ids)]


def object_of(body: bytes) -> dict[str, Any]:
    """A metadata object's value; :class:`InvalidMetadata` if the bytes are none."""
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise InvalidMetadata("metadata", f"is not JSON: {error}", got="bytes", limit="a JSON object") from None
    if not isinstance(value, dict):
        raise InvalidMetadata("metadata", "is no JSON object", got=type(value).__name__, limit="a JSON object")
    return value


def patched(old: bytes, patches: Sequence[bytes], merge: bool) -> bytes:
    """Metadata after ``patches`` in turn; :class:`LimitExceeded` if it grew too large."""
    if not merge:
        object_of(patches[-1])
        return patches[-1]
    merged: dict[str, Any] = orjson.loads(old)
    for patch in patches:
        for key, value in object_of(patch).items():
            if value is None:
                merged.pop(key, None)
            else:
                merged[key] = value
    body = orjson.dumps(merged)
    if len(body) > MAX_METADATA_BYTES:
        raise InvalidMetadata("metadata", f"would become {len(body)} bytes, more than {MAX_METADATA_BYTES}",
                              got=len(body), limit=MAX_METADATA_BYTES)
    return body
