"""Groups that this node has left, as it must not forget: rows beside its logs, like the ledger's.

A replica that its group has removed is deleted, its log with it.  Should the node be wanted again, what it promised in
its first life is forgotten, so it must not begin as one of the group's first voters, whose names stand in the control
state for good.  The note is durable **before** the log goes, and is in the same store, so it is lost only with the
number of the disk, which says the same.  It goes when the group itself is no more.
"""

from collections.abc import Iterable, Iterator
from typing import Final

from vecdb.core.errors import DataCorrupted
from vecdb.ports.store import Store
from vecdb.shard.mutations import Mutations

_PREFIX: Final = b"hl"
_END: Final = b"hm"
_WIDTH: Final = 8


class Departures:
    """One caller at a time; :meth:`note` and :meth:`forget` block until that is on stable storage."""

    def __init__(self, store: Store) -> None:
        """``store``: that of the logs, opened and closed by the caller."""
        self._store = store
        self._groups: set[int] = set()
        for key, _ in store.scan(_PREFIX, _END):
            if len(key) != len(_PREFIX) + _WIDTH:
                raise DataCorrupted("a note of a group that was left is none", path="ledger")
            self._groups.add(int.from_bytes(key[len(_PREFIX):], "big"))

    def __contains__(self, group: int) -> bool:
        return group in self._groups

    def note(self, group: int) -> None:
        """This node has left the group."""
        if group not in self._groups:
            self._store.write(Mutations(puts=[(_key(group), b"")]))
            self._store.sync()
            self._groups.add(group)

    def forget(self, gone: Iterable[int]) -> None:
        """These groups are no more."""
        lost = self._groups.intersection(gone)
        if lost:
            self._store.write(Mutations(deletes=[_key(group) for group in sorted(lost)]))
            self._groups -= lost

    def __iter__(self) -> Iterator[int]:
        return iter(sorted(self._groups))


def _key(group: int) -> bytes:
    return _PREFIX + group.to_bytes(_WIDTH, "big")
