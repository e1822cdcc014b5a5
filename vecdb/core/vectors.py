"""Vectors at the edge: whatever a caller gives becomes stored components here, once, or is refused.

``to_array`` accepts anything NumPy reads as numbers; ``check_vectors`` and ``check_queries`` hold it
against the schema.  What comes out is the schema's dtype, C-contiguous, aligned, writable and native,
and of unit length for cosine over float types, so that kernels see one signature and no later layer
checks again.  int8, uint8 and binary components are stored as given (their cosine divides by norms).

Lengths are computed in float64: a float32 vector of components near 1e-30 or 1e30 has a length that
float32 squares cannot hold.
"""

import math
from collections.abc import Sized
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from vecdb.core.errors import DimensionMismatch, InvalidArgument, LimitExceeded, NonFiniteVector
from vecdb.core.limits import MAX_QUERY_ROWS
from vecdb.core.schema import CollectionSchema, Metric, VectorType

Array = npt.NDArray[Any]

MAX_NORM: Final = 9.0e18
"""Longest vector of a dot or l2 collection.  (2 * 9e18) ** 2 is just below float32's largest, so neither a
squared distance nor a partial sum of a dot product can become infinite or NaN inside a kernel."""

_SURELY_SHORT: Final = float(np.float32(MAX_NORM)) ** 2 * 0.99
"""A squared length in float32, rounding and all."""

_CHUNK_ITEMS: Final = 1 << 20
"""float64 items normalised at a time: bounds the temporary copy to 8 MiB."""

_SAFE_NORMS: Final = (1e-140, 1e140)
"""Outside of these a float64 sum of squares may under- or overflow, and the row is scaled first."""

_STORED: Final[dict[VectorType, np.dtype[Any]]] = {
    VectorType.FLOAT32: np.dtype(np.float32),
    VectorType.FLOAT16: np.dtype(np.float16),
    VectorType.INT8: np.dtype(np.int8),
    VectorType.UINT8: np.dtype(np.uint8),
    VectorType.BINARY: np.dtype(np.uint8),
}


def stored_dtype(schema: CollectionSchema) -> np.dtype[Any]:
    """The dtype of a stored component."""
    return _STORED[schema.vector_type]


def row_bytes(schema: CollectionSchema) -> int:
    """Bytes of one stored vector, unpadded."""
    return schema.row_items * stored_dtype(schema).itemsize


def to_array(value: object, argument: str, *, first: int = 0) -> Array:
    """Return ``value`` as a numeric or bool array, borrowed where it is one; refuse everything else.

    ``first`` is added to row numbers in messages.
    """
    if isinstance(value, np.ma.MaskedArray) and np.ma.is_masked(value):
        raise InvalidArgument(argument, "a masked array has components that are missing", got="masked array",
                              limit="components that are all present")
    try:
        array: Array = np.asarray(value)
    except Exception as error:
        raise _unreadable(value, argument, first, error) from None
    if array.dtype.kind not in "fiub":
        kind = type(value).__name__ if array.ndim == 0 else f"dtype {array.dtype}"
        raise InvalidArgument(argument, f"must hold real numbers, not {kind}", got=kind,
                              limit="an array of float, int or uint")
    return array


def check_vectors(schema: CollectionSchema, value: object, argument: str = "vectors", *, first: int = 0) -> Array:
    """Return (n, row_items) stored components of the (n, dim) numbers in ``value``.

    Binary collections take packed bits (n, dim/8), the first bit the highest, or 0/1 values (n, dim).
    The result is fresh, or borrowed when the input has the stored form already.  ``first`` is added to
    row numbers in messages, for callers that check a long input slice by slice.
    """
    raw = to_array(value, argument)
    if raw.size == 0 and raw.shape[:1] == (0,):
        raise InvalidArgument(argument, "holds no vectors", got=f"shape {raw.shape}", limit="at least one vector")
    if raw.ndim != 2:
        hint = "; for a single vector give [vector]" if raw.ndim == 1 else ""
        raise DimensionMismatch(argument, f"must have two dimensions (n, {schema.dim}), not {raw.ndim}{hint}",
                                got=f"shape {raw.shape}", limit=f"(n, {schema.dim})")
    return _stored(schema, raw, argument, first)


