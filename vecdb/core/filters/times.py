"""RFC 3339 times as integers: nanoseconds since the Unix epoch.

Read are a full ``date-time`` (``2024-01-31T12:00:00.5+01:00``, ``T`` and ``Z`` in either case, a blank for ``T``) and a
``full-date``, which means its midnight in UTC.  Without offset, a time written as a value of a filter
(``time('2024-01-31T12:00:00')``, ``{"$time": ...}``) is UTC, as a datetime object without zone is there and in
metadata; a string of a record without offset stays a string, for nobody said that it is a time at all.  Digits below
a nanosecond are cut off.  Instants outside the int64 nanoseconds (the years 1677 to 2262) are clamped to
their ends, so that ``9999-12-31T23:59:59Z``, the usual *never*, still sorts after every other.
"""

import datetime as dt
import re

MIN_UNIX_NS = -(1 << 63)
MAX_UNIX_NS = (1 << 63) - 1

_FORM = re.compile(
    r"(\d{4})-(\d\d)-(\d\d)(?:[Tt ](\d\d):(\d\d):(\d\d)(?:\.(\d+))?(?:[Zz]|([+-])(\d\d):(\d\d)))?", re.ASCII)
_EPOCH_ORDINAL = dt.date(1970, 1, 1).toordinal()
_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
_LONGEST = 64


def clamp_ns(value: int) -> int:
    """Return ``value`` within the int64 nanoseconds."""
    return min(max(value, MIN_UNIX_NS), MAX_UNIX_NS)


def parse_time(text: str) -> int | None:
    """Return the instant an RFC 3339 string names, nanoseconds since the epoch, or None if it names none."""
    if len(text) < 10 or len(text) > _LONGEST or text[4] != "-" or text[7] != "-":
        return None
    found = _FORM.fullmatch(text)
    if found is None:
        return None
    year, month, day, hour, minute, second, fraction, sign, off_hours, off_minutes = found.groups()
    try:
        days = dt.date(int(year), int(month), int(day)).toordinal() - _EPOCH_ORDINAL
    except ValueError:
        return None
    seconds = days * 86_400
    if hour is None:
        return clamp_ns(seconds * 1_000_000_000)
    hours, minutes, whole = int(hour), int(minute), int(second)
    if hours > 23 or minutes > 59 or whole > 60:  # 60: a leap second, read as the second after
        return None
    seconds += hours * 3_600 + minutes * 60 + whole
    if sign is not None:
        if int(off_hours) > 23 or int(off_minutes) > 59:
            return None
        shift = int(off_hours) * 3_600 + int(off_minutes) * 60
        seconds += shift if sign == "-" else -shift
    nanos = int((fraction or "")[:9].ljust(9, "0"))
    return clamp_ns(seconds * 1_000_000_000 + nanos)


def parse_literal(text: str) -> int | None:
    """Like :func:`parse_time`, for what a filter declares to be a time: without offset it is UTC."""
    found = parse_time(text)
    return parse_time(f"{text}Z") if found is None else found


def format_time(unix_ns: int) -> str:
    """Return the RFC 3339 string in UTC of an instant in int64 nanoseconds; trailing zeros of the fraction are cut."""
    seconds, nanos = divmod(unix_ns, 1_000_000_000)
    stamp = (_EPOCH + dt.timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%S")
    fraction = f".{nanos:09d}".rstrip("0") if nanos else ""
    return f"{stamp}{fraction}Z"


def datetime_ns(value: dt.date) -> int:
    """Return the instant of a datetime (without zone: UTC) or of a date's midnight in UTC."""
    if not isinstance(value, dt.datetime):
        return clamp_ns((value.toordinal() - _EPOCH_ORDINAL) * 86_400_000_000_000)
    aware = value if value.tzinfo is not None else value.replace(tzinfo=dt.UTC)
    delta = aware - _EPOCH
    return clamp_ns(((delta.days * 86_400 + delta.seconds) * 1_000_000 + delta.microseconds) * 1_000)


def datetime_text(value: dt.date) -> str:
    """Return the RFC 3339 string of a datetime (without zone: UTC) or of a date."""
    if not isinstance(value, dt.datetime):
        return value.isoformat()
    offset = value.utcoffset()
    if offset is None:
        return value.replace(tzinfo=None).isoformat() + "Z"
    if offset.seconds % 60 or offset.microseconds:  # RFC 3339 offsets are whole minutes
        value = value.astimezone(dt.UTC)
    text = value.isoformat()
    return text[:-6] + "Z" if text.endswith("+00:00") else text
