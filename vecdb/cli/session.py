"""Opening the database a command works on."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from vecdb.cli.exits import NotFoundError

if TYPE_CHECKING:
    from vecdb.client.database import Database
    from vecdb.core.ids import RecordId


def data_directory(data: Path | None) -> Path:
    """The directory a command was given, or the configured one."""
    if data is not None:
        return data
    from vecdb.config import load_settings

    return load_settings().data_dir


@contextmanager
def open_database(data: Path | None, *, create: bool = False, write: bool = False,
                  verify: bool | None = None) -> Iterator["Database"]:
    """Open the database for the length of a command; only with ``create`` is a missing one made.

    A command that does not ``write`` opens read-only: it runs beside other readers and on a read-only disk,
    and starts no work in the background.
    """
    from vecdb.config import load_settings

    settings = load_settings()
    path = settings.data_dir if data is None else data
    if not create and not path.is_dir():
        raise NotFoundError(f"there is no database at {path} (say where with --data or VECDB_DATA_DIR)", path=str(path))
    import vecdb

    options = settings.engine.model_dump()
    if verify is not None:
        options["verify"] = verify
    if not (create or write):
        options |= {"read_only": True, "background": False}
    with vecdb.connect(path, **options) as database:
        yield database


def parse_id(text: str) -> list["RecordId"]:
    """What an id typed on a command line may mean: digits are an integer first, then a string."""
    if text.isascii() and text.isdigit() and int(text) < 1 << 63:
        return [int(text), text]
    return [text]
