"""Which nodes there are and where: settings, the control state, what a joining node was told, what was known last."""

from types import SimpleNamespace
from typing import Any

import pytest

from vecdb.core.cluster import NodeState
from vecdb.core.errors import DataCorrupted
from vecdb.services.directory import Directory, Noted
from vecdb.services.ledger import Ledger, _noted
from vecdb.shard.mutations import Mutations
from vecdb.testing.disk import MemoryStore

FOUNDERS = {"c1": "c1:7702", "c2": "c2:7702"}


def entry(address: str, state: NodeState = NodeState.ACTIVE) -> Any:
    return SimpleNamespace(address=address, state=state)


class Known:
    """A control state's nodes, a new mapping at every change, as they are."""

    def __init__(self) -> None:
        self.entries: dict[str, Any] = {}

    def put(self, **entries: Any) -> None:
        self.entries = {**self.entries, **entries}

    def __call__(self) -> dict[str, Any]:
        return self.entries


def of(me: str = "c1", founders: dict[str, str] | None = None, noted: Noted | None = None) -> tuple[Directory, Known]:
    known = Known()
    said = FOUNDERS if founders is None else founders
    return Directory(me, said.get(me, f"{me}:7702"), said, noted, known), known


def test_founders_alone_are_known_by_their_settings() -> None:
    directory, _ = of()
    assert dict(directory) == FOUNDERS
    assert list(directory.names) == ["c1", "c2"]


def test_who_joins_is_known_at_once_and_who_leaves_is_not() -> None:
    directory, known = of()
    names = directory.names
    known.put(s1=entry("s1:7702"))
    assert directory["s1"] == "s1:7702"
    assert list(names) == ["c1", "c2", "s1"], "those who hold the names see it too"
    assert names[-1] == "s1"
    known.put(s1=entry("s1:7702", NodeState.LEFT), c2=entry("c2:7702", NodeState.LEFT))
    assert list(directory) == ["c1"], "though the settings name c2"
    assert directory.left == {"s1", "c2"}
    known.put(s1=entry("elsewhere:7702"))
    assert directory["s1"] == "elsewhere:7702"
    assert directory.left == {"c2"}


def test_draining_nodes_are_there() -> None:
    directory, known = of()
    known.put(s1=entry("s1:7702", NodeState.DRAINING), s2=entry("s2:7702", NodeState.DRAINED))
    assert {"s1", "s2"} <= set(directory)


def test_an_address_that_changed_is_taken_over() -> None:
    directory, known = of()
    known.put(c2=entry("c2:7702"))
    known.put(c2=entry("moved:7702"))
    assert directory["c2"] == "moved:7702"
    assert directory["c1"] == "c1:7702"


def test_our_own_address_is_what_we_say() -> None:
    directory, known = of()
    known.put(c1=entry("before:7702"))
    assert directory["c1"] == "c1:7702"


def test_settings_that_changed_while_the_cluster_was_down_count_until_the_node_says_otherwise() -> None:
    noted = Noted({"c1": "c1:7702", "c2": "old:7702"}, {"c1": "c1:7702", "c2": "old:7702"})
    directory, known = of(noted=noted)
    known.put(c2=entry("old:7702"))
    assert directory["c2"] == "c2:7702", "the entry is from before"
    again, known_again = of(noted=directory.noted())
    known_again.put(c2=entry("old:7702"))
    assert again["c2"] == "c2:7702", "at the next start it still is"
    known.put(c2=entry("newest:7702"))
    assert directory["c2"] == "newest:7702"
    known.put(c2=entry("c2:7702"))
    assert directory["c2"] == "c2:7702"


def test_settings_that_did_not_change_do_not_undo_what_nodes_said() -> None:
    directory, known = of(noted=Noted(FOUNDERS, {"c1": "c1:7702", "c2": "moved:7702"}))
    known.put(c2=entry("moved:7702"))
    assert directory["c2"] == "moved:7702"


def test_who_joined_knows_the_others_before_the_control_state_is_there() -> None:
    directory, known = of("s1", {}, Noted({}, {"c1": "c1:7702", "s1": "s1:7702"}))
    assert dict(directory) == {"c1": "c1:7702", "s1": "s1:7702"}
    directory.tell({"c1": "c1:1", "c2": "c2:2"})
    assert dict(directory) == {"c1": "c1:1", "c2": "c2:2", "s1": "s1:7702"}
    known.put(c1=entry("c1:3"))
    assert dict(directory) == {"c1": "c1:3", "s1": "s1:7702"}, "from then on the control state says all"


def test_it_is_noted_on_the_disk() -> None:
    store = MemoryStore()
    ledger = Ledger(store)
    assert ledger.directory is None
    directory, known = of()
    known.put(s1=entry("s1:7702"))
    ledger.write_directory(directory.noted())
    assert Ledger(store).directory == Noted(FOUNDERS, {**FOUNDERS, "s1": "s1:7702"}) == ledger.directory


def test_a_row_that_is_damaged_counts_as_none() -> None:
    store = MemoryStore()
    Ledger(store).write_directory(Noted(FOUNDERS, FOUNDERS))
    (row,) = store.multi_get([b"hd"])
    assert row is not None
    store.write(Mutations(puts=[(b"hd", row[:-1] + b"!")]))
    ledger = Ledger(store)
    assert (ledger.damaged, ledger.directory) == (True, None)
    with pytest.raises(DataCorrupted):
        _noted(b"[1]")
