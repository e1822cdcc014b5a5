"""A cluster of a hundred nodes and ten thousand shards, on paper: ``python -m vecdb.testing.scale``.

The product's own code does what such a cluster does, and is counted:

- **placement**: collections are made by commands, their shards placed as the control group's leader places them;
- **the control state**: its bytes as rows and as a snapshot, and what applying a command to it costs;
- **moves**: what the planners wish for when a node joins, is drained, and once that is done, against the least that had
  to move;
- **heartbeats and failover**: :mod:`~vecdb.testing.scale_raft`.

Seconds are of this machine's CPU; the rest is the same everywhere.
"""

import argparse
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from vecdb.cluster import control
from vecdb.cluster.control import ControlState, NodeEntry, apply, from_rows, rows_of
from vecdb.cluster.placement import Candidate, spread
from vecdb.cluster.planning import Wish, rebalanced, vacated
from vecdb.core.cluster import JobState, NodeState, Role
from vecdb.core.errors import VecdbError
from vecdb.core.schema import CollectionSchema
from vecdb.services.control import pack
from vecdb.testing.scale_raft import Beats, measure

COLLECTIONS: Final = 10
REPLICAS: Final = 3
JOBS: Final = 1_000
TIMED: Final = 200


@dataclass(frozen=True, slots=True)
class Size:
    """``nodes`` in ``zones``, ``shards`` in all."""

    nodes: int = 100
    shards: int = 10_000
    zones: int = 5


class Ledger:
    """A control state that commands are applied to, one after the other."""

    def __init__(self) -> None:
        self.state = ControlState()

    def do(self, command: bytes) -> Any:
        """What comes of a command, which must not be refused."""
        done = apply(self.state, self.state.log_index + 1, 1, command)
        if isinstance(done.outcome, VecdbError):
            raise done.outcome
        self.state = done.state
        return done.outcome


def node_of(at: int, zones: int) -> NodeEntry:
    return NodeEntry(f"n{at:03}", f"n{at:03}.cluster.internal:7702", f"n{at:03}.cluster.internal:7700", "",
                     Role.SHARD, f"zone-{at % zones}", version="1.0.0")


def built(size: Size) -> Ledger:
    """A cluster with all its nodes, collections and jobs."""
    ledger = Ledger()
    for at in range(size.nodes):
        ledger.do(control.node_put(node_of(at, size.zones)))
    for at in range(COLLECTIONS):
        state, loads = ledger.state, ledger.state.loads()
        candidates = [Candidate(one.name, one.capacity, one.zone, loads.get(one.name, 0))
                      for one in state.nodes.values()]
        count = size.shards * (at + 1) // COLLECTIONS - size.shards * at // COLLECTIONS
        shards = [(lo, hi, [f"{node}/{7_000_000_000 % (1 << 32)}" for node in nodes])
                  for lo, hi, nodes in spread(state.next_group, candidates, count, REPLICAS)]
        ledger.do(control.create_shards(CollectionSchema(f"collection-{at}", 768), shards, REPLICAS))
    for at in range(JOBS):
        job = ledger.do(control.job_put("move", str(at + 1), {"from": "n001", "to": "n002"}, at_s=1.8e9))
        ledger.do(control.job_update(job.id, state=JobState.DONE, phase="done", done=1, total=1, unit="shards",
                                     at_s=1.8e9))
    return ledger


# --- placement ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Balance:
    """Replicas a node, and shards with two replicas in one zone though there are enough zones."""

    least: int
    mean: float
    most: int
    crowded: int

    @property
    def ratio(self) -> float:
        return self.most / self.mean


def balance(state: ControlState) -> Balance:
    holding = {name: node for name, node in state.nodes.items() if node.state is NodeState.ACTIVE}
    loads = [state.loads().get(name, 0) for name in holding]
    zones = len({node.zone for node in holding.values()})
    crowded = sum(len({state.nodes[name].zone for name in one.desired}) < min(zones, len(one.desired))
                  for one in state.shards.values())
    return Balance(min(loads), sum(loads) / len(loads), max(loads), crowded)


# --- moves ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Moves:
    """Replicas that a planner moves, the fewest it could, what is left to wish for after them, and its seconds."""

    moved: int
    ideal: int
    after: int
    seconds: float
    balance: Balance


def moves(ledger: Ledger, plan: Callable[[ControlState], Sequence[Wish]], ideal: int) -> Moves:
    """Do what a planner wishes for."""
    began, before = time.process_time(), ledger.state
    wishes = plan(before)
    seconds = time.process_time() - began
    moved = sum(len(set(one.desired) - set(before.shards[one.group].desired)) for one in wishes)
    for one in wishes:
        ledger.do(control.place(one.group, one.desired))
    return Moves(moved, ideal, len(plan(ledger.state)), seconds, balance(ledger.state))


