"""Integer dot products of packed low-bit codes with an 8-bit query: the inner loops of SQ4 and RaBitQ.

- *nibbles*: two 4-bit components a byte.  A block of 32 bytes holds 64 components, the low nibbles the first 32 of
  them, so unpacking is one mask and one shift; the query is plain int8 in component order.
- *bytes*: one component a byte, the query int8.
- *planes*: a code is ``bits`` planes of one bit a component, 64 components a word.  The query's int8 components are
  transposed to eight planes as well, the eight words that meet one code word side by side: one code word,
  broadcast, meets all eight at once (and, ``llvm.ctpop`` on ``<8 x i64>``, add), so 64 dimensions against an 8-bit
  query cost three vector instructions a plane.  RaBitQ's authors quantize the query to 4 bits; here 8 cost the same.

Unsigned code times signed query is ``vpdpbusd`` where the host has it, a widening multiply-add elsewhere.  A
vector's float factors stand at the end of its row of codes and not in an array of their own: a beam jumps from
row to row, and each jump would miss the cache twice.
"""

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from vecdb.kernels.simd import _call, _load, _row, _sum_int, host_has

_I8, _I32, _I64, _F32 = ir.IntType(8), ir.IntType(32), ir.IntType(64), ir.FloatType()
_V8I, _V8L = ir.VectorType(_I32, 8), ir.VectorType(_I64, 8)
_V32B, _V32I = ir.VectorType(_I8, 32), ir.VectorType(_I32, 32)

HAS_VNNI = host_has("avx512vnni") and host_has("avx512vl")


def _const(value: int) -> Any:
    return ir.Constant(_I64, value)


def _splat(vector: Any, value: int) -> Any:
    return ir.Constant(vector, [value] * vector.count)


def _dot_add(builder: Any, total: Any, unsigned: Any, signed: Any) -> Any:
    """``total`` (<8 x i32>) plus the products of 32 unsigned and 32 signed bytes, four neighbours a lane."""
    if HAS_VNNI:
        return _call(builder, "llvm.x86.avx512.vpdpbusd.256", _V8I, [total, unsigned, signed])
    product = builder.mul(builder.zext(unsigned, _V32I), builder.sext(signed, _V32I))
    undefined = ir.Constant(_V32I, ir.Undefined)
    for phase in range(4):
        lanes = ir.Constant(_V8I, [4 * lane + phase for lane in range(8)])
        total = builder.add(total, builder.shuffle_vector(product, undefined, lanes))
    return total


