"""Hostile bytes as messages of frames and as greetings: what is not refused is what protobuf would have read.

Every run draws the same inputs, so that a failure here is one everywhere.
"""

import contextlib
import random
import string

import pytest
from google.protobuf.message import DecodeError
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from vecdb.internal.v1 import raft_pb2
from vecdb.raft.messages import Malformed, split_frame
from vecdb.rpc import frames_codec
from vecdb.rpc.frames_codec import BadFrames, Gathering, join, split
from vecdb.rpc.peer_names import MAX_AGENT_BYTES, Greeting, certificate_name, certified

QUIET = settings(max_examples=300, deadline=None, derandomize=True, database=None,
                 suppress_health_check=list(HealthCheck))
FRAMES = st.lists(st.binary(max_size=300), max_size=8)
LABELS = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", fullmatch=True)


@QUIET
@given(FRAMES, st.booleans())
def test_what_is_written_by_hand_is_what_protobuf_writes(frames, more):
    more = more and bool(frames)
    message = raft_pb2.Frames(frames=frames, more=more).SerializeToString(deterministic=True)
    assert join(frames, more) == message
    assert split(message) == (frames, more)


@QUIET
@given(st.one_of(st.binary(max_size=200), st.lists(st.sampled_from([
    b"\x0a", b"\x10\x01", b"\x10\x00", b"\x01", b"\x80", b"\xff" * 5, b"\x7f", b"\x1a\x02ab", b"\x0b", b"\x0c", b"abc",
]), max_size=12).map(b"".join)))
@example(b"\x0a\x80\x80\x80\x80\x00")
@example(b"\x0a\x01a\x10\x01\x0a\x01b")
@example(b"\x10\x01\x0a\x01b")
@example(b"\x0a\x80\x00")
def test_what_is_read_by_hand_is_what_protobuf_reads(message):
    try:
        read = raft_pb2.Frames.FromString(message)
    except DecodeError:
        with pytest.raises(BadFrames):
            split(message)
        return
    if read.more and not read.frames:
        with pytest.raises(BadFrames):
            split(message)
    else:
        assert split(message) == (list(read.frames), read.more)


@QUIET
@given(st.lists(st.one_of(st.binary(max_size=60), st.builds(join, FRAMES, st.booleans())), max_size=12))
def test_a_stream_of_anything_is_frames_or_refused_and_keeps_nothing_it_should_not(messages):
    gathering = Gathering()
    for message in messages:
        try:
            frames = gathering.take(message)
        except BadFrames:
            assert gathering._pieces == []
            continue
        for frame in frames:
            with contextlib.suppress(Malformed):
                list(split_frame(frame))
    assert sum(map(len, gathering._pieces)) == gathering._bytes <= sum(map(len, messages))
    assert gathering.take(join([b"end", b"good"]))[-1] == b"good"


@QUIET
@given(st.lists(st.binary(max_size=40), min_size=1, max_size=10), st.integers(0, 1 << 32))
def test_frames_in_pieces_become_what_they_were(frames, seed):
    """Cut anywhere, with others before and behind in the same messages."""
    chance = random.Random(seed)
    gathering, came, pieces = Gathering(), [], []
    for frame in frames:
        while len(frame) and chance.random() < 0.5:
            at = chance.randrange(len(frame) + 1)
            pieces.append(frame[:at])
            came += gathering.take(join(pieces, more=True))
            pieces, frame = [], frame[at:]
        pieces.append(frame)
        if chance.random() < 0.3:
            came += gathering.take(join(pieces))
            pieces = []
    assert came + gathering.take(join(pieces)) == frames


def test_a_frame_without_end_is_given_up(monkeypatch):
    monkeypatch.setattr(frames_codec, "MAX_FRAME_BYTES", 1_000)
    monkeypatch.setattr(frames_codec, "MAX_FRAMES", 50)
    gathering = Gathering()
    assert gathering.take(join([b"x" * 1_000])) == [b"x" * 1_000]
    with pytest.raises(BadFrames, match="1001 bytes"):
        gathering.take(join([b"x" * 1_001]))
    assert gathering.take(join([b"x" * 999], more=True)) == []
    with pytest.raises(BadFrames, match="in 2 pieces"):
        gathering.take(join([b"xx"], more=True))
    for _ in range(50):
        assert gathering.take(join([b""], more=True)) == []
    with pytest.raises(BadFrames, match="in 51 pieces"):
        gathering.take(join([b""], more=True))
    with pytest.raises(BadFrames, match="more than 50 frames"):
        gathering.take(join([b""] * 51))
    with pytest.raises(BadFrames, match="more than 50 frames"):
        gathering.take(join([b""] * 51) + b"\x1a\x00")
    assert gathering.take(join([b"good"])) == [b"good"]


# --- greetings ----------------------------------------------------------------------------------------


@QUIET
@given(LABELS, LABELS, LABELS, st.integers(0, (1 << 64) - 1), st.integers(1, 99_999), st.sampled_from(
    ["", " grpc-python-asyncio/1.82.3 grpc-c/55.0.0 (linux; chttp2)"]))
def test_greetings_are_read_as_they_were_said(cluster, node, to, incarnation, protocol, behind):
    said = Greeting(cluster, node, to, incarnation, protocol)
    assert Greeting.read(said.agent() + behind) == said
    assert len(said.agent()) < MAX_AGENT_BYTES - 100


@QUIET
@given(st.one_of(st.text(max_size=600), st.text(string.printable, max_size=80).map(lambda text: f"vecdb-peer/1 {text}"),
                 st.lists(st.sampled_from(["vecdb-peer/1", " (", "n1", "; ", "prod", "a1", ")", "N", "-", "\n", " "]),
                          max_size=16).map("".join)))
@example("vecdb-peer/1 (prod; n1; n2; 7)\n")
@example("vecdb-peer/1 (prod; n1; n2; 7)x")
@example("vecdb-peer/١ (prod; n1; n2; 7)")
def test_other_agents_greet_nobody_or_say_the_same_again(agent):
    read = Greeting.read(agent)
    if read is not None:
        assert Greeting.read(read.agent()) == read
        assert agent.startswith(f"vecdb-peer/{read.protocol} ({read.cluster}; {read.node}; {read.to}; ")


@QUIET
@given(st.lists(st.one_of(st.text(max_size=40), st.builds(certificate_name, LABELS, LABELS)), max_size=6), LABELS)
def test_a_certificate_names_nodes_of_the_cluster_alone(names, cluster):
    for node in certified(names, cluster):
        assert certificate_name(node, cluster) in [name.lower() for name in names]
        assert "." not in node
