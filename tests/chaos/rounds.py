"""One round of harm, as attacks see it."""

import random
import time
from collections import Counter
from dataclasses import dataclass, field

from tests.chaos.cluster import Cluster, Member


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
