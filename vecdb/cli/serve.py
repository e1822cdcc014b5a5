"""``vecdb serve``: a node on this directory; ``--check`` shows the settings it would start with, and starts nothing.

What is wrong is told before the engine is opened: settings, certificates, ports that others hold.  Words go to stderr
if that is a terminal, else it is the log's alone, one JSON object a line; a program waits for ``--ready-file`` or reads
the one JSON line that ``--json`` prints on stdout when the node answers.
"""

import contextlib
import errno
import os
import socket
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from vecdb.cli import options as o
from vecdb.cli.admin import KEYS
from vecdb.cli.exits import PortInUseError
from vecdb.cli.output import Output, duration, watched
from vecdb.core.errors import InvalidArgument, Unauthenticated
from vecdb.core.nodes import all_loopback, is_loopback

if TYPE_CHECKING:
    from vecdb.config import Loaded, Settings
    from vecdb.core.access import Principal

_STEP_S: Final = 2.0
_FLAGS: Final = {"data_dir": "--data", "server.host": "--host", "server.grpc_port": "--port",
                 "server.http_port": "--http-port", "server.processes": "--processes"}


def serve(data: o.Data = None,
          host: Annotated[str | None, typer.Option("--host", help="Address to listen on.  [default: 127.0.0.1]",
                                                   show_default=False)] = None,
          port: Annotated[int | None, typer.Option("--port", "-p", help="gRPC; 0 takes a free one.  [default: 7700]",
                                                   show_default=False)] = None,
          http_port: Annotated[int | None, typer.Option(
              "--http-port", help="Health, metrics, REST; 0 takes a free one, -1 none.  [default: 7701]",
              show_default=False)] = None,
          processes: Annotated[int | None, typer.Option(
              "--processes", help="Front processes on the port; 0: by the cores.  [default: 1]",
              show_default=False)] = None,
          config: o.Config = None,
          set_: o.Set = None,
          check: Annotated[bool, typer.Option("--check", help="Print the effective settings and where they come from, "
                                              "and do not start.")] = False,
          as_toml: Annotated[bool, typer.Option("--toml", help="With --check: as a TOML file.")] = False,
          ready_file: Annotated[Path | None, typer.Option(
              "--ready-file", help="Written when the node answers: JSON with its ports; removed at the end.")] = None,
          as_json: o.Json = False) -> None:
    """Serve a directory over gRPC and HTTP until SIGTERM or Ctrl-C; running calls are finished first."""
    import vecdb.serving  # noqa: F401  # before gRPC: it says how this process forks
    from vecdb.config import load

    out = Output(as_json)
    given = {"data_dir": data, "server.host": host, "server.grpc_port": port, "server.http_port": http_port,
             "server.processes": processes}
    flags: dict[str, tuple[Any, str]] = {name: (value, _FLAGS[name]) for name, value in given.items()
                                         if value is not None}
    loaded = load(config, flags | o.settings_of(set_))
    settings = loaded.settings
    by_node, ours = _warnings(settings)
    ours += shown_secrets(loaded)
    if check:
        _show(out, loaded, by_node + ours, as_toml)
        return
    check_ports(settings)
    _warn(out, settings, by_node, ours)
    raise typer.Exit(_run(out, settings, ready_file))


def _warn(out: Output, settings: "Settings", by_node: list[str], ours: list[str]) -> None:
    """To whoever watches in words, else in the log, where the node itself tells of some."""
    if watched():
        for one in by_node + ours:
            out.warn(one)
    elif ours:
        from vecdb.runtime.logs import configure, logger

        undo = configure(settings.log.level, settings.log.format)
        for one in ours:
            logger().warning("settings", warning=one)
        undo()


def shown_secrets(loaded: "Loaded") -> list[str]:
    return [f"{name} stands on the command line, where every user of this machine can read it"
            for name in loaded.secrets_on_command_line()]


