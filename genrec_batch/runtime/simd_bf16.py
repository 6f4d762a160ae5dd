"""Sixteen floats at once in compiled attention, bf16 by its bits, and 8-bit numbers with a scale.

Owns: operations on numbers that numba lacks: floats as integers, bf16, loads and stores of 16 numbers. Must not know:
queries, keys, rows. Numbers are float32, bf16 in an array of uint16, or int8; both are widened when they are loaded:
bf16 is the upper half of a float32.

LLVM compiles vectors to AVX-512, or to several smaller ones. numba does not compile a cached kernel again when this
file changes: the kernel files that use it contain its fingerprint, which a test checks.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

WIDTH = 16
I8, I16, I32, I64, F32 = ir.IntType(8), ir.IntType(16), ir.IntType(32), ir.IntType(64), ir.FloatType()
FLOATS, WORDS, HALVES, BYTES = (ir.VectorType(kind, WIDTH) for kind in (F32, I32, I16, I8))
MOST = 127  # of 8-bit numbers
LEAST = -87.0  # exp of a smaller number is computed as exp of this
LOG2_E, LN2_HIGH, LN2_LOW = 1.44269504, 0.693359375, -2.12194440e-4
POLYNOMIAL = (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 0.5)
declared: Any = cgutils.get_or_insert_function
_variable: Any = cgutils.alloca_once_value


def _of_bits(_typing: Any, _bits: Any) -> Any:
    """Return the float32 of an int32's bits."""

    def codegen(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], F32)

    return types.float32(types.int32), codegen


