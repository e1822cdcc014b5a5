"""Recall and latency of queries under filters: ``python -m bench.filters --out OUT.json``.

On the ``wordnet`` set (``make data DATA=wordnet``), through ``vecdb.connect`` as a user would.  Two kinds of filter:

- made ones, of 0.1, 1, 10 and 50 % of the records: *independent* of the query (a uniform random field); *correlated*
  (the records nearest to an anchor near the query); *against* it (the records farthest from that anchor);
- those of the set itself, by part of speech, lexicographer's file and tag count; the file holds their exact neighbours.

Queries are asked one a call with everything at its default.  ``found`` is the least number of results a query got: k
wherever k records match.
"""

import argparse
import json
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from rich.console import Console
from rich.table import Table

import vecdb
from bench.hdf5 import AnnSet, find, read, true_distances

SHARES = (0.001, 0.01, 0.1, 0.5)
ANCHORS = 8
FIELDS = ("pos", "lexname", "tag_count", "n_lemmas")


@dataclass(frozen=True, slots=True)
class Case:
    """One filter over many queries: of each its row in ``test``, its expression, and its k-th true distance."""

    name: str
    share: float
    queries: list[int]
    filters: list[str]
    limits: list[float]
    least: int


def ranks(values: np.ndarray) -> np.ndarray:
    """The share of values below each one, ties by place."""
    out = np.empty(len(values))
    out[np.argsort(values, kind="stable")] = np.arange(len(values)) / len(values)
    return out


def metadata_of(file: h5py.File, near: np.ndarray, uniform: np.ndarray) -> list[dict[str, Any]]:
    """The set's own fields, ``uniform``, ``row``, and the rank of each record by distance from each anchor."""
    columns: dict[str, list[Any]] = {
        field: file[f"train_{field}"].asstr()[:].tolist()
        if file[f"train_{field}"].dtype.kind == "O"
        else file[f"train_{field}"][:].tolist()
        for field in FIELDS
    }
    columns["row"] = list(range(len(uniform)))
    columns["uniform"] = uniform.tolist()
    columns |= {f"anchor_{place}": rank.tolist() for place, rank in enumerate(near)}
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def made_cases(data: AnnSet, near: np.ndarray, uniform: np.ndarray, groups: np.ndarray, k: int) -> list[Case]:
    """The three relations at each share; ``groups`` (anchors, q) are the queries near each anchor."""
    cases = []
    for share in SHARES:
        expressions = {
            "independent": lambda _, share=share: (uniform < share, f"uniform < {share}"),
            "correlated": lambda place, share=share: (near[place] < share, f"anchor_{place} < {share}"),
            "against": lambda place, share=share: (near[place] >= 1 - share, f"anchor_{place} >= {1 - share}"),
        }
        for name, expression in expressions.items():
            queries, filters, limits, least = [], [], [], k
            for place, rows in enumerate(groups):
                mask, text = expression(place)
                allowed = np.flatnonzero(mask)
                least = min(least, len(allowed))
                for row in rows.tolist():
                    true = true_distances(data.train, data.test[row], allowed, data.metric)
                    queries.append(row)
                    filters.append(text)
                    limits.append(float(np.partition(true, min(k, len(true)) - 1)[min(k, len(true)) - 1]))
            cases.append(Case(name, share, queries, filters, limits, least))
    return cases


def own_cases(file: h5py.File, data: AnnSet, count: int, k: int) -> list[Case]:
    """The filters of the set, on its first ``count`` queries.

    The k-th distance is computed again from the file's nearest hundred: rows are of length 1 only up to float16.
    """
    texts = {
        "pos_verb": 'pos == "verb"',
        "tag_count_ge1": "tag_count >= 1",
        "tag_count_ge20": "tag_count >= 20",
        "lexname_own": "lexname == {}",
        "lexname_other": "lexname == {}",
    }
    cases = []
    for name, text in texts.items():
        group = file[f"filters/{name}"]
        values = group["query_value"].asstr()[:count] if "query_value" in group else [""] * count
        there = (group["neighbors"][:count, k - 1] >= 0).tolist()
        queries = [row for row in range(count) if there[row]]
        filters = [text.format(json.dumps(values[row])) for row in queries]
        near = group["neighbors"][:count]
        true = (true_distances(data.train, data.test[row], near[row][near[row] >= 0], data.metric) for row in queries)
        limits = [float(np.sort(distances)[k - 1]) for distances in true]
        cases.append(Case(name, float(group.attrs["selectivity"]), queries, filters, limits, k))
    return cases


