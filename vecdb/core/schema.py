"""What a collection is: its vectors' shape and metric, its index, its indexed metadata fields.

A schema is immutable once made; ``to_json``/``from_json`` are the stored form (unknown keys are
errors, so a schema of a later version is refused instead of half understood).
"""

import dataclasses
import re
from dataclasses import dataclass, field
from enum import StrEnum
from functools import lru_cache
from typing import Any, Final, Self, TypeVar

import xxhash

from vecdb.core.errors import InvalidArgument, LimitExceeded, VecdbError
from vecdb.core.limits import MAX_DIM, MAX_EF, MAX_INDEXED_FIELDS, MAX_M, MAX_NAME_BYTES

_E = TypeVar("_E", bound=StrEnum)


class Metric(StrEnum):
    """How near two vectors are.  The distance a user sees always ascends:

    cosine ``1 - cos``; dot ``-dot``; l2 the Euclidean distance; hamming the number of differing bits.
    """

    COSINE = "cosine"
    DOT = "dot"
    L2 = "l2"
    HAMMING = "hamming"


class VectorType(StrEnum):
    """How a component is stored.  ``binary`` vectors are packed bits, eight to a uint8 (``dim`` counts bits)."""

    FLOAT32 = "float32"
    FLOAT16 = "float16"
    INT8 = "int8"
    UINT8 = "uint8"
    BINARY = "binary"


class IndexKind(StrEnum):
    AUTO = "auto"
    FLAT = "flat"
    HNSW = "hnsw"
    IVF_FLAT = "ivf_flat"
    IVF_PQ = "ivf_pq"


class Quantization(StrEnum):
    """Codes a sealed segment is traversed on; the best are reranked on the stored vectors."""

    AUTO = "auto"
    NONE = "none"
    SQ8 = "sq8"
    SQ4 = "sq4"
    PQ = "pq"
    OPQ = "opq"
    RABITQ = "rabitq"


