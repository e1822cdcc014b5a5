"""Where kernels run."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Protocol


class Compute(Protocol):
    """A bounded pool; kernels release the GIL."""

    @property
    def threads(self) -> int: ...

    @property
    def sharing(self) -> AbstractContextManager[int]:
        """Entered for as long as a piece of work takes: how many parts it should be cut into, all threads' worth while
        nothing else is under way and its share of them otherwise.
        """
        ...

    def run(self, thunks: Sequence[Callable[[], None]]) -> None:
        """Run all to completion, the caller taking part; the first error is raised once all have ended."""
        ...
