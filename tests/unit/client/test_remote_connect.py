"""Reaching a server: addresses, TLS, keys, first connections, processes and what is loaded."""

import asyncio
import json
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import grpc
import pytest
import trustme

import vecdb
from tests.fake_server import FakeServer
from vecdb.client.remote.calling import Caller
from vecdb.client.remote.io import Sleep, Unary
from vecdb.client.remote.node import RemoteNode
from vecdb.client.remote.options import Options, check
from vecdb.client.remote.retry import Budget, Failed
from vecdb.client.remote.target import parse
from vecdb.client.remote.waiting import REFUSED_S, connect_steps
from vecdb.core.access import Grant, Key, Role
from vecdb.core.calls import Call
from vecdb.core.errors import (
    DatabaseClosed,
    DeadlineExceeded,
    InvalidArgument,
    LimitExceeded,
    Unauthenticated,
    Unavailable,
    Unsupported,
)

ROOT = Path(vecdb.__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def far():
    with FakeServer() as server:
        yield server


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.parametrize(("url", "addresses", "local"), [
    ("grpc://localhost", ("localhost:7700",), True), ("grpc://127.0.0.9:1", ("127.0.0.9:1",), True),
    ("GRPC://db.example:80/", ("db.example:80",), False), ("grpc://[::1]", ("[::1]:7700",), True),
    ("grpc://a:1, b:2,a:1", ("a:1", "b:2"), False), ("unix:/run/x.sock", ("unix:/run/x.sock",), True),
    ("grpcs://localhost,10.0.0.1", ("localhost:7700", "10.0.0.1:7700"), False),
])
def test_addresses(url: str, addresses: tuple, local: bool) -> None:
    target = parse(url)
    assert (target.addresses, target.local) == (addresses, local)
    assert target.secure == url.startswith("grpcs")


@pytest.mark.parametrize(("url", "options", "argument"), [
    ("grpc://db.example", {"api_key": "k"}, "api_key"), ("grpc://a,localhost", {"api_key": "k"}, "api_key"),
    ("grpc://localhost", {"api_key": ""}, "api_key"), ("grpc://localhost", {"api_key": "a b"}, "api_key"),
    ("grpc://localhost", {"api_key": "ä"}, "api_key"), ("grpc://localhost", {"api_key": "k" * 600}, "api_key"),
    ("grpc://localhost", {"ca_file": "x"}, "ca_file"), ("grpcs://h", {"ca_file": "/nowhere"}, "ca_file"),
    ("grpcs://h", {"ca_file": str(Path(__file__))}, "ca_file"), ("grpcs://h", {"cert_file": "x"}, "key_file"),
    ("grpc://localhost", {"timeout": 0}, "timeout"), ("grpc://localhost", {"timeout": "1"}, "timeout"),
    ("grpc://localhost", {"timeout": float("nan")}, "timeout"), ("grpc://localhost", {"retries": -1}, "retries"),
    ("grpc://localhost", {"connect_timeout": -1}, "connect_timeout"), ("grpc://localhost", {"timout": 1}, "timout"),
    ("grpc://localhost", {"insecure": 1}, "insecure"), ("grpcs://h", {"server_name": 3}, "server_name"),
])
def test_options_refused(url: str, options: dict, argument: str) -> None:
    with pytest.raises(InvalidArgument) as info:
        vecdb.connect(url, **options)
    assert info.value.argument == argument
    assert "k" * 30 not in str(info.value)


def test_a_key_travels_in_the_clear_only_where_it_is_meant() -> None:
    assert check(parse("grpc://db.example"), "k", {"insecure": True}).api_key == "k"
    assert check(parse("grpcs://db.example"), "k", {}).api_key == "k"
    assert check(parse("grpc://127.0.0.1"), "k", {}).api_key == "k"
    assert "secret" not in repr(check(parse("grpc://127.0.0.1"), "secret", {}))


def test_the_key_goes_with_every_call(far: FakeServer) -> None:
    with vecdb.connect(far.url, api_key="vdb_abc") as db:
        far.metadata.clear()
        db.list_collections()
        assert dict(far.metadata[0])["authorization"] == "Bearer vdb_abc"
        far.principal = Unauthenticated("unknown key")
        try:
            with pytest.raises(Unauthenticated, match="unknown key"):
                db.list_collections()
        finally:
            from vecdb.core.access import ANONYMOUS

            far.principal = ANONYMOUS


def test_several_connections_to_one_address(far: FakeServer) -> None:
    with vecdb.connect(far.url, connections=3) as db:
        for _ in range(9):
            db.list_collections()
        assert len(db._session._backend._wire.links) == 3
        assert len({link.channel for link in db._session._backend._wire.links}) == 3


def test_nobody_there_is_said_at_once_and_why() -> None:
    port = free_port()
    began = time.monotonic()
    with pytest.raises(Unavailable, match=f"127.0.0.1:{port} cannot be reached"):
        vecdb.connect(f"grpc://127.0.0.1:{port}", connect_timeout=0.3)

    async def test() -> None:
        with pytest.raises(Unavailable, match="cannot be reached"):
            await vecdb.connect_async(f"grpc://127.0.0.1:{port}", connect_timeout=0.3)

    asyncio.run(test())
    assert time.monotonic() - began < 20
    with vecdb.connect(f"grpc://127.0.0.1:{port}", connect_timeout=0, retries=1) as db, \
            pytest.raises(Unavailable, match="cannot be reached"):
        db.list_collections()


@pytest.mark.parametrize("others", ["", ",127.0.0.1:2"])
def test_a_port_where_nothing_listens_is_told_long_before_the_timeout(others: str) -> None:
    """Nobody is waited for who is not there: with the timeout of ten minutes this test would not end."""
    url = f"grpc://127.0.0.1:{free_port()}{others}"
    with pytest.raises(Unavailable, match=r"(?i)connection refused"):
        vecdb.connect(url, connect_timeout=600)

    async def test() -> None:
        with pytest.raises(Unavailable, match=r"(?i)connection refused"):
            await vecdb.connect_async(url, connect_timeout=600)

    asyncio.run(test())


def test_a_host_that_does_not_answer_is_waited_for() -> None:
    """A listener that accepts and says nothing, beside one that refuses: the timeout is the caller's."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        caller = Caller(Options(), "silent")
        answers = iter([Unavailable("Connection refused", target="a"), DeadlineExceeded("silent")])
        steps = connect_steps(caller, time.monotonic() + 600, 2)
        next(steps)
        began = time.monotonic()
        while (answer := next(answers, None)) is not None:
            asked = steps.throw(Failed(answer, decided=True, transport=isinstance(answer, Unavailable)))
            while isinstance(asked, Sleep):
                asked = next(steps)
        while time.monotonic() < began + REFUSED_S + 0.2:
            time.sleep(0.1)
        asked = steps.throw(Failed(Unavailable("Connection refused", target="a"), decided=True, transport=True))
        assert isinstance(asked, Sleep)
        assert isinstance(next(steps), Unary), "still asking"
        with pytest.raises(Unavailable, match=r"did not answer|cannot be reached|closed the connection"):
            vecdb.connect(f"grpc://127.0.0.1:{port}", connect_timeout=0.5)


def test_a_server_that_comes_a_little_later_is_waited_for() -> None:
    port = free_port()
    server = FakeServer(port=port)
    starter = threading.Timer(0.3, server.start)
    starter.start()
    try:
        with vecdb.connect(f"grpc://127.0.0.1:{port}", connect_timeout=20) as db:
            assert db.list_collections() == []
    finally:
        starter.join()
        server.__exit__(None, None, None)


def test_tls_and_mutual_tls(tmp_path: Path) -> None:
    authority, other = trustme.CA(), trustme.CA()
    mine, client = authority.issue_cert("localhost"), authority.issue_cert("me@example.org")
    stranger = other.issue_cert("me@example.org")
    ca, wrong, cert, key = (tmp_path / name for name in ("ca.pem", "other.pem", "cert.pem", "key.pem"))
    authority.cert_pem.write_to_path(ca)
    other.cert_pem.write_to_path(wrong)
    client.cert_chain_pems[0].write_to_path(cert)
    client.private_key_pem.write_to_path(key)
    pair = (mine.private_key_pem.bytes(), mine.cert_chain_pems[0].bytes())
    with FakeServer(credentials=grpc.ssl_server_credentials([pair])) as server:
        near = f"127.0.0.1:{server.port}"
        with vecdb.connect(server.url, ca_file=ca, api_key="k") as db:
            assert db.list_collections() == []
        with vecdb.connect(f"grpcs://{near}", ca_file=str(ca), server_name="localhost") as db:
            assert db.list_collections() == []
        refused(f"grpcs://{near}", r"ca_file=", ca_file=wrong, server_name="localhost")
        refused(f"grpcs://{near}", r"server_name=", ca_file=ca)
        refused(f"grpc://{near}", r"does the server speak TLS\? try grpcs://")
        refused(f"grpc://localhost:{server.port}", r"does the server speak TLS\? try grpcs://")
    both = grpc.ssl_server_credentials([pair], authority.cert_pem.bytes(), require_client_auth=True)
    with FakeServer(credentials=both) as server:
        near = f"grpcs://127.0.0.1:{server.port}"
        with vecdb.connect(server.url, ca_file=ca, cert_file=cert, key_file=key) as db:
            assert db.list_collections() == []
        refused(near, r"ask for a client's certificate\? cert_file= and key_file=", ca_file=ca, server_name="localhost")
        stranger.cert_chain_pems[0].write_to_path(cert)
        stranger.private_key_pem.write_to_path(key)
        refused(near, r"accept this client's certificate", ca_file=ca, server_name="localhost", cert_file=cert,
                key_file=key)
    with FakeServer() as server:
        refused(f"grpcs://127.0.0.1:{server.port}", r"does not speak TLS; grpc://", ca_file=ca)


def refused(url: str, why: str, **options: object) -> None:
    """Nobody connects, and both clients say why: at the start, and at the first call."""
    with pytest.raises(Unavailable, match=why):
        vecdb.connect(url, connect_timeout=0.7, **options)
    # Of a name with two addresses gRPC tells of the last one alone.
    with vecdb.connect(url, connect_timeout=0, retries=0, **options) as db, \
            pytest.raises(Unavailable, match=f"{why}|(?i:connection refused)"):
        db.list_collections()

    async def test() -> None:
        with pytest.raises(Unavailable, match=why):
            await vecdb.connect_async(url, connect_timeout=0.7, **options)

    asyncio.run(test())


class Ring:
    """Keys in memory."""

    def __init__(self) -> None:
        self.keys: dict[str, Key] = {}

    def create(self, name, grants, ttl_s=0.0):
        key = Key("abcdefgh2345", name, tuple(grants), 1.0, ttl_s)
        self.keys[key.id] = key
        return key, "vdb_secret"

    def rotate(self, id, overlap_s=0.0):
        return self.keys[id], "vdb_other"

    def revoke(self, id):
        return self.keys.pop(id)

    def list(self):
        return list(self.keys.values())


def test_the_server_itself(tmp_path: Path) -> None:
    with FakeServer(keys=Ring()) as server, vecdb.connect(server.url) as db:
        server.principal = type(server.principal)("", "root", (Grant(Role.ADMIN),))
        assert db.admin.server()["node_id"] == "n"
        key, secret = db.admin.create_key("reader", [Grant(Role.READ, ("docs", "tmp-*"))], 60.0)
        assert (key.name, key.grants, secret) == ("reader", (Grant(Role.READ, ("docs", "tmp-*")),), "vdb_secret")
        assert db.admin.list_keys() == [key]
        again = db.admin.rotate_key(key.id, 5.0)
        assert again == (key, "vdb_other")
        assert (again.key, again.secret) == (key, "vdb_other")
        assert "vdb_other" not in repr(again)
        db.admin.revoke_key(key.id)
        assert db.admin.list_keys() == []
        db.create_collection("docs", dim=2)
        assert db.collection("docs").verify()["equal"] is True
        server.node.job_list = [{"collection": "docs", "kind": "seal", "state": "running", "done": 1, "total": 2}]
        assert db.jobs()[0]["kind"] == "seal"
        assert db.jobs("other") == []

        async def test() -> None:
            async with vecdb.connect_async(server.url) as far:
                assert (await far.admin.server())["node_id"] == "n"
                assert await far.admin.list_keys() == []
                made, _ = await far.admin.create_key("w", [Grant(Role.WRITE)])
                assert (await far.admin.rotate_key(made.id)).secret == "vdb_other"
                await far.admin.revoke_key(made.id)
                assert (await far.jobs("docs"))[0]["done"] == 1

        asyncio.run(test())
    with vecdb.connect(tmp_path) as near, pytest.raises(Unsupported, match="server"):
        near.admin.list_keys()


def test_a_directory_from_asyncio(tmp_path: Path) -> None:
    async def test() -> None:
        db = await vecdb.connect_async(tmp_path, background=False)
        docs = await db.create_collection("docs", dim=2, metric="l2")
        seen: list = []
        loop_thread = threading.get_ident()
        await docs.upsert(ids=range(3_000), vectors=[[n, 0] for n in range(3_000)], batch_size=1_000,
                          progress=lambda *step: seen.append((step[1], threading.get_ident() == loop_thread)))
        assert seen == [(1_000, True), (2_000, True), (3_000, True)]
        answers = await asyncio.gather(*(docs.query([n, 0], k=1) for n in range(20)))
        assert [hits.ids for hits in answers] == [[n] for n in range(20)]
        assert await docs.count() == 3_000
        told: list = []
        assert (await docs.optimize(progress=lambda *step: told.append(threading.get_ident()))).records == 3_000
        assert set(told) <= {loop_thread}
        assert (await docs.verify())["equal"]
        await db.close()
        await db.close()
        with pytest.raises(DatabaseClosed):
            await docs.count()

    asyncio.run(test())


def test_close_waits_for_running_tasks(far: FakeServer) -> None:
    async def event() -> asyncio.Event:
        return asyncio.Event()

    async def test() -> None:
        db = await vecdb.connect_async(far.url)
        docs = await db.get_or_create_collection("slow", dim=2)
        gate = far.node.gate["count"] = far.run(event())
        task = asyncio.create_task(docs.count())
        await asyncio.sleep(0.02)
        closing = asyncio.create_task(db.close())
        await asyncio.sleep(0.02)
        assert not closing.done()
        with pytest.raises(DatabaseClosed):
            await docs.count()
        far._loop.call_soon_threadsafe(gate.set)
        assert await task == 0
        await closing
        far.node.gate.clear()
        other = await vecdb.connect_async(far.url)
        with pytest.raises(InvalidArgument, match="another event loop"):
            await asyncio.to_thread(lambda: asyncio.run(_names(other)))
        await other.close()

    async def _names(db: vecdb.AsyncDatabase) -> list[str]:
        return await db.list_collections()

    asyncio.run(test())


def test_a_remote_node_serves_the_port(far: FakeServer) -> None:
    async def test() -> None:
        node = RemoteNode(grpc.aio.insecure_channel(f"127.0.0.1:{far.port}"), retries=0)
        call = Call(time.monotonic() + 30, request_id="mine-1")
        far.metadata.clear()
        assert "slow" in await node.list_collections(call)
        assert dict(far.metadata[0])["x-request-id"] == "mine-1"
        assert (await node.schema("slow", call)).dim == 2
        assert await node.count("slow", None, call) == 0
        assert await node.jobs(None, call) is not None
        await node.close()

    asyncio.run(test())


def run(program: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, cwd=ROOT,
                          check=False, env={**os.environ, **environment})


HEAVY = ("numba", "llvmlite", "pyarrow", "pandas", "rocksdict", "typer", "rich", "pydantic", "structlog",
         "uvloop", "prometheus_client", "opentelemetry", "pyroaring", "grpc_health", "grpc_reflection")


def test_a_remote_client_loads_little_and_runs_without_numba(far: FakeServer) -> None:
    done = run(f"""
import json, sys
sys.modules["numba"] = sys.modules["llvmlite"] = None
import numpy, grpc, vecdb
before = set(sys.modules)
with vecdb.connect({far.url!r}) as db:
    docs = db.get_or_create_collection("light", dim=2, metric="l2")
    docs.upsert(ids=[1], vectors=[[1, 2]])
    assert docs.query([1, 2], k=1, include=["metadata"], filter="a != 1").ids == [1]
print(json.dumps(sorted(set(sys.modules) - before)))
""")
    assert done.returncode == 0, done.stderr
    loaded = json.loads(done.stdout)
    assert {name.partition(".")[0] for name in loaded}.isdisjoint(HEAVY)
    assert not [name for name in loaded if name.startswith(("vecdb.kernels", "vecdb.app", "vecdb.services"))]


def test_directories_load_no_grpc(tmp_path: Path) -> None:
    done = run(f"""
import sys, vecdb
vecdb.connect_async
with vecdb.connect({str(tmp_path)!r}) as db:
    db.list_collections()
assert "grpc" not in sys.modules and "google.protobuf" not in sys.modules
""")
    assert done.returncode == 0, done.stderr


FORKED = """
import os, sys, vecdb
from vecdb.core.errors import DatabaseClosed
db = vecdb.connect({url!r})
docs = db.get_or_create_collection("forked", dim=2, metric="l2")
docs.count()
token = db.session_token()
pid = os.fork()
if not pid:
    for call in (docs.count, lambda: docs.query([1, 2]), db.list_collections, db.session_token,
                 lambda: db.use_session_token(token)):
        try:
            call()
        except DatabaseClosed as error:
            assert "forked" in str(error)
        else:
            os._exit(3)
    db.close()
    del docs, db
    sys.exit(7)  # through every handler of the interpreter's end
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
assert docs.count() == 0
print("parent is well")
"""


@pytest.mark.parametrize("support", ["0", "1"])
def test_a_forked_child_is_told_and_neither_hangs(far: FakeServer, support: str) -> None:
    done = run(FORKED.format(url=far.url), GRPC_ENABLE_FORK_SUPPORT=support)
    assert done.stdout == "parent is well\n", done.stderr


def test_the_interpreter_ends_cleanly_with_open_connections(far: FakeServer) -> None:
    done = run(f"""
import asyncio, threading, vecdb
db = vecdb.connect({far.url!r})
docs = db.get_or_create_collection("ends", dim=2, metric="l2")
rows = docs.scan()
docs.upsert(((n, [n, 1]) for n in range(50)), batch_size=5)
async def main():
    far = await vecdb.connect_async({far.url!r})
    await (await far.collection("ends")).query([1, 1])
asyncio.run(main())
print("end")
""")
    assert (done.returncode, done.stdout, done.stderr) == (0, "end\n", "")


def test_closed_connections_leave_no_threads(far: FakeServer) -> None:
    before = set(threading.enumerate())
    for _ in range(3):
        with vecdb.connect(far.url) as db:
            docs = db.get_or_create_collection("threads", dim=2, metric="l2")
            docs.upsert(((n, [n, 1]) for n in range(50)), batch_size=5)
            docs.query([[n, 1] for n in range(20)])
    for _ in range(6_000):
        left = set(threading.enumerate()) - before
        if not left:
            break
        time.sleep(0.01)
    assert left == set()


def test_the_budget_fills_by_success_and_by_time() -> None:
    clock = [0.0]
    budget = Budget(3.0, 0.5, 1.0, lambda: clock[0])
    assert [budget.take() for _ in range(4)] == [True, True, True, False]
    budget.gain()
    budget.gain()
    assert [budget.take() for _ in range(2)] == [True, False]
    clock[0] = 2.0
    assert [budget.take() for _ in range(3)] == [True, True, False]
    clock[0] = 100.0
    assert [budget.take() for _ in range(4)] == [True, True, True, False]


def test_limits_of_names() -> None:
    with pytest.raises(LimitExceeded):
        check(parse("grpc://localhost"), None, {"retries": 10_000})
