"""What nodes tell of themselves: silence from when the leader leads, clocks, and two processes by one name."""

import asyncio
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from vecdb.cluster.joining import Candidate
from vecdb.core.errors import JoinRefused, NodeRemoved, NotLeader, Unavailable
from vecdb.services.announcing import CLOCK_OFF, LATELY_S, REMOVED_S, Announcements, Announcer, Answer, Report


class Clock:
    now = 100.0
    wall_s = 5_000.0

    def monotonic(self) -> float:
        return self.now

    def wall(self) -> float:
        return self.wall_s


class Bench:
    def __init__(self) -> None:
        self.clock, self.term = Clock(), 3
        self.told: list[tuple[str, str, dict[str, Any]]] = []
        self.heard = Announcements(lambda: self.term, self.clock, self.tell)

    def tell(self, level: str, event: str, **fields: Any) -> None:
        self.told.append((level, event, fields))

    def report(self, name: str = "s1", *, incarnation: int = 1, off: float = 0.0, **stats: float) -> Report:
        return Report(Candidate(name, 7, f"{name}:1"), f"{name}/7", False, incarnation, self.clock.wall_s + off, stats)


def test_silence_counts_from_when_the_leader_leads() -> None:
    bench = Bench()
    assert bench.heard.look()
    bench.clock.now += 4
    assert bench.heard.heard_s("s1") == bench.heard.leading_s == 4
    bench.heard.take(bench.report())
    bench.clock.now += 3
    assert (bench.heard.heard_s("s1"), bench.heard.heard_s("s2")) == (3, 7)
    bench.term = 4
    assert (bench.heard.heard_s("s1"), bench.heard.leading_s) == (0, 0), "another leadership, though by the same node"
    assert bench.heard.report("s1") is None
    bench.clock.now += 2
    assert bench.heard.heard_s("s1") == 2
    bench.term = 0
    assert (bench.heard.heard_s("s1"), bench.heard.leading_s) == (0, 0)
    with pytest.raises(NotLeader):
        bench.heard.take(bench.report())


def test_who_was_not_heard_since_the_leader_leads_has_said_nothing_though_he_is_not_silent_yet() -> None:
    bench = Bench()
    assert bench.heard.word_s("s1") == -1
    bench.heard.take(bench.report())
    bench.clock.now += 3
    assert (bench.heard.word_s("s1"), bench.heard.word_s("s2")) == (3, -1)
    bench.term = 4
    assert (bench.heard.word_s("s1"), bench.heard.heard_s("s1")) == (-1, 0), "a dead node is not heard by an election"
    bench.clock.now += 20
    assert (bench.heard.word_s("s1"), bench.heard.heard_s("s1")) == (-1, 20)
    bench.heard.take(bench.report(incarnation=2))
    bench.clock.now += 1
    assert (bench.heard.word_s("s1"), bench.heard.heard_s("s1")) == (1, 1)
    bench.term = 0
    assert bench.heard.word_s("s1") == -1, "who does not lead hears nobody"


def test_stats_are_of_the_last_word() -> None:
    bench = Bench()
    assert bench.heard.stats("s1") == {}
    assert bench.heard.take(bench.report(disk_free_bytes=1.0)) == Answer(5_000.0)
    bench.heard.take(bench.report(disk_free_bytes=2.0, off=-3.0))
    assert bench.heard.stats("s1") == {"disk_free_bytes": 2.0, CLOCK_OFF: -3.0}
    bench.heard.forget("s1")
    assert bench.heard.stats("s1") == {}


@pytest.mark.parametrize(("off", "loud"), [(59.0, False), (-59.0, False), (120.0, True), (-61.0, True)])
def test_a_clock_that_is_off_is_told_of_by_name(off: float, loud: bool) -> None:
    bench = Bench()
    for _ in range(3):
        bench.heard.take(bench.report(off=off))
    events = [(level, event, fields["about"], fields["off_s"]) for level, event, fields in bench.told]
    assert events == ([("error", "node_clock_off", "s1", off)] if loud else []), "once, not every two seconds"
    assert bench.heard.stats("s1")[CLOCK_OFF] == off


