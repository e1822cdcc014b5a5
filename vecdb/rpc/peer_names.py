"""Who a node is to other nodes: the name in its certificate, and what it says of itself with every call.

**The certificate** of node ``n1`` of the cluster ``prod`` has ``n1.prod.vecdb.internal`` among the DNS names of its
SAN; nobody asks a name server for it.  A listener believes nothing else, and callers check that a node is the one.

**The greeting** stands in the user agent, so that it is on every call of a channel, whatever its kind, and is looked at
before any of the call's message has been read: ``vecdb-peer/1 (prod; n1; n2; 18a3b5c7d9e0f123) …`` is protocol 1, the
cluster, who speaks, whom it means, and the number of the process, which grows from start to start while its clock does.
Between nodes without TLS it is all there is.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Self

PROTOCOL: Final = 1
"""Of everything on the peer port; a newer node speaks the older one until all are new."""
DOMAIN: Final = "vecdb.internal"
_LABEL: Final = "[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
_AGENT: Final = re.compile(rf"vecdb-peer/([1-9][0-9]{{0,4}}) \(({_LABEL}); ({_LABEL}); ({_LABEL}); ([0-9a-f]{{1,16}})\)"
                           "(?: .*)?")
MAX_AGENT_BYTES: Final = 512


def certificate_name(node: str, cluster: str) -> str:
    """The DNS name in a node's certificate."""
    return f"{node}.{cluster}.{DOMAIN}"


def certified(names: Iterable[str], cluster: str) -> set[str]:
    """The nodes of the cluster that are named by a certificate with these DNS names."""
    end = f".{cluster}.{DOMAIN}"
    return {name[:-len(end)] for name in map(str.lower, names)
            if name.endswith(end) and re.fullmatch(_LABEL, name[:-len(end)])}


def named(name: str) -> tuple[str, str]:
    """The node and the cluster that a certificate's DNS name means; two empty ones if it is not of such a form."""
    found = re.fullmatch(rf"({_LABEL})\.({_LABEL})\.{re.escape(DOMAIN)}", name.lower())
    return (found[1], found[2]) if found else ("", "")


@dataclass(frozen=True, slots=True)
class Greeting:
    """What a caller says of itself: see the module.  ``incarnation`` is the number of its process, of 64 bits."""

    cluster: str
    node: str
    to: str
    incarnation: int
    protocol: int = PROTOCOL
    confirmed: bool = False
    """Not said, but found out: this very process answers at the node's address."""

    def agent(self) -> str:
        return f"vecdb-peer/{self.protocol} ({self.cluster}; {self.node}; {self.to}; {self.incarnation:x})"

    @classmethod
    def read(cls, agent: str) -> Self | None:
        """The greeting in a user agent; None if there is none."""
        found = _AGENT.fullmatch(agent) if len(agent) <= MAX_AGENT_BYTES else None
        if found is None:
            return None
        protocol, cluster, node, to, incarnation = found.groups()
        return cls(cluster, node, to, int(incarnation, 16), int(protocol))
