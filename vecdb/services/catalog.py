"""The catalog: which collections a database has and in which folder each lives.

Rows of a store of its own: ``c`` name → JSON of schema and folder; ``n`` → the next folder's number.  A
collection exists from the moment its row is durable; folders without a row are what a killed call left.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import orjson

from vecdb.core.errors import CollectionNotFound, DataCorrupted
from vecdb.core.schema import CollectionSchema
from vecdb.ports.store import Store
from vecdb.shard.mutations import Mutations

_NEXT_KEY: Final = b"n"


@dataclass(frozen=True, slots=True)
class Entry:
    schema: CollectionSchema
    folder: str


class Catalog:
    """Reads are from memory; one caller writes at a time (the database's lock)."""

    def __init__(self, open_store: Callable[[], Store]) -> None:
        self._open = open_store
        self._broken = False
        self._load(open_store())

    def _load(self, store: Store) -> None:
        self._store = store
        self.entries: dict[str, Entry] = {}
        next_row = store.multi_get([_NEXT_KEY])[0]
        self._next = 0 if next_row is None else int(next_row)
        for _, value in store.scan(b"c", b"d"):
            try:
                parts = orjson.loads(value)
                entry = Entry(CollectionSchema.from_json(parts["schema"]), parts["folder"])
            except (orjson.JSONDecodeError, KeyError) as error:
                raise DataCorrupted("a catalog row cannot be understood", path="catalog") from error
            self.entries[entry.schema.name] = entry

    def get(self, name: str) -> Entry:
        try:
            return self.entries[name]
        except KeyError:
            raise CollectionNotFound(name) from None

    def new_folder(self) -> str:
        """A folder name no collection has had."""
        self._next += 1
        return f"{self._next:06d}"

    def add(self, entry: Entry) -> None:
        row = orjson.dumps({"schema": entry.schema.to_json(), "folder": entry.folder})
        self._write(Mutations(puts=[(b"c" + entry.schema.name.encode(), row), (_NEXT_KEY, b"%d" % self._next)]))
        self.entries[entry.schema.name] = entry

    def remove(self, name: str) -> None:
        self._write(Mutations(deletes=[b"c" + name.encode()]))
        del self.entries[name]

    def _write(self, mutations: Mutations) -> None:
        if self._broken:  # a refused write ended this handle: settle what it left and begin anew
            self._store.close()
            self._load(self._open())
        self._broken = True
        self._store.write(mutations)
        self._store.sync()
        self._broken = False

    def close(self) -> None:
        self._store.close()
