"""A few rounds of chaos on three nodes: ``make chaos`` is the long form."""

from pathlib import Path

import pytest

from tests.chaos.campaign import Campaign

ATTACKS = ("kill_leader", "power_of_all", "leader_is_deaf", "flip_while_down")


@pytest.mark.timeout(600)
def test_three_nodes_keep_what_they_promise(tmp_path: Path) -> None:
    campaign = Campaign(seed=4, place=tmp_path, clients=2)
    try:
        for number, attack in enumerate(ATTACKS, 1):
            assert campaign.round(number, attack), campaign.tally.failures
    finally:
        campaign.close()
        print("\n".join(campaign.tally.lines()))
    assert campaign.tally.checked["operations"] > 100
    assert campaign.tally.checked["replicas_compared"] == 3 * len(ATTACKS)
