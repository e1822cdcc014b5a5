# mypy: disable-error-code="untyped-decorator"
"""Vector code: LLVM vector instructions emitted through intrinsics, legal on every target.

The auto-vectorizer is not relied upon: each primitive is a loop over 64-byte vectors with several accumulators and one
reduction at the end.  LLVM splits the wide types where registers are narrower (AVX2, NEON).  Rows are padded with
zeros to whole 64-byte lines, so there is no tail.  All take 2-D C-contiguous arrays and row numbers that are in range
(nothing is checked), and return the sum over row ``i`` of ``a`` and row ``j`` of ``b``, of ``a``'s width.
"""

from collections.abc import Callable
from typing import Any

import llvmlite.binding as llvm
from llvmlite import ir
from numba import config, types
from numba.core import cgutils
from numba.extending import intrinsic

_I1, _I8, _I16, _I32, _I64 = (ir.IntType(bits) for bits in (1, 8, 16, 32, 64))
_F16, _F32 = ir.HalfType(), ir.FloatType()
_FAST = ("fast",)
_LINE_BYTES = 64
_ACCUMULATORS = 4


def host_has(feature: str) -> bool:
    """Whether code is generated for a host with ``feature`` (LLVM's name), Numba's overrides respected."""
    if config.CPU_FEATURES is not None:
        return f"+{feature}" in config.CPU_FEATURES.split(",")
    if config.CPU_NAME == "generic":
        return False
    return bool(llvm.get_host_cpu_features().get(feature, False))


def _row(context: Any, builder: Any, kind: Any, array: Any, index: Any) -> Any:
    """The address of row ``index`` as i64."""
    fields = context.make_array(kind)(context, builder, value=array)
    base = builder.ptrtoint(fields.data, _I64)
    stride = cgutils.unpack_tuple(builder, fields.strides, 2)[0]
    return builder.add(base, builder.mul(index, stride))


def _width_bytes(context: Any, builder: Any, kind: Any, array: Any) -> Any:
    fields = context.make_array(kind)(context, builder, value=array)
    return cgutils.unpack_tuple(builder, fields.strides, 2)[0]


def _load(builder: Any, address: Any, kind: Any) -> Any:
    return builder.load(builder.inttoptr(address, ir.PointerType(kind)), align=1)


def _call(builder: Any, name: str, result: Any, args: list[Any], fastmath: tuple[str, ...] = ()) -> Any:
    function = cgutils.get_or_insert_function(
        builder.module, ir.FunctionType(result, [arg.type for arg in args]), name)
    return builder.call(function, args, fastmath=fastmath)


def _fold(builder: Any, left: Any, right: Any, size: Any, stride: int, zero: Any,
          step: Callable[[Any, Any, Any, Any], Any]) -> Any:
    """Fold ``step(builder, acc, left, right)`` over ``size`` bytes, ``stride`` at a time; return the summed vector."""
    accumulators = [cgutils.alloca_once_value(builder, zero) for _ in range(_ACCUMULATORS)]
    wide = ir.Constant(_I64, stride * _ACCUMULATORS)
    whole = builder.sub(size, builder.urem(size, wide))
    floating = isinstance(zero.type.element, ir.FloatType)

    def advance(accumulator: Any, offset: Any) -> None:
        value = step(builder, builder.load(accumulator), builder.add(left, offset), builder.add(right, offset))
        builder.store(value, accumulator)

    start = ir.Constant(_I64, 0)
    with cgutils.for_range_slice(builder, start, whole, wide, intp=_I64) as (offset, _):
        for n, accumulator in enumerate(accumulators):
            advance(accumulator, builder.add(offset, ir.Constant(_I64, n * stride)))
    with cgutils.for_range_slice(builder, whole, size, ir.Constant(_I64, stride), intp=_I64) as (offset, _):
        advance(accumulators[0], offset)
    one, two, three, four = (builder.load(accumulator) for accumulator in accumulators)
    if floating:
        return builder.fadd(builder.fadd(one, two), builder.fadd(three, four))
    return builder.add(builder.add(one, two), builder.add(three, four))


def _sum_float(builder: Any, vector: Any) -> Any:
    return _call(builder, f"llvm.vector.reduce.fadd.v{vector.type.count}f32", _F32,
                 [ir.Constant(_F32, 0.0), vector], _FAST)


def _sum_int(builder: Any, vector: Any) -> Any:
    bits = vector.type.element.width
    return _call(builder, f"llvm.vector.reduce.add.v{vector.type.count}i{bits}", vector.type.element, [vector])


def _fma(builder: Any, a: Any, b: Any, c: Any) -> Any:
    return _call(builder, f"llvm.fma.v{a.type.count}f32", a.type, [a, b, c])


_V16F = ir.VectorType(_F32, 16)
_V16I = ir.VectorType(_I32, 16)


def _f32(builder: Any, address: Any) -> Any:
    return _load(builder, address, _V16F)


def _f16(builder: Any, address: Any) -> Any:
    return builder.fpext(_load(builder, address, ir.VectorType(_F16, 16)), _V16F)


def _i8(builder: Any, address: Any) -> Any:
    return builder.sext(_load(builder, address, ir.VectorType(_I8, 16)), _V16I)


