"""What ``vecdb doctor`` looks at of a cluster: this node's part in it, the other nodes, and the shards."""

import socket
import ssl
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from vecdb.cli import exits
from vecdb.cli.machine import Check
from vecdb.cli.output import count, duration, size
from vecdb.core.cluster import CLOCK_OFF_S, SILENT_S, SLOW_SYNC_S, disk_state
from vecdb.core.errors import (
    DeadlineExceeded,
    InvalidArgument,
    PermissionDenied,
    Unauthenticated,
    Unavailable,
    Unsupported,
)
from vecdb.core.nodes import all_loopback, bracketed, is_wildcard, split_address
from vecdb.core.shards import UNREACHABLE

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from vecdb.client.database import Database
    from vecdb.config import ClusterSettings, Settings
    from vecdb.core.shards import ReplicaInfo, ShardInfo

SOON_S: Final = 14 * 86_400.0
_PEER_S: Final = 2.0


def certificate_ends(path: "Path", name: str, advice: str) -> Check:
    """When the first to end of a PEM file's certificates does."""
    from vecdb.rpc.certificates import expiries

    ends = min(expiries(path.read_text(encoding="ascii", errors="replace")), default=0.0)
    left = ends - time.time()
    text = f"{path} ends {datetime.fromtimestamp(ends, UTC):%Y-%m-%d %H:%M} UTC"
    if left <= 0:
        return Check(name, "fail", text, advice, exits.PRECONDITION)
    return Check(name, "warn", text, advice) if left < SOON_S else Check(name, "ok", text)


def cluster(settings: "Settings") -> list[Check]:
    """This node's settings and certificate for its cluster, and whether the other nodes are there."""
    if not settings.cluster.name:
        return []
    checks = [_membership(settings.cluster, settings.server.node_id), *here(settings), *_certificate(settings)]
    if any(one.state == "fail" for one in checks):
        return checks
    if settings.cluster.join:
        return [*checks, *(_peer(settings.cluster, "", address) for address in settings.cluster.join)]
    return [*checks, *(_peer(settings.cluster, node, address) for node, address in settings.cluster.nodes.items()
                       if node != settings.server.node_id)]


def here(settings: "Settings") -> list[Check]:
    """What this node says of itself on its HTTP port, if it runs: why it is not ready, and what is amiss."""
    import json
    from http.client import HTTPConnection, HTTPException, HTTPSConnection

    server = settings.server
    if server.http_port <= 0 or server.host.startswith("unix:"):
        return []
    host = "127.0.0.1" if is_wildcard(server.host) else server.host.strip("[]")
    secure = settings.tls.cert_file is not None
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # what it is asked for is shown to anybody
    asked = HTTPSConnection(host, server.http_port, timeout=_PEER_S, context=context) if secure \
        else HTTPConnection(host, server.http_port, timeout=_PEER_S)
    url = f"{'https' if secure else 'http'}://{bracketed(host)}:{server.http_port}/readyz"
    try:
        asked.request("GET", "/readyz")
        raw = asked.getresponse().read(1 << 20)
    except (OSError, HTTPException):
        return []  # it does not run, and what else is wrong the other checks say
    finally:
        asked.close()
    try:
        told = json.loads(raw)
        amiss = [str(one) for one in (*told["reasons"], *told.get("warnings", ()))]
    except (ValueError, KeyError, TypeError):
        return []  # something else is at that port
    if not amiss:
        return [Check("this node", "ok", f"{url}: it is ready")]
    return [Check("this node", "warn", f"{url}: {'; '.join(amiss)}", "" if told.get("ready") else "it serves once that "
                  "is over")]


def _membership(cluster: "ClusterSettings", me: str) -> Check:
    if cluster.join:
        return Check("cluster", "ok", f"{cluster.name}: {me} joins as {cluster.part}, by {', '.join(cluster.join)}, "
                     f"and is reached at {cluster.address(me)}")
    nodes = list(cluster.nodes)
    replicas = min(cluster.replication_factor, len(nodes))
    text = f"{cluster.name}: {', '.join(f'{node} (this one)' if node == me else node for node in nodes)}; " \
           f"{replicas} replicas of a collection"
    told = []
    if replicas < 3:
        told.append(f"with {replicas} {'replicas writes stop' if replicas > 1 else 'replica it is gone'} when one is "
                    "lost: three survive the loss of any one")
    if not any(cluster.files) and not all_loopback(cluster.nodes.values()):
        told.append("nodes speak without TLS: whoever reaches their ports can change any record (vecdb cluster certs)")
    return Check("cluster", "warn" if told else "ok", text, "; ".join(told))


