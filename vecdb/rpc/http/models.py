"""Bodies of the REST API, as they are checked and as the OpenAPI document shows them.

Unknown members are errors.  What may be long (vectors, ids, metadata) is ``Any`` to pydantic, with its schema beside
it: :mod:`vecdb.rpc.http.arrays` checks those with NumPy and orjson, for pydantic would take a minute over ten million
numbers.
"""

from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema

from vecdb.core.cluster import MAX_COLLECTION_SHARDS
from vecdb.core.layout import MAX_EXPECTED_RECORDS, MAX_REPLICATION_FACTOR
from vecdb.core.limits import (
    MAX_BATCH_RECORDS,
    MAX_DIM,
    MAX_EF,
    MAX_ID_BYTES,
    MAX_INDEXED_FIELDS,
    MAX_INT_ID,
    MAX_K,
    MAX_M,
    MAX_NAME_BYTES,
    MAX_POSITIONS,
    MAX_WORD,
)
from vecdb.core.schema import NAME_PATTERN

MAX_PAGE: Final = 10_000
"""Most records of one fetch or page: above, the JSON alone takes hundreds of megabytes."""

MAX_RESULTS: Final = 200_000
"""Most results of one REST query (queries times k), for the same reason; gRPC takes fifty times as many."""

MAX_QUERIES: Final = 10_000
"""Most queries in one REST call."""

MAX_NPROBE: Final = 1 << 20

ID_SCHEMA: Final[dict[str, Any]] = {
    "title": "RecordId", "description": "An integer or a string; 7 and \"7\" are two ids.",
    "anyOf": [{"type": "integer", "minimum": 0, "maximum": MAX_INT_ID},
              {"type": "string", "minLength": 1, "maxLength": MAX_ID_BYTES,
               "description": f"at most {MAX_ID_BYTES} bytes of UTF-8"}]}

_NUMBERS: Final[dict[str, Any]] = {"type": "array", "items": {"type": "number"}, "minItems": 1, "maxItems": MAX_DIM}
_BASE64: Final[dict[str, Any]] = {"$ref": "#/components/schemas/Base64Vectors"}
_OBJECT: Final[dict[str, Any]] = {"type": "object", "additionalProperties": True}
_NULL: Final[dict[str, Any]] = {"type": "null"}
_FILTER: Final[dict[str, Any]] = {
    "description": "A condition on metadata: an expression or a mapping.",
    "anyOf": [{"type": "string"}, _OBJECT],
    "examples": ["year >= 2020 and lang in ['en', 'de']", {"year": {"$gte": 2020}}]}


def _ids(most: int) -> dict[str, Any]:
    return {"type": "array", "items": ID_SCHEMA, "minItems": 1, "maxItems": most}


Name = Annotated[str, Field(pattern=f"^{NAME_PATTERN}$", min_length=1, max_length=MAX_NAME_BYTES)]
IdList = Annotated[Any, WithJsonSchema(_ids(MAX_BATCH_RECORDS))]
FewIds = Annotated[Any, WithJsonSchema(_ids(MAX_PAGE))]
OneId = Annotated[Any, WithJsonSchema(ID_SCHEMA)]
Vector = Annotated[Any, WithJsonSchema({"anyOf": [_NUMBERS, _BASE64]})]
Vectors = Annotated[Any, WithJsonSchema({"anyOf": [{"type": "array", "items": _NUMBERS, "minItems": 1}, _BASE64]})]
SomeFilter = Annotated[Any, WithJsonSchema(_FILTER)]
Filter = Annotated[Any, WithJsonSchema({**_FILTER, "anyOf": [*_FILTER["anyOf"], _NULL]})]
Object = Annotated[Any, WithJsonSchema(_OBJECT)]
MaybeObject = Annotated[Any, WithJsonSchema({"anyOf": [_OBJECT, _NULL]})]
MaybeObjects = Annotated[Any, WithJsonSchema({"anyOf": [
    {"type": "array", "items": {"anyOf": [_OBJECT, _NULL]}}, _NULL]})]
