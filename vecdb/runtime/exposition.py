"""The page of ``/metrics``: registry, text, and the pages of the node's other processes.

**Several processes.**  Each process counts for itself.  A front process writes its page to a file in the node's
directory every few seconds (:func:`publish`); the engine's process puts what it finds there on its own page, each
sample with a ``process`` label, so one scrape of one address sees the node and ``sum without (process)`` adds it up.
Counters are not added here: a front that is started anew would make the sum fall, which reads as a reset of all.
Prometheus' own multiprocess mode was not taken: it is chosen by an environment variable before the first
import, slows every increment by a mapped file, and leaves custom collectors out.

A page takes milliseconds of Python and may look at disks: :meth:`Exposition.text` belongs in a thread.
"""

import asyncio
import os
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final, Protocol

from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector
from prometheus_client.core import Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.openmetrics.exposition import CONTENT_TYPE_LATEST
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

PUBLISH_S: Final = 5.0
STALE_S: Final = 30.0
"""Age from which a process's file counts as left behind."""
_SUFFIX: Final = ".prom"


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
        self.registry = CollectorRegistry()
        for source in sources:
            self.registry.register(source)
        self._process = process
        self._folder = folder

    def families(self) -> list[Metric]:
        """All metrics, families of several processes joined."""
        found: dict[str, Metric] = {}
        for family in _labelled(self.registry.collect(), self._process):
            _join(found, family)
        if self._folder is not None:
            for process, text in read_pages(self._folder):
                for family in _labelled(_parsed(text), process):
                    _join(found, family)
        return list(found.values())

    def text(self, accept: str = "") -> tuple[str, bytes]:
        """Content type and body, in OpenMetrics if ``accept`` asks for it; may take a second, so not on a loop."""
        page = _Page(self.families())
        if "application/openmetrics-text" in accept:
            return CONTENT_TYPE_LATEST, generate_openmetrics(page)  # type: ignore[no-untyped-call]
        return CONTENT_TYPE_PLAIN_0_0_4, generate_latest(page)


class _Page:
    """Families that look like a registry to the writers of text."""

    def __init__(self, families: list[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterator[Metric]:
        return iter(self._families)


def _labelled(families: Iterable[Metric], process: str) -> Iterator[Metric]:
    for family in families:
        if process:
            family.samples = [Sample(one.name, {**one.labels, "process": process}, one.value, one.timestamp,
                                     one.exemplar) for one in family.samples]
        yield family


def _join(found: dict[str, Metric], family: Metric) -> None:
    """One family of a name, as the format wants it."""
    there = found.get(family.name)
    if there is None:
        found[family.name] = family
    elif there.type == family.type:
        there.samples += family.samples


def _parsed(text: str) -> list[Metric]:
    """A page that is half written or of another version counts as none."""
    with suppress(ValueError, KeyError, IndexError):
        return [family for family in text_string_to_metric_families(text) if family.type != "unknown"]
    return []


# --- pages of other processes ---------------------------------------------------------------------


def write_page(folder: Path, process: str, text: bytes) -> None:
    """Leave a process's page, whole or not at all; what the disk refuses is a page that is not there."""
    with suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        scratch = folder / f"{process}.{os.getpid()}.{threading.get_ident()}.tmp"
        scratch.write_bytes(text)
        scratch.replace(folder / f"{process}{_SUFFIX}")


def read_pages(folder: Path, *, max_age_s: float = STALE_S) -> list[tuple[str, str]]:
    """Processes and their pages, without those left behind by processes that have ended."""
    found = []
    now = time.time()
    for path in sorted(folder.glob(f"*{_SUFFIX}")):
        with suppress(OSError, UnicodeDecodeError):
            if now - path.stat().st_mtime <= max_age_s:
                found.append((path.stem, path.read_text(encoding="utf-8")))
    return found


async def publish(exposition: Exposition, folder: Path, process: str, every_s: float = PUBLISH_S) -> None:
    """Write this process's page again and again until cancelled; then take it away."""
    try:
        while True:
            _, text = await asyncio.to_thread(exposition.text)
            await asyncio.to_thread(write_page, folder, process, text)
            await asyncio.sleep(every_s)
    finally:
        with suppress(OSError):
            (folder / f"{process}{_SUFFIX}").unlink()
