"""Reports: the formulas' published figures, ceilings, engines, data, a run's spans, the JSON's form, the trace.

Also tests `ceilings`, `chapters`, `data_facts`, `engine_facts`, `model_facts`, `options`, `report`, `run_facts`,
`sections`, `separate`, `torch_ceilings` and `trace`.
"""

from __future__ import annotations

import importlib.util
import json
import re
from importlib import resources
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from genrec_batch.core import layout
from genrec_batch.core.arrays import Ranked
from genrec_batch.core.declare import recorded
from genrec_batch.core.errors import ConfigError, DeviceMemoryError, EngineError
from genrec_batch.engines.decode import Decoding
from genrec_batch.model import weights
from genrec_batch.reports import ceilings, chapters, engine_facts, model_facts, report, run_facts, trace
from genrec_batch.reports.options import ProfileConfig, RunConfig
from genrec_batch.runtime.clock import Span, Stages
from tests.fakes.engine import PartialEngine

REFERENCE = weights.PRESETS["reference"]


def stages_of(*spans):
    """Stages with given (stage, lane, start, stop, rows, bytes)."""
    made = Stages()
    for stage, lane, start, stop, rows, moved in spans:
        made.spans.append(Span(stage=stage, lane=lane, start_s=start, stop_s=stop, rows=rows, bytes=moved))
        made.seconds[stage] = made.seconds.get(stage, 0.0) + stop - start
    return made


OVERLAPPING = stages_of(
    ("scan", "main", 0.0, 1.0, 1000, 8000),
    ("features", "prepare-0", 1.0, 3.0, 500, 0),
    ("model run", "device", 2.0, 4.0, 250, 0),
    ("model run", "device", 4.0, 6.0, 250, 0),
    ("write", "write-0", 6.5, 7.0, 5000, 100_000),
)


def test_published_sizes_of_the_reference_model():
    facts = model_facts.describe(REFERENCE, events=50, top_k=10)
    assert facts["parameters"] == 24_836_372
    assert [facts["memory_mb"][p] for p in ("fp32", "fp16", "int8")] == [94.7, 47.4, 23.7]
    assert {row["users"]: row["wide_mb"] for row in facts["inputs"]} == {1: 2.0, 4: 7.9, 8: 15.8, 16: 31.6, 32: 63.2}
    assert round(facts["flops"]["prefill"] / 1e9, 3) == 1.311
    assert round(facts["flops"]["decode"] / 1e9, 3) == 0.361


def test_flops_are_those_of_the_products_one_by_one():
    """A slow twin: every product of every position, counted alone."""
    c, events, passes = weights.PRESETS["tiny"], 7, 3

    def position(p):
        layer = 2 * c.width * 3 * c.width + 2 * c.width * c.width + 2 * 2 * c.width * c.ffn
        attention = 2 * c.width * p + 2 * p * c.width  # scores, then values: causal, so p keys
        return c.layers * (layer + attention)

    logits = 2 * c.width * c.vocabulary
    prefill = sum(position(p) for p in range(1, events + 2)) + logits + 2 * c.features * c.width
    decode = sum(position(events + 1 + i) + logits + 2 * c.width * 4 for i in range(1, passes + 1))
    assert model_facts.prefill_flops(c, events) == prefill
    assert model_facts.decode_flops(c, events, passes) == decode


def test_the_moved_bytes_are_those_of_a_real_batch():
    tiny = weights.demo_model(weights.PRESETS["tiny"])
    batch = engine_facts.full_histories(tiny, 6, 20)
    arrays = (batch.dense_BF, batch.tokens_BS, batch.lengths_B, batch.seen_BX)
    told = model_facts.moved_bytes(tiny.config, 6, events=20, seen=20, top_k=10)
    assert sum(a.nbytes for a in arrays) == sum(v for name, v in told.items() if name.endswith(" in"))


def test_presets_side_by_side_fit_their_positions():
    rows = model_facts.side_by_side(weights.PRESETS, events=2000, top_k=10)
    assert {r["name"]: r["events"] for r in rows} == {
        "reference": 2000, "high-performance": 2000, "lightweight": 1013, "tiny": 501,
    }  # fmt: skip


