"""``connect``: from a target to an open database."""

import importlib
import inspect
import os
from collections.abc import Callable
from typing import Any, Final
from urllib.parse import unquote, urlsplit

from vecdb.client.backend import Backend
from vecdb.client.database import Database
from vecdb.client.options import check_consistency, kind_of, refuse_unknown
from vecdb.core.calls import Consistency
from vecdb.core.errors import InvalidArgument

NETWORK: Final = ("grpc", "grpcs")
_HINTS: Final = {"http": "grpc", "https": "grpcs", "tcp": "grpc"}


def connect(target: str | os.PathLike[str], *, api_key: str | None = None, consistency: str | Consistency = "session",
            **options: Any) -> Database:
    """Open the database at ``target``: a directory, or a server.

    A directory's path or ``file:`` URL is opened embedded, and made if there is none; ``options`` are the engine's
    settings (``vecdb.app.open_embedded``), and ``api_key`` is not looked at: its permissions guard it.
    ``grpc://host[:port]`` and, with TLS, ``grpcs://host[:port]`` are servers (port 7700 unless given).  Several
    addresses, separated by commas, are nodes of one cluster: calls take turns on those that answer, and one that fails
    is made again at another.  ``options`` are the fields of :class:`vecdb.client.remote.options.Options`: ``ca_file``,
    ``cert_file``, ``key_file``, ``server_name``, ``insecure``, ``timeout`` (seconds for each call that names none),
    ``connect_timeout``, ``retries``, ``retry_writes``, ``connections``, ``max_message_bytes``, ``auto_batch``,
    ``schema_ttl``, ``direct`` (ask the nodes that hold a collection's shards themselves).
    ``consistency``: what reads see of the writes before them where collections have replicas; each may say otherwise.
    ``session``: at least what was written by this handle (:meth:`Database.session_token` takes it further).
    ``linearizable``: every write that anybody was told is done before the read began; that takes asking the leader.
    ``eventual``: what the replica asked has, without waiting.  A directory, or a node that is alone, has one copy and
    gives the strongest always.
    A database nobody closed is closed when the interpreter ends.
    Raises InvalidArgument, and for a directory DatabaseLocked (another process has it open), FormatMismatch or
    StorageError; for a server Unavailable if none answers within ``connect_timeout``, or if connections are refused
    for two seconds.

    >>> with connect("./data") as db:  # doctest: +SKIP
    ...     docs = db.create_collection("docs", dim=384)
    """
    check_key(api_key)
    chosen = check_consistency(consistency) or Consistency.SESSION
    place = network(target)
    database: Database
    if place is not None:
        from vecdb.client.remote.opening import open_backend

        backend, label = open_backend(place, api_key, options)
        database = Database(backend, label, chosen)
    else:
        path = directory(target)
        database = Database(embedded(path, options), path, chosen)
    database.close_at_exit()
    return database


def check_key(api_key: object) -> None:
    if api_key is not None and not isinstance(api_key, str):
        raise InvalidArgument("api_key", f"must be a str, not {kind_of(api_key)}", got=kind_of(api_key), limit="str")


def embedded(path: str, options: dict[str, Any]) -> Backend:
    """Open the engine on a directory; an option it has not is refused."""
    # By name: the composition root stands above the SDK, and importing it compiles kernels.
    opener: Callable[..., Backend] = importlib.import_module("vecdb.app").open_embedded
    parameters = inspect.signature(opener).parameters
    if not any(one.kind is inspect.Parameter.VAR_KEYWORD for one in parameters.values()):
        refuse_unknown(options, list(parameters)[1:], "option")
    return opener(path, **options)


def network(target: object) -> str | None:
    """``target`` if it names a server; other schemes of the network are refused with the one that is meant."""
    if not isinstance(target, str):
        return None
    scheme = target.partition(":")[0].lower()
    if scheme in NETWORK and "://" in target:
        return target
    if scheme in _HINTS and "://" in target:
        raise InvalidArgument("target", f"{scheme}:// is not what the SDK speaks; give {_HINTS[scheme]}://host:7700",
                              got=scheme, limit="grpc://, grpcs://, a path or file:")
    return None


def directory(target: object) -> str:
    """Return the path ``target`` names, or raise InvalidArgument."""
    try:
        text = os.fspath(target)  # type: ignore[call-overload]
    except TypeError:
        text = None
    if not isinstance(text, str):
        raise InvalidArgument("target", f"must be a path or a URL, not {kind_of(target)}", got=kind_of(target),
                              limit="str or os.PathLike")
    scheme = text.partition(":")[0].lower() if isinstance(target, str) else ""
    if scheme == "file":
        text = _file_path(text)
    elif "://" in text and isinstance(target, str):
        raise InvalidArgument("target", f"unknown scheme {scheme[:40]!r}", got=scheme[:40],
                              limit="a path, file:, grpc:// or grpcs://")
    if not text or "\0" in text:
        raise InvalidArgument("target", "is no path" if text else "is empty", got=repr(text[:100]),
                              limit="a directory's path")
    return text


def _file_path(url: str) -> str:
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise InvalidArgument("target", f"is no URL: {error}", got=url[:100], limit="file:///path") from None
    if parts.netloc not in ("", "localhost") or parts.query or parts.fragment:
        raise InvalidArgument("target", "a file: URL holds a path alone (file:///path)", got=url[:100],
                              limit="file:///path")
    return unquote(parts.path)
