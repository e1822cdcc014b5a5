"""``vecdb cluster join``: the folder of a node that joins a cluster, once that has said that it would let it in."""

import asyncio
import shutil
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from vecdb.cli import changing, folders
from vecdb.cli import options as o
from vecdb.cli.folders import ADMIN_KEY, TOKEN, Folder
from vecdb.cli.output import Output
from vecdb.core.cluster import Plan, PlanStep, Role
from vecdb.core.errors import InvalidArgument, JoinRefused, Unavailable, VecdbError
from vecdb.core.nodes import is_loopback, split_address

if TYPE_CHECKING:
    from vecdb.config import Settings
    from vecdb.rpc.members import Checked

ASK_S: Final = 10.0
OTHERS: Final = 6
"""Nodes that are named for clients beside the one that joins."""
_AGAIN_S: Final = 3.0
"""A token that was just made is known to the member that is asked within this."""


def join(node: Annotated[str, typer.Option("--node", help="How the node is to be called: a-z, 0-9 and -.")],
         at: Annotated[str, typer.Option("--at", metavar="HOST:PORT,...", help="Peer ports of some nodes that are "
                                         "there.")],
         address: Annotated[str, typer.Option("--address", metavar="HOST:PORT", help="Where other nodes reach this "
                                              "one's peer port.")],
         token: Annotated[str | None, typer.Option("--token", help="Of vecdb cluster token create.  [default: "
                                                   "VECDB_CLUSTER__TOKEN]", show_default=False)] = None,
         token_file: Annotated[Path | None, typer.Option("--token-file", help="File that holds the token.")] = None,
         certificates: Annotated[Path | None, typer.Option("--certs", metavar="DIR", help="Where ca.pem, NODE.pem and "
                                                           "NODE.key are; or ca.key, which makes them.")] = None,
         name: Annotated[str | None, typer.Option("--name", help="The cluster's.  [default: as in the certificate]",
                                                  show_default=False)] = None,
         role: Annotated[Role, typer.Option("--role", help="shard holds records, coordinator votes, both does "
                                            "both.")] = Role.SHARD,
         zone: Annotated[str, typer.Option("--zone", help="What fails together, as a rack.")] = "",
         capacity: Annotated[float, typer.Option("--capacity", help="How much it is given, against others.")] = 1.0,
         host: Annotated[str, typer.Option("--host", help="Where clients reach it, if not where nodes do.")] = "",
         admin_key_file: Annotated[Path | None, typer.Option("--admin-key-file", help="The cluster's admin key, if it "
                                                             "has one in a file.")] = None,
         insecure: Annotated[bool, typer.Option("--insecure", help="Without certificates, as the others.")] = False,
         out_dir: Annotated[Path | None, typer.Option("--out", metavar="DIR", help="Its folder.  "
                                                      "[default: the node's name]", show_default=False)] = None,
         check: Annotated[bool, typer.Option("--check/--no-check", help="Ask the cluster first whether it would let "
                                             "the node in.")] = True,
         set_: o.Set = None, yes: changing.Yes = False, dry_run: changing.DryRun = False, as_json: o.Json = False,
         ) -> None:
    """Write what a node is served with that joins a cluster, after the cluster was asked whether it may.

    The node joins when it is served, and needs the token for that once.
    """
    out = Output(as_json)
    if certificates is None and not insecure and not is_loopback(_host(address)):
        raise InvalidArgument("certs", "is missing: a node shows who it is by a certificate (vecdb cluster certs)",
                              got="nothing", limit="--certs DIR, or --insecure")
    with tempfile.TemporaryDirectory() as made:
        name, issued = _cluster(name, node, certificates, host or _host(address), Path(made))
        one = _folder(node, name, address, at, Path(node) if out_dir is None else out_dir, host,
                      _token(token, token_file), certificates is not None, admin_key_file)
        one.values |= {"cluster.role": str(role), **({"cluster.zone": zone} if zone else {}),
                       **({"cluster.capacity": capacity} if capacity != 1.0 else {}),
                       **{setting: value for setting, (value, _) in o.settings_of(set_).items()}}
        one.check_free()
        plan, nodes = _planned(one, name, issued, check=check, made=issued != certificates,
                               alone="client.url" in o.settings_of(set_))
        _carry_out(out, plan, one, issued, nodes, yes=yes, dry_run=dry_run)


