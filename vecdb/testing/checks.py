"""The judges of a run: they see logs, disks and what clients were told, and nothing of how it came about.

While it runs, after every event:

- at most one replica leads a group in a term (election safety);
- a new leader holds everything that was committed in earlier terms than its own (leader completeness);
- what was committed at an index never changes, on no replica (state machine safety);
- what a leader takes for committed is on the disks of a majority of the voters, learners not counted (durability);
- replicas that have applied the same log index are in the same state (digests);
- no observer ever leads or is a voter;
- no replica takes its log or its state for damaged unless somebody damaged it.

Afterwards: :func:`acknowledged`, :func:`histories`, :func:`converged`.
"""

from typing import Any

import xxhash

from vecdb.ports.replicator import Position
from vecdb.raft.log import Meta, entry_key, meta_key
from vecdb.raft.membership import node_of, number_of
from vecdb.raft.replica import Replica
from vecdb.testing.clients import History
from vecdb.testing.cluster import Cluster
from vecdb.testing.linear import linearizable
from vecdb.testing.violation import Violation

__all__ = ["Judge", "Violation", "acknowledged", "converged", "equal", "histories"]


class Judge:
    """Watches a cluster; raises :class:`Violation` in the event that breaks a promise."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.checked = cluster.world.happened
        self.lost: dict[str, bool] = {}
        """Replicas whose disks were damaged on purpose."""
        self._successors: dict[str, bool] = {}
        self._leaders: dict[tuple[int, int], str] = {}
        self._committed: dict[tuple[int, int], tuple[int, int]] = {}
        self._furthest: dict[int, dict[int, int]] = {}
        """By group and term: the last index that was known to be committed first in that term."""
        self._looked: dict[int, tuple[Replica, int]] = {}
        self._digests: dict[tuple[int, int], tuple[int, str]] = {}
        judging = cluster.world.judging
        cluster.seen, cluster.told = judging(self._seen), judging(self._told)
        cluster.rejoined = judging(self._rejoined)
        cluster.world.after_each = self.look

    def look(self) -> None:
        """Hold every replica whose commit index has moved against what is known; those of nodes that did something."""
        acted, self.cluster.acted = self.cluster.acted, {}
        for node in acted.values():
            if node.host is None:
                continue
            for replica in node.host.replicas.values():
                core = replica.core
                known = self._looked.get(id(core))
                before = known[1] if known is not None else core.log.base
                if core.commit > before or known is None:
                    self._commits(replica, before)
                    self._looked[id(core)] = (replica, core.commit)

    def _commits(self, replica: Replica, before: int) -> None:
        core = replica.core
        for entry in core.log.read(max(before, core.log.base) + 1, core.commit, 1 << 30, 1 << 20):
            found = (entry.term, xxhash.xxh3_64_intdigest(entry.command))
            first = self._committed.setdefault((replica.group, entry.index), found)
            if first != found:
                raise Violation(f"{core.me}: entry {entry.index} of group {replica.group} was committed as {first}, "
                                f"now as {found}")
            self.checked["commits_checked"] += 1
        if core.role == 2 and core.commit > before and core.commit > core.log.base:
            self._on_majority(replica)
        furthest = self._furthest.setdefault(replica.group, {})
        if core.commit > max(furthest.values(), default=1):
            furthest[core.term] = core.commit

    def _on_majority(self, replica: Replica) -> None:
        core = replica.core
        index, voters = core.commit, core.configuration.voters
        term = core.log.term_at(index)
        holding = [voter for voter in voters if voter in self.lost or self._holds(replica.group, voter, index, term)]
        if 2 * len(holding) <= len(voters):
            raise Violation(f"{core.me}: {index} of group {replica.group} is committed, and on stable storage only of "
                            f"{holding} of {voters}")
        self.checked["majorities_checked"] += 1

    def _holds(self, group: int, voter: str, index: int, term: int | None) -> bool:
        store = self.cluster.nodes[node_of(voter)].store
        row = store.durable(meta_key(group))
        if row is None or Meta.from_bytes(row).number != number_of(voter):
            return False
        entry = store.durable(entry_key(group, index))
        if entry is None:
            return Meta.from_bytes(row).base >= index
        return int.from_bytes(entry[8:16], "little") == term

    def _told(self, event: str, fields: dict[str, Any]) -> None:
        if event == "raft_leader":
            group, term, replica = fields["group"], fields["term"], fields["replica"]
            if self._leaders.setdefault((group, term), replica) != replica:
                raise Violation(f"two leaders of group {group} in term {term}: {replica} and "
                                f"{self._leaders[group, term]}")
            found = self.cluster.replica(node_of(replica), group)
            assert found is not None
            voting = [one for one in found.core.configuration.voters if one in self.cluster.observers]
            if voting or replica in self.cluster.observers:
                raise Violation(f"{replica} leads group {group}, and observers have votes: {voting}")
            # Who wakes up late may still win an election that is long over: of later terms it knows nothing.
            furthest = max((index for of, index in self._furthest.get(group, {}).items() if of < term), default=1)
            committed = self._committed.get((group, furthest))
            log = found.core.log
            if committed is not None and furthest > log.base and log.term_at(furthest) != committed[0]:
                raise Violation(f"{replica} leads group {group} without the committed entry {furthest}")
            self.checked["leaders_checked"] += 1
        elif event == "raft_conflict_below_commit":
            raise Violation(f"a leader contradicts what was committed: {fields}")
        elif event == "raft_promise_broken":
            raise Violation(f"a replica does not hold what it acknowledged, or is accused of it: {fields}")

    def _rejoined(self, replica: str, successor: str, group: int) -> None:
        if replica not in self.lost and not self._unborn(replica, group):
            raise Violation(f"{replica} gave up its place in group {group}, though nobody damaged anything")
        self._successors[successor] = True
        if replica in self.cluster.observers:
            self.cluster.observers[successor] = True

    def _unborn(self, replica: str, group: int) -> bool:
        """Whether it joined or took a damaged one's place, and crashed before that was on its disk."""
        row = self.cluster.nodes[node_of(replica)].store.durable(meta_key(group))
        try:
            known = row is not None and Meta.from_bytes(row).number == number_of(replica)
        except ValueError:
            known = False
        return (replica in self._successors or replica in self.cluster.joined) and not known

    def _seen(self, node: str, group: int, position: Position, digest: int) -> None:
        first, who = self._digests.setdefault((group, position.log_index), (digest, node))
        if first != digest:
            raise Violation(f"{node} and {who} differ at {position.log_index} of group {group}")
        self.checked["states_checked"] += 1