def _certificate(settings: "Settings") -> list[Check]:
    cluster = settings.cluster
    if cluster.cert_file is None or cluster.ca_file is None:
        return []
    from vecdb.rpc.peer_certificates import open_peer_certificates
    from vecdb.rpc.peer_names import certificate_name
    from vecdb.runtime.clock import SystemClock

    try:
        open_peer_certificates(cluster, settings.server.node_id, SystemClock())
    except InvalidArgument as error:
        needed = certificate_name(settings.server.node_id, cluster.name)
        return [Check("cluster certificate", "fail", error.message, f"this node's has the DNS name {needed}: vecdb "
                      "cluster certs makes it", exits.USAGE)]
    advice = "vecdb cluster certs --renew, where ca.key is; a running node loads the new file by itself"
    return [certificate_ends(cluster.cert_file, "cluster certificate", advice),
            certificate_ends(cluster.ca_file, "cluster authority", "make a new authority, and certificates by it")]


def _peer(cluster: "ClusterSettings", node: str, address: str) -> Check:
    """Whether a node's peer listener is there and, with TLS, is that node's and takes our certificate."""
    name = f"node {node or address}"
    try:
        with socket.create_connection(split_address(address), timeout=_PEER_S) as plain:
            if not any(cluster.files):
                return Check(name, "ok", f"{address} answers")
            return _handshake(cluster, node, address, plain)
    except ssl.SSLError as error:
        why = getattr(error, "verify_message", "") or error.reason or str(error)
        return Check(name, "fail", f"{address} answers, and TLS fails: {why}", "both ends need certificates for their "
                     "own names, of one authority, in their dates", exits.PRECONDITION)
    except OSError as error:
        return Check(name, "warn", f"{address} does not answer: {error.strerror or error}", "does it run, with "
                     "cluster.host set so that this machine reaches it?")


def _handshake(cluster: "ClusterSettings", node: str, address: str, plain: socket.socket) -> Check:
    from vecdb.rpc.peer_names import certificate_name

    context = ssl.create_default_context(cafile=cluster.ca_file)
    assert cluster.cert_file is not None
    context.load_cert_chain(cluster.cert_file, cluster.key_file)
    context.set_alpn_protocols(["h2"])
    context.check_hostname = bool(node)  # of one to join at, the name is not known: only that it is one of ours
    named = certificate_name(node, cluster.name) if node else None
    with context.wrap_socket(plain, server_hostname=named) as secured:
        secured.settimeout(_PEER_S)
        # Whether our own certificate is taken shows in the first bytes that come, or do not.
        if not secured.recv(1):
            raise ssl.SSLError("it hangs up once it has seen this node's certificate")
        shown: Any = secured.getpeercert() or {}
    ends = ssl.cert_time_to_seconds(str(shown["notAfter"]))
    text = f"{address} answers, its certificate ends {datetime.fromtimestamp(ends, UTC):%Y-%m-%d %H:%M} UTC"
    if ends - time.time() < SOON_S:
        return Check(f"node {node or address}", "warn", text, "vecdb cluster certs --renew, where ca.key is")
    return Check(f"node {node or address}", "ok", text)


def aside(found: "dict[str, int]", which: str = "") -> list[Check]:
    """What a node found damaged and set aside; nothing where there is none."""
    if not found.get("folders"):
        return []
    folders = "one folder" if found["folders"] == 1 else f"{count(found['folders'])} folders"
    return [Check(f"set aside{which}", "warn", f"{folders} *.damaged-N in the data directory, {size(found['bytes'])}, "
                  "of logs or replicas that were found damaged; the node began anew without", "rm -r them once vecdb "
                  "shard verify is well: nothing reads them again")]


def shards(database: "Database", seconds: float) -> "list[ShardInfo] | None":
    """All shards, or None where the server or the key does not tell."""
    try:
        return database.admin.shards(timeout=seconds)
    except (PermissionDenied, Unauthenticated, Unsupported):
        return None


def is_led(found: "list[ShardInfo] | None") -> bool:
    """Whether anybody could be asked what only the leader of the control group tells; where there is none, anybody."""
    return all(one.collection or one.leader is not None for one in found or ())


