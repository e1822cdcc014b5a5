"""What is done to the cluster.  Each attack takes a :class:`Round`, and does harm under load; the round's end heals the
network and starts what does not run.  At most a minority is harmed for good (bits, disks); all may be killed, or lose
their power, at once.
"""

import os
import random
import resource
import signal
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from tests.chaos.cluster import Cluster, Failed, Member
from tests.chaos.disks import PLAIN
from tests.chaos.networks import CUT, Rule
from tests.faults import fill

ELECTION_S_MAX: Final = 2.0


@dataclass(slots=True)
class Round:
    """``down``: since when writes may be impossible, by what; the gap to the next acknowledgement is measured."""

    cluster: Cluster
    rng: random.Random
    number: int
    down: list[tuple[str, float]] = field(default_factory=list)
    did: list[str] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)

    def say(self, what: str) -> None:
        self.did.append(what)

    def leader(self) -> Member:
        return self.cluster.leader()

    def others(self, member: Member) -> list[Member]:
        return [one for one in self.cluster.members if one is not member]

    def follower(self) -> Member:
        return self.rng.choice(self.others(self.leader()))

    def sleep(self, low: float, high: float) -> None:
        time.sleep(self.rng.uniform(low, high))

    def kill(self, member: Member, *, silent: bool = False, leads: bool = False) -> None:
        moment = time.monotonic()
        member.kill(silent=silent)
        self.say(f"{'power of' if silent else 'kill -9 of'} {member.name}{', the leader' if leads else ''}")
        if leads:
            self.down.append(("power" if silent else "kill", moment))

    def cut_power(self, member: Member) -> None:
        cut = member.disk.cut_power(self.rng)
        if cut.records:
            self.say(f"{member.name} forgets {cut.names} names and {cut.bytes} bytes of {cut.files} files")
        self.counts["names_forgotten"] += cut.names
        self.counts["files_torn"] += cut.files

    def restart(self, *members: Member) -> None:
        for member in members:
            member.start()
        for member in members:
            member.wait()


def kill_leader(round: Round) -> None:
    member = round.leader()
    round.kill(member, leads=True)
    round.sleep(2.5, 4.5)
    round.restart(member)


def kill_follower(round: Round) -> None:
    member = round.follower()
    round.kill(member)
    round.sleep(0.5, 3)
    round.restart(member)


def kill_all(round: Round) -> None:
    for member in round.rng.sample(round.cluster.members, len(round.cluster.members)):
        round.kill(member)
    round.restart(*round.cluster.members)


def kill_one_after_the_other(round: Round) -> None:
    """Each comes back before the next goes: nobody is left who was there at the beginning."""
    for member in round.rng.sample(round.cluster.members, len(round.cluster.members)):
        round.kill(member)
        round.restart(member)
        round.sleep(0.5, 1.5)


def power_of_leader(round: Round) -> None:
    member = round.leader()
    round.kill(member, silent=True, leads=True)
    round.cut_power(member)
    round.sleep(2.5, 4.5)
    round.restart(member)


def power_of_follower(round: Round) -> None:
    member = round.follower()
    round.kill(member, silent=True)
    round.cut_power(member)
    round.sleep(0, 2)
    round.restart(member)


def power_of_all(round: Round) -> None:
    members = round.rng.sample(round.cluster.members, len(round.cluster.members))
    for member in members:
        round.kill(member, silent=True)
    for member in members:
        round.cut_power(member)
    round.restart(*members)


def power_twice(round: Round) -> None:
    """The second time while they recover."""
    power_of_all_once = round.rng.sample(round.cluster.members, len(round.cluster.members))
    for member in power_of_all_once:
        round.kill(member, silent=True)
    for member in power_of_all_once:
        round.cut_power(member)
        member.start()
    round.sleep(0.5, 4)
    for member in power_of_all_once:
        round.kill(member, silent=True)
    for member in power_of_all_once:
        round.cut_power(member)
    round.restart(*power_of_all_once)


def pause_leader(round: Round) -> None:
    member = round.leader()
    seconds = round.rng.uniform(0.5, 3 * ELECTION_S_MAX)
    round.say(f"SIGSTOP of {member.name}, the leader, for {seconds:.1f} s")
    round.down.append(("pause", time.monotonic()))
    member.signal(signal.SIGSTOP)
    time.sleep(seconds)
    member.signal(signal.SIGCONT)
    round.sleep(0.5, 2)


