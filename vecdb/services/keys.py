"""API keys: made, listed, rotated, revoked, and checked at every call.

Rows of a store of their own: ``f`` → the format, written with the first key; ``k`` id → JSON of the key with salted
hashes of its secrets; ``u`` id → when it was last used.  The folder is made when the first key is, so a database
without keys has none.

Secrets are kept as SHA-256 with a salt, not with a slow hash such as scrypt: slowness makes up for passwords that
people think up, and here 256 random bits are searched no sooner at a billion guesses a second than at ten.  A slow
hash would only hand strangers a way to burn a node's CPU with wrong keys.  The salt keeps rows of two nodes that were
given the same secret from looking alike.
"""

import hashlib
import hmac
import secrets
import threading
from base64 import b32encode
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeAlias

import orjson

from vecdb.core.access import KEY_ID, SECRET, Grant, Key, Principal, Role, check_grants, mask_secrets
from vecdb.core.errors import (
    DataCorrupted,
    InvalidArgument,
    KeyNotFound,
    LimitExceeded,
    StorageReadOnly,
    Unauthenticated,
    VecdbError,
)
from vecdb.core.limits import MAX_KEYS, MAX_NAME_BYTES
from vecdb.ports.clock import Clock
from vecdb.ports.store import Store
from vecdb.ports.stores import OpenStore
from vecdb.shard.mutations import Mutations

FORMAT: Final = b"1"
USED_EVERY_S: Final = 60.0
"""How exact ``last_used_s`` is."""

KEPT_DEAD_S: Final = 90 * 86_400.0
"""How long a revoked or expired key stays in the list, for those who read the audit log."""

MAX_TTL_S: Final = 100 * 366 * 86_400.0
MAX_OVERLAP_S: Final = 90 * 86_400.0
_SECRET_LENGTH: Final = 4 + 12 + 1 + 52
_FIRST: Final = b"f"
_SHOWN: Final = len("vdb_abcdefgh2345_***")
"""Characters of what was asked for as an id that an error repeats: far from a whole secret."""


class _Hash(NamedTuple):
    """Of one secret.  ``until_s``: when it ceases to be good by rotation; 0: it does not."""

    salt: bytes
    digest: bytes
    until_s: float = 0.0


@dataclass(frozen=True, slots=True)
class _Row:
    key: Key
    hashes: tuple[_Hash, ...]
    revoked_s: float = 0.0

    @property
    def dead_since_s(self) -> float:
        """When it ceased to be good, or will; 0: never."""
        ends = [end for end in (self.revoked_s, self.key.expires_s) if end]
        return min(ends, default=0.0)


@dataclass(frozen=True, slots=True)
class _Hit:
    """A secret that was found good; ``until_s``: when it is to be looked at again; 0: never."""

    key: Key
    principal: Principal
    until_s: float


@dataclass(frozen=True, slots=True)
class _Table:
    """The keys as of one change.  A change makes a new one, whose ``hits`` are empty: nothing outlives a revocation."""

    rows: dict[str, _Row]
    hits: dict[bytes, _Hit] = field(default_factory=dict)


_Rows: TypeAlias = list[tuple[bytes, bytes]]
_Keys: TypeAlias = list[Key]


