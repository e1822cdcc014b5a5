"""The nodes of a cluster as settings name them: ``n1=host:7702,n2=host:7702``.

A node's name is a label of a DNS name, for certificates carry it as one (``n1.prod.vecdb.internal``), and so is the
cluster's.  All of it raises a plain ValueError that says what would be accepted; callers know what the value was for.
"""

import re
from collections.abc import Iterable, Mapping
from ipaddress import IPv6Address, ip_address
from typing import Any, Final

MAX_NODES: Final = 7
"""That found a cluster: they vote on what it is, and more voters only cost latency.  Others join it."""
PEER_PORT: Final = 7702
_LABEL: Final = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_ZONE: Final = re.compile(r"[A-Za-z0-9._-]{1,63}")


def check_label(name: str, what: str) -> str:
    """A name of a node or cluster."""
    if not _LABEL.fullmatch(name):
        raise ValueError(f"{name[:80]!r} is no name of a {what}; it has 1 to 63 characters of a-z, 0-9 and -, and "
                         "neither begins nor ends with -")
    return name


def split_address(address: str) -> tuple[str, int]:
    """``host:port`` as its two parts, an IPv6 host without its brackets."""
    host, colon, port = address.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    good = colon and host and port.isascii() and port.isdigit() and 1 <= int(port) <= 65535 \
        and (bracketed or ":" not in host) and not any(one.isspace() or one in "/,=" for one in host)
    if not good:
        raise ValueError(f"{address[:80]!r} is no address; write host:7702, or [::1]:7702")
    return host.strip("[]"), int(port)


def parse_nodes(text: str) -> dict[str, str]:
    """``n1=host:7702,n2=host:7702``; the empty text names none."""
    nodes: dict[str, str] = {}
    for part in filter(None, (one.strip() for one in text.split(","))):
        name, sign, address = part.partition("=")
        if not sign:
            raise ValueError(f"{part[:80]!r} is no node; write n1=host:7702,n2=host:7702")
        if name.strip() in nodes:
            raise ValueError(f"the node {name.strip()[:80]!r} stands there twice")
        nodes[name.strip()] = address.strip()
    return nodes


