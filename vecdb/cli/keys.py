"""``vecdb key``: API keys of a server, asked for online, or made in its directory before it starts."""

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vecdb.cli import options as o
from vecdb.cli.admin import administration
from vecdb.cli.output import Output
from vecdb.cli.target import HERE, Target, resolve, with_target
from vecdb.core.errors import InvalidArgument
from vecdb.core.units import parse_seconds

if TYPE_CHECKING:
    from vecdb.core.access import Grant, Key

commands = typer.Typer(help="API keys: who may read, write and administer.", no_args_is_help=True)


@commands.command()
@with_target
def create(name: Annotated[str, typer.Argument(metavar="NAME", help="What the key is called in lists and logs.")],
           role: Annotated[str, typer.Option("--role", "-r", help="read, write or admin; each includes those "
                                             "before.")] = "read",
           collection: Annotated[list[str] | None, typer.Option(
               "--collection", "-c", help="Only these: names, or prefixes as 'logs-*' (repeat it); else all.")] = None,
           grant: Annotated[list[str] | None, typer.Option(
               "--grant", metavar="ROLE:NAME[,NAME...]", help="A role on others (repeat it).")] = None,
           ttl: Annotated[str | None, typer.Option("--ttl", help="Good for so long: 90d, 12h.  [default: for ever]",
                                                   show_default=False)] = None,
           lock_out: Annotated[bool, typer.Option("--lock-out", help="Even if nobody could administer the server after "
                                                  "it.")] = False,
           target: Target = HERE, as_json: o.Json = False) -> None:
    """Make a key; its secret is printed on stdout, this once."""
    from vecdb.core.access import Grant

    out = Output(as_json)
    grants = [Grant(_role(role), tuple(collection or ())), *map(_grant, grant or ())]
    place = resolve(target)
    with administration(place, write=True) as admin:
        if place.is_server and place.api_key is None and not lock_out:
            _check_first(admin.list_keys(), grants, ttl)
        key, secret = admin.create_key(name, grants, seconds_of("ttl", ttl))
    out.note(f"made key {key.id} ({key.name}): {_grants(key)}; {_expiry(key)}")
    _secret(out, key, secret)


@commands.command("list")
@with_target
def list_(target: Target = HERE, as_json: o.Json = False) -> None:
    """Keys with their roles; secrets are kept as hashes and cannot be shown."""
    out = Output(as_json)
    with administration(resolve(target)) as admin:
        keys = admin.list_keys()
    if as_json:
        out.emit({"keys": [_told(key) for key in keys]})
    elif not keys:
        out.say("no keys; vecdb key create NAME makes one")
    else:
        out.table("", ["id", "name", "state", "grants", "created", "expires", "last used"],
                  [[key.id, key.name, _state(key), _grants(key), _day(key.created_s), _day(key.expires_s),
                    _day(key.last_used_s)] for key in keys], left=(0, 1, 2, 3, 4, 5, 6))


@commands.command()
@with_target
def rotate(id: Annotated[str, typer.Argument(metavar="ID", help="Of the key, as key list shows it.")],
           overlap: Annotated[str | None, typer.Option(
               "--overlap", help="The old secret is good for so long yet: 1d.  [default: it ends at once]",
               show_default=False)] = None,
           target: Target = HERE, as_json: o.Json = False) -> None:
    """Give a key a new secret, printed on stdout, this once."""
    out = Output(as_json)
    with administration(resolve(target), write=True) as admin:
        key, secret = admin.rotate_key(id, seconds_of("overlap", overlap))
    out.note(f"key {key.id} ({key.name}) has a new secret; the old one " +
             ("has ended" if overlap is None else f"is good for {overlap} yet"))
    _secret(out, key, secret)


@commands.command()
@with_target
def revoke(id: Annotated[str, typer.Argument(metavar="ID", help="Of the key, as key list shows it.")],
           target: Target = HERE, as_json: o.Json = False) -> None:
    """End a key at once and for good; once more does nothing."""
    out = Output(as_json)
    with administration(resolve(target), write=True) as admin:
        admin.revoke_key(id)
    out.note(f"revoked key {id}")
    if as_json:
        out.emit({"revoked": id})


def _check_first(keys: "list[Key]", grants: "list[Grant]", ttl: str | None) -> None:
    """Refuse a first key that is no admin, or not for long: from then on keys are asked for, and nobody had one, or
    would have one then, to make more with.
    """
    from vecdb.core.access import Role

    held = [grant for key in keys if _state(key) == "good" for grant in key.grants]
    if ttl is not None and not any(grant.role is Role.ADMIN and grant.covers(None) for grant in held):
        raise InvalidArgument("ttl", "the first admin's key of a server must not expire: keys are asked for from then "
                              "on, and none would be left to make others; make one without --ttl first, or say "
                              "--lock-out",
                              got=ttl, limit="no --ttl, or --lock-out")
    held += grants
    if not any(grant.role is Role.ADMIN and grant.covers(None) for grant in held):
        raise InvalidArgument("role", "the first key of a server must be an admin's: once there is one, keys are asked "
                              "for, and none could make others; make one with --role admin first, or say --lock-out",
                              got="no admin", limit="admin, or --lock-out")


def _role(word: str) -> Any:
    from vecdb.core.access import Role

    return Role.of(word)


def _grant(text: str) -> "Grant":
    from vecdb.core.access import Grant

    role, colon, names = text.partition(":")
    if not colon or not names:
        raise InvalidArgument("grant", f"{text[:60]!r} is no grant; write write:docs,logs-*", got=text[:60],
                              limit="ROLE:NAME[,NAME...]")
    return Grant(_role(role), tuple(names.split(",")))


def seconds_of(name: str, text: str | None) -> float:
    try:
        seconds = 0.0 if text is None else parse_seconds(text)
    except ValueError as error:
        raise InvalidArgument(name, str(error), got=str(text)[:40], limit="a length of time") from None
    if name == "ttl" and text is not None and not seconds:
        raise InvalidArgument(name, "a key that is good for no time at all is none", got=text, limit="more than 0")
    return seconds


def _secret(out: Output, key: "Key", secret: str) -> None:
    if out.as_json:
        out.emit({"key": _told(key), "secret": secret})
    else:
        out.line_of(secret)


def _told(key: "Key") -> dict[str, Any]:
    return {"id": key.id, "name": key.name, "state": _state(key),
            "grants": [{"role": grant.role.word, "collections": list(grant.collections)} for grant in key.grants],
            "created_s": key.created_s, "expires_s": key.expires_s, "last_used_s": key.last_used_s}


def _state(key: "Key") -> str:
    if key.revoked:
        return "revoked"
    return "expired" if key.expired(datetime.now(UTC).timestamp()) else "good"


def _grants(key: "Key") -> str:
    return "; ".join(f"{grant.role.word} on {', '.join(grant.collections) or 'all'}" for grant in key.grants)


def _expiry(key: "Key") -> str:
    return f"good until {_day(key.expires_s)}" if key.expires_s else "does not expire"


def _day(seconds: float) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M}Z" if seconds else "never"
