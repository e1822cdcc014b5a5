"""Sizes and lengths of time as people write them: ``4GiB``, ``500MB``, ``30s``, ``1h30m``.

Both raise a plain ValueError that says what would be accepted; callers know what the value was for.
"""

import math
import re
from typing import Final

_SIZE: Final = re.compile(r"(\d[\d_]*(?:\.\d+)?)\s*([a-z]*)", re.IGNORECASE)
_SCALE: Final[dict[str, int]] = {
    "": 1, "b": 1, **{f"{k}{end}": 1000 ** (n + 1) for n, k in enumerate("kmgt") for end in ("", "b")},
    **{f"{k}ib": 1024 ** (n + 1) for n, k in enumerate("kmgt")}}
_SIZE_MAX: Final = 10**18

_PART: Final = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|min|m|h|d|w)", re.IGNORECASE)
_SECONDS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}


def parse_bytes(text: str) -> int:
    """``8GiB`` (binary), ``500MB`` (decimal) or plain bytes as an integer from 0 on."""
    found = _SIZE.fullmatch(text.strip())
    scale = None if found is None else _SCALE.get(found[2].lower())
    if found is None or scale is None:
        raise ValueError(f"{text[:40]!r} is no size; write 8GiB, 500MB or a number of bytes")
    number = found[1].replace("_", "")
    # Through float only where there is a fraction: bytes given one by one stay exact.
    value = round(float(number) * scale) if "." in number else int(number[:40]) * scale
    if value >= _SIZE_MAX:
        raise ValueError(f"{text[:40]!r} is above the largest size, 10**18 bytes")
    return value


def parse_seconds(text: str) -> float:
    """``30``, ``30s``, ``500ms``, ``5m``, ``1h30m``, ``90d`` or ``2w`` as seconds from 0 on."""
    compact = text.strip()
    try:
        value = float(compact)
    except ValueError:
        parts = _PART.findall(compact)
        if not parts or "".join(compact.split()) != "".join(number + unit for number, unit in parts):
            raise ValueError(f"{text[:40]!r} is no length of time; write 30s, 500ms, 5m, 1h30m, 90d or a number of "
                             "seconds") from None
        value = sum(float(number) * _SECONDS[unit.lower()] for number, unit in parts)
    if not math.isfinite(value) or value < 0:
        raise ValueError(f"{text[:40]!r} is no length of time from 0 on")
    return value