def _planned(one: Folder, name: str, certificates: Path | None, *, check: bool, made: bool, alone: bool
             ) -> tuple[Plan, dict[str, str]]:
    """What is to be written, and the nodes of the cluster if it was asked; ``alone``: it was said which clients ask."""
    settings, node = one.settings(), one.node
    notes = [f"its certificate is made by the authority of {name}, for its folder alone"] if made else []
    if one.values.get("security.require_keys") == "always":
        notes.append("it lets in who has a key, and its folder has none for commands: --admin-key-file puts the "
                     "cluster's there")
    nodes: dict[str, str] = {}
    if check:
        told = _ask(settings, certificates, one.secrets[TOKEN])
        nodes = told.nodes
        if not alone:
            _know(one, told.clients)
        notes.append(f"{name} would let it in: {len(nodes)} nodes, led by {told.leader or 'nobody at the moment'}")
        if node in nodes:
            notes.append(f"there is a node {node} already: this one takes its place only once it was silent for ten "
                         "seconds")
    else:
        notes.append("the cluster was not asked whether it would let it in")
    plan = Plan("join", (PlanStep("write", str(one.path), f"{node}: write {', '.join(map(str, one.files))}"),),
                tuple(notes))
    return plan, nodes


def _know(one: Folder, clients: dict[str, str]) -> None:
    """Let commands in the folder pass over this node when it is away: to others, where clients reach those as they
    reach this one.
    """
    scheme, _, own = str(one.values["client.url"]).partition("://")
    here = is_loopback(_host(own.partition(",")[0]))
    others = [address for node, address in sorted(clients.items()) if node != one.node
              and is_loopback(_host(address)) == here]
    one.values["client.url"] = f"{scheme}://" + ",".join(dict.fromkeys((*own.split(","), *others[:OTHERS])))


def _carry_out(out: Output, plan: Plan, one: Folder, certificates: Path | None, nodes: dict[str, str], *, yes: bool,
               dry_run: bool) -> None:
    following = [f"cd {one.path} && vecdb serve", f"cd {one.path} && vecdb cluster status"]
    told: dict[str, Any] = {"plan": asdict(plan), "nodes": nodes, "next": following}
    if not out.as_json:
        changing.show_plan(out, plan)
    written: list[Path] = []
    if not dry_run:
        if not yes:
            changing.agree(f"cluster join {one.node}")
        try:
            written = one.write(certificates)
        except OSError as error:
            raise InvalidArgument("out", f"{error.filename or one.path} cannot be written: {error.strerror}",
                                  got=str(one.path), limit="a folder that may be written") from None
    if out.as_json:
        out.emit({**told, "written": [str(path) for path in written]})
    elif written:
        out.say(f"{len(written)} files in {one.path}; next, on the node's machine:")
        for line in following:
            out.line_of(f"  {line}")


def _host(address: str) -> str:
    try:
        return split_address(address)[0]
    except ValueError as error:
        raise InvalidArgument("address", str(error), got=address[:80], limit="host:7702") from None


def _token(token: str | None, file: Path | None) -> str:
    """As given, or of the environment; refused where it cannot be one."""
    from vecdb.cluster.joining import TOKEN as FORM
    from vecdb.config import load

    if token is not None and file is not None:
        raise InvalidArgument("token", "is given twice, as --token-file too", got="both", limit="one of them")
    if file is not None:
        try:
            token = file.read_text(encoding="utf-8").strip()
        except (OSError, ValueError) as error:
            raise InvalidArgument("token_file", f"{file} cannot be read: {error}", got=str(file)) from None
    found = load().settings.cluster.token.get_secret_value() if token is None else token
    if not FORM.fullmatch(found):
        raise InvalidArgument("token", "is none: vecdb cluster token create makes one, as vdj_..." if found else
                              "is missing: vecdb cluster token create makes one", got="nothing" if not found else
                              f"{len(found)} characters", limit="--token, --token-file or VECDB_CLUSTER__TOKEN")
    return found