Patches = Annotated[Any, WithJsonSchema({"anyOf": [_OBJECT, {"type": "array", "items": _OBJECT, "minItems": 1}]})]
Include = list[Literal["metadata", "vector"]]
Encoding = Literal["list", "base64"]
RoleName = Literal["read", "write", "admin"]
Level = Literal["eventual", "session", "linearizable"]
CONSISTENCY: Final = (
    "eventual: what the replica asked has; session: at least the writes in `session`; linearizable: every write "
    "acknowledged before, anybody's. Left out: session where writes are given, else eventual")

PARTIAL: Final = "of shards that do not answer in time the reply says so, instead of failing"
MISSING: Final = "shards that are not in the answer; only with allow_partial"
POSITION: Final = r"^[A-Za-z0-9_\-]{1,88}$"


class Body(BaseModel):
    """Nothing is converted: "7" is no number, 1 is not true."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Nothing(Body):
    """An object without members, which may as well be left out."""


class Base64Vectors(Body):
    """Components in row order, little-endian; binary collections take and give packed bits as uint8."""

    base64: str
    dtype: Literal["float32", "float16", "float64", "int8", "uint8"] = "float32"


class Index(Body):
    """Zero means that the engine chooses."""

    kind: Literal["auto", "flat", "hnsw", "ivf_flat", "ivf_pq"] = "auto"
    m: int = Field(default=16, ge=2, le=MAX_M)
    ef_construction: int = Field(default=200, ge=1, le=MAX_EF)
    ef_search: int = Field(default=0, ge=0, le=MAX_EF)
    quantization: Literal["auto", "none", "sq8", "sq4", "pq", "opq", "rabitq"] = "auto"
    subspaces: int = Field(default=0, ge=0, le=MAX_DIM)
    bits: int = Field(default=1, ge=1, le=8)
    nlist: int = Field(default=0, ge=0, le=MAX_NPROBE)
    nprobe: int = Field(default=0, ge=0, le=MAX_NPROBE)
    oversample: float = Field(default=0.0, ge=0, le=100, allow_inf_nan=False)
    vectors_on_disk: bool = False


class Collection(Body):
    """What a collection is; ``metric`` hamming goes with ``vector_type`` binary and with no other."""

    name: Name
    dim: int = Field(ge=1, le=MAX_DIM)
    metric: Literal["cosine", "dot", "l2", "hamming"] = "cosine"
    vector_type: Literal["float32", "float16", "int8", "uint8", "binary"] = "float32"
    index: Index = Index()
    indexed_fields: list[Annotated[str, Field(min_length=1, max_length=1024)]] | None = Field(
        default=None, max_length=MAX_INDEXED_FIELDS, description="null: every scalar field")


class CreateCollection(Collection):
    """A collection to be made.  How a cluster is to hold it, it decides itself where that is null; a node that is alone
    refuses more than one shard or replica, and a shard key.
    """

    model_config = ConfigDict(json_schema_extra={"examples": [
        {"name": "docs", "dim": 4, "metric": "cosine", "index": {"kind": "hnsw", "m": 32}}]})

    shards: int | None = Field(default=None, ge=1, le=MAX_COLLECTION_SHARDS)
    replication_factor: int | None = Field(default=None, ge=1, le=MAX_REPLICATION_FACTOR)
    shard_key: str | None = Field(default=None, min_length=1, max_length=MAX_WORD, description=(
        "a metadata field: records of one value of it are on one shard; ids must be distinct over all values"))
    expected_records: int | None = Field(default=None, ge=0, le=MAX_EXPECTED_RECORDS, description=(
        "shards are chosen for so many"))


class CollectionList(Body):
    collections: list[str]


class Description(Body):
    """``details``: segments, bytes, the state of the index."""

    name: str
    records: int
    collection: Collection | None = None
    details: Object


class Accepted(Body):
    """The work goes on; ``jobs`` is where it can be watched."""

    accepted: bool
    jobs: str


class UpsertColumns(Body):
    """Records as columns of one length; of equal ids the last wins.  Applied as a whole or not at all."""

    model_config = ConfigDict(json_schema_extra={"examples": [
        {"ids": [7, "7"], "vectors": [[0.1, 0.2, 0.3, 0.4], [1, 0, 0, 0]], "metadata": [{"year": 2021}, None]}]})

    ids: IdList
    vectors: Vectors
    metadata: MaybeObjects = None


class RecordIn(Body):
    id: OneId
    vector: Vector
    metadata: MaybeObject = None


class UpsertRecords(Body):
    """Records one by one; of equal ids the last wins.  Applied as a whole or not at all."""

    model_config = ConfigDict(json_schema_extra={"examples": [
        {"records": [{"id": 7, "vector": [0.1, 0.2, 0.3, 0.4], "metadata": {"year": 2021}}]}]})

    records: Annotated[Any, WithJsonSchema({"type": "array", "minItems": 1, "maxItems": MAX_BATCH_RECORDS,
                                            "items": {"$ref": "#/components/schemas/RecordIn"}})]


class PutRecord(Body):
    vector: Vector
    metadata: MaybeObject = None


class Position(Body):
    """Where a write is, as its reply says."""

    shard: int = Field(ge=0, le=MAX_INT_ID)
    log_index: int = Field(ge=0, le=MAX_INT_ID)


class WriteResult(Body):
    """What a write did; it is durable."""

    inserted: int
    updated: int
    deleted: int
    missing: int
    log_index: int
    shard: int = Field(description="where log_index is a place; 0 outside a cluster, and of a write to several shards")
    positions: list[Position] = Field(default=[], description=(
        "in a cluster: the places that a later read of the session must have seen"))


class Read(Body):
    """What a read sees of the writes before it, where collections have replicas; a node alone gives the strongest."""

    consistency: Level | None = Field(default=None, description=CONSISTENCY)
    session: list[Position] = Field(default=[], max_length=MAX_POSITIONS, description=(
        "writes that must be seen; those of other collections count for nothing"))


class Fetch(Read):
    model_config = ConfigDict(json_schema_extra={"examples": [{"ids": [7, "7"], "include": ["metadata"]}]})

    ids: FewIds
    include: Include = Field(default=["metadata", "vector"])
    encoding: Encoding = "list"


class Record(Body):
    """``metadata`` and ``vector`` are there if they were asked for."""

    id: OneId
    metadata: Object = None
    vector: Vector = None


class Records(Body):
    """The records that exist, in the order asked."""

    records: list[Record]


class DeleteRecords(Body):
    """Exactly one of the two; an empty filter is refused, ``"true"`` says that all records are meant."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"ids": [7, "7"]}, {"filter": "year < 2000"}],
                                                 "oneOf": [{"required": ["ids"]}, {"required": ["filter"]}]})

    ids: IdList = None
    filter: SomeFilter = None


