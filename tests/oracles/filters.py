"""What a filter means, written the slow and obvious way, apart from vecdb's own evaluation."""

import datetime as dt
import math
from fractions import Fraction

from vecdb.core.filters.tree import (
    And,
    Compare,
    Contains,
    Everything,
    Exists,
    GeoRadius,
    In,
    IsNull,
    Not,
    Op,
    Or,
    Prefix,
    Time,
)

EARTH_RADIUS_M = 6_371_008.8


def keys_of(path):
    """The keys of a path: a placeholder stands in for escaped characters while it is split."""
    hidden = path.replace("\\\\", "\x00").replace("\\.", "\x01")
    return [part.replace("\x00", "\\").replace("\x01", ".") for part in hidden.split(".")]


def under(metadata, path):
    """Everything that stands under a path, lists unopened."""
    stage = [metadata]
    for depth, key in enumerate(keys_of(path)):
        if depth:
            stage = [item for place in stage for item in (place if isinstance(place, list) else [place])]
        stage = [place[key] for place in stage if isinstance(place, dict) and key in place]
    return stage


def values(metadata, path):
    return [item for place in under(metadata, path) for item in (place if isinstance(place, list) else [place])]


def matches(node, metadata):
    if isinstance(node, Everything):
        return True
    if isinstance(node, Not):
        return not matches(node.node, metadata)
    if isinstance(node, And):
        return not [part for part in node.nodes if not matches(part, metadata)]
    if isinstance(node, Or):
        return bool([part for part in node.nodes if matches(part, metadata)])
    if isinstance(node, Exists):
        return under(metadata, node.path) != []
    return bool([value for value in values(metadata, node.path) if holds(node, value)])


def holds(node, value):
    if isinstance(node, IsNull):
        return value is None
    if isinstance(node, Compare):
        return compare(node.op, value, node.value)
    if isinstance(node, In):
        return any(compare(Op.EQ, value, wanted) for wanted in node.values)
    if isinstance(node, Prefix):
        return isinstance(value, str) and value[: len(node.text)] == node.text
    if isinstance(node, Contains):
        return isinstance(value, str) and value.count(node.text) > 0
    if not isinstance(value, dict) or kind(value.get("lat")) != "number" or kind(value.get("lon")) != "number":
        return False
    lat, lon = value["lat"], value["lon"]
    if abs(lat) > 90 or abs(lon) > 180:
        return False
    return in_radius(node, lat, lon) if isinstance(node, GeoRadius) else in_box(node, lat, lon)


def kind(value):
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, int | float):
        return "number"
    return "string" if isinstance(value, str) else "null" if value is None else "other"


def compare(op, value, wanted):
    if isinstance(wanted, Time):
        value, wanted = instant(value), wanted.unix_ns
        if value is None:
            return False
    elif kind(value) != kind(wanted) or kind(value) == "other":
        return False
    elif kind(value) in ("bool", "null"):
        return op is Op.EQ and value == wanted
    elif kind(value) == "number":
        value, wanted = Fraction(value), Fraction(wanted)
    else:
        value, wanted = [ord(char) for char in value], [ord(char) for char in wanted]
    return {Op.EQ: value == wanted, Op.LT: value < wanted, Op.LE: value <= wanted, Op.GT: value > wanted,
            Op.GE: value >= wanted}[op]


def instant(text):
    """Nanoseconds of the RFC 3339 strings these tests use (Python reads microseconds; whole seconds are enough)."""
    if not isinstance(text, str) or len(text) < 10 or (len(text) > 10 and text[-1] not in "Zz" and text[-6] not in "+-"
                                                       ):
        return None
    try:
        when = dt.datetime.fromisoformat(text.upper())
    except ValueError:
        return None
    if when.tzinfo is None:
        when = when.replace(tzinfo=dt.UTC)
    delta = when - dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
    exact = (delta.days * 86_400 + delta.seconds) * 10**9 + delta.microseconds * 1_000
    return max(-(2**63), min(2**63 - 1, exact))


def vector(lat, lon):
    phi, lam = math.radians(lat), math.radians(lon)
    return (math.cos(phi) * math.cos(lam), math.cos(phi) * math.sin(lam), math.sin(phi))


def in_radius(node, lat, lon):
    a, b = vector(node.lat, node.lon), vector(lat, lon)
    cross = (a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0])
    angle = math.atan2(math.hypot(*cross), sum(x * y for x, y in zip(a, b, strict=True)))
    return angle * EARTH_RADIUS_M <= node.radius_m


def in_box(node, lat, lon):
    if not node.south <= lat <= node.north:
        return False
    width = (node.east - node.west) % 360 if node.west > node.east else node.east - node.west
    same = {lon, -lon} if abs(lon) == 180 else {lon}
    return abs(lat) == 90 or any(0 <= at - node.west <= width or 0 <= at + 360 - node.west <= width for at in same)
