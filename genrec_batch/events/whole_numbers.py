"""Arithmetic of whole numbers that never wraps: a result beyond 64 bits is null, and its row is told.

Owns: which operations can leave Int64, and how these are computed. Must not know: SQL, the rows of a log. In: trees of
operands. Out: the tree of the result, and where it fails.

Polars keeps the width of integers (UInt8 3 - 5 is 254) and wraps silently (2^62 * 4 is 0). So operands become Int64. A
narrow column times a small literal stays in 64 bits, and is computed as it is; the other operations are computed in
Int128, which one operation cannot leave.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import polars as pl

from genrec_batch.events.trees import Node, Types, any_of, expression, node_of, type_of, whole_literal

BITS = 63  # of Int64, without the sign
WIDTHS: dict[pl.DataType, int] = {
    pl.Int8(): 7, pl.UInt8(): 8, pl.Int16(): 15, pl.UInt16(): 16, pl.Int32(): 31, pl.UInt32(): 32,
}  # fmt: skip
SUMS, PRODUCTS, DIVISION = {"Plus", "Minus"}, {"Multiply", "Mul"}, "IntDiv"
OPERATIONS = {*SUMS, *PRODUCTS, DIVISION, "Modulus", "Rem", "Divide", "Div", "TrueDivide", "Abs", "Negate"}
LEAST = -(2**BITS)


def computed(
    operation: str, operands: Sequence[Node], build: Callable[[Sequence[Node]], Node], types: Types
) -> tuple[Node, pl.Expr | None]:
    """Return what `build` makes of operands, and where one of them or the result needs more than 64 bits.

    Args:
        operation: as Polars names it.
        operands: trees; a decimal, which overflows and rounds, becomes Float64.
        build: makes the tree of the operation from those of its operands.
        types: of the columns.
    """
    kinds = [type_of(node, types) for node in operands]
    found = [_wide(node, kind) for node, kind in zip(operands, kinds, strict=True)]
    wide, beyond = [node for node, _ in found], any_of([large for _, large in found])
    literals = [whole_literal(node) for node in operands]
    if not all(kind.is_integer() for kind in kinds) or not _can_leave(operation, kinds, literals):
        return build(wide), beyond
    if operation == DIVISION:  # Polars computes it in Int64 whatever is given
        left, right = map(expression, wide)
        leaves = (left == LEAST) & (right == -1)
        return build([node_of(pl.when(~leaves).then(left)), wide[1]]), any_of([beyond, leaves])
    exact = expression(build([node_of(expression(node).cast(pl.Int128)) for node in wide]))
    value = exact.cast(pl.Int64, strict=False)
    return node_of(value), any_of([beyond, exact.is_not_null() & value.is_null()])


def sum_of_lists(lists: Node) -> tuple[Node, pl.Expr]:
    """Return the sums of lists of integers, and where one does not fit."""
    given = expression(lists)
    value = given.cast(pl.List(pl.Int128)).list.sum().cast(pl.Int64, strict=False)
    return node_of(value), given.is_not_null() & value.is_null()


def _wide(node: Node, kind: pl.DataType) -> tuple[Node, pl.Expr | None]:
    """Return an integer as Int64, and where it does not fit."""
    own = expression(node)
    if kind.is_decimal():
        return node_of(own.cast(pl.Float64)), None
    if not kind.is_integer() or kind == pl.Int64:
        return node, None
    value = own.cast(pl.Int64, strict=False)
    large = kind in (pl.UInt64, pl.Int128, pl.UInt128)
    return node_of(value), own.is_not_null() & value.is_null() if large else None


def _can_leave(operation: str, kinds: Sequence[pl.DataType], literals: Sequence[int | None]) -> bool:
    """Return whether the result of an operation on integers may need more than 64 bits."""
    sizes = [
        WIDTHS.get(kind, BITS) if literal is None else abs(literal).bit_length()
        for kind, literal in zip(kinds, literals, strict=True)
    ]
    if operation in SUMS:
        return max(sizes) + 1 > BITS
    if operation in PRODUCTS:
        return sum(sizes) > BITS
    if operation == DIVISION:
        return sizes[0] >= BITS and literals[1] in (None, -1)
    return operation in ("Abs", "Negate") and sizes[0] >= BITS
