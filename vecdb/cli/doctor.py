"""``vecdb doctor``: are this machine, this installation, these settings and this database in order?

Every check says what it found and, where something is amiss, what it costs and what to do.  The exit code is 0, or
that of the first check that failed: by kind, as everywhere.
"""

import os
import stat
import time
from collections.abc import Collection as Names
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from vecdb.cli import exits, machine, peers
from vecdb.cli import options as o
from vecdb.cli.admin import KEYS
from vecdb.cli.machine import Check
from vecdb.cli.output import Output, count, duration
from vecdb.cli.target import HERE, Place, Target, resolve, with_target
from vecdb.core.errors import (
    DeadlineExceeded,
    InvalidArgument,
    PermissionDenied,
    Unauthenticated,
    Unavailable,
    Unsupported,
    VecdbError,
)

if TYPE_CHECKING:
    from vecdb.client.collection import Collection
    from vecdb.client.database import Database
    from vecdb.config import Settings
    from vecdb.core.access import Key

_SKEW_S: Final = 2.0
"""Clocks this far apart make keys end too early or too late, and logs of two machines hard to lay side by side."""

@with_target
def doctor(target: Target = HERE,
           quick: Annotated[bool, typer.Option("--quick", help="Do not read every record to compare digests.")] = False,
           config: o.Config = None, set_: o.Set = None, as_json: o.Json = False) -> None:
    """Check settings, versions, processor, memory, disk, clock, and a directory or a server with its collections."""
    out = Output(as_json)
    checks = machine.machine()
    place: Place | None = None
    try:
        place = resolve(target, config=config, others=o.settings_of(set_))
    except InvalidArgument as error:
        if not error.argument.startswith("settings"):
            raise
        checks.append(Check("settings", "fail", error.message, "vecdb serve --check shows what is set, and from where",
                            exits.USAGE))
    if place is not None and place.directory is not None:
        checks += [*_settings(place), *peers.cluster(place.settings), *machine.disk(place.directory), *_ports(place),
                   *_directory(out, place, place.directory, quick, asked=target.data is not None)]
    elif place is not None:
        checks += _server(out, place, quick)
    if as_json:
        out.emit({"ok": all(c.state != "fail" for c in checks), "checks": [asdict(c) for c in checks]})
    else:
        out.table("", ["", "check", "found"], [[c.state, c.name, c.found + (f"\n→ {c.advice}" if c.advice else "")]
                                               for c in checks], left=(0, 1, 2))
    worst = next((c.exit_code or exits.INTERNAL for c in checks if c.state == "fail"), exits.OK)
    if worst:
        raise typer.Exit(worst)


def _failed(name: str, error: VecdbError, advice: str = "") -> Check:
    return Check(name, "fail", error.message, advice, exits.exit_code(error))


def _settings(place: Place) -> list[Check]:
    """What a server here would start with, its certificates too."""
    from vecdb.cli.serve import shown_secrets, warnings_of

    sources = dict.fromkeys(origin.where for _, _, origin in place.loaded.rows() if origin.layer != "default")
    found = f"from {', '.join(sources)}" if sources else "all defaults"
    try:
        told = warnings_of(place.settings) + shown_secrets(place.loaded)
    except VecdbError as error:
        return [_failed("settings", error, "vecdb serve --check shows what is set, and from where")]
    return [Check("settings", "warn" if told else "ok", found, "; ".join(told)), *_certificate(place.settings)]


def _certificate(settings: "Settings") -> list[Check]:
    """When the server's certificate ends; whether it can be used at all, the settings' check has said."""
    if settings.tls.cert_file is None:
        return []
    return [peers.certificate_ends(settings.tls.cert_file, "certificate",
                                   "renew it; a running server loads the new file by itself")]


def _ports(place: Place) -> list[Check]:
    from vecdb.cli.serve import check_ports

    server = place.settings.server
    text = f"{server.host}: {server.grpc_port} (gRPC)" + (
        f", {server.http_port} (HTTP)" if server.http_port >= 0 else "")
    try:
        check_ports(place.settings)
    except VecdbError as error:
        in_use = isinstance(error, exits.PortInUseError)
        return [Check("ports", "warn", error.message, "a server that runs here already answers with --url; another "
                      "needs other ports" if in_use else "set server.host and the ports anew")]
    return [Check("ports", "ok", f"{text}, free")]


