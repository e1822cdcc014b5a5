"""API keys: made, listed, rotated, revoked, and checked at every call.

Rows of a store of their own: ``f`` → the format, written with the first key; ``k`` id → JSON of the key with salted
hashes of its secrets; ``u`` id → when it was last used.  The folder is made when the first key is, so a database
without keys has none.

Secrets are kept as SHA-256 with a salt, not with a slow hash such as scrypt: slowness makes up for passwords that
people think up, and here 256 random bits are searched no sooner at a billion guesses a second than at ten.  A slow
hash would only hand strangers a way to burn a node's CPU with wrong keys.  The salt keeps rows of two nodes that were
given the same secret from looking alike.
"""

import secrets
import threading
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, TypeAlias

import orjson

from vecdb.core.access import Grant, Key, Role, check_grants
from vecdb.core.errors import (
    DataCorrupted,
    InvalidArgument,
    LimitExceeded,
    StorageReadOnly,
    VecdbError,
)
from vecdb.core.limits import MAX_KEYS
from vecdb.ports.clock import Clock
from vecdb.ports.store import Store
from vecdb.ports.stores import OpenStore
from vecdb.services.key_checks import (
    MAX_OVERLAP_S,
    MAX_TTL_S,
    Hash,
    KeyChecks,
    Row,
    Table,
    check_name,
    check_seconds,
)
from vecdb.shard.mutations import Mutations

FORMAT: Final = b"1"
KEPT_DEAD_S: Final = 90 * 86_400.0
"""How long a revoked or expired key stays in the list, for those who read the audit log."""

_FIRST: Final = b"f"
_Rows: TypeAlias = list[tuple[bytes, bytes]]


class KeyRing(KeyChecks):
    """The API keys of a node, in the folder ``path``.

    ``check`` and ``principal`` take no lock, touch no disk and cost about a microsecond for a secret seen before; the
    others may wait for the disk and are for worker threads.  Every change is durable when its method returns; one
    that raised may or may not have happened, except that a revocation holds for this process in any case.
    ``entropy(n)``: n random bytes.
    """

    def __init__(self, path: Path, open_store: OpenStore, clock: Clock, *, read_only: bool = False,
                 entropy: Callable[[int], bytes] = secrets.token_bytes) -> None:
        super().__init__(clock, entropy)
        self._path, self._open = path, open_store
        self._read_only = read_only
        self._lock = threading.Lock()
        self._store: Store | None = None
        self._broken = False
        self._refused: VecdbError | None = None
        self._table = Table({})
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

    def _current(self) -> Table:
        return self._table

    known = True
    """A node that is alone has all its keys as soon as it is open."""

    def good(self) -> int:
        """How many are not revoked."""
        return sum(not key.revoked for key in self.list())

    # -- changing

    def create(self, name: str, grants: Iterable[Grant], ttl_s: float = 0.0) -> tuple[Key, str]:
        """Make a key and its secret, which nothing but the caller ever holds.  ``ttl_s`` 0: does not expire."""
        check_name(name)
        checked = check_grants(grants)
        ttl_s = check_seconds("ttl_s", ttl_s, MAX_TTL_S)
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
            self._change(puts=[Row(key, (hashed,))], deletes=dead)
            return key, secret

    def rotate(self, id: str, overlap_s: float = 0.0) -> tuple[Key, str]:
        """Give a key a new secret; the one it replaces stays good for ``overlap_s``, one before that ends now."""
        overlap_s = check_seconds("overlap_s", overlap_s, MAX_OVERLAP_S)
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
                self._table = Table(self._table.rows)
            self._settle()
            row = self._row(id)
            if not row.key.revoked:
                self._change(puts=[replace(row, key=replace(row.key, revoked=True), revoked_s=self._clock.wall())])
            self._barred.discard(id)
            return self._told(self._table.rows[id].key)

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

    def _change(self, puts: Sequence[Row], deletes: Iterable[str] = ()) -> None:
        """Write durably, then show."""
        gone = set(deletes)
        for id in gone:
            self._unwritten.pop(id, None)
        rows = [(b"k" + row.key.id.encode(), _to_json(row)) for row in puts]
        self._write(Mutations(deletes=[letter + id.encode() for id in gone for letter in (b"k", b"u")],
                              puts=[(_FIRST, FORMAT), *rows, *self._uses()]), sync=True)
        kept = {id: row for id, row in self._table.rows.items() if id not in gone}
        self._table = Table({**kept, **{row.key.id: row for row in puts}})
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
        self._table = Table(rows)
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


def _to_json(row: Row) -> bytes:
    key = row.key
    return orjson.dumps({
        "name": key.name, "grants": [[grant.role.word, grant.collections] for grant in key.grants],
        "created_s": key.created_s, "expires_s": key.expires_s, "revoked_s": row.revoked_s,
        "secrets": [[one.salt.hex(), one.digest.hex(), one.until_s] for one in row.hashes]})


def _from_json(store_key: bytes, value: bytes, path: Path) -> Row:
    try:
        parts: dict[str, Any] = orjson.loads(value)
        grants = tuple(Grant(Role.of(role), tuple(names)) for role, names in parts["grants"])
        key = Key(store_key[1:].decode(), parts["name"], grants, parts["created_s"], parts["expires_s"],
                  revoked=parts["revoked_s"] > 0.0)
        hashes = tuple(Hash(bytes.fromhex(salt), bytes.fromhex(digest), until_s)
                       for salt, digest, until_s in parts["secrets"])
        return Row(key, hashes, parts["revoked_s"])
    except (ValueError, KeyError, TypeError, VecdbError) as error:
        raise DataCorrupted("the row of an API key cannot be understood", path=str(path)) from error
