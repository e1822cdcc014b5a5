"""Shards that are split and merged while they are used and hurt: some seeds, and judges that do notice."""

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from vecdb.services.copying import Copier
from vecdb.services.operations.reshard import Attempt
from vecdb.services.replica import ShardReplica
from vecdb.shard.machine import ShardMachine
from vecdb.shard.seal import Seal, SealState, Unseal
from vecdb.testing.reshard_sim import simulate_resharding
from vecdb.testing.sim import kind_of
from vecdb.testing.violation import Violation
from vecdb.testing.world import World

SEEDS_OF_A_MUTANT = 12
CAUGHT_BY = {"_the_rest_is_not_waited_for": 4}
"""The first seed that catches it where that is late: it is asked first, and the others if it no longer does."""
FAULTS_S = 12.0


@pytest.mark.parametrize("seed", [1, 5])
def test_a_seed(seed: int) -> None:
    print(f"seed {seed}")
    happened = simulate_resharding(seed, faults_s=FAULTS_S).happened
    assert happened["recoveries_checked"] == 1
    assert happened["jobs_done"] >= 2
    assert happened["histories_checked"] > 10


def test_every_tenth_seed_is_one() -> None:
    assert [seed for seed in range(1, 41) if kind_of(seed) == "resharding"] == [7, 17, 27, 37]


RUN = """
from vecdb.testing.world import World
from vecdb.testing.reshard_sim import simulate_resharding
world = World(7)
simulate_resharding(7, world, faults_s=4.0)
print("\\n".join(world.trace), sorted(world.happened.items()))
"""


def test_a_seed_gives_the_same_run_in_another_process() -> None:
    said = [subprocess.run([sys.executable, "-c", RUN], capture_output=True, text=True, check=True, timeout=300,
                           env={"PYTHONHASHSEED": seed}).stdout for seed in ("1", "2")]
    assert said[0] == said[1]
    assert "resharded" in said[0]


def _a_seal_that_seals_nothing(patch: pytest.MonkeyPatch) -> None:
    after = SealState.after

    def open_after(self: SealState, command: Seal | Unseal, log_index: int) -> SealState:
        found = after(self, command, log_index)
        return SealState(found.job, found.fence, False, found.log_index) if found.sealed else found

    patch.setattr(SealState, "after", open_after)


def _nothing_is_remembered_of_writes(patch: pytest.MonkeyPatch) -> None:
    """Neither of those before the copy nor of those that it carries."""
    async def no_memories(self: Copier, follow: object) -> None:
        return None

    take = ShardMachine.take

    def forgetful(self: ShardMachine, log_index: int, term: int, piece: Any) -> Any:
        remember = self.imports.remember
        self.imports.remember = lambda *args: None  # type: ignore[method-assign]
        try:
            return take(self, log_index, term, piece)
        finally:
            self.imports.remember = remember  # type: ignore[method-assign]

    patch.setattr(Copier, "_copy_memories", no_memories)
    patch.setattr(ShardMachine, "take", forgetful)


def _the_rest_is_not_waited_for(patch: pytest.MonkeyPatch) -> None:
    async def at_once(self: Attempt, source: object, log_index: int, until: float) -> None:
        return None

    patch.setattr(Attempt, "_drained", at_once)


def _sealed_shards_answer_reads_of_now(patch: pytest.MonkeyPatch) -> None:
    check = ShardReplica.check_sealed
    patch.setattr(ShardReplica, "check_sealed", lambda self, command: None if command is None else check(self, command))


def _changes_are_lost_on_their_way(patch: pytest.MonkeyPatch) -> None:
    take, counted = Copier._take, [0]

    def lossy(self: Copier, follow: Any) -> Any:
        taken, shares = take(self, follow)
        counted[0] += bool(shares)
        return taken, shares[:-1] if counted[0] % 3 == 0 else shares

    patch.setattr(Copier, "_take", lossy)


@pytest.mark.parametrize("mutant", [_a_seal_that_seals_nothing, _nothing_is_remembered_of_writes,
                                    _the_rest_is_not_waited_for, _sealed_shards_answer_reads_of_now,
                                    _changes_are_lost_on_their_way])
def test_a_rule_that_is_taken_away_is_missed(mutant: Callable[[pytest.MonkeyPatch], None],
                                             monkeypatch: pytest.MonkeyPatch) -> None:
    mutant(monkeypatch)
    for seed in (CAUGHT_BY.get(mutant.__name__, 1), *range(1, SEEDS_OF_A_MUTANT + 1)):
        try:
            simulate_resharding(seed, World(seed), faults_s=FAULTS_S)
        except Violation as found:
            print(f"seed {seed}: {str(found)[:300]}")
            return
    pytest.fail(f"nobody noticed in {SEEDS_OF_A_MUTANT} seeds")
