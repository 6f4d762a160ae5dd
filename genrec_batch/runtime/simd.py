"""Vectors of 64 bytes in kernels: loads, stores and arithmetic of 8 or 16 numbers at once, on any processor.

Owns: a numba type for LLVM's vectors, and operations on them. Must not know: what a kernel computes. LLVM compiles them
to AVX-512, or to several smaller vectors; each number is computed as a scalar would be (nothing is fused or reordered),
so no result depends on the processor.

numba does not compile a cached kernel again when this file changes: a change of a function here needs one in the kernel
files that use it. A load must stay inside the array's memory.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, lower_builtin, models, register_model, type_callable

BYTES = 64
I32, I64 = ir.IntType(32), ir.IntType(64)
_declared: Any = cgutils.get_or_insert_function


class Lanes(types.Type):
    """A vector of `count` numbers of one type."""

    def __init__(self, dtype: Any, count: int) -> None:
        self.dtype, self.count = dtype, count
        super().__init__(name=f"Lanes({dtype}, {count})")


@register_model(Lanes)
class _Model(models.PrimitiveModel):
    def __init__(self, manager: Any, lanes: Any) -> None:
        element = manager.lookup(lanes.dtype).get_value_type()
        initialize: Any = super().__init__
        initialize(manager, lanes, ir.VectorType(element, lanes.count))


def _place(context: Any, builder: Any, signature_: Any, arguments: Any, value_type: Any) -> Any:
    """Return the address of an array's element as a pointer to vectors."""
    view = context.make_array(signature_.args[0])(context, builder, arguments[0])
    return builder.bitcast(builder.gep(view.data, [arguments[1]]), value_type.as_pointer())


