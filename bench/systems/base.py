"""What a measured system must do."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np


class MissingError(Exception):
    """The library of a system is not installed."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What every system is built with: the same graph degree and effort, and the same number of threads."""

    metric: str
    dim: int
    k: int
    m: int
    ef_construction: int
    build_threads: int
    threads: int
    seed: int = 7


class System(ABC):
    """One index of one library.  ``effort`` is ef_search for graphs, nprobe for inverted files, nothing for exact."""

    effort_name = "ef_search"

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    @abstractmethod
    def build(self, train: np.ndarray) -> None:
        """Takes float32 (n, d), on ``build_threads`` threads."""

    @abstractmethod
    def set_effort(self, effort: int) -> None:
        """How hard the following searches try."""

    @abstractmethod
    def search(self, queries: np.ndarray) -> np.ndarray:
        """float32 (q, d) -> integers (q, k), -1 where nothing was found; on ``threads`` threads."""

    @abstractmethod
    def bytes_per_vector(self) -> float:
        """Everything the index holds to answer, full vectors included where it needs them."""

    def params(self) -> dict[str, int | float | str]:
        """What the index was built with."""
        return {"m": self.settings.m, "ef_construction": self.settings.ef_construction}

    def efforts(self, sweep: list[int]) -> list[int]:
        """The efforts to measure, given those asked for in terms of ef_search."""
        return [effort for effort in sweep if effort >= self.settings.k]

    def warm(self, train: np.ndarray) -> None:
        """Runs whatever is paid once a process (compiling) before the clock starts; nothing by default."""

    def close(self) -> None:
        """Lets go of files and memory."""


class InvertedFile:
    """The part inverted files share: lists by the square root of the size, effort in lists probed."""

    effort_name = "nprobe"

    @staticmethod
    def lists(count: int) -> int:
        return max(16, 1 << round(np.log2(4 * count**0.5)))

    @staticmethod
    def probes(lists: int) -> list[int]:
        return [probes for probes in (1, 2, 4, 8, 16, 32, 64, 128, 256) if probes <= lists]
