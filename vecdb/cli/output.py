"""What a command says: tables and progress for people, one JSON value for programs."""

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

_WIDE = 140
"""Columns where no terminal says how many: a pipe or a log should not wrap a table."""

Advance = Callable[[int, int | None], None]
"""``(done, total)`` of the stage at hand; a total of None is unknown."""


class Output:
    """Where a command's words go; consoles are made when first used."""

    def __init__(self, as_json: bool) -> None:
        self.as_json = as_json
        self._out: Console | None = None
        self._err: Console | None = None

    @property
    def out(self) -> "Console":
        if self._out is None:
            self._out = _console(stderr=False)
        return self._out

    @property
    def err(self) -> "Console":
        if self._err is None:
            self._err = _console(stderr=True)
        return self._err

    def emit(self, value: Any) -> None:
        """Print the one JSON value of a command."""
        import orjson

        flags = orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS | orjson.OPT_APPEND_NEWLINE
        if sys.stdout.isatty():
            flags |= orjson.OPT_INDENT_2
        sys.stdout.write(orjson.dumps(value, default=str, option=flags).decode())

    def line(self, value: Any) -> None:
        """Print one JSON value on a line of its own, at once: of a command that goes on."""
        import orjson

        sys.stdout.write(orjson.dumps(value, default=str).decode() + "\n")
        sys.stdout.flush()

    def line_of(self, text: str) -> None:
        """Print text as it is, never wrapped or styled: what a shell will take."""
        sys.stdout.write(text + "\n")

    def say(self, text: str = "", *, markup: bool = False) -> None:
        """Print a line of the answer, for people only."""
        if not self.as_json:
            self.out.print(text, markup=markup, highlight=False)

    def note(self, text: str) -> None:
        """Print a remark on stderr, for people only."""
        if not self.as_json:
            self.err.print(text, markup=False, highlight=False)

    def remark(self, text: str) -> None:
        """Print a remark on stderr if somebody watches it: where a log is kept, lines are the log's."""
        if watched():
            self.note(text)

    def warn(self, text: str) -> None:
        """Print a warning on stderr, always."""
        sys.stderr.write(f"vecdb: warning: {text}\n")

    def hint_paths(self, where: str | None) -> None:
        """Where a filter matched nothing, say what a dot in its paths means: keys that hold one are often meant."""
        if where is None or self.as_json:
            return
        from vecdb.core.filters import parse, paths_of
        from vecdb.core.filters.paths import split_path

        nested = [path for path in paths_of(parse(where)) if len(split_path(path)) > 1]
        if nested:
            keys = ".".join(split_path(nested[0]))
            self.note(f"{nested[0]} is a key inside an object; a key that itself holds a dot is written `{keys}`")

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], *,
              left: Sequence[int] = (0,), totals: bool = False) -> None:
        """Print a table, for people only; columns in ``left`` are text, the others are numbers."""
        if self.as_json:
            return
        from rich import box
        from rich.table import Table

        if title:
            # Not the table's own title, which would be wrapped to the width of a narrow table.
            self.out.print()
            self.out.print(title, style="bold", markup=False, highlight=False)
        named = any(columns)
        table = Table(box=box.SIMPLE_HEAD if named else box.SIMPLE, show_header=named)
        for place, name in enumerate(columns):
            table.add_column(name, justify="left" if place in left else "right",
                             overflow="fold" if place in left else "ellipsis", no_wrap=place not in left)
        for place, row in enumerate(rows):
            from rich.text import Text
            last = totals and place == len(rows) - 1
            if last:
                table.add_section()
            table.add_row(*[Text(str(cell)) for cell in row], style="bold" if last else None)
        self.out.print(table)

    @contextmanager
    def progress(self, stage: str, total: int | None = None, unit: str | Callable[[], str] = "records", *,
                 watched: bool = False) -> Iterator[Advance]:
        """Show how far a stage is, with its rate and what is left: a bar on a terminal, else a line every while.

        ``unit``: or who knows it, empty as long as nobody does: then nothing is counted.
        ``watched``: the work is another's and may have begun, or ended, before: what was done until then is in no rate.
        """
        if self.as_json:
            yield _silent
        elif self.err.is_terminal:
            with _bar(self.err, stage, total, _asked(unit)) as advance:
                yield advance
        else:
            with _lines(self.err, stage, total, _asked(unit), watched) as advance:
                yield advance

    @contextmanager
    def stages(self) -> Iterator[Callable[[str, int, int], None]]:
        """Show a call that reports ``(stage, done, total)`` itself, one bar a stage."""
        if self.as_json:
            yield lambda stage, done, total: None
        elif self.err.is_terminal:
            with _bars(self.err) as report:
                yield report
        else:
            yield _StageLines(self.err)


def watched() -> bool:
    """Whether stderr is a terminal."""
    return sys.stderr.isatty()


def _silent(done: int, total: int | None = None) -> None:
    """Progress that nobody watches."""