class KeyRing:
    """The API keys of a node, in the folder ``path``.

    ``check`` and ``principal`` take no lock, touch no disk and cost about a microsecond for a secret seen before; the
    others may wait for the disk and are for worker threads.  Every change is durable when its method returns; one
    that raised may or may not have happened, except that a revocation holds for this process in any case.
    ``entropy(n)``: n random bytes.
    """

    def __init__(self, path: Path, open_store: OpenStore, clock: Clock, *, read_only: bool = False,
                 entropy: Callable[[int], bytes] = secrets.token_bytes) -> None:
        self._path, self._open, self._clock, self._entropy = path, open_store, clock, entropy
        self._read_only = read_only
        self._lock = threading.Lock()
        self._store: Store | None = None
        self._broken = False
        self._refused: VecdbError | None = None
        self._table = _Table({})
        self._barred: set[str] = set()
        self._used: dict[str, float] = {}
        self._unwritten: dict[str, float] = {}
        self._required = path.is_dir()
        if self._required:
            self._attach()

    @property
    def required(self) -> bool:
        """Whether there is or ever was a key: revoking the last one does not throw the doors open.

        A folder without rows counts too, which is what an interrupted first ``create`` leaves: closed is the safe
        side, and ``create`` on the directory, or an ``admin_key``, opens it.
        """
        return self._required

    # -- checking

    def check(self, secret: str) -> Key:
        """The key of a secret, or :class:`Unauthenticated`, which tells no one whether an id exists."""
        return self._hit(secret).key

    def principal(self, secret: str) -> Principal:
        """As :meth:`check`: the caller that the secret stands for."""
        return self._hit(secret).principal

    def _hit(self, secret: str) -> _Hit:
        if len(secret) != _SECRET_LENGTH:  # before anything is made of what may be megabytes
            raise _unknown()
        seen = hashlib.sha256(secret.encode("utf-8", "surrogatepass")).digest()
        table = self._table
        now = self._clock.wall()
        hit = table.hits.get(seen)
        if hit is None or 0.0 < hit.until_s <= now:
            hit = self._look_up(table, secret, now)
            table.hits[seen] = hit
        last = self._used.get(hit.key.id, 0.0)
        if not 0.0 <= now - last < USED_EVERY_S:  # a clock set back counts as a new use
            self._used[hit.key.id] = self._unwritten[hit.key.id] = now
        return hit

    def _look_up(self, table: _Table, secret: str, now: float) -> _Hit:
        parts = SECRET.fullmatch(secret)
        row = table.rows.get(parts[1]) if parts else None
        # An unknown id takes the same steps as a known one, against a hash that nothing matches.
        hashes = row.hashes if row is not None else (_Hash(b"", b""),)
        found = None
        for one in hashes:
            if hmac.compare_digest(_digest(one.salt, secret), one.digest):
                found = one
        if row is None or found is None:
            raise _unknown()
        key = row.key
        if key.revoked or key.id in self._barred:
            raise Unauthenticated(f"the API key {key.id} was revoked", key=key.id, reason="revoked")
        if key.expired(now):
            raise Unauthenticated(f"the API key {key.id} has expired", key=key.id, reason="expired")
        if 0.0 < found.until_s <= now:
            raise Unauthenticated(f"the API key {key.id} was rotated, and this secret is no longer good",
                                  key=key.id, reason="rotated")
        ends = [end for end in (key.expires_s, found.until_s) if end]
        return _Hit(key, Principal(key.id, key.name, key.grants), min(ends, default=0.0))

    # -- changing

    def create(self, name: str, grants: Iterable[Grant], ttl_s: float = 0.0) -> tuple[Key, str]:
        """Make a key and its secret, which nothing but the caller ever holds.  ``ttl_s`` 0: does not expire."""
        _check_name(name)
        checked = check_grants(grants)
        ttl_s = _seconds("ttl_s", ttl_s, MAX_TTL_S)
        with self._lock:
            self._settle()
            now = self._clock.wall()
            dead = [id for id, row in self._table.rows.items() if 0.0 < row.dead_since_s < now - KEPT_DEAD_S]
            if len(self._table.rows) - len(dead) >= MAX_KEYS:
                raise LimitExceeded("keys", f"there are {MAX_KEYS} keys; those revoked or expired are removed after "
                                    f"{KEPT_DEAD_S / 86_400:.0f} days", got=len(self._table.rows), limit=MAX_KEYS)
            id = self._new_id()
            secret, hashed = self._new_secret(id)
            key = Key(id, name, checked, now, now + ttl_s if ttl_s else 0.0)
            self._change(puts=[_Row(key, (hashed,))], deletes=dead)
            return key, secret

    def rotate(self, id: str, overlap_s: float = 0.0) -> tuple[Key, str]:
        """Give a key a new secret; the one it replaces stays good for ``overlap_s``, one before that ends now."""
        overlap_s = _seconds("overlap_s", overlap_s, MAX_OVERLAP_S)
        with self._lock:
            self._settle()
            row, now = self._row(id), self._clock.wall()
            revoked = row.key.revoked or id in self._barred
            if revoked or row.key.expired(now):
                state = "revoked" if revoked else "expired"
                raise InvalidArgument("id", f"the API key {id} is {state}; create a new one", got=state,
                                      limit="a key in use")
            secret, hashed = self._new_secret(id)
            old = (row.hashes[0]._replace(until_s=now + overlap_s),) if overlap_s else ()
            self._change(puts=[replace(row, hashes=(hashed, *old))])
            return self._told(row.key), secret

    def revoke(self, id: str) -> Key:
        """End a key at once and for good; once more does nothing."""
        with self._lock:
            known = id in self._table.rows
            if known:  # before the disk is asked: it may refuse, or take its time
                self._barred.add(id)
                self._table = _Table(self._table.rows)
            self._settle()
            row = self._row(id)
            if not row.key.revoked:
                self._change(puts=[replace(row, key=replace(row.key, revoked=True), revoked_s=self._clock.wall())])
            self._barred.discard(id)
            return self._told(self._table.rows[id].key)

    # -- telling

    def list(self) -> _Keys:
        """All keys, the oldest first; those revoked or expired for less than 90 days too."""
        return sorted((self._told(row.key) for row in self._table.rows.values()),
                      key=lambda key: (key.created_s, key.id))

    def get(self, id: str) -> Key:
        """The key of that id, or :class:`KeyNotFound`."""
        return self._told(self._row(id).key)

    def _told(self, key: Key) -> Key:
        return replace(key, last_used_s=self._used.get(key.id, 0.0), revoked=key.revoked or key.id in self._barred)

    def record_uses(self) -> None:
        """Write down when keys were last used, not synced; to be called about once a minute.  Never raises for a disk
        that refuses: what was not written is written next time."""
        with self._lock, suppress(VecdbError):
            if self._unwritten and not self._read_only:
                self._settle()
                self._write(Mutations(puts=self._uses()), sync=False)

    def close(self) -> None:
        self.record_uses()
        with self._lock:
            store, self._store = self._store, None
            if store is not None:
                store.close()

    # -- rows

    def _row(self, id: str) -> _Row:
        row = self._table.rows.get(id)
        if row is None:
            shown = _asked(id)
            good = isinstance(id, str) and KEY_ID.fullmatch(id)
            raise KeyNotFound(f"no API key of the id {shown}" if good else
                              f"no API key of the id {shown!r}: an id is the 12 characters after 'vdb_'", id=shown)
        return row

    def _new_id(self) -> str:
        while True:
            id = b32encode(self._entropy(8)).decode()[:12].lower()
            if id not in self._table.rows:
                return id

    def _new_secret(self, id: str) -> tuple[str, _Hash]:
        secret = f"vdb_{id}_{b32encode(self._entropy(32)).decode().rstrip('=').lower()}"
        salt = self._entropy(16)
        return secret, _Hash(salt, _digest(salt, secret))

    def _change(self, puts: Sequence[_Row], deletes: Iterable[str] = ()) -> None:
        """Write durably, then show."""
        gone = set(deletes)
        for id in gone:
            self._unwritten.pop(id, None)
        rows = [(b"k" + row.key.id.encode(), _to_json(row)) for row in puts]
        self._write(Mutations(deletes=[letter + id.encode() for id in gone for letter in (b"k", b"u")],
                              puts=[(_FIRST, FORMAT), *rows, *self._uses()]), sync=True)
        kept = {id: row for id, row in self._table.rows.items() if id not in gone}
        self._table = _Table({**kept, **{row.key.id: row for row in puts}})
        self._required = True
        for id in gone:
            self._used.pop(id, None)

    def _uses(self) -> _Rows:
        return [(b"u" + id.encode(), b"%.0f" % used) for id, used in self._unwritten.copy().items()]

    def _write(self, mutations: Mutations, *, sync: bool) -> None:
        """The caller has settled what an earlier refusal left."""
        if self._read_only:
            raise StorageReadOnly(f"the keys at {self._path} were opened read-only", path=str(self._path))
        store = self._store
        if store is None:
            store = self._store = self._open(self._path, read_only=self._read_only)
        self._broken = True
        store.write(mutations)
        if sync:
            store.sync()
        self._broken = False
        for key, value in mutations.puts:
            if key[:1] == b"u" and b"%.0f" % self._unwritten.get(key[1:].decode(), -1.0) == value:
                self._unwritten.pop(key[1:].decode(), None)

    def _settle(self) -> None:
        """After a refused write: open the store anew, take its word for what was written, and make that durable."""
        if not self._broken:
            return
        store, self._store = self._store, None
        if store is not None:
            with suppress(VecdbError):
                store.close()
        self._attach()
        if self._refused is not None:
            raise self._refused

    def _attach(self) -> None:
        store = self._open(self._path, read_only=self._read_only)
        try:
            first = store.multi_get([_FIRST])[0]
            if first not in (None, FORMAT):
                raise DataCorrupted(f"{self._path} holds keys of a format this version does not know",
                                    path=str(self._path))
            rows = {row.key.id: row for row in (_from_json(key, value, self._path)
                                                for key, value in store.scan(b"k", b"l"))}
            if rows and first is None:
                raise DataCorrupted(f"{self._path} has lost its first row", path=str(self._path))
            for key, value in store.scan(b"u", b"v"):
                id = key[1:].decode()
                self._used[id] = max(self._used.get(id, 0.0), float(value))
        except BaseException:
            store.close()
            raise
        self._store = store
        self._table = _Table(rows)
        self._required = self._required or first is not None
        self._refused = None if self._read_only else _synced(store)
        self._broken = self._refused is not None


