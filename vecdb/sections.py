"""The sections of the settings, each a model of its own; :mod:`vecdb.config` reads them and holds them together."""

from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, SecretStr

from vecdb.core.cluster import Role
from vecdb.core.nodes import (
    PEER_PORT,
    bracketed,
    check_addresses,
    check_advertised,
    check_label,
    check_nodes,
    check_zone,
    parse_nodes,
    split_address,
)
from vecdb.core.units import parse_bytes, parse_seconds

Bytes: TypeAlias = Annotated[int, BeforeValidator(lambda said: parse_bytes(said) if isinstance(said, str) else said)]
Seconds: TypeAlias = Annotated[float, BeforeValidator(
    lambda said: parse_seconds(said) if isinstance(said, str) else said)]
File: TypeAlias = Annotated[Path | None, BeforeValidator(lambda value: None if value == "" else value)]
"""A path; the empty string is none, as a variable that a shell left empty says."""


def _split(value: Any) -> Any:
    """A list as an environment or a flag says it: parts between commas."""
    return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value


Names: TypeAlias = Annotated[tuple[str, ...], BeforeValidator(_split)]
Nodes: TypeAlias = Annotated[dict[str, str], BeforeValidator(
    lambda said: parse_nodes(said) if isinstance(said, str) else said), AfterValidator(check_nodes)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class EngineSettings(_Section):
    """``[engine]``: how an embedded engine is opened, by the names of :func:`vecdb.app.open_embedded`.

    ``threads``: for builds and batch queries; 0 is one per core.  ``seal_records``: records in a growing segment
    before it is sealed; 0 lets the size of a vector decide.  ``memory_bytes``: what vectors, graphs and codes may
    take; 0 is 70 % of the memory there is.  ``background``: seal and merge while the database
    is open.  ``verify``: read every byte of sealed files at opening and hold it against its checksum.
    """

    threads: int = Field(default=0, ge=0, le=1024)
    seal_records: int = Field(default=0, ge=0, le=1 << 30)
    memory_bytes: Bytes = Field(default=0, ge=0)
    background: bool = True
    verify: bool = True


class ServerSettings(_Section):
    """``[server]``: where the node listens.

    ``host``: an address of this machine; loopback unless said otherwise.  ``grpc_port``/``http_port``: 0 takes a free
    one, ``http_port=-1`` leaves the HTTP face out.  ``http_hosts``: further names that a loopback node without keys
    answers to (a web page could otherwise reach it by a name of its own).  ``open_metrics``: /metrics needs no key.
    ``advertise``: where clients reach the gRPC port (``host:7700``), for those that other nodes tell of this one;
    empty: ``host``, or where that is every address the host of the cluster's.  ``processes``: front processes on the
    port (1: everything in one; 0: chosen by the cores).  ``drain_s``: how long a stop waits for running calls.
    ``node_id``: empty makes one and keeps it in the data directory.
    """

    host: str = Field(default="127.0.0.1", min_length=1, max_length=255)
    grpc_port: int = Field(default=7700, ge=0, le=65535)
    http_port: int = Field(default=7701, ge=-1, le=65535)
    http_hosts: Names = Field(default=(), max_length=64)
    open_metrics: bool = False
    processes: int = Field(default=1, ge=0, le=64)
    advertise: Annotated[str, AfterValidator(check_advertised)] = Field(default="", max_length=300)
    drain_s: Seconds = Field(default=20.0, ge=0, le=600)
    reflection: bool = True
    warm_up: bool = True
    node_id: str = Field(default="", max_length=64, pattern=r"^[A-Za-z0-9_.\-]*$")


class LimitSettings(_Section):
    """``[limits]``: what the node takes on before it refuses with RESOURCE_EXHAUSTED.

    ``memory_bytes``: of memory that the process cannot give back, as measured; upserts and updates that would need more
    are refused.  Resident memory is more.  0 is 80 % of what the process may use.
    ``message_bytes``: largest message.  ``inflight_bytes``: bytes of requests held at once.  ``queued_queries``: query
    rows waiting for their turn.  ``concurrent_calls``: calls at once; ``connections`` HTTP connections at once.
    ``write_threads``: writes at once (they share fsyncs).  ``rate``/``burst``: calls a second of one key (0: no limit).
    ``deadline_s``: the deadline of a call that names none; ``deadline_max_s``: the longest one.
    """

    memory_bytes: Bytes = Field(default=0, ge=0)
    message_bytes: Bytes = Field(default=72 << 20, ge=1 << 16, le=1 << 30)
    inflight_bytes: Bytes = Field(default=512 << 20, ge=1 << 20)
    queued_queries: int = Field(default=4096, ge=1)
    concurrent_calls: int = Field(default=2048, ge=1)
    connections: int = Field(default=4096, ge=1)
    write_threads: int = Field(default=16, ge=1, le=256)
    rate: float = Field(default=0.0, ge=0)
    burst: float = Field(default=0.0, ge=0)
    deadline_s: Seconds = Field(default=60.0, gt=0)
    deadline_max_s: Seconds = Field(default=3600.0, gt=0)


class TlsSettings(_Section):
    """``[tls]``: PEM files; ``client_ca_file`` makes clients show a certificate of that authority (mutual TLS).

    Files that change are loaded within ``reload_s`` seconds; one that cannot be used leaves the old one in use.
    """

    cert_file: File = None
    key_file: File = None
    client_ca_file: File = None
    reload_s: Seconds = Field(default=10.0, gt=0)


class SecuritySettings(_Section):
    """``[security]``: who may do what.

    ``require_keys``: "auto" asks for API keys as soon as one exists or ``admin_key`` is set; "always" and "never" say
    it outright.  ``admin_key``: a secret with the role admin, for the first start; ``admin_key_file`` holds it instead.
    ``audit_file``: where admin calls are logged, beside the log; empty: ``audit.jsonl`` in the data directory.
    """

    require_keys: Literal["auto", "always", "never"] = "auto"
    admin_key: SecretStr = SecretStr("")
    admin_key_file: File = None
    audit_file: File = None


class LogSettings(_Section):
    """``[log]``: ``format`` is "auto" (console on a terminal, JSON otherwise), "json" or "console".

    ``slow_query_ms``: queries that take longer are logged with their plan; 0 logs none.
    """

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["auto", "json", "console"] = "auto"
    slow_query_ms: float = Field(default=250.0, ge=0)


class TelemetrySettings(_Section):
    """``[telemetry]``: ``otlp_endpoint`` (empty: no traces) and the share of calls traced.

    ``recall_samples_per_minute``: queries run again exactly in the background to measure recall, at most
    ``recall_cpu_share`` of one core; 0 samples none.
    """

    otlp_endpoint: str = ""
    otlp_insecure: bool = False
    trace_ratio: float = Field(default=0.01, ge=0, le=1)
    recall_samples_per_minute: float = Field(default=30.0, ge=0)
    recall_cpu_share: float = Field(default=0.02, ge=0, le=1)


class ClusterSettings(_Section):
    """``[cluster]``: the nodes that replicate each other's collections; each has this section, and its own
    ``server.node_id``.

    ``name``: the cluster's; empty: this node is alone.  ``nodes``: names and addresses of the peer listeners of those
    that found it, as a table, or ``n1=host:7702,n2=host:7702``.  A node that comes later has ``join`` instead,
    addresses of nodes that are there (``host:7702,host:7702``), and a ``token`` (or ``token_file``) that the cluster
    has made; once it is one of them it needs neither to start again.

    ``role``: ``coordinator`` (votes on what the cluster is, holds no records), ``shard`` (the other way round) or
    ``both``; empty: both for those who found it, shard for those who join.  ``zone``: what fails together, as a rack;
    replicas are put in different ones.  ``capacity``: how much it is given, against others.  ``advertise``: where other
    nodes reach its peer listener; empty: as in ``nodes``.  ``host`` and ``peer_port``: where that listens; 0: on the
    port that others are told.

    ``cert_file``, ``key_file``, ``ca_file``: mutual TLS between nodes; a certificate's name is
    ``NODE.NAME.vecdb.internal`` (``vecdb cluster certs`` makes them).  ``insecure``: none, and whoever reaches the
    listeners is believed.  ``replication_factor``: replicas of a collection, at most one a node.  ``heartbeat_s`` of a
    leader; without any for ``election_s_min`` to ``election_s_max`` others elect another.  ``log_bytes``: a log above
    it is cut, whoever still lacks what is cut off: he gets a snapshot.  ``snapshot_bytes_s``: what he takes of one in a
    second.  ``balance_leaders``: a node that leads two shards more than another, or still more, hands one over to it.
    """

    name: Annotated[str, AfterValidator(lambda said: said and check_label(said, "cluster"))] = ""
    nodes: Nodes = Field(default={})
    join: Annotated[Names, AfterValidator(check_addresses)] = ()
    token: SecretStr = SecretStr("")
    token_file: File = None
    role: Literal["", "both", "coordinator", "shard"] = ""
    zone: Annotated[str, AfterValidator(check_zone)] = ""
    capacity: float = Field(default=1.0, gt=0, le=1_000)
    advertise: Annotated[str, AfterValidator(check_advertised)] = Field(default="", max_length=300)
    host: str = Field(default="127.0.0.1", min_length=1, max_length=255)
    peer_port: int = Field(default=0, ge=0, le=65535)
    cert_file: File = None
    key_file: File = None
    ca_file: File = None
    insecure: bool = False
    replication_factor: int = Field(default=3, ge=1, le=7)
    heartbeat_s: Seconds = Field(default=0.1, ge=0.01, le=10)
    election_s_min: Seconds = Field(default=1.0, gt=0, le=300)
    election_s_max: Seconds = Field(default=2.0, gt=0, le=600)
    log_bytes: Bytes = Field(default=256 << 20, ge=1 << 20)
    snapshot_bytes_s: Bytes = Field(default=100 << 20, ge=1 << 20)
    balance_leaders: bool = True

    @property
    def files(self) -> tuple[Path | None, ...]:
        return self.cert_file, self.key_file, self.ca_file

    @property
    def part(self) -> Role:
        """The role, said or not."""
        return Role(self.role) if self.role else Role.SHARD if self.join else Role.BOTH

    def address(self, me: str) -> str:
        """Where other nodes reach this one, which is ``me``."""
        if self.advertise or self.nodes.get(me):
            return self.advertise or self.nodes[me]
        return f"{bracketed(self.host)}:{self.peer_port or PEER_PORT}"

    def listens_on(self, me: str) -> int:
        """The port of this node's peer listener."""
        return self.peer_port or split_address(self.nodes.get(me) or self.address(me))[1]


class ClientSettings(_Section):
    """``[client]``: the server that commands ask where no directory is named, and how they come in.

    ``url``: as ``grpc://host:7700``; empty: none, commands open ``data_dir``.  ``api_key``: better in
    ``api_key_file`` or the environment than in a file that others read.  ``ca_file``: the authority of the server's
    certificate; ``cert_file``/``key_file``: our own, for mutual TLS.  ``insecure``: an API key may travel without TLS.
    ``timeout_s``: of a call; 0 is the client's own.  ``consistency``: of a command's reads, linearizable, for it knows
    nothing of what was written by the one before it; or ``session``, ``eventual``.
    """

    url: str = Field(default="", max_length=2048)
    api_key: SecretStr = SecretStr("")
    api_key_file: File = None
    ca_file: File = None
    cert_file: File = None
    key_file: File = None
    timeout_s: Seconds = Field(default=0.0, ge=0)
    insecure: bool = False
    consistency: Literal["eventual", "session", "linearizable"] = "linearizable"


class BackupSettings(_Section):
    """``[backup]``: where snapshots may go, and how object stores are reached.

    ``url``: the place, for commands that do not say it.  ``urls``: what a place must begin with for this node to use
    it, as ``s3://bucket/prod,file:///srv/backups``; none: any that an admin names.  ``s3_*``: what is empty is taken
    from where the AWS tools take it (``AWS_*`` variables, a pod's web identity, the instance); ``s3_checksums``:
    uploads carry a SHA-256 for the store to compare.
    """

    url: str = Field(default="", max_length=1024)
    urls: Names = Field(default=(), max_length=64)
    s3_endpoint: str = Field(default="", max_length=512)
    s3_region: str = Field(default="", max_length=64)
    s3_access_key_id: str = Field(default="", max_length=256)
    s3_secret_access_key: SecretStr = SecretStr("")
    s3_secret_access_key_file: File = None
    s3_virtual_hosted: bool = False
    s3_checksums: bool = True
