"""Clusters of real shards: some seeds, the same run twice, those that failed once, and judges that do notice."""

import pytest

from tests.sim import shard_mutants
from vecdb.core.errors import StorageError
from vecdb.testing.shard_sim import simulate_shards
from vecdb.testing.sim import kind_of
from vecdb.testing.violation import Violation
from vecdb.testing.world import World

FAILED_ONCE = {
    4: "the folder of all replicas of a node was made and not synced: a power cut took the first one",
    10407: "a read that met damage left the replica as it was, and it went on leading and failing"}
"""Seeds that have found something in the product, with what it was."""

SEEDS_OF_A_MUTANT = 12
CAUGHT_BY = {"checkpoints_without_the_disk": 4, "copies_without_what_is_in_memory": 7, "leads_without_asking": 5,
             "forgets_who_died_in_sealed_segments": 2, "sessions_do_not_wait": 2}
"""The first seed that catches it where that is not the first one: it is asked first, and the others if it no longer
does."""


@pytest.mark.parametrize("seed", [10, 20, 30, *FAILED_ONCE])
def test_a_seed(seed):
    world = simulate_shards(seed)
    assert world.happened["recoveries_checked"] >= 1
    assert world.happened["outcomes_checked"] > 100
    assert world.happened["reads_checked"] > 30


def test_faults_of_every_kind_happen():
    happened = sum((simulate_shards(seed).happened for seed in (*range(1, 10), 17, 22)), World(0).happened)
    for what in ("crashes", "batches_lost", "cuts_within", "states_damaged", "states_set_aside", "upkeep_seal",
                 "upkeep_compact", "upkeep_merge", "frames_bulky", "repetitions_checked", "calls_once_more"):
        assert happened[what], what


def test_a_seed_gives_the_same_run_again():
    one, other = World(30), World(30)
    simulate_shards(30, one)
    simulate_shards(30, other)
    assert list(one.trace) == list(other.trace)
    assert one.happened == other.happened


def test_every_tenth_seed_is_one():
    assert [seed for seed in range(1, 41) if kind_of(seed) == "shards"] == [10, 20, 30, 40]


@pytest.mark.parametrize("mutant", shard_mutants.EVERY, ids=lambda mutant: mutant.__name__)
def test_the_judges_notice(mutant, monkeypatch):
    mutant(monkeypatch)

    def run():
        for seed in (CAUGHT_BY.get(mutant.__name__, 1), *range(1, SEEDS_OF_A_MUTANT + 1)):
            simulate_shards(seed)

    with pytest.raises((Violation, StorageError)):  # what a judge finds, or what the product cannot go on with
        run()
