"""Keys, jobs and digests of a directory or of a server, behind the same calls.

A server answers itself.  A directory is opened for the length of the command, as by any other, so a key is made
offline only while no server holds the directory; the first command that writes makes the database.
"""

from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Any, Protocol

from vecdb.cli.session import open_database
from vecdb.cli.target import Place

if TYPE_CHECKING:
    from vecdb.client.database import Database
    from vecdb.core.access import Grant, Key
    from vecdb.services.keys import KeyRing

KEYS = "keys"
"""The folder of the key ring in the data directory; made with the first key."""


class Administration(Protocol):
    """What is done about a database rather than with it."""

    def create_key(self, name: str, grants: "Sequence[Grant]", ttl_s: float = 0.0) -> "tuple[Key, str]": ...

    def list_keys(self) -> "list[Key]": ...

    def rotate_key(self, id: str, overlap_s: float = 0.0) -> "tuple[Key, str]": ...

    def revoke_key(self, id: str) -> object: ...

    def jobs(self, name: str | None = None) -> list[dict[str, Any]]: ...

    def verify(self, name: str) -> dict[str, Any]: ...


class _Local:
    """A directory's: the engine, and the key ring beside it."""

    def __init__(self, engine: Any, ring: "KeyRing") -> None:
        self.jobs, self.verify = engine.jobs, engine.verify
        self.create_key, self.list_keys = ring.create, ring.list
        self.rotate_key, self.revoke_key = ring.rotate, ring.revoke


@contextmanager
def administration(place: Place, *, write: bool = False) -> Iterator[Administration]:
    """Open a place for its administration; without ``write`` nothing of a directory is changed."""
    with opened_administration(place, write=write) as (_, admin):
        yield admin


@contextmanager
def opened_administration(place: Place, *, write: bool = False) -> "Iterator[tuple[Database, Administration]]":
    """As :func:`administration`, with the database it goes by."""
    with open_database(place, create=write, verify=False, background=False) as database, \
            database._session.call() as backend:
        if place.directory is None:
            remote: Any = backend
            yield database, remote
            return
        # Both load the engine, which is loaded by now.
        from vecdb.app import open_store
        from vecdb.runtime.clock import SystemClock
        from vecdb.services.keys import KeyRing

        with closing(KeyRing(place.directory / KEYS, open_store, SystemClock(), read_only=not write)) as ring:
            yield database, _Local(backend, ring)