def _u8(builder: Any, address: Any) -> Any:
    return builder.zext(_load(builder, address, ir.VectorType(_I8, 16)), _V16I)


def _float_dot(read: Any, builder: Any, acc: Any, left: Any, right: Any) -> Any:
    return _fma(builder, read(builder, left), read(builder, right), acc)


def _float_l2(read: Any, builder: Any, acc: Any, left: Any, right: Any) -> Any:
    difference = builder.fsub(read(builder, left), read(builder, right))
    return _fma(builder, difference, difference, acc)


def _int_dot(read: Any, builder: Any, acc: Any, left: Any, right: Any) -> Any:
    # both factors fit 16 bits, which LLVM sees: it emits the 16-bit multiply-add, not the slow 32-bit multiply
    return builder.add(acc, builder.mul(read(builder, left), read(builder, right)))


def _int_l2(read: Any, builder: Any, acc: Any, left: Any, right: Any) -> Any:
    difference = builder.sub(read(builder, left), read(builder, right))
    return builder.add(acc, builder.mul(difference, difference))


def _pairwise(name: str, read: Any, step: Any, stride: int, vector: Any, result: Any) -> Any:
    """An intrinsic ``f(a, i, b, j)``: the fold of ``step`` over two rows."""

    def define(typingctx: Any, a: Any, i: Any, b: Any, j: Any) -> Any:
        def generate(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
            left = _row(context, builder, a, args[0], args[1])
            right = _row(context, builder, b, args[2], args[3])
            size = _width_bytes(context, builder, a, args[0])
            total = _fold(builder, left, right, size, stride, ir.Constant(vector, None),
                          lambda *parts: step(read, *parts))
            return _sum_float(builder, total) if vector.element == _F32 else _sum_int(builder, total)

        return result(a, types.int64, b, types.int64), generate

    define.__name__ = define.__qualname__ = name
    return intrinsic(define)


dot_f32 = _pairwise("dot_f32", _f32, _float_dot, 64, _V16F, types.float32)
l2_f32 = _pairwise("l2_f32", _f32, _float_l2, 64, _V16F, types.float32)
dot_f16 = _pairwise("dot_f16", _f16, _float_dot, 32, _V16F, types.float32)
l2_f16 = _pairwise("l2_f16", _f16, _float_l2, 32, _V16F, types.float32)
dot_i8 = _pairwise("dot_i8", _i8, _int_dot, 16, _V16I, types.int32)
l2_i8 = _pairwise("l2_i8", _i8, _int_l2, 16, _V16I, types.int32)
dot_u8 = _pairwise("dot_u8", _u8, _int_dot, 16, _V16I, types.int32)
l2_u8 = _pairwise("l2_u8", _u8, _int_l2, 16, _V16I, types.int32)


_V8L = ir.VectorType(_I64, 8)


def _differing(_read: Any, builder: Any, acc: Any, left: Any, right: Any) -> Any:
    bits = builder.xor(_load(builder, left, _V8L), _load(builder, right, _V8L))
    return builder.add(acc, _call(builder, "llvm.ctpop.v8i64", _V8L, [bits]))


hamming = _pairwise("hamming", None, _differing, _LINE_BYTES, _V8L, types.int64)
"""Differing bits of two rows of whole 64-byte lines."""


def widen(_read: Any, builder: Any, acc: Any, left: Any, right: Any) -> Any:
    """Sixteen products of u8 codes and an s8 query, on any target."""
    return builder.add(acc, builder.mul(_u8(builder, left), _i8(builder, right)))


def vpdpbusd(_read: Any, builder: Any, acc: Any, left: Any, right: Any) -> Any:
    """Sixty-four products of u8 codes and an s8 query, in one instruction of AVX-512 VNNI."""
    vector = ir.VectorType(_I8, 64)
    return _call(builder, "llvm.x86.avx512.vpdpbusd.512", _V16I,
                 [acc, _load(builder, left, vector), _load(builder, right, vector)])


_MIXED = (vpdpbusd, _LINE_BYTES) if host_has("avx512vnni") else (widen, 16)

dot_u8_i8 = _pairwise("dot_u8_i8", None, *_MIXED, _V16I, types.int32)
"""Dot of unsigned codes with a signed query: exact below 2**31, so for any row up to 65,536 items."""


@intrinsic
def prefetch(typingctx: Any, array: Any, i: Any, lines: Any) -> Any:
    """Ask for the first ``lines`` cache lines of row ``i`` of a 2-D array."""

    def generate(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        row = _row(context, builder, array, args[0], args[1])
        size = builder.mul(args[2], ir.Constant(_I64, _LINE_BYTES))
        step = ir.Constant(_I64, _LINE_BYTES)
        with cgutils.for_range_slice(builder, ir.Constant(_I64, 0), size, step, intp=_I64) as (offset, _):
            _prefetch(builder, builder.add(row, offset))
        return context.get_dummy_value()

    return types.void(array, types.int64, types.int64), generate


def _prefetch(builder: Any, address: Any) -> None:
    pointer = builder.inttoptr(address, ir.PointerType(_I8))
    flags = [ir.Constant(_I32, value) for value in (0, 3, 1)]
    function = cgutils.get_or_insert_function(
        builder.module, ir.FunctionType(ir.VoidType(), [pointer.type, _I32, _I32, _I32]), "llvm.prefetch.p0")
    builder.call(function, [pointer, *flags])


_V8K = ir.VectorType(_I64, 8)
_LANES = ir.Constant(_V8K, list(range(8)))


def _splat(builder: Any, value: Any) -> Any:
    undefined = ir.Constant(_V8K, ir.Undefined)
    single = builder.insert_element(undefined, value, ir.Constant(_I32, 0))
    return builder.shuffle_vector(single, undefined, ir.Constant(ir.VectorType(_I32, 8), [0] * 8))


@intrinsic
def count_below(typingctx: Any, keys: Any, start: Any, stop: Any, key: Any) -> Any:
    """How many of ``keys[start:stop]`` (uint64, 1-D, eight more readable) are below ``key``, without branches."""

    def generate(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        data = context.make_array(keys)(context, builder, value=args[0]).data
        bound = _splat(builder, args[3])
        total = cgutils.alloca_once_value(builder, ir.Constant(_V8K, None))
        end = _splat(builder, args[2])
        with cgutils.for_range_slice(builder, args[1], args[2], ir.Constant(_I64, 8), intp=_I64) as (at, _):
            values = _load(builder, builder.ptrtoint(builder.gep(data, [at]), _I64), _V8K)
            inside = builder.icmp_unsigned("<", builder.add(_splat(builder, at), _LANES), end)
            below = builder.and_(inside, builder.icmp_unsigned("<", values, bound))
            builder.store(builder.add(builder.load(total), builder.zext(below, _V8K)), total)
        return _sum_int(builder, builder.load(total))

    return types.int64(keys, types.int64, types.int64, types.uint64), generate


@intrinsic
def make_room(typingctx: Any, keys: Any, position: Any, size: Any) -> Any:
    """Shift ``keys[position:size]`` (uint64, 1-D) up by one."""

    def generate(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        data = context.make_array(keys)(context, builder, value=args[0]).data
        base = builder.ptrtoint(data, _I64)
        eight, one = ir.Constant(_I64, 8), ir.Constant(_I64, 1)
        moved = builder.sub(args[2], args[1])
        whole = builder.and_(moved, ir.Constant(_I64, -8))
        # from the end down, so that nothing is overwritten before it is read
        with cgutils.for_range_slice(builder, ir.Constant(_I64, 0), whole, eight, intp=_I64) as (done, _):
            at = builder.sub(builder.sub(args[2], done), eight)
            source = builder.add(base, builder.mul(at, eight))
            values = _load(builder, source, _V8K)
            builder.store(values, builder.inttoptr(builder.add(source, eight), ir.PointerType(_V8K)), align=1)
        with cgutils.for_range_slice(builder, whole, moved, one, intp=_I64) as (done, _):
            at = builder.sub(builder.sub(args[2], done), one)
            source = builder.add(base, builder.mul(at, eight))
            value = _load(builder, source, _I64)
            builder.store(value, builder.inttoptr(builder.add(source, eight), ir.PointerType(_I64)), align=1)
        return context.get_dummy_value()

    return types.void(keys, types.int64, types.int64), generate


@intrinsic
def float_order(typingctx: Any, value: Any) -> Any:
    """A float32's bits as a uint64 below 2**32 that sorts as the floats do (NaN last)."""

    def generate(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        bits = builder.bitcast(args[0], _I32)
        sign = builder.ashr(bits, ir.Constant(_I32, 31))
        flip = builder.or_(sign, ir.Constant(_I32, 0x80000000))
        return builder.zext(builder.xor(bits, flip), _I64)

    return types.uint64(types.float32), generate


@intrinsic
def order_float(typingctx: Any, order: Any) -> Any:
    """The float32 of :func:`float_order`'s result."""

    def generate(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        bits = builder.trunc(args[0], _I32)
        sign = builder.ashr(bits, ir.Constant(_I32, 31))
        flip = builder.or_(builder.not_(sign), ir.Constant(_I32, 0x80000000))
        return builder.bitcast(builder.xor(bits, flip), _F32)

    return types.float32(types.uint64), generate


@intrinsic
def trailing_zeros(typingctx: Any, word: Any) -> Any:
    """Number of the lowest set bit of a uint64 (64 for none), int64."""

    def generate(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return _call(builder, "llvm.cttz.i64", _I64, [args[0], ir.Constant(_I1, 0)])

    return types.int64(types.uint64), generate


@intrinsic
def popcount(typingctx: Any, word: Any) -> Any:
    """Number of set bits of a uint64, int64."""

    def generate(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return _call(builder, "llvm.ctpop.i64", _I64, [args[0]])

    return types.int64(types.uint64), generate


@intrinsic
def pointer(typingctx: Any, address: Any) -> Any:
    """An int64 address as a void pointer, for ``numba.carray``."""

    def generate(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return builder.inttoptr(args[0], ir.PointerType(_I8))

    return types.voidptr(types.int64), generate