def _bounded(argument: str, value: object, low: int, high: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise InvalidArgument(argument, f"must be an integer, not {type(value).__name__}",
                              got=type(value).__name__, limit=f"{low}..{high}")
    if not low <= value <= high:
        raise LimitExceeded(argument, f"{value} is outside {low}..{high}", got=value, limit=f"{low}..{high}")
    return value


def _member(argument: str, kind: type[_E], value: object) -> _E:
    try:
        return kind(value)  # type: ignore[arg-type]
    except ValueError:
        known = ", ".join(member.value for member in kind)
        raise InvalidArgument(argument, f"unknown value {value!r}; known are {known}",
                              got=value if isinstance(value, str) else type(value).__name__, limit=known) from None


@dataclass(frozen=True, slots=True)
class IndexSpec:
    """What index a collection's segments get.

    ``kind="auto"`` is exact below :data:`AUTO_HNSW_RECORDS` records a segment and HNSW above.
    ``m``, ``ef_construction``, ``ef_search``: the HNSW paper's; ``nlist``/``nprobe`` are IVF's (0 lets
    the size decide).  ``subspaces`` are PQ's (0: a quarter of the dimension), ``bits`` RaBitQ's (1..8).
    ``oversample``: how many candidates per result a coded search reranks on the stored vectors.
    ``vectors_on_disk`` leaves full vectors in the mapped file, read only for rerank.
    """

    kind: IndexKind = IndexKind.AUTO
    m: int = 16
    ef_construction: int = 200
    ef_search: int = 0
    quantization: Quantization = Quantization.AUTO
    subspaces: int = 0
    bits: int = 1
    nlist: int = 0
    nprobe: int = 0
    oversample: float = 0.0
    vectors_on_disk: bool = False

    def __post_init__(self) -> None:
        put = object.__setattr__
        put(self, "kind", _member("index", IndexKind, self.kind))
        put(self, "quantization", _member("quantization", Quantization, self.quantization))
        _bounded("m", self.m, 2, MAX_M)
        _bounded("ef_construction", self.ef_construction, 1, MAX_EF)
        _bounded("ef_search", self.ef_search, 0, MAX_EF)
        _bounded("subspaces", self.subspaces, 0, MAX_DIM)
        _bounded("bits", self.bits, 1, 8)
        _bounded("nlist", self.nlist, 0, 1 << 20)
        _bounded("nprobe", self.nprobe, 0, 1 << 20)
        if not isinstance(self.oversample, int | float) or not 0.0 <= self.oversample <= 100.0:
            raise LimitExceeded("oversample", f"{self.oversample!r} is outside 0..100",
                                got=self.oversample, limit="0..100 (0: chosen by the codes)")


AUTO_HNSW_RECORDS = 20_000
"""Records in a segment from which ``auto`` builds a graph: below, a scan answers in under a millisecond."""

NAME_PATTERN: Final = r"[A-Za-z0-9_][A-Za-z0-9_.\-]*"
@lru_cache(maxsize=1024)
def _shape(dim: int, metric: Metric, vector_type: VectorType) -> int:
    return xxhash.xxh32_intdigest(f"{dim} {metric.value} {vector_type.value}".encode()) or 1


_NAME = re.compile(NAME_PATTERN)
_LABEL = re.compile(rf"{NAME_PATTERN}@[1-9][0-9]{{0,18}}")


def collection_of(label: str) -> str:
    """The collection that a shard's label is of: what users are told, who know nothing of labels."""
    return label.partition("@")[0]


def check_shard(name: object) -> str:
    """Return what a shard is asked for by, or raise: a collection's name, or that with ``@`` and the shard's number."""
    if isinstance(name, str) and "@" in name and len(name) <= 2 * MAX_NAME_BYTES:
        if not _LABEL.fullmatch(name):
            raise InvalidArgument("name", f"{name[:MAX_NAME_BYTES]!r} is no shard's: it has a collection's name, '@' "
                                  "and a number", got=name[:MAX_NAME_BYTES], limit="docs@7")
        check_name(collection_of(name))
        return name
    return check_name(name)


def check_name(name: object) -> str:
    """Return a collection's name, or raise: letters, digits, ``_ . -``, up to 128 bytes, no leading dot or dash."""
    if not isinstance(name, str):
        raise InvalidArgument("name", f"must be a str, not {type(name).__name__}", got=type(name).__name__, limit="str")
    if len(name) > MAX_NAME_BYTES:
        raise LimitExceeded("name", f"{len(name)} characters, more than {MAX_NAME_BYTES}",
                            got=len(name), limit=MAX_NAME_BYTES)
    if not _NAME.fullmatch(name):
        raise InvalidArgument("name", f"{name!r} may hold letters, digits, '_', '.' and '-', and start with neither "
                              "'.' nor '-'", got=name, limit=_NAME.pattern)
    return name


@dataclass(frozen=True, slots=True)
class CollectionSchema:
    """Name, vector shape, metric, index and indexed fields of a collection.

    ``indexed_fields=None`` indexes every scalar path (up to the limit); a tuple names the only ones.
    """

    name: str
    dim: int
    metric: Metric = Metric.COSINE
    vector_type: VectorType = VectorType.FLOAT32
    index: IndexSpec = field(default_factory=IndexSpec)
    indexed_fields: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        put = object.__setattr__
        check_name(self.name)
        _bounded("dim", self.dim, 1, MAX_DIM)
        put(self, "metric", _member("metric", Metric, self.metric))
        put(self, "vector_type", _member("vector_type", VectorType, self.vector_type))
        self._check_pairing()
        if self.indexed_fields is not None:
            put(self, "indexed_fields", tuple(self.indexed_fields))
            if len(self.indexed_fields) > MAX_INDEXED_FIELDS:
                raise LimitExceeded("indexed_fields", f"{len(self.indexed_fields)} fields, more than "
                                    f"{MAX_INDEXED_FIELDS}", got=len(self.indexed_fields), limit=MAX_INDEXED_FIELDS)
            for path in self.indexed_fields:
                if not isinstance(path, str) or not path:
                    raise InvalidArgument("indexed_fields", "must hold non-empty dotted paths",
                                          got=repr(path), limit="non-empty str")

    def _check_pairing(self) -> None:
        binary = self.vector_type is VectorType.BINARY
        if binary != (self.metric is Metric.HAMMING):
            raise InvalidArgument("metric", "hamming goes with vector_type='binary' and with no other",
                                  got=f"{self.metric} with {self.vector_type}", limit="hamming <=> binary")
        if binary and self.dim % 8:
            raise InvalidArgument("dim", f"a binary collection's dim counts bits in whole bytes; {self.dim} is no "
                                  "multiple of 8", got=self.dim, limit="a multiple of 8")
        if binary and self.index.kind in (IndexKind.IVF_FLAT, IndexKind.IVF_PQ):
            raise InvalidArgument("index", f"{self.index.kind.value} averages vectors, which bits do not allow; binary "
                                  "vectors take auto, flat or hnsw", got=self.index.kind.value,
                                  limit="auto, flat, hnsw")
        if binary and self.index.quantization not in (Quantization.AUTO, Quantization.NONE):
            raise InvalidArgument("quantization", f"{self.index.quantization.value} codes numbers, and binary vectors "
                                  "are codes already", got=self.index.quantization.value, limit="auto, none")

    @property
    def shape(self) -> int:
        """What vectors of the collection must be like, as 32 bits that are never 0: dimension, metric and type.

        Data that was checked against one schema carries it, so that another one of the same name refuses it.
        """
        return _shape(self.dim, self.metric, self.vector_type)

    @property
    def row_items(self) -> int:
        """Items of one vector as given by a caller: ``dim``, or ``dim / 8`` bytes for binary vectors."""
        return self.dim // 8 if self.vector_type is VectorType.BINARY else self.dim

    def labelled(self, label: str) -> Self:
        """The same under the name that a node holds one of the collection's shards under: ``name@group``."""
        if not _LABEL.fullmatch(label):
            raise InvalidArgument("label", "must be a collection's name, '@' and a number", got=label[:MAX_NAME_BYTES],
                                  limit=_LABEL.pattern)
        made = object.__new__(type(self))
        for one in dataclasses.fields(self):
            object.__setattr__(made, one.name, label if one.name == "name" else getattr(self, one.name))
        return made

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; :meth:`from_json` is the inverse."""
        return dataclasses.asdict(self, dict_factory=lambda pairs: {
            key: value.value if isinstance(value, StrEnum) else value for key, value in pairs})

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Self:
        """What was stored; the name may be a shard's label."""
        try:
            parts = dict(value)
            label = parts["name"]
            if isinstance(label, str) and "@" in label:
                return cls.from_json({**parts, "name": collection_of(label)}).labelled(label)
            parts["index"] = IndexSpec(**parts["index"])
            if parts.get("indexed_fields") is not None:
                parts["indexed_fields"] = tuple(parts["indexed_fields"])
            return cls(**parts)
        except (TypeError, KeyError) as error:
            raise VecdbError(f"a stored schema cannot be understood: {error}") from error
