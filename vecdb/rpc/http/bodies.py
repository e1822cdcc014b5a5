"""JSON bodies, read strictly, and long ones in slices.

orjson holds the GIL while it parses: 60 MB at once would hold every other call for a quarter of a second, in whatever
thread it ran, and ``[[],[],…`` takes twenty times its size as objects.  So the structure of a long body is found first
(NumPy over its bytes: quotes, brackets, commas), and a long top-level array becomes :class:`Slices`: runs of elements,
parsed when they are iterated over, each small.  What makes a slice valid or not is orjson alone; the structure only
says where to cut.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import orjson

from vecdb.core.errors import InvalidArgument, LimitExceeded

LONG_BYTES: Final = 256 << 10
"""From here on a body is read in slices, and away from the event loop; a slice is about as long."""

MAX_MARKS: Final = 1 << 21
"""Most brackets, commas and colons of a value that is not cut (an object, as a filter is): each may become a hundred
bytes of objects, and all of them at once."""

_CHUNK: Final = 4 << 20

_STRUCTURAL: Final = np.zeros(256, np.bool_)
_STRUCTURAL[[ord(one) for one in '"[]{},:']] = True
_STEP: Final = np.zeros(256, np.int8)
_STEP[[ord("["), ord("{")]] = 1
_STEP[[ord("]"), ord("}")]] = -1


class Slices:
    """A long JSON array: iterate to get its elements in lists, in order; may be iterated again."""

    __slots__ = ("_body", "_ends", "_start")

    def __init__(self, body: bytes, start: int, ends: list[int]) -> None:
        self._body = body
        self._start = start
        self._ends = ends

    def __iter__(self) -> Iterator[list[Any]]:
        low = self._start
        for high in self._ends:
            part = parse(b"".join((b"[", memoryview(self._body)[low:high], b"]")))
            if not part:
                raise _malformed("an element is missing")
            yield part
            low = high + 1


def parse(data: bytes) -> Any:
    """Any JSON value, or :class:`InvalidArgument`; NaN, infinities and lone surrogates are none."""
    try:
        return orjson.loads(data)
    except ValueError as error:
        raise _malformed(str(error)) from None
    except RecursionError:
        raise _malformed("it is nested too deep") from None


def read(body: bytes) -> dict[str, Any]:
    """The members of a body's object; long arrays are :class:`Slices`.  Of equal names the last counts."""
    if len(body) < LONG_BYTES:
        value = parse(body)
        if not isinstance(value, dict):
            raise InvalidArgument("body", f"must be a JSON object, not {_kind(value)}", got=_kind(value),
                                  limit="an object")
        return value
    return {_name(body, member): _value(body, member) for member in _members(body)}


def _malformed(why: str) -> InvalidArgument:
    return InvalidArgument("body", f"is not JSON: {why}"[:300], got="bytes", limit="one JSON object, in UTF-8")


def _kind(value: object) -> str:
    return {list: "an array", str: "a string", bool: "a boolean", type(None): "null"}.get(type(value), "a number")


@dataclass(slots=True)
class _Member:
    """Offsets of a member of the outer object.

    ``cuts``: some commas between the elements of its value; ``marks``: how many brackets, commas and colons it has.
    """

    start: int
    colon: int = -1
    end: int = -1
    marks: int = 0
    cuts: list[int] | None = None


def _name(body: bytes, member: _Member) -> str:
    if member.colon < 0 or member.colon - member.start > 4_096:
        raise _malformed(f"a member without a name at byte {member.start}")
    name = parse(body[member.start:member.colon])
    if not isinstance(name, str):
        raise _malformed(f"a member whose name is no string at byte {member.start}")
    return name


def _value(body: bytes, member: _Member) -> Any:
    low, high = member.colon + 1, member.end
    if high - low < LONG_BYTES:
        return parse(body[low:high])
    while low < high and body[low] in b" \t\r\n":
        low += 1
    while low < high and body[high - 1] in b" \t\r\n":
        high -= 1
    if member.cuts and body[low] == ord("[") and body[high - 1] == ord("]"):
        return Slices(body, low + 1, [*member.cuts, high - 1])
    if member.marks > MAX_MARKS:
        raise LimitExceeded("body", f"a value of {member.marks} brackets and commas, more than {MAX_MARKS}",
                            got=member.marks, limit=MAX_MARKS)
    return parse(body[low:high])


