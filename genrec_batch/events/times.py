"""Times as text: ISO 8601 in the forms that exports have, as one expression.

Owns: which texts are times. Must not know: columns of the contract, epochs. Each text is read by itself, never by a
format that is guessed from another row.
"""

from __future__ import annotations

import polars as pl

WAYS = (
    'for seconds, ms, us or ns since 1970 as text: timestamp = "CAST(your_column AS BIGINT)"; for any other text: '
    "timestamp = \"STRPTIME(your_column, '%d.%m.%Y %H:%M:%S')\" with the format of yours"
)


def iso_time(text: pl.Expr) -> pl.Expr:
    """Return ISO 8601 text as naive datetimes in UTC (us), null where it is none.

    Forms: `2026-04-30`, `2026-04-30 12:34`, `2026-04-30T12:34:56.789`, `...Z`, `...+02:00`, `...+0200`.
    """
    plain = text.str.strip_chars().str.replace(r"^(\d{4}-\d\d?-\d\d?)T", "$1 ")

    def read(form: str) -> pl.Expr:
        return plain.str.to_datetime(form, time_unit="us", strict=False)

    return pl.coalesce(
        read("%Y-%m-%d %H:%M:%S%.f"),
        read("%+").dt.replace_time_zone(None),
        read("%Y-%m-%d %H:%M"),
        plain.str.to_date("%Y-%m-%d", strict=False).cast(pl.Datetime("us")),
    )