def test_ceilings_are_measured_and_leave_no_file(tmp_path):
    told = []
    found = ceilings.measure(weights.PRESETS["tiny"], tmp_path, told.append)
    assert len(told) == ceilings.STEPS
    assert found["products"][0]["library"] == "NumPy"
    assert all(p["gflop_per_s"] > 0 for p in found["products"])
    if engine_facts.runs_here("int8") and importlib.util.find_spec("torch"):
        assert ceilings.product_ceiling(found, device="cpu", precision="int8")["library"] == "torch"
    assert min(found[k] for k in ("memory_copy_gb_s", "disk_write_gb_s", "disk_read_gb_s")) > 0
    assert not list(tmp_path.iterdir())
    best = ceilings.product_ceiling(found, device="cpu", precision="fp32")
    assert best["gflop_per_s"] == max(p["gflop_per_s"] for p in found["products"] if p["precision"] == "fp32")
    assert ceilings.product_ceiling(found, device="cuda:0", precision="fp8") is None


def test_a_run_is_told_by_stage_thread_and_overlap():
    facts = run_facts.describe(OVERLAPPING, {"scored_users": 500}, elapsed_s=7.5)
    stages = {row["stage"]: row for row in facts["stages"]}
    assert stages["model run"]["spans"] == 2
    assert stages["model run"]["rows_per_s"] == 125.0
    assert stages["write"]["mb_per_s"] == 0.2
    assert {row["lane"]: row["busy_s"] for row in facts["lanes"]} == {
        "main": 1.0, "prepare-0": 2.0, "device": 4.0, "write-0": 0.5,
    }  # fmt: skip
    assert facts["overlap"] == {"busy_s": 7.5, "idle_s": 1.0, "lanes_at_once": round(7.5 / 6.5, 3)}
    assert "'model run' ran during 53% of the 7.5 s" in facts["verdict"]
    assert "device, worked 53%" in facts["verdict"]


def test_a_thread_with_spans_inside_spans_is_not_counted_twice():
    nested = stages_of(("outer", "main", 0.0, 4.0, 0, 0), ("inner", "main", 1.0, 2.0, 0, 0))
    assert run_facts.describe(nested, {})["lanes"] == [{"lane": "main", "busy_s": 4.0, "busy_share": 1.0}]


def test_a_stage_too_short_for_a_rate_has_none():
    facts = run_facts.describe(stages_of(("histories", "main", 0.0, 2e-5, 94_784, 0)), {})
    assert facts["stages"][0]["rows_per_s"] is None


def test_bounds_are_shares_of_the_ceilings():
    found = {
        "products": [{"device": "cpu", "precision": "fp32", "library": "NumPy", "gflop_per_s": 100.0}],
        "memory_copy_gb_s": 10.0, "disk_write_gb_s": 1.0, "disk_read_gb_s": 2.0,
    }  # fmt: skip
    summary = {"scored_users": 100, "users": 100, "kept_events": 5000, "device": "cpu", "precision": "fp32"}
    facts = run_facts.describe(OVERLAPPING, summary, config=REFERENCE, ceilings=found)
    bounds = {b["resource"].partition(":")[0]: b for b in facts["bounds"]}
    product = bounds["matrix product, fp32 on cpu (NumPy)"]
    assert product["rate"] == pytest.approx(100 * 1.672 / 4, rel=0.001)
    assert product["share_of_ceiling"] == pytest.approx(product["rate"] / 100, rel=0.001)
    written = next(b for b in facts["bounds"] if b["resource"] == "disk: output written")
    assert written["rate"] == pytest.approx(100_000 / 0.5 / 1e9)
    assert "of this machine's matrix product" in facts["verdict"]


def test_a_long_timeline_is_joined_and_loses_no_time():
    many = stages_of(*(("model run", "device", i * 0.01, i * 0.01 + 0.009, 3, 5) for i in range(5000)))
    bars = run_facts.timeline(many.spans)
    assert 0 < len(bars) <= run_facts.MOST_BARS
    assert sum(b["spans"] for b in bars) == 5000
    assert sum(b["rows"] for b in bars) == 15_000
    assert sum(b["busy_s"] for b in bars) == pytest.approx(45.0, rel=1e-3)


