"""Attacks on disks: full ones, flipped bits, torn logs, lost ones; and trouble while a node comes back.

One node at a time is harmed: what a majority has lost nobody gives back.
"""

import os
import random
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from tests.chaos.cluster import Failed, Member
from tests.chaos.disks import PLAIN
from tests.chaos.rounds import Round
from tests.faults import fill


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
    "values": lambda path: path.suffix == ".values",
    "other": lambda path: path.suffix not in (".sst", ".log", ".dbtmp", ".vdb", ".values") and "LOG" not in path.name
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
    """Bits of files that are read again: tables, sealed segments, commands of logs."""
    member = round.follower()
    kinds = {kind: paths for kind, paths in files(member).items() if kind.endswith(("/sst", "/sealed", "/values"))
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
    there = files(member)
    logs = there.get(round.rng.choice(("raft/wal", "raft/values")), there.get("raft/wal", []))
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
        word in words for word in ("damaged", "corrupt", "checksum", "had been synced"))
