"""API keys and certificates through front processes, which know nothing of keys."""

import json
import subprocess
import sys
import threading
from pathlib import Path

import grpc
import numpy as np
import pytest
import trustme

import vecdb
from tests.server.fronts import WITH, ask, each, refused
from tests.server.nodes import OPTIONS, Node, node, query, until, upsert, vectors
from vecdb.core.errors import PermissionDenied, Unauthenticated, Unavailable
from vecdb.v1 import collections_pb2, queries_pb2, records_pb2


def vecdb_(*words: str) -> str:
    done = subprocess.run([sys.executable, "-m", "vecdb.cli", *words], capture_output=True, text=True, timeout=60,
                          check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def sent(secret: str) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {secret}"),)


def test_keys_are_asked_for_and_revoked_at_once(tmp_path: Path) -> None:
    with node(tmp_path / "keys", **WITH) as standing:
        standing.create("docs")
        standing.upsert("docs", np.arange(50), vectors(50, 1))
        url = ("--url", f"grpc://{standing.target}")
        admin = vecdb_("key", "create", "boss", "--role", "admin", *url)
        reader = json.loads(vecdb_("key", "create", "reader", "--role", "read", "--json", *url, "--api-key", admin,
                                   "--insecure"))
        asked, count = query("docs", vectors(1, 2), k=3), records_pb2.CountRequest(collection="docs")
        written = upsert("docs", np.arange(3), vectors(3, 3))
        calls = {"Queries/Query": asked, "Records/Count": count, "Records/Upsert": written,
                 "Queries/Query long": query("docs", vectors(400, 4), k=1)}
        with each(standing, metadata=sent(admin)) as channels:
            for channel in channels.values():
                for name, message in calls.items():
                    method = name.split()[0]
                    # Few wrong ones: after ten of an address none is looked at any more.
                    few = 2 if name in ("Queries/Query", "Records/Count") else 1
                    for metadata in ((), (("x-api-key", "vdb_wrong"),))[:few]:
                        error, typed = refused(lambda m=method, x=message, meta=metadata, c=channel: ask(
                            c, m, x, metadata=meta))
                        assert isinstance(typed, Unauthenticated), (name, metadata, error)
                    assert ask(channel, method, message, metadata=(("x-api-key", admin),))
                    two = (("authorization", "Basic eA=="), ("x-api-key", admin))
                    assert ask(channel, method, message, metadata=two), "a proxy's own authorization beside our key"
                    _, typed = refused(lambda m=method, x=message, c=channel: ask(
                        c, m, x, metadata=(*sent(admin), ("x-api-key", reader["secret"]))))
                    assert isinstance(typed, Unauthenticated), "two different keys"
                _, typed = refused(lambda c=channel: ask(c, "Records/Upsert", written, metadata=sent(reader["secret"])))
                assert isinstance(typed, PermissionDenied)
            over = threading.Event()
            wanted = threading.Semaphore(1)

            def questions():
                while not over.is_set():
                    wanted.acquire(timeout=30)
                    yield asked.SerializeToString()

            streams = [channel.stream_stream("/vecdb.v1.Queries/QueryStream")(
                questions(), metadata=sent(reader["secret"]), timeout=60) for channel in list(channels.values())[:1]]
            assert queries_pb2.QueryReply.FromString(next(streams[0])).counts == [3]
            for channel in channels.values():
                assert ask(channel, "Queries/Query", asked, metadata=sent(reader["secret"]))
            vecdb_("key", "revoke", reader["key"]["id"], *url, "--api-key", admin, "--insecure")
            for channel in channels.values():
                for name in ("Queries/Query", "Records/Count"):
                    _, typed = refused(lambda c=channel, n=name: ask(c, n, calls[n], metadata=sent(reader["secret"])))
                    assert isinstance(typed, Unauthenticated)
            wanted.release()
            error, typed = refused(lambda: next(streams[0]))
            over.set()
            assert isinstance(typed, Unauthenticated), f"a stream outlives its key: {error}"
            assert ask(next(iter(channels.values())), "Queries/Query", asked, metadata=sent(admin))
        with vecdb.connect(f"grpc://{standing.target}", api_key=admin, insecure=True) as database:
            assert len(database["docs"].query(vectors(1, 5)[0], k=4)) == 4
        assert "Traceback" not in standing.words()


class Files:
    """A node's certificate, key and clients' authority."""

    def __init__(self, place: Path) -> None:
        place.mkdir()
        self.place = place
        self.clients = trustme.CA()
        self.authority = trustme.CA()
        self.clients.cert_pem.write_to_path(str(place / "clients.pem"))
        self.issue()

    def issue(self) -> None:
        """A server's certificate of the authority as it is now, put where the old one was."""
        issued = self.authority.issue_cert("localhost", "127.0.0.1")
        for name, blobs in (("key.pem", [issued.private_key_pem]), ("cert.pem", issued.cert_chain_pems)):
            partial = self.place / (name + ".partial")
            partial.write_bytes(b"".join(blob.bytes() for blob in blobs))
            partial.chmod(0o600)
            partial.replace(self.place / name)

    def settings(self) -> dict[str, object]:
        return {"tls__cert_file": self.place / "cert.pem", "tls__key_file": self.place / "key.pem",
                "tls__client_ca_file": self.place / "clients.pem", "tls__reload_s": 0.2}


def secure(files: Files, issued: trustme.LeafCert | None) -> grpc.ChannelCredentials:
    return grpc.ssl_channel_credentials(
        files.authority.cert_pem.bytes(), issued and issued.private_key_pem.bytes(),
        issued and b"".join(blob.bytes() for blob in issued.cert_chain_pems))


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path / "pem")


