"""What a start says while kernels are compiled."""

from types import SimpleNamespace
from typing import Any

import pytest

from vecdb.core.access import ANONYMOUS
from vecdb.core.errors import Unavailable
from vecdb.serving.warming import PERIOD_S, SOON_S, Warming


class World:
    def __init__(self) -> None:
        self.now = 100.0
        self.told: list[tuple[str, dict[str, Any]]] = []
        self.steps: list[str] = []
        self.reasons = ["starting"]
        self.compiled = 0
        self.warming = Warming(self.reasons, lambda level, event, **fields: self.told.append((event, fields)),
                               self.steps.append, lambda: self.compiled, lambda: self.now)


def test_a_start_that_compiles_says_how_far_it_is() -> None:
    world = World()
    gate = world.warming.guarded(SimpleNamespace(check=lambda *_: ANONYMOUS))
    with pytest.raises(Unavailable, match="starting"):
        gate.check((), "")

    def warm(progress: Any) -> None:
        assert world.reasons == ["starting: kernels are loaded, or compiled"]
        progress(0, 9, "scan")
        world.now += SOON_S
        world.compiled = 3
        progress(3, 9, "build")
        assert world.reasons == ["starting: compiling kernels, 3 of 9 are done"]
        with pytest.raises(Unavailable, match="compiling kernels, 3 of 9 are done"):
            gate.check((), "")
        world.now += PERIOD_S / 2
        progress(4, 9, "search")
        world.now += PERIOD_S / 2
        progress(5, 9, "codes")
        progress(9, 9, "")

    world.warming.run(warm)
    assert world.told == [("compiling_kernels", {"done": 3, "of": 9, "next": "build"}),
                          ("compiling_kernels", {"done": 5, "of": 9, "next": "codes"}),
                          ("kernels_compiled", {"count": 3, "seconds": SOON_S + PERIOD_S})]
    assert world.steps == ["kernels 0/9 scan", "kernels 3/9 build", "kernels 4/9 search", "kernels 5/9 codes",
                           "kernels 9/9"]
    with pytest.raises(Unavailable):
        gate.check((), "")
    world.warming.done()
    assert world.reasons == []
    assert gate.check((), "") is ANONYMOUS


def test_one_that_loads_them_for_longer_than_a_moment_does_not_say_that_it_compiles() -> None:
    world = World()

    def warm(progress: Any) -> None:
        world.now += SOON_S
        progress(3, 9, "build")
        assert world.reasons == ["starting: loading kernels, 3 of 9 are done"]

    world.warming.run(warm)
    assert world.told == [("loading_kernels", {"done": 3, "of": 9, "next": "build"}),
                          ("kernels_loaded", {"seconds": SOON_S})]


def test_one_that_finds_them_compiled_tells_nothing() -> None:
    world = World()

    def warm(progress: Any) -> None:
        for done in range(10):
            progress(done, 9, "")

    world.warming.run(warm)
    assert world.told == []
    assert world.reasons == ["starting: kernels are loaded, or compiled"]
    world.warming.done()
    world.reasons[:] = ["draining"]
    world.warming.check()  # those who are there already are let in to the end