def test_the_trace_has_a_named_lane_for_each_thread(tmp_path):
    trace.write(OVERLAPPING, tmp_path / "t.json")
    events = json.loads((tmp_path / "t.json").read_text())["traceEvents"]
    lanes = {e["tid"]: e["args"]["name"] for e in events if e["name"] == "thread_name"}
    assert list(lanes.values()) == ["main", "prepare-0", "device", "write-0"]
    spans = [e for e in events if e["ph"] == "X"]
    assert len(spans) == 5
    assert [(lanes[e["tid"]], e["ts"], e["dur"]) for e in spans if e["name"] == "write"] == [("write-0", 6.5e6, 0.5e6)]
    assert spans[0]["args"] == {"rows": 1000, "bytes": 8000}
    assert [p.name for p in tmp_path.iterdir()] == ["t.json"]


def test_a_file_that_cannot_be_written_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"--trace .*none.*cannot be written"):
        trace.write(OVERLAPPING, tmp_path / "none" / "t.json")
    with pytest.raises(ConfigError, match=r"--report .*\.txt: a name that ends in \.html or \.json"):
        report.check_path(str(tmp_path / "r.txt"), "--report", (".html", ".json"))
    with pytest.raises(ConfigError, match="does not exist"):
        report.check_path(str(tmp_path / "no" / "r.html"), "--report", (".html", ".json"))


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        (("torch:bf16",), [("torch", "bf16")]),
        (("onnxruntime", "torch:fp32"), [("onnxruntime", "fp32"), ("torch", "fp32")]),
        (("torch", "torch:bf16"), [("torch", "fp32"), ("torch", "bf16")]),
    ],
)
def test_engines_are_chosen_by_name_and_precision(asked, found, monkeypatch):
    monkeypatch.setattr(engine_facts, "runs_here", ("fp32", "bf16").__contains__)
    assert engine_facts.choices(asked, "cpu") == found


@pytest.mark.parametrize(
    ("asked", "message"),
    [("torhc", "Did you mean 'torch'"), ("tensorrt", "not on cpu; there are torch:fp32"), ("torch:fp8", "not on cpu")],
)
def test_an_engine_that_nobody_has_is_named(asked, message):
    with pytest.raises(ConfigError, match=message):
        engine_facts.choices((asked,), "cpu")


class Weak(PartialEngine):
    """An engine on a GPU that holds `most` users, but not in its run `number`, and fails for good beyond `broken`."""

    device = "cuda:0"
    has_slate_loop = True

    def __init__(self, name, precision, *, most=99, number=0, broken=99):
        self.name, self.precision, self.most, self.number, self.broken = name, precision, most, number, broken

    def slate(self, batches, steps, _record=None):
        for batch in batches:
            self.number -= 1
            if len(batch) > self.broken:
                raise EngineError("cannot run an engine")
            if len(batch) > self.most or self.number == 0:
                raise DeviceMemoryError("out of memory")
            yield self.collect((len(batch), steps))

    def prefill(self, batch, *, steps, choices=1):
        return len(batch), steps * choices

    def decode(self, state, tokens_B=None):
        pass

    def choose(self, state):
        pass

    def collect(self, state):
        zeros = np.zeros(state, np.float32)
        return Ranked(
            tokens_BK=zeros.astype(np.int32) + 2, log_prob_BK=zeros, heads_BKH=np.zeros((*state, 4), np.float32)
        )


class Fixed(Weak):
    rows = 2048

    def resize(self, rows):
        self.rows = rows

    def expect(self, **run):
        self.run = run


def measured(monkeypatch, engines, *, sizes=(1, 8, 64), must=False):
    """What `profile` tells of engines that are opened by name."""
    tiny = weights.demo_model(weights.PRESETS["tiny"])

    def opened(_model, *, name, device, precision):
        assert device == "cuda:0"
        found = engines[name, precision]
        if isinstance(found, Exception):
            raise found
        return found

    monkeypatch.setattr(engine_facts, "open_engine", opened)
    monkeypatch.setattr(engine_facts, "reference_engine", lambda _: Weak("torch", "fp32"))
    products = [{"device": "cuda:0", "precision": "fp16", "library": "torch", "gflop_per_s": 1e9}]
    trial = engine_facts.Trial(
        model=tiny, wanted=list(engines), device="cuda:0", must=must, sizes=sizes, events=5,
        decoding=Decoding(top_k=3), seconds=0,
    )  # fmt: skip
    return engine_facts.measure(trial, real=None, ceilings={"products": products}, advance=lambda _: None)