def measure(docs: "vecdb.Collection", data: AnnSet, case: Case, k: int) -> dict[str, Any]:
    """Asks the case's queries and counts what is right."""
    recalls, milliseconds, found, plans = [], [], [], Counter[str]()
    for row, text, limit in zip(case.queries, case.filters, case.limits, strict=True):
        began = time.perf_counter()
        hits = docs.query(data.test[row], k=k, filter=text)
        milliseconds.append((time.perf_counter() - began) * 1e3)
        true = true_distances(data.train, data.test[row], np.array(hits.ids, np.int64), data.metric)
        recalls.append((true <= limit + 1e-6).sum() / case.least)
        found.append(len(hits))
    for row, text in list(zip(case.queries, case.filters, strict=True))[:: max(1, len(case.queries) // 10)]:
        plans.update(strategies(docs.query(data.test[row], k=k, filter=text, explain=True).plan))
    return {
        "filter": case.name,
        "share": round(case.share, 4),
        "queries": len(case.queries),
        "k": k,
        "recall": round(float(np.mean(recalls)), 4),
        "recall_p05": round(float(np.percentile(recalls, 5)), 4),
        "found": int(min(found)),
        "p50_ms": round(float(np.percentile(milliseconds, 50)), 3),
        "p99_ms": round(float(np.percentile(milliseconds, 99)), 3),
        "strategies": dict(plans),
        "dataset": data.name,
    }


def strategies(plan: Any) -> list[str]:
    """The names of strategies anywhere in a plan."""
    if isinstance(plan, dict):
        own = [plan["strategy"]] if isinstance(plan.get("strategy"), str) else []
        return own + [name for value in plan.values() for name in strategies(value)]
    if isinstance(plan, list | tuple):
        return [name for value in plan for name in strategies(value)]
    return []


def table(rows: list[dict[str, Any]]) -> None:
    grid = Table(title=f"{rows[0]['dataset']}: k={rows[0]['k']}, one query a call, defaults")
    grid.add_column("filter")
    for heading in ("share", "recall", "5th pct", "found", "p50 ms", "p99 ms"):
        grid.add_column(heading, justify="right")
    grid.add_column("strategies")
    for row in rows:
        grid.add_row(
            row["filter"], f"{row['share']:.2%}", f"{row['recall']:.4f}", f"{row['recall_p05']:.2f}", str(row["found"]),
            f"{row['p50_ms']:.2f}", f"{row['p99_ms']:.2f}", ", ".join(row["strategies"]),
        )  # fmt: skip
    Console(width=None if Console().is_terminal else 130).print(grid)


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench.filters", description=str(__doc__).split("\n", 1)[0])
    parser.add_argument("--data", default="wordnet")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--limit", type=int, help="only so many records; leaves out the set's own filters")
    parser.add_argument("--queries", type=int, default=200, help="queries a filter")
    parser.add_argument("--k", type=int, default=10)
    parser.add_argument("--index", default="auto", help="the index of the collection")
    parser.add_argument("--quantization", default="auto")
    options = parser.parse_args()
    path = find(options.data)
    data = read(path, limit=options.limit)
    random = np.random.default_rng(11)
    anchors = data.train[random.choice(len(data.train), ANCHORS, replace=False)]
    near = np.stack([ranks(-(data.train @ anchor)) for anchor in anchors])
    uniform = random.random(len(data.train))
    groups = np.argsort(-(anchors @ data.test.T), axis=1, kind="stable")[:, : max(1, options.queries // ANCHORS)]
    with h5py.File(path) as file, tempfile.TemporaryDirectory() as folder, vecdb.connect(folder) as db:
        docs = db.create_collection(
            "filters", data.train.shape[1], data.metric, index=options.index, quantization=options.quantization
        )
        rows_metadata = metadata_of(file, near, uniform) if options.limit is None else []
        if options.limit is not None:
            names = [f"anchor_{place}" for place in range(ANCHORS)]
            columns = zip(uniform.tolist(), *near.tolist(), strict=True)
            rows_metadata = [dict(zip(["uniform", *names], row, strict=True)) for row in columns]
        began = time.perf_counter()
        docs.upsert(ids=np.arange(len(data.train)), vectors=data.train, metadata=rows_metadata)
        docs.optimize()
        print(f"{data.name}: {len(data.train):,} records in {time.perf_counter() - began:.1f} s", flush=True)
        cases = made_cases(data, near, uniform, groups, options.k)
        if options.limit is None:
            cases += own_cases(file, data, options.queries, options.k)
        rows = [measure(docs, data, case, options.k) for case in cases]
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    table(rows)


if __name__ == "__main__":
    main()