class UpdateMetadata(Body):
    """``metadata``: one object for all ids, or one for each.

    ``merge``: top-level keys are set, and removed by null; otherwise the object is replaced.
    """

    model_config = ConfigDict(json_schema_extra={"examples": [{"ids": [7], "metadata": {"year": 2022, "old": None}}]})

    ids: IdList
    metadata: Patches
    merge: bool = True


class Scan(Read):
    """``after``: the ``cursor`` of the page before."""

    filter: Filter = None
    limit: int = Field(default=1_000, ge=1, le=MAX_PAGE)
    after: Annotated[int, Field(ge=0, le=MAX_INT_ID)] | Annotated[str, Field(pattern=POSITION)] = 0
    allow_partial: bool = Field(default=False, description=PARTIAL)
    include: Include = Field(default=["metadata"])
    encoding: Encoding = "list"


class Page(Body):
    """Pages may be shorter than asked where vectors are long; ``cursor`` is null on the last one."""

    records: list[Record]
    cursor: int | str | None = Field(description="a number, or, of a collection with several shards, a text")
    missing: list[str] = Field(default=[], description=MISSING)


class Count(Read):
    filter: Filter = None
    allow_partial: bool = Field(default=False, description=PARTIAL)


class CountReply(Body):
    count: int
    missing: list[str] = Field(default=[], description=MISSING)