def check_nodes(nodes: Mapping[str, str]) -> dict[str, str]:
    """Names and addresses, each address once, in the order of the names."""
    if len(nodes) > MAX_NODES:
        raise ValueError(f"{len(nodes)} nodes, more than {MAX_NODES}: so many may found a cluster, others join it "
                         "(cluster.join)")
    seen: dict[tuple[str, int], str] = {}
    for name, address in nodes.items():
        check_label(name, "node")
        other = seen.setdefault(split_address(address), name)
        if other != name:
            raise ValueError(f"{other} and {name} have the same address, {address}")
    return dict(sorted(nodes.items()))


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches ``host``."""
    host = host.strip("[]").partition("%")[0].lower()
    if host == "localhost" or host.startswith("unix:"):
        return True
    try:
        address = ip_address(host)
    except ValueError:  # a name: whatever it means today
        return False
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return (mapped or address).is_loopback


def all_loopback(addresses: Iterable[str]) -> bool:
    """Whether none of these ``host:port`` is reached from another machine."""
    return all(is_loopback(split_address(address)[0]) for address in addresses)


def bracketed(host: str) -> str:
    """A host as it stands before a port."""
    return f"[{host}]" if ":" in host and not host.startswith("[") else host


def check_addresses(addresses: tuple[str, ...]) -> tuple[str, ...]:
    """Addresses of nodes, each once, in the order given."""
    for address in addresses:
        split_address(address)
    if len(addresses) > MAX_NODES:
        raise ValueError(f"{len(addresses)} addresses, more than {MAX_NODES}: some nodes that are there are enough")
    return tuple(dict.fromkeys(addresses))


def check_advertised(address: str) -> str:
    """An address that others are told; empty: none."""
    if address:
        host, _ = split_address(address)
        if is_wildcard(host):
            raise ValueError(f"{address[:80]!r} is every address of this machine, and leads others nowhere; write the "
                             "one that they reach it at")
    return address


def check_zone(zone: str) -> str:
    """The name of a zone; empty: none."""
    if zone and not _ZONE.fullmatch(zone):
        raise ValueError(f"{zone[:80]!r} is no name of a zone; it has up to 63 letters, digits, dots, - and _")
    return zone


def is_wildcard(host: str) -> bool:
    """Whether ``host`` means every address of a machine."""
    return host.strip("[]") in ("", "*", "0.0.0.0", "::", "0", "0:0:0:0:0:0:0:0")  # noqa: S104  # none is bound here


def cluster_rules(cluster: Any, me: str, ports: tuple[int, ...]) -> tuple[tuple[Any, ...], ...]:
    """What must not be in ``[cluster]`` (:class:`vecdb.sections.ClusterSettings`) beside the node's own name and ports.

    Whether something is wrong, what, and the settings that may be at fault.
    """
    if not cluster.name:
        found = next((name for name in ("nodes", "join") if getattr(cluster, name)), "")
        return ((found, "needs cluster.name: without one a node is alone", f"cluster.{found}"),)
    files = {f"cluster.{name}": getattr(cluster, name) for name in ("cert_file", "key_file", "ca_file")}
    secured = any(files.values())
    if not cluster.nodes and not cluster.join:
        return ((True, "must name the nodes of the cluster, this one too: n1=host:7702,n2=host:7702; or say where to "
                 "join one that is there: cluster.join=host:7702", "cluster.nodes", "cluster.name"),)
    belonging = _joining_rules(cluster, me) if cluster.join else _founding_rules(cluster, me)
    if any(wrong for wrong, *_ in belonging):
        return belonging
    where, port = "cluster.join" if cluster.join else "cluster.nodes", cluster.listens_on(me)
    reached = [*cluster.nodes.values(), *cluster.join, cluster.address(me), f"{bracketed(cluster.host)}:1"]
    return (
        (secured and not all(files.values()), "is one of three, cert_file, key_file and ca_file, and the others are "
         "not all given", *(name for name, file in files.items() if file)),
        (cluster.insecure and secured, "is true, and there are certificates, which would not be used",
         "cluster.insecure"),
        (not secured and not cluster.insecure and not all_loopback(reached),
         "reach other machines without TLS: whoever gets there could change any record.  Give cluster.cert_file, "
         "key_file and ca_file (vecdb cluster certs makes them), or say cluster.insecure=true where the network itself "
         "is safe", where, "cluster.host", "cluster.advertise"),
        (not 3 * cluster.heartbeat_s <= cluster.election_s_min < cluster.election_s_max,
         f"must be at least three times heartbeat_s, {cluster.heartbeat_s:g} s, and below election_s_max, "
         f"{cluster.election_s_max:g} s", "cluster.election_s_min", "cluster.heartbeat_s", "cluster.election_s_max"),
        (port in ports, f"have this node's peer listener on port {port}, which is server.grpc_port or http_port too",
         where, "cluster.peer_port", "cluster.advertise"),
    )


def _founding_rules(cluster: Any, me: str) -> tuple[tuple[Any, ...], ...]:
    known = ", ".join(cluster.nodes)
    return (
        (cluster.nodes.get(me) is None, f"{me!r} is not among cluster.nodes ({known})" if me else
         f"must say which of cluster.nodes this node is ({known})", "server.node_id", "cluster.nodes"),
        (cluster.role == "shard", "is for nodes that join: those of cluster.nodes found the cluster, and vote",
         "cluster.role"),
    )


def _joining_rules(cluster: Any, me: str) -> tuple[tuple[Any, ...], ...]:
    why = ""
    try:
        check_label(me, "node")
    except ValueError as error:
        why = str(error)
    host = split_address(cluster.address(me))[0]
    return (
        (bool(cluster.nodes), "is given, and cluster.nodes too: a node founds a cluster with others, or joins one",
         "cluster.join", "cluster.nodes"),
        (not me, "must say how the node that joins is called", "server.node_id", "cluster.join"),
        (why, why, "server.node_id"),
        (is_wildcard(host) or (is_loopback(host) and not all_loopback(cluster.join)),
         f"must say where other nodes reach this one (host:7702): cluster.host, {cluster.host}, does not",
         "cluster.advertise", "cluster.join", "cluster.host"),
    )
