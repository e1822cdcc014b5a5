"""What the stock class does wrong, as stories with an end.  Each is told twice: stock breaks the promise at its end."""

from tests.sim.stages import ALL

AT_ONCE = 9


class Broken(AssertionError):
    """The promise of a story was broken."""


def promise(kept, what):
    if not kept:
        raise Broken(what)


def entries_that_match_are_not_deleted(stage):
    """A batch that was sent again makes a follower delete what it has acknowledged; then the leader dies."""
    stage.leave("C")
    stage.elect("A", ["B"])
    stage.exchange("A", "B")
    stage.now += 0.2
    stage.tick("A")
    stage.exchange("A", "B")
    answers = [stage.put("A", "x" * 30 + str(at)) for at in range(6)]
    stage.tick("A")
    stage.now += 0.2
    stage.tick("A")                       # three batches are on their way
    stage.deliver("A", "B")               # B stores all six and says so three times
    stage.deliver("B", "A", 1)            # of which one arrives
    stage.now += 0.2
    stage.tick("A")                       # the heartbeat
    stage.deliver("B", "A")               # now the other two
    stage.tick("A")
    promise([answer.said for answer in answers] == ["acked"] * 6, "a majority has them: they are acknowledged")
    stage.deliver("A", "B", 1)            # one more message of A reaches B, then A is gone
    stage.leave("A")
    stage.come_back("C")
    stage.elect("B", ["C"])
    stage.settle(["B", "C"], 6)
    lost = [at for at in range(6) if not any(text.endswith(str(at)) for text in stage.applied("B"))]
    promise(not lost, f"acknowledged writes {lost} are lost")


def acknowledgements_belong_to_their_term(stage):
    """An acknowledgement from an earlier leadership arrives in a later one of the same node."""
    stage.elect("A", ["B", "C"])
    stage.settle("ABCDE", 4)
    for at in range(6):
        stage.put("A", f"early{at}")
    stage.tick("A")
    stage.now += 0.2
    stage.tick("A")
    for other in "CDE":
        stage.drop("A", other)
    stage.deliver("A", "B")               # B has them; what it says is stuck on the way back
    slow = {("B", "A")}
    stage.elect("C", ["D", "E"])
    stage.settle("BCDE", 5, slow)
    stage.settle("ABCDE", 5, slow)        # all follow C, whose log does not have the early ones
    stage.elect("A", ["D", "E"])
    for other in "BCE":
        stage.drop("A", other)
    answer = stage.put("A", "late")
    stage.tick("A")
    stage.now += 0.2
    stage.tick("A")
    for other in "BCE":
        stage.drop("A", other)
    stage.exchange("A", "D")              # A and D have it: two of five
    stage.deliver("B", "A", 1)            # the old acknowledgement
    for _ in range(3):
        stage.tick("A")
    having = [name for name in "ABCDE" if stage.holds(name, "late")]
    promise(answer.said != "acked" or len(having) >= 3, f"acknowledged, and held by {having} of five")


def one_change_of_members_at_a_time(stage):
    """A leader that is cut off takes two new members at once, and makes a majority of them."""
    stage.elect("A", ["B"])
    stage.settle("ABC", 5)
    stage.cut("A", ["B", "C"])
    for other in "BC":
        stage.drop("A", other)
        stage.drop(other, "A")
    stage.add("A", "D")
    stage.add("A", "E")
    stage.new("D", ["A"])
    stage.new("E", ["A", "D"])
    stage.settle("ADE", 8)
    here = stage.put("A", "from A")
    stage.settle("ADE", 6)
    stage.elect("B", ["C"])
    there = stage.put("B", "from B")
    stage.settle("BC", 6)
    promise(there.said == "acked", "two of three are a majority")
    promise(here.said != "acked", "two majorities: both sides have acknowledged")


