"""Who may join a cluster: tokens, and what is asked of a node before it is one.

A **token** reads ``vdj_<id>_<secret>``; the id is no secret and names it in lists and logs, the secret is 256 random
bits in base32.  The control state keeps a salted hash of it, when it ends, and what a node may be that joins with it.
It may be used any number of times until it ends or is revoked, for a set of nodes is usually given one.

What is true of the moment (who was heard lately, what the time is) is the caller's; a clock is the leader's alone.
"""

import hashlib
import hmac
import re
from base64 import b32encode
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Final

from vecdb.cluster.control import VERSION, NodeEntry, TokenEntry
from vecdb.core.cluster import MAX_CLUSTER_NODES, NodeState, Role
from vecdb.core.errors import InvalidArgument, JoinRefused
from vecdb.core.nodes import check_advertised, check_label, check_zone, split_address

TOKEN: Final = re.compile(r"vdj_([a-z2-7]{12})_([a-z2-7]{52})")
MAX_CAPACITY: Final = 1_000.0
_VERSION: Final = re.compile(r"([0-9]{1,6})\.([0-9]{1,6})(\D.*)?")


@dataclass(frozen=True, slots=True)
class Release:
    """What runs on a node: the release's number, and the latest version of control commands that it reads."""

    version: str
    commands: int = VERSION


@dataclass(frozen=True, slots=True)
class Candidate:
    """A node as it describes itself; ``number``: of its disk; ``commands``: the latest control commands it reads."""

    name: str
    number: int
    address: str
    client_address: str = ""
    http_address: str = ""
    role: Role = Role.SHARD
    zone: str = ""
    capacity: float = 1.0
    version: str = ""
    commands: int = 1

    def entry(self, before: NodeEntry | None, now_s: float) -> NodeEntry:
        """What the control state should have of it; as it is, where nothing has changed.

        A node that had left is active again, one that drains goes on.
        """
        state, joined_s = NodeState.ACTIVE, now_s
        if before is not None and before.state is not NodeState.LEFT:
            state, joined_s = before.state, before.joined_s
        made = NodeEntry(self.name, self.address, self.client_address, self.http_address, self.role, self.zone,
                         self.capacity, state, self.version, self.commands, joined_s, now_s)
        return before if before is not None and made == replace(before, updated_s=now_s) else made


def check_candidate(one: Candidate) -> Candidate:
    """``InvalidArgument`` where a node describes itself as what no settings can say."""
    try:
        check_label(one.name, "node")
        split_address(one.address)
        check_advertised(one.address)
        for address in (one.client_address, one.http_address):
            if address:
                split_address(address)
        check_zone(one.zone)
    except ValueError as error:
        raise InvalidArgument("node", str(error), got=one.name[:80]) from None
    if not 0.0 < one.capacity <= MAX_CAPACITY:
        raise InvalidArgument("capacity", f"must be above 0 and at most {MAX_CAPACITY:g}", got=one.capacity,
                              limit=MAX_CAPACITY)
    if not 0 <= one.number < 1 << 32 or len(one.version) > 64 or not 1 <= one.commands < 1 << 16:
        raise InvalidArgument("node", "has a number or version that makes no sense", got=one.version[:80])
    return one


# --- tokens ---------------------------------------------------------------------------------------


def make_token(entropy: Callable[[int], bytes], now_s: float, ttl_s: float = 0.0, roles: Iterable[Role] = ()
               ) -> tuple[TokenEntry, str]:
    """What the control state keeps, and the token, which nobody else ever holds.  ``ttl_s`` 0: it does not end."""
    id = b32encode(entropy(8)).decode()[:12].lower()
    token = f"vdj_{id}_{b32encode(entropy(32)).decode().rstrip('=').lower()}"
    salt = entropy(16)
    return TokenEntry(id, salt.hex(), _digest(salt, token).hex(), now_s + ttl_s if ttl_s else 0.0,
                      tuple(sorted(set(roles))), now_s), token


def check_token(token: str, tokens: Mapping[str, TokenEntry], role: Role, now_s: float) -> TokenEntry:
    """The token's entry, or :class:`JoinRefused`, which tells no one whether an id exists."""
    parts = TOKEN.fullmatch(token) if len(token) <= 128 else None
    found = tokens.get(parts[1]) if parts else None
    salt, digest = (bytes.fromhex(found.salt), bytes.fromhex(found.digest)) if found is not None else (b"", b"")
    good = hmac.compare_digest(_digest(salt, token), digest)
    if found is None or not good:
        raise JoinRefused("this cluster has no such token: vecdb cluster token makes one" if token else
                          "a node joins with a token, and none was given: cluster.token or cluster.token_file",
                          reason="token")
    if 0.0 < found.expires_s <= now_s:
        raise JoinRefused(f"the token {found.id} has expired: make a new one", reason="token_expired", token=found.id)
    if found.roles and role not in found.roles:
        allowed = ", ".join(found.roles)
        raise JoinRefused(f"the token {found.id} is for nodes of the role {allowed}, not {role}", reason="role",
                          token=found.id, role=role.value)
    return found


def _digest(salt: bytes, token: str) -> bytes:
    return hashlib.sha256(salt + token.encode("utf-8", "surrogatepass")).digest()


# --- nodes ----------------------------------------------------------------------------------------


def check_version(version: str, others: Iterable[str]) -> None:
    """:class:`JoinRefused` unless ``version`` is at most one minor away from each of ``others``.

    What is no number of a release is let in: a build from a checkout.
    """
    mine = _VERSION.fullmatch(version)
    for other in others:
        theirs = _VERSION.fullmatch(other)
        if mine and theirs and (mine[1] != theirs[1] or abs(int(mine[2]) - int(theirs[2])) > 1):
            raise JoinRefused(f"this node is of version {version[:40]}, and the cluster has nodes of {other[:40]}: "
                              "they may be one minor version apart", reason="version", version=version[:40],
                              others=other[:40])


def check_room(one: Candidate, nodes: Mapping[str, NodeEntry]) -> None:
    """:class:`JoinRefused` where the cluster has as many nodes as it may, or another of the same address."""
    there = {name: entry for name, entry in nodes.items() if entry.state is not NodeState.LEFT and name != one.name}
    if len(there) >= MAX_CLUSTER_NODES:
        raise JoinRefused(f"the cluster has {len(there)} nodes, as many as it may", reason="full")
    taken = next((name for name, entry in there.items() if entry.address == one.address), None)
    if taken is not None:
        raise JoinRefused(f"{one.address} is the address of node {taken}", reason="name_in_use", node=taken)


def check_name_free(name: str, number: int, known: int | None, heard_s: float | None, lately_s: float) -> None:
    """:class:`JoinRefused` where a node of the name was heard from lately by another disk: there are two.

    ``known``: the number it told of itself; ``heard_s``: how long ago; None: never since the leader leads.
    """
    if known is not None and known != number and heard_s is not None and heard_s < lately_s:
        raise JoinRefused(f"there is a node {name} already, heard from {heard_s:.1f} s ago, with another disk: two "
                          "nodes have this name.  Give this one another (server.node_id), or stop the other; if it was "
                          f"lost, wait until it was silent for {lately_s:g} s", reason="name_in_use", node=name)
