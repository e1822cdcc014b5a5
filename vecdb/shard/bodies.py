"""Ids and metadata of commands, checked: they may come from anywhere."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson

from vecdb.core.errors import InvalidMetadata
from vecdb.core.ids import RecordId, check_id, id_from_key, id_key
from vecdb.core.limits import MAX_BATCH_RECORDS, MAX_METADATA_BYTES
from vecdb.core.records import Command, DeleteIds, DeleteWhere, UpdateMetadata, UpsertBatch
from vecdb.shard import rows
from vecdb.shard.mutations import Mutations

Place = Callable[[bytes, bytes, str], int | None]
"""The hash of a record by id key, metadata and shard key (empty: none); None where it has no value of that."""


def places_of(command: object, place: Place, shard_key: str) -> list[int] | None:
    """The hashes of a command's records; None where it does not say them all."""
    if isinstance(command, UpsertBatch) or (isinstance(command, UpdateMetadata) and shard_key and not command.merge):
        bodies = command.metadata if isinstance(command, UpsertBatch) else command.patch
        found = [place(key, body, shard_key) for key, body in zip(keys_of(command.ids), bodies, strict=False)]
    elif isinstance(command, DeleteIds | UpdateMetadata) and not shard_key:
        found = [place(key, b"{}", shard_key) for key in keys_of(command.ids)]
    else:
        return None
    places = [one for one in found if one is not None]
    return places if len(places) == len(found) else None


def carried_out(command: Command, ids: Sequence[RecordId], mutations: Mutations) -> tuple[Command, ...]:
    """What of a command was done, as commands that do it where they are all that is done: ``ids`` are of the records it
    wrote, ``mutations`` what it does to rows.
    """
    if isinstance(command, DeleteIds | DeleteWhere):
        gone = tuple(id_from_key(key[len(rows.ID):]) for key in mutations.deletes if key.startswith(rows.ID))
        return tuple(DeleteIds(gone[at:at + MAX_BATCH_RECORDS]) for at in range(0, len(gone), MAX_BATCH_RECORDS))
    written = set(ids)
    keep = [place for place, one in enumerate(command.ids) if one in written]
    kept = tuple(command.ids[place] for place in keep)
    if isinstance(command, UpdateMetadata):
        return (UpdateMetadata(kept, tuple(command.patch[place] for place in keep), command.merge),) if kept else ()
    return (UpsertBatch(kept, command.vectors[keep], tuple(command.metadata[place] for place in keep)),) if kept else ()


def written(ids: Sequence[RecordId], mutations: Mutations, row_items: int, dtype: npt.DTypeLike
            ) -> tuple[UpsertBatch, ...]:
    """The records that a command wrote, ``ids``, as they are now: vectors (n, ``row_items``) as they are stored."""
    if not ids:
        return ()
    raw = b"".join(value for key, value in mutations.puts if key.startswith(rows.VECTOR))
    bodies = tuple(rows.record_metadata(value) for key, value in mutations.puts if key.startswith(rows.RECORD))
    return (UpsertBatch(tuple(ids), np.frombuffer(raw, dtype).reshape(len(ids), row_items), bodies),)


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
