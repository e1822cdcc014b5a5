"""What a Database has written, so that its own reads find it on whichever replica they meet.

A write's result names a shard and a place in its log.  The places are remembered by collection, the furthest of each
shard, and go with session reads: a replica that is not that far yet waits until it is.  Nothing written means nothing
to wait for, and a node that is alone says no shard at all, so there a read is as it always was.

Of a collection that was **dropped** a place is remembered that its log never comes to.  So a replica that has not heard
of it yet does not answer from what it still holds; numbers of shards grow, and the last one's says it of all before.
Reads of the strongest consistency name their shards too, without places: a leader knows how far its own log is, and not
that another shard has the name by now.

Collections that were not written for longest are forgotten beyond :data:`MOST_COLLECTIONS`; from then on a session
read of a collection that is not remembered asks for the strongest consistency instead, which finds the more.

A **token** is what is remembered, as text, for another process to go on from: what MongoDB calls the times of a
causally consistent session, and Cosmos DB a session token.  Where each collection has one shard it is JSON, which
earlier versions read too; else it is written close: shards by their distance to the one before, numbers of seven bits a
byte, some four bytes a shard.  One that would be longer than :data:`MAX_TOKEN` leaves out the collections that were
written to longest ago, and says that it does: whoever uses it then reads those as if they had been forgotten.
"""

import base64
import binascii
import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any, Final, TypeAlias

import orjson

from vecdb.client.options import kind_of
from vecdb.core.calls import Call, Consistency
from vecdb.core.errors import InvalidArgument, LimitExceeded
from vecdb.core.limits import MAX_POSITIONS
from vecdb.core.records import WriteResult
from vecdb.core.schema import check_name

MOST_COLLECTIONS: Final = 4_096
MAX_TOKEN: Final = 1 << 20
"""Longest token read: more than all collections with a shard each need."""
_PREFIX: Final = "vecdb1."
_CLOSE: Final = "vecdb2."
_FORGOT: Final = 1
_BYTES: Final = MAX_TOKEN * 3 // 4 - 64
_MOST: Final = (1 << 63) - 1
GONE: Final = _MOST
"""A place that no log comes to."""

Pairs: TypeAlias = tuple[tuple[int, int], ...]


class Positions:
    """The furthest place written, by collection and shard; any number of threads may use it at once.

    Reading takes no lock: what is remembered of a collection is replaced, never changed.
    """

    __slots__ = ("_forgot", "_known", "_lock", "default")

    def __init__(self, default: Consistency = Consistency.SESSION) -> None:
        self.default = default
        self._known: OrderedDict[str, Pairs] = OrderedDict()
        self._lock = threading.Lock()
        self._forgot = False

    def saw(self, name: str, result: WriteResult) -> None:
        """A write to ``name`` was acknowledged."""
        if result.positions:
            self._merge(name, result.positions)

    def _merge(self, name: str, pairs: Pairs) -> None:
        with self._lock:
            known = self._known.get(name, ())
            furthest = dict(known)
            for shard, log_index in pairs:
                furthest[shard] = max(furthest.get(shard, 0), log_index)
            while len(furthest) > MAX_POSITIONS:
                del furthest[min(furthest)]  # shards' numbers grow, and the lowest is of a collection long dropped
            self._known[name] = tuple(sorted(furthest.items()))
            self._known.move_to_end(name)
            self._bound()

    def _bound(self) -> None:
        while len(self._known) > MOST_COLLECTIONS:
            _, lost = self._known.popitem(last=False)
            self._forgot = self._forgot or any(log_index != GONE for _, log_index in lost)

    def dropped(self, name: str, known: Pairs) -> None:
        """The collection was dropped; ``known``: what was remembered of it before that began.

        What came since is of one made anew, and stays.
        """
        if not known:
            return
        last = known[-1][0]
        with self._lock:
            since = tuple(one for one in self._known.get(name, ()) if one[0] > last)
            self._known[name] = ((last, GONE), *since)
            if not since:
                self._known.move_to_end(name, last=False)  # it is what can be done without first
            self._bound()

    def of(self, name: str) -> Pairs:
        """What is remembered of a collection."""
        return self._known.get(name, ())

    def call(self, name: str, call: Call | None, consistency: Consistency | None) -> Call | None:
        """``call`` as a read of ``name`` is to be made; the same where nothing needs to be said."""
        wanted = consistency or self.default
        session: Pairs = ()
        if wanted is Consistency.SESSION:
            session = self._known.get(name, ())
            if not session:
                if not self._forgot:
                    return call
                wanted = Consistency.LINEARIZABLE
        elif wanted is Consistency.EVENTUAL:
            return call
        else:  # where a log is now its leader says, but not that the shard is the one that has the name by now
            known = self._known.get(name, ())
            session = tuple((shard, GONE if log_index == GONE else 0) for shard, log_index in known)
        if call is None:
            return Call(consistency=wanted, session=session)
        return replace(call, consistency=wanted, session=session)

    def token(self, names: Iterable[str] | None = None) -> str:
        """What is remembered, of ``names`` or of all collections."""
        known = dict(self._known)
        told = known if names is None else {name: known[name] for name in names if name in known}
        if not self._forgot and all(len(pairs) < 2 for pairs in told.values()):
            text = _text(_PREFIX, orjson.dumps(told))
            if len(text) <= MAX_TOKEN:
                return text
        return _text(_CLOSE, _close(told, self._forgot))

    def use(self, token: object) -> None:
        """Remember what a token says, beside what is remembered already; raises InvalidArgument for what is none."""
        told, forgot = _read(token)
        for name, pairs in told.items():
            if pairs:
                self._merge(name, pairs)
        self._forgot = self._forgot or forgot


