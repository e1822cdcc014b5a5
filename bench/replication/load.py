"""A load of equal commands inside a process, so many under way at once; and the commands that ask for it.

A process of a measurement reads a JSON object a line: ``{"do": "status"}``, ``{"do": "load", "size": bytes, "window":
commands, "seconds": s}``, and answers a line each.
"""

import json
import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

Done = Callable[[str], None]
"""What came of a command: empty where it was committed, else why not."""
Propose = Callable[[bytes, Done], None]
PAYLOADS = 8


@dataclass(slots=True)
class Load:
    """Keeps ``window`` commands of ``size`` bytes under way for ``seconds``, then waits for the last ones."""

    size: int
    window: int
    seconds: float
    ended: Callable[[], None]
    later: Callable[[Callable[[], None]], object]
    """Runs something a little later: what follows a refusal."""
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _took: list[float] = field(default_factory=list)
    _refused: Counter[str] = field(default_factory=Counter)
    _under_way: int = 0
    _begun: int = 0
    _began: float = 0.0
    _cpu: float = 0.0
    _until: float = 0.0
    _last: float = 0.0
    _payloads: list[bytes] = field(default_factory=list)

    def begin(self, propose: Propose) -> None:
        self._payloads = [os.urandom(self.size) for _ in range(PAYLOADS)]
        self._began, self._cpu = time.perf_counter(), time.process_time()
        self._until = self._began + self.seconds
        for _ in range(self.window):
            self._one(propose)

    def _one(self, propose: Propose) -> None:
        began = time.perf_counter()
        with self._lock:
            self._begun += 1
            self._under_way += 1
            payload = self._payloads[self._begun % PAYLOADS]

        def done(why: str) -> None:
            now = time.perf_counter()
            with self._lock:
                self._under_way -= 1
                if not why:
                    self._took.append(now - began)
                    self._last = now
                else:
                    self._refused[why] += 1
                over = now >= self._until and not self._under_way
            if over:
                self.ended()
            elif now < self._until and not why:
                self._one(propose)
            elif now < self._until:
                self.later(lambda: self._one(propose))

        propose(payload, done)

    def result(self) -> dict[str, Any]:
        """Throughput is of what was committed, up to the last commit."""
        took, spent = sorted(self._took), max(self._last - self._began, 1e-9)
        count = len(took)
        return {"committed": count, "refused": self._refused.total(), "why": dict(self._refused) or None,
                "lost": self._under_way, "a_second": round(count / spent, 1),
                "mb_s": round(count * self.size / 1e6 / spent, 2),
                "p50_ms": round(took[count // 2] * 1e3, 2) if took else None,
                "p99_ms": round(took[int(count * 0.99)] * 1e3, 2) if took else None,
                "cpu_s": round(time.process_time() - self._cpu, 2)}  # fmt: skip


def serve(answer: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Answer commands from stdin until it ends."""
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line))), flush=True)
