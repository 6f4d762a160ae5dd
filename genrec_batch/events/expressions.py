"""The expressions of `--schema`: Polars SQL over the columns of one row, and nothing else.

Owns: what an entry may be (the name of a column, a field of a struct, or SQL that is row-wise and the same at every
evaluation), and the rows on which an expression fails. Must not know: the events contract. In: an entry and the types
of a file's columns. Out: an `Entry`.

Polars ends the query at the first text that is no number. So the tree of an expression is rebuilt: decimal literals
become Float64, strict conversions and results beyond 64 bits give null (`whole_numbers`), and a second expression says
where one of them failed.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

import polars as pl

from genrec_batch.core.errors import ConfigError, InputError, nearest
from genrec_batch.events import whole_numbers
from genrec_batch.events.times import iso_time
from genrec_batch.events.trees import Node, Types, any_of, expression, first, node_of, type_of

QUOTED = re.compile(r"'(?:[^']|'')*'|\"(?:[^\"]|\"\")*\"|--[^\n]*|/\*.*?\*/", re.DOTALL)
SUBQUERY = re.compile(r"\bselect\b|\b(?:read|scan)_\w+\s*\(", re.IGNORECASE)
CHANGING = re.compile(
    r"(?<![.\w])(?:(?:current|local)_?(?:date|time|timestamp)\b|(?:now|today|random|rand|uuid|gen_random_uuid)\s*\()",
    re.IGNORECASE,
)
ROW_WISE: dict[str, set[str] | None] = {  # functions by family: None for all of it
    **dict.fromkeys(("Sql", "StructExpr", "TemporalExpr", "ArrayExpr", "BinaryExpr", "Pow", "Trigonometry", "Abs")),
    **dict.fromkeys(("Sign", "Round", "RoundSF", "Floor", "Ceil", "Log", "Log1p", "Exp", "Negate", "Atan2", "Clip")),
    **dict.fromkeys(("Coalesce", "FillNull", "MinHorizontal", "MaxHorizontal", "SumHorizontal", "MeanHorizontal")),
    **dict.fromkeys(("AsStruct", "Replace", "ReplaceStrict", "StringExpr", "ListExpr")),
    "Boolean": {
        "Not", "IsNull", "IsNotNull", "IsNan", "IsNotNan", "IsFinite", "IsInfinite", "IsIn", "IsBetween", "IsClose",
        "AllHorizontal", "AnyHorizontal",
    },
    "Bitwise": {"CountOnes", "CountZeros", "LeadingOnes", "LeadingZeros", "TrailingOnes", "TrailingZeros"},
}  # fmt: skip
REFUSED = {"ConcatVertical", "Sample", "JsonDecode"}  # of families that are row-wise otherwise
WINDOWS = {"Range", "Rank", "Shift", "Diff", "RLE", "RLEID", "CumCount", "CumSum", "CumMin", "CumMax", "CumProd"}
TEMPORAL = ("Datetime", "Date")


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One checked entry of `--schema` for files of one schema."""

    value: pl.Expr
    fails: pl.Expr | None  # is true for rows on which it fails; None where it cannot
    reads: tuple[str, ...]  # columns of the file
    plain: bool = False  # a column, or a field of a struct, as it is

    @property
    def chosen_null(self) -> pl.Expr:
        """Return whether it is null though all that it reads is there, as `CASE WHEN is_click THEN video_id END` is."""
        if self.plain or not self.reads:
            return pl.lit(value=False)
        chosen = self.value.is_null() & pl.all_horizontal(pl.col(name).is_not_null() for name in self.reads)
        return chosen if self.fails is None else chosen & ~self.fails


