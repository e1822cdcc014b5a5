"""What a node must not forget of its own doings as a host of replicas; rows in the store of the logs.

``h`` founding → the number of this disk and how far it is with founding the control group
(:mod:`vecdb.cluster.founding`); ``h`` acted → the last place of the control group's log whose state was acted on;
``h`` directory → where nodes were when that was last known (:mod:`vecdb.services.directory`).

They stand **in the store that holds the logs** on purpose: who loses the logs loses the number with them, and is
another from then on.  So whether a log that is not there was lost or never was can be told without a note for every
group, which would have to be written at the same moment as the log.
"""

from typing import Final

import orjson
import xxhash

from vecdb.cluster.founding import Founding
from vecdb.core.errors import DataCorrupted
from vecdb.ports.store import Store
from vecdb.services.directory import Noted
from vecdb.shard.mutations import Mutations

_FOUNDING: Final = b"hf"
_ACTED: Final = b"ha"
_DIRECTORY: Final = b"hd"
_SUM: Final = 8


class Ledger:
    """One caller at a time; every method but the properties blocks until it is on stable storage."""

    def __init__(self, store: Store) -> None:
        """``store``: opened and closed by the caller.

        A row that cannot be read, or is not what was written, counts as none (``damaged``): the disk then is as good
        as new, and gets another number, which is safe whatever the row said.
        """
        self._store = store
        self.damaged = False
        self._founding: Founding | None = None
        self._acted = 0
        self._directory: Noted | None = None
        try:
            founding, acted, directory = store.multi_get([_FOUNDING, _ACTED, _DIRECTORY])
            self._founding = None if founding is None else _founding(_body(founding))
            self._acted = 0 if acted is None else int(_body(acted))
            self._directory = None if directory is None else _noted(_body(directory))
        except DataCorrupted:
            self.damaged = True

    @property
    def founding(self) -> Founding | None:
        """None on a disk that is new."""
        return self._founding

    @property
    def acted(self) -> int:
        """Earlier states than the one of this log index are not acted on."""
        return self._acted

    @property
    def directory(self) -> Noted | None:
        """None where no node was known yet."""
        return self._directory

    def write_directory(self, noted: Noted) -> None:
        self._put(_DIRECTORY, orjson.dumps([dict(noted.settings), dict(noted.known)]))
        self._directory = noted

    def write_founding(self, founding: Founding) -> None:
        self._put(_FOUNDING, orjson.dumps([founding.number, founding.forming, founding.members, founding.joined]))
        self._founding = founding

    def write_acted(self, log_index: int) -> None:
        self._put(_ACTED, b"%d" % log_index)
        self._acted = log_index

    def _put(self, key: bytes, body: bytes) -> None:
        self._store.write(Mutations(puts=[(key, xxhash.xxh3_64_digest(body) + body)]))
        self._store.sync()


def _body(value: bytes) -> bytes:
    body = value[_SUM:]
    if xxhash.xxh3_64_digest(body) != value[:_SUM]:
        raise DataCorrupted("a row of the ledger does not match its checksum", path="ledger")
    return body


def _founding(body: bytes) -> Founding:
    try:
        number, forming, members, joined = orjson.loads(body)
        return Founding(int(number), tuple(forming), tuple(members), bool(joined))
    except (ValueError, TypeError) as error:
        raise DataCorrupted("the ledger's row of the founding cannot be understood", path="ledger") from error


def _noted(body: bytes) -> Noted:
    try:
        settings, known = orjson.loads(body)
        return Noted(dict(settings), dict(known))
    except (ValueError, TypeError) as error:
        raise DataCorrupted("the ledger's row of the nodes cannot be understood", path="ledger") from error
