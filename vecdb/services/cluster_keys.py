"""The API keys of a cluster: in the control state, so that every node knows them at once and lets the same callers in.

What was found good is remembered until the control state has other keys, so a revocation holds on a node from the
moment it has applied it, and on the one that was asked even before.  Keys are made, rotated and revoked by commands of
the control group, whichever node is asked.

**Keys of a node's own directory**, made there before it was a node of a cluster or by ``vecdb key`` while it was down,
let callers in on that node alone, as they always did; they are listed there with the others and can be revoked there.

**A node that knows no control state yet** (it is new, or its disk is) cannot tell whether keys are asked for, so it
lets nobody in: :meth:`ClusterKeys.check_known`.
"""

import secrets
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Final, TypeAlias

from vecdb.cluster.control import ApiKeyEntry
from vecdb.cluster.control.commands import api_key_put, api_key_revoke
from vecdb.core.access import SECRET, Grant, Key, Principal, check_grants
from vecdb.core.errors import UNFOUNDED, InvalidArgument, KeyNotFound, Unavailable
from vecdb.ports.clock import Clock
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
from vecdb.services.keys import KeyRing

KEY_BYTES: Final = 16
TURN_S: Final = 10.0
_Keys: TypeAlias = list[Key]


class ClusterKeys(KeyChecks):
    """As :class:`vecdb.services.keys.KeyRing`.

    ``entries()``: the control state's, another mapping after every change; ``known()``: whether there is a control
    state here.  ``change(command)`` has a command done and ``catch_up()`` lets this node learn all that was
    acknowledged; both block, until it is applied here, and raise ``VecdbError``.  ``own``: the keys of this node's
    directory.
    """

    def __init__(self, entries: Callable[[], Mapping[str, ApiKeyEntry]], known: Callable[[], bool],
                 change: Callable[[bytes], object], catch_up: Callable[[], object], own: KeyRing, clock: Clock, *,
                 entropy: Callable[[int], bytes] = secrets.token_bytes) -> None:
        super().__init__(clock, entropy)
        self._entries = entries
        self._known = known
        self._change = change
        self._catch_up = catch_up
        self._own = own
        self._lock = threading.Lock()
        self._seen: Mapping[str, ApiKeyEntry] = {}
        self._table = Table({})

    def _current(self) -> Table:
        entries = self._entries()
        if entries is not self._seen:
            table = Table({id: _row(entry) for id, entry in entries.items()})
            self._seen, self._table = entries, table
        return self._table

    @property
    def required(self) -> bool:
        """Whether there is a key, good or not, of the cluster or of this node."""
        return bool(self._entries()) or self._own.required

    @property
    def known(self) -> bool:
        """Whether this node can tell if keys are asked for."""
        return self._known()

    def check_known(self, waits_for: Callable[[], Sequence[str]] = tuple, unfounded: Callable[[], bool] = bool) -> None:
        """Raise ``Unavailable`` while it is not, and say what it waits for; with ``unfounded`` in the fields where that
        is nodes that were never there: clients wait for those no longer than a moment.
        """
        if not self._known():
            why = "; ".join(waits_for())
            unknown = "does not know the keys of its cluster yet"
            more = {UNFOUNDED: True} if unfounded() else {}
            raise Unavailable(f"{why}; until that is over this node {unknown}, and lets nobody in" if why else
                              f"this node {unknown}", retry_after_s=0.2, **more)

    # -- checking

    def check(self, secret: str) -> Key:
        return self._own.check(secret) if self._is_own(secret) else super().check(secret)

    def principal(self, secret: str) -> Principal:
        return self._own.principal(secret) if self._is_own(secret) else super().principal(secret)

    def _is_own(self, secret: str) -> bool:
        if not self._own.required:
            return False
        parts = SECRET.fullmatch(secret) if len(secret) < 128 else None
        return parts is not None and parts[1] not in self._current().rows

    # -- changing

    def create(self, name: str, grants: Iterable[Grant], ttl_s: float = 0.0) -> tuple[Key, str]:
        """Make a key of the cluster and its secret, which nothing but the caller ever holds."""
        check_name(name)
        checked = check_grants(grants)
        ttl_s = check_seconds("ttl_s", ttl_s, MAX_TTL_S)
        id, now = self._new_id(), self._clock.wall()
        secret, hashed = self._new_secret(id)
        key = Key(id, name, checked, now, now + ttl_s if ttl_s else 0.0)
        self._put(Row(key, (hashed,)), now)
        return key, secret

    def rotate(self, id: str, overlap_s: float = 0.0) -> tuple[Key, str]:
        overlap_s = check_seconds("overlap_s", overlap_s, MAX_OVERLAP_S)
        with self._turn():
            self._catch_up()
            if self._has_own(id):
                return self._own.rotate(id, overlap_s)
            row, now = self._row(id), self._clock.wall()
            revoked = row.key.revoked or id in self._barred
            if revoked or row.key.expired(now):
                state = "revoked" if revoked else "expired"
                raise InvalidArgument("id", f"the API key {id} is {state}; create a new one", got=state,
                                      limit="a key in use")
            secret, hashed = self._new_secret(id)
            old = (row.hashes[0]._replace(until_s=now + overlap_s),) if overlap_s else ()
            self._put(replace(row, hashes=(hashed, *old)), now)
            return self._told(row.key), secret

    def revoke(self, id: str) -> Key:
        """End a key at once and for good; once more does nothing."""
        if id in self._current().rows:  # before others are asked, or waited for, who may take their time
            self._barred.add(id)
            self._table = Table(self._table.rows)
        with self._turn():
            self._catch_up()
            if self._has_own(id):
                return self._own.revoke(id)
            if not self._row(id).key.revoked:
                self._change(api_key_revoke(id, at_s=self._clock.wall(), key=self._entropy(KEY_BYTES)))
            if self._row(id).key.revoked:
                self._barred.discard(id)
            return self._told(self._row(id).key)

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """One change of a key that is there at a time; one that waits for the cluster holds up the others so long."""
        if not self._lock.acquire(timeout=TURN_S):
            raise Unavailable("another change of API keys waits for the control group; this one was not begun, but a "
                              "key to be revoked is good on this node no more", retry_after_s=1.0)
        try:
            yield
        finally:
            self._lock.release()

    def _put(self, row: Row, now: float) -> None:
        key = row.key
        self._change(api_key_put(ApiKeyEntry(
            key.id, key.name, key.grants, tuple((one.salt.hex(), one.digest.hex(), one.until_s) for one in row.hashes),
            key.created_s, key.expires_s, row.revoked_s), at_s=now, key=self._entropy(KEY_BYTES)))

    def _has_own(self, id: str) -> bool:
        """Whether a key is of this node's directory and not the cluster's."""
        if id in self._current().rows or not self._own.required:
            return False
        try:
            self._own.get(id)
        except KeyNotFound:
            return False
        return True

    # -- telling

    def list(self) -> _Keys:
        """Those of the cluster and of this node's directory, the oldest first; all that were made before the call."""
        self._catch_up()
        return sorted([*super().list(), *(self._own.list() if self._own.required else ())],
                      key=lambda key: (key.created_s, key.id))

    def get(self, id: str) -> Key:
        return self._own.get(id) if self._has_own(id) else super().get(id)

    def good(self) -> int:
        """How many are not revoked, as far as this node knows."""
        return sum(not key.revoked for key in (*super().list(), *(self._own.list() if self._own.required else ())))

    def record_uses(self) -> None:
        """Of the node's own; of others each node knows the last use since it started."""
        self._own.record_uses()


def _row(entry: ApiKeyEntry) -> Row:
    key = Key(entry.id, entry.name, entry.grants, entry.created_s, entry.expires_s, revoked=entry.revoked_s > 0.0)
    return Row(key, tuple(Hash(bytes.fromhex(salt), bytes.fromhex(digest), until_s)
                          for salt, digest, until_s in entry.secrets), entry.revoked_s)
