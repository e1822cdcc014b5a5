"""What a node must still do, and must not, when it reaches no majority."""

import time

import pytest

import vecdb
from tests.chaos.worker import vector_of
from tests.cluster.compose import Node
from tests.cluster.load import RECALL, SMALL, Senses
from vecdb.core.errors import DeadlineExceeded, OutcomeUnknown, Unavailable

REFUSALS = (Unavailable, OutcomeUnknown, DeadlineExceeded)


def refuses_but_answers(node: Node, senses: Senses) -> None:
    """Writes and strong reads are refused by names; eventual reads go on, as right as ever, of what it has."""
    refuses(node)
    assert senses.recall(node, 20) >= RECALL


def refuses(node: Node) -> None:
    """Of a node that holds a replica: what it has it still says, to who asks for no more."""
    with vecdb.connect(node.url, timeout=3.0) as database:
        small = database[SMALL]
        until = time.monotonic() + 30.0
        while True:  # a leader of before may be believed in for a moment, by whoever did not hear of its end
            with pytest.raises(REFUSALS) as refused:
                small.upsert(ids=[1], vectors=vector_of(1, 1)[None], metadata=[{"a": 1, "v": 1}])
            if isinstance(refused.value, Unavailable) or time.monotonic() > until:
                break
        assert isinstance(refused.value, Unavailable | OutcomeUnknown), refused.value
        with pytest.raises((Unavailable, DeadlineExceeded)):
            small.get(1, consistency="linearizable")
        assert small.count(consistency="eventual") > 0
