"""A client process: commands as JSON a line on standard input, answers on standard output.

``{"do": "query", "how": "raw-sync", "target": "127.0.0.1:7700", "queries": "FILE.npy", "inflight": 8, "seconds": 2}``
loads a server (:mod:`bench.server.loads`); ``"do": "answers"`` writes the ids found to ``out``; ``"do": "ingest"``
writes records (:mod:`bench.server.ingest`).  What a library here cannot do is ``missing``.
"""

import json
import sys
import time
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

import numpy as np

from bench.server import ingest, loads
from vecdb.core.errors import Unsupported

MOST_CALLS = 20_000
"""Milliseconds sent back: of longer lists, every so many-th."""


@lru_cache(4)
def _array(path: str) -> np.ndarray:
    return np.load(path, mmap_mode="r")


def _load(command: dict[str, Any]) -> loads.Load:
    known = {name: command[name] for name in loads.Load.__dataclass_fields__ if name in command}
    known["options"] = [tuple(option) for option in command.get("options", [])]
    return loads.Load(**{**known, "vectors": np.ascontiguousarray(_array(command["queries"]))})


def query(command: dict[str, Any]) -> dict[str, Any]:
    load = _load(command)
    cpu = time.process_time()
    done = loads.LOADS[command["how"]](load)
    calls = len(done.calls_ms)
    step = max(1, calls // MOST_CALLS)
    return {"calls": calls, "warm": done.warm, "seconds": done.seconds, "cpu_s": time.process_time() - cpu,
            "refused": done.refused, "calls_ms": [round(one, 4) for one in done.calls_ms[::step]]}  # fmt: skip


def answers(command: dict[str, Any]) -> dict[str, Any]:
    np.save(command["out"], loads.answers(_load(command)))
    return {}


Do = Callable[[dict[str, Any]], dict[str, Any]]
DO: dict[str, Do] = {"query": query, "answers": answers, "ingest": ingest.run}


def main(known: Mapping[str, Do] = DO) -> None:
    for line in sys.stdin:
        command = json.loads(line)
        try:
            answer = known[command["do"]](command)
        except (ImportError, AttributeError, Unsupported) as error:
            answer = {"missing": f"{type(error).__name__}: {error}", "fault": str(error)}
        except Exception as error:
            answer = {"fault": f"{type(error).__name__}: {error}"}
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
