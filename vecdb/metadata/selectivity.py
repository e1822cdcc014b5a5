"""The planner: how to search one segment under a filter, from figures alone.

Three ways, by what they cost and what they risk:

- *exact*: score every matching row.  Always right; costs ``matches`` rows.
- *filtered_beam*: a beam over matching vertices that reaches across others.  Finds ``k`` wherever they lie, at about
  three times a plain beam's cost; its recall is less than a plain beam's of equal width, so it is widened.
- *beam_then_filter*: the plain beam, whose non-matching vertices take room but are no results.  As right as the
  unfiltered beam while the filter has nothing to do with the query, but where what is near the query is what the
  filter excludes it comes back short, and all matches must be scored after all.

So: exact while it is cheap, because nothing is gained by risking recall for less; beam_then_filter where nearly
everything matches; filtered_beam between.  A filter that leaves everything is a plain *beam*.

Measured on glove-100 (100,000 x 100, cosine, m = 16, one query a call; recall@10 where the filter excludes what is near
the query / is independent of it; the plain beam at ef 64 / 128: 0.913 / 0.962 in 55 / 111 us):

    matching   filtered_beam, ef 64   ef 128          ef 256          us at 256   exact us
    50 %       0.859 / 0.952          0.921 / 0.983   0.961 / 0.997   409 / 718   1,340
    10 %       0.879 / 0.967          0.955 / 0.988   0.982 / 0.995   527 / 599   380
     2 %       0.948 / 0.885          0.988 / 0.945   0.998 / 0.975   463 / 472   49
     1 %       0.981 / 0.796          0.999 / 0.892   1.000 / 0.943   460 / 434   30

and beam_then_filter at ef 128 left 38 % of the excluded queries short at 50 % matching, 9 % at 90 %, none at 98 %.
Times are rough and only their ratios matter; they are constants and not measured at run time, so that equal figures
give equal plans.
"""

from dataclasses import dataclass, field
from typing import Any, Final, Literal

from vecdb.core.limits import MAX_EF

Kind = Literal["exact", "filtered_beam", "beam_then_filter", "beam"]

EXACT_BUDGET_US: Final = 1_500.0
"""An exact scan of up to this long for one query is taken before any filtered beam."""

SCAN_NS_PER_ROW: Final = 6.0
SCAN_NS_PER_BYTE: Final = 0.05
"""A matching row scored for one query: 100 float32 components, padded to 448 bytes, took 27 to 30 ns."""

SCAN_BATCH: Final = 16
SCAN_BATCH_FACTOR: Final = 0.25
"""From so many queries a call each row is read once for several, and costs a quarter."""

VISIT_NS: Final = 45.0
SCORE_NS_PER_BYTE: Final = 0.04
"""A vertex visited by a beam: link, visited mark, place in the beam, a cache miss; and its row's bytes."""

NEW_NEIGHBOURS: Final = 0.45
"""The part of a vertex's links on level 0 that a beam has not seen before."""

REACH_FACTOR: Final = 3.0
"""What expanding a vertex costs more when its neighbours' neighbours are looked at for matching ones."""

WIDEN: Final = 2.0
WIDEN_BELOW: Final = 0.05
WIDEST: Final = 8.0
"""A filtered beam is WIDEN times as wide, and below WIDEN_BELOW matching sqrt(WIDEN_BELOW / part) times that."""

NEARLY_ALL: Final = 0.95
"""Matching from which the plain beam finds enough matches wherever the query lies."""


@dataclass(frozen=True, slots=True)
class Strategy:
    """How to search a segment: ``ef`` is the beam's width (0 for exact), ``numbers`` what decided it."""

    kind: Kind
    ef: int
    reason: str
    numbers: dict[str, Any] = field(default_factory=dict)


def exact_us(matches: int, row_bytes: int, queries: int = 1) -> float:
    """Return the time of scoring ``matches`` rows of ``row_bytes`` for one of ``queries`` in a call, microseconds."""
    factor = SCAN_BATCH_FACTOR if queries >= SCAN_BATCH else 1.0
    return matches * (SCAN_NS_PER_ROW + SCAN_NS_PER_BYTE * row_bytes) * factor / 1e3


def beam_us(ef: float, row_bytes: int, m0: int) -> float:
    """Return the time of a beam that expands ``ef`` vertices, microseconds."""
    return ef * m0 * NEW_NEIGHBOURS * (VISIT_NS + SCORE_NS_PER_BYTE * row_bytes) / 1e3


def choose(*, count: int, live: int, matches: int, k: int, ef: int, row_bytes: int, code_bytes: int = 0, m0: int = 32,
           filtered: bool = True, queries: int = 1) -> Strategy:
    """Return how to search a segment that has a graph.

    ``count``: rows, dead ones included; ``live``: those alive; ``matches``: live rows that match.  ``ef``: the beam
    an unfiltered search would take.  ``row_bytes``: what an exact scan reads a row; ``code_bytes``: what a beam
    does (0: the same).  ``filtered``: whether a filter was given at all.  ``queries``: how many come in one call.
    """
    ef = max(ef, k)
    part = matches / count if count else 0.0
    exact = exact_us(matches, row_bytes, queries)
    numbers: dict[str, Any] = {"exact_us": round(exact, 1)}
    if matches <= k:
        return Strategy("exact", 0, f"{matches} matches for k = {k}: all of them are the answer", numbers)
    visited = code_bytes or row_bytes
    if part >= NEARLY_ALL or (not filtered and part >= 0.5):
        plain = beam_us(min(ef / part, MAX_EF), visited, m0)
        numbers["beam_us"] = round(plain, 1)
        if exact <= plain:
            return Strategy("exact", 0, "a scan of all rows costs no more than a beam", numbers)
        if not filtered or matches == live:
            return Strategy("beam", ef, "no filter" if not filtered else "the filter leaves everything", numbers)
        return Strategy("beam_then_filter", ef, f"{part:.1%} match: the plain beam finds enough of them", numbers)
    wide = min(ef * min(WIDEST, WIDEN * max(1.0, (WIDEN_BELOW / part) ** 0.5)), MAX_EF)
    beam = beam_us(wide * REACH_FACTOR, visited, m0)
    numbers["filtered_beam_us"] = round(beam, 1)
    if exact <= max(EXACT_BUDGET_US, beam):
        return Strategy("exact", 0, f"scoring the {matches} matches costs about {exact:.0f} us", numbers)
    return Strategy("filtered_beam", int(wide), f"{part:.1%} match: the beam keeps to them", numbers)