def _cluster(name: str | None, node: str, certificates: Path | None, host: str, made: Path
             ) -> tuple[str, Path | None]:
    """The cluster's name, and where the node's certificate is: with the others or, where their authority has made it
    now, in the folder ``made``, which goes with the command: a node that is not let in leaves nothing behind.
    """
    from vecdb.rpc.peer_certificates import dns_names, issue
    from vecdb.rpc.peer_names import named

    if certificates is None:
        if not name:
            raise InvalidArgument("name", "is missing: without a certificate nothing says of which cluster the node is",
                                  got="nothing", limit="--name prod")
        return name, None
    file = certificates / f"{node}.pem"
    if not file.exists():
        if not (certificates / "ca.key").exists():
            raise InvalidArgument("certs", f"{certificates} has neither {node}.pem nor ca.key, which makes it: vecdb "
                                  "cluster certs makes the one where the other is", got=str(certificates))
        if not name:
            raise InvalidArgument("name", f"is missing: {node} has no certificate yet that says it", got="nothing",
                                  limit="--name prod")
        issue(certificates, name, [node], {node: [*dict.fromkeys((host, "localhost", "127.0.0.1"))]}, to=made)
        shutil.copyfile(certificates / folders.CA, made / folders.CA)
        return name, made
    found = [cluster for of, cluster in map(named, dns_names(file.read_bytes())) if of == node and cluster]
    if not found or (name or found[0]) not in found:
        raise InvalidArgument("certs", f"{file} is no certificate of {node}" + (f" in {name}" if name else ""),
                              got=str(file), limit="vecdb cluster certs")
    return name or found[0], certificates


def _folder(node: str, name: str, address: str, at: str, path: Path, host: str, token: str, secured: bool,
            admin_key_file: Path | None) -> Folder:
    values = folders.base(node, address, name, host) | {
        "cluster.join": [one.strip() for one in at.split(",") if one.strip()], "cluster.advertise": address,
        "cluster.token_file": TOKEN}
    files = {TOKEN: token}
    if secured:
        values |= folders.certified(node)
    here = is_loopback(_host(address))
    if not here and not secured:
        values["cluster.insecure"] = True
    if not here and secured:
        values |= {"tls.cert_file": f"{node}.pem", "tls.key_file": f"{node}.key", "client.ca_file": folders.CA}
    values["client.url"] = f"grpc{'s' if not here and secured else ''}://" \
        f"{values.get('server.advertise') or '127.0.0.1:' + str(values['server.grpc_port'])}"
    if admin_key_file is not None:
        try:
            files[ADMIN_KEY] = admin_key_file.read_text(encoding="utf-8").strip()
        except (OSError, ValueError) as error:
            raise InvalidArgument("admin_key_file", f"{admin_key_file} cannot be read: {error}",
                                  got=str(admin_key_file)) from None
        values |= {"security.admin_key_file": ADMIN_KEY, "client.api_key_file": ADMIN_KEY}
        if not secured and not here:
            values["client.insecure"] = True
    elif not here:  # the admin key of the other nodes is not known here, and nobody may come in without one
        values["security.require_keys"] = "always"
    return Folder(node, path, values, files)


# --- the cluster ----------------------------------------------------------------------------------


def _ask(settings: "Settings", certificates: Path | None, token: str) -> "Checked":
    """Have a member look at the token; the addresses of all, and who leads."""
    if certificates is not None:
        named = {"ca_file": folders.CA, "cert_file": f"{settings.server.node_id}.pem",
                 "key_file": f"{settings.server.node_id}.key"}
        cluster = settings.cluster.model_copy(update={key: certificates / one for key, one in named.items()})
        settings = settings.model_copy(update={"cluster": cluster})
    until = time.monotonic() + _AGAIN_S
    while True:
        try:
            return asyncio.run(_first(settings, token))
        except JoinRefused as error:
            if error.reason != "token" or time.monotonic() > until:
                raise
            time.sleep(1.0)


async def _first(settings: "Settings", token: str) -> "Checked":
    """Of the members that were named, the first that answers."""
    from vecdb.cli.machine import installed
    from vecdb.cluster.control import VERSION
    from vecdb.cluster.joining import Candidate
    from vecdb.rpc.members import JoinCalls
    from vecdb.rpc.peer_certificates import open_peer_certificates
    from vecdb.runtime.clock import SystemClock

    cluster, me = settings.cluster, settings.server.node_id
    calls = JoinCalls(me, cluster, open_peer_certificates(cluster, me, SystemClock()), 1)
    one = Candidate(me, 0, cluster.address(me), role=cluster.part, zone=cluster.zone, capacity=cluster.capacity,
                    version=installed("vecdb") or "", commands=VERSION)
    until = asyncio.get_running_loop().time() + ASK_S
    said: list[VecdbError] = []
    for address in cluster.join:
        try:
            return await calls.check(address, one, token, until)
        except JoinRefused:
            raise
        except VecdbError as error:
            said.append(error)
    raise Unavailable(f"no member answers: {'; '.join(one.message for one in said)}.  --no-check goes on without",
                      addresses=list(cluster.join))
