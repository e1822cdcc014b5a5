"""Filters: sent as the expression where that is short, as JSON where it is long, and parsed once for many calls."""

import json
from collections import OrderedDict
from threading import Lock
from typing import Final

from vecdb.core.errors import InvalidFilter
from vecdb.core.filters import Everything, Node, from_mapping, parse, to_mapping, to_text
from vecdb.v1 import types_pb2 as pb
from vecdb.wire.jsons import filter_mapping_from_wire

EXPRESSION_BYTES: Final = 4 << 10
"""Longer filters are lists of values nearly always, and JSON is read many times as fast as the expression."""

CACHE_BYTES: Final = 32 << 20
"""What parsed filters may take together, reckoned at :data:`_TREE_FACTOR` bytes for each of their text."""

_TREE_FACTOR: Final = 24
_ENTRY_BYTES: Final = 512
_ENTRY_MAX: Final = CACHE_BYTES // 8


class FilterCache:
    """Parsed filters, least recently used first out; any number of threads may ask."""

    def __init__(self, most_bytes: int = CACHE_BYTES) -> None:
        self._most = most_bytes
        self._entries: OrderedDict[str | bytes, Node] = OrderedDict()
        self._lock = Lock()
        self._bytes = 0

    def get(self, text: str | bytes) -> Node | None:
        with self._lock:
            node = self._entries.get(text)
            if node is not None:
                self._entries.move_to_end(text)
            return node

    def put(self, text: str | bytes, node: Node) -> None:
        cost = _cost(text)
        if cost > self._most // 8:
            return
        with self._lock:
            if text in self._entries:
                return
            self._entries[text] = node
            self._bytes += cost
            while self._bytes > self._most:
                old, _ = self._entries.popitem(last=False)
                self._bytes -= _cost(old)

    @property
    def bytes_held(self) -> int:
        return self._bytes

    def __len__(self) -> int:
        return len(self._entries)


def _cost(text: str | bytes) -> int:
    return _ENTRY_BYTES + _TREE_FACTOR * len(text)


_CACHE: Final = FilterCache()


def filter_to_wire(node: Node | None) -> pb.Filter:
    """Write a canonical tree (one that ``to_node`` or ``parse`` made); None is a message without a form."""
    if node is None:
        return pb.Filter()
    text = to_text(node)
    if len(text) <= EXPRESSION_BYTES:
        return pb.Filter(expression=text)
    mapping = to_mapping(node)
    return pb.Filter(json=json.dumps(mapping, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode())


def filter_from_wire(msg: pb.Filter) -> Node | None:
    """Return the tree, None where no form is set, or raise :class:`InvalidFilter`."""
    form = msg.WhichOneof("form")
    if form is None:
        return None
    text = msg.expression if form == "expression" else msg.json
    node = _CACHE.get(text)
    if node is None:
        node = parse(text) if isinstance(text, str) else from_mapping(filter_mapping_from_wire(text))
        _CACHE.put(text, node)
    return node


def some_filter_from_wire(msg: pb.Filter) -> Node:
    """Like :func:`filter_from_wire` for what is to be changed: one that says nothing is refused, ``true`` is not."""
    node = filter_from_wire(msg)
    if node is None or (isinstance(node, Everything) and msg.WhichOneof("form") != "expression"):
        raise InvalidFilter("an empty filter would change every record; filter='true' says that this is meant",
                            got="an empty filter", limit="at least one condition, or 'true'")
    return node