def test_an_engine_that_fails_on_a_gpu_loses_only_what_it_failed_at(monkeypatch):
    found = measured(
        monkeypatch,
        {
            ("torch", "fp16"): Weak("torch", "fp16"),
            ("torch", "bf16"): Weak("torch", "bf16", most=8),
            ("torch", "fp32"): Weak("torch", "fp32", number=8),  # the second size runs out in a timed run
            ("onnxruntime", "fp16"): DeviceMemoryError("no room for the weights"),
            ("onnxruntime", "fp32"): EngineError("no provider"),
            ("tensorrt", "fp16"): Fixed("tensorrt", "fp16", broken=8),
        },
    )
    points = {(e["engine"], e["precision"]): [p["batch_users"] for p in e["points"]] for e in found["engines"]}
    assert points == {("torch", "fp16"): [1, 8, 64], ("torch", "bf16"): [1, 8], ("torch", "fp32"): [1, 64]}
    why = [(s["engine"], s["precision"], s["why"]) for s in found["skipped"]]
    assert why == [
        ("onnxruntime", "fp16", "no room for the weights"), ("onnxruntime", "fp32", "no provider"),
        ("torch", "fp32", "batches of 8: out of memory"), ("torch", "bf16", "batches of 64: out of memory"),
        ("tensorrt", "fp16", "cannot run an engine"),
    ]  # fmt: skip


def test_an_engine_that_was_asked_for_and_fails_is_an_error(monkeypatch):
    with pytest.raises(EngineError, match="cannot run"):
        measured(monkeypatch, {("torch", "fp16"): Weak("torch", "fp16", broken=8)}, must=True)
    with pytest.raises(EngineError, match="none ran: torch fp16: batches of 1: out of memory"):
        measured(monkeypatch, {("torch", "fp16"): Weak("torch", "fp16", most=0)})


def test_rows_of_an_engine_that_is_built_for_one_number_are_told(monkeypatch):
    found = measured(monkeypatch, {("tensorrt", "fp16"): Fixed("tensorrt", "fp16")})
    assert found["engines"][0]["fixed_rows"] == 64  # the largest batch that is timed
    lead = " ".join(chapters._engines(found).lead)
    assert "tensorrt in fp16 computes 64 rows for any batch up to that" in lead


def test_options_of_a_report_do_not_decide_the_result():
    assert recorded(RunConfig(report="a.html", trace="t.json")) == recorded(RunConfig())
    with pytest.raises(ConfigError, match="--batch-sizes '1,x'"):
        ProfileConfig(batch_sizes="1,x")
    with pytest.raises(ConfigError, match="--trace goes with --data"):
        ProfileConfig(trace="t.json")
    assert ProfileConfig(batch_sizes="64, 1,64").sizes() == (1, 64)
    assert ProfileConfig().sizes() == (1, 4, 16, 64, 256)
    assert ProfileConfig().sizes("cuda:0") == (1, 16, 256, 2048, 8192)


def schema():
    return json.loads((resources.files("genrec_batch.reports") / "report.schema.json").read_text())


