"""Trees of expressions, as Polars serializes them.

Owns: the way from an expression to its tree and back. Must not know: SQL, what an expression is for.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl

Types = Mapping[str, pl.DataType]
Node = Any  # of an expression's tree


def expression(node: Node) -> pl.Expr:
    """Return the expression of a tree."""
    return pl.Expr.deserialize(io.BytesIO(json.dumps(node).encode()), format="json")


def node_of(value: pl.Expr) -> Node:
    """Return the tree of an expression."""
    return json.loads(value.meta.serialize(format="json"))


def first(node: Node) -> tuple[str, Any]:
    """Return the name of a node, and what is inside; a node without inside is its name."""
    return next(iter(node.items())) if isinstance(node, dict) else (node, None)


def type_of(node: Node, types: Types) -> pl.DataType:
    """Return the type of a tree's values over columns of these types."""
    return pl.LazyFrame(schema=types).select(x=expression(node)).collect_schema()["x"]


def whole_literal(node: Node) -> int | None:
    """Return the value of an integer literal, None for anything else."""
    inside = node.get("Literal") if isinstance(node, dict) else None
    value = inside.get("Dyn") if isinstance(inside, dict) else None
    return value.get("Int") if isinstance(value, dict) else None


def any_of(fails: Sequence[pl.Expr | None]) -> pl.Expr | None:
    """Return whether any of some conditions holds, None where there is none."""
    there = [each for each in fails if each is not None]
    return pl.any_horizontal(there) if there else None