def _synced(store: Store) -> VecdbError | None:
    """Make durable what the last process may have left written only; a disk that refuses is no reason not to open."""
    try:
        store.sync()
    except VecdbError as error:
        return error
    return None


def _digest(salt: bytes, secret: str) -> bytes:
    return hashlib.sha256(salt + secret.encode("utf-8", "surrogatepass")).digest()


def _asked(id: object) -> str:
    """An id as it was asked for; of what may be a secret pasted by mistake, only what is none of it."""
    text = mask_secrets(id if isinstance(id, str) else repr(id))
    return text if len(text) <= _SHOWN else f"{text[:4]}…"


def _unknown() -> Unauthenticated:
    return Unauthenticated("the API key is not known here", reason="unknown")


def _check_name(name: object) -> None:
    if not isinstance(name, str) or not name.strip() or not name.isprintable():
        raise InvalidArgument("name", f"{name!r:.60} must be printable text that says whose key it is",
                              got=type(name).__name__, limit="printable, not empty")
    if len(name.encode()) > MAX_NAME_BYTES:
        raise LimitExceeded("name", f"{len(name.encode())} bytes, more than {MAX_NAME_BYTES}", got=len(name.encode()),
                            limit=MAX_NAME_BYTES)


def _seconds(argument: str, value: object, most: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0.0 <= value <= most:
        raise InvalidArgument(argument, f"{value!r:.40} is not within 0..{most:.0f} seconds", got=repr(value)[:40],
                              limit=f"0..{most:.0f}")
    return float(value)


def _to_json(row: _Row) -> bytes:
    key = row.key
    return orjson.dumps({
        "name": key.name, "grants": [[grant.role.word, grant.collections] for grant in key.grants],
        "created_s": key.created_s, "expires_s": key.expires_s, "revoked_s": row.revoked_s,
        "secrets": [[one.salt.hex(), one.digest.hex(), one.until_s] for one in row.hashes]})


def _from_json(store_key: bytes, value: bytes, path: Path) -> _Row:
    try:
        parts: dict[str, Any] = orjson.loads(value)
        grants = tuple(Grant(Role.of(role), tuple(names)) for role, names in parts["grants"])
        key = Key(store_key[1:].decode(), parts["name"], grants, parts["created_s"], parts["expires_s"],
                  revoked=parts["revoked_s"] > 0.0)
        hashes = tuple(_Hash(bytes.fromhex(salt), bytes.fromhex(digest), until_s)
                       for salt, digest, until_s in parts["secrets"])
        return _Row(key, hashes, parts["revoked_s"])
    except (ValueError, KeyError, TypeError, VecdbError) as error:
        raise DataCorrupted("the row of an API key cannot be understood", path=str(path)) from error
