"""Why a node is not reached where TLS fails, exactly, and on which side: gRPC says so to neither.

What it says to the side that calls is some words for all failures, and to the side that is called nothing at all: a
handshake that fails is over before anything of Python hears of the connection, so **a listener can neither count nor
tell whom it refuses by their certificates**.  But nodes call each other in both directions.  So the side that calls
looks closer: once a minute for each node it makes a handshake of its own and reads what ends it.

- The other's certificate is not by our authority, or of another cluster or node: we refuse it, count that
  (``refused``), and tell it.
- Ours is not taken: the other one ends the connection once it has seen it.
"""

import asyncio
import ssl
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, Final

from vecdb.core.nodes import split_address
from vecdb.ports.tell import Tell
from vecdb.rpc.peer_certificates import PeerTlsFiles
from vecdb.rpc.peer_names import certificate_name, named

AGAIN_S: Final = 60.0
PROBE_S: Final = 1.5
WATCH_S: Final = 5.0
AUTHORITY, CLUSTER, NODE, OURS, PLAIN = "authority", "certificate_cluster", "certificate_node", "ours", ""
"""Kinds of what is found; the first three are refusals of ours."""
_TLS: Final = ("TLS", "closes the connection")


def about_tls(why: str) -> bool:
    """Whether words of :func:`vecdb.rpc.reasons.short` may be of certificates."""
    return any(one in why for one in _TLS)


class Probes:
    """Belongs to one event loop.  ``addresses``: of all nodes by name, of the moment."""

    def __init__(self, cluster: PeerTlsFiles, addresses: Mapping[str, str], tell: Tell,
                 clock: Callable[[], float] = time.monotonic) -> None:
        self._cluster = cluster
        self._addresses = addresses
        self._tell = tell
        self._clock = clock
        self._found: dict[str, tuple[float, str, str]] = {}
        """By node: when it was looked at, where, and what was found."""
        self.refused: Counter[str] = Counter()
        """Certificates of nodes that were looked at and refused, by kind."""

    async def why(self, node: str, said: str) -> str:
        """Why a node is not reached, of which a call said ``said``; that, unless it is about TLS and more is found."""
        address = self._addresses.get(node, "")
        if self._cluster.ca_file is None or not address or not about_tls(said):
            self._found.pop(node, None)
            return said
        at, where, found = self._found.get(node, (0.0, "", ""))
        now = self._clock()
        if where != address or now - at >= AGAIN_S:
            self._found[node] = now, address, ""
            kind, found = await look(address, node, self._cluster)
            self._found[node] = now, address, found
            if kind in (AUTHORITY, CLUSTER, NODE):
                self.refused[kind] += 1
            if found:
                self._tell("error", "peer_certificate", about=node, address=address, kind=kind, why=found)
        return found or said

    async def watch(self, away: Callable[[], Mapping[str, str]]) -> None:
        """For ever: look at nodes that are not reached.  ``away()``: those, and why as a call said it."""
        while True:
            for node, said in away().items():
                try:
                    await self.why(node, said)
                except Exception as error:  # whatever it is, it must not be the end
                    self._tell("warning", "peer_not_probed", about=node, error=f"{type(error).__name__}: {error}")
            await asyncio.sleep(WATCH_S)


async def look(address: str, node: str, cluster: PeerTlsFiles) -> tuple[str, str]:
    """The kind of what is wrong with a handshake with the node at an address, and in words; two empty where nothing is,
    or nobody answers within :data:`PROBE_S`.
    """
    host, port = split_address(address)
    writer: Any = None
    try:
        context = ssl.create_default_context(cafile=cluster.ca_file)
        context.check_hostname = False  # whose it is is looked at below
        assert cluster.cert_file is not None
        context.load_cert_chain(cluster.cert_file, cluster.key_file)
        context.set_alpn_protocols(["h2"])
        async with asyncio.timeout(PROBE_S):
            reader, writer = await asyncio.open_connection(host, port, ssl=context)
            shown = writer.get_extra_info("peercert") or {}
            kind, found = _whose(shown, address, node, cluster.name)
            if not kind and not await reader.read(1):  # a listener speaks first once it has taken our certificate
                return OURS, f"{address} hangs up once it has seen this node's certificate: it is of another authority"
            return kind, found
    except ssl.SSLCertVerificationError as error:
        return AUTHORITY, f"{address} shows a certificate that is not by this cluster's authority: " \
                          f"{error.verify_message}"
    except ssl.SSLError as error:
        said = (error.reason or str(error)).replace("_", " ").lower()
        if "alert" in said:
            return OURS, f"{address} refuses this node's certificate: {said}"
        return PLAIN, f"{address} answers, and TLS fails: {said}"
    except (OSError, TimeoutError):
        return PLAIN, ""
    finally:
        if writer is not None:
            writer.close()
            with suppress(OSError, TimeoutError):
                async with asyncio.timeout(1.0):
                    await writer.wait_closed()


def _whose(shown: Mapping[str, Any], address: str, node: str, cluster: str) -> tuple[str, str]:
    names = [value.lower() for kind, value in shown.get("subjectAltName", ()) if kind == "DNS"]
    if certificate_name(node, cluster) in names:
        return "", ""
    found = [one for one in map(named, names) if one[0]]
    others = sorted({of for _, of in found} - {cluster})
    if others:
        return CLUSTER, f"{address} shows a certificate of the cluster {others[0]}, not of {cluster}"
    whom = f"node {found[0][0]}" if found else "no node"
    return NODE, f"{address} shows a certificate of {whom}, not of {node}"
