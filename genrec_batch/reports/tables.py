"""How results look on a terminal: the summary of a run, one user's recommendations, a model's sizes.

Owns: Rich tables. Must not know: how the numbers came about. Summaries go to stderr (stdout's last line is theirs as
JSON), results that were asked for go to stdout.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from rich.table import Table
from rich.text import Text

from genrec_batch.core.arrays import HEADS
from genrec_batch.core.drift import Distribution
from genrec_batch.core.output_options import ITEM_COLUMNS, USER_COLUMNS
from genrec_batch.core.text import harmless
from genrec_batch.features.sampled import in_short
from genrec_batch.io import fetched, table_runs
from genrec_batch.model import weights
from genrec_batch.reports import arm_tables, drift_tables, terminal
from genrec_batch.runtime.console import stderr, stdout

BUILT_IN = (*ITEM_COLUMNS, *USER_COLUMNS)
WHY = ("source", "propensity")
NARROW = 112  # columns of a terminal below which a table of recommendations has only the main columns


def number(value: Any) -> str:
    """Return a figure for people: with thousands separators, floats with few digits."""
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "-"}[value]
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.1f}" if abs(value) >= 10 else f"{value:.4g}"
    return str(value)


def summary(facts: Mapping[str, Any]) -> None:
    """Print a run's summary as a small table on stderr."""
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")  # a narrow terminal folds long values instead of cutting them
    rows = {
        "input rows": facts.get("input_rows"),
        "rejected rows": facts.get("rejected_rows"),
        "timestamps": facts.get("timestamps"),
        "as of": facts.get("as_of"),
        "users": facts.get("users"),
        "  without events": facts.get("users_without_events"),
        "  cold start": facts.get("cold_start_users"),
        "  carried over": facts.get("carried_users"),
        "  of an earlier as-of": facts.get("carried_of_earlier_as_of"),
        "given videos seen": facts.get("seen_candidates"),
        "given videos excluded": facts.get("excluded_candidates"),
        "short lists": facts.get("short_users") or None,
        "filled with popular": facts.get("popular_users"),
        "catalog videos": facts.get("catalog_videos"),
        "drift": drift_tables.worst(facts.get("drift")),
        "engine": facts.get("engine_why"),
        "users/s (model)": facts.get("users_per_s"),
        "seconds": facts.get("seconds"),
        "peak memory": f"{facts['peak_rss_mib']:,.0f} MiB" if facts.get("peak_rss_mib") else None,
        "  of the GPU": f"{facts['device_peak_mib']:,.0f} MiB" if facts.get("device_peak_mib") else None,
        "output": facts.get("output"),
        "output rows": facts.get("rows"),
    }
    if facts.get("ignored_columns"):
        rows["ignored columns"] = ", ".join(facts["ignored_columns"])
    for name, value in rows.items():
        if value is not None:
            table.add_row(f"[dim]{name}[/]", Text(harmless(number(value), one_line=True)))
    stages = ", ".join(
        f"{name} {seconds:.2f}" for name, seconds in facts.get("stages_s", {}).items() if seconds >= 0.005
    )
    if stages:
        table.add_row("[dim]stage seconds[/]", stages)
    stderr.print(table)
    for each in arm_tables.tables(facts.get("arms", {})):
        stderr.print(terminal.rich_table(each, len(each.columns)))