@intrinsic  # type: ignore[untyped-decorator]
def dot_nibbles(typingctx: Any, codes: Any, i: Any, queries: Any, q: Any, count: Any) -> Any:
    """Dot product of ``count`` bytes of nibbles (a multiple of 32) of row ``i`` with int8 row ``q``."""

    def generate(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        row, query = _row(context, builder, codes, *args[:2]), _row(context, builder, queries, *args[2:4])
        totals = [cgutils.alloca_once_value(builder, _splat(_V8I, 0)) for _ in range(2)]
        with cgutils.for_range_slice(builder, _const(0), args[4], _const(32), intp=_I64) as (at, _):
            packed = _load(builder, builder.add(row, at), _V32B)
            nibbles = (builder.and_(packed, _splat(_V32B, 15)), builder.lshr(packed, _splat(_V32B, 4)))
            for half, total in enumerate(totals):
                address = builder.add(query, builder.add(builder.shl(at, _const(1)), _const(32 * half)))
                signed = _load(builder, address, _V32B)
                builder.store(_dot_add(builder, builder.load(total), nibbles[half], signed), total)
        return _sum_int(builder, builder.add(*map(builder.load, totals)))

    return types.int32(codes, types.int64, queries, types.int64, types.int64), generate


@intrinsic  # type: ignore[untyped-decorator]
def dot_bytes(typingctx: Any, codes: Any, i: Any, queries: Any, q: Any, count: Any) -> Any:
    """Dot product of ``count`` bytes (a multiple of 64) of uint8 row ``i`` with int8 row ``q``."""

    def generate(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        row, query = _row(context, builder, codes, *args[:2]), _row(context, builder, queries, *args[2:4])
        totals = [cgutils.alloca_once_value(builder, _splat(_V8I, 0)) for _ in range(2)]
        with cgutils.for_range_slice(builder, _const(0), args[4], _const(64), intp=_I64) as (at, _):
            for half, total in enumerate(totals):
                offset = builder.add(at, _const(32 * half))
                unsigned = _load(builder, builder.add(row, offset), _V32B)
                signed = _load(builder, builder.add(query, offset), _V32B)
                builder.store(_dot_add(builder, builder.load(total), unsigned, signed), total)
        return _sum_int(builder, builder.add(*map(builder.load, totals)))

    return types.int32(codes, types.int64, queries, types.int64, types.int64), generate


def planes_dot(bits: int) -> Any:
    """An intrinsic ``f(codes, i, queries, q, words)``: dot product of row ``i``'s ``bits`` planes with query ``q``'s.

    A plane is ``words`` uint64, least plane first.  ``queries`` uint64 (nq, 8 * words): word ``w``'s eight planes at
    ``8 w``, least first; the last one weighs -128.
    """

    def dot_planes(typingctx: Any, codes: Any, i: Any, queries: Any, q: Any, words: Any) -> Any:
        def generate(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
            row, query = _row(context, builder, codes, *args[:2]), _row(context, builder, queries, *args[2:4])
            stride = builder.shl(args[4], _const(3))
            totals = [cgutils.alloca_once_value(builder, _splat(_V8L, 0)) for _ in range(bits)]
            with cgutils.for_range_slice(builder, _const(0), stride, _const(8), intp=_I64) as (at, _):
                planes = _load(builder, builder.add(query, builder.shl(at, _const(3))), _V8L)
                code_at = builder.add(row, at)
                for total in totals:
                    met = builder.and_(_broadcast(builder, _load(builder, code_at, _I64)), planes)
                    count = _call(builder, "llvm.ctpop.v8i64", _V8L, [met])
                    builder.store(builder.add(builder.load(total), count), total)
                    code_at = builder.add(code_at, stride)
            return _weigh(builder, [builder.load(total) for total in totals])

        return types.int64(codes, types.int64, queries, types.int64, types.int64), generate

    dot_planes.__name__ = dot_planes.__qualname__ = f"dot_planes{bits}"
    return intrinsic(dot_planes)


def _broadcast(builder: Any, word: Any) -> Any:
    undefined = ir.Constant(_V8L, ir.Undefined)
    single = builder.insert_element(undefined, word, ir.Constant(_I32, 0))
    return builder.shuffle_vector(single, undefined, _splat(_V8I, 0))


def _weigh(builder: Any, totals: list[Any]) -> Any:
    """Sum counts by the weights of code planes (list, least first) and query planes (lanes; the last is negative)."""
    total = totals[-1]
    for lower in reversed(totals[:-1]):
        total = builder.add(builder.shl(total, _splat(_V8L, 1)), lower)
    weighed = builder.shl(total, ir.Constant(_V8L, list(range(8))))
    negative = builder.extract_element(weighed, ir.Constant(_I32, 7))
    return builder.sub(_sum_int(builder, weighed), builder.shl(negative, _const(1)))


@intrinsic  # type: ignore[untyped-decorator]
def row_float(typingctx: Any, codes: Any, i: Any, offset: Any) -> Any:
    """The float32 at byte ``offset`` of row ``i`` of a 2-D array of codes."""

    def generate(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return _load(builder, builder.add(_row(context, builder, codes, *args[:2]), args[2]), _F32)

    return types.float32(codes, types.int64, types.int64), generate
