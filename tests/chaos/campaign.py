"""Rounds of harm: load, an attack, its end, and everything held against what was promised.

A seed says which attacks come, where they strike and how long they last; what the processes make of it is their own.
A cluster lives for some rounds, and the next begins anew.  Of a failure everything is kept below ``build/chaos``: what
clients saw, what nodes said, their data.
"""

import json
import random
import shutil
import statistics
import subprocess
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from tests.chaos import history
from tests.chaos.attacks import ATTACKS, NEED_LAYER, NEED_PACKETS, NEED_POWER
from tests.chaos.cluster import Cluster
from tests.chaos.disks import LAYER, LIES, PLAIN, kinds
from tests.chaos.history import Event, Violated
from tests.chaos.networks import Proxies, Wires, network
from tests.chaos.rounds import Round
from tests.faults import ROOT

KEPT = ROOT / "build" / "chaos"
SETTLE_S = 120.0
ROUNDS_OF_A_CLUSTER = 12


@dataclass(slots=True)
class Means:
    """What this machine allows; ``missing``: what it does not, and why."""

    network: str
    disks: tuple[str, ...]
    missing: list[str]


def means() -> Means:
    found = Means(Wires.kind, kinds().usable, list(kinds().missing))
    if why := Wires.missing():
        found.network = Proxies.kind
        found.missing.append(f"networks of packets, so cuts and loss are those of connections ({why})")
    return found


@dataclass(slots=True)
class Tally:
    """What was done and checked in all."""

    rounds: int = 0
    attacks: Counter[str] = field(default_factory=Counter)
    done: Counter[str] = field(default_factory=Counter)
    checked: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    logged: Counter[str] = field(default_factory=Counter)
    gaps: dict[str, list[float]] = field(default_factory=dict)
    settled: list[float] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        def of(counts: Counter[str]) -> str:
            return ", ".join(f"{name} {count}" for name, count in sorted(counts.items())) or "nothing"

        gaps = [f"until a write was acknowledged again after {kind}: median {statistics.median(found):.2f} s, worst "
                f"{max(found):.2f} s of {len(found)}" for kind, found in sorted(self.gaps.items())]
        if self.settled:
            gaps.append(f"all replicas level again after a round: median {statistics.median(self.settled):.1f} s, "
                        f"worst {max(self.settled):.1f} s")
        return [f"{self.rounds} rounds; injected: {of(self.attacks)}; {of(self.done)}",
                f"checked: {of(self.checked)}", f"errors clients saw: {of(self.errors)}",
                f"errors nodes logged: {of(self.logged)}", *gaps,
                f"{len(self.failures)} failures" + "".join(f"\n  {one}" for one in self.failures)]


def possible(attack: str, cluster: Cluster) -> bool:
    """On the network and disks of this cluster: clients reach nodes without proxies, a plain disk has no power, and the
    layer's journal fills no disk but its own.
    """
    if attack in NEED_PACKETS and cluster.network.kind != Wires.kind:
        return False
    if attack in NEED_LAYER:
        return cluster.disk in (LAYER, LIES)
    if attack in NEED_POWER:
        return cluster.disk != PLAIN
    return attack != "full_disk" or cluster.disk == PLAIN or all(member.disk.fills for member in cluster.members)