def pause_follower(round: Round) -> None:
    member = round.follower()
    seconds = round.rng.uniform(0.5, 3 * ELECTION_S_MAX)
    round.say(f"SIGSTOP of {member.name} for {seconds:.1f} s")
    member.signal(signal.SIGSTOP)
    time.sleep(seconds)
    member.signal(signal.SIGCONT)
    round.sleep(0.5, 2)


def pause_leaders_in_turn(round: Round) -> None:
    """Who wakes up believes to lead, while another does."""
    for _ in range(2):
        member = round.leader()
        round.say(f"SIGSTOP of {member.name}, the leader")
        round.down.append(("pause", time.monotonic()))
        member.signal(signal.SIGSTOP)
        round.sleep(2.5, 4.5)
        member.signal(signal.SIGCONT)
        round.sleep(0.2, 1)


def partition_leader(round: Round) -> None:
    _cut(round, round.leader(), both=True, leads=True)


def partition_follower(round: Round) -> None:
    _cut(round, round.follower(), both=True)


def leader_is_deaf(round: Round) -> None:
    """It can be heard: its heartbeats keep the others from electing, unless it steps down itself."""
    member = round.leader()
    for other in round.others(member):
        round.cluster.network.rule(other.name, member.name, CUT)
    _wait_cut(round, f"{member.name}, the leader, hears nobody", leads=True)


def leader_is_mute(round: Round) -> None:
    member = round.leader()
    for other in round.others(member):
        round.cluster.network.rule(member.name, other.name, CUT)
    _wait_cut(round, f"nobody hears {member.name}, the leader", leads=True)


def cut_one_link(round: Round) -> None:
    """The leader and one follower; the third sees both.  One direction or both."""
    leader = round.leader()
    follower = round.rng.choice(round.others(leader))
    ways = round.rng.choice((((leader, follower),), ((follower, leader),), ((leader, follower), (follower, leader))))
    for source, target in ways:
        round.cluster.network.rule(source.name, target.name, CUT)
    _wait_cut(round, "no way from " + ", ".join(f"{one.name} to {other.name}" for one, other in ways), leads=False)


def everybody_alone(round: Round) -> None:
    for member in round.cluster.members:
        for other in round.others(member):
            round.cluster.network.rule(member.name, other.name, CUT)
    _wait_cut(round, "every node alone", leads=False)


def bad_network(round: Round) -> None:
    """Loss, delay, doubles and disorder between all nodes."""
    rng = round.rng
    packets = round.cluster.network.kind == "packets"
    rule = Rule(loss=rng.choice((0.0, 0.01, 0.05)) if packets else rng.choice((0.0, 0.001)),
                delay_s=rng.choice((0.0, 0.005, 0.03)), jitter_s=rng.choice((0.005, 0.05)),
                again=rng.choice((0.0, 0.05)))
    _everywhere(round, rule)
    round.say(f"between all nodes {rule}")
    round.sleep(4, 7)


def kill_leader_on_bad_network(round: Round) -> None:
    _everywhere(round, Rule(loss=0.02 if round.cluster.network.kind == "packets" else 0.0005, jitter_s=0.02))
    round.say("between all nodes loss and disorder")
    kill_leader(round)


def slow_follower(round: Round) -> None:
    member = round.follower()
    for other in round.others(member):
        for source, target in ((member, other), (other, member)):
            round.cluster.network.rule(source.name, target.name, Rule(delay_s=0.15, jitter_s=0.1))
    round.say(f"{member.name} is far away")
    round.sleep(4, 6)


def transfer(round: Round) -> None:
    """Leadership is handed over, again and again, under load."""
    for _ in range(3):
        leader = round.leader()
        to = round.rng.choice(round.others(leader))
        round.say(f"the leadership to {to.name}")
        try:
            round.cluster.workers[0].ask("transfer", address=leader.address, to=to.name)
        except Failed as failed:
            round.counts["transfers_refused"] += 1
            round.say(str(failed).splitlines()[0])
        round.sleep(0.5, 1.5)


