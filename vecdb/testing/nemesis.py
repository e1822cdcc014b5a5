"""What goes wrong, as told by the seed: one thing after another, several at a time, then everything is healed."""

from collections.abc import Callable

from vecdb.core.errors import VecdbError
from vecdb.raft.membership import Change, node_of, replica_id
from vecdb.raft.replica import Replica
from vecdb.testing.checks import Judge
from vecdb.testing.cluster import Cluster, Node
from vecdb.testing.network import Weather


class Nemesis:
    """Never more nodes down than a majority of every group survives without; damage to one replica at a time."""

    def __init__(self, cluster: Cluster, judge: Judge, groups: list[int]) -> None:
        self.cluster = cluster
        self.world = cluster.world
        self.judge = judge
        self.groups = groups
        self.stopped = False
        self.pause_s = 0.1, 1.5
        """Between one thing and the next."""
        self._plagues: list[tuple[int, Callable[[], None]]] = [
            (6, self._crash), (3, self._pause), (4, self._partition), (4, self._isolate_leader), (2, self._one_way),
            (3, self._storm), (2, self._slow_disk), (2, self._members), (4, self._observers), (2, self._transfer),
            (2, self._damage), (2, self._damage_observer), (1, self._crash_all), (1, self._log_refuses),
            (1, self._state_refuses), (2, self._spoil_snapshot),
            (3, self._calm)]

    def start(self) -> None:
        for node in self.cluster.nodes.values():
            node.rate = self.world.random.uniform(0.9, 1.1)
        self.world.at(self.world.random.uniform(0.5, 1.5), self._observers)
        self.world.at(self.world.random.uniform(1.5, 3.0), self._next)

    def _next(self) -> None:
        if self.stopped:
            return
        weights = [weight for weight, _ in self._plagues]
        self.world.random.choices([plague for _, plague in self._plagues], weights)[0]()
        self.world.at(self.world.random.uniform(*self.pause_s), self._next)

    def heal(self) -> None:
        """Everything works again."""
        self.stopped = True
        self.cluster.network.heal()
        for node in self.cluster.nodes.values():
            node.slow = 1.0
            node.store.failing = False
            for group in self.groups:
                node.home.refuse(group, False)
            if node.host is None:
                node.start()
            elif node.paused:
                node.resume()
            self._mend(node)
        self.world.say("world", "healed")

    def _mend(self, node: Node) -> None:
        host = node.host
        assert host is not None
        if host.failure is not None:
            node.crash()
            node.start()
            return
        for group, replica in sorted(host.replicas.items()):
            if replica.halted:
                node.renew(group)

    # --- plagues ----------------------------------------------------------------------------------

    def _did(self, what: str, **fields: object) -> None:
        self.world.happened[what] += 1
        self.world.say("nemesis", what, **fields)

    def _some(self) -> Node:
        return self.cluster.nodes[self.world.random.choice(sorted(self.cluster.nodes))]

    def _stop(self, node: Node, seconds: float) -> None:
        node.crash()

        def back() -> None:
            if node.host is None:
                node.start()

        self.world.at(seconds, back)

    def _crash(self) -> None:
        leaders = [found for group in self.groups if (found := self.cluster.leader(group)) is not None]
        node = self._some()
        if leaders and self.world.random.random() < 0.4:
            node = self.cluster.nodes[node_of(self.world.random.choice(leaders).core.me)]
        if node.host is not None:
            self._did("crashes", node=node.name)
            self._stop(node, self.world.random.choice((0.05, 0.5, 2.0, 4.0)))

    def _crash_all(self) -> None:
        self._did("crashes_of_all")
        for node in self.cluster.nodes.values():
            if node.host is not None:
                self._stop(node, self.world.random.uniform(0.05, 1.0))

    def _pause(self) -> None:
        node = self._some()
        if node.up:
            self._did("pauses", node=node.name)
            node.pause()
            self.world.at(self.world.random.uniform(0.1, 4.0), lambda: node.resume() if node.paused else None)

    def _partition(self) -> None:
        names = sorted(self.cluster.nodes)
        self.world.random.shuffle(names)
        cut = self.world.random.randrange(1, len(names))
        self._did("partitions", one=names[:cut], other=names[cut:])
        self.cluster.network.part(names[:cut], names[cut:])
        self._heal_wires_later()

    def _isolate_leader(self) -> None:
        leader = self.cluster.leader(self.world.random.choice(self.groups))
        if leader is not None:
            name = node_of(leader.core.me)
            self._did("leaders_isolated", node=name)
            self.cluster.network.part([name], [one for one in self.cluster.nodes if one != name])
            self._heal_wires_later()

    def _one_way(self) -> None:
        one, other = self.world.random.sample(sorted(self.cluster.nodes), 2)
        self._did("one_way_cuts", sender=one, receiver=other)
        self.cluster.network.cut(one, other)
        self._heal_wires_later()

    def _heal_wires_later(self) -> None:
        self.world.at(self.world.random.uniform(0.2, 4.0), self.cluster.network.heal)

    def _storm(self) -> None:
        random = self.world.random
        self._did("storms")
        self.cluster.network.weather = Weather(
            delay=random.choice((0.001, 0.05)), jitter=random.choice((0.002, 0.1, 0.4)),
            lost=random.choice((0.0, 0.05, 0.3)), doubled=random.choice((0.0, 0.1, 0.5)),
            overtaken=random.choice((0.0, 0.1, 0.5)), detour=random.choice((0.05, 1.0, 4.0)),
            flipped=random.choice((0.0, 0.0, 0.02)))
        self._heal_wires_later()

    def _slow_disk(self) -> None:
        node = self._some()
        self._did("slow_disks", node=node.name)
        node.slow = self.world.random.choice((10.0, 100.0))

        def quick() -> None:
            node.slow = 1.0

        self.world.at(self.world.random.uniform(0.5, 3.0), quick)

    def _log_refuses(self) -> None:
        """A disk that is full, under the log: the process promises nothing more, and is started anew later."""
        node = self._some()
        if node.host is None or node.paused:
            return
        self._did("logs_refused", node=node.name)
        node.store.failing = True

        def again() -> None:
            node.store.failing = False
            if node.host is not None and node.host.failure is not None:
                node.crash()
                node.start()

        self.world.at(self.world.random.uniform(0.2, 2.0), again)

    def _state_refuses(self) -> None:
        """A disk that is full, under a group's state: this replica halts, and is opened anew later."""
        node, group = self._some(), self.world.random.choice(self.groups)
        if node.host is None or node.paused or not node.home.refuse(group, True):
            return
        self._did("states_refused", node=node.name, group=group)

        def again() -> None:
            node.home.refuse(group, False)
            replica = self.cluster.replica(node.name, group)
            if replica is not None and replica.halted:
                node.renew(group)

        self.world.at(self.world.random.uniform(0.2, 2.0), again)

    def _spoil_snapshot(self) -> None:
        """Flip a bit in what has arrived of a snapshot, the next time there is something."""
        nodes = list(self.cluster.nodes.values())

        def look(tries: int) -> None:
            if any(self._spoil(node) for node in nodes):
                self._did("snapshots_spoiled")
            elif tries and not self.stopped:
                self.world.at(0.01, lambda: look(tries - 1))

        look(300)

    def _spoil(self, node: Node) -> bool:
        return node.home.spoil(self.world.random)

    def _transfer(self) -> None:
        leader = self.cluster.leader(self.world.random.choice(self.groups))
        if leader is not None:
            self._did("transfers", leader=leader.core.me)
            self._ask(leader, lambda: leader.core.transfer(None, self._told("transfer")))

    def _ask(self, replica: Replica, ask: Callable[[], None]) -> None:
        def act() -> None:
            ask()
            replica.host.turn()

        self.cluster.nodes[node_of(replica.core.me)].act(act)

    def _told(self, what: str) -> Callable[[int, object, VecdbError | None], None]:
        def done(index: int, result: object, error: VecdbError | None) -> None:
            self.world.say("nemesis", what, outcome=error or "done")

        return done

    def _members(self) -> None:
        """Grow to four or five, shrink to three."""
        random = self.world.random
        group = random.choice(self.groups)
        leader = self.cluster.leader(group)
        if leader is None:
            return
        configuration = leader.core.configuration
        spare = self._spare(leader)
        add = remove = None
        members = len(configuration.voters) + len(configuration.joining)
        if spare and members < 5 and (len(configuration.voters) <= 3 or random.random() < 0.5):
            name = random.choice(spare)
            node = self.cluster.nodes[name]
            number = self.cluster.number()
            add = replica_id(name, number)
            node.join(group, number)
        if add is None and len(configuration.voters) > 3:
            remove = random.choice(configuration.voters)
        if add or remove:
            self._did("member_changes", group=group, add=add, remove=remove)
            self._ask(leader, lambda: leader.core.change(Change(add, remove), self._told("change")))

    def _spare(self, leader: Replica) -> list[str]:
        here = [node_of(one) for one in leader.core.configuration.everybody]
        return [name for name, node in self.cluster.nodes.items() if name not in here and node.up]

    def _observers(self) -> None:
        """An observer comes, or goes; or another disk of its node takes its place while it runs."""
        random = self.world.random
        group = random.choice(self.groups)
        leader = self.cluster.leader(group)
        if leader is None:
            return
        observers = leader.core.configuration.learners
        spare = self._spare(leader)
        add = remove = None
        if observers and (not spare or random.random() < 0.4):
            remove = random.choice(observers)
            spare = [node_of(remove)] if random.random() < 0.5 and self.cluster.nodes[node_of(remove)].up else []
        if spare:
            name, number = random.choice(spare), self.cluster.number()
            add = replica_id(name, number)
            self.cluster.observers[add] = True
            self.cluster.nodes[name].join(group, number)
        if add or remove:
            self._did("observer_changes", group=group, add=add, remove=remove)
            self._ask(leader, lambda: leader.core.change(Change(add, remove, join=False), self._told("observer")))

    def _damage_observer(self) -> None:
        """As of voters, whatever has become of the others: nothing depends on it."""
        leader = self.cluster.leader(group := self.world.random.choice(self.groups))
        observers = () if leader is None else leader.core.configuration.learners
        if observers:
            node = self.cluster.nodes[node_of(self.world.random.choice(observers))]
            if node.host is not None and not node.paused:
                node.crash()
                lost = node.damage(group)
                if lost is not None:
                    self.judge.lost[lost] = True
                    self._did("observers_damaged", replica=lost)
                self._back_later(node)

    def _may_damage(self) -> tuple[Node, int, str] | None:
        """A voter that may be lost, as all others of its group are whole: its node, which runs, group and id."""
        node = self._some()
        group = self.world.random.choice(self.groups)
        leader = self.cluster.leader(group)
        if node.host is None or node.paused or leader is None:
            return None
        configuration = leader.core.configuration
        found = [one for one in configuration.voters if node_of(one) == node.name]
        return (node, group, found[0]) if self._whole(group) and found else None

    def _whole(self, group: int) -> bool:
        """Whether one replica of a group may be lost: there are three voters, and nothing was done to any member."""
        leader = self.cluster.leader(group)
        if leader is None:
            return False
        configuration = leader.core.configuration
        return not configuration.joining and len(configuration.voters) >= 3 \
            and not any(one in self.judge.lost for one in configuration.voters)

    def _damage(self) -> None:
        """Crash a replica's node and flip a bit of its log, where all others of its groups are whole."""
        found = self._may_damage()
        if found is None:
            return
        node, group, _ = found
        node.crash()
        lost = node.damage(group)
        if lost is not None:
            self.judge.lost[lost] = True
            self._did("logs_damaged", replica=lost)
        self._back_later(node)

    def _back_later(self, node: Node) -> None:
        def back() -> None:
            if node.host is None:
                node.start()

        self.world.at(self.world.random.uniform(0.1, 2.0), back)

    def _calm(self) -> None:
        """Nothing, for a while."""
