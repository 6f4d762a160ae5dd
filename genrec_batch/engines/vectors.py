"""Sixteen floats at once in compiled attention, and bf16 by its bits.

Owns: what numba cannot say itself: the dot products of one query with 16 keys, the weighted sum of values, floats as
integers. Must not know: caches, heads, softmax. Keys and values are float32, or bf16 in an array of uint16, which is
widened on its way into a register: bf16 is the upper half of a float32.

LLVM turns vectors into AVX-512, or into several smaller ones where that is missing. numba does not notice a change here
in what it kept of a kernel: whoever changes what a function does here also changes the kernel file that uses it.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

WIDTH = 16
I8, I16, I32, I64, F32 = ir.IntType(8), ir.IntType(16), ir.IntType(32), ir.IntType(64), ir.FloatType()
FLOATS, WORDS, HALVES = (ir.VectorType(kind, WIDTH) for kind in (F32, I32, I16))
LEAST = -87.0  # exp of less is taken for exp of this
LOG2_E, LN2_HIGH, LN2_LOW = 1.44269504, 0.693359375, -2.12194440e-4
POLYNOMIAL = (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 0.5)
_declared: Any = cgutils.get_or_insert_function


def _of_bits(_typing: Any, _bits: Any) -> Any:
    """Return the float32 of an int32's bits."""

    def codegen(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], F32)

    return types.float32(types.int32), codegen


