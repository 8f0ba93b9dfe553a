"""Vectors of pixels for numba: one 64-byte vector holds eight float64 or sixteen float32 pixels.

LLVM's loop vectoriser keeps no accumulators in registers across a loop over rows when the innermost
loop runs over pixels (measured: 7 Gflop/s in a batched Cholesky, 30 with these), and BLAS gives bits
that depend on the width of a matrix. Here every lane sees the same operations in the same order, with
explicit fused multiply-adds: a pixel's result depends neither on its place in a block nor on how wide
the processor's registers are; narrower ones split a vector in halves or quarters.
"""

from __future__ import annotations

import operator
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.typing.templates import AbstractTemplate, infer_global, signature
from numba.extending import intrinsic as _numba_intrinsic
from numba.extending import lower_builtin, models, register_model
from numpy.typing import DTypeLike, NDArray

VECTOR_BYTES = 64

# Untyped: the functions below are called without the typing context that they are written with.
intrinsic: Any = _numba_intrinsic


def aligned_zeros(n: int, dtype: DTypeLike) -> NDArray[Any]:
    """Flat array that starts on a cache line, so that no vector lies across two."""
    kind = np.dtype(dtype)
    raw = np.zeros(n * kind.itemsize + VECTOR_BYTES, np.uint8)
    start = -raw.ctypes.data % VECTOR_BYTES
    return raw[start : start + n * kind.itemsize].view(kind)


class Vector(types.Type):
    """Numba type of a vector of pixels of one float type."""

    def __init__(self, dtype):
        self.dtype = dtype
        self.lanes = VECTOR_BYTES * 8 // dtype.bitwidth
        super().__init__(name=f"Vector({dtype}x{self.lanes})")


def _llvm(vector: Vector) -> ir.VectorType:
    element = ir.DoubleType() if vector.dtype.bitwidth == 64 else ir.FloatType()
    return ir.VectorType(element, vector.lanes)


@register_model(Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, dmm, fe_type):
        super().__init__(dmm, fe_type, _llvm(fe_type))


def _arithmetic(op, build):
    @infer_global(op)
    class _Template(AbstractTemplate):
        def generic(self, args, kws):
            if not kws and len(args) == 2 and isinstance(args[0], Vector) and args[0] == args[1]:
                return signature(args[0], *args)
            return None

    @lower_builtin(op, Vector, Vector)
    def _lower(context, builder, sig, args):
        return getattr(builder, build)(*args)


for _op, _build in (
    (operator.add, "fadd"),
    (operator.sub, "fsub"),
    (operator.mul, "fmul"),
    (operator.truediv, "fdiv"),
):
    _arithmetic(_op, _build)


def _pointer(context, builder, array_type, array, index):
    data = context.make_array(array_type)(context, builder, array).data
    vector = _llvm(Vector(array_type.dtype))
    return builder.bitcast(builder.gep(data, [index]), vector.as_pointer())


def _call(builder, name, vector, args):
    llvm = _llvm(vector)
    function = cgutils.get_or_insert_function(
        builder.module,
        ir.FunctionType(llvm, [llvm] * len(args)),
        f"llvm.{name}.v{vector.lanes}f{vector.dtype.bitwidth}",
    )
    return builder.call(function, args)


@intrinsic
def load(typingctx, array, index):
    """Vector of the pixels from flat element `index` on of a contiguous array."""

    def codegen(context, builder, sig, args):
        value = builder.load(_pointer(context, builder, sig.args[0], args[0], args[1]))
        value.align = array.dtype.bitwidth // 8
        return value

    return Vector(array.dtype)(array, types.intp), codegen


@intrinsic
def store(typingctx, array, index, value):
    """Write a vector at flat element `index` of a contiguous array."""

    def codegen(context, builder, sig, args):
        done = builder.store(args[2], _pointer(context, builder, sig.args[0], args[0], args[1]))
        done.align = array.dtype.bitwidth // 8
        return context.get_dummy_value()

    return types.void(array, types.intp, value), codegen


@intrinsic
def splat(typingctx, array, value):
    """Vector of the array's type with the same number in every lane."""
    vector = Vector(array.dtype)

    def codegen(context, builder, sig, args):
        number = context.cast(builder, args[1], sig.args[1], vector.dtype)
        zero = ir.Constant(ir.IntType(32), 0)
        single = builder.insert_element(ir.Constant(_llvm(vector), ir.Undefined), number, zero)
        lanes = ir.Constant(ir.VectorType(ir.IntType(32), vector.lanes), [0] * vector.lanes)
        return builder.shuffle_vector(single, ir.Constant(_llvm(vector), ir.Undefined), lanes)

    return vector(array, value), codegen


@intrinsic
def fma(typingctx, a, b, c):
    """a * b + c, rounded once."""

    def codegen(context, builder, sig, args):
        return _call(builder, "fma", a, args)

    return a(a, a, a), codegen


@intrinsic
def fnma(typingctx, a, b, c):
    """c - a * b, rounded once."""

    def codegen(context, builder, sig, args):
        return _call(builder, "fma", a, [builder.fneg(args[0]), args[1], args[2]])

    return a(a, a, a), codegen


