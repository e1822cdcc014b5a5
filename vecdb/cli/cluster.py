"""``vecdb cluster``: what the nodes of a cluster need before they start."""

from pathlib import Path
from typing import Annotated

import typer

from vecdb.cli import options as o
from vecdb.cli.output import Output
from vecdb.core.errors import InvalidArgument

commands = typer.Typer(help="What the nodes of a cluster need.", no_args_is_help=True)


@commands.command()
def certs(out_dir: Annotated[Path, typer.Option("--out", metavar="DIR", help="Where they are written; made if there is "
                                                "none.")],
          nodes: Annotated[str | None, typer.Option("--nodes", metavar="NAME,NAME...", help="Nodes by their names.  "
                                                    "[default: of cluster.nodes]", show_default=False)] = None,
          name: Annotated[str | None, typer.Option("--name", help="The cluster's.  [default: cluster.name]",
                                                   show_default=False)] = None,
          host: Annotated[list[str] | None, typer.Option(
              "--host", metavar="NODE=HOST", help="A DNS name or IP address that a node's certificate has, too, for "
              "other programs (repeat it).")] = None,
          renew: Annotated[bool, typer.Option("--renew", help="Also those that are there, by the same "
                                              "authority.")] = False,
          days: Annotated[int | None, typer.Option("--days", min=1, max=3_650, help="How long they are good.  "
                                                   "[default: 825]", show_default=False)] = None,
          config: o.Config = None, set_: o.Set = None, as_json: o.Json = False) -> None:
    """Make an authority for a cluster, and a certificate for each node; what is there stays.

    Each node gets its own two files and ca.pem (cluster.cert_file, key_file, ca_file).  ca.key signs others: it is
    needed on no node, and is to be kept elsewhere.
    """
    from vecdb.config import load
    from vecdb.rpc.peer_certificates import NODE_DAYS, issue

    out = Output(as_json)
    cluster = load(config, o.settings_of(set_)).settings.cluster
    listed = list(cluster.nodes) if nodes is None else [one.strip() for one in nodes.split(",") if one.strip()]
    if not listed:
        raise InvalidArgument("nodes", "names no node, and neither does cluster.nodes", got="nothing",
                              limit="--nodes n1,n2,n3")
    called = name or cluster.name
    if not called:
        raise InvalidArgument("name", "is missing, and cluster.name is not set: certificates are of one cluster",
                              got="nothing", limit="--name prod")
    written = issue(out_dir, called, listed, _hosts(host), renew=renew, days=days or NODE_DAYS)
    if as_json:
        out.emit({"cluster": called, "written": [str(one) for one in written]})
        return
    for one in written:
        out.say(str(one))
    if not written:
        out.note(f"nothing to do: {out_dir} has certificates of all of them (--renew makes new ones)")
    elif any(one.name == "ca.key" for one in written):
        out.note(f"keep {out_dir / 'ca.key'} where no node is: whoever has it can be any node of {called}")


def _hosts(given: list[str] | None) -> dict[str, list[str]]:
    hosts: dict[str, list[str]] = {}
    for one in given or ():
        node, sign, address = one.partition("=")
        if not sign or not node.strip() or not address.strip():
            raise InvalidArgument("host", f"{one[:60]!r} is no host of a node; write --host n1=10.0.0.1", got=one[:60],
                                  limit="NODE=HOST")
        hosts.setdefault(node.strip(), []).append(address.strip())
    return hosts
