"""There is one founding, whatever is asked when, and however many disks of a minority are lost meanwhile."""

from random import Random

import pytest

from vecdb.cluster.founding import Founding, decide, strangers


class Asking:
    """A round under way: answers arrive in any order, as they were when the other was asked."""

    def __init__(self, mine):
        self.mine, self.answers, self.left = mine, {}, None


class Story:
    """Nodes with disks that remember, rounds that overlap, disks that are lost."""

    def __init__(self, seed):
        self.random = Random(seed)
        self.nodes = tuple(f"n{at}" for at in range(1, self.random.randint(2, 5)))
        self.numbers = iter(range(100, 10_000))
        self.disks = {node: Founding(next(self.numbers)) for node in self.nodes}
        self.rounds = dict.fromkeys(self.nodes)
        self.down = set()
        self.lost = []
        self.founders = {}
        """By the list they began with: disks that may have promised something."""

    def step(self):
        node = self.random.choice(self.nodes)
        if node in self.down:
            if self.random.random() < 0.3:
                self.down.discard(node)
            return
        asking = self.rounds[node]
        if asking is None:
            self.rounds[node] = asking = Asking(self.disks[node])
            asking.left = [other for other in self.nodes if other != node]
            self.random.shuffle(asking.left)
        elif asking.left:
            other = asking.left.pop()
            if other not in self.down and self.random.random() < 0.9:
                asking.answers[other] = self.disks[other]
        else:
            self.rounds[node] = None
            after = decide(node, self.nodes, asking.mine, asking.answers)
            if after.members and not after.joined and not self.disks[node].over:
                self.founders.setdefault(after.members, set()).add(f"{node}/{after.number}")
            self.disks[node] = after

    def lose(self):
        """A minority of those on a list lose their disks; who is on none does at will."""
        node = self.random.choice(self.nodes)
        name = f"{node}/{self.disks[node].number}"
        for some in {*self.founders, *(disk.forming for disk in self.disks.values())}:
            if name in some and len({*some} & {*self.lost}) + 1 > (len(self.nodes) - 1) // 2:
                return
        self.lost.append(name)
        self.disks[node], self.rounds[node] = Founding(next(self.numbers)), None

    @property
    def groups(self):
        """Lists with which a majority has begun: what only these have agreed on could be acknowledged."""
        return [members for members, some in self.founders.items() if len(some) > len(members) // 2]

    def crash(self):
        node = self.random.choice(self.nodes)
        self.rounds[node] = None
        self.down.add(node)


@pytest.mark.parametrize("block", range(10))
def test_one_founding_that_all_live_disks_know(block):
    for seed in range(block * 100, block * 100 + 100):
        story = Story(seed)
        for _ in range(story.random.randint(0, 300)):
            chance = story.random.random()
            if chance < 0.01:
                story.lose()
            elif chance < 0.03:
                story.crash()
            else:
                story.step()
            assert len(story.groups) <= 1, seed
        story.down = set()
        for _ in range(1_000):
            story.step()
        assert len(story.groups) == 1, seed
        (members,) = story.groups
        for node, disk in story.disks.items():
            assert disk.over, seed
            assert disk.members == members, seed
            assert disk.joined == (f"{node}/{disk.number}" not in members), seed


def test_alone_a_node_founds_by_itself():
    mine = decide("n1", ["n1"], Founding(7), {})
    assert mine == Founding(7, ("n1/7",))
    assert decide("n1", ["n1"], mine, {}) == Founding(7, ("n1/7",), ("n1/7",))


def test_nothing_is_done_while_somebody_is_silent():
    mine = Founding(7)
    assert decide("n1", ["n1", "n2", "n3"], mine, {"n2": Founding(8)}) == mine


def test_who_has_written_a_list_does_not_join_on_hearsay():
    """Another has joined, and says so without knowing the members: this disk may be one of them."""
    hearsay = {"n2": Founding(8, joined=True), "n3": Founding(9)}
    assert decide("n1", ["n1", "n2", "n3"], Founding(7), hearsay) == Founding(7, joined=True)
    written = Founding(7, ("n1/7", "n2/1", "n3/9"))
    assert decide("n1", ["n1", "n2", "n3"], written, hearsay) == written
    known = {**hearsay, "n3": Founding(9, written.forming, written.forming)}
    assert decide("n1", ["n1", "n2", "n3"], written, known) == Founding(7, written.forming, written.forming)


def test_others_settings_show():
    answers = {"n2": Founding(8, ("n1/7", "n2/8", "n4/1")), "n3": Founding(9), "n5": Founding(1, (), ("n6/1",))}
    assert strangers(["n1", "n2", "n3"], answers) == {"n2": ("n1", "n2", "n4")}