def members(database: "Database", seconds: float) -> tuple[list[Check], list[str]]:
    """Whether all nodes are heard, have room and tell the time that the leader has; nothing where nobody may say.

    And the nodes whose disks are full, or nearly.
    """
    try:
        info = database.admin.cluster.info(timeout=seconds)
    except (PermissionDenied, Unauthenticated, Unsupported):
        return [], []
    except (Unavailable, DeadlineExceeded) as error:  # what the shards say of it comes next
        return [Check("nodes", "warn", error.message)], []
    nodes = info.nodes
    if info.leader is None:  # since the shards were asked for
        return [Check("nodes", "warn", "nobody is known to lead the control group, so nobody has heard of them all")
                ], []
    silent = [f"{one.name} for {duration(one.silence_s)}" for one in nodes if one.silence_s > SILENT_S]
    unheard = [one.name for one in nodes if one.heard_s < 0 and one.silence_s <= SILENT_S]
    off = [f"{one.name} is {found:+.0f} s off" for one in nodes
           if abs(found := one.stats.get("clock_off_s", 0.0)) > CLOCK_OFF_S]
    checks = [Check("nodes", "warn", f"not heard: {', '.join(silent)}", "do they run, and reach the others?") if silent
              else Check("nodes", "warn", f"{info.leader} leads only just, and has not heard {', '.join(unheard)} yet",
                         "ask again in some seconds") if unheard
              else Check("nodes", "ok", f"{len(nodes)} nodes, all heard of late")]
    if off:
        checks.append(Check("clocks of nodes", "warn", f"against the leader's: {', '.join(off)}", "let chrony or ntpd "
                            "set them: keys end by each node's own, and logs mislead"))
    twice = [one.name for one in nodes if one.stats.get("node_twice")]
    if twice:
        checks.append(Check("names of nodes", "warn", f"node_twice: another process speaks as {', '.join(twice)}, and "
                            "is refused", "the log of that node says from where: stop it, or give it a name of its own "
                            "(server.node_id)"))
    slow = [f"{one.name} took {duration(found)}" for one in nodes
            if (found := one.stats.get("sync_slowest_s", 0.0)) > SLOW_SYNC_S]
    full = {one.name: f"{one.name} ({disk}, {size(one.stats['disk_free_bytes'])} free)" for one in nodes
            if (disk := disk_state(one.stats))}
    if full:
        checks.append(Check("room of nodes", "warn", ", ".join(full.values()), "make room there: replicas halt on a "
                            "full disk, and such nodes are given none while others can take them"))
    if slow:
        checks.append(Check("disks of nodes", "warn", f"to write and sync a batch of the log: {', '.join(slow)} at the "
                            "most, of late", "writes wait for the disks of a majority, and for the "
                            "leader's own: vecdb shard transfer-leader moves what such a node leads, vecdb node drain "
                            "what it holds"))
    return checks, list(full)


def well(found: "list[ShardInfo]", full: "Sequence[str]" = ()) -> Check:
    """Whether every shard has a leader, and every replica is where it should be.  ``full``: nodes without room."""
    from vecdb.cli.shards import CONTROL, RETIRED, state_of

    found = [one for one in found if one.state != RETIRED]  # it is being taken away
    amiss = [f"{one.collection or CONTROL}: {state_of(one)}" for one in found if one.lacks or not one.healthy]
    replicas = sum(len(one.replicas) for one in found)
    text = f"{len(found)} shards with {replicas} replicas" + (f"; {'; '.join(amiss[:8])}" if amiss else "")
    if any(one.leader is None for one in found):
        return Check("shards", "fail", f"{text}; {_answering(found)}", _lost(found, full), exits.UNREACHABLE)
    halted = _halted(found, full)
    if halted:
        return Check("shards", "fail", text, halted, exits.STORAGE)
    if amiss and all(one.healthy for one in found):
        return Check("shards", "warn", text, "they are given the replicas that they lack once there are nodes that can "
                     "take them (vecdb node list); or vecdb shard replicate lets a collection have fewer")
    return Check("shards", "warn", text, "vecdb shard status shows how far the others are") if amiss \
        else Check("shards", "ok", text)


def _halted(found: "list[ShardInfo]", full: "Sequence[str]") -> str:
    """What to do where replicas of these shards have halted; empty where none has."""
    nodes = sorted({replica.node for one in found for replica in one.replicas if replica.state == "halted"})
    if not nodes:
        return ""
    room = [node for node in nodes if node in full]
    first = f"make room on the disk of {', '.join(room)}, where replicas have halted; " if room else ""
    return f"{first}vecdb shard status says why a replica has halted; a restart of its node lets it begin anew"


