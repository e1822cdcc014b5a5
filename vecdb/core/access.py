"""Who may do what: roles, grants, API keys, and the caller of one call.

A secret reads ``vdb_<id>_<secret>``: the id, twelve characters of base32, is no secret and names the key in lists and
logs; the secret is 256 random bits in base32.  Both alphabets are ``a-z2-7``, so a double click takes all of it.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Final, NamedTuple

from vecdb.core.errors import InvalidArgument, LimitExceeded, PermissionDenied
from vecdb.core.limits import MAX_GRANT_COLLECTIONS, MAX_GRANTS, MAX_NAME_BYTES
from vecdb.core.schema import check_name

KEY_ID: Final = re.compile(r"[a-z2-7]{12}")
SECRET: Final = re.compile(r"vdb_([a-z2-7]{12})_([a-z2-7]{52})")
_LOOKS_LIKE_SECRET = re.compile(r"vdb_([a-z2-7]{12})_[A-Za-z0-9_\-]+")


class Role(IntEnum):
    """Each includes those before it.  On a whole server ``ADMIN`` also manages keys."""

    READ = 1
    WRITE = 2
    ADMIN = 3

    @property
    def word(self) -> str:
        return self.name.lower()

    @classmethod
    def of(cls, word: "str | int | Role") -> "Role":
        """The role of that name or number, or :class:`InvalidArgument`."""
        try:
            return cls[word.upper()] if isinstance(word, str) else cls(word)
        except (KeyError, ValueError):
            raise InvalidArgument("role", f"unknown role {word!r:.40}; known are read, write, admin",
                                  got=repr(word)[:40], limit="read, write, admin") from None


@dataclass(frozen=True, slots=True)
class Grant:
    """``role`` on the collections named; each a name, or a prefix ending in ``*``.  None named: on all, and the server.

    Checked when made: :class:`InvalidArgument` or :class:`LimitExceeded` name what is wrong.
    """

    role: Role
    collections: tuple[str, ...] = ()
    _names: frozenset[str] = field(init=False, repr=False, compare=False)
    _prefixes: tuple[str, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        put = object.__setattr__
        put(self, "role", Role.of(self.role))
        put(self, "collections", _patterns(self.collections))
        put(self, "_names", frozenset(name for name in self.collections if not name.endswith("*")))
        put(self, "_prefixes", tuple(name[:-1] for name in self.collections if name.endswith("*")))

    def covers(self, collection: str | None) -> bool:
        """Whether it speaks of that collection; None is the whole server."""
        if not self.collections:
            return True
        return collection is not None and (collection in self._names or collection.startswith(self._prefixes))


def _patterns(given: Iterable[str]) -> tuple[str, ...]:
    if isinstance(given, str):
        raise InvalidArgument("collections", "give a list of names, not one string", got="str", limit="a list")
    patterns = tuple(given)
    if len(patterns) > MAX_GRANT_COLLECTIONS:
        raise LimitExceeded("collections", f"{len(patterns)} names, more than {MAX_GRANT_COLLECTIONS}; a prefix ending "
                            "in '*' stands for many", got=len(patterns), limit=MAX_GRANT_COLLECTIONS)
    for pattern in patterns:
        # One letter stands for what the '*' may match, so that "*" and a prefix of full length go through one check.
        check_name(pattern[:-1][: MAX_NAME_BYTES - 1] + "x" if isinstance(pattern, str) and pattern.endswith("*")
                   else pattern)
        if len(pattern) > MAX_NAME_BYTES + 1:
            raise LimitExceeded("collections", f"{len(pattern)} characters, more than {MAX_NAME_BYTES}",
                                got=len(pattern), limit=MAX_NAME_BYTES)
    return () if "*" in patterns else patterns


def check_grants(grants: Iterable[Grant]) -> tuple[Grant, ...]:
    """At least one and at most ``MAX_GRANTS`` grants, or the error that says so."""
    checked = tuple(grants)
    if not checked:
        raise InvalidArgument("grants", "a key needs a grant: a role, and on which collections", got=0,
                              limit="1 or more")
    if len(checked) > MAX_GRANTS:
        raise LimitExceeded("grants", f"{len(checked)} grants, more than {MAX_GRANTS}", got=len(checked),
                            limit=MAX_GRANTS)
    return checked


@dataclass(frozen=True, slots=True)
class Key:
    """An API key as it is told: nothing in it is secret.  Times are seconds since 1970 UTC; 0: never."""

    id: str
    name: str
    grants: tuple[Grant, ...]
    created_s: float
    expires_s: float = 0.0
    last_used_s: float = 0.0
    revoked: bool = False

    def expired(self, now_s: float) -> bool:
        return 0.0 < self.expires_s <= now_s


class NewKey(NamedTuple):
    """A key that was just made or rotated, and its ``secret``, told this once; ``key, secret = …`` takes it apart."""

    key: Key
    secret: str

    def __repr__(self) -> str:
        return f"NewKey(key={self.key!r}, secret='***')"


@dataclass(frozen=True, slots=True)
class Principal:
    """Who makes a call.  ``id``: of the key, empty without one.  ``certificate``: the name in a client's certificate.

    ``name``: the key's, else the certificate's, else what stands in for both ("anonymous", "admin_key").
    ``address``: where a caller without a key is, who has no other name to count calls by.
    """

    id: str
    name: str
    grants: tuple[Grant, ...]
    certificate: str = ""
    address: str = ""

    @property
    def label(self) -> str:
        """For logs and :attr:`vecdb.core.calls.Call.principal`: name and key id, nothing secret."""
        return f"{self.name}[{self.id}]" if self.id else self.name

    def allows(self, role: Role, collection: str | None = None) -> bool:
        """Whether a grant gives ``role`` on ``collection``; None: on the whole server."""
        for grant in self.grants:  # noqa: SIM110 - asked at every call, and any() costs twice as much
            if grant.role >= role and (not grant.collections or grant.covers(collection)):
                return True
        return False

    def require(self, role: Role, collection: str | None = None) -> None:
        """Raise :class:`PermissionDenied` naming what is needed.

        To be asked before the collection is looked up: a name outside the grants is then refused alike whether it
        exists or not, and nobody can try out names.
        """
        if not self.allows(role, collection):
            where = "the whole server" if collection is None else f"the collection {collection!r}"
            raise PermissionDenied(f"{self.label} lacks the role {role.word} on {where}", needs=role.word,
                                   collection=collection, key=self.id)

    def visible(self, collections: Iterable[str]) -> list[str]:
        """Those of ``collections`` the principal may read."""
        return [name for name in collections if self.allows(Role.READ, name)]

    @property
    def everywhere(self) -> Role | None:
        """The highest role held on the whole server."""
        return max((grant.role for grant in self.grants if grant.covers(None)), default=None)


EVERYTHING: Final = (Grant(Role.ADMIN),)
ANONYMOUS: Final = Principal("", "anonymous", EVERYTHING)
"""The caller where no keys are asked for."""


def mask_secrets(text: str) -> str:
    """``text`` with every API key in it cut down to its id, for logs."""
    return _LOOKS_LIKE_SECRET.sub(r"vdb_\1_***", text) if "vdb_" in text else text