def an_apply_that_raises_is_applied_once(stage):
    """A command whose apply raises; then another one."""
    stage.elect("A", ["B"])
    stage.settle("ABC", 4)
    stage.put("A", "boom")
    stage.settle("ABC", 6)
    after = stage.put("A", "after")
    stage.settle("ABC", 6)
    for name in "ABC":
        promise(stage.applied(name).count("boom") == 1, f"applied {stage.applied(name).count('boom')} times on {name}")
    promise(after.said == "acked", "the next command is blocked")


def a_caller_is_always_told(stage):
    """A write is under way when its leader is deposed: the caller hears, once, that its end is not known."""
    stage.elect("A", ["B"])
    stage.settle("ABC", 4)
    stage.leave("A")
    answer = stage.put("A", "x")
    for _ in range(40):                   # longer than any timeout of either
        stage.now += 1.0
        stage.tick("A")
    promise(answer.said == "unknown", f"the caller was told {answer.said}")
    promise(answer.times == 1, f"the caller was told {answer.times} times")


def a_log_that_is_being_truncated_survives_a_kill(stage):
    """kill -9 while the log is made shorter: what it was to keep is still there."""
    stage.elect("A", ["B", "C"])
    stage.settle("ABC", 4)
    answers = [stage.put("A", f"write{at}") for at in range(12)]
    stage.settle("ABC", 4)
    promise(all(answer.said == "acked" for answer in answers), "acknowledged")
    for at, name in enumerate("ABC"):
        stage.compact_and_kill(name, keep=8, at=at)
        stage.restart(name)
        kept = [number for number in range(4, 12) if stage.holds(name, f"write{number}")]
        promise(kept == list(range(4, 12)), f"of what {name} was to keep, {kept} is left")


def a_paused_leader_answers_no_stale_reads(stage):
    """A leader stops for a while, another takes over and takes a write; then the first goes on and is asked."""
    stage.elect("A", ["B"])
    stage.settle("ABC", 4)
    stage.put("A", "old")
    stage.settle("ABC", 4)
    stage.leave("A")                      # SIGSTOP
    stage.elect("B", ["C"])
    new = stage.put("B", "new")
    stage.settle("BC", 4)
    promise(new.said == "acked", "two of three are a majority")
    seen = stage.read("A")                # SIGCONT: the read is the first thing it gets to
    promise(seen is None or "new" in seen, f"a read after the write sees {seen}")


def who_was_isolated_deposes_nobody(stage):
    """A follower is cut off for a minute and comes back: the leader stays, in its term."""
    stage.elect("A", ["B"])
    stage.settle("ABC", 4)
    term = stage.term("A")
    stage.away["C"] = True                # its connections look as if they were there
    for _ in range(60):
        stage.now += 1.0
        stage.tick("C")
        stage.settle("AB", 5)
        for other in "AB":
            stage.drop("C", other)
            stage.drop(other, "C")
    stage.away.pop("C")
    stage.settle("ABC", 10)
    promise(stage.leads("A"), "the leader was deposed")
    promise(stage.term("A") == term, f"an election was held: term {stage.term('A')} after {term}")


def a_vote_counts_once(stage):
    """A vote that arrives twice makes no majority."""
    stage.now += 3.0
    if stage.kind == "stock":
        stage.nodes["A"]._SyncObj__raftElectionDeadline = 0
        stage.tick("A")
    else:
        stage.tick("A")
        for other in "BC":                # these would, so A asks for real
            stage.exchange("A", other)
    stage.deliver("A", "B", 1)
    stage.q["B", "A"].extend(list(stage.q["B", "A"]))
    stage.deliver("B", "A", ALL)
    promise(not stage.leads("A"), "a leader by two votes of five")


EVERY = [entries_that_match_are_not_deleted, acknowledgements_belong_to_their_term, one_change_of_members_at_a_time,
         an_apply_that_raises_is_applied_once, a_caller_is_always_told, a_log_that_is_being_truncated_survives_a_kill,
         a_paused_leader_answers_no_stale_reads, who_was_isolated_deposes_nobody, a_vote_counts_once]
OF_FIVE = {acknowledgements_belong_to_their_term, a_vote_counts_once}
