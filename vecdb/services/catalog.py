"""The catalog: which collections a database has and in which folder each lives.

Rows of a store of its own: ``c`` name → JSON of schema and folder; ``n`` → the next folder's number; ``r``, there if
the collections are replicas, which only a node of their cluster may write.  A collection exists from the moment its
row is durable; folders without a row are what a killed call left.
"""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

import orjson

from vecdb.core.errors import CollectionNotFound, DataCorrupted, VecdbError
from vecdb.core.schema import CollectionSchema, collection_of
from vecdb.ports.store import Store
from vecdb.shard.mutations import Mutations

_NEXT_KEY: Final = b"n"
_REPLICATED_KEY: Final = b"r"


@dataclass(frozen=True, slots=True)
class Entry:
    schema: CollectionSchema
    folder: str


class Catalog:
    """Reads are from memory and need no lock; one caller writes at a time (the database's lock for changes).

    ``entries`` is never changed in place.  ``doubtful`` is the collection whose row an add or remove may or
    may not have changed when the disk refused; :meth:`settle` finds out.
    """

    def __init__(self, open_store: Callable[[], Store]) -> None:
        self._open = open_store
        self._broken = False
        self._next = 0
        self.doubtful: str | None = None
        self.entries: dict[str, Entry] = {}
        self._store = open_store()
        try:
            self._load()
        except BaseException:
            self._store.close()
            raise

    def _load(self) -> None:
        store = self._store
        next_row, replicated_row = store.multi_get([_NEXT_KEY, _REPLICATED_KEY])
        self.replicated = replicated_row is not None
        self._next = max(self._next, 0 if next_row is None else int(next_row))  # a folder is handed out once
        entries: dict[str, Entry] = {}
        for _, value in store.scan(b"c", b"d"):
            try:
                parts = orjson.loads(value)
                entry = Entry(CollectionSchema.from_json(parts["schema"]), parts["folder"])
            except (orjson.JSONDecodeError, KeyError) as error:
                raise DataCorrupted("a catalog row cannot be understood", path="catalog") from error
            entries[entry.schema.name] = entry
        self.entries = entries
        self.is_new = next_row is None and not entries

    def get(self, name: str) -> Entry:
        try:
            return self.entries[name]
        except KeyError:
            raise CollectionNotFound(collection_of(name)) from None

    def found(self, replicated: bool = False) -> None:
        """Write the first rows of a new catalog, which tell it from one that was lost."""
        self._write(Mutations(puts=[(_NEXT_KEY, b"%d" % self._next),
                                    *([(_REPLICATED_KEY, b"")] if replicated else [])]))
        self.is_new, self.replicated = False, replicated

    def new_folder(self) -> str:
        """A folder name no collection has had."""
        self._next += 1
        return f"{self._next:06d}"

    def add(self, entry: Entry) -> None:
        name = entry.schema.name
        row = orjson.dumps({"schema": entry.schema.to_json(), "folder": entry.folder})
        self.doubtful = name
        self._write(Mutations(puts=[(b"c" + name.encode(), row), (_NEXT_KEY, b"%d" % self._next)]))
        self.entries = {**self.entries, name: entry}
        self.doubtful = None

    def remove(self, name: str) -> None:
        self.doubtful = name
        self._write(Mutations(deletes=[b"c" + name.encode()]))
        self.entries = {other: entry for other, entry in self.entries.items() if other != name}
        self.doubtful = None

    def settle(self) -> None:
        """After a refused write: open the store anew, take its word for what was written, and make that durable."""
        if not self._broken:
            return
        with suppress(VecdbError):
            self._store.close()
        self._store = self._open()
        self._load()
        self._store.sync()
        self._broken = False
        self.doubtful = None

    def _write(self, mutations: Mutations) -> None:
        """The caller has settled what an earlier refusal left."""
        self._broken = True
        self._store.write(mutations)
        self._store.sync()
        self._broken = False

    def close(self) -> None:
        self._store.close()
