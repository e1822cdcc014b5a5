"""The judge of histories, against histories whose verdict is known, and against trying every order."""

from itertools import permutations
from random import Random

import pytest

from vecdb.testing.linear import NEVER, Operation, linearizable


def write(start, end, value):
    return Operation("write", start, end, value)


def read(start, end, result):
    return Operation("read", start, end, result=result)


def cas(start, end, expected, value, result):
    return Operation("cas", start, end, value, expected, result)


@pytest.mark.parametrize(("verdict", "history"), [
    (True, []),
    (True, [write(0, 1, 5), read(2, 3, 5)]),
    (False, [write(0, 1, 5), read(2, 3, 0)]),
    (True, [write(0, 4, 5), read(1, 2, 0), read(2, 3, 5)]),
    (False, [write(0, 4, 5), read(1, 2, 5), read(2.5, 3, 0)]),
    (True, [write(0, NEVER, 5), read(1, 2, 0), read(3, 4, 5)]),
    (False, [write(0, NEVER, 5), read(1, 2, 5), read(3, 4, 0)]),
    (True, [write(0, NEVER, 5), write(1, 2, 6), read(3, 4, 6), read(5, 6, 6)]),
    (False, [read(0, 1, 7)]),
    (True, [cas(0, 1, 0, 5, 1), cas(2, 3, 0, 6, 0), read(4, 5, 5)]),
    (False, [cas(0, 2, 0, 5, 1), cas(1, 3, 0, 6, 1)]),
    (True, [cas(0, NEVER, 0, 5, 0), read(1, 2, 5)]),
    (True, [read(0, NEVER, 9), write(1, 2, 3)])])
def test_known_verdicts(verdict, history):
    assert linearizable(history) is verdict


def by_trying(history):
    must = [one for one in history if one.end != NEVER]
    may = [one for one in history if one.end == NEVER and one.kind != "read"]
    for mask in range(1 << len(may)):
        chosen = must + [one for at, one in enumerate(may) if mask >> at & 1]
        for order in permutations(chosen):
            if any(later.end < earlier.start for at, earlier in enumerate(order) for later in order[at + 1:]):
                continue
            state = 0
            for one in order:
                state = one.step(state)
                if state is None:
                    break
            else:
                return True
    return False


def test_it_agrees_with_trying_every_order():
    random = Random(5)
    verdicts = []
    for _ in range(400):
        history = []
        for _ in range(random.randint(1, 5)):
            start = random.randrange(8)
            end = start + random.randint(1, 4) if random.random() < 0.8 else NEVER
            kind = random.choice(("read", "write", "cas"))
            history.append(Operation(kind, start, end + 0.5 if end != NEVER else end, random.randrange(3),
                                     random.randrange(3), random.randrange(3) if kind == "read" else
                                     random.randrange(2)))
        verdicts.append(linearizable(history))
        assert verdicts[-1] == by_trying(history), history
    assert 50 < sum(verdicts) < 350