def check_queries(schema: CollectionSchema, value: object, argument: str = "vector") -> tuple[Array, bool]:
    """Return (nq, row_items) stored components, and whether ``value`` was a single, 1-D query."""
    if type(value) is np.ndarray and value.dtype == np.float32 and value.size == schema.dim and value.ndim <= 2 \
            and value.shape[-1] == schema.dim and schema.vector_type is VectorType.FLOAT32 \
            and schema.metric in (Metric.L2, Metric.DOT):
        # Nearly every query of such a collection: one call tells that all components are finite and no product can
        # overflow.  What it does not let through is looked at again below, which says what is wrong.
        row = value.ravel()
        with np.errstate(all="ignore"):
            short = row.dot(row) < _SURELY_SHORT
        if short:
            return np.array(row[None, :], np.float32), value.ndim == 1
    if not isinstance(value, np.ndarray) and isinstance(value, Sized) and len(value) > MAX_QUERY_ROWS:
        raise _too_many(argument, len(value))  # before it is made an array
    raw = to_array(value, argument)
    if raw.ndim == 1:
        return _stored(schema, raw[None, :], argument, None), True
    if raw.ndim == 2 and raw.shape[0] > MAX_QUERY_ROWS:
        raise _too_many(argument, raw.shape[0])
    if raw.ndim != 2:
        raise DimensionMismatch(argument, f"must be one vector ({schema.dim},) or many (n, {schema.dim}), "
                                f"not {raw.ndim} dimensions", got=f"shape {raw.shape}", limit=f"(n, {schema.dim})")
    return check_vectors(schema, raw, argument), False


def _too_many(argument: str, count: int) -> LimitExceeded:
    return LimitExceeded(argument, f"{count} queries in one call, more than {MAX_QUERY_ROWS}", got=count,
                         limit=MAX_QUERY_ROWS)


def _unreadable(value: object, argument: str, first: int, error: Exception) -> InvalidArgument:
    """Name the first row of another length, which is why NumPy refuses a nested sequence nearly always."""
    if isinstance(value, list | tuple):
        try:
            lengths = [len(row) for row in value]
        except Exception:
            lengths = []
        for row, length in enumerate(lengths):
            if length != lengths[0]:
                return DimensionMismatch(f"{argument}[{first + row}]", f"has {length} components where the first has "
                                         f"{lengths[0]}", got=length, limit=lengths[0])
    return InvalidArgument(argument, f"cannot be read as an array of numbers: {error}", got=type(value).__name__,
                           limit="an array of float, int or uint")


def _row(argument: str, first: int | None, row: int) -> str:
    return argument if first is None else f"{argument}[{first + int(row)}]"


def _stored(schema: CollectionSchema, raw: Array, argument: str, first: int | None) -> Array:
    """``raw`` has two dimensions; ``first`` is None when its only row is the argument itself."""
    width = raw.shape[1]
    binary = schema.vector_type is VectorType.BINARY
    if width != schema.dim and not (binary and width == schema.row_items):
        wanted = f"{schema.row_items} packed bytes or {schema.dim} bits" if binary else f"{schema.dim}"
        raise DimensionMismatch(argument, f"vectors of dimension {width} in a collection of dimension {wanted}",
                                got=width, limit=schema.dim)
    if raw.dtype.kind == "b" and not (binary and width == schema.dim):
        raise InvalidArgument(argument, "must hold numbers, not bool", got="dtype bool",
                              limit="an array of float, int or uint")
    # What over- or underflows is looked for below; a caller's np.seterr(all="raise") must not find it first.
    with np.errstate(all="ignore"):
        if binary:
            stored = _binary(schema, raw, argument, first)
        elif schema.vector_type in (VectorType.INT8, VectorType.UINT8):
            stored = _integers(schema, raw, argument, first)
        elif schema.metric is Metric.COSINE:
            stored = _unit(schema, raw, argument, first)
        else:
            stored = _floats(schema, raw, argument, first)
    # Read-only or unaligned arrays are other types to compiled kernels: one copy here saves a compilation there.
    return stored if stored.flags.carray else np.require(stored, requirements=["C", "A", "W"])


def _refuse_non_finite(raw: Array, argument: str, first: int | None) -> None:
    finite = np.isfinite(raw).all(axis=1)
    if not finite.all():
        row = int(np.flatnonzero(~finite)[0])
        what = "NaN" if np.isnan(raw[row]).any() else "infinity"
        raise NonFiniteVector(_row(argument, first, row), f"holds {what}", got=what, limit="finite components")


def _floats(schema: CollectionSchema, raw: Array, argument: str, first: int | None) -> Array:
    dtype = stored_dtype(schema)
    stored = raw.astype(dtype, order="C", copy=False)
    largest = float(np.finfo(dtype).max) if dtype == np.float16 else MAX_NORM / math.sqrt(schema.dim)
    low, high = float(stored.min()), float(stored.max())
    if -largest <= low and high <= largest:  # false for NaN as well, which min and max hand on
        return stored
    _refuse_non_finite(raw, argument, first)
    finite = np.isfinite(stored).all(axis=1)
    if not finite.all():
        row = int(np.flatnonzero(~finite)[0])
        raise NonFiniteVector(_row(argument, first, row), f"a component is infinite as {dtype}, whose largest is "
                              f"{np.finfo(dtype).max:g}", got="overflow", limit=float(np.finfo(dtype).max))
    wide = stored.astype(np.float64)
    norms = np.sqrt(np.einsum("ij,ij->i", wide, wide))
    if float(norms.max()) > MAX_NORM:
        row = int(np.argmax(norms))
        raise LimitExceeded(_row(argument, first, row), f"a vector of length {norms[row]:g}; distances would "
                            f"overflow above {MAX_NORM:g}", got=float(norms[row]), limit=MAX_NORM)
    return stored


