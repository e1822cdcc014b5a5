"""Who gets in at the peer listener, and under which name."""

import asyncio
import contextlib

import grpc
import pytest
import trustme

from tests.peer_transports import CLUSTER, Transport, certificates, issued
from tests.waiting import until
from vecdb.core.errors import InvalidArgument, Unavailable
from vecdb.rpc.peer_names import Greeting, certificate_name, certified
from vecdb.rpc.peers_server import PeerServer, PeerServerOptions, peer_name

PATH = "/test.Service/"


class Service(grpc.GenericRpcHandler):
    """Methods of all four kinds; each says who calls and what was said."""

    def __init__(self):
        self.entered = []
        read, write = bytes.decode, bytes
        self.methods = {
            "unary": grpc.unary_unary_rpc_method_handler(self.unary, read, write),
            "takes": grpc.stream_unary_rpc_method_handler(self.takes, read, write),
            "gives": grpc.unary_stream_rpc_method_handler(self.gives, read, write),
            "both": grpc.stream_stream_rpc_method_handler(self.both, read, write),
            "writes": grpc.unary_stream_rpc_method_handler(self.writes, read, write),
        }

    def service(self, handler_call_details):
        return self.methods.get(handler_call_details.method.removeprefix(PATH))

    async def unary(self, said, context):
        self.entered.append("unary")
        return f"{peer_name(context)} {said}".encode()

    async def takes(self, said, context):
        return f"{peer_name(context)} {' '.join([one async for one in said])}".encode()

    async def gives(self, said, context):
        for at in range(2):
            yield f"{peer_name(context)} {said} {at}".encode()

    async def both(self, said, context):
        async for one in said:
            yield f"{peer_name(context)} {one}".encode()

    async def writes(self, said, context):
        await context.write(f"{peer_name(context)} {said}".encode())


def greeting(**other):
    return Greeting(**{"cluster": CLUSTER, "node": "n1", "to": "n2", "incarnation": 7, **other}).agent()


@contextlib.asynccontextmanager
async def listener(tls=None):
    service = Service()
    two = await Transport("n2", {}, tls, services=(service,)).start()
    try:
        yield two, service
    finally:
        await two.stop()


async def ask(channel, said=b"hello"):
    """A unary call; the reply, or the code and why."""
    try:
        return await channel.unary_unary(PATH + "unary")(said)
    except grpc.aio.AioRpcError as error:
        return error.code(), error.details(), dict(error.trailing_metadata() or ()).get("vecdb-refused")
    finally:
        await channel.close()


def insecure(two, agent):
    return grpc.aio.insecure_channel(two.addresses["n2"], [("grpc.primary_user_agent", agent)])


def run(story):
    return asyncio.run(asyncio.wait_for(story, 60))


def test_methods_of_every_kind_know_who_calls(tmp_path):
    issued(tmp_path)

    async def story():
        async with listener(certificates(tmp_path, "n2")) as (two, _):
            one = await Transport("n1", two.addresses, certificates(tmp_path, "n1")).start()
            channel = one.channels.channel("n2")
            assert await channel.unary_unary(PATH + "unary")(b"a") == b"n1 a"
            assert await channel.stream_unary(PATH + "takes")(iter([b"a", b"b"])) == b"n1 a b"
            assert [got async for got in channel.unary_stream(PATH + "gives")(b"a")] == [b"n1 a 0", b"n1 a 1"]
            assert [got async for got in channel.stream_stream(PATH + "both")(iter([b"a", b"b"]))] == [b"n1 a", b"n1 b"]
            assert [got async for got in channel.unary_stream(PATH + "writes")(b"a")] == [b"n1 a"]
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await channel.unary_unary(PATH + "no such method")(b"a")
            assert refused.value.code() is grpc.StatusCode.UNIMPLEMENTED
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await channel.unary_unary(PATH + "unary")(b"\xff is no text")
            assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await channel.stream_unary(PATH + "unary")(iter([]))
            assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
            assert not two.server.refused
            await one.stop()

    run(story())


@pytest.mark.parametrize(("kind", "agent"), [
    ("no_greeting", "curl/8"), ("no_greeting", greeting(node="N1")), ("no_greeting", greeting().replace("; ", ";")),
    ("no_greeting", greeting(incarnation=1 << 64)), ("no_greeting", greeting(protocol=123456)),
    ("protocol", greeting(protocol=2)), ("cluster", greeting(cluster="other")), ("own_name", greeting(node="n2")),
    ("unknown_node", greeting(node="n9")), ("not_meant", greeting(to="n3"))])
def test_who_is_refused_with_his_message_unread(kind, agent):
    async def story():
        async with listener() as (two, service):
            for _ in range(3):
                code, why, told = await ask(insecure(two, agent), b"\xff" * (4 << 20))
                assert (told, bool(why)) == (kind, True)
                assert code in (grpc.StatusCode.FAILED_PRECONDITION, grpc.StatusCode.UNAUTHENTICATED)
            assert two.server.refused == {kind: 3}
            assert two.told == [("warning", "peer_refused", {"kind": kind, "peer": "ipv4:127.0.0.1", "why": why})]
            assert service.entered == []
            assert await ask(insecure(two, greeting())) == b"n1 hello"

    run(story())