def full_disk(round: Round) -> None:
    """On a file system of its own, or where none may be mounted by a limit on the size of files."""
    member = round.leader() if round.rng.random() < 0.5 else round.follower()
    if member.disk.fills:
        ballast = fill(member.disk.folder, round.rng.choice((0, 20_000, 200_000)))
        round.say(f"the disk of {member.name} is full")
        round.down.append(("full", time.monotonic()))
        round.sleep(3, 6)
        ballast.unlink()
    else:
        assert member.process is not None
        round.say(f"no file of {member.name} may grow")
        pid = member.process.pid
        largest = max((path.stat().st_size for path in member.disk.data.rglob("*") if path.is_file()), default=1 << 16)
        _, most = resource.prlimit(pid, resource.RLIMIT_FSIZE)
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (min(largest, 1 << 20), most))
        round.down.append(("full", time.monotonic()))
        round.sleep(3, 6)
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (most, most))
    if not member.running:
        round.counts["ended_on_full_disk"] += 1
        round.say(f"{member.name} ended: {member.words(300)}")
        return
    round.sleep(1, 3)
    # A node whose logs could not be written promises nothing until it is started again, and says so: somebody does.
    if member.name in round.cluster.halted():
        round.counts["restarts after a full disk"] += 1
        round.say(f"{member.name} had halted, and is started again")
        member.end()
        round.restart(member)


ROOMS: Final = ("raft", "control", "collections", "catalog")
KINDS: Final[dict[str, Callable[[Path], bool]]] = {
    "sst": lambda path: path.suffix == ".sst",
    "wal": lambda path: path.suffix == ".log",
    "manifest": lambda path: path.name.startswith("MANIFEST"),
    "current": lambda path: path.name == "CURRENT",
    "options": lambda path: path.name.startswith("OPTIONS"),
    "sealed": lambda path: path.suffix == ".vdb",
    "other": lambda path: path.suffix not in (".sst", ".log", ".dbtmp", ".vdb") and "LOG" not in path.name
    and not path.name.startswith(("MANIFEST", "CURRENT", "OPTIONS", "LOCK", "IDENTITY")),
}


def files(member: Member) -> dict[str, list[Path]]:
    """A node's files that hold anything, by the room and their kind: ``raft/wal``, ``collections/sealed``."""
    found: dict[str, list[Path]] = {}
    for path in sorted(member.disk.data.rglob("*")):
        room = path.relative_to(member.disk.data).parts[0]
        if path.is_file() and path.stat().st_size and "damaged" not in str(path):
            for kind, fits in KINDS.items():
                if fits(path):
                    found.setdefault(f"{room if room in ROOMS else 'node'}/{kind}", []).append(path)
    return found


def flip(round: Round, member: Member, kinds: dict[str, list[Path]]) -> str:
    kind = round.rng.choice(sorted(kinds))
    path = round.rng.choice(kinds[kind])
    size = path.stat().st_size
    # Anywhere, and often in what stands at the ends: headers and footers, and what was written last.
    at = round.rng.randrange(size if round.rng.random() < 0.6 else min(size, 64))
    at = size - 1 - at if round.rng.random() < 0.5 else at
    harm(path, at, round.rng)
    round.say(f"a bit flips in {path.relative_to(member.disk.data)} of {member.name}, at {at} of {size}")
    round.counts[f"flipped {kind}"] += 1
    return kind


def harm(path: Path, at: int, rng: random.Random) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 1 << rng.randrange(8)]))
        os.fsync(file.fileno())


def flip_while_down(round: Round) -> None:
    member = round.leader() if round.rng.random() < 0.3 else round.follower()
    round.kill(member)
    flip(round, member, {kind: paths for kind, paths in files(member).items() if not kind.startswith("node/")})
    _restart_damaged(round, member)


def flip_while_running(round: Round) -> None:
    """Bits of files that are read again: tables and sealed segments."""
    member = round.follower()
    kinds = {kind: paths for kind, paths in files(member).items() if kind.endswith(("/sst", "/sealed"))
             and not kind.startswith("node/")}
    if kinds:
        flip(round, member, kinds)
    round.sleep(2, 4)
    round.kill(member)
    _restart_damaged(round, member)


def torn_log(round: Round) -> None:
    """The end of the raft log's newest file is gone, zero or noise: more than a power cut does, for it was synced."""
    member = round.follower()
    round.kill(member)
    logs = files(member).get("raft/wal", [])
    if logs:
        path = max(logs, key=lambda one: one.name)
        size = path.stat().st_size
        count = round.rng.randint(1, min(size, 4096))
        how = round.rng.choice(("cut off", "zero", "noise"))
        with path.open("r+b") as file:
            if how == "cut off":
                file.truncate(size - count)
            else:
                file.seek(size - count)
                file.write(bytes(count) if how == "zero" else round.rng.randbytes(count))
        round.say(f"the last {count} bytes of {path.relative_to(member.disk.data)} of {member.name} are {how}")
        round.counts["logs torn"] += 1
    _restart_damaged(round, member)