def _unit(schema: CollectionSchema, raw: Array, argument: str, first: int | None) -> Array:
    if raw.shape[0] == 1:
        # One query: a third of the time of the loop below, which also says what is wrong with odd ones.
        row = raw[0].astype(np.float64)
        squared = float(row.dot(row))
        if _SAFE_NORMS[0] < squared < _SAFE_NORMS[1]:
            row /= math.sqrt(squared)
            one: Array = row[None, :].astype(stored_dtype(schema))
            return one
    out = np.empty(raw.shape, dtype=stored_dtype(schema))
    step = max(1, _CHUNK_ITEMS // schema.dim)
    for low in range(0, raw.shape[0], step):
        part = raw[low:low + step]
        base = None if first is None else first + low
        wide = part.astype(np.float64)
        norms = np.sqrt(np.einsum("ij,ij->i", wide, wide))
        safe = (norms > _SAFE_NORMS[0]) & (norms < _SAFE_NORMS[1])
        if not safe.all():
            _refuse_non_finite(wide, argument, base)
            unsafe = np.flatnonzero(~safe)
            scales = np.abs(wide[unsafe]).max(axis=1)
            if not scales.all():
                raise _zero(argument, base, int(unsafe[np.flatnonzero(scales == 0.0)[0]]))
            wide[unsafe] /= scales[:, None]
            norms[unsafe] = np.sqrt(np.einsum("ij,ij->i", wide[unsafe], wide[unsafe]))
        np.divide(wide, norms[:, None], out=wide)
        out[low:low + step] = wide
    return out


def _zero(argument: str, first: int | None, row: int) -> NonFiniteVector:
    return NonFiniteVector(_row(argument, first, row), "is zero: it has no direction to compare by cosine",
                           got="a zero vector", limit="a vector of positive length")


def _integers(schema: CollectionSchema, raw: Array, argument: str, first: int | None) -> Array:
    dtype = stored_dtype(schema)
    if raw.dtype.kind == "f":
        _refuse_non_finite(raw, argument, first)
        whole = (raw == np.rint(raw)).all(axis=1)
        if not whole.all():
            raise InvalidArgument(_row(argument, first, int(np.flatnonzero(~whole)[0])),
                                  f"a {dtype} collection stores whole numbers; scale and round first",
                                  got="fractions", limit=f"whole numbers of {dtype}")
    bounds = np.iinfo(dtype)
    if raw.dtype != dtype and (raw.min() < bounds.min or raw.max() > bounds.max):
        outside = ((raw < bounds.min) | (raw > bounds.max)).any(axis=1)
        row = int(np.flatnonzero(outside)[0])
        raise LimitExceeded(_row(argument, first, row), f"a component is outside {dtype}'s {bounds.min}..{bounds.max}",
                            got=f"{raw[row].min()}..{raw[row].max()}", limit=f"{bounds.min}..{bounds.max}")
    stored = raw.astype(dtype, order="C", copy=False)
    if schema.metric is Metric.COSINE:
        filled = stored.any(axis=1)
        if not filled.all():
            raise _zero(argument, first, int(np.flatnonzero(~filled)[0]))
    return stored


def _binary(schema: CollectionSchema, raw: Array, argument: str, first: int | None) -> Array:
    packed = raw.shape[1] == schema.row_items
    if raw.dtype.kind == "f":
        raise InvalidArgument(argument, f"binary vectors are uint8 or bool, not {raw.dtype}", got=f"dtype {raw.dtype}",
                              limit="packed uint8 (n, dim/8), or bool (n, dim)")
    largest = 255 if packed else 1
    if raw.dtype.kind != "b" and (raw.min() < 0 or raw.max() > largest):
        row = int(np.flatnonzero(((raw < 0) | (raw > largest)).any(axis=1))[0])
        what = "a packed byte" if packed else "a bit"
        raise LimitExceeded(_row(argument, first, row), f"{what} is outside 0..{largest}",
                            got=f"{raw[row].min()}..{raw[row].max()}", limit=f"0..{largest}")
    if packed:
        return raw.astype(np.uint8, order="C", copy=False)
    return np.packbits(raw.astype(np.bool_, copy=False), axis=1)
