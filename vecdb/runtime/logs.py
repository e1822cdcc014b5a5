"""Logs: an event's name and fields.

Embedded, :func:`logger` writes to the standard library's logger ``vecdb``, whose handlers the program owns; nothing
here touches them.  A node is the program: it calls :func:`configure`, and then every line of the process, gRPC's and
uvicorn's included, is JSON or a coloured line on stderr, with the request it belongs to, without secrets, and a
warning that repeats once a minute with the count of what was left out.
"""

import logging
import re
import sys
import time
from collections.abc import Callable, MutableMapping
from contextlib import suppress
from typing import Any, Final, Literal, TextIO

import orjson
import structlog

from vecdb.ports import context

Level = Literal["debug", "info", "warning", "error"]
Format = Literal["auto", "json", "console"]

REPEAT_S: Final = 60.0
KINDS_MAX: Final = 1_000
"""Kinds of warnings that are told apart when counting repetitions."""
VARIANTS_MAX: Final = 20
"""Of one event with other words in its fields: so many are told apart in a minute, the rest are one kind."""
_NO_KIND: Final = frozenset({"event", "request_id", "trace_id", "span_id", "exception", "stack"})
"""Fields that differ from line to line and make no other kind of event."""
_NUMBERED: Final = frozenset({"front"})
"""Fields whose numbers are names."""
OWN_LIMIT: Final = frozenset({"slow_query"})
"""Events that their makers limit, and whose every line says something else."""
_QUIET: Final = {"uvicorn.access": logging.WARNING, "grpc": logging.WARNING, "asyncio": logging.WARNING,
                 "opentelemetry": logging.WARNING}
_KEY: Final = re.compile(r"(vdb_[0-9A-Za-z]+_)[0-9A-Za-z_\-]+")
_BEARER: Final = re.compile(r"((?:[Bb]earer|[Bb]asic) +)(?!vdb_)[0-9A-Za-z._~+/=\-]{6,}")
_SECRET_FIELDS: Final = re.compile(r"secret|password|passwd|authorization|api_key$|admin_key|token$", re.IGNORECASE)
MASK: Final = "***"
_LEFT: Final = frozenset({"CancelledError", "AbortError", "ExecuteBatchError"})
"""What cygrpc raises in a handler whose call is over."""
_LEAVING: Final = re.compile(r"ExecuteBatchError raised in core|Unexpected \[(CancelledError|AbortError)\]|"
                             r"Abort error .*CancelledError", re.DOTALL)

_configured = False

_Event = MutableMapping[str, Any]


def logger() -> structlog.stdlib.BoundLogger:
    """The process's logger, named ``vecdb``."""
    render: list[Any] = [structlog.stdlib.ProcessorFormatter.wrap_for_formatter] if _configured else [
        structlog.processors.format_exc_info, structlog.processors.KeyValueRenderer(key_order=["event"])]
    log: structlog.stdlib.BoundLogger = structlog.wrap_logger(
        logging.getLogger("vecdb"), wrapper_class=structlog.stdlib.BoundLogger,
        processors=[structlog.stdlib.filter_by_level, *render])
    return log


def configure(level: Level = "info", format: Format = "auto", *, stream: TextIO | None = None,
              counted: Callable[[str], None] = lambda level: None) -> Callable[[], None]:
    """Take over the process's logs; returns what undoes it (and writes the counts that are held back).

    ``stream``: stderr unless said otherwise.  ``counted(level)`` is called for every event, left out or not.
    Lines name the request of their task (:mod:`vecdb.ports.context`).  Servers that bring handlers of their own
    must be told to leave them out: ``uvicorn.Config(log_config=None)``.
    """
    global _configured
    out = stream or sys.stderr
    console = format == "console" or (format == "auto" and out.isatty())
    handler = _Handler(out, counted)
    handler.setFormatter(_formatter(console, out))
    handler.addFilter(_not_a_leaving_reader)
    root = logging.getLogger()
    before = root.handlers[:], root.level
    root.handlers = [handler]
    root.setLevel(level.upper())
    names = {name: (logging.getLogger(name).handlers[:], logging.getLogger(name).level) for name in _QUIET}
    for name, at_least in _QUIET.items():
        one = logging.getLogger(name)
        one.handlers = []
        one.setLevel(max(at_least, root.level))
        one.propagate = True
    logging.captureWarnings(True)
    _configured = True

    def undo() -> None:
        global _configured
        handler.tell_held_back()
        root.handlers, root.level = before
        for name, (handlers, own_level) in names.items():
            logging.getLogger(name).handlers = handlers
            logging.getLogger(name).setLevel(own_level)
        logging.captureWarnings(False)
        _configured = False

    return undo


def _not_a_leaving_reader(record: logging.LogRecord) -> bool:
    """gRPC tells of a client that goes away while an answer is being written as of an error, stack and all."""
    if record.name != "grpc._cython.cygrpc":
        return True
    if record.exc_info and record.exc_info[0] is not None and record.exc_info[0].__name__ in _LEFT:
        return False
    return _LEAVING.match(record.getMessage()) is None


# --- processors -----------------------------------------------------------------------------------