def joined(ledger: Ledger, size: Size) -> Moves:
    """A node more: its share is the least that moves."""
    ledger.do(control.node_put(node_of(size.nodes, size.zones)))
    return moves(ledger, rebalanced, size.shards * REPLICAS // (size.nodes + 1))


def drained(ledger: Ledger, node: str) -> Moves:
    """A node less: what it has must move."""
    held = ledger.state.loads().get(node, 0)
    ledger.do(control.node_state(node, NodeState.DRAINING))
    done = moves(ledger, lambda state: vacated(state, node), held)
    ledger.do(control.node_state(node, NodeState.DRAINED))
    ledger.do(control.node_remove(node))
    return done


# --- the state ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Cost:
    """Bytes of rows by kind and of a snapshot; CPU seconds of reading it all, and of applying one command."""

    rows: dict[str, int]
    snapshot: int
    read_s: float
    apply_s: dict[str, float]


def cost(ledger: Ledger) -> Cost:
    state = ledger.state
    rows = rows_of(state)
    sizes = Counter[str]()
    for key, value in rows:
        sizes[{b"c": "collections", b"g": "shards", b"j": "jobs", b"n": "nodes"}.get(key[:1], "other")] += \
            len(key) + len(value)
    began = time.process_time()
    from_rows(rows)
    read_s = time.process_time() - began
    job = ledger.do(control.job_put("move", "1", {}))
    state, names, groups = ledger.state, list(state.nodes), list(state.shards)
    timed: dict[str, Callable[[int], bytes]] = {
        "place": lambda at: control.place(groups[at], [names[(at + more) % len(names)] for more in range(3)]),
        "job_update": lambda at: control.job_update(job.id, state=JobState.RUNNING, done=at, total=TIMED),
        "node_put": lambda at: control.node_put(replace(state.nodes[names[at % len(names)]], version=f"1.0.{at}")),
        "setting_put": lambda at: control.setting_put("copy_bytes_s", at),
    }
    return Cost(dict(sizes), len(pack(state)), read_s, {name: _timed(state, make) for name, make in timed.items()})


def _timed(state: ControlState, make: Callable[[int], bytes]) -> float:
    commands = [make(at) for at in range(min(TIMED, len(state.shards)))]
    began = time.process_time()
    for command in commands:
        done = apply(state, state.log_index + 9, 1, command)
        assert not isinstance(done.outcome, VecdbError), "what is refused costs less"
    return (time.process_time() - began) / len(commands)


# --- all of it ------------------------------------------------------------------------------------


def told(size: Size, seed: int) -> list[str]:
    """What there is to say, a line each."""
    began = time.process_time()
    ledger = built(size)
    seconds, even, spent = time.process_time() - began, balance(ledger.state), cost(ledger)
    lines = [
        f"{size.nodes} nodes in {size.zones} zones, {size.shards:,} shards in {COLLECTIONS} collections, replication "
        f"{REPLICAS}, {JOBS:,} jobs that have ended",
        f"placement: {_even(even)}, {even.crowded} shards with two replicas in a zone; made in {seconds:.1f} s",
        f"control state: {sum(spent.rows.values()) / 1e6:.2f} MB of rows ("
        + ", ".join(f"{name} {size / 1e6:.2f}" for name, size in sorted(spent.rows.items()))
        + f"), snapshot {spent.snapshot / 1e6:.2f} MB, read in {spent.read_s * 1e3:.0f} ms",
        "applying a command: " + ", ".join(f"{name} {one * 1e6:.0f} us" for name, one in spent.apply_s.items())]
    lines.append("heartbeats: " + _beats(measure(ledger.state, seed)))
    lines.append("a node joins: " + _moved(joined(ledger, size)))
    lines.append("a node is drained: " + _moved(drained(ledger, node_of(size.nodes // 2, size.zones).name)))
    lines.append("then rebalanced: " + _moved(moves(ledger, rebalanced, 0)))
    return lines


def _even(one: Balance) -> str:
    return f"{one.least} to {one.most} replicas a node, mean {one.mean:.1f}, max/mean {one.ratio:.3f}"


def _moved(one: Moves) -> str:
    return (f"{one.moved} replicas move, {one.ideal} at least, planned in {one.seconds:.2f} s, {one.after} left to "
            f"move; {_even(one.balance)}")


def _beats(one: Beats) -> str:
    half, most, all_of_them = one.failover_s
    return (f"node {one.node} with {one.replicas} replicas, {one.led} of them leaders, and {one.peers} peers, idle: "
            f"sends {one.frames_s:.0f} frames a second with {one.messages_s:.0f} messages, {one.bytes_s / 1e3:.0f} "
            f"kB/s, receives {one.received_s / 1e3:.0f} kB/s; {one.cpu_share * 100:.0f} % of a core.  One frame a "
            f"message would be {one.messages_s / max(one.frames_s, 1):.1f} times the frames and "
            f"{one.alone_bytes_s / 1e3:.0f} kB/s\n"
            f"failover: the node is killed; of {one.orphans} shards that it led half have another leader in "
            f"{half:.2f} s, 99 % in {most:.2f} s, all in {all_of_them:.2f} s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    usual = Size()
    parser.add_argument("--nodes", type=int, default=usual.nodes)
    parser.add_argument("--shards", type=int, default=usual.shards)
    parser.add_argument("--zones", type=int, default=usual.zones)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    for line in told(Size(given.nodes, given.shards, given.zones), given.seed):
        print(line)


if __name__ == "__main__":
    main()
