"""Transports between nodes on loopback, for tests: ports chosen by the system, certificates of ``issue``."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from vecdb.rpc.frames import GrpcFrames
from vecdb.rpc.peer_certificates import issue, open_peer_certificates
from vecdb.rpc.peer_channels import PeerChannels
from vecdb.rpc.peers_server import PeerServer, PeerServerOptions
from vecdb.rpc.tls import Certificates
from vecdb.runtime.clock import SystemClock

CLUSTER = "prod"


def files(folder: Path, node: str, cluster: str = CLUSTER) -> Any:
    return SimpleNamespace(name=cluster, cert_file=folder / f"{node}.pem", key_file=folder / f"{node}.key",
                           ca_file=folder / "ca.pem")


def certificates(folder: Path, node: str, cluster: str = CLUSTER, reload_s: float = 10.0) -> Certificates:
    opened = open_peer_certificates(files(folder, node, cluster), node, SystemClock(), reload_s=reload_s)
    assert opened is not None
    return opened


class Transport:
    """One node's: what it got is in ``got``, what was told in ``told``, nodes said to be gone in ``gone``."""

    def __init__(self, node: str, addresses: dict[str, str], tls: Certificates | None = None, *,
                 cluster: str = CLUSTER, services: tuple[Any, ...] = (), **more: Any) -> None:
        """``addresses`` is shared by all: a node that starts puts its own in."""
        self.node, self.addresses = node, addresses
        self.told: list[tuple[str, str, dict[str, Any]]] = []
        self.got: list[tuple[str, bytes]] = []
        self.gone: list[str] = []
        self.incarnation = more.pop("incarnation", None)
        self.asking = {key: more.pop(key) for key in ("ask", "unasked_methods") if key in more}
        self.tls, self.cluster, self.services, self.more = tls, cluster, services, more

    def tell(self, level: str, event: str, **fields: Any) -> None:
        self.told.append((level, event, fields))

    def events(self) -> list[tuple[str, str]]:
        return [(event, fields.get("kind", "")) for _, event, fields in self.told]

    async def start(self, address: str = "127.0.0.1:0") -> "Transport":
        names = {*self.addresses, self.node}
        self.channels = PeerChannels(self.node, self.cluster, {**dict.fromkeys(names, ""), **self.addresses}, self.tls,
                                     incarnation=self.incarnation)
        self.channels.addresses = self.addresses
        self.frames = GrpcFrames(self.channels, self.node, self.cluster, self.tell, **self.more)
        self.frames.listen(lambda node, frame: self.got.append((node, bytes(frame))), self.gone.append)
        credentials = None if self.tls is None else self.tls.grpc_credentials()
        self.server = PeerServer(PeerServerOptions(self.node, self.cluster, address, ("n1", "n2", "n3"), credentials,
                                                   insecure=self.tls is None, tell=self.tell, **self.asking),
                                 [self.frames.servicer(), *self.services])
        port = await self.server.start()
        self.addresses[self.node] = f"127.0.0.1:{port}"
        return self

    async def stop(self) -> None:
        await self.frames.close()
        await self.channels.close()
        await self.server.stop()


def issued(folder: Path, cluster: str = CLUSTER) -> Path:
    issue(folder, cluster, ["n1", "n2", "n3"])
    return folder