def entry(name: str, sql: str, types: Types, source: str) -> Entry:
    """Return the entry `name = sql` for columns of these types; `source` names the file in errors.

    Raises:
        ConfigError: it is no Polars SQL expression, looks at more than its row, or is not the same every time.
        InputError: it reads a column that there is not, or does not fit the columns' types.
    """
    named = _named(sql, types)
    if named is not None:
        return Entry(value=named, fails=None, reads=tuple(named.meta.root_names()), plain=True)
    said = f"--schema: {name} = {sql!r}"
    parsed = _parsed(name, sql, types)
    tree = json.loads(parsed.meta.serialize(format="json"))
    reads = tuple(dict.fromkeys(parsed.meta.root_names()))
    missing = [column for column in reads if column not in types]
    if missing:
        raise InputError(
            f"{said} reads {', '.join(map(repr, missing))}, which {source} does not have."
            f"{nearest(missing[0], list(types))}"
        )
    if set(tree) == {"Column"}:  # a name in double quotes or parentheses
        return Entry(value=parsed, fails=None, reads=reads, plain=True)
    used = {column: types[column] for column in reads}
    try:
        node, fails = _Rebuild(types=used, said=said).of(tree)
        value = expression(node)
        _trial(used).select(value=value)
    except pl.exceptions.PolarsError as error:
        raise InputError(
            f"{said} does not fit the columns of {source} ({', '.join(f'{c}: {t}' for c, t in used.items())}): "
            f"{str(error).splitlines()[0]}{_as_numbers(used)}"
        ) from error
    return Entry(value=value, fails=fails, reads=reads)


def _as_numbers(types: Types) -> str:
    """Return the way out where a column of an expression is text: one value that is no number makes it so."""
    text = next((name for name, kind in types.items() if kind == pl.String), None)
    if text is None:
        return ""
    return (
        f"; where {text} is to be a number, CAST({text} AS DOUBLE) rejects the rows in which it is none, and "
        f"TRY_CAST({text} AS DOUBLE) makes them null"
    )


def _named(sql: str, types: Types) -> pl.Expr | None:
    """Return the column of exactly this name, or the field of a struct by its path; None where it is neither."""
    if sql in types:
        return pl.col(sql)
    parts = sql.split(".")
    for cut in range(len(parts) - 1, 0, -1):
        kind: Any = types.get(".".join(parts[:cut]))
        if kind is None:
            continue
        value = pl.col(".".join(parts[:cut]))
        for field in parts[cut:]:
            inside = {each.name: each.dtype for each in kind.fields} if isinstance(kind, pl.Struct) else {}
            if field not in inside:
                return None
            value, kind = value.struct.field(field), inside[field]
        return value
    return None


def _parsed(name: str, sql: str, types: Types) -> pl.Expr:
    said = f"--schema: {name} = {sql!r}"
    bare = QUOTED.sub(" '' ", sql)
    if SUBQUERY.search(bare):
        raise ConfigError(f"{said} is a subquery or reads a file: an entry may read the columns of its own row only")
    changing = CHANGING.search(bare)
    if changing:
        word = changing[0].rstrip("( ")
        raise ConfigError(
            f"{said}: {word} is not the same at every evaluation, so no run could be repeated; name a column or write "
            f"a fixed value. A column of this name is written in double quotes: {name} = '\"{word}\"'"
        )
    try:
        parsed, again = pl.sql_expr(sql), pl.sql_expr(sql)
    except (pl.exceptions.PolarsError, ValueError) as error:
        example = _quoted(sql, types) or '"order" + 1'
        entry = f"{name} = {json.dumps(example, ensure_ascii=False)}"
        raise ConfigError(
            f"{said} is not a Polars SQL expression ({error}).{nearest(sql, list(types))} In an expression, names of "
            f"columns that are SQL words or have other signs than letters, digits and _ are in double quotes: {entry}"
        ) from error
    if not parsed.meta.eq(again):
        raise ConfigError(f"{said} is not the same at every evaluation, so no run could be repeated")
    return parsed


