"""Putting the files that a shard adopts where a state has them: what a replica does at the command ADOPT.

Files come ahead of the command, fetched by the job that proposes it, to ``adopting/SHA256/`` in the replica's home; a
file beside the folder says that all of it is there, every byte by its checksum.  A replica that comes to the command
without them fetches them then, and what else the log brings waits.  A new state is then laid out of links (files that a
store changes are copied), told its place in the log, and cleared of what a log before has left in it; it is opened
beside the state in use, and takes its place in one step (:mod:`vecdb.services.homes`).
"""

import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

from vecdb.core.errors import DataCorrupted
from vecdb.ports.replicator import Position
from vecdb.ports.store import Store
from vecdb.segment.files import from_os_error, sync_directory
from vecdb.services.homes import Home
from vecdb.services.recovery import ROWS
from vecdb.shard import rows
from vecdb.shard.adoption import Adopt
from vecdb.shard.mutations import Mutations

NOTE: Final = "ADOPTED"
"""In a state: the log index at which it was adopted."""
_FOR_EVER: Final = (".sst", ".vdb")
"""Files that nobody changes once they are written."""


def folder_of(home: Home, sha256: str) -> Path:
    """Where the files of a manifest are gathered."""
    return home.adopting / sha256


def is_whole(folder: Path) -> bool:
    return _mark(folder).exists()


def gather(home: Home, sha256: str, fetch: Callable[[Path], None]) -> Path:
    """The folder with all the files, which ``fetch`` makes durable in it where they are not there."""
    folder = folder_of(home, sha256)
    if is_whole(folder):
        return folder
    try:
        home.adopting.mkdir(exist_ok=True)
        for path in home.adopting.iterdir():  # of a manifest that is wanted no more
            if path.stem != sha256:
                shutil.rmtree(path, ignore_errors=True)
                with suppress(OSError):
                    path.unlink()
        fetch(folder)
        sync_directory(home.adopting)
        _mark(folder).touch()
        sync_directory(home.adopting)
        sync_directory(home.folder)
    except OSError as error:
        raise from_os_error(error, folder, "gathering") from error
    return folder


def forget(home: Home) -> None:
    shutil.rmtree(home.adopting, ignore_errors=True)


def lay_out(source: Path, state: Path, command: Adopt, position: Position, open_rows: Callable[[Path], Store]) -> None:
    """Make a state at ``position`` of the files in ``source``, durably.

    Raises ``DataCorrupted`` where they are not what the command names.
    """
    try:
        for where, _, names in os.walk(source):
            folder = state / Path(where).relative_to(source)
            folder.mkdir(parents=True, exist_ok=True)
            for name in names:
                if Path(name).suffix in _FOR_EVER:
                    os.link(Path(where, name), folder / name)
                else:
                    shutil.copyfile(Path(where, name), folder / name)
                    _sync(folder / name)
            sync_directory(folder)
    except OSError as error:
        raise from_os_error(error, state, "laying out") from error
    store = open_rows(state)
    try:
        (value,) = store.multi_get([rows.STATE_KEY])
        if value is None:
            raise DataCorrupted(f"the files to be adopted at {source} have no state", path=str(source), region="backup")
        found = rows.State.from_bytes(value)
        if (found.records, f"{found.digest:032x}") != (command.records, command.digest):
            raise DataCorrupted(f"the files to be adopted at {source} hold {found.records} records and were said to "
                                f"hold {command.records}, or their digest differs", path=str(source), region="backup")
        begun = rows.State(position.log_index, found.next_rid, found.records, found.digest, position.term)
        store.write(Mutations(puts=[(rows.STATE_KEY, begun.to_bytes())], deletes=[rows.SEAL_KEY],
                              ranges=[rows.TOKENS, rows.MARKS, rows.IMPORTS]))
        store.sync()
    finally:
        store.close()
    try:
        (state / NOTE).write_text(str(position.log_index), encoding="ascii")
        _sync(state / NOTE)
        sync_directory(state / ROWS)
        sync_directory(state)
        sync_directory(state.parent)
    except OSError as error:
        raise from_os_error(error, state, "laying out") from error


def floor_of(state: Path) -> int:
    """The log index at which a state was adopted, 0: it was not."""
    try:
        return int((state / NOTE).read_text(encoding="ascii"))
    except (OSError, ValueError):
        return 0


def _mark(folder: Path) -> Path:
    return folder.with_name(folder.name + ".whole")


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
