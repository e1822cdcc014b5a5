"""Which writes a session's reads must have seen: remembered, bounded, handed on."""

import base64
import threading

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vecdb.client import positions
from vecdb.client.positions import GONE, Positions
from vecdb.core.calls import Call, Consistency
from vecdb.core.errors import InvalidArgument, LimitExceeded
from vecdb.core.limits import MAX_POSITIONS
from vecdb.core.records import WriteResult

NAMES = st.sampled_from(["docs", "logs", "a.b-c_d", "x" * 128])
WRITES = st.lists(st.tuples(NAMES, st.integers(0, 5), st.integers(1, 2**63 - 1)), max_size=30)


def wrote(memory: Positions, name: str, shard: int, log_index: int) -> None:
    memory.saw(name, WriteResult(shard=shard, log_index=log_index))


def furthest(writes: list) -> dict:
    """What should be remembered, worked out another way."""
    out: dict = {}
    for name, shard in {(name, shard) for name, shard, _ in writes if shard}:
        out.setdefault(name, {})[shard] = max(at for one, number, at in writes if (one, number) == (name, shard))
    return out


@given(WRITES, WRITES)
@settings(max_examples=100, deadline=None)
def test_the_furthest_of_each_shard_is_remembered_and_handed_on(mine: list, theirs: list) -> None:
    memory, other = Positions(), Positions()
    for write in mine:
        wrote(memory, *write)
    for write in theirs:
        wrote(other, *write)
    assert {name: dict(memory.of(name)) for name in furthest(mine)} == furthest(mine)
    memory.use(other.token())
    both = furthest(mine + theirs)
    assert {name: dict(memory.of(name)) for name in both} == both
    fresh = Positions()
    fresh.use(memory.token())
    assert {name: dict(fresh.of(name)) for name in both} == both
    some = Positions()
    some.use(memory.token(["docs", "unheard"]))
    assert dict(some.of("docs")) == both.get("docs", {})
    assert some.of("logs") == ()


def test_reads_ask_for_no_more_than_they_need() -> None:
    memory = Positions()
    call = Call(12.0, request_id="r")
    assert memory.call("docs", None, None) is None, "nothing written: nothing to wait for, and nothing to say"
    assert memory.call("docs", call, None) is call
    wrote(memory, "docs", 0, 7)
    assert memory.call("docs", None, None) is None, "shard 0 is a node alone"
    wrote(memory, "docs", 3, 7)
    assert memory.call("logs", None, None) is None
    made = memory.call("docs", None, None)
    assert made is not None
    assert (made.consistency, made.session, made.deadline) == (Consistency.SESSION, ((3, 7),), None)
    own = memory.call("docs", call, None)
    assert own is not None
    assert (own.deadline, own.request_id, own.session) == (12.0, "r", ((3, 7),))
    assert own.stop is call.stop, "who ends the one ends the other"
    assert (call.consistency, call.session) == (Consistency.EVENTUAL, ())
    assert memory.call("docs", call, Consistency.EVENTUAL) is call
    strongest = memory.call("docs", None, Consistency.LINEARIZABLE)
    assert strongest is not None
    assert (strongest.consistency, strongest.session) == (Consistency.LINEARIZABLE, ((3, 0),)), "which shard is meant"
    memory.dropped("docs", memory.of("docs"))
    strongest = memory.call("docs", None, Consistency.LINEARIZABLE)
    assert strongest is not None
    assert strongest.session == ((3, GONE),)
    eventual = Positions(Consistency.EVENTUAL)
    wrote(eventual, "docs", 3, 7)
    assert eventual.call("docs", None, None) is None
    asked = eventual.call("docs", None, Consistency.SESSION)
    assert asked is not None
    assert asked.session == ((3, 7),)


def test_of_a_collection_that_is_gone_a_place_is_remembered_that_nobody_comes_to() -> None:
    memory = Positions()
    memory.dropped("docs", memory.of("docs"))
    assert memory.call("docs", None, None) is None, "nothing was written, so nothing is known of it"
    wrote(memory, "docs", 2, 9)
    wrote(memory, "docs", 3, 7)
    known = memory.of("docs")
    wrote(memory, "docs", 3, 8)  # acknowledged before it was dropped, heard of while it was
    wrote(memory, "docs", 5, 1)  # another thread has made it anew, and written to it
    memory.dropped("docs", known)
    assert memory.of("docs") == ((3, GONE), (5, 1))
    wrote(memory, "docs", 3, 8)
    assert memory.of("docs") == ((3, GONE), (5, 1)), "late news of what is gone"
    memory.dropped("docs", memory.of("docs"))
    assert memory.of("docs") == ((5, GONE),)
    other = Positions()
    other.use(memory.token())
    assert other.of("docs") == ((5, GONE),)


def test_what_was_dropped_is_let_go_of_first_and_missed_by_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(positions, "MOST_COLLECTIONS", 3)
    memory = Positions()
    wrote(memory, "kept", 1, 5)
    for number in range(2, 12):
        wrote(memory, f"c{number}", number, 5)
        memory.dropped(f"c{number}", memory.of(f"c{number}"))
    assert memory.of("kept") == ((1, 5),)
    assert memory.call("unheard", None, None) is None


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(positions, "MOST_COLLECTIONS", 3)
    memory = Positions()
    for number, name in enumerate(["a", "b", "c", "a", "d"], 1):
        wrote(memory, name, number, 5)
    assert memory.of("b") == (), "the one not written for longest"
    assert memory.of("a") == ((1, 5), (4, 5))
    lost = memory.call("b", None, None)
    assert lost is not None
    assert lost.consistency is Consistency.LINEARIZABLE, "what was forgotten is found nevertheless"
    assert memory.call("b", None, Consistency.EVENTUAL) is None
    for shard in range(1, MAX_POSITIONS + 10):
        wrote(memory, "many", shard, 1)
    kept = memory.of("many")
    assert (len(kept), kept[0], kept[-1]) == (MAX_POSITIONS, (10, 1), (MAX_POSITIONS + 9, 1))