def _quoted(sql: str, types: Types) -> str | None:
    """Return an expression with double quotes around a column's name, where it is one then."""
    for column in sorted(types, key=len, reverse=True):
        if column in sql and f'"{column}"' not in sql:
            quoted = sql.replace(column, f'"{column}"')
            try:
                pl.sql_expr(quoted)
            except (pl.exceptions.PolarsError, ValueError):
                continue
            return quoted
    return None


def _trial(types: Types) -> pl.DataFrame:
    """Return a row of nulls and one of values: what an expression cannot do, such as NOT of a text, shows in it."""
    nulls = pl.DataFrame({column: [None, "0"] for column in types}, schema=dict.fromkeys(types, pl.String))
    return nulls.select(
        pl.col(name).cast(kind) if kind.is_numeric() or kind == pl.String else pl.lit(None, kind).alias(name)
        for name, kind in types.items()
    )


@dataclass(frozen=True, kw_only=True)
class _Rebuild:
    """Rebuilds the tree of one expression; each step returns the new node and where it fails."""

    types: Types
    said: str

    def of(self, node: Node) -> tuple[Node, pl.Expr | None]:
        kind, inside = first(node)
        if kind == "Column":
            return node, None
        if kind == "Literal":
            return _literal(node), None
        if kind == "Alias":
            return self.of(inside[0])
        if kind == "BinaryExpr":
            return self._binary(inside)
        if kind == "Ternary":
            return self._ternary(inside)
        if kind == "Cast":
            return self._cast(inside)
        if kind == "Function":
            return self._function(inside)
        if kind == "Eval" and inside["variant"] == "List":  # a function over a list's own elements
            value, fails = self.of(inside["expr"])
            return {"Eval": {**inside, "expr": value}}, fails
        raise self._refused(kind)

    def _refused(self, kind: str) -> ConfigError:
        what = {
            "Over": "is a window function: an entry may look at its own row only",
            "Explode": 'unnests a list: write explode = ["its column", ...] in the file instead, all lists of a row '
            "together, and name the columns as they are",
            "SubPlan": "is a subquery: an entry may read the columns of its own row only",
            "Selector": "names several columns: an entry is one value",
            "Agg": "is an aggregate, over many rows: an entry may look at its own row only",
        }
        many = what["Over"] if kind in WINDOWS else f"is not row-wise ({kind}): an entry may look at its own row only"
        aggregate = what["Agg"] if kind in ("Len", "Quantile", "NullCount", "Agg") else many
        return ConfigError(f"{self.said} {what.get(kind, aggregate)}")

    def _type(self, node: Node) -> pl.DataType:
        return type_of(node, self.types)

    def _inner(self, node: Node) -> pl.DataType:
        """Return the type of a list's elements."""
        return type_of(node_of(expression(node).list.first()), self.types)

    def _binary(self, inside: dict[str, Node]) -> tuple[Node, pl.Expr | None]:
        (left, left_fails), (right, right_fails) = self.of(inside["left"]), self.of(inside["right"])
        fails, operation = [left_fails, right_fails], inside["op"]
        if operation not in whole_numbers.OPERATIONS:
            return {"BinaryExpr": {**inside, "left": left, "right": right}}, any_of(fails)
        node, beyond = whole_numbers.computed(
            operation,
            [left, right],
            lambda both: {"BinaryExpr": {**inside, "left": both[0], "right": both[1]}},
            self.types,
        )
        return node, any_of([*fails, beyond])

    def _ternary(self, inside: dict[str, Node]) -> tuple[Node, pl.Expr | None]:
        (predicate, asked), (truthy, then), (falsy, otherwise) = (
            self.of(inside[part]) for part in ("predicate", "truthy", "falsy")
        )
        node = {"Ternary": {"predicate": predicate, "truthy": truthy, "falsy": falsy}}
        if then is None and otherwise is None:
            return node, asked
        never = pl.lit(value=False)
        taken = pl.when(expression(predicate)).then(never if then is None else then)
        return node, any_of([asked, taken.otherwise(never if otherwise is None else otherwise)])

    def _cast(self, inside: dict[str, Node]) -> tuple[Node, pl.Expr | None]:
        child, fails = self.of(inside["expr"])
        have, to = self._type(child), inside["dtype"]["Literal"]
        family = to if isinstance(to, str) else next(iter(to))
        if have == pl.String and family in TEMPORAL:
            child = node_of(iso_time(expression(child)))
        value = {"Cast": {**inside, "expr": child, "options": "NonStrict"}}
        sure = family == "String" or have == pl.Boolean or (have.is_numeric() and str(family).startswith("Float"))
        if inside["options"] != "Strict" or sure:
            return value, fails
        given, _ = self.of(inside["expr"])
        return value, any_of([fails, expression(given).is_not_null() & expression(value).is_null()])

    def _function(self, inside: dict[str, Node]) -> tuple[Node, pl.Expr | None]:
        function = inside["function"]
        family, what = first(function)
        member = what if isinstance(what, str) else next(iter(what), "") if isinstance(what, dict) else ""
        allowed = ROW_WISE.get(family, set())
        if (allowed is not None and member not in allowed) or member in REFUSED:
            raise self._refused(member if family in ("Boolean", "Bitwise", "StringExpr", "ListExpr") else family)
        built = [self.of(each) for each in inside["input"]]
        nodes, fails = [node for node, _ in built], any_of([fails for _, fails in built])
        if member == "IsIn" and "Literal" not in nodes[1] and not self._type(nodes[1]).is_nested():
            raise self._refused("IsIn over a column")
        if family in ("Negate", "Abs") or member == "Binary":
            operation = what["Binary"] if member == "Binary" else family
            node, beyond = whole_numbers.computed(
                operation, nodes, lambda operands: {"Function": {**inside, "input": operands}}, self.types
            )
            return node, any_of([fails, beyond])
        if family == "ListExpr" and member == "Sum" and self._inner(nodes[0]).is_integer():
            node, beyond = whole_numbers.sum_of_lists(nodes[0])
            return node, any_of([fails, beyond])
        if family == "Pow":  # of integers it would wrap
            nodes = [node_of(expression(node).cast(pl.Float64)) for node in nodes]
        if member == "Strptime":
            return self._strptime(inside, nodes, fails)
        if not all("Literal" in node for node in nodes[1:]):  # a pattern from a column that is none gives null
            function = json.loads(json.dumps(function).replace('"strict": true', '"strict": false'))
        value = {"Function": {**inside, "input": nodes, "function": function}}
        if family == "Coalesce" and fails is not None:
            fails = fails & expression(value).is_null()
        return value, fails

    def _strptime(
        self, inside: dict[str, Node], nodes: list[Node], fails: pl.Expr | None
    ) -> tuple[Node, pl.Expr | None]:
        to, how = inside["function"]["StringExpr"]["Strptime"]
        text = expression(nodes[0])
        if how["format"] is None and to != {"Literal": "Time"}:  # Polars would guess it from the first row
            value = node_of(iso_time(text).cast(pl.Date) if to == {"Literal": "Date"} else iso_time(text))
        elif how["format"] is None:
            value = node_of(text.str.to_time("%H:%M:%S%.f", strict=False))
        else:
            lenient = {"StringExpr": {"Strptime": [to, {**how, "strict": False}]}}
            value = {"Function": {**inside, "input": nodes, "function": lenient}}
        if not how["strict"]:
            return value, fails
        return value, any_of([fails, text.is_not_null() & expression(value).is_null()])


def _literal(node: Node) -> Node:
    """Return a literal as it is, a decimal one (1000.0) as Float64: decimals round, and overflow."""
    scalar = node["Literal"].get("Scalar") if isinstance(node["Literal"], dict) else None
    if isinstance(scalar, dict) and "Decimal" in scalar:
        digits, _, scale = scalar["Decimal"]
        return {"Literal": {"Scalar": {"Float64": float(f"{digits}e-{scale}")}}}
    return node