def test_streams_of_frames_are_refused_like_any_call():
    async def story():
        async with listener() as (two, _):
            channel = insecure(two, greeting(cluster="other"))
            call = channel.stream_unary("/vecdb.internal.v1.Raft/Messages")()
            assert await call.code() is grpc.StatusCode.FAILED_PRECONDITION
            await channel.close()
            one = await Transport("n1", two.addresses, cluster="other").start()
            one.frames.send("n2", b"x")
            await until(lambda: ("peer_away", "messages") in one.events())
            assert "another cluster" in one.told[-1][2]["why"]
            assert two.got == []
            await one.stop()

    run(story())


# --- certificates -------------------------------------------------------------------------------------


def secure(two, root, made, agent=None, target="n2"):
    """``made``: the caller's key and chain, or None for no certificate."""
    key, chain = made or (None, None)
    return grpc.aio.secure_channel(
        two.addresses["n2"], grpc.ssl_channel_credentials(root, key, chain),
        [("grpc.primary_user_agent", agent or greeting()),
         ("grpc.ssl_target_name_override", certificate_name(target, CLUSTER))])


def pem(made):
    return made.private_key_pem.bytes(), b"".join(blob.bytes() for blob in made.cert_chain_pems)


class OwnCertificates:
    """A listener's credentials of an authority of the test's."""

    def __init__(self, authority, *names):
        self._root, self._made = authority.cert_pem.bytes(), pem(authority.issue_cert(*names))
        self.generation = 1

    def grpc_credentials(self):
        return grpc.ssl_server_credentials([self._made], self._root, True)


def test_a_name_is_what_the_certificate_says():
    authority, stranger = trustme.CA(), trustme.CA()
    root = authority.cert_pem.bytes()

    async def story():
        async with listener(OwnCertificates(authority, certificate_name("n2", CLUSTER))) as (two, service):
            good = pem(authority.issue_cert("host.example", certificate_name("n1", CLUSTER), "127.0.0.1"))
            assert await ask(secure(two, root, good)) == b"n1 hello"
            for name in ("n1.other.vecdb.internal", "n3.prod.vecdb.internal", "host.example", "*.prod.vecdb.internal",
                         "n1.prod.vecdb.internal.example", "x.n1.prod.vecdb.internal"):
                code, _, kind = await ask(secure(two, root, pem(authority.issue_cert(name))))
                assert (code, kind) == (grpc.StatusCode.PERMISSION_DENIED, "not_certified"), name
            assert await ask(secure(two, root, pem(authority.issue_cert(
                certificate_name("n1", CLUSTER), certificate_name("n3", CLUSTER))), greeting(node="n3"))) == b"n3 hello"
            code, _, kind = await ask(secure(two, root, good, greeting(node="n3")))
            assert (code, kind) == (grpc.StatusCode.PERMISSION_DENIED, "not_certified")
            for made in (pem(stranger.issue_cert(certificate_name("n1", CLUSTER))), None):
                code, _, kind = await ask(secure(two, root, made))
                assert (code, kind) == (grpc.StatusCode.UNAVAILABLE, None)  # ended in the handshake
            assert service.entered == ["unary", "unary"]
            assert two.server.refused == {"not_certified": 7}

    run(story())


def test_a_node_that_is_not_the_one_that_is_meant_is_not_spoken_to(tmp_path):
    """The address of n3 leads to n2, whose certificate is as good as any in the cluster."""
    issued(tmp_path)

    async def story():
        async with listener(certificates(tmp_path, "n2")) as (two, _):
            one = await Transport("n1", {"n3": two.addresses["n2"]}, certificates(tmp_path, "n1")).start()
            one.frames.send("n3", b"x")
            await until(lambda: ("peer_away", "messages") in one.events())
            assert two.got == []
            assert not two.server.refused
            await one.stop()

    run(story())


def test_names_in_certificates():
    names = ["n1.prod.vecdb.internal", "N2.PROD.VECDB.INTERNAL", "n3.prod.vecdb.internal.", "prod.vecdb.internal",
             "*.prod.vecdb.internal", "n4.test.vecdb.internal", ".prod.vecdb.internal", "a.b.prod.vecdb.internal", ""]
    assert certified(names, "prod") == {"n1", "n2"}
    assert certified([certificate_name("n1", "prod")], "prod") == {"n1"}


# --- the listener -------------------------------------------------------------------------------------


def test_plaintext_must_be_meant():
    with pytest.raises(InvalidArgument) as refused:
        PeerServer(PeerServerOptions("n1", CLUSTER, "127.0.0.1:0", ("n1",)), ())
    assert refused.value.argument == "insecure"


def test_an_address_that_is_taken_says_so():
    async def story():
        async with listener() as (two, _):
            with pytest.raises(Unavailable, match="cannot listen"):
                await Transport("n3", {}).start(two.addresses["n2"])

    run(story())


def test_strangers_hold_no_more_connections_than_there_are(tmp_path):
    """A port scanner that says nothing is let go of within the handshake's time; nodes get in meanwhile."""
    issued(tmp_path)

    async def story():
        async with listener(certificates(tmp_path, "n2")) as (two, _):
            host, _, port = two.addresses["n2"].rpartition(":")
            silent = [await asyncio.open_connection(host, int(port)) for _ in range(40)]
            one = await Transport("n1", two.addresses, certificates(tmp_path, "n1")).start()
            one.frames.send("n2", b"x")
            await until(lambda: two.got)
            for reader, writer in silent:
                await reader.read()  # until the other end hangs up
                writer.close()
            await one.stop()

    run(story())