def _directory(out: Output, place: Place, directory: Path, quick: bool, *, asked: bool) -> list[Check]:
    """Open the database and look at every collection; opening verifies the checksums of sealed files."""
    if not directory.is_dir() or not any(directory.iterdir()):
        if asked:
            return [Check("database", "fail", f"there is none at {directory}", exit_code=exits.NOT_FOUND)]
        return [Check("database", "ok", f"none yet at {directory}")]
    from vecdb.cli.session import open_database
    from vecdb.services.aside import kept

    aside = peers.aside(kept(directory))
    try:
        with open_database(place, verify=True) as database:
            names = database.list_collections()
            return [Check("database", "ok", f"{directory}: {count(len(names))} collections"), *aside,
                    *[_collection(out, name, database, quick) for name in names], *_ring(place, directory)]
    except VecdbError as error:
        return [_failed("database", error), *aside]


def _ring(place: Place, directory: Path) -> list[Check]:
    if not (directory / KEYS).is_dir():
        return []
    from contextlib import closing

    from vecdb.app import open_store
    from vecdb.runtime.clock import SystemClock
    from vecdb.services.keys import KeyRing

    try:
        with closing(KeyRing(directory / KEYS, open_store, SystemClock(), read_only=True)) as ring:
            return [_keys(ring.list()), _privacy(directory)]
    except VecdbError as error:
        return [_failed("keys", error)]


def _privacy(directory: Path) -> Check:
    """Keys guard the port; who may read the files needs none."""
    mode = stat.S_IMODE(directory.stat().st_mode)
    text = f"{directory} has the mode {mode:04o}"
    if os.name == "posix" and mode & (stat.S_IROTH | stat.S_IXOTH):
        return Check("permissions", "warn", f"{text}: every user of this machine can read what is in it, and keys "
                     "were made to guard that", f"chmod o-rwx {directory}")
    return Check("permissions", "ok", text)


def _keys(keys: "list[Key]") -> Check:
    now = time.time()
    good = [key for key in keys if not key.revoked and not key.expired(now)]
    soon = [key for key in good if 0 < key.expires_s < now + peers.SOON_S]
    text = f"{count(len(good))} good, {count(len(keys) - len(good))} revoked or expired"
    if not good:
        return Check("keys", "warn", text, "nobody gets in while keys are asked for: vecdb key create makes one")
    if not any(grant.role.word == "admin" and not grant.collections for key in good for grant in key.grants):
        return Check("keys", "warn", f"{text}, none of an admin", "nobody can make keys online: vecdb key create "
                     "--role admin on the directory, or security.admin_key_file")
    if soon:
        return Check("keys", "warn", f"{text}; {', '.join(key.name for key in soon)} end within two weeks",
                     "make new ones with vecdb key create")
    return Check("keys", "ok", text)


def _server(out: Output, place: Place, quick: bool) -> list[Check]:
    """What a server says of itself, as far as the key lets us see."""
    from vecdb.cli.session import open_database, patience

    seconds, checks = patience(place), list[Check]()
    try:
        with open_database(place) as database:
            checks += _each(place, database)
            shards = peers.shards(database, seconds)
            led = peers.is_led(shards)
            checks += _server_keys(database, seconds) if led else [
                Check("keys", "warn", "not asked for: nobody is known to lead the control group")]
            if shards is not None:
                nodes, full = peers.members(database, seconds) if led else ([], [])
                checks += [*nodes, peers.well(shards, full)]
            several = {one.collection for one in shards or () if len(one.replicas) > 1}
            # Where nobody leads no place in the log can be marked to compare replicas at.
            waiting = {one.collection for one in shards or () if one.leader is None}
            names = database.list_collections(timeout=seconds)
            return [*checks, Check("database", "ok", f"{place.url}: {count(len(names))} collections"),
                    *[_unled(_collection(out, name, database, True, seconds=seconds)) if name in waiting else
                      _collection(out, name, database, quick, several, seconds=seconds) for name in names]]
    except VecdbError as error:
        return [*checks, _failed("server", error, _ADVICE.get(type(error).__name__, ""))]


def _unled(check: Check) -> Check:
    """Of a collection that has a shard which nobody leads: what is counted may be of the others alone, or old."""
    if check.state != "ok":
        return check
    return replace(check, state="warn", found=f"{check.found}, as far as is known: nobody leads a shard of it")


_ADVICE: Final = {
    "Unavailable": "does it run (vecdb serve), and can we reach its port?  /readyz on the HTTP port says more",
    "Unauthenticated": "give a key in VECDB_API_KEY or with --api-key-file",
    "PermissionDenied": "the key lacks the role; vecdb key list shows what it may",
}


