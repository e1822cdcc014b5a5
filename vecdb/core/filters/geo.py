"""Points on the sphere: what a geo filter says of one point.

The scalar meaning; the index computes the same in columns and asks this module about points too near a border
to be told apart.  A radius compares haversines, ``a = sin²(Δφ/2) + cos φ₁ cos φ₂ sin²(Δλ/2)``, with the haversine
of the radius, so nothing is lost near the antipode.
"""

import math
from typing import Any

EARTH_RADIUS_M = 6_371_008.8
"""Mean radius of the Earth (IUGG), metres."""

RADIANS = math.pi / 180.0


def point_of(value: Any) -> tuple[float, float] | None:
    """Return (lat, lon) of ``{"lat": -90..90, "lon": -180..180}`` (further keys do not matter), or None."""
    if not isinstance(value, dict):
        return None
    lat: Any = value.get("lat")
    lon: Any = value.get("lon")
    if type(lat) not in (int, float) or type(lon) not in (int, float):
        return None
    if not (-90.0 <= lat <= 90.0 and -180.0 <= lon <= 180.0):
        return None
    return float(lat), float(lon)


def haversine(lat1: float, lon1: float, lat2: float, lon2: float) -> float:
    """Return the haversine (0..1) of the angle between two points in degrees."""
    phi = math.sin((lat2 - lat1) * RADIANS / 2.0)
    lam = math.sin((lon2 - lon1) * RADIANS / 2.0)
    return phi * phi + math.cos(lat1 * RADIANS) * math.cos(lat2 * RADIANS) * lam * lam


def radius_haversine(radius_m: float) -> float:
    """Return the haversine of a distance along the sphere; above 1 (everything) from half its girth."""
    half = radius_m / (2.0 * EARTH_RADIUS_M)
    return 2.0 if half >= math.pi / 2.0 else math.sin(half) ** 2


def in_box(lat: float, lon: float, south: float, west: float, north: float, east: float) -> bool:
    """Whether a point is in a closed box; ``west > east`` crosses the antimeridian.

    At the poles every longitude is the same point, and so are the longitudes 180 and -180.
    """
    if not south <= lat <= north:
        return False
    if abs(lat) == 90.0:
        return True
    if abs(lon) == 180.0:
        return _between(lon, west, east) or _between(-lon, west, east)
    return _between(lon, west, east)


def _between(lon: float, west: float, east: float) -> bool:
    return west <= lon <= east if west <= east else lon >= west or lon <= east
