"""Queries that differ from one before in nothing but the vector, answered without taking the message apart.

A program asks the same again and again: of its QueryRequests all bytes are equal but those of the vector.  A
:class:`Template` is such a message with a gap where the vector stands.  Which bytes these are is found by walking the
message as a parser does, and only where each field on the way there stands once: so every message of this length that
begins and ends alike means the same, whatever is in the gap (bytes of a bytes field, which no parser looks into).

A template is made when a message comes whose like was answered before, and holds how it is answered
(:class:`~vecdb.services.express.Express`) and how the answer is written: its bytes are those that
:func:`vecdb.wire.queries.result_to_wire` would serialize to.  It says None when that way is not open, and the message
goes the long one.
"""

import sys
import time
from collections.abc import Callable
from typing import Any, Final, Protocol

from vecdb.core.access import Principal, Role
from vecdb.core.calls import Call
from vecdb.core.query import QueryRequest
from vecdb.v1 import queries_pb2, types_pb2

MOST: Final = 64
"""Templates that are kept; who sends ever new ones only makes all go the long way."""
MOST_OF_LENGTH: Final = 8
MOST_BYTES: Final = 8 << 10
"""Longest message: vectors of 2,000 dimensions; beyond, what is saved is little beside the rest."""
AGAIN_S: Final = 0.05
"""How soon a template is made anew after a write has made it stale."""
_VECTORS: Final = queries_pb2.QueryRequest.VECTORS_FIELD_NUMBER
_DATA: Final = types_pb2.Matrix.DATA_FIELD_NUMBER
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


class Way(Protocol):
    """:class:`vecdb.services.express.Express`."""

    @property
    def stale(self) -> bool: ...

    def answer(self, data: bytes) -> tuple[bytes, bytes] | None: ...

    def tell(self, method: str, began: float, sizes: tuple[int, int], answer: tuple[bytes, bytes],
             call: Callable[[], Call]) -> None: ...


FindWay = Callable[[str, QueryRequest, bool], Way | None]


def gap(raw: bytes) -> tuple[int, int] | None:
    """Where the bytes of the vectors stand in a QueryRequest that parses; None if that is not plain to see."""
    vectors = _only(raw, 0, len(raw), _VECTORS)
    return None if vectors is None else _only(raw, *vectors, _DATA)


def _only(raw: bytes, at: int, end: int, wanted: int) -> tuple[int, int] | None:
    """Where the content stands of the one field ``wanted`` of the message in ``raw[at:end]``."""
    found = None
    while at < end:
        tag, at = _varint(raw, at)
        number, kind = tag >> 3, tag & 7
        if kind == _BYTES:
            size, at = _varint(raw, at)
            if number == wanted:
                if found is not None:
                    return None
                found = at, at + size
            at += size
        elif kind == _VARINT:
            _, at = _varint(raw, at)
        elif kind in (_FIXED32, _FIXED64):
            at += 4 if kind == _FIXED32 else 8
        else:
            return None
        if number == wanted and kind != _BYTES:
            return None
    return found if at == end and found is not None and found[1] <= end else None


def _varint(raw: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = raw[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7


def reply_parts(k: int, tag: int = 0) -> tuple[bytes, bytes, bytes]:
    """What stands before the ids, between these and the distances, and behind, in the reply to a query of k results."""
    ids, distances = b"\xff" * (8 * k), b"\xfe" * (4 * k)  # no length ends in such a byte
    whole = queries_pb2.QueryReply(counts=(k,), tag=tag, distances=distances,
                                   ids=types_pb2.Ids(integers=ids)).SerializeToString(deterministic=True)
    head, rest = whole.split(ids, 1)
    middle, tail = rest.split(distances, 1)
    return head, middle, tail


class Template:
    """One kind of message; see the module."""

    __slots__ = ("_allowed", "_head", "_middle", "_tail", "again", "collection", "prefix", "start", "stop", "suffix",
                 "way")

    def __init__(self, raw: bytes, start: int, stop: int, collection: str, k: int, tag: int) -> None:
        self.prefix, self.suffix = raw[:start], raw[stop:]
        self.start, self.stop = start, stop
        self.collection = collection
        self._head, self._middle, self._tail = reply_parts(k, tag)
        self._allowed: Principal | None = None
        self.way: Way | None = None
        self.again = 0.0

    def answer(self, raw: bytes, principal: Principal, method: str, began: float, call: Callable[[], Call]
               ) -> bytes | None:
        """The reply, told of; None: go the long way."""
        way = self.way
        if way is None:
            return None
        if principal is not self._allowed:  # it does not change, so once is enough
            if not principal.allows(Role.READ, self.collection):
                return None
            self._allowed = principal
        found = way.answer(raw[self.start:self.stop])
        if found is None:
            return None
        out = b"".join((self._head, found[0], self._middle, found[1], self._tail))
        way.tell(method, began, (len(raw), len(out)), found, call)
        return out


class Templates:
    """Of one edge; ``find_way(collection, request, normalized)`` finds how a kind of query is answered."""

    def __init__(self, find_way: FindWay) -> None:
        self._find_way = find_way
        self._by_length: dict[int, list[Template]] = {}
        self._count = 0
        self._seen: dict[tuple[int, int, int, str], None] = {}

    def __len__(self) -> int:
        return self._count

    def find(self, raw: bytes) -> Template | None:
        """The template that the message fits."""
        for template in self._by_length.get(len(raw), ()):
            if raw.startswith(template.prefix) and raw.endswith(template.suffix):
                return template
        return None

    def answered(self, raw: bytes, message: Any, request: QueryRequest) -> None:
        """A message went the long way, and its answer was good: let the next of its kind go the short one."""
        if len(raw) > MOST_BYTES or len(request.vectors) != 1 or sys.byteorder != "little" \
                or message.vectors.dtype != types_pb2.DATA_TYPE_FLOAT32:
            return
        template = self.find(raw)
        if template is None:
            template = self._make(raw, message, request)
        if template is None:
            return
        now = time.monotonic()
        if now >= template.again and (template.way is None or template.way.stale):
            template.again = now + AGAIN_S
            template.way = self._find_way(message.collection, request, message.normalized)

    def _make(self, raw: bytes, message: Any, request: QueryRequest) -> Template | None:
        key = (len(raw), request.k, request.ef_search, message.collection)
        if key not in self._seen:  # what comes once may never come again
            if len(self._seen) >= MOST:
                self._seen.clear()
            self._seen[key] = None
            return None
        found = gap(raw)
        if found is None or raw[found[0]:found[1]] != message.vectors.data:
            return None
        if self._count >= MOST:
            self._by_length.clear()
            self._count = 0
        alike = self._by_length.setdefault(len(raw), [])
        if len(alike) >= MOST_OF_LENGTH:
            self._count -= 1
            alike.pop(0)
        template = Template(raw, *found, message.collection, request.k, message.tag)
        alike.append(template)
        self._count += 1
        return template
