"""``vecdb cluster init``: folders for the nodes that found a cluster: settings, certificates and an admin's key."""

import secrets
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from vecdb.cli import changing, folders
from vecdb.cli import options as o
from vecdb.cli.folders import ADMIN_KEY, Folder
from vecdb.cli.output import Output
from vecdb.core.cluster import Plan, PlanStep
from vecdb.core.errors import InvalidArgument
from vecdb.core.nodes import all_loopback, bracketed, check_label, check_nodes, parse_nodes, split_address

Name = Annotated[str, typer.Option("--name", help="The cluster's: a-z, 0-9 and -.")]


def init(name: Name,
         nodes: Annotated[str, typer.Option("--nodes", metavar="NODE=HOST:PORT,...", help="Those that found it, with "
                                            "where others reach their peer ports; clients come in two below (gRPC) and "
                                            "one below (HTTP).")] = "n1=127.0.0.1:7702",
         out_dir: Annotated[Path | None, typer.Option("--out", metavar="DIR", help="Gets a folder for each node.  "
                                                      "[default: the cluster's name]", show_default=False)] = None,
         host: Annotated[list[str] | None, typer.Option(
             "--host", metavar="NODE=HOST", help="Where clients reach a node, if not where nodes do (repeat "
             "it).")] = None,
         zone: Annotated[list[str] | None, typer.Option("--zone", metavar="NODE=ZONE", help="What fails together, as a "
                                                        "rack (repeat it).")] = None,
         coordinators: Annotated[bool, typer.Option("--coordinators", help="They vote and answer clients, and hold no "
                                                    "records: shard nodes join later.")] = False,
         insecure: Annotated[bool, typer.Option("--insecure", help="Without certificates: only where the network "
                                                "itself is safe.")] = False,
         set_: o.Set = None, yes: changing.Yes = False, dry_run: changing.DryRun = False, as_json: o.Json = False,
         ) -> None:
    """Write what the founding nodes of a cluster are served with: a folder each, ready for vecdb serve.

    Nodes get certificates by an authority that is made for the cluster, and beyond one machine TLS and a key of an
    admin for clients.  Three founders, on three machines, survive the loss of any one; further nodes join
    (vecdb cluster join).
    """
    out = Output(as_json)
    found = _parsed(name, nodes)
    place = Path(name) if out_dir is None else out_dir
    hosts, zones = pairs("host", host, found), pairs("zone", zone, found)
    made = _folders(name, found, place, hosts, zones, coordinators, insecure, set_)
    for one in made:
        one.check_free()
    folders.check_apart(made)
    for one in made:
        one.settings()
    plan = _plan(name, made, place, insecure)
    if not as_json:
        changing.show_plan(out, plan)
    if dry_run:
        if as_json:
            out.emit({"plan": asdict(plan), "written": [], "next": _next(made)})
        return
    if not yes:
        changing.agree(f"cluster init {name}")
    written = _write(name, made, place, hosts, insecure)
    if as_json:
        out.emit({"plan": asdict(plan), "written": [str(one) for one in written], "next": _next(made)})
        return
    out.say(f"{len(written)} files below {place}; next, on each node's machine:")
    for line in _next(made):
        out.line_of(f"  {line}")
    if not insecure:
        out.note(f"keep {place / 'authority' / 'ca.key'} where no node is: whoever has it can be any node of {name}; "
                 f"further nodes get their certificates by vecdb cluster join --certs {place / 'authority'}")


def _parsed(name: str, nodes: str) -> dict[str, str]:
    try:
        check_label(name, "cluster")
        found = check_nodes(parse_nodes(nodes))
    except ValueError as error:
        raise InvalidArgument("nodes", str(error), got=nodes[:200], limit="n1=host:7702,n2=host:7702") from None
    if not found:
        raise InvalidArgument("nodes", "names no node", got=nodes[:200], limit="n1=host:7702")
    return found


