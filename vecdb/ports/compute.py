"""Where kernels run."""

from collections.abc import Callable, Sequence
from typing import Protocol


class Compute(Protocol):
    """A bounded pool; kernels release the GIL."""

    @property
    def threads(self) -> int: ...

    def run(self, thunks: Sequence[Callable[[], None]]) -> None:
        """Run all to completion, the caller taking part; the first error is raised once all have ended."""
        ...
