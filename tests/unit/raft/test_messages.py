"""The codec: what is written is read, and nothing else is believed."""

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vecdb.core.errors import InvalidArgument
from vecdb.ports.replicator import SnapshotFile
from vecdb.raft.membership import Change, Configuration, check_replica, promoted
from vecdb.raft.messages import (
    MAX_TERM,
    Append,
    Appended,
    Chunk,
    Entry,
    Envelope,
    Fetch,
    Gone,
    Malformed,
    Offer,
    PreVote,
    PreVoted,
    TimeoutNow,
    Vote,
    Voted,
    decode,
    encode,
    encode_frame,
    split_frame,
)

U64, U32, TERMS = st.integers(0, 2**63), st.integers(0, 2**32 - 1), st.integers(0, MAX_TERM)
NODES = st.text("abcö-.", min_size=1, max_size=8)


@st.composite
def appends(draw):
    prev, prev_term = draw(st.integers(0, 2**40)), draw(st.integers(0, 9))
    terms = sorted(draw(st.lists(st.integers(prev_term, 20), max_size=5)))
    entries = tuple(Entry(b"\x40" + draw(st.binary(max_size=40)), prev + 1 + at, term)
                    for at, term in enumerate(terms))
    return Append(draw(st.integers(20, 2**40)), draw(U64), prev, prev_term, draw(U64), entries)


@st.composite
def configurations(draw):
    names = draw(st.lists(st.builds("{}/{}".format, NODES, U32), max_size=6, unique=True))
    kinds = draw(st.lists(st.integers(0, 2), min_size=len(names), max_size=len(names)))
    return Configuration.of(*([name for name, kind in zip(names, kinds, strict=True) if kind == of] for of in range(3)))


FILES = st.lists(st.builds(SnapshotFile, st.text(min_size=1, max_size=20), U64, U64), max_size=4).map(tuple)
MESSAGES = st.one_of(
    appends(), st.builds(Appended, TERMS, U64, st.booleans(), U64, U64), st.builds(PreVote, TERMS, U64, U64),
    st.builds(PreVoted, TERMS, st.booleans(), U64), st.builds(Vote, TERMS, U64, U64, st.booleans()),
    st.builds(Voted, TERMS, st.booleans()), st.builds(TimeoutNow, TERMS),
    st.builds(Offer, TERMS, U64, U64, U64, U64, configurations(), FILES),
    st.builds(Fetch, TERMS, U64, U32, U64, st.integers(0, 1 << 22)),
    st.builds(Chunk, TERMS, U64, U32, U64, st.booleans(), st.binary(max_size=60)), st.builds(Gone, TERMS, U32))
ENVELOPES = st.builds(Envelope, U64, U32, U32, MESSAGES)


@given(st.lists(ENVELOPES, max_size=4))
def test_what_is_written_is_read(envelopes):
    frame = encode_frame([encode(one) for one in envelopes])
    assert [decode(data) for data in split_frame(frame)] == envelopes


@given(ENVELOPES, st.randoms(use_true_random=False))
def test_bytes_that_nobody_sends_are_malformed_and_nothing_else(envelope, random):
    data = bytearray(encode(envelope))
    for _ in range(random.randint(1, 4)):
        what = random.randrange(3)
        if what == 0:
            data[random.randrange(len(data))] = random.randrange(256)
        elif what == 1:
            del data[random.randrange(len(data)):]
        else:
            data += random.randbytes(random.randrange(1, 9))
        if not data:
            break
    try:
        again = decode(bytes(data))
    except Malformed:
        return
    assert encode(again)


@given(st.integers(MAX_TERM + 1, 2**64 - 1))
def test_a_term_that_no_group_comes_to_is_malformed(term):
    """Who took it could have none behind it, and would fail at its next election."""
    with pytest.raises(Malformed):
        decode(encode(Envelope(1, 1, 1, TimeoutNow(term))))


@given(st.binary(max_size=200))
def test_noise_is_malformed(noise):
    with pytest.raises(Malformed):
        decode(noise[:1] + b"\xff" + noise)
    with pytest.raises(Malformed):
        list(split_frame(b"x" * 8 + noise))


def test_a_frame_with_any_bit_flipped_is_malformed():
    frame = encode_frame([encode(Envelope(1, 1, 2, Append(3, 0, 5, 2, 4, (Entry(b"\x40abc", 6, 3),))))])
    for at in range(len(frame) * 8):
        flipped = bytearray(frame)
        flipped[at // 8] ^= 1 << at % 8
        with pytest.raises(Malformed):
            list(split_frame(bytes(flipped)))


@pytest.mark.parametrize("entries", [
    (Entry(b"\x40", 7, 2),), (Entry(b"\x40", 6, 1),), (Entry(b"\x40", 6, 4),), (Entry(b"", 6, 2),),
    (Entry(b"\x40", 6, 3), Entry(b"\x40", 7, 2)), (Entry(b"\x02pickle", 6, 3),), (Entry(b"\x41nonsense", 6, 3),),
    (Entry(b"\x41" + b"\x01\x02" + b"\x00\x01\x00\x00\x00\x01a" * 2, 6, 3),)])
def test_entries_out_of_order_or_of_no_known_kind_are_malformed(entries):
    with pytest.raises(Malformed):
        decode(encode(Envelope(1, 1, 1, Append(3, 0, 5, 2, 0, entries))))


def test_lengths_are_checked_before_they_are_believed():
    data = bytearray(encode(Envelope(1, 1, 1, Append(3, 0, 5, 2, 0, ()))))
    data[-4:] = (2**32 - 1).to_bytes(4, "little")
    with pytest.raises(Malformed):
        decode(bytes(data))


@given(configurations())
def test_configurations_are_read_as_written(configuration):
    assert Configuration.from_bytes(configuration.to_bytes()) == configuration


@given(st.binary(max_size=60))
def test_other_bytes_are_no_configuration(noise):
    try:
        found = Configuration.from_bytes(noise)
    except (ValueError, InvalidArgument):
        return
    assert Configuration.from_bytes(found.to_bytes()) == found


@pytest.mark.parametrize("name", ["", "n1", "/1", "n1/", "n1/x", "n1/-1", "n1/01", f"n1/{2**32}", "n" * 65 + "/1"])
def test_names_that_are_no_replica(name):
    with pytest.raises(InvalidArgument):
        check_replica(name)


def test_any_two_majorities_of_neighbouring_configurations_meet():
    random = Random(3)
    now = Configuration.of(["a/1", "b/1", "c/1"])
    for number in range(300):
        change = random.choice([Change(add=f"n{number}/1"), Change(remove=random.choice(now.everybody)),
                                Change(add=f"n{number}/1", remove=random.choice(now.everybody))])
        try:
            after = change.applied_to(now)
        except InvalidArgument:
            continue
        if after.joining and random.random() < 0.5:
            after = promoted(now, random.choice(now.joining)) if now.joining else after
        together = set(now.voters) | set(after.voters)
        assert now.quorum + after.quorum > len(together)
        now = after
    assert now.voters
