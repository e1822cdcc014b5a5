"""Runs seeds: ``python -m vecdb.testing.sim --seeds N --first S``.

A seed decides what kind of world it makes (:func:`kind_of`):

- most are clusters of five nodes with two groups of three replicas of registers, five clients, and twenty seconds of
  faults: what they are about is replication;
- every tenth is a cluster of the product's own shards (:mod:`vecdb.testing.shard_sim`);
- every tenth one of whole nodes, with collections that come and go (:mod:`vecdb.testing.service_sim`);
- every tenth one of whole nodes whose shards are split and merged meanwhile (:mod:`vecdb.testing.reshard_sim`).

Then everything is healed and must go on.  A run that fails prints its seed, the commit and the end of its trace; the
last lines say, for each kind, what was injected and what was checked, and which seeds failed.
"""

import argparse
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

from vecdb.testing.checks import Judge, Violation, acknowledged, converged, equal, histories
from vecdb.testing.clients import Client, History
from vecdb.testing.cluster import Cluster
from vecdb.testing.nemesis import Nemesis
from vecdb.testing.reshard_sim import simulate_resharding
from vecdb.testing.service_sim import simulate_services
from vecdb.testing.shard_sim import simulate_shards
from vecdb.testing.world import World

NODES = ["n1", "n2", "n3", "n4", "n5"]
GROUPS = {1: ["n1", "n2", "n3"], 2: ["n3", "n4", "n5"]}
CLIENTS = 5
KEYS = 4
FAULTS_S = 20.0
HEALING_S = 30.0


def simulate(seed: int, world: World | None = None, faults_s: float = FAULTS_S) -> World:
    """One run; raises :class:`Violation`."""
    world = world or World(seed)
    cluster = Cluster(world, NODES)
    judge = Judge(cluster)
    for group, names in GROUPS.items():
        cluster.form(group, names)
    history = History()
    clients = [Client(cluster, history, number, list(GROUPS), KEYS) for number in range(1, CLIENTS + 1)]
    nemesis = Nemesis(cluster, judge, list(GROUPS))
    cluster.start()
    for client in clients:
        client.start()
    nemesis.start()
    world.run(faults_s)
    nemesis.heal()
    for client in clients:
        client.stopped = True
    if not world.run_until(lambda: not any(client.busy for client in clients), HEALING_S):
        raise Violation("calls that nobody answers and nobody gives up")
    _recover(world, cluster, history)
    acknowledged(cluster, history)
    histories(cluster, history)
    return world


def _recover(world: World, cluster: Cluster, history: History) -> None:
    """Every group takes a write and answers reads of all its keys, and its members become equal."""
    last = Client(cluster, history, CLIENTS + 1, list(GROUPS), KEYS)
    for group in GROUPS:
        for kind, key in [("write", 0), *(("read", key) for key in range(KEYS))]:
            given_up = world.happened["calls_given_up"]
            last.ask(kind, group, key, lambda: None)
            if not world.run_until(lambda: not last.busy, HEALING_S) or world.happened["calls_given_up"] != given_up:
                raise Violation(f"group {group} does not go on after healing")
        if not world.run_until(partial(converged, cluster, group), HEALING_S):
            raise Violation(f"the members of group {group} do not become equal after healing")
        equal(cluster, group)
        world.happened["recoveries_checked"] += 1


def commit() -> str:
    """What is being run, for whoever wants to run it again."""
    root = Path(__file__).resolve().parents[2]
    found = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=root, capture_output=True,  # noqa: S607
                           text=True, check=False)
    return found.stdout.strip() or "unknown"


KINDS: dict[str, Callable[[int, World], World]] = {"registers": simulate, "shards": simulate_shards,
                                                   "services": simulate_services,
                                                   "resharding": simulate_resharding}


def kind_of(seed: int) -> str:
    """What world a seed makes."""
    return {0: "shards", 5: "services", 7: "resharding"}.get(seed % 10, "registers")


def summary(kind: str, seeds: int, happened: Counter[str]) -> str:
    checked = {name: count for name, count in sorted(happened.items()) if name.endswith("_checked")}
    injected = {name: count for name, count in sorted(happened.items()) if name not in checked and count}
    return (f"{kind} ({seeds} seeds)\n"
            f"  injected and done: {', '.join(f'{name} {count:,}' for name, count in injected.items())}\n"
            f"  checked: {', '.join(f'{name[:-8]} {count:,}' for name, count in checked.items())}")


def run(seed: int, kind: str, happened: Counter[str], trace: bool) -> bool:
    """One seed; whether all went well.  What did not is printed."""
    world = World(seed)
    try:
        KINDS[kind](seed, world)
    except Exception as error:
        print("\n".join(world.trace))
        print(f"sim: seed {seed} ({kind}) at commit {commit()} failed: {type(error).__name__}: {error}", flush=True)
        if not isinstance(error, Violation):
            import traceback
            traceback.print_exc()
        return False
    finally:
        happened += world.happened
    if trace:
        print("\n".join(world.trace))
    return True


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="vecdb.testing.sim", description="Simulate clusters under faults.")
    parser.add_argument("--seeds", type=int, default=20, help="how many seeds to run")
    parser.add_argument("--first", type=int, default=1, help="the first of them")
    parser.add_argument("--only", choices=list(KINDS), help="make this kind of world of every seed")
    parser.add_argument("--trace", action="store_true", help="print the trace of runs that succeed as well")
    options = parser.parse_args(argv)
    began = time.monotonic()
    happened: dict[str, Counter[str]] = {kind: Counter() for kind in KINDS}
    ran: Counter[str] = Counter()
    failed: list[int] = []
    for seed in range(options.first, options.first + options.seeds):
        kind = options.only or kind_of(seed)
        ran[kind] += 1
        if not run(seed, kind, happened[kind], options.trace):
            failed.append(seed)
    shares = ", ".join(f"{kind} {ran[kind]}" for kind in KINDS)
    print("\n".join(summary(kind, ran[kind], happened[kind]) for kind in KINDS if ran[kind]))
    print(f"sim: {options.seeds} seeds ({shares}) at commit {commit()} in {time.monotonic() - began:.0f} s: "
          + (f"{len(failed)} failed: {', '.join(map(str, failed))}" if failed else "none failed"))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