def recommendations(rows: pa.Table, layout: str, most: int = 200) -> None:
    """Print recommendations, at most `most` rows, on stdout."""
    if layout != "long":
        for user in rows.slice(0, most).to_pylist():
            stdout.print_json(data=user, default=str)
        return
    narrow = stdout.width < NARROW
    main = ("user_id", "rank", "video_id", "score", *(() if narrow else ("log_prob", "step")), *HEADS, *WHY)
    names = [name for name in main if name in rows.column_names]
    names += [name for name in rows.column_names if name not in BUILT_IN]  # carried ones
    table = Table()
    for name in names:
        left = name.endswith("_id") or name not in main
        short = f"{name[:5]}." if narrow and name in HEADS else name
        ids = {"overflow": "ignore"} if name in main[:4] else {}
        table.add_column(short, justify="left" if left else "right", no_wrap=name in main, **ids)  # type: ignore[arg-type]
    for row in rows.slice(0, most).to_pylist():
        table.add_row(*(Text(harmless(_cell(row[name]), one_line=True)) for name in names))
    stdout.print(table)
    if len(rows) > most:
        stdout.print(f"... and {len(rows) - most:,} more rows")


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4f}" if isinstance(value, float) else str(value)


def written(output: str, layout: str, most: int = 200) -> None:
    """Print the first rows of an output that was just written."""
    place = fetched.local(table_runs.newest(output, "OUTPUT"), "OUTPUT")
    recommendations(pq.read_table(place, partitioning=None), layout, most)


def parity(report: Mapping[str, Any]) -> None:
    """Print how far two engines agree, on stderr."""
    table = Table(title=f"{report['engine']} compared with {report['against']}")
    for name in ("measure", "value"):
        table.add_column(name, justify="left" if name == "measure" else "right")
    table.add_row("users", number(report["users"]))
    table.add_row("same first video", f"{report['top1_match']:.2%}")
    table.add_row("top K in common", f"{report['topk_overlap']:.2%}")
    table.add_row("items compared", number(report["compared_items"]))
    for name, largest in report["largest"].items():
        table.add_row(f"{name}: largest, mean difference", f"{largest:.2e}, {report['mean'][name]:.2e}")
    stderr.print(table)


def model_info(loaded: weights.Model, name: str, catalog_videos: int | None) -> dict[str, Any]:
    """Return the facts of a model: parameters by group, memory by precision, fingerprint."""
    config = loaded.config
    total = weights.parameters(config)
    return {
        "model": name,
        "parameters": total,
        "groups": weights.parameter_groups(config),
        "memory_mb": {
            precision: round(total * weights.BYTES[precision] / 2**20, 1) for precision in ("fp32", "fp16", "int8")
        },
        "config": {f: getattr(config, f) for f in config.__dataclass_fields__},
        "fingerprint": loaded.fingerprint,
        "trained": loaded.trained,
        "catalog_videos": catalog_videos,
        "training": None if loaded.training is None else loaded.training.stored(),
    }


def model_table(info: Mapping[str, Any]) -> None:
    """Print the facts of `model_info` on stdout."""
    table = Table(title=f"{info['model']}: {info['parameters']:,} parameters")
    table.add_column("group")
    table.add_column("parameters", justify="right")
    table.add_column("share", justify="right")
    for group, count in info["groups"].items():
        table.add_row(group, f"{count:,}", f"{count / info['parameters']:.1%}")
    stdout.print(table)
    memory = ", ".join(f"{size} MB in {precision}" for precision, size in info["memory_mb"].items())
    sizes = ", ".join(f"{name} {value:,}" for name, value in info["config"].items())
    catalog = "none (taken from the input)" if info["catalog_videos"] is None else f"{info['catalog_videos']:,} videos"
    training = info["training"]
    taught = (
        "" if training is None else f", histories of {training['max_events']}, --decode auto is {training['decode']}"
    )
    recorded = None if training is None else training["distribution"]
    known = [] if recorded is None else in_short(Distribution.read(recorded), training["decode"])
    for line in (
        *(
            f"at the end of training: {name}: mean {number(mean)}, median {number(median)}"
            for name, mean, median in known
        ),
        f"memory: {memory}",
        f"sizes: {sizes}",
        f"catalog: {catalog}",
        f"weights: {'trained' if info['trained'] else 'untrained: the ranking means nothing'}{taught}",
        f"fingerprint: {info['fingerprint']}",
    ):
        stdout.print(line, highlight=False, soft_wrap=True)