def _text(prefix: str, raw: bytes) -> str:
    return prefix + base64.urlsafe_b64encode(raw).decode().rstrip("=")


def _close(told: dict[str, Pairs], forgot: bool) -> bytes:
    """Flags, then of each collection, from the one written to last: its name, how many shards, and their places."""
    parts: list[bytes] = []
    size = 1
    for name, pairs in reversed(told.items()):
        raw = name.encode()
        one = bytearray((*_number(len(raw)), *raw, *_number(len(pairs))))
        before = 0
        for shard, log_index in pairs:
            one += bytes((*_number(shard - before), *_number(log_index)))
            before = shard
        size += len(one)
        if size > _BYTES:
            forgot = True
            break
        parts.append(bytes(one))
    return bytes((_FORGOT if forgot else 0,)) + b"".join(parts)


def _number(value: int) -> Iterator[int]:
    while value > 0x7F:
        yield value & 0x7F | 0x80
        value >>= 7
    yield value


class _Reader:
    """Over the bytes of a close token; raises ``IndexError`` at their end."""

    def __init__(self, raw: bytes) -> None:
        self.raw, self.at = raw, 0

    def number(self) -> int:
        value = shift = 0
        while True:
            byte = self.raw[self.at]
            self.at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value
            if shift > 63:
                raise ValueError("a number of more than 64 bits")

    def text(self) -> str:
        size = self.number()
        if self.at + size > len(self.raw):
            raise IndexError
        self.at += size
        return self.raw[self.at - size:self.at].decode()


def _read_close(raw: bytes) -> tuple[dict[str, Any], bool]:
    """Collections in the order in which they were written to, and whether there were others."""
    reader = _Reader(raw)
    flags = reader.number()
    found: list[tuple[str, list[list[int]]]] = []
    while reader.at < len(raw):
        name, pairs, shard = reader.text(), [], 0
        for _ in range(reader.number()):
            shard += reader.number()
            pairs.append([shard, reader.number()])
        found.append((name, pairs))
    return dict(reversed(found)), bool(flags & _FORGOT)


def _read(token: object) -> tuple[dict[str, Pairs], bool]:
    if not isinstance(token, str):
        raise InvalidArgument("session_token", f"must be a str, not {kind_of(token)}", got=kind_of(token),
                              limit="what session_token() returned")
    if len(token) > MAX_TOKEN:
        raise LimitExceeded("session_token", f"{len(token)} characters, more than {MAX_TOKEN}", got=len(token),
                            limit=MAX_TOKEN)
    close = token.startswith(_CLOSE)
    text = token.removeprefix(_CLOSE if close else _PREFIX)
    if text == token:
        raise _wrong("has not the form of one")
    forgot = False
    try:
        raw = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
        if close:
            value, forgot = _read_close(raw)
        else:
            value = orjson.loads(raw)
    except (binascii.Error, ValueError, IndexError):
        raise _wrong("is cut or changed") from None
    if not isinstance(value, dict):
        raise _wrong("is cut or changed")
    try:
        return {check_name(name): tuple(map(_pair, pairs)) for name, pairs in value.items()}, forgot
    except (InvalidArgument, TypeError):
        raise _wrong("holds what is no place in a log") from None


def _pair(pair: Any) -> tuple[int, int]:
    if isinstance(pair, list) and len(pair) == 2 and all(type(one) is int and 0 <= one <= _MOST for one in pair):
        return pair[0], pair[1]
    raise TypeError


def _wrong(why: str) -> InvalidArgument:
    return InvalidArgument("session_token", why, got="a str", limit="what session_token() returned")
