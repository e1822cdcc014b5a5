"""What goes wrong with whole nodes."""

from collections.abc import Callable
from random import Random

from vecdb.core.errors import DataCorrupted
from vecdb.testing.network import Network, Weather
from vecdb.testing.service_node import CONTROL, LOGS, Machine
from vecdb.testing.shards import flip
from vecdb.testing.world import World


class ServiceNemesis:
    """Never more damaged disks than a minority, and another one only once all is whole again."""

    def __init__(self, world: World, network: Network, machines: dict[str, Machine]) -> None:
        self.world, self.network, self.machines = world, network, machines
        self.stopped = False
        self._plagues: list[tuple[int, Callable[[], None]]] = [
            (6, self._crash), (5, self._cut), (3, self._pause), (3, self._partition), (3, self._isolate),
            (2, self._one_way), (3, self._storm), (2, self._transfer), (2, self._refuse), (4, self._damage),
            (1, self._crash_all), (2, self._calm)]

    def start(self) -> None:
        self._look()
        self.world.at(self.world.random.uniform(0.2, 1.0), self._next)

    def _next(self) -> None:
        if self.stopped:
            return
        weights = [weight for weight, _ in self._plagues]
        self.world.random.choices([plague for _, plague in self._plagues], weights)[0]()
        self.world.at(self.world.random.uniform(0.1, 1.0), self._next)

    def _look(self) -> None:
        """A process whose logs' disk has failed is started anew once that takes writes."""
        for machine in self.machines.values():
            process = machine.process
            if process is not None and process.driver is not None and process.driver.failure is not None \
                    and not machine.disk.failing and not process.loop.paused:
                machine.condemned = machine.condemned or isinstance(process.driver.failure, DataCorrupted)
                self._stop(machine, 0.05)
        self.world.at(0.5, self._look)

    def heal(self) -> None:
        """Everything works again."""
        self.stopped = True
        self.network.heal()
        for machine in self.machines.values():
            machine.disk.failing = False
            if machine.process is None:
                machine.start()
            elif machine.process.loop.paused:
                machine.process.loop.resume()
        self.world.say("world", "healed")

    # --- plagues ----------------------------------------------------------------------------------

    def _did(self, what: str, **fields: object) -> None:
        self.world.happened[what] += 1
        self.world.say("nemesis", what, **fields)

    @property
    def _random(self) -> Random:
        return self.world.random

    def _some(self) -> Machine:
        return self.machines[self._random.choice(sorted(self.machines))]

    def _stop(self, machine: Machine, seconds: float) -> None:
        machine.crash()
        self._back(machine, seconds)

    def _back(self, machine: Machine, seconds: float) -> None:
        def back() -> None:
            if machine.process is None:
                machine.start()

        self.world.at(seconds, back)

    def _crash(self) -> None:
        machine = self._some()
        if machine.process is not None:
            self._did("crashes", node=machine.name)
            self._stop(machine, self._random.choice((0.05, 0.5, 2.0, 3.0)))

    def _crash_all(self) -> None:
        self._did("crashes_of_all")
        for machine in self.machines.values():
            if machine.process is not None:
                self._stop(machine, self._random.uniform(0.05, 1.0))

    def _cut(self) -> None:
        """Let the power go while threads are at something."""
        machine = self._some()

        def look(tries: int) -> None:
            process = machine.process
            if process is not None and not process.loop.paused and any(pool.under_way for pool in process.loop.pools):
                self._did("cuts", node=machine.name)
                self._stop(machine, self._random.choice((0.05, 0.5, 2.0)))
            elif tries and not self.stopped:
                self.world.at(0.002, lambda: look(tries - 1))

        look(200)

    def _pause(self) -> None:
        machine = self._some()
        process = machine.process
        if process is not None and not process.loop.paused:
            self._did("pauses", node=machine.name)
            process.loop.pause()
            self.world.at(self._random.uniform(0.1, 3.0), lambda: process.loop.resume()
                          if process.loop.alive and process.loop.paused else None)

    def _partition(self) -> None:
        names = sorted(self.machines)
        self._random.shuffle(names)
        cut = self._random.randrange(1, len(names))
        self._did("partitions", one=names[:cut], other=names[cut:])
        self.network.part(names[:cut], names[cut:])
        self._heal_wires_later()

    def _isolate(self) -> None:
        """From the other nodes; clients still reach it."""
        machine = self._some()
        self._did("isolations", node=machine.name)
        self.network.part([machine.name], [one for one in self.machines if one != machine.name])
        self._heal_wires_later()

    def _one_way(self) -> None:
        one, other = self._random.sample(sorted(self.machines), 2)
        self._did("one_way_cuts", sender=one, receiver=other)
        self.network.cut(one, other)
        self._heal_wires_later()

    def _heal_wires_later(self) -> None:
        self.world.at(self._random.uniform(0.2, 3.0), self.network.heal)

    def _storm(self) -> None:
        random = self._random
        self._did("storms")
        self.network.weather = Weather(
            delay=random.choice((0.001, 0.03)), jitter=random.choice((0.002, 0.1)),
            lost=random.choice((0.0, 0.05, 0.2)), doubled=random.choice((0.0, 0.2)),
            overtaken=random.choice((0.0, 0.2)), detour=random.choice((0.05, 1.0)))
        self._heal_wires_later()

    def _transfer(self) -> None:
        for machine in self.machines.values():
            process = machine.process
            if process is None or process.driver is None:
                continue
            leading = [one for one in process.driver.host.replicas.values() if one.core.role == 2]
            if leading:
                replica = self._random.choice(leading)
                self._did("transfers", leader=replica.core.me, group=replica.group)
                replica.core.transfer(None, lambda index, result, error: None)
                process.driver.soon()
                return

    def _refuse(self) -> None:
        machine = self._some()
        if machine.process is None:
            return
        self._did("disks_refused", node=machine.name)
        machine.disk.failing = True

        def again() -> None:
            machine.disk.failing = False

        self.world.at(self._random.uniform(0.1, 1.5), again)

    def _calm(self) -> None:
        """Nothing, for a while."""

    # --- damage -----------------------------------------------------------------------------------

    def _whole(self) -> bool:
        """Whether one disk may be lost: all nodes are up, and all their replicas are voters again."""
        for machine in self.machines.values():
            process = machine.process
            if process is None or process.hosting is None or process.driver is None or not process.hosting.settled:
                return False
            for replica in process.driver.host.replicas.values():
                configuration = replica.core.configuration
                if replica.halted or configuration.joining or replica.core.me not in configuration.voters \
                        or configuration.learners:
                    return False
        return True

    def _damage(self) -> None:
        """Hurt one disk, at the moment of a power cut, as soon as all are whole."""
        machine = self._some()

        def look(tries: int) -> None:
            if self._whole():
                machine.crash()
                self._did("disks_damaged", node=machine.name, damage=self._hurt(machine))
                self._back(machine, self._random.uniform(0.05, 1.0))
            elif tries and not self.stopped:
                self.world.at(0.1, lambda: look(tries - 1))

        look(30)

    def _hurt(self, machine: Machine) -> str:
        disk, random = machine.disk, self._random
        machine.damaged = True
        kind = random.choice(("segment", "segment", "state", "state", "log", "logs", "control", "disk"))
        if kind == "disk":
            machine.replace_disk()
            return "lost"
        if kind == "segment":
            files = sorted(disk.root.glob("collections/*/*/segments/*/*.vdb"))
            if files:
                path = random.choice(files)
                return f"{path.relative_to(disk.root)} byte {flip(path, random)}"
        folder = disk.root / {"log": LOGS, "logs": LOGS, "control": CONTROL}.get(kind, "collections")
        stores = disk.stores_below(folder)
        if not stores:
            return "none"
        store = random.choice(stores)
        if kind == "log":
            row = store.flip(random, b"l", b"n")
        else:
            row = store.spoil(random)
        return f"{kind} row {row.hex() if row else 'none'}"

