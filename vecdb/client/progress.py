"""Progress of long calls: a rich bar for people, ``(stage, done, total)`` for programs.

``total`` is 0 where it is not known beforehand (a generator).  rich is imported when a bar is asked for.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

from vecdb.client.backend import Progress
from vecdb.core.errors import InvalidArgument

ProgressOption: TypeAlias = bool | Callable[[str, int, int], Any] | None


@contextmanager
def reporting(progress: object) -> Iterator[Progress | None]:
    """Turn the ``progress`` argument of a call into what reports to it, or None."""
    if progress is None or progress is False:
        yield None
    elif progress is True:
        with _bar() as report:
            yield report
    elif callable(progress):
        yield progress
    else:
        raise InvalidArgument("progress", f"must be True, False or a callable, not {type(progress).__name__}",
                              got=type(progress).__name__, limit="bool or callable(stage, done, total)")


@contextmanager
def _bar() -> Iterator[Progress]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=False) as bar:
        tasks: dict[str, TaskID] = {}

        def report(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bar.add_task(stage, total=total or None)
            bar.update(tasks[stage], completed=done, total=total or None)

        yield report
