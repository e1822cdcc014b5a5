"""What judges hold shards against: the dictionary, steps of records and collections, answers nobody can explain."""

from itertools import permutations
from random import Random

import numpy as np
import orjson
import pytest

from vecdb.core.calls import Consistency, WriteToken
from vecdb.core.filters import parse
from vecdb.core.query import Matches, QueryRequest
from vecdb.core.records import DeleteIds, DeleteWhere, Record, UpdateMetadata, UpsertBatch, WriteResult
from vecdb.shard import codec
from vecdb.shard.marks import Mark
from vecdb.testing.linear import NEVER, linearizable
from vecdb.testing.model import Model
from vecdb.testing.records import Read, RecordStep, metadata_of, vector_of
from vecdb.testing.service_checks import CollectionStep, ReadCall, ServiceJudge
from vecdb.testing.violation import Violation
from vecdb.testing.world import World


def upsert(*pairs):
    return UpsertBatch(tuple(one for one, _ in pairs), np.stack([vector_of(value, 4) for _, value in pairs]),
                       tuple(metadata_of(value) for _, value in pairs))


def modelled(*commands):
    model = Model()
    for at, command in enumerate(commands, start=1):
        model.apply(at, command if isinstance(command, bytes) else codec.encode(command))
    return model


def test_what_commands_do():
    model = modelled(upsert(("a", 1), (7, 2)), upsert(("a", 3)), DeleteIds(("a", "b")), Mark(),
                     UpdateMetadata((7, "c"), (b'{"x":1,"v":null}', b"{}")),
                     UpdateMetadata((7,), (b"{}",), merge=False), DeleteWhere(parse("v == 9")),
                     upsert(("d", 9)), DeleteWhere(parse("v == 9")), b"nonsense")
    outcomes = [model.at(at).outcome for at in range(1, 11)]
    assert outcomes == [WriteResult(2, 0, 0, 0, 1), WriteResult(0, 1, 0, 0, 2), WriteResult(0, 0, 1, 1, 3), None,
                        WriteResult(0, 1, 0, 1, 5), WriteResult(0, 1, 0, 0, 6), WriteResult(0, 0, 0, 0, 7),
                        WriteResult(1, 0, 0, 0, 8), WriteResult(0, 0, 1, 0, 9), WriteResult()]
    assert model.at(10).refused
    assert model.at(5).records[7].fields == {"p": 0, "x": 1}
    assert model.at(6).records[7].metadata == b"{}"
    assert list(model.at(2).records) == ["a", 7]
    assert model.at(0).digest == f"{0:032x}"
    assert model.at(3).digest == model.at(4).digest != model.at(2).digest


def test_a_token_counts_once_and_for_one_command():
    first, other = WriteToken(b"k", 1), WriteToken(b"k", 2)
    model = modelled(codec.encode(upsert(("a", 1)), first), codec.encode(DeleteIds(("a",))),
                     codec.encode(upsert(("a", 1)), first), codec.encode(upsert(("a", 5)), other))
    assert model.at(3).repeated
    assert model.at(3).outcome == WriteResult(1, 0, 0, 0, 1)
    assert model.at(4).refused
    assert not model.at(4).records
    assert model.tokens == {b"k": 1}


@pytest.mark.parametrize(("fault", "change"), [
    ("", lambda found: found),
    ("do not match", lambda found: Matches(["z", *found.ids[1:]], found.distances)),
    ("for k=", lambda found: Matches([found.ids[0]] * 2, found.distances)),
    ("not sorted", lambda found: Matches(found.ids[::-1], found.distances[::-1])),
    ("as far away", lambda found: Matches(found.ids, found.distances + np.float32(0.01))),
    ("the nearest are", lambda found: Matches(found.ids[:1], found.distances[:1]))])
def test_answers_to_queries(fault, change):
    moment = modelled(upsert(("a", 1), ("b", 3), ("c", 2), ("d", 5))).at(1)
    query = vector_of(77, 4)
    request = QueryRequest(query[None, :], 2, parse("p == 1"), exact=True)
    far = sorted((float(np.linalg.norm(vector_of(value, 4) - query)), one) for one, value in (
        ("a", 1), ("b", 3), ("d", 5)))[:2]
    found = change(Matches([one for _, one in far], np.array([distance for distance, _ in far], np.float32)))
    said = moment.faults(request, 0, found, whole=True)
    assert fault in said
    assert bool(said) is bool(fault)


def step(kind, start, end, value=0, expected=0, result=None):
    return RecordStep(kind, start, end, value, expected, result)