def _members(body: bytes) -> list[_Member]:
    """The members of the outer object; an error if the brackets do not close or something stands outside."""
    start = len(body) - len(body.lstrip(b" \t\r\n"))
    if body[start:start + 1] != b"{":
        raise InvalidArgument("body", "must be a JSON object", got="another value", limit="an object")
    members = [_Member(start + 1)]
    depth = 0
    for places, kinds, depths in _structure(body):
        outer = np.flatnonzero(depths <= 1)
        low = 0
        for at in outer.tolist():
            _cut(members[-1], places, kinds, depths, low, at)
            low = at + 1
            place, kind = int(places[at]), int(kinds[at])
            if kind == ord(":") and members[-1].colon < 0:
                members[-1].colon = place
            elif kind == ord(",") and depths[at] == 1:
                members[-1].end = place
                members.append(_Member(place + 1))
            elif depths[at] <= 0:
                members[-1].end = place
                return _last(body, members, place)
            if len(members) > 64:
                raise _malformed("an object of more than 64 members")
        _cut(members[-1], places, kinds, depths, low, len(places))
        depth = int(depths[-1]) if len(depths) else depth
    raise _malformed(f"it ends within {depth} open brackets" if depth else "it ends within a string")


def _last(body: bytes, members: list[_Member], place: int) -> list[_Member]:
    if body[place] != ord("}") or body[place + 1:].strip(b" \t\r\n"):
        raise _malformed(f"something stands after the object, at byte {place}")
    if len(members) == 1 and not body[members[0].start:place].strip(b" \t\r\n"):
        return []
    return members


def _cut(member: _Member, places: npt.NDArray[np.int64], kinds: npt.NDArray[np.uint8], depths: npt.NDArray[np.int32],
         low: int, high: int) -> None:
    """Note a comma at depth two every LONG_BYTES or so of a value that goes from ``low`` to ``high``."""
    member.marks += high - low
    if high - low < 2 or member.colon < 0:
        return
    commas = places[low:high][(kinds[low:high] == ord(",")) & (depths[low:high] == 2)]
    cuts = member.cuts if member.cuts is not None else []
    last = cuts[-1] if cuts else member.colon
    while (at := int(np.searchsorted(commas, last + LONG_BYTES))) < len(commas):
        last = int(commas[at])
        cuts.append(last)
    member.cuts = cuts


def _structure(body: bytes) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.uint8], npt.NDArray[np.int32]]]:
    """Places and kinds of brackets, commas and colons outside of strings, with the depth after each."""
    low, inside, depth = 0, 0, 0
    escaping = False
    while low < len(body):
        high = min(len(body), low + _CHUNK)
        data = np.frombuffer(body, np.uint8, high - low, low)
        places = np.flatnonzero(_STRUCTURAL[data])
        kinds = data[places]
        quotes = kinds == ord('"')
        if escaping or body.find(b"\\", low, high) >= 0:
            escaped, escaping = _escaped(data, escaping)
            quotes &= ~escaped[places]
        within = (np.cumsum(quotes, dtype=np.int64) + inside) & 1
        inside = int(within[-1]) if len(within) else inside
        outside = (within == 0) & (kinds != ord('"'))
        places, kinds = places[outside], kinds[outside]
        depths = (np.cumsum(_STEP[kinds], dtype=np.int32) + depth).astype(np.int32, copy=False)
        depth = int(depths[-1]) if len(depths) else depth
        yield places + low, kinds, depths
        low = high


def _escaped(data: npt.NDArray[np.uint8], escaping: bool) -> tuple[npt.NDArray[np.bool_], bool]:
    """Whether an odd number of backslashes stands before each byte, and before the one after the last.

    ``escaping``: so it is with the first.
    """
    slash = data == ord("\\")
    index = np.arange(len(data), dtype=np.int32)
    before = np.maximum.accumulate(np.where(slash, np.int32(-1), index))
    run = index - before
    if escaping:
        run[before < 0] += 1
    out = np.empty(len(data), np.bool_)
    out[0] = escaping
    out[1:] = (run[:-1] & 1) == 1
    return out, bool(run[-1] & 1)