def test_mutual_tls_names_reach_the_engine_and_certificates_change_in_every_front(tmp_path: Path, files: Files) -> None:
    mine = files.clients.issue_cert("reader.example", common_name="Zoë")
    stranger = trustme.CA().issue_cert("stranger.example")

    def list_with(standing: Node, issued: trustme.LeafCert | None) -> bytes:
        """A connection of its own: each has its own front."""
        with grpc.secure_channel(f"localhost:{standing.port}", secure(files, issued), OPTIONS) as channel:
            return ask(channel, "Collections/List", collections_pb2.ListCollectionsRequest(), timeout=10)

    with node(tmp_path / "node", **WITH, **files.settings()) as standing:
        assert list_with(standing, mine) == b""
        for wrong in (None, stranger):
            error, _ = refused(lambda issued=wrong: list_with(standing, issued))
            assert error.code() is grpc.StatusCode.UNAVAILABLE
        for name, blobs in (("mine.key", [mine.private_key_pem]), ("mine.pem", mine.cert_chain_pems),
                            ("ca.pem", [files.authority.cert_pem])):
            (files.place / name).write_bytes(b"".join(blob.bytes() for blob in blobs))
        with vecdb.connect(f"grpcs://localhost:{standing.port}", ca_file=files.place / "ca.pem",
                           cert_file=files.place / "mine.pem", key_file=files.place / "mine.key") as database:
            docs = database.create_collection("docs", dim=8)
            docs.upsert(np.arange(20), vectors(20, 1, 8))
            assert docs.query(vectors(1, 1, 8)[0], k=2).ids[0] == 0
        lines = [json.loads(line) for line in (standing.data / "audit.jsonl").read_text("utf-8").splitlines()]
        assert "reader.example" in json.dumps(lines[-1], ensure_ascii=False), lines[-1]
        old = files.authority
        files.authority = trustme.CA()
        files.issue()

        def everywhere() -> bool:
            """Of a dozen connections some are to each front, but for one in a thousand runs."""
            try:
                return all(list_with(standing, mine) for _ in range(12))
            except grpc.RpcError:
                return False

        assert until(everywhere, 30)
        files.authority = old
        error, typed = refused(lambda: list_with(standing, mine))
        assert isinstance(typed, Unavailable), "the old authority is no longer believed to be the node's"
        assert "Traceback" not in standing.words()