def test_the_json_is_what_its_schema_says(profiled):
    jsonschema = pytest.importorskip("jsonschema", reason="jsonschema is not installed")
    folder, _ = profiled
    found = json.loads((folder / "report.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema())
    jsonschema.validate(found, schema())
    assert found["schema_version"] == schema()["properties"]["schema_version"]["const"] == report.SCHEMA_VERSION


def test_a_profile_tells_the_model_the_data_the_engines_and_the_run(profiled, model_dir):
    folder, result = profiled
    found = json.loads((folder / "report.json").read_text())
    assert found["model"]["parameters"] == weights.parameters(weights.PRESETS["tiny"])
    assert [p["name"] for p in found["presets"]] == [str(model_dir), "lightweight", "tiny"]
    assert found["data"]["facts"]["users"] == found["run"]["summary"]["scored_users"] == 40
    assert sum(b["users"] for b in found["data"]["lengths"]["histogram"]) == 40
    assert found["data"]["lengths"]["max"] <= 20
    assert {(e["engine"], e["precision"]) for e in found["engines"]["engines"]} == {
        ("onnxruntime", "fp32"), ("torch", "fp32"), ("torch", "bf16"),
        *[("torch", fast) for fast in ("bf16-fast", "int8", "int8-fast") if engine_facts.runs_here(fast)],
    }  # fmt: skip
    for engine in found["engines"]["engines"]:
        assert [p["batch_users"] for p in engine["points"]] == [1, 8]
        assert all(p["p50_ms"] <= p["p95_ms"] <= p["p99_ms"] and p["runs"] >= 5 for p in engine["points"])
        if engine["precision"] == "fp32":
            assert engine["topk_overlap"] == engine["top1_match"] == 1.0
    stages = [row["stage"] for row in found["run"]["stages"]]
    assert {"scan", "partition", "load", "histories", "features", "model run", "write"} <= set(stages)
    assert found["run"]["device_peak_mib"] is None
    assert found["run"]["summary"]["peak_rss_mib"] > 50
    assert result.stdout.index("Ceilings") < result.stdout.index("A real run") < result.stdout.index("Parameters")
    summary = json.loads(result.stdout.strip().splitlines()[-1])
    assert summary["command"] == "profile"
    assert summary["best_users_per_s"]["torch fp32"] > 0


PARTS = ["wait", "copy in", "prefill", "decode", "copy out"]


def test_the_model_run_is_told_by_its_parts_with_rows_and_bytes(profiled):
    folder, result = profiled
    stages = json.loads((folder / "report.json").read_text())["run"]["stages"]
    parts = {row["stage"]: row for row in stages if row["within"] == "model run"}
    assert list(parts) == PARTS
    whole = next(row for row in stages if row["stage"] == "model run")
    assert 0 < sum(row["seconds"] for row in parts.values()) <= whole["seconds"]
    assert parts["prefill"]["seconds"] > 0 < parts["decode"]["seconds"]
    users, items = 40, 40 * 5
    rows = {name: row["rows"] for name, row in parts.items()}
    assert rows == {"wait": 0, "copy in": users, "prefill": users, "decode": items, "copy out": users}
    least = users * 4 * 1024  # the features
    assert parts["copy in"]["bytes"] == parts["prefill"]["bytes"] > least
    assert parts["decode"]["bytes"] == parts["copy out"]["bytes"] == items * (4 + 4 + 16)
    for name in ("scan", "partition", "load", "histories", "features", "write"):
        row = next(row for row in stages if row["stage"] == name)
        assert row["rows"] > 0 < row["bytes"], name
    for line in ("model run", *(f"model run: {name}" for name in PARTS)):
        assert re.search(rf"^ *{line}  ", result.stdout, re.MULTILINE), line


def test_the_parts_stand_in_the_trace_inside_the_model_run_and_in_the_page(profiled):
    folder, _ = profiled
    spans = [e for e in json.loads((folder / "trace.json").read_text())["traceEvents"] if e["ph"] == "X"]
    whole = [e for e in spans if e["name"] == "model run"]
    for name in PARTS:
        for part in (e for e in spans if e["name"] == name):
            inside = [e for e in whole if e["tid"] == part["tid"] and e["ts"] <= part["ts"]]
            assert any(part["ts"] + part["dur"] <= e["ts"] + e["dur"] + 1 for e in inside), name  # a microsecond
    assert [e["args"]["rows"] for e in spans if e["name"] == "decode"] == [40 * 5]
    text = (folder / "report.html").read_text()
    for name in PARTS[1:]:
        assert f"model run: {name}</td>" in text, name


def test_a_bound_of_the_products_is_over_the_time_that_they_took():
    found = {
        "products": [{"device": "cuda:0", "precision": "fp16", "library": "torch", "gflop_per_s": 1000.0}],
        "memory_copy_gb_s": 10.0, "disk_write_gb_s": 1.0, "disk_read_gb_s": 2.0,
    }  # fmt: skip
    ran = stages_of(
        ("model run", "main", 0.0, 10.0, 0, 0), ("wait", "main", 0.0, 5.0, 0, 0),
        ("copy in", "device in", 5.0, 6.0, 100, 9), ("prefill", "device", 6.0, 7.0, 100, 9),
        ("decode", "device", 7.0, 8.0, 1000, 9), ("copy out", "device out", 8.0, 8.5, 100, 9),
    )  # fmt: skip
    summary = {"scored_users": 100, "users": 100, "kept_events": 5000, "device": "cuda:0", "precision": "fp16"}
    facts = run_facts.describe(ran, {**summary, "device_peak_mib": 12.5}, config=REFERENCE, ceilings=found)
    bound = facts["bounds"][0]
    assert (bound["seconds"], bound["share_of_wall"]) == (2.0, 0.2)
    assert bound["rate"] == pytest.approx(100 * 1.672 / 2, rel=0.001)
    beams = run_facts.describe(ran, summary, config=REFERENCE, ceilings=found, beams=3)["bounds"][0]
    assert beams["rate"] == pytest.approx(100 * (1.311 + 3 * 0.361) / 2, rel=0.001)
    assert facts["device_peak_mib"] == 12.5
    assert "Of the run, wait 50%, copy in 10%, prefill 10%, decode 10%, copy out 5%" in facts["verdict"]
    assert [row["lane"] for row in facts["lanes"]] == ["main", "device in", "device", "device out"]


def test_feature_coverage_by_block_is_that_of_the_features(profiled, run, model_dir):
    folder, _ = profiled
    done = run("features", folder / "events.parquet", "f.parquet", "--model", model_dir, "--max-events", 20, "--quiet")
    assert done.code == 0, done.err
    dense = np.stack(pl.read_parquet("f.parquet")["features"].to_numpy())
    used = (dense != 0).any(axis=0)
    blocks = {b["block"]: b for b in json.loads((folder / "report.json").read_text())["data"]["blocks"]}
    for block in {name for _, name, _ in layout.describe()}:
        slots = [slot for slot, name, _ in layout.describe() if name == block]
        assert blocks[block]["used_slots"] == used[slots].sum(), block
        assert blocks[block]["filled"] == pytest.approx((dense[:, slots] != 0).mean(), abs=1e-4), block


def test_the_trace_of_a_profile_is_that_of_its_run(profiled):
    folder, _ = profiled
    events = json.loads((folder / "trace.json").read_text())["traceEvents"]
    assert any(e["name"] == "model run" and e["ph"] == "X" for e in events)


def test_a_fault_of_the_run_is_told_as_score_tells_it(run, model_dir, tmp_path):
    done = run("profile", "--model", model_dir, "--data", "missing.parquet", "--engines", "onnxruntime")
    assert done.code == 3
    assert "missing.parquet: no such file or directory" in done.err
    done = run("profile", "--model", model_dir, "--html", "none/r.html")
    assert done.code == 2
    assert "--html none/r.html" in done.err
    assert not list(tmp_path.glob("*.html"))


def test_without_a_log_the_model_and_the_engines_are_profiled(run, model_dir):
    done = run(
        "profile",
        "--model",
        model_dir,
        "--engines",
        "onnxruntime",
        "--batch-sizes",
        2,
        "--seconds",
        0,
        "--json",
        "r.json",
    )
    assert done.code == 0, done.err
    found = json.loads(Path("r.json").read_text())
    assert found["run"] is None
    assert found["data"] is None
    assert found["engines"]["compared_over"] == "the histories that are timed"
    assert "A real run" not in done.out


def test_score_writes_its_own_report_and_trace(run, log_file, model_dir):
    done = run(
        "score", log_file, "o.parquet", "--model", model_dir, "--report", "r.json", "--trace", "t.json", "--quiet"
    )
    assert done.code == 0, done.err
    found = json.loads(Path("r.json").read_text())
    assert (found["kind"], found["model"], found["ceilings"]) == ("run", None, None)
    assert found["run"]["summary"]["run_id"] == done.summary["run_id"]
    again = run("score", log_file, "o2.parquet", "--model", model_dir, "--report", "r.html", "--quiet")
    assert again.summary["run_id"] == done.summary["run_id"]
    assert "chart-timeline" in Path("r.html").read_text()


def test_a_report_that_cannot_be_written_is_told_before_the_run(run, log_file, model_dir, tmp_path):
    done = run("score", log_file, "o.parquet", "--model", model_dir, "--report", "none/r.html")
    assert done.code == 2
    assert "--report none/r.html" in done.err
    assert not (tmp_path / "o.parquet").exists()


def test_a_failed_report_does_not_lose_the_run(run, log_file, model_dir, tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / ".r.html.tmp").mkdir()  # where the report is first written
    done = run("score", log_file, "o.parquet", "--model", model_dir, "--report", "sub/r.html", "--quiet")
    assert done.code == 2
    assert "the output o.parquet is whole" in done.err
    assert len(pl.read_parquet("o.parquet"))
