"""What operators ask and are told, over the wire."""

from collections.abc import Mapping
from typing import Any, Final

import orjson

from vecdb.core.cluster import JobInfo, NodeInfo, Plan, PlanStep
from vecdb.core.errors import InvalidArgument
from vecdb.core.operations import ClusterInfo, JoinToken
from vecdb.v1 import operations_pb2 as pb
from vecdb.wire.records import reply

MAX_ARGS_BYTES: Final = 64 << 10


def cluster_to_wire(info: ClusterInfo) -> pb.GetClusterReply:
    """Write a cluster at a glance."""
    return pb.GetClusterReply(
        name=info.name, node=info.node, leader=info.leader or "", epoch=info.epoch, collections=info.collections,
        shards=info.shards, jobs=info.jobs, settings_json=orjson.dumps(dict(info.settings)), unheard=info.unheard,
        nodes=[pb.ClusterNode(
            name=one.name, address=one.address, client_address=one.client_address, http_address=one.http_address,
            role=one.role, zone=one.zone, capacity=one.capacity, state=one.state, version=one.version,
            heard_s=None if one.heard_s < 0 else one.heard_s, voter=one.voter, replicas=one.replicas,
            leaders=None if one.leaders < 0 else one.leaders, stats=dict(one.stats),
            silent_s=None if one.silent_s < 0 else one.silent_s) for one in info.nodes])


@reply
def cluster_from_wire(msg: pb.GetClusterReply) -> ClusterInfo:
    """Return a cluster at a glance."""
    nodes = tuple(NodeInfo(
        one.name, one.address, one.client_address, one.http_address, one.role, one.zone, one.capacity, one.state,
        one.version, one.heard_s if one.HasField("heard_s") else -1.0, one.voter, one.replicas,
        one.leaders if one.HasField("leaders") else -1, dict(one.stats),
        one.silent_s if one.HasField("silent_s") else -1.0) for one in msg.nodes)
    return ClusterInfo(msg.name, msg.node, msg.leader or None, msg.epoch, nodes, msg.collections, msg.shards, msg.jobs,
                       orjson.loads(msg.settings_json or b"{}"), tuple(msg.unheard))


def job_to_wire(job: JobInfo) -> pb.ClusterJob:
    """Write a job."""
    return pb.ClusterJob(id=job.id, kind=job.kind, target=job.target, args_json=orjson.dumps(dict(job.args)),
                         state=job.state, phase=job.phase, done=job.done, total=job.total, unit=job.unit,
                         created_s=job.created_s, updated_s=job.updated_s,
                         eta_s=None if job.eta_s < 0 else job.eta_s, error=job.error)


@reply
def job_from_wire(msg: pb.ClusterJob) -> JobInfo:
    """Return a job."""
    return JobInfo(msg.id, msg.kind, msg.target, orjson.loads(msg.args_json or b"{}"), msg.state, msg.phase, msg.done,
                   msg.total, msg.unit, msg.created_s, msg.updated_s, msg.eta_s if msg.HasField("eta_s") else -1.0,
                   msg.error)


def plan_to_wire(plan: Plan) -> pb.PlanJobReply:
    """Write what a job would do."""
    return pb.PlanJobReply(kind=plan.kind, notes=plan.notes, steps=[
        pb.ClusterPlanStep(action=one.action, target=one.target, text=one.text, bytes=one.bytes)
        for one in plan.steps])


@reply
def plan_from_wire(msg: pb.PlanJobReply) -> Plan:
    """Return what a job would do."""
    return Plan(msg.kind, tuple(PlanStep(one.action, one.target, one.text, one.bytes) for one in msg.steps),
                tuple(msg.notes))


def description_to_wire(kind: str, target: str, args: Mapping[str, Any]) -> pb.JobDescription:
    """Write what is asked for; ``InvalidArgument`` for arguments that are no JSON."""
    try:
        return pb.JobDescription(kind=kind, target=target, args_json=orjson.dumps(dict(args)))
    except TypeError as error:
        raise InvalidArgument("args", f"are no JSON object: {error}") from None


def description_from_wire(msg: pb.JobDescription) -> tuple[str, str, dict[str, Any]]:
    """Return kind, target and arguments, checked as far as they can be here."""
    if len(msg.args_json) > MAX_ARGS_BYTES:
        raise InvalidArgument("args", "are too long", got=len(msg.args_json), limit=MAX_ARGS_BYTES)
    args = json_from_wire("args", msg.args_json or b"{}")
    if not isinstance(args, dict):
        raise InvalidArgument("args", "must be an object", got=type(args).__name__)
    return msg.kind, msg.target, args


def json_from_wire(argument: str, data: bytes) -> Any:
    """Return a JSON value; ``InvalidArgument``."""
    if len(data) > MAX_ARGS_BYTES:
        raise InvalidArgument(argument, "is too long", got=len(data), limit=MAX_ARGS_BYTES)
    try:
        return orjson.loads(data)
    except (ValueError, RecursionError):
        raise InvalidArgument(argument, "is no JSON", got=data[:80].decode("utf-8", "replace")) from None


def token_to_wire(token: JoinToken) -> pb.JoinToken:
    """Write what is told of a token."""
    return pb.JoinToken(id=token.id, created_s=token.created_s, expires_s=token.expires_s, roles=token.roles)


@reply
def token_from_wire(msg: pb.JoinToken) -> JoinToken:
    """Return what is told of a token."""
    return JoinToken(msg.id, msg.created_s, msg.expires_s, tuple(msg.roles))