def _each(place: Place, database: "Database") -> list[Check]:
    """What the server says of itself; of several addresses each by itself, for their clocks may differ, too."""
    from vecdb.client.remote.target import parse

    target = parse(place.url)
    if len(target.addresses) == 1:
        with database._session.call() as backend:
            return _answers(place.url, backend)
    from vecdb.cli.session import open_database

    checks: list[Check] = []
    for address in target.addresses:
        one = replace(place, url=f"{'grpcs' if target.secure else 'grpc'}://{address}")
        try:
            with open_database(one) as alone, alone._session.call() as backend:
                checks += _answers(one.url, backend, f" {address}")
        except VecdbError as error:
            checks.append(_failed(f"server {address}", error, _ADVICE.get(type(error).__name__, "")))
    return checks


def _answers(url: str, backend: Any, which: str = "") -> list[Check]:
    begin, wall = time.perf_counter(), time.time()
    told = backend.server()
    spent = time.perf_counter() - begin
    ours = machine.installed("vecdb") or "0+unknown"
    text = f"{url}: vecdb {told.get('version')}, node {told.get('node_id')}, up {duration(told['uptime_s'])}, " \
           f"answers in {duration(spent)}"
    same = str(told.get("version")).split(".")[:2] == ours.split(".")[:2]
    checks = [Check(f"server{which}", "ok", text) if same else
              Check(f"server{which}", "warn", f"{text}; this client is {ours}", "install the server's version here, or "
                    "newer")]
    if "wall_s" in told:
        # Halfway through the call is when the server looked, give or take half of it.
        skew = float(told["wall_s"]) - (wall + spent / 2)
        found = f"the server's is {skew:+.3f} s from ours, give or take {spent / 2 * 1e3:.0f} ms"
        apart = abs(skew) - spent / 2 > _SKEW_S
        checks.append(Check(f"clocks{which}", "warn", found, "let chrony or ntpd set both: keys and certificates go by "
                            "them") if apart else Check(f"clocks{which}", "ok", found))
    return checks + peers.aside(told.get("set_aside") or {}, which)


def _server_keys(database: "Database", seconds: float) -> list[Check]:
    try:
        keys = database.admin.list_keys(timeout=seconds)
    except (PermissionDenied, Unauthenticated, Unsupported):
        return []  # only who administers may see them
    except (Unavailable, DeadlineExceeded) as error:  # that nobody leads the shards say
        return [Check("keys", "warn", error.message)]
    return [_keys(keys)] if keys else [Check("keys", "ok", "none were made")]


def _collection(out: Output, name: str, database: "Database", quick: bool,
                several: Names[str] = (), *, seconds: float | None = None) -> Check:
    try:
        collection: Collection = database.collection(name)
        # Eventual: of a cluster without a majority, too.
        found = collection.describe(consistency="eventual", timeout=seconds)
        damage = _damage(found.details)
        if damage:
            return Check(f"collection {name}", "fail", "; ".join(damage), "records it names must be imported again",
                         exits.DATA_LOSS)
        text = f"{count(found.records)} records"
        if quick:
            return Check(f"collection {name}", "ok", text)
        return _digest(out, name, database, text, replicated=name in several)
    except VecdbError as error:
        return _failed(f"collection {name}", error)


def _digest(out: Output, name: str, database: "Database", text: str, *, replicated: bool) -> Check:
    """Read everything once: what every write added up must be what is there, on every replica."""
    out.note(f"reading {name} to compare its digest (--quick does not)")
    if replicated:
        return peers.compared(name, database, text)
    with database._session.call() as backend:
        asked: Any = backend
        found = asked.verify(name)
    if found["equal"]:
        return Check(f"collection {name}", "ok", f"{text}, digest as written")
    return Check(f"collection {name}", "fail", f"{text}; their digest is {found['computed']}, that of what was written "
                 f"{found['digest']}", "vecdb export keeps what can be read; import it into a new collection",
                 exits.DATA_LOSS)


def _damage(details: Any) -> list[str]:
    """Whatever a description says, at any depth, under a key that speaks of damage."""
    found: list[str] = []
    if isinstance(details, dict):
        for key, value in details.items():
            if "damage" in str(key) and value:
                found += _words(value)
            else:
                found += _damage(value)
    elif isinstance(details, list | tuple):
        for value in details:
            found += _damage(value)
    return found


def _words(value: Any) -> list[str]:
    """What a description says of damage, as lines."""
    if isinstance(value, dict):
        lost = value.get("lost_ids") or []
        told = [f"lost: {', '.join(map(str, lost[:20]))}{' ...' if len(lost) > 20 else ''}"] if lost else []
        return [str(one) for one in value.get("messages", [])] + told
    if isinstance(value, list | tuple):
        return [words for one in value for words in _words(one)]
    return [str(value)]