@intrinsic
def sqrt(typingctx, a):
    """Square root of every lane."""

    def codegen(context, builder, sig, args):
        return _call(builder, "sqrt", a, args)

    return a(a), codegen


@intrinsic
def total(typingctx, a):
    """Sum of all lanes, halves added to halves."""

    def codegen(context, builder, sig, args):
        value, lanes = args[0], a.lanes
        while lanes > 1:
            lanes //= 2
            parts = []
            for first in (0, lanes):
                index = ir.Constant(
                    ir.VectorType(ir.IntType(32), lanes),
                    [ir.Constant(ir.IntType(32), first + k) for k in range(lanes)],
                )
                parts.append(builder.shuffle_vector(value, ir.Constant(value.type, ir.Undefined), index))
            value = builder.fadd(*parts)
        return builder.extract_element(value, ir.Constant(ir.IntType(32), 0))

    return a.dtype(a), codegen


@intrinsic
def where_greater(typingctx, a, b, x, y):
    """x in the lanes where a > b, y in the others (and where a or b is NaN)."""

    def codegen(context, builder, sig, args):
        return builder.select(builder.fcmp_ordered(">", args[0], args[1]), args[2], args[3])

    return a(a, a, a, a), codegen


@intrinsic
def where_equal(typingctx, a, b, x, y):
    """x in the lanes where a == b, y in the others."""

    def codegen(context, builder, sig, args):
        return builder.select(builder.fcmp_ordered("==", args[0], args[1]), args[2], args[3])

    return a(a, a, a, a), codegen


@intrinsic
def any_greater(typingctx, a, b):
    """Whether a > b in any lane."""

    def codegen(context, builder, sig, args):
        test = builder.fcmp_ordered(">", args[0], args[1])
        bits = builder.bitcast(test, ir.IntType(a.lanes))
        return builder.icmp_unsigned("!=", bits, ir.Constant(ir.IntType(a.lanes), 0))

    return types.boolean(a, a), codegen


def _narrow(array_type, lanes):
    """LLVM vector of `lanes` elements as they lie in an array of float32, float64 or bool."""
    if isinstance(array_type.dtype, types.Boolean):
        return ir.VectorType(ir.IntType(8), lanes), 1
    size = array_type.dtype.bitwidth // 8
    return ir.VectorType(ir.FloatType() if size == 4 else ir.DoubleType(), lanes), size


def _row_pointer(context, builder, array_type, array, row, column, llvm):
    """Pointer to element [row, column] of a contiguous two-dimensional array."""
    parts = context.make_array(array_type)(context, builder, array)
    stride = builder.extract_value(parts.strides, 0)
    start = builder.add(builder.ptrtoint(parts.data, stride.type), builder.mul(row, stride))
    pointer = builder.inttoptr(start, parts.data.type)
    return builder.bitcast(builder.gep(pointer, [column]), llvm.as_pointer())


@intrinsic
def load_row(typingctx, like, array, row, column):
    """Vector, of the type of array `like`, of array[row, column ...] in float32, float64 or bool (1 or 0)."""
    vector = Vector(like.dtype)

    def codegen(context, builder, sig, args):
        narrow, size = _narrow(array, vector.lanes)
        value = builder.load(_row_pointer(context, builder, sig.args[1], args[1], args[2], args[3], narrow))
        value.align = size
        wide = _llvm(vector)
        if size == 1:
            return builder.uitofp(value, wide)
        if narrow == wide:
            return value
        return builder.fpext(value, wide) if size == 4 else builder.fptrunc(value, wide)

    return vector(like, array, types.intp, types.intp), codegen


@intrinsic
def store_row(typingctx, array, row, column, value):
    """Write a vector to array[row, column ...] in float32, float64 or bool (value > 0)."""

    def codegen(context, builder, sig, args):
        narrow, size = _narrow(array, value.lanes)
        pointer = _row_pointer(context, builder, sig.args[0], args[0], args[1], args[2], narrow)
        wide, out = _llvm(value), args[3]
        if size == 1:
            zero = ir.Constant(wide, [0.0] * value.lanes)
            out = builder.zext(builder.fcmp_ordered(">", out, zero), narrow)
        elif narrow != wide:
            out = builder.fptrunc(out, narrow) if size == 4 else builder.fpext(out, narrow)
        builder.store(out, pointer).align = size
        return context.get_dummy_value()

    return types.void(array, types.intp, types.intp, value), codegen


@intrinsic
def prefetch_row(typingctx, array, row, column):
    """Ask for the cache line of array[row, column], which may lie beyond the array's end."""

    def codegen(context, builder, sig, args):
        byte, number = ir.IntType(8), ir.IntType(32)
        pointer = _row_pointer(context, builder, sig.args[0], args[0], args[1], args[2], byte)
        function = cgutils.get_or_insert_function(
            builder.module,
            ir.FunctionType(ir.VoidType(), [byte.as_pointer(), number, number, number]),
            "llvm.prefetch.p0i8",
        )
        # for reading, to the second cache, data
        builder.call(function, [pointer, *(ir.Constant(number, value) for value in (0, 2, 1))])
        return context.get_dummy_value()

    return types.void(array, types.intp, types.intp), codegen