def test_many_threads_lose_nothing() -> None:
    memory, short = Positions(), threading.Event()
    gaps: list = []

    def write(first: int) -> None:
        for at in range(first, 4_000, 4):
            wrote(memory, f"c{at % 7}", 1 + at % 3, at)

    def read() -> None:
        known = 0
        while not short.is_set():
            now = dict(memory.of("c1")).get(2, 0)
            if now < known:
                gaps.append((known, now))
            known = now

    wrote(memory, "c1", 2, 1)
    reader = threading.Thread(target=read)
    reader.start()
    writers = [threading.Thread(target=write, args=(first,)) for first in range(4)]
    for one in writers:
        one.start()
    for one in writers:
        one.join()
    short.set()
    reader.join()
    assert gaps == [], "what was remembered is never gone for a moment"
    expected = furthest([(f"c{at % 7}", 1 + at % 3, at) for at in range(1, 4_000)])
    assert {name: dict(memory.of(name)) for name in expected} == expected


def coded(value: object) -> str:
    return "vecdb1." + base64.urlsafe_b64encode(orjson.dumps(value)).decode().rstrip("=")


@pytest.mark.parametrize("token", [
    None, 7, b"vecdb1.e30", "", "e30", "vecdb2.e30", "vecdb1.!", "vecdb1.e3", "vecdb1.\xe4", coded([]), coded("x"),
    coded({"docs": 7}), coded({"docs": [[1]]}), coded({"docs": [[1, 2, 3]]}), coded({"docs": [["1", 2]]}),
    coded({"docs": [[1, True]]}), coded({"docs": [[1, -1]]}), coded({"docs": [[1, 2**63]]}), coded({"no name!": []}),
    coded({"docs": None}), coded({"docs": [[1, 2.0]]}), coded({"docs": {"1": 2}})])
def test_what_is_no_token_is_refused_and_changes_nothing(token: object) -> None:
    memory = Positions()
    wrote(memory, "docs", 3, 7)
    with pytest.raises(InvalidArgument) as info:
        memory.use(token)
    assert info.value.argument == "session_token"
    assert memory.of("docs") == ((3, 7),)


def test_a_token_has_a_longest_form() -> None:
    with pytest.raises(LimitExceeded, match="session_token"):
        Positions().use("vecdb1." + "e" * positions.MAX_TOKEN)


def several(memory: Positions, name: str, pairs: list[tuple[int, int]]) -> None:
    memory.saw(name, WriteResult(positions=tuple(pairs)))


def refused(token: str) -> list[str]:
    """The argument that is refused, or nothing."""
    try:
        Positions().use(token)
    except InvalidArgument as error:
        return [error.argument]
    return []


PLACES = st.dictionaries(st.integers(1, 2**63 - 1), st.integers(0, 2**63 - 1), min_size=2, max_size=40)


@given(st.dictionaries(NAMES, PLACES, min_size=1))
@settings(max_examples=100, deadline=None)
def test_a_token_of_many_shards_says_all_of_them(known: dict) -> None:
    memory, fresh = Positions(), Positions()
    for name, places in known.items():
        several(memory, name, list(places.items()))
    token = memory.token()
    assert token.startswith("vecdb2.")
    fresh.use(token)
    assert {name: dict(fresh.of(name)) for name in known} == known
    assert {argument for end in range(8, len(token)) for argument in refused(token[:end])} <= {"session_token"}


def test_tokens_of_many_shards_are_short() -> None:
    memory = Positions()
    several(memory, "docs", [(number, 10_000 + number) for number in range(1_000, 2_000)])
    assert len(memory.token()) < 1_000 * 4 * 4 / 3 + 100


def test_a_token_that_would_be_too_long_says_that_it_leaves_something_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(positions, "_BYTES", 400)
    memory, fresh = Positions(), Positions()
    for number in range(40):
        several(memory, f"c{number}", [(3 * number + at, 2**40) for at in (1, 2, 3)])
    fresh.use(memory.token())
    assert fresh.of("c39"), "the last one written to"
    assert fresh.of("c0") == ()
    lost = fresh.call("c0", None, None)
    assert lost is not None
    assert lost.consistency is Consistency.LINEARIZABLE, "what was left out is found nevertheless"
    other = Positions()
    other.use(fresh.token(["c39"]))
    assert other.call("c0", None, None) is not None, "who goes on from there knows no more"


@given(st.binary(max_size=60))
@settings(max_examples=200, deadline=None)
def test_any_bytes_are_a_close_token_or_refused(raw: bytes) -> None:
    assert refused("vecdb2." + base64.urlsafe_b64encode(raw).decode().rstrip("=")) in ([], ["session_token"])


@given(st.text(max_size=60))
@settings(max_examples=200, deadline=None)
def test_any_text_is_a_token_or_refused(text: str) -> None:
    arguments = []
    for token in (text, "vecdb1." + text):
        try:
            Positions().use(token)
        except InvalidArgument as error:
            arguments.append(error.argument)
    assert set(arguments) <= {"session_token"}