class Query(Read):
    """Either ``vector`` or ``vectors``.

    ``within``: only records at most this distance away, still no more than ``k``.  ``ef_search``, ``nprobe``: search
    width, 0 lets the engine choose.  ``exact``: compare with every record.
    """

    model_config = ConfigDict(json_schema_extra={"examples": [
        {"vector": [0.1, 0.2, 0.3, 0.4], "k": 3, "filter": "year >= 2020", "include": ["metadata"]}],
        "oneOf": [{"required": ["vector"]}, {"required": ["vectors"]}]})

    vector: Vector = None
    vectors: Vectors = None
    k: int = Field(default=10, ge=1, le=MAX_K)
    filter: Filter = None
    include: Include = Field(default=[])
    within: float | None = Field(default=None, allow_inf_nan=False)
    ef_search: int = Field(default=0, ge=0, le=MAX_EF)
    nprobe: int = Field(default=0, ge=0, le=MAX_NPROBE)
    exact: bool = False
    explain: bool = False
    profile: bool = False
    allow_partial: bool = Field(default=False, description=PARTIAL)
    encoding: Encoding = "list"


class Match(Body):
    """``distance`` ascends; ``score`` descends: the similarity for cosine and dot, ``-distance`` otherwise."""

    id: OneId
    distance: float
    score: float
    metadata: Object = None
    vector: Vector = None


class Matches(Body):
    matches: list[Match]


class Cost(Body):
    """What the query took on the server."""

    queue_ms: float
    compute_ms: float
    batched: int
    hops: int
    comparisons: int


class QueryReply(Body):
    """``results``: one for each query, in their order.  ``missing``: what could not be searched, if anything."""

    results: list[Matches]
    plan: Object = None
    missing: list[str] = Field(default=[])
    cost: Cost | None = None


class Verified(Body):
    """``digest`` as the writes kept it up, ``computed`` as read now."""

    records: int
    log_index: int
    digest: str
    computed: str
    equal: bool


class Job(BaseModel):
    """A background job."""

    collection: str
    kind: str
    state: str
    stage: str
    done: int
    total: int
    error: str


class Jobs(Body):
    jobs: list[Job]


class Server(Body):
    """``details``: limits, memory, queues, collections open."""

    version: str
    api: str
    node_id: str
    uptime_s: float
    details: Object


class Grant(Body):
    """``collections``: names, or prefixes ending in ``*``; none: all."""

    role: RoleName
    collections: list[Annotated[str, Field(min_length=1, max_length=MAX_NAME_BYTES + 1)]] = Field(
        default=[], max_length=1_000)


class CreateKey(Body):
    """``ttl_s`` 0: it does not expire."""

    model_config = ConfigDict(json_schema_extra={"examples": [
        {"name": "search service", "grants": [{"role": "read", "collections": ["docs*"]}], "ttl_s": 86400.0}]})

    name: str = Field(min_length=1, max_length=128)
    grants: list[Grant] = Field(min_length=1, max_length=100)
    ttl_s: float = Field(default=0.0, ge=0, le=1e10, allow_inf_nan=False)


class RotateKey(Body):
    """The old secret is good for ``overlap_s`` more seconds."""

    overlap_s: float = Field(default=0.0, ge=0, le=1e10, allow_inf_nan=False)


class Key(Body):
    """Moments are seconds since 1970 UTC; 0: never."""

    id: str
    name: str
    grants: list[Grant]
    created_s: float
    expires_s: float
    last_used_s: float
    revoked: bool


class KeyWithSecret(Body):
    """The secret is shown this once."""

    key: Key
    secret: str


class Keys(Body):
    keys: list[Key]


class Health(Body):
    """``reasons``: why the node is not ready, if it is not; ``warnings``: what is amiss, be it ready or not."""

    status: Literal["ok", "unavailable"]
    ready: bool
    reasons: list[str]
    warnings: list[str]
    version: str
    uptime_s: float


class ErrorBody(Body):
    """``code``: canonical status name; ``kind``: the error's class; ``fields``: argument, what was given, limit."""

    code: str
    kind: str
    message: str
    retryable: bool
    fields: Object
    request_id: str


class ErrorReply(Body):
    error: ErrorBody
