"""What three nodes may be like besides: secured, with front processes, with directories that are not theirs."""

import asyncio
from pathlib import Path

import numpy as np
import pytest

import vecdb
from tests.replicated_nodes import Together, agreed, settings_of, wait_for
from vecdb.app import open_embedded
from vecdb.config import Settings
from vecdb.core.errors import DataCorrupted, FormatMismatch, InvalidArgument
from vecdb.rpc.peer_certificates import issue
from vecdb.serving.cluster import CONDEMNED
from vecdb.serving.compose import Running, start


def test_nodes_with_certificates_and_one_with_front_processes(tmp_path: Path) -> None:
    place = tmp_path / "certificates"
    issue(place, "tests", ["n1", "n2", "n3"])

    def secured(made: Settings) -> Settings:
        name = made.server.node_id
        files = {"cert_file": place / f"{name}.pem", "key_file": place / f"{name}.key", "ca_file": place / "ca.pem"}
        server = made.server.model_copy(update={"processes": 2 if name == "n1" else 1})
        return made.model_copy(update={"cluster": made.cluster.model_copy(update=files), "server": server})

    nodes = Together(tmp_path, settings=secured)
    try:
        for at, address in enumerate(nodes.addresses):
            with vecdb.connect(f"grpc://127.0.0.1:{address['grpc_port']}") as db:
                docs = db.get_or_create_collection("docs", dim=4, metric="l2")
                assert docs.upsert(ids=[at], vectors=np.full((1, 4), at)).inserted == 1
                assert docs.count(consistency="linearizable") == at + 1
                assert docs.query(np.full(4, at), k=1)[0].id == at
        with vecdb.connect(nodes.url) as db:
            shards = db.admin.shards()
            assert [one.collection for one in shards] == ["", "docs"]
            assert all(one.leader for one in shards)
            agreed(db, "docs", deep=False)
    finally:
        nodes.stop()


def test_a_certificate_of_another_node_is_refused(tmp_path: Path) -> None:
    issue(tmp_path, "tests", ["n1", "n2"])
    made = settings_of(tmp_path)[0]
    files = {"cert_file": tmp_path / "n2.pem", "key_file": tmp_path / "n2.key", "ca_file": tmp_path / "ca.pem"}
    wrong = made.model_copy(update={"cluster": made.cluster.model_copy(update=files)})
    with pytest.raises(InvalidArgument, match=r"cluster\.cert_file: .* is no certificate of this node"):
        asyncio.run(start(wrong))


def test_a_directory_is_of_one_node_of_one_cluster(tmp_path: Path) -> None:
    nodes = Together(tmp_path)
    nodes.stop()
    made, other, _ = settings_of(tmp_path)
    with pytest.raises(FormatMismatch, match="of node 'n1' of cluster 'tests', and the settings are of node 'n2'"):
        asyncio.run(start(other.model_copy(update={"data_dir": made.data_dir})))
    renamed = made.cluster.model_copy(update={"name": "another"})
    with pytest.raises(FormatMismatch, match="and the settings are of node 'n1' of cluster 'another'"):
        asyncio.run(start(made.model_copy(update={"cluster": renamed})))
    for read_only in (False, True):
        with pytest.raises(FormatMismatch, match="is of node 'n1' of the cluster 'tests': start it with vecdb serve"):
            vecdb.connect(made.data_dir, read_only=read_only)


@pytest.mark.parametrize("left", ["", "te", "tests", "tests ", "tests n", "tests \0\0\n"])
def test_a_damaged_name_of_the_cluster_is_named_and_says_nothing(tmp_path: Path, left: str) -> None:
    made = settings_of(tmp_path)[0]
    open_embedded(made.data_dir, replicated=True).close()
    named = made.data_dir / "cluster.id"
    named.write_text("tests n1\n")
    open_embedded(made.data_dir, replicated=True).close()
    named.write_text(left)
    for open_it in (lambda: asyncio.run(start(made)), lambda: vecdb.connect(made.data_dir),
                    lambda: vecdb.connect(made.data_dir, read_only=True)):
        with pytest.raises(DataCorrupted, match=r"cluster\.id is damaged: .*'prod n1', and holds") as refused:
            open_it()
        assert refused.value.fields["path"] == str(named)
    assert named.read_text() == left


def test_a_node_that_was_alone_does_not_become_one_of_a_cluster_with_its_records(tmp_path: Path) -> None:
    made = settings_of(tmp_path)[0]
    with vecdb.connect(made.data_dir) as db:
        db.create_collection("mine", dim=2).upsert(ids=[1], vectors=[[1, 0]])
    with pytest.raises(FormatMismatch, match="holds collections of its own, which no cluster knows"):
        asyncio.run(start(made))
    with vecdb.connect(made.data_dir) as db:
        assert db.collection("mine").count() == 1


@pytest.mark.parametrize("found", ["when they are opened", "when they are written to"])
def test_logs_that_are_damaged_as_a_whole_are_set_aside_and_the_node_joins_anew(tmp_path: Path, found: str) -> None:
    """RocksDB opens with a damaged table and refuses every write once it rewrites it, at every start again."""
    ports = settings_of(tmp_path)
    by_name = {one.server.node_id: one for one in ports}
    nodes = Together(tmp_path, settings=lambda made: by_name[made.server.node_id])
    with vecdb.connect(nodes.url) as db:
        db.create_collection("docs", dim=2).upsert(ids=[1], vectors=[[1, 0]])
    if found == "when they are written to":
        nodes.in_loop(_break_logs(nodes.running[1]))
    nodes.stop()
    if found == "when they are opened":
        for manifest in (tmp_path / "n2" / "raft").glob("MANIFEST-*"):
            manifest.write_bytes(b"no manifest")
    nodes = Together(tmp_path, settings=lambda made: by_name[made.server.node_id])
    try:
        assert (tmp_path / "n2" / "raft.damaged-1").is_dir()
        assert not (tmp_path / "n2" / CONDEMNED).exists()
        with vecdb.connect(nodes.url) as db:
            docs = db.collection("docs")
            assert docs.count(consistency="linearizable") == 1
            docs.upsert(ids=[2], vectors=[[0, 1]])
            wait_for_all(db)
            agreed(db, "docs")
    finally:
        nodes.stop()


async def _break_logs(running: Running) -> None:
    assert running._member is not None
    running._member.driver.fail(DataCorrupted("a table is damaged", path="raft"))
    await running.failed()


def wait_for_all(db: vecdb.Database) -> None:
    wait_for(lambda: all(len(shard.replicas) == 3 and all(
        one.state == "ok" and one.lag == 0 and one.role != "learner" for one in shard.replicas)
        for shard in db.admin.shards()), "all replicas well")