def warnings_of(settings: "Settings") -> list[str]:
    """What the settings should not be left with; refuses an admin key and certificates that cannot be used."""
    by_node, ours = _warnings(settings)
    return by_node + ours


def _warnings(settings: "Settings") -> tuple[list[str], list[str]]:
    """Those that a node writes into its log as it starts, and those that it does not know of."""
    from vecdb.rpc.auth import Authenticator, loud_binding
    from vecdb.rpc.tls import open_certificates
    from vecdb.runtime.clock import SystemClock

    class Made:
        """Stands for the key ring, which a running node may hold: its folder says whether there ever was a key."""

        required = (settings.data_dir / KEYS).is_dir()

        def principal(self, secret: str) -> "Principal":
            raise Unauthenticated("nobody is asked here")

    certificates = open_certificates(settings.tls, SystemClock())
    asks = Authenticator(Made(), settings.security, SystemClock()).required
    by_node = loud_binding(settings, keys_required=asks) + ([] if certificates is None else certificates.warnings())
    ours: list[str] = []
    some = Made.required or bool(settings.security.admin_key.get_secret_value())
    if some and not asks:
        ours.append("there are API keys, and none is asked for: security.require_keys is never")
    cluster = settings.cluster
    if cluster.name and is_loopback(cluster.host) and not all_loopback(
            [cluster.address(settings.server.node_id)]):
        ours.append(f"other nodes are told to come to {cluster.address(settings.server.node_id)}, and cluster.host is "
                    f"{cluster.host}: only this machine reaches it")
    if asks and not some:
        ours.append("API keys are asked for and there is none, so nobody gets in: make one with vecdb key create, or "
                    "set security.admin_key_file")
    return by_node, ours


def check_ports(settings: "Settings") -> None:
    """Refuse ports that cannot be bound, before a database is opened for nothing."""
    server, cluster = settings.server, settings.cluster
    if cluster.name:
        joins = "another takes another" if cluster.join else "another entry there takes another, the same on every node"
        _check_port(cluster.host, cluster.listens_on(server.node_id), "cluster.host",
                    "cluster.peer_port" if cluster.join else "cluster.nodes", joins)
    if server.host.startswith("unix:"):
        return
    for name, flag, number in (("grpc_port", "--port", server.grpc_port), ("http_port", "--http-port",
                                                                           server.http_port)):
        if number >= 0:  # of port 0 the address is tried
            _check_port(server.host, number, "server.host", f"server.{name}", f"{flag} takes another, and 0 a free one")


def _check_port(host: str, number: int, host_name: str, name: str, way: str) -> None:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host.strip("[]"), number, type=socket.SOCK_STREAM)[0]
    except OSError as error:
        raise InvalidArgument(f"settings.{host_name}", f"{host} is no address: {error.strerror}", got=host,
                              limit="an address of this machine") from None
    with contextlib.closing(socket.socket(family, kind, protocol)) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # what waits out its time does not count
        try:
            probe.bind(address)
            probe.listen(1)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise PortInUseError(f"port {number} of {host} is in use by another process ({name}); {way}",
                                     port=number, host=host) from None
            if error.errno == errno.EACCES:
                raise InvalidArgument(f"settings.{name}", f"port {number} may not be bound by this user; {way}",
                                      got=number, limit="1024 or above") from None
            raise InvalidArgument(f"settings.{host_name}", f"{host} cannot be listened on: {error.strerror}", got=host,
                                  limit="an address of this machine") from None


def _show(out: Output, loaded: "Loaded", told: list[str], as_toml: bool) -> None:
    if out.as_json:
        out.emit({"settings": loaded.masked(), "warnings": told,
                  "origins": {name: {"layer": origin.layer, "where": origin.where} for name, _, origin in loaded.rows()
                              if origin.layer != "default"}})
    elif as_toml:
        out.say(to_toml(loaded))
    else:
        rows = [[name, _shown(value), origin.where] for name, value, origin in loaded.rows()]
        out.table("", ["setting", "value", "from"], rows, left=(0, 1, 2))
    if not out.as_json:
        for one in told:
            out.warn(one)


