"""Is a history linearizable?  Wing and Gong's search with Lowe's memory of states already tried, a key at a time.

J. M. Wing, C. Gong: Testing and verifying concurrent objects, JPDC 17 (1993); G. Lowe: Testing for linearizability,
CCPE 29 (2017).  A register is linearizable if each of its keys is (Herlihy and Wing 1990: locality).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol

NEVER: Final = float("inf")


class Step(Protocol):
    """What somebody did to one key, between two moments; the key's value is a number, 0 at first."""

    @property
    def start(self) -> float: ...

    @property
    def end(self) -> float:
        """NEVER where nobody knows whether it happened."""
        ...

    @property
    def reads(self) -> bool:
        """Whether it changes nothing."""
        ...

    def step(self, state: int) -> int | None:
        """The value after it; None if it cannot have happened in this state with the result it had."""
        ...


@dataclass(frozen=True, slots=True)
class Operation:
    """``kind``: read, write or cas.  ``end`` is NEVER where nobody knows whether it happened.

    ``value``: written; ``expected``: of a cas; ``result``: what a read saw, whether a cas was done.
    """

    kind: str
    start: float
    end: float
    value: int = 0
    expected: int = 0
    result: int = 0

    @property
    def reads(self) -> bool:
        return self.kind == "read"

    def step(self, state: int) -> int | None:
        """The register's value after it; None if it cannot have happened in this state with this result."""
        if self.kind == "read":
            return state if self.result == state else None
        if self.kind == "write":
            return self.value
        matches = state == self.expected
        if self.end != NEVER and bool(self.result) != matches:
            return None
        return self.value if matches else state


def linearizable(operations: Sequence[Step], initial: int = 0) -> bool:
    """Whether some order of the operations, each between its start and end, explains every result."""
    todo = sorted((one for one in operations if one.end != NEVER or not one.reads), key=lambda one: one.start)
    count = len(todo)
    must = sum(1 << at for at, one in enumerate(todo) if one.end != NEVER)
    tried: set[tuple[int, int]] = set()
    stack: list[tuple[int, int]] = [(0, initial)]
    while stack:
        done, state = stack.pop()
        if done & must == must:
            return True
        if (done, state) in tried:
            continue
        tried.add((done, state))
        # Whatever is next must have begun before the first end among those that are still to come.
        first_end = NEVER
        for at in range(count):
            one = todo[at]
            if one.start > first_end:
                break
            if not done >> at & 1:
                first_end = min(first_end, one.end)
        for at in range(count):
            one = todo[at]
            if one.start > first_end:
                break
            if not done >> at & 1:
                after = one.step(state)
                if after is not None:
                    stack.append((done | 1 << at, after))
    return False
