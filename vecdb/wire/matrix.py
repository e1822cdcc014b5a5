"""Vectors as one ``bytes`` field, read once, and held against the schema as the SDK's facade does.

Reading a ``bytes`` field of a parsed message copies it, and what comes out cannot be written to.  The array that goes
on to the engine is writable (read-only arrays are other types to compiled kernels), so a batch that is stored as it
came is copied once more, at memory speed; every check is a pass over whole columns.
"""

from typing import Any, Final

import numpy as np
import numpy.typing as npt

from vecdb.core.errors import InvalidArgument, NonFiniteVector
from vecdb.core.schema import CollectionSchema, Metric, VectorType
from vecdb.core.vectors import check_queries, check_vectors, stored_dtype
from vecdb.v1 import types_pb2 as pb
from vecdb.wire.large import Piece, with_bytes

Array = npt.NDArray[Any]

_DTYPES: Final[dict[int, np.dtype[Any]]] = {
    pb.DATA_TYPE_FLOAT32: np.dtype("<f4"),
    pb.DATA_TYPE_FLOAT16: np.dtype("<f2"),
    pb.DATA_TYPE_FLOAT64: np.dtype("<f8"),
    pb.DATA_TYPE_INT8: np.dtype(np.int8),
    pb.DATA_TYPE_UINT8: np.dtype(np.uint8),
}
_NUMBERS: Final[dict[np.dtype[Any], int]] = {dtype: number for number, dtype in _DTYPES.items()}
_KNOWN: Final = "float32, float16, float64, int8, uint8"

UNIT_TOLERANCE: Final = 1e-3
"""How far from 1 the length of a vector may be that is said to be normalized: float16 rounds by up to half of it."""

_UNIT_LOW: Final = (1.0 - UNIT_TOLERANCE) ** 2
_UNIT_HIGH: Final = (1.0 + UNIT_TOLERANCE) ** 2
_FLOAT_TYPES: Final = (VectorType.FLOAT32, VectorType.FLOAT16)
_CHUNK_ITEMS: Final = 1 << 20


def matrix_to_wire(array: npt.ArrayLike) -> pb.Matrix:
    """Write a (rows, items) array of a dtype that a Matrix can hold; others are refused."""
    msg = pb.Matrix()
    put_matrix(msg, array)
    return msg


def put_matrix(msg: pb.Matrix, array: npt.ArrayLike) -> None:
    """:func:`matrix_to_wire` in place: a message given to another one's constructor is copied whole."""
    values = _head(msg, array)
    msg.data = values.tobytes()


def matrix_pieces(array: npt.ArrayLike) -> list[Piece]:
    """The bytes of :func:`matrix_to_wire`'s message, in pieces, the numbers borrowed where they may be."""
    msg = pb.Matrix()
    values = np.ascontiguousarray(_head(msg, array))
    return with_bytes(msg, pb.Matrix.DATA_FIELD_NUMBER, values.reshape(-1).view(np.uint8).data)


def _head(msg: pb.Matrix, array: npt.ArrayLike) -> Array:
    """Write all but the numbers, and return these as they travel."""
    values = np.asarray(array)
    if values.ndim != 2:
        raise InvalidArgument("vectors", f"a matrix has two dimensions, not {values.ndim}",
                              got=f"shape {values.shape}", limit="(rows, items)")
    number = _NUMBERS.get(values.dtype.newbyteorder("<"))
    if number is None:
        raise InvalidArgument("vectors", f"a matrix of {values.dtype} cannot be sent", got=f"dtype {values.dtype}",
                              limit=_KNOWN)
    msg.rows, msg.items = values.shape
    msg.dtype = number  # type: ignore[assignment]
    return values.astype(_DTYPES[number], copy=False)


def matrix_from_wire(msg: pb.Matrix, argument: str = "vectors") -> Array:
    """Return a read-only (rows, items) view of one read of ``msg.data``; its length and dtype are checked."""
    dtype = _DTYPES.get(msg.dtype)
    if dtype is None:
        given = "is not given" if msg.dtype == pb.DATA_TYPE_UNSPECIFIED else f"{msg.dtype} is unknown"
        raise InvalidArgument(argument, f"the dtype {given}; known are {_KNOWN}", got=int(msg.dtype), limit=_KNOWN)
    data, rows, items = msg.data, msg.rows, msg.items
    if len(data) != rows * items * dtype.itemsize:
        raise InvalidArgument(argument, f"{len(data)} bytes of data; {rows} rows of {items} {dtype.name} components "
                              f"take {rows * items * dtype.itemsize}", got=len(data),
                              limit=rows * items * dtype.itemsize)
    return np.ndarray((rows, items), dtype, buffer=data)


def stored_from_wire(schema: CollectionSchema, msg: pb.Matrix, normalized: bool) -> Array:
    """Return the (n, row_items) stored components of an upsert, writable; everything is checked."""
    raw = matrix_from_wire(msg)
    if normalized and _keeps_bits(schema, raw):
        _check_unit(raw, "vectors")
        return raw.copy()
    return check_vectors(schema, raw)


def queries_from_wire(schema: CollectionSchema, msg: pb.Matrix, normalized: bool) -> Array:
    """Return the (nq, row_items) stored components of queries, writable; a single one is named ``vector``."""
    raw = matrix_from_wire(msg, "vector")
    if normalized and _keeps_bits(schema, raw):
        _check_unit(raw, "vector")
        return raw.copy()
    return check_queries(schema, raw[0] if len(raw) == 1 else raw)[0]


def _keeps_bits(schema: CollectionSchema, raw: Array) -> bool:
    """Whether ``normalized`` can be taken at its word: unit vectors in the form they are stored in."""
    return (schema.metric is Metric.COSINE and schema.vector_type in _FLOAT_TYPES and raw.shape[1] == schema.dim
            and raw.dtype == stored_dtype(schema) and raw.shape[0] > 0)


def _check_unit(raw: Array, argument: str) -> None:
    """Raise unless every row has unit length; NaN and infinity have none."""
    if len(raw) == 1:
        row = raw[0] if raw.dtype.itemsize == 4 else raw[0].astype(np.float32)
        with np.errstate(all="ignore"):  # what overflows is infinite, and told below
            square = row.dot(row)
        if not _UNIT_LOW <= square <= _UNIT_HIGH:
            raise _not_unit(raw[0], argument if argument == "vector" else f"{argument}[0]")
        return
    step = max(1, _CHUNK_ITEMS // raw.shape[1])
    for low in range(0, len(raw), step):
        part = raw[low:low + step].astype(np.float32, copy=False)
        with np.errstate(all="ignore"):
            squares = np.einsum("ij,ij->i", part, part)
        if not (squares.min() >= _UNIT_LOW and squares.max() <= _UNIT_HIGH):
            bad = low + int(np.flatnonzero(~((squares >= _UNIT_LOW) & (squares <= _UNIT_HIGH)))[0])
            raise _not_unit(raw[bad], f"{argument}[{bad}]")


def _not_unit(row: Array, argument: str) -> InvalidArgument:
    wide = row.astype(np.float64)
    if not np.isfinite(wide).all():
        what = "NaN" if np.isnan(wide).any() else "infinity"
        return NonFiniteVector(argument, f"holds {what}", got=what, limit="finite components")
    length = float(np.sqrt(wide @ wide))
    return InvalidArgument(argument, f"has length {length:g}, and is said to be normalized", got=length,
                           limit=f"1 within {UNIT_TOLERANCE:g}")