def _shown(value: Any) -> Any:
    if isinstance(value, dict):
        return ",".join(f"{name}={one}" for name, one in value.items()) or "-"
    return "-" if value in (None, "") else value


def to_toml(loaded: "Loaded") -> str:
    """The settings as a file that sets the same, with where each came from; secrets are left out."""
    from vecdb.config import MASK

    lines: list[str] = []
    section = ""
    for name, value, origin in loaded.rows():
        table, _, key = name.rpartition(".")
        if table != section:
            section = table
            lines += ["", f"[{table}]"]
        if value is None or (isinstance(value, str) and MASK in value):
            lines.append(f"# {key} = {'(secret)' if value else '(none)'}")
        else:
            lines.append(f"{key} = {toml_of(value)}" + ("" if origin.layer == "default" else f"  # {origin.where}"))
    return "\n".join(lines)


def toml_of(value: Any) -> str:
    """A value as it stands in a TOML file."""
    if isinstance(value, str):
        import orjson

        return orjson.dumps(value).decode().replace("\x7f", "\\u007f")  # JSON's strings are TOML's but for this one
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(toml_of, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{toml_of(name)} = {toml_of(one)}' for name, one in value.items())}}}"
    return str(value).lower() if isinstance(value, bool) else repr(value)


def _run(out: Output, settings: "Settings", ready_file: Path | None) -> int:
    """Start the node, tell of it, and stay until it ends."""
    server, begin = settings.server, time.monotonic()
    number = _version()
    out.remark(f"vecdb {number} on {settings.data_dir.resolve()}")
    from vecdb.serving import AGAIN, run_node

    def on_ready(told: dict[str, Any]) -> None:
        secured = "with" if settings.tls.cert_file else "without"
        out.remark(f"gRPC {told.get('grpc')} ({secured} TLS)" + (f", HTTP {told['http']}" if told.get("http") else ""))
        out.remark(f"ready in {duration(time.monotonic() - begin)}; SIGTERM or Ctrl-C stops it, within "
                   f"{server.drain_s:g} s")
        scheme = "grpcs" if settings.tls.cert_file else "grpc"
        line = {"event": "ready", "pid": os.getpid(), "version": number, "host": server.host,
                "tls": settings.tls.cert_file is not None, "url": f"{scheme}://{told.get('grpc')}", **told}
        if out.as_json:
            out.line(line)
        if ready_file is not None:
            _publish(ready_file, line)

    try:
        code = run_node(settings, on_ready, _Steps(out))
    finally:
        if ready_file is not None:
            with contextlib.suppress(OSError):
                ready_file.unlink()
    if code == AGAIN:  # the same process, so that whoever watches it sees no end
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])  # noqa: S606  # what this process was started by
    return code


class _Steps:
    """Says where a start is: each stage when it begins, and a long one every few seconds."""

    def __init__(self, out: Output) -> None:
        self._out, self._stage, self._said = out, "", 0.0

    def __call__(self, step: str) -> None:
        stage, now = step.partition(" ")[0], time.monotonic()
        if stage != self._stage or now - self._said >= _STEP_S:
            self._stage, self._said = stage, now
            self._out.remark(f"{step} ...")


def _version() -> str:
    from vecdb.cli.machine import installed

    return installed("vecdb") or "0+unknown"


def _publish(path: Path, line: dict[str, Any]) -> None:
    """Write the file whole or not at all: whoever waits for it reads at once."""
    import orjson

    partial = path.with_name(path.name + ".partial")
    try:
        partial.write_bytes(orjson.dumps(line, default=str) + b"\n")
        os.replace(partial, path)
    except OSError as error:
        raise InvalidArgument("ready_file", f"{path} cannot be written: {error.strerror}", got=str(path),
                              limit="a path that may be written") from None
