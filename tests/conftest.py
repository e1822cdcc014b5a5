"""What holds for all tests."""

from collections.abc import Iterable
from itertools import chain, zip_longest
from pathlib import Path

import pytest
from hypothesis import settings

# How long an example takes says how busy the machine is; what a test promises is never a time.
settings.register_profile("vecdb", deadline=None, print_blob=True)
settings.load_profile("vecdb")

LONG = ("replicated", "engine", "sim", "server", "chaos")
"""Rooms whose files take up to a minute each, in the order in which they take turns."""


def in_turns(files: Iterable[tuple[str, str]]) -> list[str]:
    """Of ``(room, file)`` the files, those of long rooms first and by turns.

    Files go to workers whole and in this order.  A long one that came last would leave one worker alone with it; and
    those of one room beside each other want the same at the same time: nodes of clusters wait, indexes compute.
    """
    rooms: dict[str, list[str]] = {room: [] for room in LONG}
    others: list[str] = []
    for room, file in files:
        rooms.get(room, others).append(file)
    turns = chain.from_iterable(zip_longest(*rooms.values()))
    return [*(file for file in turns if file is not None), *others]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    by_file: dict[str, list[pytest.Item]] = {}
    for item in items:
        by_file.setdefault(str(item.path), []).append(item)
    files = [(Path(file).relative_to(here).parts[0] if Path(file).is_relative_to(here) else "", file)
             for file in by_file]
    items[:] = [item for file in in_turns(files) for item in by_file[file]]
