"""The chapters of a report: which facts are shown, in which order and in which words.

Owns: the sections of `report.document`. Must not know: terminals or HTML. In: a report. Out: `Section`s.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from genrec_batch.reports import arm_tables, charts, drift_tables
from genrec_batch.reports.sections import Section, Table, duration, figure, rate, share, size

Report = Mapping[str, Any]


def sections(report: Report) -> list[Section]:
    """Return the sections of a report in reading order: the machine's ceilings before any result."""
    made = [_machine(report)]
    made += [_run(report["run"])] if report["run"] else []
    made += [_data(report["data"])] if report["data"] else []
    made += [_engines(report["engines"])] if report["engines"] else []
    made += [_model(report["model"], report["presets"])] if report["model"] else []
    return made


def _machine(report: Report) -> Section:
    m, found = report["machine"], report["ceilings"]
    place = f"{m['processor']}, {m['cores']} cores, {m['memory_gib']} GiB; {m['system']}, Python {m['python']}."
    lead = [place, f"Load of the last minute when this was written: {m['load_1min']}."]
    if found is None:
        return Section(name="machine", title="Machine", lead=lead)
    lead.append("What this machine can do at best, measured before anything else; results below are compared with it.")
    rows = [
        [f"matrix product, {p['precision']} on {p['device']} ({p['library']})", figure(p["gflop_per_s"], "GFLOP/s")]
        for p in found["products"]
    ]
    cached = " (pages may come from memory)" if found["disk_read_cached"] else ""
    rows += [
        ["memory copy, read plus written", figure(found["memory_copy_gb_s"], "GB/s")],
        ["disk write with fsync", figure(found["disk_write_gb_s"], "GB/s")],
        [f"disk read{cached}", figure(found["disk_read_gb_s"], "GB/s")],
    ]
    table = Table(title="Ceilings", columns=["what", "at best"], rows=rows)
    return Section(name="machine", title="Machine and its ceilings", lead=lead, tables=[table])


def _run(run: Report) -> Section:
    summary = run["summary"]
    arms = arm_tables.tables(summary.get("arms", {}))
    tables = [_outcome(run, summary), *arms, *_shortfalls(summary), _stages(run), _lanes(run)]
    if run["bounds"]:
        tables.append(_bounds(run))
    lead = [run["verdict"], *(summary.get("warnings") or [])]
    tables += drift_tables.tables(summary.get("drift"))
    shown = [charts.timeline(run), charts.stage_seconds(run), *drift_tables.charts(summary.get("drift"))]
    return Section(name="run", title="A real run", lead=lead, tables=tables, charts=shown)


def _outcome(run: Report, summary: Report) -> Table:
    facts = [
        ["users scored", figure(summary.get("scored_users"))],
        ["wall time", duration(run["wall_s"])],
        ["users per second, end to end", figure(run["users_per_s"])],
        ["users per second, model alone", figure(summary.get("users_per_s"))],
        ["engine", f"{summary.get('engine')} in {summary.get('precision')} on {summary.get('device')}"],
        ["users per batch, at most", figure(summary.get("batch_users"))],
        ["padding, share of computed positions", share(summary.get("padding_share"))],
        ["peak memory of the process", figure(summary.get("peak_rss_mib"), "MiB")],
    ]
    if run.get("device_peak_mib") is not None:
        facts.append(["peak memory of the GPU", figure(run["device_peak_mib"], "MiB")])
    facts += [
        ["threads at work at once, mean", figure(run["overlap"]["lanes_at_once"])],
        ["no stage at work", duration(run["overlap"]["idle_s"])],
    ]
    return Table(title="The run", columns=["", ""], rows=facts)


def _shortfalls(summary: Report) -> list[Table]:
    """Return why lists are short, with some users for each reason; nothing where all are whole."""
    some = summary.get("shortfall_users") or {}
    rows = [
        [reason, figure(users), ", ".join(map(str, some.get(reason, [])))]
        for reason, users in (summary.get("shortfalls") or {}).items()
    ]
    title = "Users with fewer videos than --top-k"
    return [Table(title=title, columns=["reason", "users", "some of them"], rows=rows)] if rows else []


