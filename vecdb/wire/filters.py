"""Filters: sent as the expression where that is short, as JSON where it is long, and parsed once for many calls.

Both faces of a node read filters here, for equal filters are to be one object: by that queries are seen to belong
together (:mod:`vecdb.services.batching`).
"""

import json
from collections import OrderedDict
from collections.abc import Callable
from threading import Lock
from typing import Any, Final

import orjson

from vecdb.core.errors import InvalidFilter
from vecdb.core.filters import And, Everything, Node, Not, Or, from_mapping, parse, to_mapping, to_text
from vecdb.v1 import types_pb2 as pb
from vecdb.wire.jsons import filter_mapping_from_wire

EXPRESSION_BYTES: Final = 4 << 10
"""Longer filters are lists of values nearly always, and JSON is read many times as fast as the expression."""

CACHE_BYTES: Final = 32 << 20
"""What parsed filters may take together, by the reckoning of :func:`_weight`."""

_TEXT_FACTOR: Final = 8
_NODE_BYTES: Final = 256


class FilterCache:
    """Parsed filters, least recently used first out; any number of threads may ask."""

    def __init__(self, most_bytes: int = CACHE_BYTES) -> None:
        self._most = most_bytes
        self._entries: OrderedDict[str | bytes, tuple[Node, int]] = OrderedDict()
        self._lock = Lock()
        self._bytes = 0
        self.hits = 0
        self.misses = 0

    def get(self, text: str | bytes) -> Node | None:
        """The tree of a text seen lately."""
        with self._lock:
            entry = self._entries.get(text)
            if entry is None:
                self.misses += 1
                return None
            self.hits += 1
            self._entries.move_to_end(text)
            return entry[0]

    def put(self, text: str | bytes, node: Node) -> Node:
        """Keep a tree, unless it would take more than half of the room.

        Returns the one to use: another thread may have been sooner with this text.
        """
        weight = _weight(text, node)
        if weight > self._most // 2:
            return node
        with self._lock:
            if (kept := self._entries.get(text)) is not None:
                return kept[0]
            self._entries[text] = node, weight
            self._bytes += weight
            while self._bytes > self._most:
                _, (_, gone) = self._entries.popitem(last=False)
                self._bytes -= gone
        return node

    @property
    def bytes_held(self) -> int:
        """The weight of what is kept."""
        return self._bytes

    def __len__(self) -> int:
        return len(self._entries)


def _weight(text: str | bytes, node: Node) -> int:
    """About what an entry takes: values by the length of their text (measured: 2 to 6 times), and every node."""
    return _TEXT_FACTOR * len(text) + _NODE_BYTES * (1 + _nodes(node))


def _nodes(node: Node) -> int:
    if isinstance(node, And | Or):
        return 1 + sum(map(_nodes, node.nodes))
    return 1 + _nodes(node.node) if isinstance(node, Not) else 1


FILTERS: Final = FilterCache()


def filter_to_wire(node: Node | None) -> pb.Filter:
    """Write a canonical tree (one that ``to_node`` or ``parse`` made); None is a message without a form."""
    msg = pb.Filter()
    if node is not None:
        put_filter(msg, node)
    return msg


def put_filter(msg: pb.Filter, node: Node) -> None:
    """:func:`filter_to_wire` in place."""
    text = to_text(node)
    if len(text) <= EXPRESSION_BYTES:
        msg.expression = text
    else:
        msg.json = json.dumps(to_mapping(node), ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()


def filter_from_wire(msg: pb.Filter) -> Node | None:
    """Return the tree, None where no form is set, or raise :class:`InvalidFilter`."""
    form = msg.WhichOneof("form")
    if form is None:
        return None
    if form == "expression":
        return filter_from_text(msg.expression)
    data = msg.json
    return _kept(data, lambda: from_mapping(filter_mapping_from_wire(data)))


def filter_from_text(text: str) -> Node:
    """The tree of an expression, or :class:`InvalidFilter`."""
    return _kept(text, lambda: parse(text))


def filter_from_mapping(mapping: dict[str, Any]) -> Node:
    """The tree of a mapping as orjson read it, or :class:`InvalidFilter`; the order of its keys is all the same."""
    try:
        key = orjson.dumps(mapping, option=orjson.OPT_SORT_KEYS)
    except orjson.JSONEncodeError:  # nested deeper than a filter may be
        return from_mapping(mapping)
    return _kept(key, lambda: from_mapping(mapping))


def _kept(text: str | bytes, read: Callable[[], Node]) -> Node:
    node = FILTERS.get(text)
    return FILTERS.put(text, read()) if node is None else node


def some_filter_from_wire(msg: pb.Filter) -> Node:
    """Like :func:`filter_from_wire` for what is to be changed: one that says nothing is refused, ``true`` is not."""
    node = filter_from_wire(msg)
    if node is None or (isinstance(node, Everything) and msg.WhichOneof("form") != "expression"):
        raise InvalidFilter("an empty filter would change every record; filter='true' says that this is meant",
                            got="an empty filter", limit="at least one condition, or 'true'")
    return node