def test_of_two_processes_on_copies_of_a_disk_the_later_counts_and_the_older_hears_of_it() -> None:
    bench = Bench()
    assert not bench.heard.take(bench.report(incarnation=5, one=1.0)).twice
    assert not bench.heard.take(bench.report(incarnation=6, two=1.0)).twice, "a restart, perhaps"
    with pytest.raises(JoinRefused, match="two nodes have this name"):
        bench.heard.take(bench.report(incarnation=5, one=1.0))
    assert [event for _, event, _ in bench.told] == ["node_twice"]
    assert "two" in bench.heard.stats("s1"), "the later counts"
    assert bench.heard.take(bench.report(incarnation=6, two=1.0)).twice, "and hears that there is another"


def test_a_node_that_is_heard_keeps_its_name_from_another_disk() -> None:
    bench = Bench()
    bench.heard.take(bench.report(incarnation=5, one=1.0), "s1/7")
    stranger = replace(bench.report(incarnation=9, two=1.0), replica="s1/8",
                       node=Candidate("s1", 8, "elsewhere:1"))
    with pytest.raises(JoinRefused, match="two nodes have this name") as refused:
        bench.heard.take(stranger, "s1/7")
    assert refused.value.reason == "name_in_use"
    (told,) = bench.told
    assert (told[1], told[2]["address"], told[2]["other"]) == ("node_twice", "s1:1", "elsewhere:1")
    answer = bench.heard.take(bench.report(incarnation=5, one=1.0), "s1/7")
    assert answer.twice, "who keeps it is told, too"
    bench.clock.now += LATELY_S
    assert not bench.heard.take(bench.report(incarnation=5), "s1/7").twice, "once the other one is gone"


def test_what_another_disk_took_in_a_silence_the_node_takes_back() -> None:
    bench = Bench()
    bench.heard.take(bench.report(incarnation=5), "s1/7")
    stranger = replace(bench.report(incarnation=9), replica="s1/8", node=Candidate("s1", 8, "elsewhere:1"))
    bench.clock.now += LATELY_S
    assert not bench.heard.take(stranger, "s1/7").twice
    assert bench.heard.take(bench.report(incarnation=5, back=1.0), "s1/7").twice
    for _ in range(3):
        with pytest.raises(JoinRefused):
            bench.heard.take(stranger, "s1/7")
        bench.heard.take(bench.report(incarnation=5, back=1.0), "s1/7")
    bench.heard.take(stranger, "s1/8")
    with pytest.raises(JoinRefused):
        bench.heard.take(bench.report(incarnation=5), "s1/8")


class Others:
    """Nodes that answer as they are told to."""

    def __init__(self, **answers: Any) -> None:
        self.answers, self.asked = answers, list[str]()

    async def announce(self, node: str, report: Report, call: Any) -> Answer:
        self.asked.append(node)
        return self.say(node)

    async def announced(self, report: Report) -> Answer:
        self.asked.append("me")
        return self.say("me")

    def say(self, node: str) -> Answer:
        answer = self.answers.get(node, Unavailable("away"))
        if isinstance(answer, Exception):
            raise answer
        return Answer(5_000.0) if answer is None else answer


def announcer(bench: Bench, others: Others, leader: str | None = None, nodes: tuple[str, ...] = ("a", "b", "me"),
              off: float = 0.0) -> tuple[Announcer, list[int]]:
    removed: list[int] = []

    async def report() -> Report:
        return bench.report("me", off=off)

    status = None if leader is None else SimpleNamespace(leader=f"{leader}/1")
    return Announcer("me", nodes, others, others, lambda: status, report, bench.clock,  # type: ignore[arg-type,return-value]
                     settled=lambda: True, removed=lambda: removed.append(1),
                     tell=bench.tell), removed


