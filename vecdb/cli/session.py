"""Opening the database a command works on, in a directory or on a server."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from vecdb.cli.exits import NotFoundError
from vecdb.cli.target import Place, Target, resolve
from vecdb.core.errors import DatabaseLocked

if TYPE_CHECKING:
    from vecdb.client.database import Database
    from vecdb.core.ids import RecordId

QUESTION_S: Final = 5.0
"""For a server to say how things are, where no --timeout says how long: who asks wants to know what does not answer."""


def patience(place: Place) -> float:
    """Seconds for one question about how things are."""
    return place.settings.client.timeout_s or QUESTION_S


@contextmanager
def open_database(target: Target | Place, *, create: bool = False, write: bool = False,
                  verify: bool | None = None, background: bool | None = None) -> Iterator["Database"]:
    """Open the database for the length of a command; only with ``create`` is a missing directory made.

    A command that does not ``write`` opens a directory read-only: it runs beside other readers and on a read-only
    disk, and starts no work in the background.
    """
    place = target if isinstance(target, Place) else resolve(target)
    if place.directory is not None and not create and not place.directory.is_dir():
        raise NotFoundError(f"there is no database at {place.directory} (say where with --data or VECDB_DATA_DIR)",
                            path=str(place.directory))
    import vecdb

    if place.directory is None:
        opened = vecdb.connect(place.url, api_key=place.api_key, **place.connection())
    else:
        options = place.settings.engine.model_dump()
        if verify is not None:
            options["verify"] = verify
        if background is not None:
            options["background"] = background
        if not (create or write):
            options |= {"read_only": True, "background": False}
        try:
            opened = vecdb.connect(place.directory, **options)
        except DatabaseLocked as error:
            error.message += "; if a server has it, ask the server with --url"
            raise
    with opened as database:
        yield database


def parse_id(text: str) -> list["RecordId"]:
    """What an id typed on a command line may mean: digits are an integer first, then a string."""
    if text.isascii() and text.isdigit() and int(text) < 1 << 63:
        return [int(text), text]
    return [text]
