"""Sessions, tokens and ``vecdb shard`` over three real nodes."""

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import vecdb
from tests.replicated_nodes import NAMES, Together, wait_for
from vecdb.cli import main
from vecdb.core.errors import InvalidArgument

ROUNDS = 60


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Together]:
    made = Together(tmp_path_factory.mktemp("sessions"))
    yield made
    made.stop()


@pytest.fixture(scope="module")
def docs(nodes: Together) -> Iterator[Any]:
    with vecdb.connect(nodes.url) as db:
        yield db.create_collection("docs", dim=4, metric="l2")


def row(number: int) -> np.ndarray:
    return np.full((1, 4), number, np.float32)


def test_whoever_writes_finds_it_wherever_he_asks(docs: Any) -> None:
    """Calls take turns on the nodes, so a read comes to another one than the write before it."""
    docs.upsert(ids=[0], vectors=row(0))
    for number in range(1, ROUNDS):
        written = docs.upsert(ids=[number], vectors=row(number))
        assert written.shard >= 1
        assert docs.query([number] * 4, k=1).ids == [number]
        assert docs.get(number) is not None
        docs.update_metadata(ids=[number], metadata={"n": number})
        assert docs.count(filter=f"n == {number}") == 1
        assert docs.delete(ids=[number - 1]).deleted == 1
        assert [record.id for record in docs.scan()] == [number]


def test_a_token_lets_another_see_it_at_another_node(nodes: Together, docs: Any) -> None:
    urls = [f"grpc://127.0.0.1:{one['grpc_port']}" for one in nodes.addresses]
    with vecdb.connect(urls[0]) as mine, vecdb.connect(urls[1]) as first, \
            vecdb.connect(urls[2], consistency="eventual") as second:
        writer = mine.collection("docs")
        for number in range(1_000, 1_000 + ROUNDS):
            writer.upsert(ids=[number], vectors=row(number))
            token = mine.session_token("docs")
            for other, level in ((first, None), (second, "session")):
                other.use_session_token(token)
                assert other.collection("docs").get(number, consistency=level) is not None
            assert second.collection("docs").get(number, consistency="linearizable") is not None


def test_many_at_once_find_what_they_wrote(docs: Any) -> None:
    from concurrent.futures import ThreadPoolExecutor

    def work(first: int) -> int:
        found = 0
        for number in range(first, first + 20):
            docs.upsert(ids=[number], vectors=row(number))
            found += docs.query([number] * 4, k=1).ids == [number]
        return found

    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(work, range(10_000, 10_160, 20))) == [20] * 8


def test_shards_by_the_command_line(nodes: Together, docs: Any, capsys: pytest.CaptureFixture[str]) -> None:
    def ran(*argv: str) -> tuple[int, Any]:
        capsys.readouterr()
        code = main(["shard", *argv, "--url", nodes.url, "--json"])
        said = capsys.readouterr()
        return code, json.loads(said.out or said.err)

    wait_for(lambda: ran("status")[0] == 0, "health")
    code, told = ran("list")
    assert code == 0
    control, shard = told["shards"]
    assert (control["collection"], shard["collection"], shard["healthy"]) == ("", "docs", True)
    assert [one["node"] for one in shard["replicas"]] == list(NAMES)
    for deep in ((), ("--deep",)):
        code, told = ran("verify", *deep)
        assert (code, told["agree"], told["complete"]) == (0, True, True)
        (found,) = told["shards"]
        assert len({one["digest"] for one in found["replicas"]}) == 1
        assert all((one["deep"] == one["digest"]) if deep else not one["deep"] for one in found["replicas"])
    follower = next(one["node"] for one in shard["replicas"] if one["role"] == "follower")

    def leads() -> bool:
        """It was given the shard; if another was elected meanwhile, it is given it again."""
        return ran("transfer-leader", "docs", "--to", follower, "--yes")[0] == 0 and \
            str(ran("list")[1]["shards"][1]["leader"]).partition("/")[0] == follower

    wait_for(leads, f"{follower} to lead")
    code, told = ran("show", "docs")
    assert (code, told["range"], told["digests"]["agree"]) == (0, {"first": 0, "last": (1 << 64) - 1}, True)
    assert ran("transfer-leader", "docs", "--to", "n9", "--yes")[0] == 2
    assert ran("verify", "nope")[0] == 3
    with vecdb.connect(nodes.url) as db, pytest.raises(InvalidArgument):
        db.admin.transfer_leader("docs", "n9")
