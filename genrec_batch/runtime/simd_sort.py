"""The keys of 16 users side by side, 16 of each at a time: read, transposed and sorted in registers.

Owns: the transposition of 16 rows of 16 integers, and the sorting network for 16. Must not know: what a key means. As
in `simd`, LLVM compiles for any processor, and a change here needs one in the kernel files that use it.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from genrec_batch.runtime.simd import Lanes

LANES = 16
I32, I64 = ir.IntType(32), ir.IntType(64)
VECTOR = ir.VectorType(I32, LANES)


def exchanges(count: int) -> list[tuple[int, int]]:
    """Return the places that Batcher's odd-even merge sort of a power of two compares, in order.

    Knuth, The Art of Computer Programming 3, section 5.3.4.
    """
    found, run = [], 1
    while run < count:
        distance = run
        while distance:
            for begin in range(distance % run, count - distance, 2 * distance):
                pairs = [(i, i + distance) for i in range(begin, min(begin + distance, count - distance))]
                found += [(low, high) for low, high in pairs if low ^ high < 2 * run]
            distance //= 2
        run *= 2
    return found


def _numbers(values: list[int]) -> Any:
    return ir.Constant(VECTOR, values)


def transposed(builder: Any, rows: list[Any]) -> list[Any]:
    """Return the columns of 16 rows of 4-byte numbers: squares of 8, 4, 2 and 1 change sides (Eklundh 1972)."""
    for step in (8, 4, 2, 1):
        stay = _numbers([lane if not lane & step else LANES + lane - step for lane in range(LANES)])
        move = _numbers([lane + step if not lane & step else LANES + lane for lane in range(LANES)])
        for low in range(LANES):
            if not low & step:
                a, b = rows[low], rows[low + step]
                rows[low] = builder.shuffle_vector(a, b, stay)
                rows[low + step] = builder.shuffle_vector(a, b, move)
    return rows


def _lay_16(_typing: Any, *arguments_of: Any) -> Any:
    """Write 16 keys of each of 16 users, from the i-th on, into 16 rows, each lane sorted.

    In: keys, where each user's keys begin, how many each has, i, where the keys end (16 more can be read), the filler
    for a missing key, the rows, where the first row begins, and the distance between rows.
    """

    def codegen(context: Any, builder: Any, sig: Any, arguments: Any) -> Any:
        keys, starts, lengths, first, end, nothing, rows, at, width = arguments
        data = [context.make_array(sig.args[k])(context, builder, arguments[k]).data for k in (0, 1, 2, 6)]
        blank = builder.shuffle_vector(
            builder.insert_element(ir.Constant(VECTOR, ir.Undefined), builder.trunc(nothing, I32), ir.Constant(I32, 0)),
            ir.Constant(VECTOR, ir.Undefined),
            _numbers([0] * LANES),
        )
        loaded = []
        for lane in range(LANES):
            start, length = (builder.load(builder.gep(each, [ir.Constant(I64, lane)])) for each in data[1:3])
            place = builder.add(start, first)
            place = builder.select(builder.icmp_signed("<", place, end), place, end)
            vector = builder.load(builder.bitcast(builder.gep(data[0], [place]), VECTOR.as_pointer()), align=4)
            left = builder.insert_element(
                ir.Constant(VECTOR, ir.Undefined), builder.trunc(builder.sub(length, first), I32), ir.Constant(I32, 0)
            )
            left = builder.shuffle_vector(left, ir.Constant(VECTOR, ir.Undefined), _numbers([0] * LANES))
            there = builder.icmp_signed("<", _numbers(list(range(LANES))), left)
            loaded.append(builder.select(there, vector, blank))
        columns = transposed(builder, loaded)
        for low, high in exchanges(LANES):
            a, b = columns[low], columns[high]
            columns[low] = builder.select(builder.icmp_signed("<", a, b), a, b)
            columns[high] = builder.select(builder.icmp_signed(">", a, b), a, b)
        for row in columns:
            builder.store(row, builder.bitcast(builder.gep(data[3], [at]), VECTOR.as_pointer()), align=4)
            at = builder.add(at, width)
        del keys, starts, lengths, rows
        return context.get_dummy_value()

    keys, starts, lengths, _, _, _, rows, _, _ = arguments_of
    place = types.intp
    return types.void(keys, starts, lengths, place, place, types.int64, rows, place, place), codegen


def _typed(
    typing: Any,
    keys: Any,
    starts: Any,
    lengths: Any,
    first: Any,
    end: Any,
    nothing: Any,
    rows: Any,
    at: Any,
    width: Any,
) -> Any:
    return _lay_16(typing, keys, starts, lengths, first, end, nothing, rows, at, width)


lay_16: Any = intrinsic(_typed)


def _sortable(_typing: Any, lanes: Any, nulls: Any) -> Any:
    """Return 8 floats, rounded to float32, as integers that sort like them; the largest integer where a bit is set."""
    result = Lanes(types.int32, lanes.count)

    def codegen(context: Any, builder: Any, _sig: Any, arguments: Any) -> Any:
        value_type = context.get_value_type(result)
        greatest, sign = (ir.Constant(value_type, [number] * lanes.count) for number in (2**31 - 1, 31))
        bits = builder.fptrunc(arguments[0], ir.VectorType(ir.FloatType(), lanes.count))
        bits = builder.bitcast(bits, value_type)
        keys = builder.xor(bits, builder.and_(builder.ashr(bits, sign), greatest))
        null = builder.bitcast(builder.trunc(arguments[1], ir.IntType(lanes.count)), ir.VectorType(ir.IntType(1), 8))
        return builder.select(null, greatest, keys)

    return result(lanes, nulls), codegen


sortable: Any = intrinsic(_sortable)
