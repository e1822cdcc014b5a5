"""Record ids in columns: integers as one ``bytes`` field, strings beside them, kinds where both occur."""

import sys
from array import array
from collections.abc import Iterable
from itertools import compress
from typing import Final

from vecdb.core.errors import InvalidId, LimitExceeded
from vecdb.core.ids import RecordId, check_id
from vecdb.core.limits import MAX_BATCH_RECORDS, MAX_ID_BYTES, MAX_INT_ID
from vecdb.v1 import types_pb2 as pb

_SWAP: Final = sys.byteorder == "big"
_KINDS: Final = frozenset((0, 1))


def _packed(numbers: Iterable[RecordId]) -> bytes:
    """int64 little-endian; raises TypeError for a string."""
    out: array[int] = array("q", numbers)  # type: ignore[arg-type]
    if _SWAP:
        out.byteswap()
    return out.tobytes()


def ids_to_wire(ids: Iterable[RecordId]) -> pb.Ids:
    """Write checked ids; the order is kept."""
    msg = pb.Ids()
    put_ids(msg, ids)
    return msg


def put_ids(msg: pb.Ids, ids: Iterable[RecordId]) -> None:
    """:func:`ids_to_wire` in place."""
    listed = ids if isinstance(ids, list | tuple) else list(ids)
    try:
        msg.integers = _packed(listed)
        return
    except TypeError:
        strings = [one for one in listed if isinstance(one, str)]
    msg.strings.extend(strings)
    if len(strings) < len(listed):
        msg.integers = _packed(one for one in listed if not isinstance(one, str))
        msg.kinds = bytes(isinstance(one, str) for one in listed)


def ids_from_wire(msg: pb.Ids, argument: str = "ids", most: int = MAX_BATCH_RECORDS) -> list[RecordId]:
    """Return the ids in their order, or raise :class:`InvalidId` naming the place (LimitExceeded above ``most``)."""
    data, kinds = msg.integers, msg.kinds
    if len(data) % 8:
        raise InvalidId(argument, f"{len(data)} bytes of integers are not whole int64s", got=len(data),
                        limit="a multiple of 8")
    texts = msg.strings
    count = (len(data) >> 3) + len(texts)
    if count > most:
        raise LimitExceeded(argument, f"{count} in one call, more than {most}", got=count, limit=most)
    packed = array("q", data)
    if _SWAP:
        packed.byteswap()
    numbers = packed.tolist()
    strings: list[str] = list(texts) if texts else []
    if not kinds:
        if numbers and strings:
            raise InvalidId(argument, "integers and strings together need kinds, a byte for each id", got="no kinds",
                            limit=f"{count} bytes")
        kinds = bytes((1,)) * count if strings else b""
    elif len(kinds) != count or kinds.count(1) != len(strings) or not _KINDS.issuperset(kinds):
        raise InvalidId(argument, f"kinds do not fit {len(numbers)} integers and {len(strings)} strings",
                        got=f"{len(kinds)} bytes", limit="0 for each integer and 1 for each string")
    if numbers and min(numbers) < 0:
        _refuse_numbers(numbers, kinds, argument)
    if strings:
        _check_strings(strings, kinds, argument)
        if numbers:
            rest, words = iter(numbers), iter(strings)
            return [next(words) if kind else next(rest) for kind in kinds]
        return strings  # type: ignore[return-value]
    return numbers  # type: ignore[return-value]


def _places(kinds: bytes, count: int, kind: int) -> list[int]:
    """Where the ids of one kind stand."""
    return list(compress(range(count), kinds if kind else (not one for one in kinds)))


def _refuse_numbers(numbers: list[int], kinds: bytes, argument: str) -> None:
    places = _places(kinds, len(kinds), 0) if kinds else range(len(numbers))
    for place, number in zip(places, numbers, strict=True):
        if number < 0:
            raise InvalidId(f"{argument}[{place}]", f"integer id {number} is outside 0..2**63-1", got="int",
                            limit=MAX_INT_ID)


def _check_strings(strings: list[str], kinds: bytes, argument: str) -> None:
    lengths = list(map(len, strings))
    # No character takes more than four bytes.
    if min(lengths) > 0 and max(lengths) <= MAX_ID_BYTES // 4:
        return
    for place, text in zip(_places(kinds, len(kinds), 1), strings, strict=True):
        if not text or len(text) > MAX_ID_BYTES // 4:
            try:
                check_id(text)
            except InvalidId as error:
                raise InvalidId(f"{argument}[{place}]", error.message.partition(": ")[2], got=error.fields["got"],
                                limit=error.fields["limit"]) from None
