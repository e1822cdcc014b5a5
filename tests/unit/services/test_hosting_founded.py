"""A cluster is founded once, by nodes that agree on who they are."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from tests.unit.services.hosted import Cluster
from vecdb.cluster.founding import Founding
from vecdb.core.errors import Unavailable
from vecdb.services import founding
from vecdb.services.founding import Founder


def test_a_cluster_is_founded_when_all_have_met_and_not_before():
    cluster = Cluster()
    cluster.start()
    cluster.settle()
    members = {node.hosting.founding.members for node in cluster.nodes.values()}
    assert len(members) == 1
    assert set(members.pop()) == cluster.judge.groups[0].voters
    cluster.end()
    late = Cluster(3)
    late.start("n1", "n2")
    late.world.run(2)
    assert not late.nodes["n1"].hosting.entrance.late, "it may be starting"
    late.world.run(28)
    assert late.nodes["n1"].hosting.entrance.late
    assert not late.judge.groups
    assert [fields["missing"] for _, event, fields in late.nodes["n1"].told if event == "cluster_waits_for_nodes"] \
        == [["n3"]]
    assert list(late.nodes["n1"].hosting.entrance.missing) == ["n3"]
    late.start("n3")
    late.settle()
    assert late.nodes["n1"].hosting.entrance.missing == {}
    assert not late.nodes["n1"].hosting.entrance.late
    late.end()


def test_nodes_with_other_settings_are_told_and_found_nothing():
    cluster = Cluster(4)
    cluster.nodes["n3"].names = ("n1", "n3")
    cluster.start()
    cluster.world.run(20)
    assert not cluster.judge.groups
    assert "cluster_nodes_differ" in [event for _, event, _ in cluster.nodes["n3"].told]
    cluster.end()


def test_who_is_missing_is_told_with_the_reason_and_another_reason_not_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[dict[str, Any]] = []
    ledger: Any = SimpleNamespace(founding=Founding(1))
    monkeypatch.setattr(founding, "PATIENCE_S", -1.0)
    monkeypatch.setattr(founding, "PAUSE_S", (0.0, 0.0))

    class Witnesses:
        said = 0

        async def founding(self, node: str) -> Founding:
            self.said += 1
            raise Unavailable("no way there" if self.said < 3 else "another reason")

    async def story() -> None:
        found = Founder("n1", ["n1", "n2"], ledger, Witnesses(), lambda level, event, **fields: told.append(fields),
                        draw=lambda: 1, thread=lambda *args: asyncio.sleep(0))
        task = asyncio.create_task(found.found(False))
        while found.missing != {"n2": "another reason"}:
            await asyncio.sleep(0)
        for _ in range(20):
            await asyncio.sleep(0)
        task.cancel()
        assert [(one["missing"], one["why"]) for one in told] == [(["n2"], {"n2": "no way there"})]

    asyncio.run(asyncio.wait_for(story(), 30))