def lost_disk(round: Round) -> None:
    """A node comes back with nothing."""
    member = round.follower()
    round.kill(member)
    round.say(f"the directory of {member.name} is gone")
    member.disk.empty()
    round.restart(member)


def kill_while_starting(round: Round) -> None:
    """Again and again, before it is well."""
    silent = round.cluster.disk != PLAIN and round.rng.random() < 0.5
    members = [round.follower()] if round.rng.random() < 0.5 else list(round.cluster.members)
    for turn in range(3):
        for member in members:
            round.kill(member, silent=silent)
        for member in members:
            if silent:
                round.cut_power(member)
            if turn < 2:
                member.start()
        round.sleep(0.3, 3.5)
    round.restart(*members)


def trouble_while_joining(round: Round) -> None:
    """A node that comes back with nothing is killed, or loses its power, while it is given everything."""
    member = round.follower()
    silent = round.cluster.disk != PLAIN and round.rng.random() < 0.5
    round.kill(member)
    round.say(f"the directory of {member.name} is gone")
    member.disk.empty()
    for _ in range(2):
        member.start()
        round.sleep(1.5, 5)
        round.kill(member, silent=silent)
        if silent:
            round.cut_power(member)
    round.restart(member)


def lead_changes_while_joining(round: Round) -> None:
    """Who sends the snapshot is killed meanwhile."""
    member = round.follower()
    round.kill(member)
    round.say(f"the directory of {member.name} is gone")
    member.disk.empty()
    round.restart(member)
    round.sleep(0, 1.5)
    leader = round.leader()
    round.kill(leader)
    round.sleep(0.2, 1)
    round.restart(leader)


def _restart_damaged(round: Round, member: Member) -> None:
    """It comes up and repairs itself, or says no: then somebody empties it, as its words tell."""
    member.disk.harmed()
    member.start()
    try:
        member.wait()
    except Failed:
        if member.running or not _says_damage(member):
            raise
        round.say(f"{member.name} refuses to start and says why; emptied")
        round.counts["refused and emptied"] += 1
        member.disk.empty()
        round.restart(member)


def _says_damage(member: Member) -> bool:
    words = member.words(2000)
    return member.process is not None and member.process.returncode > 0 and "Traceback" not in words and any(
        word in words for word in ("damaged", "corrupt", "checksum"))


def _everywhere(round: Round, rule: Rule) -> None:
    for member in round.cluster.members:
        for other in round.others(member):
            round.cluster.network.rule(member.name, other.name, rule)


def _cut(round: Round, member: Member, *, both: bool, leads: bool = False) -> None:
    for other in round.others(member):
        round.cluster.network.rule(member.name, other.name, CUT)
        if both:
            round.cluster.network.rule(other.name, member.name, CUT)
    _wait_cut(round, f"{member.name}{', the leader,' if leads else ''} is cut off", leads=leads)


def _wait_cut(round: Round, what: str, *, leads: bool) -> None:
    if leads:
        round.down.append(("cut", time.monotonic()))
    round.say(what)
    round.sleep(3, 6)
    round.cluster.network.heal()
    round.sleep(0.5, 1.5)


ATTACKS: Final[dict[str, tuple[Callable[[Round], None], int]]] = {
    attack.__name__: (attack, weight) for attack, weight in (
        (kill_leader, 5), (kill_follower, 2), (kill_all, 3), (kill_one_after_the_other, 1), (power_of_leader, 4),
        (power_of_follower, 2), (power_of_all, 5), (power_twice, 2), (pause_leader, 3), (pause_follower, 1),
        (pause_leaders_in_turn, 2), (partition_leader, 3), (partition_follower, 2), (leader_is_deaf, 2),
        (leader_is_mute, 2), (cut_one_link, 2), (everybody_alone, 1), (bad_network, 3),
        (kill_leader_on_bad_network, 2), (slow_follower, 1), (transfer, 2), (full_disk, 3), (flip_while_down, 6),
        (flip_while_running, 2), (torn_log, 2), (lost_disk, 1), (kill_while_starting, 2),
        (trouble_while_joining, 2), (lead_changes_while_joining, 1))}
"""By name, with how often each is chosen."""

NEED_POWER: Final = frozenset({"power_of_leader", "power_of_follower", "power_of_all", "power_twice"})