def _formatter(console: bool, out: TextIO) -> logging.Formatter:
    shared: list[Any] = [structlog.stdlib.add_log_level, structlog.stdlib.add_logger_name, _add_request,
                         structlog.processors.TimeStamper(fmt="iso", utc=True, key="time"),
                         structlog.stdlib.PositionalArgumentsFormatter()]
    render: list[Any] = [structlog.dev.ConsoleRenderer(colors=out.isatty(), timestamp_key="time")] if console else [
        structlog.processors.format_exc_info, structlog.processors.JSONRenderer(serializer=_dumps)]
    return _Masked(foreign_pre_chain=shared, processors=[
        _mend(shared), structlog.stdlib.ProcessorFormatter.remove_processors_meta, _mask_fields, *render])


def _mend(shared: list[Any]) -> Callable[[Any, str, _Event], _Event]:
    """Our own events come without what ``foreign_pre_chain`` gives others."""
    def apply(log: Any, name: str, event: _Event) -> _Event:
        if event.get("_from_structlog"):
            for one in shared:
                event = one(log, name, event)
        return event

    return apply


def _dumps(event: Any, **_: Any) -> str:
    return orjson.dumps(event, default=str, option=orjson.OPT_NON_STR_KEYS | orjson.OPT_SERIALIZE_NUMPY).decode()


def _add_request(log: Any, name: str, event: _Event) -> _Event:
    for key, value in context.current()._asdict().items():
        if value:
            event.setdefault(key, value)
    return event


def _mask_fields(log: Any, name: str, event: _Event) -> _Event:
    for key in event:
        if _SECRET_FIELDS.search(str(key)) and event[key]:
            event[key] = MASK
    return event


def mask(text: str) -> str:
    """Without the secret parts of API keys and bearer tokens; a key's public id stays."""
    if "vdb_" in text:
        text = _KEY.sub(r"\1" + MASK, text)
    if "earer " in text or "asic " in text:
        text = _BEARER.sub(r"\1" + MASK, text)
    return text


class _Masked(structlog.stdlib.ProcessorFormatter):
    """The last word: whatever a message or traceback holds."""

    def format(self, record: logging.LogRecord) -> str:
        return mask(super().format(record))


# --- repetitions ----------------------------------------------------------------------------------


class Repetitions:
    """Which of many equal events are written: the first, and after that one in ``every_s`` with the count between."""

    def __init__(self, every_s: float = REPEAT_S, kinds_max: int = KINDS_MAX) -> None:
        self._every_s = every_s
        self._kinds_max = kinds_max
        self._seen: dict[tuple[str, ...], tuple[float, int]] = {}

    def admit(self, kind: tuple[str, ...], now_s: float, variant: str = "") -> int | None:
        """None: leave it out.  Else write it; that many were left out since the last.

        ``variant``: what tells it apart from others of its kind, as long as those are few.
        """
        if variant and (*kind, variant) in self._seen:
            kind = (*kind, variant)
        elif variant:
            known = sum(1 for one, (last, _) in self._seen.items()
                        if one[:len(kind)] == kind and now_s - last < self._every_s)
            kind = (*kind, variant) if known < VARIANTS_MAX else kind
        last, held = self._seen.get(kind, (-1e18, 0))
        if now_s - last < self._every_s:
            self._seen[kind] = last, held + 1
            return None
        if len(self._seen) >= self._kinds_max:
            self._seen = {one: seen for one, seen in self._seen.items() if now_s - seen[0] < self._every_s}
            if len(self._seen) >= self._kinds_max:
                return 0
        self._seen[kind] = now_s, 0
        return held

    def held_back(self) -> list[tuple[tuple[str, ...], int]]:
        """Kinds with repetitions that no line has told of, and forget them."""
        found = [(kind, held) for kind, (_, held) in self._seen.items() if held]
        self._seen.clear()
        return found


def _variant(message: object) -> str:
    """What an event of ours says in words: two warnings of one name are two, and one with another count is the same."""
    if not isinstance(message, dict):
        return ""
    return " ".join(f"{key}={str(value)[:200]}" for key, value in sorted(message.items())
                    if key not in _NO_KIND and (isinstance(value, str) or key in _NUMBERED))


class _Handler(logging.StreamHandler[TextIO]):
    """Counts, and leaves repeated warnings out.  The logging module calls ``emit`` under the handler's lock."""

    def __init__(self, out: TextIO, counted: Callable[[str], None]) -> None:
        super().__init__(out)
        self._counted = counted
        self._repetitions = Repetitions()

    def emit(self, record: logging.LogRecord) -> None:
        self._counted(record.levelname.lower())
        if record.levelno >= logging.WARNING:
            ours = isinstance(record.msg, dict)
            event = str(record.msg.get("event", "") if isinstance(record.msg, dict) else record.msg)
            if event not in OWN_LIMIT:
                left_out = self._repetitions.admit((record.name, record.levelname, event), time.monotonic(),
                                                   _variant(record.msg))
                if left_out is None:
                    return
                if left_out and ours:
                    record.msg = {**record.msg, "left_out": left_out}  # type: ignore[dict-item]
                elif left_out:
                    record.msg = f"{record.msg} (and {left_out} times before)"
        super().emit(record)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - the library's name
        """A log that cannot be written (its reader went away) must not write tracebacks instead."""
        error = sys.exc_info()[1]
        if not isinstance(error, OSError | ValueError):
            super().handleError(record)

    def tell_held_back(self) -> None:
        for (name, level, event, *variant), held in self._repetitions.held_back():
            with suppress(OSError, ValueError):
                logging.getLogger(name).log(logging.getLevelName(level), "%s: left out %d times",
                                            " ".join([event, *variant]), held)
