"""What is done to the cluster.  Each attack takes a :class:`Round`, and does harm under load; the round's end heals the
network and starts what does not run.  At most a minority is harmed for good (bits, disks); all may be killed, or lose
their power, at once.
"""

import signal
import time
from collections.abc import Callable
from typing import Final

from tests.chaos.cluster import Failed, Member
from tests.chaos.damage import (
    flip_while_down,
    flip_while_running,
    full_disk,
    kill_while_starting,
    lead_changes_while_joining,
    lost_disk,
    torn_log,
    trouble_while_joining,
)
from tests.chaos.networks import CUT, Rule
from tests.chaos.rounds import Round

ELECTION_S_MAX: Final = 2.0


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


def leader_out_of_reach(round: Round) -> None:
    """Of clients alone: their packets vanish, and the other nodes hand their calls on."""
    member = round.leader()
    for worker in round.cluster.workers:
        round.cluster.network.rule(worker.name, member.name, CUT)
        round.cluster.network.rule(member.name, worker.name, CUT)
    _wait_cut(round, f"clients cannot reach {member.name}, the leader", leads=False)


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


def half_open(round: Round) -> None:
    """What is said to one node arrives, and its answers vanish: for other nodes, for clients, or for all."""
    member, network = round.rng.choice(round.cluster.members), round.cluster.network
    leads = member is round.leader()
    nodes = [one.name for one in round.others(member)]
    clients = [one.name for one in round.cluster.workers] if network.kind == "packets" else []
    names = round.rng.choice([one for one in (nodes, clients, nodes + clients) if one])
    for name in names:
        network.rule(member.name, name, CUT)
    _wait_cut(round, f"{member.name} hears {', '.join(names)}, and its answers vanish",
              leads=leads and names != clients)


def slow_disk(round: Round) -> None:
    member = round.leader() if round.rng.random() < 0.5 else round.follower()
    ms = round.rng.choice((50, 300, 1_000))
    member.disk.slow(ms)
    round.say(f"a sync of {member.name} takes {ms} ms")
    round.sleep(4, 7)
    member.disk.slow(0)
    round.sleep(0.5, 1.5)


def disk_hangs(round: Round) -> None:
    """For some seconds no sync ends: who leads on such a disk has to let others do so."""
    member = round.leader()
    member.disk.slow(3_600_000)
    round.down.append(("a disk that hangs", time.monotonic()))
    round.say(f"the disk of {member.name}, the leader, hangs")
    round.sleep(4, 8)
    member.disk.slow(0)
    round.sleep(0.5, 1.5)


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
        (leader_is_mute, 2), (cut_one_link, 2), (everybody_alone, 1), (leader_out_of_reach, 2), (bad_network, 3),
        (kill_leader_on_bad_network, 2), (slow_follower, 1), (half_open, 2), (slow_disk, 2), (disk_hangs, 2),
        (transfer, 2), (full_disk, 3), (flip_while_down, 6), (flip_while_running, 2), (torn_log, 2), (lost_disk, 1),
        (kill_while_starting, 2), (trouble_while_joining, 2), (lead_changes_while_joining, 1))}
"""By name, with how often each is chosen."""

NEED_PACKETS: Final = frozenset({"leader_out_of_reach"})
NEED_LAYER: Final = frozenset({"slow_disk", "disk_hangs"})
NEED_POWER: Final = frozenset({"power_of_leader", "power_of_follower", "power_of_all", "power_twice"})
