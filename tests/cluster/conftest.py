"""Where there is no engine these tests are skipped, and say why; with VECDB_TEST_REQUIRE_ENGINE=1 they fail instead."""

import signal
from collections.abc import Iterator
from types import FrameType

import pytest

from tests.cluster.compose import missing
from tests.cluster.load import Senses
from tests.faults import lacking

LINES: list[str] = []
"""What was measured, for the end of the run."""


@pytest.fixture(scope="session", autouse=True)
def engine() -> Iterator[None]:
    if why := missing():
        lacking(why)

    def ended(number: int, frame: FrameType | None) -> None:
        pytest.exit(f"signal {number}: containers are removed first")

    before = signal.signal(signal.SIGTERM, ended)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.fixture(scope="session")
def senses() -> Senses:
    return Senses()


@pytest.fixture(scope="session")
def lines() -> list[str]:
    return LINES


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if LINES:
        terminalreporter.section("clusters of containers")
        for line in LINES:
            terminalreporter.line(line)
