"""What is common to the keys of a node and those of a cluster: checking secrets, telling of keys, making secrets."""

import hashlib
import hmac
from abc import ABC, abstractmethod
from base64 import b32encode
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Final, NamedTuple, TypeAlias

from vecdb.core.access import KEY_ID, SECRET, Key, Principal, mask_secrets
from vecdb.core.errors import InvalidArgument, KeyNotFound, LimitExceeded, Unauthenticated
from vecdb.core.limits import MAX_NAME_BYTES
from vecdb.ports.clock import Clock

USED_EVERY_S: Final = 60.0
"""How exact ``last_used_s`` is."""

MAX_TTL_S: Final = 100 * 366 * 86_400.0
MAX_OVERLAP_S: Final = 90 * 86_400.0
_SECRET_LENGTH: Final = 4 + 12 + 1 + 52
_SHOWN: Final = len("vdb_abcdefgh2345_***")
"""Characters of what was asked for as an id that an error repeats: far from a whole secret."""


class Hash(NamedTuple):
    """Of one secret.  ``until_s``: when it ceases to be good by rotation; 0: it does not."""

    salt: bytes
    digest: bytes
    until_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Row:
    key: Key
    hashes: tuple[Hash, ...]
    revoked_s: float = 0.0

    @property
    def dead_since_s(self) -> float:
        """When it ceased to be good, or will; 0: never."""
        ends = [end for end in (self.revoked_s, self.key.expires_s) if end]
        return min(ends, default=0.0)


@dataclass(frozen=True, slots=True)
class Hit:
    """A secret that was found good; ``until_s``: when it is to be looked at again; 0: never."""

    key: Key
    principal: Principal
    until_s: float


@dataclass(frozen=True, slots=True)
class Table:
    """The keys as of one change.  A change makes a new one, whose ``hits`` are empty: nothing outlives a revocation."""

    rows: dict[str, Row]
    hits: dict[bytes, Hit] = field(default_factory=dict)


_Keys: TypeAlias = list[Key]


class KeyChecks(ABC):
    """``check`` and ``principal`` take no lock, touch no disk and cost about a microsecond for a secret seen before.

    ``entropy(n)``: n random bytes.
    """

    def __init__(self, clock: Clock, entropy: Callable[[int], bytes]) -> None:
        self._clock, self._entropy = clock, entropy
        self._barred: set[str] = set()
        self._used: dict[str, float] = {}
        self._unwritten: dict[str, float] = {}

    @abstractmethod
    def _current(self) -> Table:
        """The keys as they are; another table after every change."""

    # -- checking

    def check(self, secret: str) -> Key:
        """The key of a secret, or :class:`Unauthenticated`, which tells no one whether an id exists."""
        return self._hit(secret).key

    def principal(self, secret: str) -> Principal:
        """As :meth:`check`: the caller that the secret stands for."""
        return self._hit(secret).principal

    def _hit(self, secret: str) -> Hit:
        if len(secret) != _SECRET_LENGTH:  # before anything is made of what may be megabytes
            raise unknown()
        seen = hashlib.sha256(secret.encode("utf-8", "surrogatepass")).digest()
        table = self._current()
        now = self._clock.wall()
        hit = table.hits.get(seen)
        if hit is None or 0.0 < hit.until_s <= now:
            hit = self._look_up(table, secret, now)
            table.hits[seen] = hit
        last = self._used.get(hit.key.id, 0.0)
        if not 0.0 <= now - last < USED_EVERY_S:  # a clock set back counts as a new use
            self._used[hit.key.id] = self._unwritten[hit.key.id] = now
        return hit

    def _look_up(self, table: Table, secret: str, now: float) -> Hit:
        parts = SECRET.fullmatch(secret)
        row = table.rows.get(parts[1]) if parts else None
        # An unknown id takes the same steps as a known one, against a hash that nothing matches.
        hashes = row.hashes if row is not None else (Hash(b"", b""),)
        found = None
        for one in hashes:
            if hmac.compare_digest(digest_of(one.salt, secret), one.digest):
                found = one
        if row is None or found is None:
            raise unknown()
        key = row.key
        if key.revoked or key.id in self._barred:
            raise Unauthenticated(f"the API key {key.id} was revoked", key=key.id, reason="revoked")
        if key.expired(now):
            raise Unauthenticated(f"the API key {key.id} has expired", key=key.id, reason="expired")
        if 0.0 < found.until_s <= now:
            raise Unauthenticated(f"the API key {key.id} was rotated, and this secret is no longer good",
                                  key=key.id, reason="rotated")
        ends = [end for end in (key.expires_s, found.until_s) if end]
        return Hit(key, Principal(key.id, key.name, key.grants), min(ends, default=0.0))

    # -- telling

    def list(self) -> _Keys:
        """All keys, the oldest first; those revoked or expired for less than 90 days too."""
        return sorted((self._told(row.key) for row in self._current().rows.values()),
                      key=lambda key: (key.created_s, key.id))

    def get(self, id: str) -> Key:
        """The key of that id, or :class:`KeyNotFound`."""
        return self._told(self._row(id).key)

    def _told(self, key: Key) -> Key:
        return replace(key, last_used_s=self._used.get(key.id, 0.0), revoked=key.revoked or key.id in self._barred)

    # -- rows

    def _row(self, id: str) -> Row:
        row = self._current().rows.get(id)
        if row is None:
            shown = _asked(id)
            good = isinstance(id, str) and KEY_ID.fullmatch(id)
            raise KeyNotFound(f"no API key of the id {shown}" if good else
                              f"no API key of the id {shown!r}: an id is the 12 characters after 'vdb_'", id=shown)
        return row

    def _new_id(self) -> str:
        while True:
            id = b32encode(self._entropy(8)).decode()[:12].lower()
            if id not in self._current().rows:
                return id

    def _new_secret(self, id: str) -> tuple[str, Hash]:
        secret = f"vdb_{id}_{b32encode(self._entropy(32)).decode().rstrip('=').lower()}"
        salt = self._entropy(16)
        return secret, Hash(salt, digest_of(salt, secret))


def digest_of(salt: bytes, secret: str) -> bytes:
    return hashlib.sha256(salt + secret.encode("utf-8", "surrogatepass")).digest()


def _asked(id: object) -> str:
    """An id as it was asked for; of what may be a secret pasted by mistake, only what is none of it."""
    text = mask_secrets(id if isinstance(id, str) else repr(id))
    return text if len(text) <= _SHOWN else f"{text[:4]}…"


def unknown() -> Unauthenticated:
    return Unauthenticated("the API key is not known here", reason="unknown")


def check_name(name: object) -> None:
    if not isinstance(name, str) or not name.strip() or not name.isprintable():
        raise InvalidArgument("name", f"{name!r:.60} must be printable text that says whose key it is",
                              got=type(name).__name__, limit="printable, not empty")
    if len(name.encode()) > MAX_NAME_BYTES:
        raise LimitExceeded("name", f"{len(name.encode())} bytes, more than {MAX_NAME_BYTES}", got=len(name.encode()),
                            limit=MAX_NAME_BYTES)


def check_seconds(argument: str, value: object, most: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0.0 <= value <= most:
        raise InvalidArgument(argument, f"{value!r:.40} is not within 0..{most:.0f} seconds", got=repr(value)[:40],
                              limit=f"0..{most:.0f}")
    return float(value)
