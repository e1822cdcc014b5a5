"""What a node tells of itself, there and back on the wire."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from vecdb.cluster.joining import Candidate
from vecdb.cluster.loads import ShardLoad
from vecdb.core.calls import Call
from vecdb.core.cluster import Role
from vecdb.core.errors import InvalidArgument
from vecdb.internal.v1 import members_pb2 as pb
from vecdb.rpc import members
from vecdb.rpc.members import MembersServicer, RemoteMembers
from vecdb.services.announcing import Answer, Report

REPORT = Report(Candidate("n1", 7, "n1:7702", "n1:7700", "n1:7701", Role.BOTH, "a", 2.0, "1.2.0", 2), "n1/9", True, 5,
                12.5, {"leaders": 3.0}, {4: ShardLoad(4_096.0, 0.25), 70_000: ShardLoad(0.0, 0.0)})


class Registrar:
    def __init__(self) -> None:
        self.heard: list[Report] = []

    async def announced(self, report: Report) -> Answer:
        self.heard.append(report)
        return Answer(13.0, True)


def servicer(monkeypatch: pytest.MonkeyPatch) -> tuple[MembersServicer, Registrar]:
    registrar, anything = Registrar(), SimpleNamespace(monotonic=lambda: 0.0)
    monkeypatch.setattr(members, "peer_name", lambda context: "n1")
    made: Any = MembersServicer
    return made("n2", registrar, lambda: "n2", None, None, anything), registrar


def test_a_report_is_heard_as_it_was_told(monkeypatch: pytest.MonkeyPatch) -> None:
    served, registrar = servicer(monkeypatch)

    class Replicas:
        async def call(self, name: str, message: pb.AnnounceRequest, reply: Any, call: Call) -> pb.AnnounceReply:
            context: Any = None
            return await served.announce(pb.AnnounceRequest.FromString(message.SerializeToString()), context)

    asked: Any = lambda node: Replicas()  # noqa: E731
    assert asyncio.run(RemoteMembers(asked).announce("n2", REPORT, Call())) == Answer(13.0, True)
    assert registrar.heard == [REPORT]


def test_figures_that_make_no_sense_are_refused_or_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    served, registrar = servicer(monkeypatch)
    node, context = pb.Candidate(role="both", address="n1:7702", commands=2), None
    with pytest.raises(InvalidArgument, match="figures each"):
        asyncio.run(served.announce(pb.AnnounceRequest(node=node, groups=[1, 2], bytes=[1.0], busy=[1.0, 1.0]),
                                    context))  # type: ignore[arg-type]
    asyncio.run(served.announce(pb.AnnounceRequest(
        node=node, groups=[1, 2, 3, 4], bytes=[1.0, -1.0, float("inf"), float("nan")],
        busy=[0.5] * 4), context))  # type: ignore[arg-type]
    assert registrar.heard[0].shards == {1: ShardLoad(1.0, 0.5)}
