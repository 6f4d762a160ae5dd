"""Attention of a few queries at once, for compiled kernels: dot products, softmax, weighted sums of 16 numbers each.

Owns: their LLVM code. Must not know: caches, heads, rows. There are two ways: one query and 16 keys at a time, for
memory that is read once; and 16 queries, one in each lane of a vector, so that no sum is taken across lanes. What
`runtime.simd_bf16` says about memory and numba applies here too.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from genrec_batch.runtime.simd_bf16 import (
    FLOATS,
    I8,
    I32,
    I64,
    LEAST,
    LN2_HIGH,
    LN2_LOW,
    LOG2_E,
    POLYNOMIAL,
    WIDTH,
    WORDS,
    declared,
    everywhere,
    fused,
    load,
    mask,
    place_of,
    spread,
    store,
)
from genrec_batch.runtime.simd_sort import transposed

_variable: Any = cgutils.alloca_once_value
L2 = 2  # the cache that is prefetched into: the first one can wait for fewer lines at once


def _fetch(builder: Any, place: Any) -> Any:
    """Prefetch the cache line at an address."""
    byte = ir.PointerType(I8)
    function = declared(builder.module, ir.FunctionType(ir.VoidType(), [byte, I32, I32, I32]), "llvm.prefetch.p0")
    builder.call(function, [builder.bitcast(place, byte), *(ir.Constant(I32, x) for x in (0, L2, 1))])


def _sums(builder: Any, vectors: list[Any]) -> Any:
    """Return the sums of 16 vectors as one vector, that of vector i in lane i, each added up in the same order."""
    step = WIDTH // 2
    while len(vectors) > 1:
        half, made = len(vectors) // 2, []
        for one, other in zip(vectors[:half], vectors[half:], strict=True):
            starts = range(0, WIDTH, 2 * step)
            low = [x for start in starts for side in (0, WIDTH) for x in range(side + start, side + start + step)]
            shuffled = [builder.shuffle_vector(one, other, mask([x + up for x in low])) for up in (0, step)]
            made.append(builder.fadd(*shuffled))
        vectors, step = made, step // 2
    return vectors[0]


def _merged(builder: Any, vector: Any, of_two: Any) -> Any:
    """Reduce 16 numbers to one with `of_two`, half by half."""
    half = WIDTH // 2
    while half:
        vector = of_two(*(builder.shuffle_vector(vector, vector, mask(list(range(a, a + half)))) for a in (0, half)))
        half //= 2
    return builder.extract_element(vector, ir.Constant(I32, 0))


def _exp(builder: Any, x: Any) -> Any:
    """Return exp(x) for x <= 0, NaN for NaN, within 2 units of the last place; less than -87 is taken for -87.

    Cody-Waite reduction and the polynomial of Cephes' expf (Moshier 1989).
    """

    def same(number: float) -> Any:
        return ir.Constant(FLOATS, [number] * WIDTH)

    bounded = builder.select(builder.fcmp_ordered("<", x, same(LEAST)), same(LEAST), x)
    power = builder.fptosi(fused(builder, bounded, same(LOG2_E), same(-0.5)), WORDS)
    whole = builder.sitofp(power, FLOATS)
    rest = fused(builder, whole, same(-LN2_LOW), fused(builder, whole, same(-LN2_HIGH), bounded))
    y = same(POLYNOMIAL[0])
    for factor in POLYNOMIAL[1:]:
        y = fused(builder, y, rest, same(factor))
    y = fused(builder, builder.fmul(y, rest), rest, builder.fadd(rest, same(1.0)))
    bits = builder.shl(builder.add(power, ir.Constant(WORDS, [127] * WIDTH)), ir.Constant(WORDS, [23] * WIDTH))
    return builder.fmul(y, builder.bitcast(bits, FLOATS))


def _exponentials(_typing: Any, scores: Any, _at: Any, _count: Any) -> Any:
    """Replace `count` numbers from an index on by exp(number - largest) and return their sum.

    The last vector is filled up with zeros.
    """

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        first, count = place_of(context, builder, signature.args[0], *arguments[:2]), builder.trunc(arguments[2], I32)
        vectors = builder.udiv(builder.add(arguments[2], ir.Constant(I64, WIDTH - 1)), ir.Constant(I64, WIDTH))
        lowest, numbers = ir.Constant(FLOATS, [float("-inf")] * WIDTH), ir.Constant(WORDS, list(range(WIDTH)))
        most, total = (_variable(builder, x) for x in (lowest, ir.Constant(FLOATS, None)))

        def higher(a: Any, b: Any) -> Any:  # NaN, if the second is
            return builder.select(builder.fcmp_ordered(">", a, b), a, b)

        def place(vector: Any) -> Any:
            at = builder.gep(first, [builder.mul(vector, ir.Constant(I64, WIDTH))])
            return builder.bitcast(at, FLOATS.as_pointer())

        with cgutils.for_range(builder, vectors) as loop:
            left = builder.sub(count, builder.trunc(builder.mul(loop.index, ir.Constant(I64, WIDTH)), I32))
            there = builder.icmp_signed("<", numbers, spread(builder, left, WORDS))
            score = builder.select(there, builder.load(place(loop.index), align=4), lowest)
            builder.store(score, place(loop.index), align=4)
            builder.store(higher(builder.load(most), score), most)
        largest = everywhere(builder, _merged(builder, builder.load(most), higher))
        with cgutils.for_range(builder, vectors) as loop:
            score = builder.load(place(loop.index), align=4)
            weight = _exp(builder, builder.fsub(score, largest))
            weight = builder.select(builder.fcmp_ordered("==", score, lowest), ir.Constant(FLOATS, None), weight)
            builder.store(weight, place(loop.index), align=4)
            builder.store(builder.fadd(builder.load(total), weight), total)
        return _merged(builder, builder.load(total), builder.fadd)

    return types.float32(scores, types.intp, types.intp), codegen


exponentials: Any = intrinsic(_exponentials)


def _dots(_typing: Any, query: Any, _q: Any, keys: Any, _k: Any, _size: Any, _ahead: Any, out: Any, _o: Any) -> Any:
    """Write query . key of the 16 keys from an index on, `size` numbers each, one after the other.

    `ahead` is how many elements further memory is prefetched meanwhile, where keys are not float32.
    """

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kinds = signature.args
        size, ahead = arguments[4], arguments[5]
        first_query = place_of(context, builder, kinds[0], arguments[0], arguments[1])
        first_key = place_of(context, builder, kinds[2], arguments[2], arguments[3])
        sums = [_variable(builder, ir.Constant(FLOATS, None)) for _ in range(WIDTH)]
        with cgutils.for_range(builder, builder.udiv(size, ir.Constant(I64, WIDTH))) as loop:
            start = builder.mul(loop.index, ir.Constant(I64, WIDTH))
            numbers = load(builder, kinds[0], builder.gep(first_query, [start]))
            for key, total in enumerate(sums):
                place = builder.gep(first_key, [builder.add(start, builder.mul(size, ir.Constant(I64, key)))])
                if kinds[2].dtype != types.float32:
                    _fetch(builder, builder.gep(place, [ahead]))
                builder.store(fused(builder, numbers, load(builder, kinds[2], place), builder.load(total)), total)
        found = _sums(builder, [builder.load(total) for total in sums])
        place = place_of(context, builder, kinds[6], arguments[6], arguments[7])
        builder.store(found, builder.bitcast(place, FLOATS.as_pointer()), align=4)
        return context.get_dummy_value()

    number = types.intp
    return types.void(query, number, keys, number, number, number, out, number), codegen


dots: Any = intrinsic(_dots)


def _mix(
    _typing: Any, weights: Any, _at: Any, _count: Any, values: Any, _v: Any, _size: Any, _ahead: Any, out: Any, _o: Any,
    _scale: Any,
) -> Any:  # fmt: skip
    """Write `scale` times the sum of weight i x value i for 16 numbers of values that are `size` elements apart.

    There are `count` weights from an index on, a multiple of 16. `ahead` as in `dots`.
    """
    at_once = 8

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kinds = signature.args
        count, size, ahead, scale = arguments[2], arguments[5], arguments[6], arguments[9]
        first_weight = place_of(context, builder, kinds[0], *arguments[:2])
        first_value = place_of(context, builder, kinds[3], *arguments[3:5])
        sums = [_variable(builder, ir.Constant(FLOATS, None)) for _ in range(at_once)]
        with cgutils.for_range(builder, builder.udiv(count, ir.Constant(I64, at_once))) as loop:
            start = builder.mul(loop.index, ir.Constant(I64, at_once))
            for i, total in enumerate(sums):
                at = builder.add(start, ir.Constant(I64, i))
                weight = everywhere(builder, builder.load(builder.gep(first_weight, [at])))
                place = builder.gep(first_value, [builder.mul(at, size)])
                if kinds[3].dtype != types.float32:
                    _fetch(builder, builder.gep(place, [ahead]))
                builder.store(fused(builder, weight, load(builder, kinds[3], place), builder.load(total)), total)
        totals = [builder.load(total) for total in sums]
        while len(totals) > 1:
            totals = [builder.fadd(a, b) for a, b in zip(totals[::2], totals[1::2], strict=True)]
        place = place_of(context, builder, kinds[7], *arguments[7:9])
        mixed = builder.fmul(totals[0], everywhere(builder, scale))
        store(builder, kinds[7], place, mixed)
        return context.get_dummy_value()

    number = types.intp
    return types.void(weights, number, number, values, number, number, number, out, number, types.float32), codegen


mix: Any = intrinsic(_mix)


def _transpose_16(_typing: Any, array: Any, _at: Any, _apart: Any, _count: Any, out: Any, _o: Any) -> Any:
    """Transpose 16 numbers of each of 16 rows, which start `apart` elements from each other.

    Where there are only `count` rows, the last of them fills the others.
    """

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kinds, (apart, count) = signature.args, arguments[2:4]
        first = place_of(context, builder, kinds[0], *arguments[:2])
        into = place_of(context, builder, kinds[4], *arguments[4:])
        last, rows = builder.sub(count, ir.Constant(I64, 1)), []
        for i in range(WIDTH):
            number = ir.Constant(I64, i)
            row = builder.select(builder.icmp_signed("<", number, last), number, last)
            rows.append(load(builder, kinds[0], builder.gep(first, [builder.mul(row, apart)])))
        for i, column in enumerate(transposed(builder, rows)):
            store(builder, kinds[4], builder.gep(into, [ir.Constant(I64, i * WIDTH)]), column)
        return context.get_dummy_value()

    return types.void(array, types.intp, types.intp, types.intp, out, types.intp), codegen


def _vectors(context: Any, builder: Any, array: Any, value: Any) -> Any:
    """Return a pointer to the first 16 numbers of a float32 array."""
    return builder.bitcast(place_of(context, builder, array, value, ir.Constant(I64, 0)), FLOATS.as_pointer())


def _dots_16(_typing: Any, queries: Any, keys: Any, _count: Any, _size: Any, scores: Any) -> Any:
    """Write the dot products of 16 queries with `count` keys, [count, 16].

    `queries` are transposed, [size, 16]; keys are [count, size]; all are float32.
    """

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kinds, (count, size) = signature.args, arguments[2:4]
        query, seen = (_vectors(context, builder, kinds[i], arguments[i]) for i in (0, 4))
        key = place_of(context, builder, kinds[1], arguments[1], ir.Constant(I64, 0))
        with cgutils.for_range(builder, builder.udiv(size, ir.Constant(I64, WIDTH))) as parts:
            start = builder.mul(parts.index, ir.Constant(I64, WIDTH))
            places = [builder.gep(query, [builder.add(start, ir.Constant(I64, z))]) for z in range(WIDTH)]
            columns = [builder.load(place, align=4) for place in places]
            again = builder.icmp_signed("!=", parts.index, ir.Constant(I64, 0))
            with cgutils.for_range(builder, count) as loop:
                place = builder.gep(seen, [loop.index])
                numbers = builder.gep(key, [builder.add(builder.mul(loop.index, size), start)])
                total = builder.select(again, builder.load(place, align=4), ir.Constant(FLOATS, None))
                for z, column in enumerate(columns):
                    number = builder.load(builder.gep(numbers, [ir.Constant(I64, z)]))
                    total = fused(builder, column, everywhere(builder, number), total)
                builder.store(total, place, align=4)
        return context.get_dummy_value()

    return types.void(queries, keys, types.intp, types.intp, scores), codegen


def _softmax_16(_typing: Any, scores: Any, _count: Any, _first: Any, scale: Any) -> Any:
    """Replace the dot products of 16 queries by exp(product - the query's largest) and write 1 / their sums.

    Products are [count, 16]. Query i sees the keys up to `first` + i; the others become 0.
    """

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kinds, count = signature.args, arguments[1]
        seen, scales = (_vectors(context, builder, kinds[i], arguments[i]) for i in (0, 3))
        lowest, none = ir.Constant(FLOATS, [float("-inf")] * WIDTH), ir.Constant(FLOATS, None)
        most, total = (_variable(builder, x) for x in (lowest, none))
        first = spread(builder, builder.trunc(arguments[2], I32), WORDS)
        reach = builder.add(first, ir.Constant(WORDS, list(range(WIDTH))))
        with cgutils.for_range(builder, count) as loop:
            place = builder.gep(seen, [loop.index])
            there = builder.icmp_signed(">=", reach, spread(builder, builder.trunc(loop.index, I32), WORDS))
            score, before = builder.select(there, builder.load(place, align=4), lowest), builder.load(most)
            builder.store(score, place, align=4)
            builder.store(builder.select(builder.fcmp_ordered(">", before, score), before, score), most)
        largest = builder.load(most)
        with cgutils.for_range(builder, count) as loop:
            place = builder.gep(seen, [loop.index])
            score = builder.load(place, align=4)
            weights = _exp(builder, builder.fsub(score, largest))
            weights = builder.select(builder.fcmp_ordered("==", score, lowest), none, weights)
            builder.store(weights, place, align=4)
            builder.store(builder.fadd(builder.load(total), weights), total)
        builder.store(builder.fdiv(ir.Constant(FLOATS, [1.0] * WIDTH), builder.load(total)), scales, align=4)
        return context.get_dummy_value()

    return types.void(scores, types.intp, types.intp, scale), codegen


def _mix_16(_typing: Any, weights: Any, _count: Any, values: Any, _at: Any, _size: Any, scale: Any, out: Any) -> Any:
    """Write 16 numbers of the weighted sum of `count` values [count, size] for each of 16 queries, one row a query."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kinds, count, size = signature.args, arguments[1], arguments[4]
        weights, scales, into = (_vectors(context, builder, kinds[i], arguments[i]) for i in (0, 5, 6))
        value = place_of(context, builder, kinds[2], *arguments[2:4])
        sums = [_variable(builder, ir.Constant(FLOATS, None)) for _ in range(WIDTH)]
        with cgutils.for_range(builder, count) as loop:
            weight_of_16 = builder.load(builder.gep(weights, [loop.index]), align=4)
            numbers = builder.gep(value, [builder.mul(loop.index, size)])
            for z, total in enumerate(sums):
                number = builder.load(builder.gep(numbers, [ir.Constant(I64, z)]))
                builder.store(fused(builder, weight_of_16, everywhere(builder, number), builder.load(total)), total)
        scale_of_16 = builder.load(scales, align=4)
        for i, row in enumerate(
            transposed(builder, [builder.fmul(builder.load(total), scale_of_16) for total in sums])
        ):
            builder.store(row, builder.gep(into, [ir.Constant(I64, i)]), align=4)
        return context.get_dummy_value()

    return types.void(weights, types.intp, values, types.intp, types.intp, scale, out), codegen


transpose_16: Any = intrinsic(_transpose_16)
dots_16: Any = intrinsic(_dots_16)
softmax_16: Any = intrinsic(_softmax_16)
mix_16: Any = intrinsic(_mix_16)