def _magnitude(_typing: Any, _number: Any) -> Any:
    """Return the bits of |x|, which sort like |x|; those of NaN are above all others."""

    def codegen(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.and_(builder.bitcast(arguments[0], I32), ir.Constant(I32, 0x7FFFFFFF))

    return types.int32(types.float32), codegen


def _ordered(_typing: Any, number: Any) -> Any:
    """Return the integer that sorts like a float32, or the float32 of that integer: both flip the same bits."""
    floats = isinstance(number, types.Float)

    def codegen(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        bits = builder.bitcast(arguments[0], I32)
        negative = builder.ashr(bits, ir.Constant(I32, 31))
        flipped = builder.xor(bits, builder.and_(negative, ir.Constant(I32, 0x7FFFFFFF)))
        return flipped if floats else builder.bitcast(flipped, F32)

    return (types.int32(types.float32) if floats else types.float32(types.int32)), codegen


def _widen(_typing: Any, number: Any) -> Any:
    """Return the float32 of bf16 bits, and a float32 as it is."""
    floats = number == types.float32

    def codegen(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        if floats:
            return arguments[0]
        return builder.bitcast(builder.shl(builder.zext(arguments[0], I32), ir.Constant(I32, 16)), F32)

    return types.float32(number if floats else types.uint16), codegen


def _narrow(_typing: Any, _number: Any) -> Any:
    """Return the bits of the bf16 nearest to a float32, ties to even; NaN stays NaN."""

    def codegen(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return _halved(builder, arguments[0], I32, I16)

    return types.uint16(types.float32), codegen


def _halved(builder: Any, number: Any, bits_type: Any, half_type: Any) -> Any:
    def same(x: int) -> Any:
        return ir.Constant(bits_type, [x] * WIDTH if bits_type == WORDS else x)

    bits = builder.bitcast(number, bits_type)
    odd = builder.and_(builder.lshr(bits, same(16)), same(1))
    rounded = builder.add(bits, builder.add(odd, same(0x7FFF)))
    kept = builder.select(builder.fcmp_unordered("uno", number, number), same(0x7FC00000), rounded)
    return builder.trunc(builder.lshr(kept, same(16)), half_type)


of_bits: Any = intrinsic(_of_bits)
magnitude: Any = intrinsic(_magnitude)
ordered: Any = intrinsic(_ordered)
widen: Any = intrinsic(_widen)
narrow: Any = intrinsic(_narrow)


def place_of(context: Any, builder: Any, array: Any, value: Any, index: Any) -> Any:
    """Return the address of an array's element."""
    view = context.make_array(array)(context, builder, value)
    return builder.gep(view.data, [index])


def load(builder: Any, array: Any, place: Any) -> Any:
    """Return the 16 numbers at an address as float32."""
    if array.dtype == types.float32:
        return builder.load(builder.bitcast(place, FLOATS.as_pointer()), align=4)
    if array.dtype == types.int8:
        whole = builder.load(builder.bitcast(place, BYTES.as_pointer()), align=1)
        return builder.sitofp(builder.sext(whole, WORDS), FLOATS)
    halves = builder.load(builder.bitcast(place, HALVES.as_pointer()), align=2)
    return builder.bitcast(builder.shl(builder.zext(halves, WORDS), ir.Constant(WORDS, [16] * WIDTH)), FLOATS)


def fused(builder: Any, a: Any, b: Any, c: Any) -> Any:
    """Return a x b + c, rounded once, of 16 numbers each."""
    function = declared(builder.module, ir.FunctionType(FLOATS, [FLOATS] * 3), f"llvm.fma.v{WIDTH}f32")
    return builder.call(function, [a, b, c])


def mask(lanes: list[int]) -> Any:
    """Return a shuffle's choice of lanes from two vectors."""
    return ir.Constant(ir.VectorType(I32, len(lanes)), lanes)


def spread(builder: Any, number: Any, kind: Any) -> Any:
    """Return a vector of 16 copies of a number."""
    nothing = ir.Constant(kind, ir.Undefined)
    one = builder.insert_element(nothing, number, ir.Constant(I32, 0))
    return builder.shuffle_vector(one, nothing, mask([0] * WIDTH))


def everywhere(builder: Any, number: Any) -> Any:
    """Return a vector of 16 copies of a float32."""
    return spread(builder, number, FLOATS)


def store(builder: Any, array: Any, place: Any, vector: Any) -> None:
    """Write 16 numbers to an address, as bf16 where the array has uint16."""
    if array.dtype == types.float32:
        builder.store(vector, builder.bitcast(place, FLOATS.as_pointer()), align=4)
    else:
        builder.store(_halved(builder, vector, WORDS, HALVES), builder.bitcast(place, HALVES.as_pointer()), align=2)


def _move(_typing: Any, array: Any, _at: Any, out: Any, _o: Any) -> Any:
    """Copy 16 numbers from one array to another, converted to its type."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kinds = signature.args
        place = place_of(context, builder, kinds[0], *arguments[:2])
        _copy(builder, kinds[0], place, kinds[2], place_of(context, builder, kinds[2], *arguments[2:]))
        return context.get_dummy_value()

    return types.void(array, types.intp, out, types.intp), codegen


def _copy(builder: Any, array: Any, place: Any, out: Any, into: Any) -> None:
    if array.dtype == out.dtype == types.uint16:
        halves = HALVES.as_pointer()
        builder.store(builder.load(builder.bitcast(place, halves), align=2), builder.bitcast(into, halves), align=2)
    else:
        store(builder, out, into, load(builder, array, place))


def _pack(_typing: Any, array: Any, _at: Any, _size: Any, out: Any, _o: Any) -> Any:
    """Copy `size` numbers, a multiple of 16, to another array, converted to its type, and return their scale.

    To int8: divided by the scale, the largest magnitude / 127, and rounded. The scale of other types is 1. Where a
    number is not finite, the scale is not.
    """

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kinds = signature.args
        first, into = (place_of(context, builder, kinds[i], arguments[i], arguments[i + 1]) for i in (0, 3))
        vectors = builder.udiv(arguments[2], ir.Constant(I64, WIDTH))

        def at(place: Any, vector: Any) -> Any:
            return builder.gep(place, [builder.mul(vector, ir.Constant(I64, WIDTH))])

        if kinds[3].dtype != types.int8:
            with cgutils.for_range(builder, vectors) as loop:
                _copy(builder, kinds[0], at(first, loop.index), kinds[3], at(into, loop.index))
            return ir.Constant(F32, 1.0)
        most = _variable(builder, ir.Constant(WORDS, None))
        with cgutils.for_range(builder, vectors) as loop:
            bits = builder.bitcast(load(builder, kinds[0], at(first, loop.index)), WORDS)
            bits, before = builder.and_(bits, ir.Constant(WORDS, [0x7FFFFFFF] * WIDTH)), builder.load(most)
            builder.store(builder.select(builder.icmp_signed(">", bits, before), bits, before), most)
        highest = declared(builder.module, ir.FunctionType(I32, [WORDS]), f"llvm.vector.reduce.smax.v{WIDTH}i32")
        largest = builder.bitcast(builder.call(highest, [builder.load(most)]), F32)
        some = builder.fcmp_ordered(">", largest, ir.Constant(F32, 0.0))
        inverse = builder.select(some, builder.fdiv(ir.Constant(F32, MOST), largest), ir.Constant(F32, 0.0))
        shift = ir.Constant(FLOATS, [MOST + 1.5] * WIDTH)  # truncation of numbers above 0 rounds
        with cgutils.for_range(builder, vectors) as loop:
            number = load(builder, kinds[0], at(first, loop.index))
            above = builder.fptosi(fused(builder, number, everywhere(builder, inverse), shift), WORDS)
            whole = builder.trunc(builder.sub(above, ir.Constant(WORDS, [MOST + 1] * WIDTH)), BYTES)
            builder.store(whole, builder.bitcast(at(into, loop.index), BYTES.as_pointer()), align=1)
        return builder.fdiv(largest, ir.Constant(F32, MOST))

    return types.float32(array, types.intp, types.intp, out, types.intp), codegen


move: Any = intrinsic(_move)
pack: Any = intrinsic(_pack)