class Campaign:
    """``attacks``: the names to choose from, by weight; or in this order, where a round is given its attack."""

    def __init__(self, seed: int, place: Path, *, found: Means | None = None, attacks: Iterable[str] = (),
                 say: Callable[[str], None] = print, clients: int = 3, workers: int = 2) -> None:
        self.seed, self.place, self.say = seed, place, say
        self.means = found or means()
        self.tally = Tally()
        self.names = list(attacks or ATTACKS)
        self._clients, self._workers = clients, workers
        self._cluster: Cluster | None = None
        self._ends = ExitStack()
        self._age = 0
        self._made: list[Path] = []

    def cluster(self, number: int) -> Cluster:
        """The one there is, or a new one."""
        if self._cluster is None:
            place = self.place / f"cluster-{number}"
            if place in self._made:
                shutil.rmtree(place, ignore_errors=True)
            place.mkdir(parents=True)  # what is there already is not ours
            self._made.append(place)
            net = self._ends.enter_context(network(self.means.network, self.seed))
            rng = random.Random(f"{self.seed}/cluster/{number}")
            disks = [one for one in self.means.disks if one in (LAYER, LIES) or set(self.names) - NEED_LAYER]
            disk, secured = rng.choice(disks or self.means.disks), rng.random() < 0.5
            log_bytes = rng.choice(("1MiB", "64MiB"))
            self.tally.done[f"clusters on {disk}{', mTLS' if secured else ''}, logs of {log_bytes}"] += 1
            cluster = Cluster(place, net, disk=disk, seed=self.seed + number, clients=self._clients,
                              workers=self._workers, secured=secured, log_bytes=log_bytes)
            self._ends.callback(cluster.close)
            self._age = 0
            self._cluster = cluster
            cluster.start()
            cluster.settled(SETTLE_S)
        return self._cluster

    def end_cluster(self) -> None:
        self._cluster = None
        self._ends.close()
        self._ends = ExitStack()

    def round(self, number: int, attack: str = "") -> bool:
        """One round; whether nothing was found.  A failure is kept, and ends the cluster."""
        rng = random.Random(f"{self.seed}/{number}")
        self.tally.rounds += 1
        did: list[str] = []
        try:
            cluster = self.cluster(number)
            names = [name for name in self.names if possible(name, cluster)]
            attack = attack or rng.choices(names, [ATTACKS[name][1] for name in names])[0]
            self.tally.attacks[attack] += 1
            self._round(Round(cluster, rng, number, did=did), attack)
        except Exception as error:  # whatever it was, it is kept, and the next rounds still run
            where = self._keep(number, attack, did)
            self.tally.failures.append(f"round {number}, {attack}: {str(error).splitlines()[0][:300]} ({where})")
            self.say(f"round {number}: {attack}: FAILED: {traceback.format_exc(limit=-3)}\nkept in {where}")
            self.end_cluster()
            return False
        self._age += 1
        if self._age >= ROUNDS_OF_A_CLUSTER:
            self.end_cluster()
        return True

    def _round(self, round: Round, attack: str) -> None:
        cluster = round.cluster
        for worker in cluster.workers:
            worker.ask("load", round=round.number)
        round.sleep(0.7, 1.5)
        ATTACKS[attack][0](round)
        cluster.network.heal()
        self._all_run(round)
        round.sleep(0.7, 1.2)
        for worker in cluster.workers:
            worker.ask("pause")
        self.tally.settled.append(cluster.settled(SETTLE_S))
        cluster.workers[0].ask("write", seconds=30.0)
        keys = sorted({event.key for event in self._events(round.number) if event.kind in ("upsert", "update",
                                                                                         "delete")})
        cluster.workers[0].ask("read", round=round.number, keys=keys)
        self._judge(round)
        self.say(f"round {round.number}: {attack}: " + "; ".join(round.did))

    @staticmethod
    def _all_run(round: Round) -> None:
        for member in round.cluster.members:
            if not member.running:
                round.say(f"{member.name} had ended and is started again")
                round.counts["ended by themselves"] += 1
                round.restart(member)

    def _events(self, number: int | None = None) -> list[Event]:
        assert self._cluster is not None
        return [event for worker in self._cluster.workers for event in worker.events()
                if number is None or event.round == number]

    def _judge(self, round: Round) -> None:
        cluster, tally = round.cluster, self.tally
        everything = self._events()
        events = [event for event in everything if event.round == round.number]
        for event in everything:
            if event.error.startswith("UNEXPECTED"):
                raise Violated(f"a client met what is no error of the product's: {event.line()}")
        tally.errors.update(event.error.split(":")[0] for event in events if event.error)
        tally.checked["calls"] += len(events)
        tally.checked.update(history.check_shared(events))
        tally.checked.update(history.check_own(events))
        for kind, moment in round.down:
            gap = history.gap_after(events, moment)
            if gap is not None:
                tally.gaps.setdefault(kind, []).append(gap)
                round.say(f"written again after {gap:.2f} s")
        verified = cluster.workers[0].ask("verify", address=round.rng.choice(cluster.members).address, deep=True)
        if not verified["agree"] or not verified["complete"]:
            raise Violated(f"replicas differ, or do not answer: {json.dumps(verified)}")
        tally.checked["replicas_compared"] += len(verified["replicas"])
        told = history.appended(everything)
        for member in cluster.members:
            found = cluster.workers[0].ask("everything", address=member.address)
            told.check({int(key): value for key, value in found.items()}, member.name)
            tally.checked["appended_records"] += len(told.present)
            asked = cluster.workers[0].ask("queries", address=member.address, count=10, seed=round.number)
            if asked["found"] < 0.9 * asked["asked"]:
                raise Violated(f"{member.name}: of {asked['asked']} records {asked['found']} are found by their vector")
            tally.checked["queries"] += asked["asked"]
        tally.done.update(round.counts)
        for member in cluster.members:
            tally.logged.update(member.faults())

    def _keep(self, number: int, attack: str, did: list[str]) -> Path:
        where = KEPT / f"seed-{self.seed}-round-{number}"
        shutil.rmtree(where, ignore_errors=True)
        where.mkdir(parents=True)
        text = [f"seed {self.seed}, round {number}, {attack}, commit {commit()}", *did, "", traceback.format_exc()]
        (where / "what").write_text("\n".join(text), encoding="utf-8")
        if self._cluster is not None:
            shutil.copytree(self._cluster.place, where / "cluster", symlinks=True, copy_function=_copy,
                            ignore=shutil.ignore_patterns("*.image", "graves", "ballast"))
        return where

    def close(self) -> None:
        """What it made is deleted; a folder that was given may hold other things."""
        self.end_cluster()
        for place in self._made:
            shutil.rmtree(place, ignore_errors=True)


def _copy(source: str, target: str) -> str:
    """As nodes still run, a file may be gone."""
    try:
        return str(shutil.copy2(source, target))
    except OSError:
        return target


def commit() -> str:
    done = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True)
    return done.stdout.strip() or "unknown"


def run(seed: int, first: int, rounds: int, place: Path, attacks: Iterable[str] = ()) -> Tally:
    """Rounds ``first`` to ``first + rounds - 1`` of a seed."""
    campaign = Campaign(seed, place, attacks=attacks)
    for one in campaign.means.missing:
        print(f"cannot be tried here: {one}", flush=True)
    begun = time.monotonic()
    try:
        for number in range(first, first + rounds):
            campaign.round(number)
    finally:
        campaign.close()
    print(f"seed {seed}, rounds from {first}, commit {commit()}, network of {campaign.means.network}, "
          f"{time.monotonic() - begun:.0f} s")
    for line in campaign.tally.lines():
        print(line)
    return campaign.tally
