"""``Collection.query``: its arguments checked once, its rows sent in one call or, for a bar, in several."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from vecdb.client.asking import Ask, AskPart, with_schema
from vecdb.client.backend import Progress
from vecdb.client.options import (
    QUERY_ALIASES,
    check_filter,
    check_finite,
    check_flag,
    check_include,
    check_int,
    resolve,
)
from vecdb.client.results import Hits
from vecdb.client.steps import Steps
from vecdb.core.errors import InvalidArgument, LimitExceeded
from vecdb.core.filters.tree import Node
from vecdb.core.limits import MAX_EF, MAX_K, MAX_NPROBE, MAX_RESULT_BYTES, MAX_RESULTS
from vecdb.core.query import QueryRequest, QueryResult
from vecdb.core.schema import CollectionSchema
from vecdb.core.vectors import Array, check_queries, row_bytes

_REPORTED_ROWS: Final = 256
"""Queries between two reports of progress; few enough to be seen, enough to keep both cores busy."""

_NAMES: Final = ("k", "filter", "include", "within", "ef_search", "nprobe", "exact", "explain", "profile",
                 "allow_partial", "consistency", "timeout", "progress")


@dataclass(frozen=True, slots=True)
class Options:
    """Checked arguments of a query, all but its vectors."""

    k: int
    filter: Node | None
    include: frozenset[str]
    within: float | None
    ef_search: int
    nprobe: int
    exact: bool
    explain: bool
    profile: bool = False


def check(k: object, filter: object, include: object, within: object, ef_search: object, nprobe: object,
          exact: object, explain: object, aliases: Mapping[str, Any], profile: object = False) -> Options:
    """Check every argument that does not need the schema."""
    if aliases:
        given = resolve(aliases, QUERY_ALIASES, _NAMES)
        if "k" in given:
            if type(k) is not int or k != 10:
                raise InvalidArgument("k", "is given twice, as 'top_k' too", got="top_k", limit="one of them")
            k = given["k"]
        if "ef_search" in given:
            if ef_search is not None:
                raise InvalidArgument("ef_search", "is given twice, as 'ef' too", got="ef", limit="one of them")
            ef_search = given["ef_search"]
    return Options(
        k=check_int("k", k, 1, MAX_K),
        filter=check_filter(filter),
        include=check_include(include),
        within=None if within is None else check_finite("within", within),
        ef_search=0 if ef_search is None else check_int("ef_search", ef_search, 0, MAX_EF),
        nprobe=0 if nprobe is None else check_int("nprobe", nprobe, 0, MAX_NPROBE),
        exact=check_flag("exact", exact),
        explain=check_flag("explain", explain),
        profile=check_flag("profile", profile))


def steps(name: str, vector: object, options: Options, report: Progress | None) -> Steps[Hits | list[Hits]]:
    """Check the vectors against the schema, ask, and wrap the answer."""
    return with_schema(name, lambda schema: _by(schema, vector, options, report))


def _by(schema: CollectionSchema, vector: object, options: Options,
        report: Progress | None) -> Steps[Hits | list[Hits]]:
    vectors, single = check_queries(schema, vector)
    _check_size(schema, len(vectors), options)
    if report is None:
        out = _hits(schema, (yield _ask(schema, vectors, options)), options)
        return out[0] if single else out
    out, name = [], os.urandom(8).hex()
    for low in range(0, len(vectors), _REPORTED_ROWS):
        rest = -(-(len(vectors) - low) // _REPORTED_ROWS) - 1
        ask = _ask(schema, vectors[low:low + _REPORTED_ROWS], options, (name, rest))
        out += _hits(schema, (yield ask), options)
        report("query", len(out), len(vectors))
    return out[0] if single else out


def _check_size(schema: CollectionSchema, rows: int, options: Options) -> None:
    if rows * options.k > MAX_RESULTS:
        raise LimitExceeded("k", f"{rows} queries of k={options.k} ask for more than {MAX_RESULTS} results",
                            got=rows * options.k, limit=MAX_RESULTS)
    if "vector" not in options.include:
        return
    size = rows * options.k * row_bytes(schema)
    if size > MAX_RESULT_BYTES:
        raise LimitExceeded("include", f"the vectors of {rows} queries of k={options.k} may take {size} bytes, more "
                            f"than {MAX_RESULT_BYTES}; fetch them by id", got=size, limit=MAX_RESULT_BYTES)


def _ask(schema: CollectionSchema, vectors: Array, options: Options, part: tuple[str, int] | None = None) -> Ask:
    return AskPart(part, "query", schema.name, QueryRequest(
        vectors, options.k, options.filter, options.within, options.ef_search, options.nprobe, options.exact,
        "metadata" in options.include, "vector" in options.include, options.explain, options.profile,
        schema.shape))


def _hits(schema: CollectionSchema, result: QueryResult, options: Options) -> list[Hits]:
    cost = result.cost if options.profile else None
    return [Hits(matches, schema.metric, result.plan, result.missing, cost) for matches in result.matches]
