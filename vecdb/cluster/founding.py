"""How the control group begins, once: all nodes agree on its first voters before any of them promises anything.

The nodes of a cluster are known from the settings, but not whether a node with an empty disk is new or has lost one.  A
voter that has forgotten what it promised may help to elect a leader that lacks what was acknowledged.  So a disk names
itself by a random number when it is first used, and a group's voters are disks: ``n2/3141592653``.

1. A node without a group writes down whom it would found it with: every node of the settings, by the number that each
   says of itself now (``forming``).
2. When all others say that they have written down the very same, it is founded: it writes down that these are the
   ``members``, and begins as one of them.
3. Who hears of members from anybody takes them over.  If its own number is among them it is one of the founders, and
   late; if not, the disk is new to a cluster that there was before it, and it **joins**: it begins without a vote,
   under yet another number, and the leader puts it in the place of the one that was lost.

Each step is on stable storage before the node says so.  So a cluster is founded when all its nodes are up at the same
time, once; from then on any one that is up and knows suffices.

**Why there is one founding.**  Let two nodes found with different lists.  All through the round in which the first
founds it has its own list written down, and it hears that the second has the same; so the second changed its mind
later, and its own round came after.  The same holds the other way round, which cannot be.  A disk that was lost
meanwhile comes back under another number, so it is in no list it does not know of; and what the lost one has promised
nobody can break by mistake.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from vecdb.cluster.control import node_of


@dataclass(frozen=True, slots=True)
class Founding:
    """How far a node is.  ``number``: of its disk.

    ``forming``: replicas it would found with, sorted; ``members``: those it was founded with; ``joined``: it is none of
    them.
    """

    number: int
    forming: tuple[str, ...] = ()
    members: tuple[str, ...] = ()
    joined: bool = False

    @property
    def over(self) -> bool:
        """Whether it is known what there is to know."""
        return bool(self.members) or self.joined


def decide(me: str, nodes: Sequence[str], mine: Founding, answers: Mapping[str, Founding]) -> Founding:
    """What to write down after a round of asking all others; ``mine`` where there is nothing new.

    ``nodes``: all of the cluster, ``me`` among them.  ``answers``: of those that answered, each given after ``mine``
    was written down.
    """
    if mine.over:
        return mine
    own = f"{me}/{mine.number}"
    over = [answer for node, answer in sorted(answers.items()) if answer.over]
    for answer in over:
        if answer.members:
            return replace(mine, members=answer.members, joined=own not in answer.members)
    if over:
        # Somebody has joined, and does not know whom.  Who never wrote a list is in none.
        return mine if mine.forming else replace(mine, joined=True)
    others = [node for node in nodes if node != me]
    if any(node not in answers for node in others):
        return mine
    forming = tuple(sorted((own, *(f"{node}/{answers[node].number}" for node in others))))
    if mine.forming != forming:
        return replace(mine, forming=forming)
    if all(answers[node].forming == forming for node in others):
        return replace(mine, members=forming)
    return mine


def strangers(nodes: Sequence[str], answers: Mapping[str, Founding]) -> dict[str, tuple[str, ...]]:
    """Nodes that would found with others than ``nodes``, and with whom: their settings differ from ours."""
    ours = set(nodes)
    told = {node: tuple(map(node_of, answer.forming)) for node, answer in sorted(answers.items()) if not answer.over}
    return {node: theirs for node, theirs in told.items() if theirs and set(theirs) != ours}
