"""What a handshake of our own finds out where gRPC only says that TLS fails."""

import asyncio
from types import SimpleNamespace

from tests.peer_transports import Transport, certificates, files, issued
from tests.waiting import until
from vecdb.rpc.probing import AGAIN_S, AUTHORITY, CLUSTER, NODE, OURS, Probes, _whose, look


def run(story):
    asyncio.run(asyncio.wait_for(story, 60))


def test_each_side_s_certificate_and_nothing_amiss(tmp_path):
    ours, theirs = issued(tmp_path / "ours"), issued(tmp_path / "theirs")

    async def story():
        two = await Transport("n2", {}, certificates(theirs, "n2")).start()
        address = two.addresses["n2"]
        kind, why = await look(address, "n2", files(ours, "n1"))
        assert (kind, "not by this cluster's authority" in why, address in why) == (AUTHORITY, True, True)
        mixed = files(ours, "n1")
        mixed.ca_file = theirs / "ca.pem"  # it believes them, and they do not believe it
        kind, why = await look(address, "n2", mixed)
        assert kind == OURS, why
        assert await look(address, "n2", files(theirs, "n1")) == ("", "")
        kind, why = await look(address, "n3", files(theirs, "n1"))
        assert (kind, "of node n2, not of n3" in why) == (NODE, True)
        await two.stop()
        assert await look(address, "n2", files(theirs, "n1")) == ("", "")

    run(story())


def test_a_certificate_of_another_cluster_is_named():
    shown = {"subjectAltName": (("DNS", "n2.dev.vecdb.internal"),)}
    assert _whose(shown, "a:1", "n2", "dev") == ("", "")
    assert _whose(shown, "a:1", "n2", "prod") == (CLUSTER, "a:1 shows a certificate of the cluster dev, not of prod")


def test_a_node_with_another_authority_is_told_of_and_counted_once_a_minute(tmp_path):
    ours, theirs = issued(tmp_path / "ours"), issued(tmp_path / "theirs")

    async def story():
        two = await Transport("n2", {}, certificates(theirs, "n2")).start()
        one = await Transport("n1", two.addresses, certificates(ours, "n1")).start()
        clock = SimpleNamespace(now=100.0)
        probes = Probes(files(ours, "n1"), two.addresses, one.tell, lambda: clock.now)
        one.frames.send("n2", b"x")
        await until(one.frames.away)
        watch = asyncio.get_running_loop().create_task(probes.watch(one.frames.away))
        await until(lambda: probes.refused)
        for _ in range(3):
            assert "not by this cluster's authority" in await probes.why("n2", one.frames.away()["n2"])
        assert probes.refused == {AUTHORITY: 1}
        clock.now += AGAIN_S
        await probes.why("n2", "TLS fails")
        assert probes.refused == {AUTHORITY: 2}
        assert [(fields["about"], fields["kind"]) for _, event, fields in one.told if event == "peer_certificate"] \
            == [("n2", AUTHORITY)] * 2
        assert await probes.why("n2", "connection refused") == "connection refused"
        assert two.got == []
        watch.cancel()
        await one.stop()
        await two.stop()

    run(story())
