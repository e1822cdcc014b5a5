"""Schemas as they were seen last, so that a call need not ask first."""

import time

from vecdb.core.schema import CollectionSchema


class SchemaCache:
    """Name to schema, each for ``ttl_s`` seconds; a dict's own atomic operations are enough for threads."""

    def __init__(self, ttl_s: float) -> None:
        self._ttl = ttl_s
        self._known: dict[str, tuple[float, CollectionSchema]] = {}

    def get(self, name: str) -> CollectionSchema | None:
        found = self._known.get(name)
        if found is None or found[0] < time.monotonic():
            return None
        return found[1]

    def put(self, schema: CollectionSchema) -> CollectionSchema:
        self._known[schema.name] = (time.monotonic() + self._ttl, schema)
        return schema

    def drop(self, name: str) -> None:
        self._known.pop(name, None)
