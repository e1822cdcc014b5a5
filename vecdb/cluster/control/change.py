"""A change of the state on its way: what is put and taken, and the rows that come of it.

Mappings are copied when they are first written to, and then once: at 10,000 shards that is 30 µs, which a persistent
map would save (``immutables``: 0.3 µs) and which the store, the log and the network make nothing of; a dict is faster
to go through, and keeps its order (see ``vecdb.testing.scale`` for what a command costs).  Mappings that are not
written to stay the same objects, by which others see that nothing has changed.
"""

from dataclasses import replace
from types import MappingProxyType
from typing import Any, Final

from vecdb.cluster.control.rows import Row, row_of, state_row, sum_of
from vecdb.cluster.control.state import ControlState

_MASK: Final = (1 << 64) - 1


class Change:
    """Of ``state``, at ``log_index``."""

    def __init__(self, state: ControlState, log_index: int, term: int) -> None:
        self.before = state
        self.log_index = log_index
        self._numbers: dict[str, int] = {"log_index": log_index, "term": term}
        self._maps: dict[str, dict[Any, Any]] = {}
        self._puts: dict[bytes, Row] = {}
        self._gone: set[bytes] = set()
        self._digest = state.digest

    def _map(self, kind: str) -> dict[Any, Any]:
        found = self._maps.get(kind)
        if found is None:
            found = self._maps[kind] = getattr(self.before, kind).copy()  # dict() of a proxy takes ten times as long
        return found

    def put(self, kind: str, key: Any, entry: Any) -> None:
        """Have ``entry`` in the mapping ``kind``, instead of what is there; nothing where it is the same."""
        row, there = row_of(kind, key, entry), self._maps.get(kind, getattr(self.before, kind))
        if key in there:
            old = row_of(kind, key, there[key])
            if old == row:
                return
            self._digest -= sum_of(old)
        self._map(kind)[key] = entry
        self._digest += sum_of(row)
        self._puts[row[0]] = row
        self._gone.discard(row[0])

    def take(self, kind: str, key: Any) -> None:
        """Have no such entry in the mapping, where there is one."""
        row = row_of(kind, key, self._map(kind).pop(key))
        self._digest -= sum_of(row)
        self._puts.pop(row[0], None)
        self._gone.add(row[0])

    def number(self, name: str, value: int) -> None:
        """``next_group``, ``next_job`` or ``epoch``."""
        self._numbers[name] = value

    def moved(self) -> None:
        """A new epoch: somebody else holds something, or calls go elsewhere."""
        self._numbers["epoch"] = self.before.epoch + 1

    def done(self) -> tuple[ControlState, tuple[Row, ...], tuple[bytes, ...]]:
        """The state, and the rows to be put and deleted."""
        values: dict[str, Any] = {kind: MappingProxyType(entries) for kind, entries in self._maps.items()}
        values.update(self._numbers, digest=self._digest & _MASK)
        state = replace(self.before, **values)
        return state, (*self._puts.values(), state_row(state)), tuple(sorted(self._gone))
