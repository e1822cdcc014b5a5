"""Which nodes there are and where they are reached, as of the moment.

**Who is in it**: the nodes of the settings (they found the cluster), those that the control state has, and until that
is here the nodes that this one was told of when it joined.  Who has left by the control state is in it no more, whoever
else names it, and is refused until it has joined anew.

**Which address counts** where they differ is the one that changed last: the control state's, which a node keeps right
itself; unless the settings of this node have changed since it ran last and the control state has not, as when a whole
cluster is moved while it is down.  So what was known last is noted on the disk (:class:`Noted`).

Reading costs a look at whether the control state's nodes are the same object as before.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, overload

from vecdb.core.cluster import NodeState


class Entry(Protocol):
    """What is read of :class:`vecdb.cluster.control.NodeEntry`."""

    @property
    def address(self) -> str: ...

    @property
    def state(self) -> NodeState: ...


@dataclass(frozen=True, slots=True)
class Noted:
    """What a node has on its disk of where others are: by its settings of the last run, and by all it knew."""

    settings: Mapping[str, str] = field(default_factory=dict)
    known: Mapping[str, str] = field(default_factory=dict)


class Directory(Mapping[str, str]):
    """Peer addresses by name, in the order of the names; this node's own among them."""

    def __init__(self, me: str, address: str, founders: Mapping[str, str], noted: Noted | None,
                 entries: Callable[[], Mapping[str, Entry]]) -> None:
        """``address``: where others reach this node; ``founders``: of the settings, none where it has joined."""
        self._noted = noted = noted or Noted()
        self._me = me
        self._address = address
        self._founders = dict(founders)
        self._told: dict[str, str] = {} if founders else dict(noted.known)
        self._entries = entries
        self._moved = {node for node, said in founders.items()
                       if node in noted.settings and noted.settings[node] != said}
        """Nodes whose address the settings have changed, and the control state not since."""
        self._seen: Mapping[str, Entry] | None = None
        self._addresses: dict[str, str] = {}
        self._left: frozenset[str] = frozenset()

    def tell(self, nodes: Mapping[str, str]) -> None:
        """Take over what another node knows: this one joins."""
        self._told = dict(nodes)
        self._seen = None

    # --- as of now --------------------------------------------------------------------------------

    def _look(self) -> dict[str, str]:
        entries = self._entries()
        if entries is not self._seen:
            self._make(entries)
        return self._addresses

    def _make(self, entries: Mapping[str, Entry]) -> None:
        found = {**({} if entries else self._told), **self._founders}
        left = frozenset(name for name, entry in entries.items() if entry.state is NodeState.LEFT)
        for name, entry in entries.items():
            if not entry.address:
                continue
            if name in self._moved and entry.address != self._noted.known.get(name, entry.address):
                self._moved.discard(name)
            if name not in self._moved:
                found[name] = entry.address
        for name in left:
            found.pop(name, None)
        if self._me not in left:
            found[self._me] = self._address
        self._addresses = dict(sorted(found.items()))
        self._left = left
        self._seen = entries

    def __getitem__(self, name: str) -> str:
        return self._look()[name]

    def __contains__(self, name: object) -> bool:
        return name in self._look()

    def __iter__(self) -> Iterator[str]:
        return iter(self._look())

    def __len__(self) -> int:
        return len(self._look())

    @property
    def left(self) -> frozenset[str]:
        """Nodes that were removed and have not joined anew."""
        self._look()
        return self._left

    @property
    def names(self) -> "Names":
        """All nodes as a sequence that follows."""
        return Names(self)

    def noted(self) -> Noted:
        """What is to be on the disk; of nodes that the settings have moved as it was, until they say so themselves."""
        known = dict(self._look())
        return Noted({**self._founders, **{name: self._noted.settings[name] for name in self._moved}},
                     {**known, **{name: self._noted.known[name] for name in self._moved & self._noted.known.keys()}})


class Names(Sequence[str]):
    """The names of a directory, of the moment at every look."""

    def __init__(self, directory: Directory) -> None:
        self._directory = directory

    @overload
    def __getitem__(self, at: int) -> str: ...

    @overload
    def __getitem__(self, at: slice) -> Sequence[str]: ...

    def __getitem__(self, at: int | slice) -> Any:
        return tuple(self._directory)[at]

    def __len__(self) -> int:
        return len(self._directory)

    def __iter__(self) -> Iterator[str]:
        return iter(tuple(self._directory))