def test_a_mistake_of_ours_in_one_report_is_no_end_of_telling() -> None:
    bench, others = Bench(), Others(me=None)
    reports = iter((ValueError("a figure that is none"), bench.report("me")))

    async def report() -> Report:
        found = next(reports)
        if isinstance(found, Exception):
            raise found
        return found

    async def run() -> None:
        one = Announcer("me", ("me",), others, others, lambda: None, report, bench.clock,  # type: ignore[arg-type]
                        settled=lambda: False, removed=lambda: None, tell=bench.tell)
        task = asyncio.create_task(one.run())
        async with asyncio.timeout(60):
            while not others.asked:
                await asyncio.sleep(0.01)
        task.cancel()

    asyncio.run(run())
    assert "announcing_broken" in str(bench.told)


def test_who_leads_is_told_and_hints_are_followed() -> None:
    bench, others = Bench(), Others(a=NotLeader("b leads", leader="b/77"), b=None, me=None)
    asyncio.run(announcer(bench, others, leader="b")[0].announce())
    assert others.asked == ["b"]
    asyncio.run(announcer(bench, others, leader="a")[0].announce())
    assert others.asked == ["b", "a", "b"]
    asyncio.run(announcer(bench, others, leader="me")[0].announce())
    assert others.asked[3:] == ["me"]


def test_where_nobody_is_known_to_lead_others_are_asked_in_turn() -> None:
    bench, others = Bench(), Others(c=None)
    one, _ = announcer(bench, others, nodes=("a", "b", "c"))

    async def story() -> None:
        for _ in range(6):
            try:
                await one.announce()
                return
            except Unavailable:
                pass
        raise AssertionError(others.asked)

    asyncio.run(story())
    assert others.asked[-1] == "c"
    others.asked.clear()
    asyncio.run(one.announce())
    assert others.asked == ["c"], "it is remembered"


def test_a_node_believes_that_it_was_removed_once_it_has_heard_so_for_long() -> None:
    bench, others = Bench(), Others(a=NodeRemoved("gone"), b=NodeRemoved("gone"))
    one, removed = announcer(bench, others, leader="a", nodes=("a", "b"))

    async def ask() -> None:
        with pytest.raises(NodeRemoved):
            await one.announce()

    async def story() -> None:
        await ask()
        bench.clock.now += REMOVED_S - 1
        await ask()
        others.answers["a"] = None
        await one.announce()
        others.answers["a"] = NodeRemoved("gone")
        bench.clock.now += 2
        await ask()
        assert removed == [], "in between it was taken for a member"
        bench.clock.now += REMOVED_S
        await ask()

    asyncio.run(story())
    assert removed == [1]


def test_a_node_says_so_when_its_own_clock_is_off_or_its_name_is_used_twice() -> None:
    bench, others = Bench(), Others(a=None)
    one, _ = announcer(bench, others, leader="a", off=-120.0)
    asyncio.run(one.announce())
    asyncio.run(one.announce())
    assert one.clock_off_s == -120.0
    assert [(event, fields.get("off_s")) for _, event, fields in bench.told] == [("clock_off", -120.0)]
    others.answers["a"] = Answer(5_000.0, twice=True)
    bench.clock.now += 100
    asyncio.run(one.announce())
    assert bench.told[-1][1] == "node_twice"


def test_a_node_that_is_refused_for_its_name_says_so() -> None:
    bench = Bench()
    others = Others(a=JoinRefused("two nodes have this name", reason="name_in_use"))
    one, _ = announcer(bench, others, leader="a")
    with pytest.raises(JoinRefused):
        asyncio.run(one.announce())
    assert (one.refused, bench.told[-1][1]) == ("two nodes have this name", "node_twice")
    others.answers["a"] = None
    asyncio.run(one.announce())
    assert one.refused == ""
