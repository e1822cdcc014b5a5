"""The folder of a node: what ``vecdb cluster init`` and ``vecdb cluster join`` write, and what is looked at before.

A folder is whole in itself: ``vecdb.toml``, certificates and secrets by names relative to it, and later ``data``.  So
it is made where ``ca.key`` is, copied to the node's machine, and served from within: ``cd n1 && vecdb serve``; commands
that are run there reach the cluster, too.
"""

import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from vecdb.core.errors import InvalidArgument
from vecdb.core.nodes import bracketed, is_loopback, split_address

if TYPE_CHECKING:
    from vecdb.config import Settings

FILE: Final = "vecdb.toml"
CA: Final = "ca.pem"
ADMIN_KEY: Final = "admin.key"
TOKEN: Final = "token"  # noqa: S105  # the name of a file
_GRPC, _HTTP = 2, 1
"""Below the peer port: 7700 and 7701 for 7702."""


@dataclass(slots=True)
class Folder:
    """``values``: settings by their dotted names; ``secrets``: files of one line, by their names."""

    node: str
    path: Path
    values: dict[str, Any]
    secrets: dict[str, str] = field(default_factory=dict)

    @property
    def files(self) -> list[Path]:
        """What will be in it."""
        names = {str(self.values[name]) for name in ("cluster.ca_file", "cluster.cert_file", "cluster.key_file")
                 if name in self.values}
        return [self.path / one for one in (FILE, *sorted(names), *sorted(self.secrets))]

    def settings(self) -> "Settings":
        """Refused as ``vecdb serve`` would refuse them; ports of this machine that are in use, too."""
        from vecdb.cli.serve import check_ports
        from vecdb.config import stated

        made = stated(self.values, str(self.path / FILE)).settings
        if is_loopback(split_address(made.cluster.address(self.node))[0]):
            check_ports(made)
        return made

    def check_free(self) -> None:
        """Nobody's node may be there already."""
        for one in (FILE, "data"):
            if (self.path / one).exists():
                raise InvalidArgument("out", f"{self.path} holds a node already ({one} is there): take another folder, "
                                      "or serve what is there", got=str(self.path), limit="a folder of its own")
        if self.path.exists() and not self.path.is_dir():
            raise InvalidArgument("out", f"{self.path} is no folder", got=str(self.path), limit="a folder")

    def write(self, certificates: Path | None) -> list[Path]:
        """``certificates``: where the node's are, which are copied; the file of settings comes last."""
        self.path.mkdir(parents=True, exist_ok=True)
        os.chmod(self.path, 0o700)
        if certificates is not None:
            for name in ("cluster.ca_file", "cluster.cert_file", "cluster.key_file"):
                shutil.copyfile(certificates / self.values[name], self.path / self.values[name])
            os.chmod(self.path / self.values["cluster.key_file"], 0o600)
        for name, secret in self.secrets.items():
            put(self.path / name, secret + "\n", 0o600)
        put(self.path / FILE, toml(self.values), 0o644)
        return self.files


def put(path: Path, text: str, mode: int) -> None:
    """Write a file whole, with its mode from the beginning."""
    handle, partial = tempfile.mkstemp(dir=path.parent, prefix=path.name)
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(text)
    os.chmod(partial, mode)
    os.replace(partial, path)


def toml(values: Mapping[str, Any]) -> str:
    """Settings by their dotted names as a file."""
    from vecdb.cli.serve import toml_of

    tables: dict[str, list[str]] = {}
    for name, value in values.items():
        table, _, key = name.rpartition(".")
        tables.setdefault(table, []).append(f"{key} = {toml_of(value)}")
    lines = ["# Paths are relative to the folder that vecdb serve is started in: this one."]
    for table in sorted(tables):
        lines += [*([f"\n[{table}]"] if table else []), *tables[table]]
    return "\n".join(lines) + "\n"


def base(node: str, address: str, cluster: str, client_host: str = "") -> dict[str, Any]:
    """What every node's settings have: its ports are those below its peer port, and it listens on all addresses of
    its machine unless all of them are loopback's.
    """
    try:
        host, port = split_address(address)
    except ValueError as error:
        raise InvalidArgument("address", str(error), got=address[:80], limit="host:7702") from None
    if port <= _GRPC:
        raise InvalidArgument("address", f"of {node} has a port too low: clients come in {_GRPC} and {_HTTP} below it",
                              got=address, limit="host:7702")
    values: dict[str, Any] = {"server.node_id": node, "server.grpc_port": port - _GRPC,
                              "server.http_port": port - _HTTP, "cluster.name": cluster}
    if not is_loopback(host):
        everywhere = "::" if ":" in host else "0.0.0.0"  # noqa: S104  # what is advertised is an address
        values |= {"server.host": everywhere, "cluster.host": everywhere,
                   "server.advertise": f"{bracketed(client_host or host)}:{port - _GRPC}"}
    return values


def certified(node: str) -> dict[str, Any]:
    """Settings for the node's certificate."""
    return {"cluster.ca_file": CA, "cluster.cert_file": f"{node}.pem", "cluster.key_file": f"{node}.key"}


def check_apart(folders: Sequence[Folder]) -> None:
    """No two nodes may want one port of one machine."""
    taken: dict[tuple[str, int], str] = {}
    for one in folders:
        host, peer = split_address(one.values["cluster.nodes"][one.node])
        for what, port in (("gRPC", one.values["server.grpc_port"]), ("HTTP", one.values["server.http_port"]),
                           ("peer", peer)):
            mine = f"the {what} port of {one.node}"
            other = taken.setdefault((host, port), mine)
            if other != mine:
                raise InvalidArgument("nodes", f"{mine} on {host} would be {port}, which is {other}: peer ports of one "
                                      "machine are at least 3 apart, as 7702 and 7712", got=port, limit="7702, 7712")
