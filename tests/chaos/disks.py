"""What a node's directory lies on: how it loses its power, and whether it can be filled."""

import contextlib
import functools
import random
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.chaos import plugs
from tests.chaos.forgetting import Cut, Layer, built, compiler
from tests.chaos.plugs import Plug
from tests.faults import ROOT, can_mount, small_filesystem

BYTES: Final = 1 << 30
LAYER, LIES, PLUG, PLAIN = "layer", "lies", "plug", "plain"


class Disk:
    """The directory ``folder``, for one node.

    ``kind``: ``layer``, a file layer that forgets, on a tmpfs of its own where one may be mounted; ``lies``, the same
    with syncs that do nothing; ``plug``, an ext4 that is shut down; ``plain``, which has no power to lose.
    ``fills``: it is a file system of its own, of :data:`BYTES`.
    """

    def __init__(self, folder: Path, kind: str) -> None:
        self.folder, self.data = folder, folder / "data"
        self._ends = contextlib.ExitStack()
        self._layer: Layer | None = None
        self._plug: Plug | None = None
        self.fills = kind == PLUG or can_mount()
        if kind == PLUG:
            self._plug = Plug(folder, folder.with_suffix(".image"), BYTES)
            self._ends.callback(self._plug.close)
        elif self.fills:
            self._ends.enter_context(small_filesystem(folder, BYTES))
        self.data.mkdir(parents=True)
        if kind in (LAYER, LIES):
            self._layer = Layer(self.data, folder / "layer", built(ROOT / "build" / "chaos"),
                                sync="none" if kind == LAYER else "lies")

    def environment(self) -> dict[str, str]:
        """Variables for a process that works on it."""
        return {} if self._layer is None else self._layer.environment()

    def cut_power(self, rng: random.Random) -> Cut:
        """Nobody may work on it."""
        if self._layer is not None:
            return self._layer.cut(rng)
        if self._plug is None:
            raise TypeError("a plain disk has no power to lose")
        self._plug.pull()
        return Cut()

    def slow(self, ms: int) -> None:
        """Let each sync take so long; 0: be as quick as it is."""
        if self._layer is None:
            raise TypeError("only the layer can be slow")
        self._layer.slow(ms)

    def harmed(self) -> None:
        """Somebody else changed it: what is there now is stable.  Nobody may work on it."""
        if self._layer is not None:
            self._layer.begin()

    def empty(self) -> None:
        """A new one."""
        shutil.rmtree(self.data)
        self.data.mkdir()
        self.harmed()

    def close(self) -> None:
        self._ends.close()


@dataclass(frozen=True, slots=True)
class Kinds:
    """The kinds to choose from on this machine, and what cannot be tried, with reasons."""

    usable: tuple[str, ...]
    missing: tuple[str, ...]


@functools.cache
def kinds() -> Kinds:
    found, missing = [], []
    if compiler() is None:
        missing.append("a file layer that forgets (no C compiler: cc, gcc, clang or the ziglang package)")
    else:
        found.append(LAYER)
    if why := plugs.missing():
        missing.append(f"pulling a disk's plug ({why})")
    else:
        found.append(PLUG)
    if not can_mount():
        missing.append("disks that fill, so a limit on the size of files takes their place (may not mount)")
    if PLUG not in found:
        found.append(PLAIN)  # some attacks are for disks without a layer
    return Kinds(tuple(found), tuple(missing))
