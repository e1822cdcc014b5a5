"""The planner: how to search one segment under a filter, from figures alone.

Three ways, by what they cost and what they risk:

- *exact*: score every matching row.  Always right; costs ``matches`` rows.
- *filtered_beam*: a beam over matching vertices that reaches across others.  Costs little at any selectivity, but the
  matching vertices may hang together loosely, so its beam is widened the narrower the filter is.
- *beam_then_filter*: the plain beam, whose non-matching vertices take room but are no results.  As right as the
  unfiltered beam whatever the filter has to do with the query, but costs ``1 / selectivity`` times as much.

So: exact while it costs no more than :data:`EXACT_BUDGET_US`, because nothing is gained by risking recall for less;
above that the cheaper of the two beams.  A filter that leaves everything is a plain *beam*.  Times are rough and only
their ratios matter; they are documented constants and not measured at run time, so that equal figures give equal plans.
"""

from dataclasses import dataclass, field
from typing import Any, Final, Literal

from vecdb.core.limits import MAX_EF

Kind = Literal["exact", "filtered_beam", "beam_then_filter", "beam"]

EXACT_BUDGET_US: Final = 2_000.0
"""An exact scan of up to this long is taken before any filtered beam."""

SCAN_NS_PER_ROW: Final = 3.0
SCAN_NS_PER_BYTE: Final = 0.035
"""A scored row in a scan: 100 float32 components, padded to 448 bytes, take about 18 ns, from memory in order."""

GATHER_NS: Final = 15.0
"""What a row costs more when the rows scored lie far apart (one in 16 or fewer): a cache line that was not foreseen."""

VISIT_NS: Final = 45.0
"""What a row costs more when a graph leads to it: link, visited mark, a place in the beam, and a cache miss."""

NEW_NEIGHBOURS: Final = 0.45
"""The part of a vertex's links on level 0 that a beam has not seen before."""

REACH_FACTOR: Final = 3.0
"""What expanding a vertex costs more when its neighbours' neighbours are looked at for matching ones."""

WIDEN_BELOW: Final = 0.25
WIDEST: Final = 4.0
"""A filtered beam is widened by sqrt(WIDEN_BELOW / selectivity), up to WIDEST, to make up for looser links."""

ALL_BUT: Final = 0.999
"""A selectivity from which a filter is no filter: barred vertices are then too few to need room."""


@dataclass(frozen=True, slots=True)
class Strategy:
    """How to search a segment: ``ef`` is the beam's width (0 for exact), ``numbers`` what it was decided from."""

    kind: Kind
    ef: int
    reason: str
    numbers: dict[str, Any] = field(default_factory=dict)


def exact_us(matches: int, count: int, row_bytes: int) -> float:
    """Return the time of scoring ``matches`` of ``count`` rows of ``row_bytes``, microseconds."""
    per_row = SCAN_NS_PER_ROW + SCAN_NS_PER_BYTE * row_bytes
    if count and matches * 16 < count:
        per_row += GATHER_NS
    return matches * per_row / 1e3


def beam_us(ef: float, row_bytes: int, m0: int) -> float:
    """Return the time of a beam that expands ``ef`` vertices, microseconds."""
    return ef * m0 * NEW_NEIGHBOURS * (VISIT_NS + SCAN_NS_PER_ROW + SCAN_NS_PER_BYTE * row_bytes) / 1e3


def choose(*, count: int, live: int, matches: int, k: int, ef: int, row_bytes: int, code_bytes: int = 0, m0: int = 32,
           filtered: bool = True) -> Strategy:
    """Return how to search a segment that has a graph.

    ``count``: rows, dead ones included; ``live``: those alive; ``matches``: live rows that match.  ``ef``: the beam
    asked for or the segment's default.  ``row_bytes``: what an exact scan reads a row; ``code_bytes``: what a
    beam does (0: the same).  ``filtered``: whether a filter was given at all.
    """
    ef = max(ef, k)
    part = matches / count if count else 0.0
    numbers: dict[str, Any] = {"exact_us": round(exact_us(matches, count, row_bytes), 1)}
    if matches <= k:
        return Strategy("exact", 0, f"{matches} matches for k = {k}: all of them are the answer", numbers)
    visited = code_bytes or row_bytes
    plain = beam_us(ef, visited, m0)
    if part >= ALL_BUT or (not filtered and part >= 0.5):
        numbers["beam_us"] = round(plain, 1)
        if numbers["exact_us"] <= plain:
            return Strategy("exact", 0, "a scan of all rows costs no more than a beam", numbers)
        why = "no filter" if not filtered else "the filter leaves nearly everything"
        return Strategy("beam", ef, why, numbers)
    wide = min(ef * min(WIDEST, max(1.0, (WIDEN_BELOW / part) ** 0.5)), MAX_EF)
    numbers["filtered_beam_us"] = round(beam_us(wide * REACH_FACTOR, visited, m0), 1)
    numbers["beam_then_filter_us"] = round(beam_us(min(ef / part, MAX_EF), visited, m0), 1)
    cheapest = min(numbers["filtered_beam_us"], numbers["beam_then_filter_us"])
    if numbers["exact_us"] <= max(EXACT_BUDGET_US, cheapest):
        return Strategy("exact", 0, f"scoring the {matches} matches costs {numbers['exact_us']:.0f} us", numbers)
    # The plain beam has to hold ef / part vertices: where that is more than a beam may hold it cannot find ef matches
    if numbers["beam_then_filter_us"] <= numbers["filtered_beam_us"] and ef / part <= MAX_EF:
        return Strategy("beam_then_filter", ef, f"{part:.1%} match: the plain beam finds enough of them", numbers)
    return Strategy("filtered_beam", int(wide), f"{part:.1%} match: the beam keeps to them", numbers)
