"""The commands as a user runs them: results, options from everywhere, exit codes, streams.

Also tests `flags`, `look`, `model`, `reports.tables` and `scoring.write_features`.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import polars as pl
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import save_file

from genrec_batch.core.arrays import HEADS
from genrec_batch.model.weights import PRESETS, parameters, read_weights

COLUMNS = [
    "user_id", "rank", "video_id", "score", "log_prob", "step", *HEADS, "feature_scores", "history_length", "cold_start"
]  # fmt: skip


def test_score_writes_the_contract(run, log_file, log, model_dir):
    done = run("score", log_file, "recs.parquet", "--model", model_dir)
    assert done.code == 0, done.err
    rows = pl.read_parquet("recs.parquet")
    assert rows.columns == COLUMNS
    types = {"user_id": pl.Int64, "rank": pl.Int32, "video_id": pl.Int64, "step": pl.Int32, "history_length": pl.Int32}
    types |= dict.fromkeys(("score", "log_prob", *HEADS), pl.Float32) | {"cold_start": pl.Boolean}
    assert {name: rows.schema[name] for name in types} == types
    assert rows.schema["feature_scores"] == pl.Struct(
        dict.fromkeys(("engagement", "retention", "diversity"), pl.Float32)
    )
    assert rows.equals(rows.sort("user_id", "rank"))
    assert rows.group_by("user_id").agg(pl.col("rank")).filter(pl.col("rank") != list(range(1, 11))).is_empty()
    assert rows.select(pl.struct("user_id", "video_id").is_duplicated().any()).item() is False
    assert rows.filter(pl.col("score").diff().over("user_id") > 0).is_empty()
    assert set(rows["user_id"]) == set(log["user_id"])
    assert set(rows["video_id"]) <= set(log["video_id"])
    assert rows.join(log, on=["user_id", "video_id"], how="inner").is_empty(), "seen videos were recommended"
    assert done.summary["users"] == 40
    assert done.summary["rows"] == 400
    metadata = pq.read_metadata("recs.parquet").metadata
    keys = {k.decode().removeprefix("genrec.") for k in metadata if k.startswith(b"genrec.")}
    assert keys >= {
        "version",
        "run_id",
        "model",
        "catalog",
        "layout",
        "engine",
        "precision",
        "config",
        "input",
        "rows",
        "users",
    }
    assert json.loads(metadata[b"genrec.config"])["top_k"] == 10
    assert json.loads(metadata[b"genrec.input"])["events"]["rows"] == len(log)
    assert (metadata[b"genrec.rows"], metadata[b"genrec.users"]) == (b"400", b"40")


def test_the_same_run_twice_gives_the_same_bytes(run, log_file, model_dir, tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        assert run("score", log_file, f"{name}/recs.parquet", "--model", model_dir).code == 0
    assert (tmp_path / "a/recs.parquet").read_bytes() == (tmp_path / "b/recs.parquet").read_bytes()


def test_order_of_rows_files_and_row_groups_does_not_matter(run, log, model_dir, tmp_path):
    unique = log.unique(["user_id", "timestamp"], maintain_order=True)  # ties go by input order
    unique.write_parquet("one.parquet")
    (tmp_path / "many").mkdir()
    shuffled = unique.sample(fraction=1.0, shuffle=True, seed=5)
    for part in range(4):
        shuffled[part::4].write_parquet(f"many/{part}.parquet", row_group_size=7)
    assert run("score", "one.parquet", "a.parquet", "--model", model_dir).code == 0
    assert run("score", "many", "b.parquet", "--model", model_dir).code == 0
    assert pl.read_parquet("a.parquet").equals(pl.read_parquet("b.parquet"))


def test_shards_batches_and_directories_give_the_same_rows(run, log_file, model_dir):
    assert run("score", log_file, "a.parquet", "--model", model_dir, "--precision", "fp32").code == 0
    assert (
        run(
            "score", log_file, "b", "--model", model_dir, "--precision", "fp32", "--shard-users", 7, "--batch-size", 3
        ).code
        == 0
    )
    a, b = pl.read_parquet("a.parquet"), pl.read_parquet("b/part-*.parquet")
    assert a.select("user_id", "rank", "video_id").equals(b.select("user_id", "rank", "video_id"))
    assert (a["score"] - b["score"]).abs().max() < 1e-5


def test_nested_layout_holds_the_same(run, log_file, model_dir):
    run("score", log_file, "a.parquet", "--model", model_dir)
    assert run("score", log_file, "b.parquet", "--model", model_dir, "--layout", "nested").code == 0
    nested = pl.read_parquet("b.parquet")
    lists = ["rank", "video_id", "score", "log_prob", "step", *HEADS]
    assert nested.explode(lists).select(COLUMNS).equals(pl.read_parquet("a.parquet"))


def test_as_of_ignores_later_events(run, log, model_dir):
    cut = log["timestamp"].sort()[len(log) // 2]
    log.write_parquet("all.parquet")
    log.filter(pl.col("timestamp") <= cut).write_parquet("early.parquet")
    moment = cut.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    assert run("score", "all.parquet", "a.parquet", "--model", model_dir, "--as-of", moment).code == 0
    assert run("score", "early.parquet", "b.parquet", "--model", model_dir, "--as-of", moment).code == 0
    assert pl.read_parquet("a.parquet").equals(pl.read_parquet("b.parquet"))


def test_options_come_from_flag_then_environment_then_file_then_default(run, log_file, model_dir, tmp_path):
    (tmp_path / "genrec-batch.toml").write_text(f'model = "{model_dir}"\ntop-k = 3\n[score]\nnum_candidates = 20\n')
    counts = []
    for number, (flags, environment) in enumerate(
        [([], {}), ([], {"GENREC_BATCH_TOP_K": "4"}), (["--top-k", "5"], {"GENREC_BATCH_TOP_K": "4"})]
    ):
        done = run("score", log_file, f"{number}.parquet", *flags, **environment)
        assert done.code == 0, done.err
        counts.append(done.summary["rows"] // done.summary["users"])
    assert counts == [3, 4, 5]
    config = json.loads(pq.read_schema("0.parquet").metadata[b"genrec.config"])
    assert (config["top_k"], config["num_candidates"], config["model"]) == (3, 20, str(model_dir))


def test_option_file_with_an_unknown_entry_is_refused(run, log_file, tmp_path):
    (tmp_path / "genrec-batch.toml").write_text("topk = 3\n")
    done = run("score", log_file, "recs.parquet")
    assert (done.code, "topk: no such option. Did you mean 'top_k'" in done.err) == (2, True)


def test_users_and_candidates_without_history_are_scored(run, log_file, model_dir):
    pl.DataFrame({"user_id": [100, 7], "country": ["de", "fr"]}).write_parquet("users.parquet")
    given = {"user_id": [100, 8], "video_id": [[1001, 1002, 1003, 1001], [1004, 99999]]}
    pl.DataFrame(given).write_parquet("candidates.parquet")
    done = run("score", log_file, "a.parquet", "--model", model_dir, "--users", "users.parquet")
    assert done.code == 0, done.err
    cold = pl.read_parquet("a.parquet").filter(pl.col("user_id") == 7)
    assert (len(cold), cold["cold_start"].all(), cold["history_length"].max()) == (10, True, 0)
    assert done.summary["cold_start_users"] == 1
    arguments = [
        "--model",
        model_dir,
        "--candidates",
        "candidates.parquet",
        "--include-seen",
        "--user",
        "100",
        "--user",
        "8",
    ]
    done = run("score", log_file, "b.parquet", *arguments)
    assert done.code == 0, done.err
    rows = pl.read_parquet("b.parquet")
    assert set(rows.filter(pl.col("user_id") == 100)["video_id"]) == {1001, 1002, 1003}
    assert rows.filter(pl.col("user_id") == 8)["video_id"].to_list() == [1004]
    assert "1 given candidates are not in the catalog" in done.err


def test_top_k_beyond_what_is_left_gives_fewer_rows_and_says_so(run, log, model_dir):
    few = log.filter(pl.col("video_id").is_in(log["video_id"].unique().sort().head(8).to_list()))
    few.write_parquet("few.parquet")
    done = run("score", "few.parquet", "recs.parquet", "--top-k", 200, "--model", model_dir)
    assert done.code == 0, done.err
    assert done.summary["short_users"] == done.summary["users"]
    assert "fewer rows" in done.err


def test_one_user_is_printed_without_an_output(run, log_file, model_dir):
    done = run("score", log_file, "--user", "103", "--model", model_dir, "--top-k", "3")
    assert done.code == 0, done.err
    assert done.out.count("103") >= 3
    assert done.summary["users"] == 1
    run("score", log_file, "all.parquet", "--model", model_dir, "--top-k", "3")
    for video in pl.read_parquet("all.parquet").filter(pl.col("user_id") == 103)["video_id"]:
        assert str(video) in done.out


def test_weights_rank_by_their_blend(run, log_file, model_dir):
    weights = "engagement=1,monetization=-0.5"
    done = run("score", log_file, "a.parquet", "--model", model_dir, "--weights", weights)
    assert done.code == 0, done.err
    rows = pl.read_parquet("a.parquet")
    blend = rows["engagement"] - 0.5 * rows["monetization"]
    assert (rows["score"] - blend).abs().max() < 1e-6
    assert rows.filter(pl.col("score").diff().over("user_id") > 0).is_empty()
    assert not rows.equals(rows.sort("user_id", "step"))


def test_features_command_writes_what_the_model_reads(run, log_file, model_dir):
    done = run("features", log_file, "features.parquet", "--model", model_dir)
    assert done.code == 0, done.err
    rows = pl.read_parquet("features.parquet")
    assert rows.schema == {
        "user_id": pl.Int64, "features": pl.List(pl.Float32), "tokens": pl.List(pl.Int32), "history_length": pl.Int32
    }  # fmt: skip
    assert rows["features"].list.len().unique().to_list() == [1024]
    assert (rows["tokens"].list.len() == rows["history_length"]).all()


def test_layout_prints_every_slot(run):
    slots = json.loads(run("layout", "--json").out)
    assert [slot["slot"] for slot in slots] == list(range(1024))
    assert len({slot["name"] for slot in slots}) == 1024
    assert len(run("layout").out.splitlines()) == 1024


def test_model_init_info_and_export(run, log_file):
    assert run("model", "init", "m", "--preset", "tiny", "--catalog-from", log_file).code == 0
    info = json.loads(run("model", "info", "m", "--json").out)
    assert info["parameters"] == parameters(PRESETS["tiny"])
    assert info["catalog_videos"] == len(pl.read_parquet("m/catalog.parquet"))
    assert run("model", "export", "m").code == 0
    assert run("model", "init", "m", "--preset", "tiny").code == 4
    reference = run("model", "info")
    assert "24,836,372" in reference.out
    assert "94.7 MB in fp32, 47.4 MB in fp16, 23.7 MB in int8" in reference.out


def bad(run, code, *arguments, says, output="recs.parquet", **environment):
    done = run("score", *arguments, **environment)
    assert done.code == code, (done.code, done.err, done.exception)
    flat = " ".join(done.err.split())
    for text in [says] if isinstance(says, str) else says:
        assert text in flat, flat
    assert "Traceback" not in done.err
    assert not (output and os.path.exists(output)), "a failed run left an output"  # noqa: PTH110


def test_bad_inputs(run, log_file, log, tmp_path, model_dir):
    bad(run, 3, "event.parquet", "recs.parquet", says="no such file or directory. Did you mean 'events.parquet'")
    (tmp_path / "empty").mkdir()
    bad(run, 3, "empty", "recs.parquet", says="holds no Parquet file")
    (tmp_path / "text.parquet").write_text("user_id\n1\n")
    bad(run, 3, "text.parquet", "recs.parquet", says="text.parquet: neither Parquet nor a table as text")
    (tmp_path / "cut.parquet").write_bytes(log_file.read_bytes()[:2000])
    bad(run, 3, "cut.parquet", "recs.parquet", says="cut.parquet: truncated or damaged")
    log.rename({"user_id": "userid"}).write_parquet("near.parquet")
    bad(run, 3, "near.parquet", "recs.parquet", says="column 'user_id' is missing. Did you mean 'userid'?")
    log.with_columns(pl.col("is_liked").cast(pl.String)).write_parquet("type.parquet")
    bad(run, 3, "type.parquet", "recs.parquet", says="'is_liked' is String, expected a Boolean")
    log.with_columns(user_id=pl.lit(None, pl.Int64)).write_parquet("null.parquet")
    bad(run, 3, "null.parquet", "recs.parquet", "--model", model_dir, says="user_id is null")
    log.clear().write_parquet("none.parquet")
    bad(run, 99, "none.parquet", "recs.parquet", "--model", model_dir, says="no rows")
    log.with_columns(timestamp=pl.lit(17)).write_parquet("time.parquet")
    bad(run, 3, "time.parquet", "recs.parquet", says="'timestamp' runs from 17 to 17")
    half = log.with_columns(user_id=pl.when(pl.int_range(pl.len()) % 5 > 0).then(None).otherwise("user_id"))
    half.write_parquet("half.parquet")
    bad(run, 6, "half.parquet", "recs.parquet", "--model", model_dir, says="--max-rejects 0.05")
    bad(run, 99, log_file, "recs.parquet", "--model", model_dir, "--as-of", "1999-01-01", says="nobody to score")
    bad(run, 2, log_file, "recs.parquet", "--model", model_dir, "--user", "5", says="--user 5: neither in INPUT")
    bad(run, 2, log_file, "recs.parquet", "--model", model_dir, "--user", "ann", says="so a whole number")


@pytest.mark.parametrize(
    ("flag", "column", "width"), [("--users", "profile_vector", 199), ("--videos", "video_vector", 3)]
)
def test_a_list_of_another_width_names_its_file(run, log_file, model_dir, flag, column, width):
    key = flag[2:-1] + "_id"
    pl.DataFrame({key: [101], column: [[0.5] * width]}).write_parquet("side.parquet")
    says = [
        f"{flag} side.parquet: its lists do not fit",
        f"column '{column}' has {width} floats in row 0, expected {256 if key == 'user_id' else 512}",
    ]
    bad(run, 3, log_file, "recs.parquet", "--model", model_dir, flag, "side.parquet", says=says)


def test_bad_options(run, log_file, model_dir):
    for flags, says in [
        (["--engine", "tensorflow"], "--engine 'tensorflow' is not one of"),
        (["--precision", "fp23"], "Did you mean 'fp32'"),
        (["--weights", "fun=1"], "--weights: 'fun' is not one of"),
        (
            ["--max-events", "600"],
            "--max-events 600 with --top-k 10 needs 611 positions, the model has 512: at most --max-events 501",
        ),
        (["--top-k", "5000"], "the model has 512: at most --top-k 461"),
        (["--max-events", "505"], "the model has 512: at most --max-events 501 or --top-k 6"),
        (
            ["--max-events", "600", "--decode", "candidates"],
            "--max-events 600 needs 602 positions, the model has 512: at most --max-events 510",
        ),
        (["--max-events", "600", "--top-k", "600"], "the model has 512: at most 511 of both together"),
    ]:
        bad(run, 2, log_file, "recs.parquet", "--model", model_dir, *flags, says=says)
    assert run("model", "init", "m", "--preset", "tinny").code == 2
    too_long = [log_file, "--model", model_dir, "--max-events", "600"]
    for command in (["verify", *too_long], ["score", *too_long, "--explain", "103"], ["profile", *too_long[1:]]):
        done = run(*command)
        assert (done.code, "the model has 512: at most --max-events 501" in done.err) == (2, True), done.err
    before_the_log = [
        "--max-events",
        "600",
        "--as-of",
        "1999-01-01",
    ]  # before anybody finds that nobody is to be scored
    bad(run, 2, log_file, "recs.parquet", "--model", model_dir, *before_the_log, says="needs 611 positions")
    assert run("score", log_file, "recs.parquet", "--no-such-flag").code == 2
    bad(run, 2, log_file, says="OUTPUT is missing")
    gpu = ["--engine", "onnxruntime", "--device", "cuda"]
    bad(run, 5, log_file, "recs.parquet", "--model", model_dir, *gpu, says="pip install 'genrec-batch[gpu]'")


def test_bad_models(run, log_file, log, model_dir, tmp_path):
    bad(run, 4, log_file, "recs.parquet", "--model", "nowhere", says="--model nowhere: no such directory")
    assert "error: DIR nowhere: no such directory" in run("model", "info", "nowhere").err
    weights = model_dir / "model.safetensors"
    bad(run, 4, log_file, "recs.parquet", "--model", weights, says=f"name the directory that it is in: {model_dir}")
    (tmp_path / "w.safetensors").write_bytes(weights.read_bytes())
    says = ["--model w.safetensors is a file, and a model is a directory", "`genrec-batch model import w.safetensors"]
    bad(run, 4, log_file, "recs.parquet", "--model", "w.safetensors", says=says)
    says = ["--model events.parquet is a file, and a model is a directory", "`genrec-batch model init DIR`"]
    bad(run, 4, log_file, "recs.parquet", "--model", "events.parquet", says=says)
    for place in ("w.safetensors", "w.safetensors/m"):
        done = run("model", "init", place, "--preset", "tiny")
        assert (done.code, f"{place}: w.safetensors is a file, and a model is a directory" in done.err) == (4, True)

    def copy(name):
        subprocess.run(["cp", "-r", str(model_dir), name], check=True)
        return tmp_path / name

    other = copy("layout")
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "layout": "0" * 64}))
    bad(run, 4, log_file, "recs.parquet", "--model", other, says="made for feature layout 000000000000")
    cut = copy("cut")
    (cut / "model.safetensors").write_bytes((model_dir / "model.safetensors").read_bytes()[:-100])
    bad(run, 4, log_file, "recs.parquet", "--model", cut, says="not a whole safetensors file")
    sizes = copy("sizes")
    (sizes / "config.json").write_text(json.dumps({**config, "model": {**config["model"], "ffn": 256}}))
    bad(run, 4, log_file, "recs.parquet", "--model", sizes, says="linear1.weight: shape (128, 64), expected (256, 64)")
    text = log.with_columns(pl.col("video_id").cast(pl.String))
    text.write_parquet("text.parquet")
    bad(run, 4, "text.parquet", "recs.parquet", "--model", model_dir, says="the catalog's video_id is Int64")


def test_bad_outputs(run, log_file, model_dir, tmp_path):
    arguments = ["score", log_file]
    done = run(*arguments, "nowhere/recs.parquet", "--model", model_dir)
    assert (done.code, "folder nowhere does not exist; make it first (mkdir -p nowhere)" in done.err) == (2, True)
    for place in ("events.parquet/recs", "events.parquet/new/recs.parquet"):
        done = run("score", "events.parquet", place, "--model", model_dir)
        assert (done.code, f"OUTPUT {place}: events.parquet is a file" in done.err) == (2, True), done.err
        assert "does not exist" not in done.err
    assert "s.parquet: events.parquet is a file" in run("sample", "events.parquet/s.parquet").err
    done = run(*arguments, "recs.parquet", "--model", model_dir, "--report", "events.parquet/r.html")
    assert (done.code, "--report events.parquet/r.html: events.parquet is a file" in done.err) == (2, True)
    done = run(*arguments, "/proc/recs.parquet", "--model", model_dir)
    assert (done.code, "cannot be written" in done.err or "may not be written" in done.err) == (2, True)
    early = run("score", "no-such-log.parquet", "/proc/recs.parquet", "--model", model_dir)
    assert (early.code, "OUTPUT /proc/recs.parquet" in early.err) == (2, True), "found before the log is opened"
    assert run(*arguments, "recs.parquet", "--model", model_dir).code == 0
    before = (tmp_path / "recs.parquet").read_bytes()
    done = run(*arguments, "recs.parquet", "--model", model_dir)
    assert done.code == 2
    assert "--if-exists resume" in done.err
    assert "--if-exists overwrite" in done.err
    assert (tmp_path / "recs.parquet").read_bytes() == before
    again = run(*arguments, "recs.parquet", "--model", model_dir, "--if-exists", "resume")
    assert (again.code, again.summary["already_complete"]) == (0, True)
    done = run(*arguments, "recs.parquet", "--model", model_dir, "--if-exists", "overwrite", "--top-k", "2")
    assert (done.code, len(pl.read_parquet("recs.parquet"))) == (0, 80)


def test_logs_go_to_stderr_as_text_or_json_and_quiet_is_quiet(run, log_file, model_dir):
    done = run("score", log_file, "a.parquet", "--model", model_dir, "--log-format", "json")
    lines = done.err.splitlines()
    assert all({"time", "level", "message"} <= set(json.loads(line)) for line in lines)
    assert any("engine" in line for line in lines)
    quiet = run("score", log_file, "b.parquet", "--model", model_dir, "--quiet")
    assert (quiet.err, len(quiet.out.splitlines())) == ("", 1)


def test_untrained_weights_are_told_loudly(run, log_file):
    done = run("score", log_file, "--user", "101", "--top-k", "1", "--precision", "fp32")
    assert "untrained weights: the ranking means nothing" in " ".join(done.err.split())
    assert done.summary["trained"] is False
    features = run("features", log_file, "features.parquet")
    assert (features.code, "ranking" in features.err) == (0, False), "it ranks nothing"


def test_help_names_every_exit_code(run):
    text = " ".join(run("--help").out.split())
    for code in (0, 1, 2, 3, 4, 5, 6, 75, 99, 129, 130, 143, 141):
        assert f"{code} " in text[text.index("Exit codes") :], code


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)])
def test_a_signal_ends_the_run_and_the_same_command_resumes_it(run, model_dir, tmp_path, number, code):
    from tests.conftest import small_log

    small_log(users=3000, mean=20).write_parquet("big.parquet")
    arguments = ["score", "big.parquet", "recs.parquet", "--model", str(model_dir), "--shard-users", "50"]
    arguments += ["--precision", "fp32", "--batch-size", "8"]
    process = subprocess.Popen(
        [sys.executable, "-m", "genrec_batch", *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    staging = tmp_path / ".recs.parquet.unfinished"
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and len(list(staging.glob("part-*.parquet"))) < 3:
        time.sleep(0.02)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == code, err
    assert "run the same command again" in " ".join(err.split())
    done = run(*arguments)
    assert done.code == 0, done.err
    assert done.summary["resumed_parts"] >= 3
    assert run(*arguments[:2], "whole.parquet", *arguments[3:]).code == 0
    assert (tmp_path / "recs.parquet").read_bytes() == (tmp_path / "whole.parquet").read_bytes()


def test_an_output_never_takes_the_place_of_an_input(run, log, log_file, model_dir, tmp_path):
    before = log_file.read_bytes()
    done = run("score", log_file, log_file, "--model", model_dir, "--if-exists", "overwrite")
    assert (done.code, "not written by genrec-batch" in done.err) == (2, True)
    assert log_file.read_bytes() == before
    (tmp_path / "logs").mkdir()
    log.write_parquet("logs/a.parquet")
    done = run("score", "logs", "logs/recs.parquet", "--model", model_dir)
    assert (done.code, "would replace input" in done.err) == (2, True)


def test_a_changed_schema_file_is_another_run(run, log_file, model_dir, tmp_path):
    toml = tmp_path / "my.toml"
    toml.write_text('watch_duration = "watch_duration"')
    arguments = ["score", log_file, "recs.parquet", "--model", model_dir, "--schema", toml]
    assert run(*arguments).code == 0
    toml.write_text('watch_duration = "watch_duration * 0.1"')
    done = run(*arguments, "--if-exists", "resume")
    assert (done.code, "of another run" in " ".join(done.err.split())) == (2, True)


def test_data_that_looks_like_markup_is_printed_as_it_is(run, log, model_dir):
    odd = log.with_columns(user_id=pl.format("[red]{}:100:[/b]", "user_id")).rename({"device_type": "play[/x]"})
    odd.write_parquet("odd.parquet")
    done = run("score", "odd.parquet", "--user", "[red]103:100:[/b]", "--model", model_dir, "--top-k", "2")
    assert done.code == 0, done.err
    assert "[red]103:100:[/b]" in done.out.rpartition("\n{")[0], "in the table, without Rich's emoji"
    assert "play[/x]" in done.err
    refused = run("score", "odd.parquet", "o.parquet", "--salt", "x", "--arm", "a=m:100:SHADOW")
    assert "--arm 'a=m:100:SHADOW'" in refused.err


def test_cold_start_users_are_those_without_a_known_video(run, log, model_dir):
    strangers = log.with_columns(video_id=pl.when(pl.col("user_id") == 103).then(99_999).otherwise("video_id"))
    strangers.write_parquet("strangers.parquet")
    done = run("score", "strangers.parquet", "recs.parquet", "--model", model_dir)
    assert (done.summary["cold_start_users"], done.summary["users_without_events"]) == (1, 0)
    assert pl.read_parquet("recs.parquet").filter("cold_start")["user_id"].unique().to_list() == [103]


def test_json_logs_are_json_also_for_bad_options(run, log_file):
    done = run("score", log_file, "recs.parquet", "--engine", "foo", "--log-format", "json")
    assert done.code == 2
    assert "--engine 'foo'" in json.loads(done.err)["message"]


def test_a_damaged_log_for_a_catalog_is_an_input_error(run, log_file, tmp_path):
    data = bytearray(log_file.read_bytes())
    data[500:3000] = b"\0" * 2500
    (tmp_path / "damaged.parquet").write_bytes(bytes(data))
    done = run("model", "init", "m", "--preset", "tiny", "--catalog-from", "damaged.parquet")
    assert (done.code, "damaged.parquet" in done.err) == (3, True)
    assert not (tmp_path / "m" / "config.json").exists()


def test_candidates_that_nobody_knows_are_an_input_fault(run, log_file, model_dir):
    pl.DataFrame({"user_id": [100], "video_id": [[5, 6]]}).write_parquet("candidates.parquet")
    done = run("score", log_file, "recs.parquet", "--model", model_dir, "--candidates", "candidates.parquet")
    assert (done.code, "0 of its 2 video_id are among the 94 of the model's catalog" in done.err) == (3, True)


def test_the_spelling_of_a_path_is_not_another_run(run, log_file, model_dir):
    assert run("score", log_file, "recs.parquet", "--model", model_dir).code == 0
    again = run("score", "./events.parquet", "./recs.parquet", "--model", f"{model_dir}/", "--if-exists", "resume")
    assert again.summary["already_complete"] is True


@pytest.mark.parametrize("columns", ["60", "80", "200"])
def test_printed_ids_are_whole_at_any_width(run, log_file, model_dir, columns, monkeypatch):
    from genrec_batch.runtime import console

    monkeypatch.setattr(console.stdout, "width", int(columns))
    done = run("score", log_file, "--user", "103", "--model", model_dir, "--top-k", "3")
    run("score", log_file, "all.parquet", "--model", model_dir, "--top-k", "3", "--user", "103")
    for video in pl.read_parquet("all.parquet")["video_id"]:
        assert str(video) in done.out


def test_other_commands_have_variables_and_tables_too(run, tmp_path):
    done = run("sample", "a.parquet", "--events-per-user", "2", GENREC_BATCH_SAMPLE_USERS="7")
    assert (done.code, done.summary["users"]) == (0, 7)
    (tmp_path / "genrec-batch.toml").write_text(
        'users = "u.parquet"\n[sample]\nusers = 9\n[model.init]\npreset = "tiny"\n'
    )
    assert run("sample", "b.parquet", "--events-per-user", "2").summary["users"] == 9
    assert run("model", "init", "m").code == 0
    assert json.loads(run("model", "info", "m", "--json").out)["config"]["width"] == 64
    (tmp_path / "genrec-batch.toml").write_text("[sample]\nuser = 9\n")
    assert "[sample] user: no such option. Did you mean 'users'" in run("sample", "c.parquet").err


def test_imported_weights_score_a_log(run, log_file, model_dir):
    renamed = {f"module.{name}": w for name, w in read_weights(model_dir / "model.safetensors").items()}
    renamed["module.odd"] = renamed.pop("module.output_projection.bias")
    save_file(renamed, "theirs.safetensors")
    flags = ["--rename", "module.odd=output_projection.bias", "--catalog", model_dir / "catalog.parquet"]
    assert run("model", "import", "theirs.safetensors", "mine").code == 4
    done = run("model", "import", "theirs.safetensors", "mine", *flags)
    assert done.code == 0, done.err
    for directory in (model_dir, "mine"):
        assert run("score", log_file, f"{directory == 'mine'}.parquet", "--model", directory).code == 0
    assert pl.read_parquet("True.parquet").equals(pl.read_parquet("False.parquet"))


def test_a_model_never_replaces_files_of_yours(run, log_file, tmp_path):
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "README.md").write_text("mine")
    done = run("model", "init", "own", "--preset", "tiny", "--catalog-from", log_file)
    assert (done.code, "README.md" in done.err) == (4, True)
    assert [p.name for p in (tmp_path / "own").iterdir()] == ["README.md"]


def test_a_moment_beyond_the_calendar_is_a_usage_error(run, log_file, model_dir):
    bad(run, 2, log_file, "recs.parquet", "--model", model_dir, "--as-of", "9999-12-31T23:59:59-12:00", says="--as-of")


@pytest.mark.parametrize("output", ["out.parquet", "out"])
def test_a_finished_output_of_another_run_says_what_differs(run, log_file, model_dir, output):
    arguments = ["score", log_file, output, "--model", model_dir, "--engine", "onnxruntime", "--limit", 4]
    assert run(*arguments).code == 0
    done = run(*arguments, "--top-k", 3, "--if-exists", "resume")
    said = " ".join(done.err.split())
    assert (done.code, "differs in config.top_k (10, now 3)" in said) == (2, True), said


@pytest.mark.parametrize("if_exists", [[], ["--if-exists", "error"], ["--if-exists", "resume"]])
@pytest.mark.parametrize("begun", [False, True])  # an unfinished run of this output
def test_what_others_wrote_is_not_offered_to_be_replaced(run, log_file, model_dir, tmp_path, if_exists, begun):
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "notes.txt").touch()
    if begun:
        (tmp_path / ".theirs.unfinished").mkdir()
    done = run("score", log_file, tmp_path / "theirs", "--model", model_dir, *if_exists)
    said = " ".join(done.err.split())
    assert (done.code, "was not written by genrec-batch" in said) == (2, True), said
    assert (said.endswith("name another OUTPUT"), "overwrite" in said, "remove" in said) == (True, False, False), said
    assert [p.name for p in (tmp_path / "theirs").iterdir()] == ["notes.txt"]


@pytest.mark.parametrize("if_exists", ["resume", "overwrite"])
def test_a_file_of_others_beside_the_parts_keeps_an_output_as_it_is(run, log_file, model_dir, tmp_path, if_exists):
    arguments = ["score", log_file, "out", "--model", model_dir, "--limit", 4]
    assert run(*arguments).code == 0
    (tmp_path / "out" / "notes.txt").touch()
    done = run(*arguments, "--top-k", 3, "--if-exists", if_exists)
    said = " ".join(done.err.split())
    assert (done.code, "not written by genrec-batch (notes.txt)" in said, "--if-exists" in said) == (2, True, False), (
        said
    )


def test_a_refused_value_is_told_with_where_it_comes_from(run, log_file, model_dir, tmp_path):
    arguments = ["score", log_file, "o.parquet", "--model", model_dir]
    assert "GENREC_BATCH_TOP_K: --top-k 0: at least 1" in run(*arguments, GENREC_BATCH_TOP_K="0").err
    assert "GENREC_BATCH_PRECISION: --precision 'int3'" in run(*arguments, GENREC_BATCH_PRECISION="int3").err
    assert run(*arguments, "--top-k", 0).err.startswith("error: --top-k 0: at least 1")
    (tmp_path / "o.toml").write_text("[score]\ntop-k = 0\n")
    assert f"{tmp_path / 'o.toml'}, top-k: --top-k 0" in run("--config", tmp_path / "o.toml", *arguments).err
    (tmp_path / "o.toml").write_text('[score]\nuser = "103"\n')
    done = run("--config", tmp_path / "o.toml", *arguments)
    assert (done.code, "o.toml: user = '103': not a list, such as ['103']" in done.err) == (2, True), done.err


@pytest.mark.parametrize(
    ("variable", "arguments", "said"),
    [
        ("GENREC_BATCH_MODEL_INIT_PRESET", ("model", "init", "m"), "--preset 'x' is not one of"),
        ("GENREC_BATCH_MODEL_INFO_PRESET", ("model", "info"), "--preset 'x' is not one of"),
        ("GENREC_BATCH_MODEL_EXPORT_PRECISION", ("model", "export", "MODEL"), "--precision 'x'"),
        ("GENREC_BATCH_MODEL_BUILD_PRECISION", ("model", "build", "MODEL"), "--precision 'x' is not one of"),
        ("GENREC_BATCH_PRECISION", ("model", "build", "MODEL"), "--precision 'x' is not one of"),
        ("GENREC_BATCH_SAMPLE_IF_EXISTS", ("sample", "s.parquet"), "--if-exists 'x' is not one of"),
        ("GENREC_BATCH_SCORE_ENGINE", ("score", "a", "b"), "--engine 'x' is not one of"),
        ("GENREC_BATCH_MODEL", ("score", "events.parquet", "b"), "--model x: no such directory"),
        ("GENREC_BATCH_CONFIG", ("layout",), "--config x: cannot be read"),
    ],
)
def test_every_refused_value_names_its_variable(run, log_file, model_dir, variable, arguments, said):
    done = run(*(model_dir if text == "MODEL" else text for text in arguments), **{variable: "x"})
    assert done.code in (2, 4)
    assert f"error: {variable}: {said}" in done.err
    assert log_file.exists()


def test_a_refused_value_of_any_table_names_the_option_file(run):
    Path("genrec-batch.toml").write_text('[model.init]\npreset = "huge"\n')
    assert "error: genrec-batch.toml, preset: --preset 'huge'" in run("model", "init", "m").err
    assert run("model", "init", "m", "--preset", "hug").err.startswith("error: --preset 'hug'")


def test_a_mistyped_variable_is_told(run, log_file, model_dir):
    arguments = ["score", log_file, "o.parquet", "--model", model_dir, "--limit", 2, "--if-exists", "overwrite"]
    done = run(*arguments, GENREC_BATCH_TOPK="5")
    assert done.code == 0, done.err
    said = " ".join(done.err.split())
    assert "no command reads the variable GENREC_BATCH_TOPK. Did you mean 'GENREC_BATCH_TOP_K'?" in said
    others = {"GENREC_BATCH_SAMPLE_USERS": "4", "GENREC_BATCH_MODEL_INIT_PRESET": "tiny", "GENREC_BATCH_CONFIG": None}
    assert "no command reads" not in run(*arguments, **others).err
    done = run("layout", GENREC_BATCH_LAYUOT="1")
    assert (done.code, len(done.out.splitlines()), "the variable GENREC_BATCH_LAYUOT" in done.err) == (0, 1024, True)
    Path("o.toml").touch()
    for command in (["layout"], ["model", "info"], [*arguments, "--quiet"]):
        assert "no command reads" not in run(*command, GENREC_BATCH_CONFIG="o.toml").err