def _load(bytes_of: int) -> Any:
    def typed(_typing: Any, array: Any, _index: Any) -> Any:
        result = Lanes(array.dtype, bytes_of * 8 // array.dtype.bitwidth)

        def codegen(context: Any, builder: Any, sig: Any, arguments: Any) -> Any:
            value_type = context.get_value_type(result)
            place = _place(context, builder, sig, arguments, value_type)
            return builder.load(place, align=array.dtype.bitwidth // 8)

        return result(array, types.intp), codegen

    return typed


load: Any = intrinsic(_load(BYTES))  # the 64 bytes of an array from an index on
load_half: Any = intrinsic(_load(BYTES // 2))  # 32 bytes: as many integers of 32 bits as `load` gives floats of 64
load_4: Any = intrinsic(_load(4 * BYTES))  # several times as many, in several registers
load_8: Any = intrinsic(_load(8 * BYTES))


def _load_floats(_typing: Any, array: Any, _index: Any) -> Any:
    """Return 8 numbers of an array of float32 or float64 from an index on, as float64."""
    read, result = Lanes(array.dtype, 8), Lanes(types.float64, 8)

    def codegen(context: Any, builder: Any, sig: Any, arguments: Any) -> Any:
        place = _place(context, builder, sig, arguments, context.get_value_type(read))
        value = builder.load(place, align=array.dtype.bitwidth // 8)
        return value if read == result else builder.fpext(value, context.get_value_type(result))

    return result(array, types.intp), codegen


load_floats: Any = intrinsic(_load_floats)


def _store(_typing: Any, array: Any, _index: Any, lanes: Any) -> Any:
    def codegen(context: Any, builder: Any, sig: Any, arguments: Any) -> Any:
        builder.store(
            arguments[2], _place(context, builder, sig, arguments, arguments[2].type), align=array.dtype.bitwidth // 8
        )
        return context.get_dummy_value()

    return types.void(array, types.intp, lanes), codegen


store: Any = intrinsic(_store)


def _operator(name: str, *, on_floats: str = "", on_integers: str = "") -> None:
    """Let numba compile an operator between lanes to an instruction of LLVM."""
    function = getattr(operator, name)

    def typed(_context: Any) -> Any:
        return lambda a, b: a if isinstance(a, Lanes) and a == b else None

    def lowered(_context: Any, builder: Any, sig: Any, arguments: Any) -> Any:
        floats = isinstance(sig.args[0].dtype, types.Float)
        made: Callable[..., Any] = getattr(builder, on_floats if floats else on_integers)
        return made(*arguments)

    callable_as: Any = type_callable
    compiled_as: Any = lower_builtin
    callable_as(function)(typed)
    compiled_as(function, Lanes, Lanes)(lowered)


_operator("add", on_floats="fadd", on_integers="add")
_operator("sub", on_floats="fsub", on_integers="sub")
_operator("mul", on_floats="fmul")
_operator("truediv", on_floats="fdiv")
_operator("and_", on_integers="and_")
_operator("or_", on_integers="or_")
_operator("lshift", on_integers="shl")
_operator("rshift", on_integers="lshr")


def _splat(_typing: Any, lanes: Any, number: Any) -> Any:
    """Return lanes of the same type that all hold one number."""

    def codegen(context: Any, builder: Any, sig: Any, arguments: Any) -> Any:
        value_type = context.get_value_type(lanes)
        scalar = context.cast(builder, arguments[1], sig.args[1], lanes.dtype)
        one = builder.insert_element(ir.Constant(value_type, ir.Undefined), scalar, ir.Constant(I32, 0))
        zeros = ir.Constant(ir.VectorType(I32, lanes.count), [0] * lanes.count)
        return builder.shuffle_vector(one, ir.Constant(value_type, ir.Undefined), zeros)

    return lanes(lanes, number), codegen


splat: Any = intrinsic(_splat)


def _choice(compared: str) -> Any:
    def typed(_typing: Any, a: Any, b: Any) -> Any:
        compare = "fcmp_ordered" if isinstance(a.dtype, types.Float) else "icmp_signed"

        def codegen(_context: Any, builder: Any, _sig: Any, arguments: Any) -> Any:
            return builder.select(getattr(builder, compare)(compared, *arguments), *arguments)

        return a(a, b), codegen

    return typed


lower: Any = intrinsic(_choice("<"))  # the lower of two in each lane; the second where one is NaN
higher: Any = intrinsic(_choice(">"))


def _comparison(compared: str) -> Any:
    def typed(_typing: Any, a: Any, b: Any) -> Any:
        def codegen(_context: Any, builder: Any, _sig: Any, arguments: Any) -> Any:
            if isinstance(a.dtype, types.Float):
                compare = builder.fcmp_unordered if compared == "uno" else builder.fcmp_ordered
                found = compare(compared, *arguments)
            else:
                found = builder.icmp_signed(compared, *arguments)
            return (
                builder.zext(builder.bitcast(found, ir.IntType(a.count)), I64)
                if a.count < 64
                else builder.bitcast(found, I64)
            )

        return types.uint64(a, b), codegen

    return typed


above: Any = intrinsic(_comparison(">"))  # bit i is set where lane i of the first is greater, uint64
equal: Any = intrinsic(_comparison("=="))
unequal: Any = intrinsic(_comparison("!="))
unordered: Any = intrinsic(_comparison("uno"))  # where a lane of either is NaN


def _masked(_typing: Any, lanes: Any, bits: Any) -> Any:
    """Return the lanes whose bit is set, 0 elsewhere."""

    def codegen(context: Any, builder: Any, _sig: Any, arguments: Any) -> Any:
        chosen = builder.trunc(arguments[1], ir.IntType(lanes.count))
        chosen = builder.bitcast(chosen, ir.VectorType(ir.IntType(1), lanes.count))
        return builder.select(chosen, arguments[0], ir.Constant(context.get_value_type(lanes), None))

    return lanes(lanes, bits), codegen


masked: Any = intrinsic(_masked)


def _total(_typing: Any, lanes: Any) -> Any:
    """Return the sum of 8 floats in the order of NumPy's pairwise summation: neighbours first."""

    def codegen(_context: Any, builder: Any, _sig: Any, arguments: Any) -> Any:
        sums = arguments[0]
        for count in (4, 2):
            even, odd = (ir.Constant(ir.VectorType(I32, count), list(range(f, 2 * count, 2))) for f in (0, 1))
            sums = builder.fadd(builder.shuffle_vector(sums, sums, even), builder.shuffle_vector(sums, sums, odd))
        return builder.fadd(*(builder.extract_element(sums, ir.Constant(I32, lane)) for lane in (0, 1)))

    return lanes.dtype(lanes), codegen


total: Any = intrinsic(_total)


def _ones(_typing: Any, bits: Any) -> Any:
    """Return how many bits are set, of a number or of each lane."""

    def codegen(_context: Any, builder: Any, _sig: Any, arguments: Any) -> Any:
        value_type = arguments[0].type
        name = f"llvm.ctpop.v{bits.count}i64" if isinstance(bits, Lanes) else "llvm.ctpop.i64"
        kind = ir.FunctionType(value_type, [value_type])
        return builder.call(_declared(builder.module, kind, name), arguments)

    return bits(bits), codegen


ones: Any = intrinsic(_ones)


def _as_floats(_typing: Any, lanes: Any) -> Any:
    """Return whole numbers as float32."""
    result = Lanes(types.float32, lanes.count)

    def codegen(context: Any, builder: Any, _sig: Any, arguments: Any) -> Any:
        return builder.sitofp(arguments[0], context.get_value_type(result))

    return result(lanes), codegen


as_floats: Any = intrinsic(_as_floats)


def _leading_zeros(_typing: Any, bits: Any) -> Any:
    """Return the number of zero bits above the highest set bit; 64 where none is set."""

    def codegen(_context: Any, builder: Any, _sig: Any, arguments: Any) -> Any:
        return builder.ctlz(arguments[0], ir.Constant(ir.IntType(1), 0))

    return bits(bits), codegen


leading_zeros: Any = intrinsic(_leading_zeros)


def _float_of_bits(_typing: Any, _bits: Any) -> Any:
    """Return the float32 of an int32's bits."""

    def codegen(_context: Any, builder: Any, _sig: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], ir.FloatType())

    return types.float32(types.int32), codegen


float_of_bits: Any = intrinsic(_float_of_bits)


def _prefetch(write: int) -> Any:
    def typed(_typing: Any, array: Any, _index: Any) -> Any:
        def codegen(context: Any, builder: Any, sig: Any, arguments: Any) -> Any:
            byte = ir.PointerType(ir.IntType(8))
            place = builder.bitcast(_place(context, builder, sig, arguments, ir.IntType(8)), byte)
            kind = ir.FunctionType(ir.VoidType(), [byte, I32, I32, I32])
            function = _declared(builder.module, kind, "llvm.prefetch.p0")
            builder.call(function, [place, *(ir.Constant(I32, x) for x in (write, 2 if write == 0 else 3, 1))])
            return context.get_dummy_value()

        return types.void(array, types.intp), codegen

    return typed


will_write: Any = intrinsic(_prefetch(1))
will_read: Any = intrinsic(_prefetch(0))
