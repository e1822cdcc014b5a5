"""How a part of the node says what people should know, without knowing where logs go."""

from typing import Any, Protocol


class Tell(Protocol):
    def __call__(self, level: str, event: str, **fields: Any) -> None:
        """``level``: info, warning or error.  ``event``: a name in snake case.

        Never raises; callable from any thread.
        """
        ...


def tell_nobody(level: str, event: str, **fields: Any) -> None:
    """For those who do not want to know."""