def _lost(found: "list[ShardInfo]", full: "Sequence[str]") -> str:
    """What to do where shards have no leader: nodes that answer need not be started."""
    halted = _halted([one for one in found if one.leader is None], full)
    replicas = [replica for one in found if one.leader is None for replica in one.replicas]
    there = {one.node for one in replicas if one.state != UNREACHABLE}
    if any(one.node not in there for one in replicas):
        return "a shard is written once most of its replicas are there: start the nodes that do not answer, each on " \
            "the data directory it had (an empty one has no vote); if those of a majority are gone for good, README, " \
            "\"When a majority is lost\"" + (f"; {halted}" if halted else "")
    told = [f"of {one.collection} {best.node} has applied {count(best.applied)}" for one in found
            if one.leader is None and one.collection and (best := _survivor(one)) is not None][:8]
    if all(_may_elect(one) for one in found if one.leader is None):
        return halted or "all nodes answer: ask again in some seconds, for one may be elected just now; vecdb shard " \
            "status shows how the replicas are"
    return "all nodes answer, and too few have their votes: stop those that began with an empty disk, and start each " \
        "on the data directory it had.  If these are gone, nobody will lead again: README, \"When a majority is " \
        "lost\", export what is left from the node that has most, with its address alone in --url and " \
        "--consistency eventual" + (f" ({'; '.join(told)})" if told else "")


def _may_elect(shard: "ShardInfo") -> bool:
    """Whether most that have a vote are there; or nobody is without, and who is missing is still being opened."""
    voters = [one for one in shard.replicas if one.member and one.role != "learner"]
    there = sum(one.state != UNREACHABLE for one in voters)
    return 2 * there > len(voters) or not any(not one.member or one.role == "learner" for one in shard.replicas)


def _survivor(shard: "ShardInfo") -> "ReplicaInfo | None":
    """Of the replicas that have a vote, and so are read, the one that has applied most."""
    return max((one for one in shard.replicas if one.state != UNREACHABLE and one.member and one.role != "learner"),
               key=lambda one: one.applied, default=None)


def _answering(found: "list[ShardInfo]") -> str:
    """Which nodes do; which of them have a disk that the control group, or another shard, does not know; and who has
    no vote in a shard that nobody leads.
    """
    from vecdb.cli.shards import CONTROL

    replicas = [replica for one in found for replica in one.replicas]
    there = {one.node for one in replicas if one.state != UNREACHABLE}
    away = sorted({one.node for one in replicas} - there)
    new = [(shard, one) for shard in found for one in shard.replicas if one.state != UNREACHABLE and not one.member]
    # Where nobody leads and the group knows another replica of the node, that one's log is what is missing.
    empty = sorted({one.node for shard, one in new if shard.leader is None and _knows(shard, one.node)})
    joining = [f"{one.node} {'is built anew for' if _knows(shard, one.node) else 'joins'} {shard.collection or CONTROL}"
               for shard, one in new if one.node not in empty and one.state not in ("halted", "removed")][:8]
    learners = [f"{replica.node} is only a learner of {one.collection}, without a vote: "
                + ("it joins, or is being built anew" if replica.member or not _knows(one, replica.node) else
                   "its disk was empty, and no leader has taken it in yet")
                for one in found if one.collection and one.leader is None
                for replica in one.replicas if replica.role == "learner" and replica.state != UNREACHABLE][:8]
    return "; ".join([f"{', '.join(sorted(there)) or 'no node'} answer{'s' if len(there) < 2 else ''}",
                      *([f"{', '.join(away)} {'do' if len(away) > 1 else 'does'} not"] if away else []),
                      *(f"{node} began with an empty disk, or has lost its logs" for node in empty),
                      *joining, *learners])


def _knows(shard: "ShardInfo", node: str) -> bool:
    """Whether a shard's group counts on a replica of a node, be it there or not."""
    return any(one.node == node and one.member for one in shard.replicas)


def compared(name: str, database: "Database", text: str) -> Check:
    """Hold the replicas of each shard of a collection against each other and against their disks."""
    from vecdb.cli.shards import labels, verdict

    found = [database.admin.verify_shard(one, deep=True) for one in labels(database.admin.shards(name))]
    if len(found) == 1:
        text = f"{text}; {len(found[0].replicas)} replicas at log index {found[0].log_index}: {verdict(found[0])}"
    else:
        amiss = [f"shard {one.group}: {verdict(one)}" for one in found if not (one.agree and one.complete)]
        text = f"{text}; {len(found)} shards: {'; '.join(amiss) or 'the replicas of each hold the same'}"
    if any(not one.agree or any(replica.state == "damaged" for replica in one.replicas) for one in found):
        return Check(f"collection {name}", "fail", text, f"vecdb shard verify --deep {name} says which, vecdb shard "
                     f"repair {name} builds anew what differs from most", exits.DATA_LOSS)
    if not all(one.complete for one in found):
        return Check(f"collection {name}", "warn", text, "ask again when all nodes are there")
    return Check(f"collection {name}", "ok", text)
