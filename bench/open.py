"""How long it takes to open a large shard and answer: ``python -m bench.open --out OUT.json``.

Makes a collection of a million 128-dimensional records once (``--folder`` keeps it for the next run), then starts
fresh interpreters that open it and ask.  Kernels are warm: what was compiled is in the cache before anything is
measured.  The phases of a start are the imports, ``connect``, the first query and those after it; the last row is the
start of the command line itself.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

import vecdb
from bench.hdf5 import find, read

START = """
import json, sys, time
marks = [("interpreter", time.perf_counter())]
import numpy as np
import vecdb
mark = lambda name: marks.append((name, time.perf_counter()))
mark("import vecdb")
import vecdb.app
mark("import engine")
db = vecdb.connect(sys.argv[1])
mark("connect")
docs = db.collection("shard")
dim = docs.dim
query = np.random.default_rng(1).standard_normal(dim).astype(np.float32)
found = docs.query(query, k=10)
mark("first query")
docs.query(query, k=10)
mark("second query")
for _ in range(100):
    docs.query(query, k=10)
mark("100 more")
count = len(docs)
phases = {name: end - begin for (_, begin), (name, end) in zip(marks, marks[1:])}
print(json.dumps({"phases": phases, "found": len(found), "records": count}))
db.close()
"""


def clustered(count: int, dim: int) -> np.ndarray:
    """float32 (count, dim): points about 1,000 random centres, for a graph is quick to search where data has shape."""
    random = np.random.default_rng(5)
    centres = random.standard_normal((1000, dim)).astype(np.float32)
    rows = random.standard_normal((count, dim), dtype=np.float32)
    rows *= np.float32(0.5)
    rows += centres[random.integers(0, len(centres), count)]
    return rows


def make(folder: Path, rows: np.ndarray, quantization: str) -> float:
    """Fills the collection, and returns the seconds that took."""
    began = time.perf_counter()
    with vecdb.connect(str(folder)) as db:
        docs = db.create_collection("shard", rows.shape[1], "l2", index="hnsw", quantization=quantization)
        for lo in range(0, len(rows), 100_000):
            part = rows[lo : lo + 100_000]
            ids = range(lo, lo + len(part))
            docs.upsert(ids=ids, vectors=part, metadata=[{"group": i % 100, "parity": i % 2 == 0} for i in ids])
            print(f"{lo + len(part):,} records, {time.perf_counter() - began:.0f} s", flush=True)
        docs.optimize()
    return time.perf_counter() - began


def start(folder: Path) -> dict[str, Any]:
    """One fresh interpreter; ``whole`` is all its seconds."""
    began = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", START, str(folder)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    answer: dict[str, Any] = json.loads(done.stdout)
    answer["phases"]["whole"] = time.perf_counter() - began
    began = time.perf_counter()
    subprocess.run([sys.executable, "-m", "vecdb.cli", "--help"], capture_output=True, check=True)
    answer["phases"]["vecdb --help"] = time.perf_counter() - began
    return answer


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench.open", description=str(__doc__).split("\n", 1)[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--folder", type=Path, help="where the collection is kept; made there if there is none")
    parser.add_argument("--data", help="an HDF5 file or a set's name, instead of made vectors")
    parser.add_argument("--records", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--quantization", default="auto")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary) / "shard"
        made = 0.0
        if not folder.exists():
            given = read(find(options.data)).train[: options.records] if options.data else None
            made = make(folder, clustered(options.records, options.dim) if given is None else given,
                        options.quantization)  # fmt: skip
        starts = [start(folder) for _ in range(options.rounds + 1)][1:]
    phases = {name: [one["phases"][name] for one in starts] for name in starts[0]["phases"]}
    result = {
        "records": starts[0]["records"],
        "found": starts[0]["found"],
        "made_seconds": round(made, 1),
        "seconds": {name: round(float(np.median(values)), 5) for name, values in phases.items()},
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    grid = Table(title=f"opening {result['records']:,} records, median of {options.rounds} fresh starts")
    grid.add_column("phase")
    grid.add_column("seconds", justify="right")
    for name, value in result["seconds"].items():
        grid.add_row(name, f"{value:.4f}")
    Console(width=None if Console().is_terminal else 90).print(grid)


if __name__ == "__main__":
    main()