def pairs(option: str, given: list[str] | None, nodes: dict[str, str]) -> dict[str, str]:
    """``NODE=VALUE`` by the node."""
    found: dict[str, str] = {}
    for one in given or ():
        node, sign, value = (part.strip() for part in one.partition("="))
        if not sign or not value or node not in nodes:
            raise InvalidArgument(option, f"{one[:60]!r} says nothing of a node that is named; write --{option} "
                                  f"{next(iter(nodes))}=...", got=one[:60], limit=sorted(nodes))
        found[node] = value
    return found


def _folders(name: str, nodes: dict[str, str], place: Path, hosts: dict[str, str], zones: dict[str, str],
             coordinators: bool, insecure: bool, set_: list[str] | None) -> list[Folder]:
    here, key = all_loopback(nodes.values()), secrets.token_urlsafe(32)
    extra = {setting: value for setting, (value, _) in o.settings_of(set_).items()}
    made = []
    for node, address in nodes.items():
        values = folders.base(node, address, name, hosts.get(node, "")) | {"cluster.nodes": nodes}
        if coordinators:
            values["cluster.role"] = "coordinator"
        if node in zones:
            values["cluster.zone"] = zones[node]
        if not insecure:
            values |= folders.certified(node)
        elif not here:
            values["cluster.insecure"] = True
        if not here:
            values |= {"security.admin_key_file": ADMIN_KEY, "client.api_key_file": ADMIN_KEY}
            values |= {"client.insecure": True} if insecure else {
                "tls.cert_file": f"{node}.pem", "tls.key_file": f"{node}.key", "client.ca_file": folders.CA}
        values["client.url"] = f"grpc{'s' if 'tls.cert_file' in values else ''}://" + ",".join(
            f"{bracketed(hosts.get(one) or split_address(where)[0])}:{split_address(where)[1] - 2}"
            for one, where in nodes.items())
        made.append(Folder(node, place / node, values | extra, {} if here else {ADMIN_KEY: key}))
    return made


def _plan(name: str, made: list[Folder], place: Path, insecure: bool) -> Plan:
    steps = [] if insecure else [PlanStep(
        "authority", str(place / "authority"), f"make an authority for {name!r}, or take the one in "
        f"{place / 'authority'}, and certificates for {', '.join(one.node for one in made)}")]
    for one in made:
        steps.append(PlanStep("write", str(one.path), f"{one.node}: write {', '.join(map(str, one.files))}"))
    notes = []
    if len(made) < 3:
        notes.append(f"{len(made)} node{'s' if len(made) > 1 else ''} found it: the loss of one stops writes; three "
                     "survive any one")
    if insecure:
        notes.append("without certificates, whoever reaches the peer ports can change any record")
    return Plan("init", tuple(steps), tuple(notes))


def _next(made: list[Folder]) -> list[str]:
    return [*(f"cd {one.path} && vecdb serve" for one in made), f"cd {made[0].path} && vecdb cluster status"]


def _write(name: str, made: list[Folder], place: Path, hosts: dict[str, str], insecure: bool) -> list[Path]:
    from vecdb.rpc.peer_certificates import issue

    authority = place / "authority"
    written: list[Path] = []
    try:
        if not insecure:
            others: dict[str, Any] = {one.node: _reached(one, hosts) for one in made}
            written += [one for one in issue(authority, name, [one.node for one in made], others)
                        if one.name in ("ca.key", folders.CA)]
        for one in made:
            written += one.write(None if insecure else authority)
            for kind in () if insecure else ("pem", "key"):  # the node alone has them
                (authority / f"{one.node}.{kind}").unlink()
    except OSError as error:
        raise InvalidArgument("out", f"{error.filename or place} cannot be written: {error.strerror}", got=str(place),
                              limit="a folder that may be written") from None
    return written


def _reached(one: Folder, hosts: dict[str, str]) -> list[str]:
    """What clients may call the node: a certificate has it, too."""
    reached = split_address(one.values["cluster.nodes"][one.node])[0]
    return [*dict.fromkeys((hosts.get(one.node) or reached, reached, "localhost", "127.0.0.1"))]
