"""``connect``: from a target to an open database."""

import importlib
import inspect
import os
from collections.abc import Callable
from typing import Any
from urllib.parse import unquote, urlsplit

from vecdb.client.backend import Backend
from vecdb.client.database import Database
from vecdb.client.options import kind_of, refuse_unknown
from vecdb.core.errors import InvalidArgument, Unsupported

_NETWORK = ("grpc", "grpcs", "http", "https", "tcp")


def connect(target: str | os.PathLike[str], *, api_key: str | None = None, **options: Any) -> Database:
    """Open the database at ``target``, a directory's path or ``file:`` URL; it is made if there is none.

    ``api_key`` is for servers; a directory is guarded by its permissions, and the key is not looked at.
    A database nobody closed is closed when the interpreter ends.
    ``options`` are the engine's settings (``vecdb.app.open_embedded``); an unknown one is refused.
    Raises InvalidArgument, DatabaseLocked (another process has the directory open), FormatMismatch, StorageError,
    and Unsupported for network targets, for which this build has no client.

    >>> with connect("./data") as db:  # doctest: +SKIP
    ...     docs = db.create_collection("docs", dim=384)
    """
    if api_key is not None and not isinstance(api_key, str):
        raise InvalidArgument("api_key", f"must be a str, not {kind_of(api_key)}", got=kind_of(api_key), limit="str")
    path = directory(target)
    # By name: the composition root stands above the SDK, and importing it compiles kernels.
    opener: Callable[..., Backend] = importlib.import_module("vecdb.app").open_embedded
    parameters = inspect.signature(opener).parameters
    if not any(one.kind is inspect.Parameter.VAR_KEYWORD for one in parameters.values()):
        refuse_unknown(options, list(parameters)[1:], "option")
    database = Database(opener(path, **options), label=path)
    database.close_at_exit()
    return database


def directory(target: object) -> str:
    """Return the path ``target`` names, or raise InvalidArgument or Unsupported."""
    try:
        text = os.fspath(target)  # type: ignore[call-overload]
    except TypeError:
        text = None
    if not isinstance(text, str):
        raise InvalidArgument("target", f"must be a path or a URL, not {kind_of(target)}", got=kind_of(target),
                              limit="str or os.PathLike")
    scheme = text.partition(":")[0].lower() if isinstance(target, str) else ""
    if scheme in _NETWORK and "://" in text:
        raise Unsupported(f"{scheme}://: this build has no network client; give a directory's path to open it "
                          "embedded", target=scheme)
    if scheme == "file":
        text = _file_path(text)
    elif "://" in text and isinstance(target, str):
        raise InvalidArgument("target", f"unknown scheme {scheme[:40]!r}", got=scheme[:40], limit="a path or file:")
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