def acknowledged(cluster: Cluster, history: History) -> None:
    """Every write that was acknowledged took effect, each exactly once, on every member there is."""
    for group in history.groups:
        for replica in _members(cluster, group):
            applied = cluster.machine_of(replica).state.applied
            for client, sequence in history.acknowledged(group):
                count = applied.get(client << 32 | sequence, 0)
                if count != 1:
                    raise Violation(f"{replica.core.me}: write {sequence} of client {client} in group {group} was "
                                    f"acknowledged, and applied {count} times")
                cluster.world.happened["acknowledgements_checked"] += 1
            twice = [at for at, count in applied.items() if count != 1]
            if twice:
                raise Violation(f"{replica.core.me}: applied more than once: {twice[:5]}")


def histories(cluster: Cluster, history: History) -> None:
    """What clients saw of each register is explained by some order of their calls."""
    for group, key in history.keys:
        operations = history.operations(group, key)
        if not linearizable(operations):
            lines = "\n".join(f"  {one}" for one in operations)
            raise Violation(f"key {key} of group {group} is not linearizable:\n{lines}")
        cluster.world.happened["histories_checked"] += 1
        cluster.world.happened["operations_checked"] += len(operations)


def converged(cluster: Cluster, group: int) -> bool:
    """Whether all members are there, agree on who leads, and have applied everything."""
    leader = cluster.leader(group)
    if leader is None:
        return False
    core = leader.core
    configuration = core.configuration
    if any(one in cluster.observers for one in (*configuration.voters, *configuration.joining)):
        raise Violation(f"an observer of group {group} has become a voter: {configuration}")
    if configuration.joining or core.commit != core.log.last:
        return False
    for one in configuration.everybody:
        replica = cluster.replica(node_of(one), group)
        if replica is None or replica.core.me != one or replica.core.applied != core.log.last:
            return False
    return True


def equal(cluster: Cluster, group: int) -> None:
    """All members are in the same state, byte for byte."""
    states = [cluster.machine_of(replica).state.to_bytes() for replica in _members(cluster, group)]
    if len(set(states)) != 1:
        raise Violation(f"members of group {group} differ")


def _members(cluster: Cluster, group: int) -> list[Replica]:
    """By the leader's configuration: who was removed may not know it yet."""
    leader = cluster.leader(group)
    assert leader is not None, "asked once the cluster has recovered"
    members = leader.core.configuration.everybody
    return [replica for replica in cluster.replicas(group) if replica.core.me in members]
