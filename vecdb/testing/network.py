"""Wires between nodes: frames that are late, lost, doubled, overtaken, cut off in both directions or in one.

What is bulky has a stream of its own: in order among its like, and in none with the other frames.
"""

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from vecdb.testing.world import World


@dataclass(slots=True)
class Weather:
    """How the wires are.  Seconds and probabilities, a frame."""

    delay: float = 0.001
    jitter: float = 0.002
    lost: float = 0.0
    doubled: float = 0.0
    overtaken: float = 0.0
    """Frames that take another way, up to ``detour`` late; the others stay in order."""
    detour: float = 0.5
    flipped: float = 0.0
    """Frames that arrive with a bit changed."""


class Network:
    """``deliver`` has, by name, what a node does with a frame."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.weather = Weather()
        self.deliver: dict[str, Callable[[str, bytes], None]] = {}
        self.gone: dict[str, Callable[[str], None]] = {}
        """By name, what a node does when it is told that another's process is gone."""
        self._chance = Random(f"gone/{world.seed}")  # noqa: S311  # of its own: what else happens does not hang on it
        self._cut: dict[tuple[str, str], bool] = {}
        self._last: dict[tuple[str, str, bool], float] = {}

    def cut(self, sender: str, receiver: str) -> None:
        """Nothing goes this way any more."""
        self._cut[sender, receiver] = True

    def part(self, one: list[str], other: list[str]) -> None:
        """Nothing goes between the two sides."""
        for here in one:
            for there in other:
                self.cut(here, there)
                self.cut(there, here)

    def seems_gone(self, name: str) -> None:
        """Connections to a node break: some of the others are told, as soon as each finds out."""
        for other in sorted(self.gone):
            if other != name and self._chance.random() < 0.7:
                self.world.happened["told_gone"] += 1
                self.world.at(self._chance.choice((0.001, 0.05, 0.25)) * (0.5 + self._chance.random()),
                              lambda other=other: self.gone[other](name))  # type: ignore[misc]

    def reaches(self, sender: str, receiver: str) -> bool:
        """Whether anything gets this way now."""
        return (sender, receiver) not in self._cut

    def heal(self) -> None:
        self._cut.clear()
        self.weather = Weather()

    def send(self, sender: str, receiver: str, frame: bytes, *, bulk: bool = False) -> None:
        random, weather, happened = self.world.random, self.weather, self.world.happened
        happened["frames"] += 1
        happened["frames_bulky"] += bulk
        if (sender, receiver) in self._cut:
            happened["frames_cut"] += 1
            return
        if random.random() < weather.lost:
            happened["frames_lost"] += 1
            return
        if random.random() < weather.flipped:
            happened["frames_flipped"] += 1
            changed = bytearray(frame)
            changed[random.randrange(len(changed))] ^= 1 << random.randrange(8)
            frame = bytes(changed)
        self._arrive(sender, receiver, frame, bulk, ordered=random.random() >= weather.overtaken)
        if random.random() < weather.doubled:
            happened["frames_doubled"] += 1
            self._arrive(sender, receiver, frame, bulk, ordered=False)

    def _arrive(self, sender: str, receiver: str, frame: bytes, bulk: bool, *, ordered: bool) -> None:
        random, weather = self.world.random, self.weather
        moment = self.world.now + weather.delay + random.random() * weather.jitter
        if ordered:
            moment = max(moment, self._last.get((sender, receiver, bulk), 0.0))
            self._last[sender, receiver, bulk] = moment
        else:
            self.world.happened["frames_overtaken"] += 1
            moment += random.random() * weather.detour
        self.world.at(moment - self.world.now, lambda: self._hand(sender, receiver, frame))

    def _hand(self, sender: str, receiver: str, frame: bytes) -> None:
        if (sender, receiver) not in self._cut and receiver in self.deliver:
            self.deliver[receiver](sender, frame)
