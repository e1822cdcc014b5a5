"""The page of ``/metrics``: registry, text, and the pages of the node's other processes.

**Several processes.**  Each process counts for itself.  A front process writes its page to a file in the node's
directory every few seconds (:func:`publish`); the engine's process puts what it finds there on its own page, each
sample with a ``process`` label, so one scrape of one address sees the node and ``sum without (process)`` adds it up.
Counters are not added here: a front that is started anew would make the sum fall, which reads as a reset of all.
Prometheus' own multiprocess mode was not taken: it is chosen by an environment variable before the first
import, slows every increment by a mapped file, and leaves custom collectors out.

**A page takes time**: 15,000 lines (a hundred collections) 40 ms of Python, and it may look at disks.  So
:meth:`Exposition.text` belongs in a thread, gives the interpreter's lock away after each family, and writes the classic
text itself: ``prometheus_client`` takes four times as long over it.  Pages of other processes are joined as text,
by family, unparsed.
"""

import asyncio
import os
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from math import isfinite
from pathlib import Path
from typing import Final, Protocol

from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector
from prometheus_client.core import Metric

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
PUBLISH_S: Final = 5.0
STALE_S: Final = 30.0
"""Age from which a process's file counts as left behind."""
_SUFFIX: Final = ".prom"
_HELP: Final = "# HELP "
_TYPE: Final = "# TYPE "


class Source(Protocol):
    """Something with metrics: a collector of ``prometheus_client``."""

    def collect(self) -> Iterable[Metric]: ...


def interpreter() -> list[Source]:
    """What ``prometheus_client`` tells of any Python process: CPU, memory, descriptors, collections of garbage."""
    return [ProcessCollector(registry=None), PlatformCollector(registry=None), GCCollector(CollectorRegistry())]


class Exposition:
    """``sources`` on one page.  ``process``: what this process is called beside others, or "" alone.

    ``folder``: where other processes leave their pages; None: there are none.
    """

    def __init__(self, sources: Iterable[Source], *, process: str = "", folder: Path | None = None) -> None:
        self._sources = tuple(sources)
        self._process = process
        self._folder = folder

    def add(self, source: Source) -> None:
        """One more on the page."""
        self._sources = (*self._sources, source)

    def families(self) -> Iterator[Metric]:
        """The metrics of this process."""
        for source in self._sources:
            yield from source.collect()

    def text(self, accept: str = "") -> tuple[str, bytes]:
        """Content type and body, in the classic format whatever ``accept`` would like; not on an event loop."""
        blocks: dict[str, list[str]] = {}
        for family in self.families():
            name, head, samples = _written(family, self._process)
            _join(blocks, name, head, samples)
            time.sleep(0)  # gives the interpreter's lock to an event loop that waits for it
        if self._folder is not None:
            for page in read_pages(self._folder).values():
                for name, head, samples in _blocks(page):
                    _join(blocks, name, head, samples)
                time.sleep(0)
        return CONTENT_TYPE, "".join(part for block in blocks.values() for part in block).encode()


def _join(blocks: dict[str, list[str]], name: str, head: str, samples: str) -> None:
    """One family of a name, as the format wants it."""
    block = blocks.get(name)
    if block is None:
        blocks[name] = [head, samples]
    elif block[0] == head:
        block.append(samples)


def _written(family: Metric, process: str) -> tuple[str, str, str]:
    """Name, head and samples of a family as text."""
    name = family.name + "_total" if family.type == "counter" else family.name
    kind = family.type
    if kind == "info":
        name, kind = family.name + "_info", "gauge"
    head = f"{_HELP}{name} {family.documentation}\n{_TYPE}{name} {kind}\n"
    extra = f'process="{process}"' if process else ""
    lines = []
    for sample in family.samples:
        labels = ",".join([f'{key}="{_escaped(value)}"' for key, value in sample.labels.items()])
        if extra:
            labels = f"{labels},{extra}" if labels else extra
        value = float(sample.value)
        number = repr(value) if isfinite(value) else _odd(value)
        lines.append(f"{sample.name}{{{labels}}} {number}\n" if labels else f"{sample.name} {number}\n")
    return name, head, "".join(lines)


def _odd(value: float) -> str:
    return "NaN" if value != value else "+Inf" if value > 0 else "-Inf"


def _escaped(value: str) -> str:
    if "\\" in value or '"' in value or "\n" in value:
        return value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")
    return value


def _blocks(page: str) -> Iterator[tuple[str, str, str]]:
    """A page's families; what does not look like one is left out."""
    for block in ("\n" + page).split("\n" + _HELP)[1:]:
        about, _, rest = block.partition("\n")
        kind, _, samples = rest.partition("\n")
        name = about.partition(" ")[0]
        if kind.startswith(f"{_TYPE}{name} "):
            whole = samples if samples.endswith("\n") or not samples else samples + "\n"
            yield name, f"{_HELP}{about}\n{kind}\n", whole


# --- pages of other processes ---------------------------------------------------------------------


def write_page(folder: Path, process: str, text: bytes) -> None:
    """Leave a process's page, whole or not at all; what the disk refuses is a page that is not there.

    ``folder`` must be there: one that is gone went with its node, and is not made anew.
    """
    with suppress(OSError):
        scratch = folder / f"{process}.{os.getpid()}.{threading.get_ident()}.tmp"
        scratch.write_bytes(text)
        scratch.replace(folder / f"{process}{_SUFFIX}")


def read_pages(folder: Path, *, max_age_s: float = STALE_S) -> dict[str, str]:
    """Pages by process, without those left behind by processes that have ended."""
    found = {}
    now = time.time()
    for path in sorted(folder.glob(f"*{_SUFFIX}")):
        with suppress(OSError, UnicodeDecodeError):
            if now - path.stat().st_mtime <= max_age_s:
                found[path.stem] = path.read_text(encoding="utf-8")
    return found


async def publish(exposition: Exposition, folder: Path, process: str, every_s: float = PUBLISH_S) -> None:
    """Write this process's page again and again until cancelled; then take it away.

    ``exposition`` was made with the same ``process``, which its samples carry as a label.
    """
    try:
        while True:
            _, text = await asyncio.to_thread(exposition.text)
            await asyncio.to_thread(write_page, folder, process, text)
            await asyncio.sleep(every_s)
    finally:
        with suppress(OSError):
            (folder / f"{process}{_SUFFIX}").unlink()
