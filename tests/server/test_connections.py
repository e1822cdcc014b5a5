"""Connections that do nothing, half of something or nonsense, and readers that stop reading."""

import socket
import urllib.request

import grpc
import numpy as np
import pytest

from tests.server.nodes import OPTIONS, Node, node, query, until, vectors
from vecdb.v1 import queries_pb2

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
EMPTY_SETTINGS = b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"
OPENINGS = {
    "nothing": b"",
    "half a preface": PREFACE[:11],
    "a preface and half a frame": PREFACE + b"\x00\x40\x00\x01",
    "noise": bytes(range(256)) * 8,
    "HTTP/1.1": b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    "a TLS greeting": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(64),
    "a frame larger than allowed": PREFACE + EMPTY_SETTINGS + b"\xff\xff\xff\x00\x00\x00\x00\x00\x01",
    "a stream number out of order": PREFACE + EMPTY_SETTINGS + b"\x00\x00\x04\x08\x00\x00\x00\x00\x09\x00\x00\x00\x00",
}
IDLE = 300


@pytest.fixture(scope="module")
def standing(tmp_path_factory):
    with node(tmp_path_factory.mktemp("connections")) as one:
        one.create("docs")
        one.upsert("docs", np.arange(3_000), vectors(3_000, 1))
        yield one
        assert one.running
        assert "Traceback" not in one.words()


def still_answers(one: Node) -> None:
    """On a connection of its own, as somebody who has just come."""
    with grpc.insecure_channel(one.target, OPTIONS) as channel:
        raw = channel.unary_unary("/vecdb.v1.Queries/Query")(query("docs", vectors(1, 2), k=5).SerializeToString(),
                                                             timeout=30)
    assert list(queries_pb2.QueryReply.FromString(raw).counts) == [5]
    with urllib.request.urlopen(f"http://127.0.0.1:{one.http_port}/readyz", timeout=30) as answer:
        assert answer.status == 200


def connect(port: int, words: bytes) -> socket.socket:
    made = socket.create_connection(("127.0.0.1", port), timeout=10)
    if words:
        try:
            made.sendall(words)
        except OSError:  # it has hung up already, and may
            made.settimeout(0.1)
    return made


@pytest.mark.parametrize("what", OPENINGS)
def test_half_open_connections_keep_nobody_out_and_leave_nothing(standing: Node, what: str) -> None:
    still_answers(standing)
    before = standing.descriptors()
    open_ones = [connect(port, OPENINGS[what]) for port in (standing.port, standing.http_port) for _ in range(20)]
    try:
        still_answers(standing)
    finally:
        for one in open_ones:
            one.close()
    assert until(lambda: standing.descriptors() <= before + 4), (before, standing.descriptors())
    still_answers(standing)


def test_hundreds_of_idle_connections_cost_little_and_are_let_go(standing: Node) -> None:
    still_answers(standing)
    before, memory = standing.descriptors(), standing.rss()
    idle = [connect(standing.port, PREFACE + EMPTY_SETTINGS) for _ in range(IDLE)]
    try:
        assert until(lambda: standing.descriptors() >= before + IDLE - 5), standing.descriptors()
        still_answers(standing)
        assert standing.rss() - memory < IDLE * (256 << 10)
    finally:
        for one in idle:
            one.close()
    assert until(lambda: standing.descriptors() <= before + 4), (before, standing.descriptors())


def test_connections_of_http_that_do_nothing_keep_nobody_out(tmp_path) -> None:
    with node(tmp_path / "few", limits__connections=16) as one:
        idle = [connect(one.http_port, b"") for _ in range(40)]
        try:
            assert one.about()["queued_queries"] == 0
            with urllib.request.urlopen(f"http://127.0.0.1:{one.http_port}/healthz", timeout=30) as answer:
                assert answer.status == 200
        finally:
            for held in idle:
                held.close()


def test_a_stream_whose_reader_stops_holds_little_and_hinders_nobody(standing: Node) -> None:
    """More answers than fit into any window of the network: the node reads no more of that stream's queries."""
    count, rows = 4_000, 64
    asked = [query("docs", vectors(rows, 3), k=100, tag=tag + 1).SerializeToString() for tag in range(4)]
    taken = 0

    def questions():
        nonlocal taken
        for number in range(count):
            taken = number
            yield asked[number % len(asked)]

    before = standing.rss()
    with grpc.insecure_channel(standing.target, OPTIONS) as channel:
        replies = channel.stream_stream("/vecdb.v1.Queries/QueryStream")(questions(), timeout=120)
        first = queries_pb2.QueryReply.FromString(next(replies))
        assert first.counts[0] == 100
        steady: list[int] = []

        def stopped() -> bool:
            steady.append(taken)
            return len(steady) > 25 and steady[-1] == steady[-20]

        assert until(stopped), "the node goes on reading"
        assert taken < count - 1, "everything fits: this test tests nothing"
        still_answers(standing)
        assert standing.rss() - before < 192 << 20
        answered = 1 + sum(1 for _ in zip(range(600), replies, strict=False))
        assert answered == 601, "a reader that goes on reads on"
        replies.cancel()
    assert until(lambda: standing.about()["queued_queries"] == 0)
    still_answers(standing)


def test_a_client_that_goes_away_in_the_middle_frees_its_work(standing: Node) -> None:
    for _ in range(20):
        with grpc.insecure_channel(standing.target, OPTIONS) as channel:
            call = channel.unary_unary("/vecdb.v1.Queries/Query")
            futures = [call.future(query("docs", vectors(400, 5), k=50, exact=True).SerializeToString(), timeout=30)
                       for _ in range(4)]
            for future in futures[:2]:
                future.cancel()
    assert until(lambda: standing.about()["queued_queries"] == 0 and standing.about()["running_batches"] == 0)
    still_answers(standing)