def _magnitude(_typing: Any, _number: Any) -> Any:
    """Return the bits of |x|, which order as |x| does; those of NaN are above all others."""

    def codegen(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.and_(builder.bitcast(arguments[0], I32), ir.Constant(I32, 0x7FFFFFFF))

    return types.int32(types.float32), codegen


def _ordered(_typing: Any, number: Any) -> Any:
    """Return the integer that orders as a float32 does, or the float32 of that integer: both turn the same bits."""
    floats = isinstance(number, types.Float)

    def codegen(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        bits = builder.bitcast(arguments[0], I32)
        negative = builder.ashr(bits, ir.Constant(I32, 31))
        turned = builder.xor(bits, builder.and_(negative, ir.Constant(I32, 0x7FFFFFFF)))
        return turned if floats else builder.bitcast(turned, F32)

    return (types.int32(types.float32) if floats else types.float32(types.int32)), codegen


def _widen(_typing: Any, _half: Any) -> Any:
    """Return the float32 of bf16 bits."""

    def codegen(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.bitcast(builder.shl(builder.zext(arguments[0], I32), ir.Constant(I32, 16)), F32)

    return types.float32(types.uint16), codegen


def _narrow(_typing: Any, _number: Any) -> Any:
    """Return the bits of the bf16 nearest to a float32, of two equally near ones the even one; NaN stays NaN."""

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


def _place(context: Any, builder: Any, array: Any, value: Any, index: Any) -> Any:
    """Return the address of an array's element."""
    view = context.make_array(array)(context, builder, value)
    return builder.gep(view.data, [index])


def _load(builder: Any, array: Any, place: Any) -> Any:
    """Return 16 numbers from an address on as float32."""
    if array.dtype == types.float32:
        return builder.load(builder.bitcast(place, FLOATS.as_pointer()), align=4)
    halves = builder.load(builder.bitcast(place, HALVES.as_pointer()), align=2)
    return builder.bitcast(builder.shl(builder.zext(halves, WORDS), ir.Constant(WORDS, [16] * WIDTH)), FLOATS)


def _fetch(builder: Any, place: Any) -> Any:
    """Have the line of memory at an address brought to the core."""
    byte = ir.PointerType(I8)
    function = _declared(
        builder.module, ir.FunctionType(ir.VoidType(), [byte, I32, I32, I32]), "llvm.prefetch.p0"
    )
    builder.call(function, [builder.bitcast(place, byte), *(ir.Constant(I32, x) for x in (0, 3, 1))])


def _fused(builder: Any, a: Any, b: Any, c: Any) -> Any:
    function = _declared(builder.module, ir.FunctionType(FLOATS, [FLOATS] * 3), f"llvm.fma.v{WIDTH}f32")
    return builder.call(function, [a, b, c])


def _mask(lanes: list[int]) -> Any:
    return ir.Constant(ir.VectorType(I32, len(lanes)), lanes)


def _spread(builder: Any, number: Any, kind: Any) -> Any:
    """Return 16 times the same number."""
    nothing = ir.Constant(kind, ir.Undefined)
    one = builder.insert_element(nothing, number, ir.Constant(I32, 0))
    return builder.shuffle_vector(one, nothing, _mask([0] * WIDTH))


def _everywhere(builder: Any, number: Any) -> Any:
    return _spread(builder, number, FLOATS)


def _sums(builder: Any, vectors: list[Any]) -> Any:
    """Return the sums of 16 vectors as one, vector i's in lane i, each added up in the same order."""
    part = WIDTH // 2
    while len(vectors) > 1:
        half, made = len(vectors) // 2, []
        for one, other in zip(vectors[:half], vectors[half:], strict=True):
            blocks = range(0, WIDTH, 2 * part)
            low = [x for b in blocks for side in (0, WIDTH) for x in range(side + b, side + b + part)]
            shuffled = [builder.shuffle_vector(one, other, _mask([x + up for x in low])) for up in (0, part)]
            made.append(builder.fadd(*shuffled))
        vectors, part = made, part // 2
    return vectors[0]


def _store(builder: Any, array: Any, place: Any, vector: Any) -> None:
    """Write 16 numbers from an address on, in bf16 where the array has uint16."""
    if array.dtype == types.float32:
        builder.store(vector, builder.bitcast(place, FLOATS.as_pointer()), align=4)
    else:
        builder.store(_halved(builder, vector, WORDS, HALVES), builder.bitcast(place, HALVES.as_pointer()), align=2)


def _merged(builder: Any, vector: Any, of_two: Any) -> Any:
    """Return what is left of 16 numbers when `of_two` makes one of two, half by half."""
    part = WIDTH // 2
    while part:
        vector = of_two(*(builder.shuffle_vector(vector, vector, _mask(list(range(a, a + part)))) for a in (0, part)))
        part //= 2
    return builder.extract_element(vector, ir.Constant(I32, 0))


def _exp(builder: Any, x: Any) -> Any:
    """Return exp(x) for x <= 0, NaN for NaN, within 2 units of the last place down to exp(-87), which is 0 here.

    Cody-Waite reduction and the polynomial of Cephes' expf (Moshier 1989).
    """

    def same(number: float) -> Any:
        return ir.Constant(FLOATS, [number] * WIDTH)

    bounded = builder.select(builder.fcmp_ordered("<", x, same(LEAST)), same(LEAST), x)
    power = builder.fptosi(_fused(builder, bounded, same(LOG2_E), same(-0.5)), WORDS)
    whole = builder.sitofp(power, FLOATS)
    rest = _fused(builder, whole, same(-LN2_LOW), _fused(builder, whole, same(-LN2_HIGH), bounded))
    y = same(POLYNOMIAL[0])
    for factor in POLYNOMIAL[1:]:
        y = _fused(builder, y, rest, same(factor))
    y = _fused(builder, builder.fmul(y, rest), rest, builder.fadd(rest, same(1.0)))
    bits = builder.shl(builder.add(power, ir.Constant(WORDS, [127] * WIDTH)), ir.Constant(WORDS, [23] * WIDTH))
    return builder.fmul(y, builder.bitcast(bits, FLOATS))


def _exponentials(_typing: Any, looks: Any, _at: Any, _count: Any) -> Any:
    """Make `count` numbers from an index on exp of what they are below the largest; return the sum.

    The last vector is filled up with zeros.
    """

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        first, count = _place(context, builder, signature.args[0], *arguments[:2]), builder.trunc(arguments[2], I32)
        blocks = builder.udiv(builder.add(arguments[2], ir.Constant(I64, WIDTH - 1)), ir.Constant(I64, WIDTH))
        lowest, numbers = ir.Constant(FLOATS, [float("-inf")] * WIDTH), ir.Constant(WORDS, list(range(WIDTH)))
        most, total = (cgutils.alloca_once_value(builder, x) for x in (lowest, ir.Constant(FLOATS, None)))

        def higher(a: Any, b: Any) -> Any:  # NaN, if the second is
            return builder.select(builder.fcmp_ordered(">", a, b), a, b)

        def place(block: Any) -> Any:
            at = builder.gep(first, [builder.mul(block, ir.Constant(I64, WIDTH))])
            return builder.bitcast(at, FLOATS.as_pointer())

        with cgutils.for_range(builder, blocks) as loop:
            left = builder.sub(count, builder.trunc(builder.mul(loop.index, ir.Constant(I64, WIDTH)), I32))
            there = builder.icmp_signed("<", numbers, _spread(builder, left, WORDS))
            looked = builder.select(there, builder.load(place(loop.index), align=4), lowest)
            builder.store(looked, place(loop.index), align=4)
            builder.store(higher(builder.load(most), looked), most)
        largest = _everywhere(builder, _merged(builder, builder.load(most), higher))
        with cgutils.for_range(builder, blocks) as loop:
            looked = builder.load(place(loop.index), align=4)
            share = _exp(builder, builder.fsub(looked, largest))
            share = builder.select(builder.fcmp_ordered("==", looked, lowest), ir.Constant(FLOATS, None), share)
            builder.store(share, place(loop.index), align=4)
            builder.store(builder.fadd(builder.load(total), share), total)
        return _merged(builder, builder.load(total), builder.fadd)

    return types.float32(looks, types.intp, types.intp), codegen


exponentials: Any = intrinsic(_exponentials)


def _dots(_typing: Any, query: Any, _q: Any, keys: Any, _k: Any, _size: Any, _ahead: Any, out: Any, _o: Any) -> Any:
    """Write query . key of the 16 keys from an index on, `size` numbers each, one after the other.

    `ahead`: so many elements on lies what is brought to the core meanwhile, where keys are bf16.
    """

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kinds = signature.args
        size, ahead = arguments[4], arguments[5]
        first_query = _place(context, builder, kinds[0], arguments[0], arguments[1])
        first_key = _place(context, builder, kinds[2], arguments[2], arguments[3])
        sums = [cgutils.alloca_once_value(builder, ir.Constant(FLOATS, None)) for _ in range(WIDTH)]
        with cgutils.for_range(builder, builder.udiv(size, ir.Constant(I64, WIDTH))) as loop:
            start = builder.mul(loop.index, ir.Constant(I64, WIDTH))
            part = _load(builder, kinds[0], builder.gep(first_query, [start]))
            for key, total in enumerate(sums):
                place = builder.gep(first_key, [builder.add(start, builder.mul(size, ir.Constant(I64, key)))])
                if kinds[2].dtype == types.uint16:
                    _fetch(builder, builder.gep(place, [ahead]))
                builder.store(_fused(builder, part, _load(builder, kinds[2], place), builder.load(total)), total)
        found = _sums(builder, [builder.load(total) for total in sums])
        place = _place(context, builder, kinds[6], arguments[6], arguments[7])
        builder.store(found, builder.bitcast(place, FLOATS.as_pointer()), align=4)
        return context.get_dummy_value()

    number = types.intp
    return types.void(query, number, keys, number, number, number, out, number), codegen


dots: Any = intrinsic(_dots)


def _mix(
    _typing: Any, shares: Any, _count: Any, values: Any, _v: Any, _size: Any, _ahead: Any, out: Any, _o: Any, _s: Any
) -> Any:
    """Write `scale` times the sum of shares[i] x value i for 16 numbers of values that lie `size` elements apart.

    `count` is a multiple of 16. `ahead` as in `dots`.
    """
    at_once = 8

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kinds = signature.args
        size, ahead = arguments[4], arguments[5]
        first_share = _place(context, builder, kinds[0], arguments[0], ir.Constant(I64, 0))
        first_value = _place(context, builder, kinds[2], arguments[2], arguments[3])
        sums = [cgutils.alloca_once_value(builder, ir.Constant(FLOATS, None)) for _ in range(at_once)]
        with cgutils.for_range(builder, builder.udiv(arguments[1], ir.Constant(I64, at_once))) as loop:
            start = builder.mul(loop.index, ir.Constant(I64, at_once))
            for i, total in enumerate(sums):
                at = builder.add(start, ir.Constant(I64, i))
                share = _everywhere(builder, builder.load(builder.gep(first_share, [at])))
                place = builder.gep(first_value, [builder.mul(at, size)])
                if kinds[2].dtype == types.uint16:
                    _fetch(builder, builder.gep(place, [ahead]))
                builder.store(_fused(builder, share, _load(builder, kinds[2], place), builder.load(total)), total)
        totals = [builder.load(total) for total in sums]
        while len(totals) > 1:
            totals = [builder.fadd(a, b) for a, b in zip(totals[::2], totals[1::2], strict=True)]
        place = _place(context, builder, kinds[6], arguments[6], arguments[7])
        mixed = builder.fmul(totals[0], _everywhere(builder, arguments[8]))
        _store(builder, kinds[6], place, mixed)
        return context.get_dummy_value()

    number = types.intp
    return types.void(shares, number, values, number, number, number, out, number, types.float32), codegen


mix: Any = intrinsic(_mix)