def _stages(run: Report) -> Table:
    rows = [
        [
            f"{row['within']}: {row['stage']}" if row["within"] else row["stage"],
            duration(row["seconds"]),
            share(row["share_of_wall"]),
            figure(row["spans"]),
            figure(row["rows"]) if row["rows"] else "-",
            size(row["bytes"]) if row["bytes"] else "-",
            figure(row["rows_per_s"]),
            figure(row["mb_per_s"]),
        ]
        for row in run["stages"]
    ]
    columns = ["stage", "time in all", "of the run", "spans", "rows", "bytes", "rows/s", "MB/s"]
    return Table(title="Stages", columns=columns, rows=rows)


def _lanes(run: Report) -> Table:
    rows = [[row["lane"], duration(row["busy_s"]), share(row["busy_share"])] for row in run["lanes"]]
    return Table(title="Threads, and the streams of a GPU", columns=["thread", "at work", "of the run"], rows=rows)


def _bounds(run: Report) -> Table:
    rows = [
        [
            b["resource"],
            duration(b["seconds"]),
            share(b["share_of_wall"]),
            rate(b["rate"], b["unit"]),
            figure(b["ceiling"], b["unit"]),
            share(b["share_of_ceiling"]),
        ]
        for b in run["bounds"]
    ]
    title = "What bounds the run: share of this machine's ceilings while the stage ran"
    return Table(
        title=title, columns=["resource", "time", "of the run", "rate", "ceiling", "of the ceiling"], rows=rows
    )


def _data(data: Report) -> Section:
    facts, lengths, catalog = data["facts"], data["lengths"], data["catalog"]
    names = {
        "input_rows": "rows of the log",
        "rejected_rows": "rejected rows",
        "users": "users",
        "users_without_events": "users without events",
        "cold_start_users": "users with no known video (cold start)",
        "kept_events": "kept events",
        "timestamps": "timestamps",
        "as_of": "as of",
    }
    rows = [
        [name, figure(facts[key]) if isinstance(facts[key], int) else facts[key]]
        for key, name in names.items()
        if key in facts
    ]
    rows += [
        ["history length: mean", figure(lengths["mean"], "events")],
        ["history length: 10%, 50%, 90%, 99%", ", ".join(figure(lengths[q]) for q in ("p10", "p50", "p90", "p99"))],
        [f"histories cut at {lengths['at_most']} events", figure(lengths["full"])],
        ["catalog videos", figure(catalog["videos"])],
        ["catalog videos in some history", f"{figure(catalog['in_histories'])} ({share(catalog['coverage'])})"],
        ["kept events of unknown videos", f"{figure(catalog['unknown_events'])} ({share(catalog['unknown_share'])})"],
    ]
    rows += [
        [f"events of the top {h['share_of_videos']:.0%} of videos", share(h["share_of_events"])]
        for h in catalog["head"]
    ]
    blocks = [
        [b["block"], figure(b["slots"]), figure(b["used_slots"]), share(b["coverage"]), share(b["filled"])]
        for b in data["blocks"]
    ]
    lead = []
    if data["ignored_columns"]:
        lead.append(f"Columns that are not read: {', '.join(data['ignored_columns'])}.")
    return Section(
        name="data",
        title="The data",
        lead=lead,
        tables=[
            Table(title="The log", columns=["", ""], rows=rows),
            Table(
                title="Features: slots that are ever non-zero",
                columns=["block", "slots", "used", "of the block", "non-zero per user"],
                rows=blocks,
            ),
        ],
        charts=[charts.history_lengths(data), charts.feature_coverage(data)],
    )


def _engines(engines: Report) -> Section:
    top_k = engines["top_k"]
    what = f"Histories of {engines['events']} events, --decode {engines['mode']}, top {top_k}"
    lead = [
        f"{what}: {engines['gflop_per_user']} GFLOP a user.",
        "Each engine is warmed up once and takes turns with the others. With few runs, p99 is their slowest.",
        f"Overlap with fp32 is over {engines['compared_users']} users of {engines['compared_over']}.",
    ]
    lead += [
        f"{e['engine']} in {e['precision']} computes {e['fixed_rows']:,} rows for any batch up to that, in one time."
        for e in engines["engines"]
        if e["fixed_rows"]
    ]
    lead += [f"Left out: {s['engine']} in {s['precision']}: {s['why']}" for s in engines["skipped"]]
    return Section(
        name="engines",
        title="Engines on this machine",
        lead=lead,
        tables=[_latency(engines["engines"]), _parity(engines["engines"], top_k)],
        charts=[charts.throughput(engines), charts.latency(engines)],
    )