def _console(*, stderr: bool) -> "Console":
    from rich.console import Console

    class Quiet(Console):
        def on_broken_pipe(self) -> None:
            """Leave it to :mod:`vecdb.cli.run`: rich would exit with 1, which here means a fault of ours."""
            raise BrokenPipeError

    console = Quiet(stderr=stderr)
    if not console.is_terminal:
        console = Quiet(stderr=stderr, width=_WIDE)
    return console


def _asked(unit: str | Callable[[], str]) -> Callable[[], str]:
    return (lambda: unit) if isinstance(unit, str) else unit


def _columns(unit: Callable[[], str]) -> Any:
    from rich.progress import BarColumn, MofNCompleteColumn, ProgressColumn, TextColumn, TimeRemainingColumn
    from rich.text import Text

    class Rate(ProgressColumn):
        def render(self, task: Any) -> Text:
            speed = task.finished_speed or task.speed
            return Text(f"{count(round(speed))} {unit()}/s".strip() if speed and round(speed) else "")

    return (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), Rate(),
            TimeRemainingColumn(elapsed_when_finished=True))


@contextmanager
def _bar(console: "Console", stage: str, total: int | None, unit: Callable[[], str]) -> Iterator[Advance]:
    from rich.progress import Progress

    with Progress(*_columns(unit), console=console) as bar:
        task = bar.add_task(stage, total=total)

        def advance(done: int, total: int | None = None) -> None:
            bar.update(task, completed=done, total=total)

        yield advance


@contextmanager
def _bars(console: "Console") -> Iterator[Callable[[str, int, int], None]]:
    from rich.progress import Progress, TaskID

    with Progress(*_columns(str), console=console) as bar:
        tasks: dict[str, TaskID] = {}

        def report(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bar.add_task(stage, total=total or None)
            bar.update(tasks[stage], completed=done, total=total or None)

        yield report


_FEW_STEPS = 10
"""Up to so many steps a stage is only named: "writing files: 0 of 3" tells nobody anything."""

_EVERY_S = 10.0
"""Seconds between two lines of progress where there is no terminal."""


_WATCHED_S = 1.0
"""Work of another that was watched for less has no rate."""


@contextmanager
def _lines(console: "Console", stage: str, total: int | None, unit: Callable[[], str], watched: bool
           ) -> Iterator[Advance]:
    begin = said = since = time.monotonic()
    done, whole, first, counted = 0, total, 0, ""

    def line(*, ended: bool = False) -> str:
        if not unit():
            return stage
        spent = max(time.monotonic() - since, 1e-9)
        rate = 0.0 if watched and spent < _WATCHED_S else (done - first) / spent
        left = f", {duration((whole - done) / rate)} left" if whole and rate and whole > done and not ended else ""
        of = f" of {count(whole)}" if whole else ""
        speed = f", {count(round(rate))}/s" if round(rate) else ""
        return f"{stage}: {count(done)}{of} {unit()}{speed}{left}"

    def advance(now_done: int, total: int | None = None) -> None:
        nonlocal said, since, done, whole, first, counted
        if watched and (unit() != counted or now_done < first):
            since, first, counted = time.monotonic(), now_done, unit()
        done, whole = now_done, whole if total is None else total
        if time.monotonic() - said >= _EVERY_S:
            said = time.monotonic()
            console.print(line(), markup=False, highlight=False)

    yield advance
    spent = time.monotonic() - begin
    within = "" if watched and spent < _WATCHED_S else f" in {duration(spent)}"
    console.print(f"{line(ended=True)}{within}", markup=False, highlight=False)


class _StageLines:
    """Prints when a stage begins, every while, and when it is done."""

    def __init__(self, console: "Console") -> None:
        self._console = console
        self._stage = ""
        self._said = 0.0

    def __call__(self, stage: str, done: int, total: int) -> None:
        now = time.monotonic()
        finished = total > _FEW_STEPS and done >= total
        if stage == self._stage and now - self._said < _EVERY_S and not finished:
            return
        self._stage, self._said = stage, now
        far = f": {count(done)}" + (f" of {count(total)}" if total else "")
        self._console.print(stage + (far if total == 0 or total > _FEW_STEPS else ""), markup=False, highlight=False)


def count(number: int | float | None) -> str:
    """A number with thousands apart."""
    return "-" if number is None else f"{int(number):,}"


def size(number: float | None) -> str:
    """Bytes in binary units."""
    if number is None:
        return "-"
    value = float(number)
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if abs(value) < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:,.1f} PiB"


def duration(seconds: float) -> str:
    """Seconds as people say them."""
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 100:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02} h" if hours else f"{minutes}:{rest:02} min"


def shorten(text: str, room: int) -> str:
    """Text cut to ``room`` characters, on one line."""
    line = " ".join(text.split())
    return line if len(line) <= room else line[:room - 1] + "…"
