"""What splits and merges would do, and which of them make no sense."""

from pathlib import Path
from random import Random
from typing import Any

import pytest

from tests.unit.services.test_reshard import World, make_operation
from vecdb.cluster.routing import hash_of_id
from vecdb.core.cluster import HASH_SPACE
from vecdb.core.errors import InvalidArgument, LimitExceeded, ShardNotFound, VecdbError


@pytest.mark.parametrize(("kind", "target", "args", "error"), [
    ("split", "7", {}, ShardNotFound), ("split", "x", {}, InvalidArgument),
    ("split", "1", {"into": 1}, InvalidArgument),
    ("split", "1", {"into": 10**9}, InvalidArgument), ("split", "1", {"into": 1_024}, LimitExceeded),
    ("split", "1", {"into": 2, "at": 5}, InvalidArgument), ("split", "1", {"at": "in the other"}, InvalidArgument),
    ("merge", "1", {}, InvalidArgument), ("merge", "1", {"with": 1}, InvalidArgument),
    ("merge", "1", {"with": 3}, InvalidArgument)])
def test_what_makes_no_sense_is_refused(tmp_path: Path, kind: str, target: str, args: dict[str, Any],
                                        error: type[VecdbError]) -> None:
    third = HASH_SPACE // 3
    other = next(f"in the other{at}" for at in range(99) if hash_of_id(f"in the other{at}") >= third)
    args = {name: other if value == "in the other" else value for name, value in args.items()}
    world = World(tmp_path, Random(1), [(0, third), (third, 2 * third), (2 * third, HASH_SPACE)])
    try:
        with pytest.raises(error):
            make_operation(world, kind).plan(world.control, target, args)
    finally:
        world.database.close()


def test_plans_say_what_will_be_done(tmp_path: Path) -> None:
    world = World(tmp_path, Random(1), [(0, HASH_SPACE)])
    try:
        plan = make_operation(world, "split").plan(world.control, "1", {"into": 4})
        assert [step.action for step in plan.steps] == ["make"] * 4 + ["copy", "switch", "forget"]
        one = hash_of_id("lonely")
        wanted = make_operation(world, "split").wanted(world.control, "1", {"apart": "lonely"})
        assert wanted.ranges == ((0, one), (one, one + 1), (one + 1, HASH_SPACE))
        assert make_operation(world, "split").wanted(world.control, "1", {"at": "lonely"}).ranges == (
            (0, one), (one, HASH_SPACE))
    finally:
        world.database.close()