def _latency(engines: Sequence[Report]) -> Table:
    rows = [
        [
            f"{e['engine']} {e['precision']}",
            figure(p["batch_users"]),
            figure(p["p50_ms"]),
            figure(p["p95_ms"]),
            figure(p["p99_ms"]),
            figure(p["users_per_s"]),
            share(p["share_of_ceiling"]),
            figure(p["warm_up_ms"]),
            figure(p["runs"]),
        ]
        for e in engines
        for p in e["points"]
    ]
    columns = ["engine", "batch", "p50 ms", "p95 ms", "p99 ms", "users/s", "of ceiling", "warm-up ms", "runs"]
    return Table(title="Latency and throughput by users in a batch", columns=columns, rows=rows)


def _parity(engines: Sequence[Report], top_k: int) -> Table:
    rows = [
        [
            f"{e['engine']} {e['precision']}",
            share(e["topk_overlap"]),
            share(e["top1_match"]),
            f"{e['largest_log_prob_difference']:.2g}",
            figure(e["phases"]["prefill_ms"]),
            figure(e["phases"]["decode_ms"]),
        ]
        for e in engines
    ]
    users, passes = engines[0]["phases"]["batch_users"], f"{top_k} decode passes ms"
    return Table(
        title=f"Compared with fp32, and the phases of a slate for {users} users",
        columns=["engine", f"top {top_k} shared", "same first", "log_prob differs by", "prefill ms", passes],
        rows=rows,
    )


def _model(facts: Report, presets: Sequence[Report] | None) -> Section:
    flops = facts["flops"]
    total = facts["parameters"]
    tables = [
        Table(
            title=f"Parameters: {total:,}",
            columns=["group", "parameters", "share"],
            rows=[[name, f"{count:,}", share(count / total)] for name, count in facts["groups"].items()],
        ),
        Table(
            title="Weights in memory",
            columns=["precision", "MB"],
            rows=[[name, str(mb)] for name, mb in facts["memory_mb"].items()],
        ),
        Table(
            title="Bytes of a batch: fixed shapes, and what is really moved",
            columns=["users", "fixed shapes MB", "moved here MB", "less by"],
            rows=[
                [
                    str(row["users"]),
                    f"{row['wide_mb']}",
                    f"{row['moved_mb']}",
                    f"{row['wide_bytes'] / row['moved_bytes']:,.0f}x",
                ]
                for row in facts["inputs"]
            ],
        ),
        Table(
            title=f"Arithmetic of one user: {flops['events']} events, {flops['decode_passes']} videos decoded",
            columns=["stage", "GFLOP"],
            rows=[
                [f"prefill of {flops['events'] + 1} positions", f"{flops['prefill'] / 1e9:.3f}"],
                [f"{flops['decode_passes']} decode passes", f"{flops['decode'] / 1e9:.3f}"],
                ["in all", f"{flops['per_user'] / 1e9:.3f}"],
                ["the same without a KV cache", f"{flops['without_cache'] / 1e9:.3f}"],
            ],
        ),
    ]
    if presets:
        tables.append(_presets(presets))
    lead = [f"{facts['name']}: {'trained' if facts['trained'] else 'untrained, the ranking means nothing'}."]
    lead.append(
        "Fixed shapes: 2,000 int32 ids and mask entries, a hidden cache of 1,000 x 512, features, profile and video "
        "vector per user. Moved here: features, tokens, lengths and seen videos in, ranked videos out; the KV cache "
        f"({facts['kv_cache_mb_per_user']['fp32']} MB a user in fp32) never leaves the device. MB = 2^20 bytes."
    )
    return Section(name="model", title="The model", lead=lead, tables=tables, charts=[charts.parameter_groups(facts)])


def _presets(presets: Sequence[Report]) -> Table:
    names = {
        "vocabulary": "vocabulary",
        "width": "width",
        "ffn": "feed-forward",
        "layers": "layers",
        "positions": "positions",
        "parameters": "parameters",
        "gflop_per_user": "GFLOP a user",
        "events": "events counted",
    }
    rows = [[name, *(figure(p[key]) for p in presets)] for key, name in names.items()]
    rows += [[f"MB in {key}", *(str(p["memory_mb"][key]) for p in presets)] for key in ("fp32", "fp16", "int8")]
    return Table(title="Side by side", columns=["", *(p["name"] for p in presets)], rows=rows)