@pytest.mark.parametrize(("verdict", "steps"), [
    (True, [step("upsert", 0, 1, 5, result=0), step("read", 2, 3, result=5)]),
    (False, [step("upsert", 0, 1, 5, result=1), step("read", 2, 3, result=5)]),
    (True, [step("update", 0, 1, 5, result=0), step("read", 2, 3, result=0)]),
    (False, [step("upsert", 0, 1, 4), step("update", 2, 3, 5, result=1), step("read", 4, 5, result=4)]),
    (True, [step("upsert", 0, 1, 4), step("delete_even", 2, 3), step("read", 4, 5, result=0)]),
    (False, [step("upsert", 0, 1, 5), step("delete_even", 2, 3), step("read", 4, 5, result=0)]),
    (False, [step("upsert", 0, 1, 5), step("delete_if", 2, 3, expected=5, result=1), step("read", 4, 5, result=5)]),
    (True, [step("upsert", 0, 1, 5), step("delete", 0.5, NEVER), step("read", 2, 3, result=5),
            step("read", 4, 5, result=0)]),
    (False, [step("upsert", 0, 1, 5), step("delete", 2, 3, result=1), step("read", 4, 5, result=5)])])
def test_steps_of_records(verdict, steps):
    assert linearizable(steps) is verdict


@pytest.mark.parametrize(("verdict", "steps"), [
    (True, [CollectionStep("create", 0, 1, 1), CollectionStep("present", 2, 3), CollectionStep("drop", 4, 5, 1),
            CollectionStep("absent", 6, 7)]),
    (False, [CollectionStep("create", 0, 1, 1), CollectionStep("absent", 2, 3)]),
    (False, [CollectionStep("create", 0, 1, 1), CollectionStep("create", 2, 3, 1)]),
    (True, [CollectionStep("create", 0, 1, 1), CollectionStep("create", 2, 3, 0)]),
    (True, [CollectionStep("create", 0, 1, 1), CollectionStep("drop", 2, NEVER), CollectionStep("present", 3, 4),
            CollectionStep("absent", 5, 6)]),
    (False, [CollectionStep("create", 0, 1, 1), CollectionStep("drop", 2, 3, 1), CollectionStep("present", 4, 5)])])
def test_steps_of_collections(verdict, steps):
    assert linearizable(steps) is verdict


def test_steps_agree_with_trying_every_order():
    random, verdicts = Random(3), []
    for _ in range(300):
        steps = []
        for _ in range(random.randint(1, 5)):
            start = random.randrange(8)
            kind = random.choice(("upsert", "update", "delete", "delete_if", "delete_even", "read"))
            result = random.randrange(4) if kind == "read" else random.choice((None, 0, 1))
            steps.append(step(kind, start, start + random.randint(1, 4) + 0.5, random.randint(1, 3),
                              random.randint(1, 3), result))
        verdicts.append(linearizable(steps))
        assert verdicts[-1] == any(explains(order) for order in permutations(steps)), steps
    assert 30 < sum(verdicts) < 270


def explains(order):
    state = 0
    for at, one in enumerate(order):
        if any(later.end < one.start for later in order[at + 1:]):
            return False
        state = one.step(state)
        if state is None:
            return False
    return True


# --- answers whose place nobody tells --------------------------------------------------------------


@pytest.fixture
def judge():
    judge = ServiceJudge(World(1))
    judge.names.update({1: "a", 2: "a"})
    judge.models[1] = modelled(upsert(("x", 1)), upsert(("y", 3)))
    judge.models[2] = modelled(upsert(("x", 5)), upsert(("x", 7)))
    return judge


def asked(least=None, gone=(), ids=("x", "y")):
    return ReadCall("a", Read("fetch", ids), Consistency.LINEARIZABLE, 0.0, least or {}, frozenset(gone))


def records(*pairs):
    return [Record(one, orjson.loads(metadata_of(value)), vector_of(value, 4)) for one, value in pairs]


def test_an_answer_is_explained_by_one_moment_of_one_shard(judge):
    assert judge.answered(asked(), records(("x", 1), ("y", 3))) == 1
    assert judge.answered(asked(), records(("x", 7))) == 2
    assert judge.answered(asked(), []) is None
    for least, answer in (({}, records(("x", 7), ("y", 3))), ({2: 2}, records(("x", 5))), ({1: 2}, records(("x", 1)))):
        with pytest.raises(Violation):
            judge.answered(asked(least), answer)


def test_a_dropped_shard_that_answers_is_counted_and_named_once_all_is_healed(judge):
    assert judge.answered(asked(gone=(1,)), records(("x", 1))) is None
    assert judge.checked["reads_of_what_was_dropped"] == 1
    judge.healed = True
    with pytest.raises(Violation, match="group 1, which was dropped before"):
        judge.answered(asked(gone=(1,)), records(("x", 1)))
