"""The record of a check: what it depends on, when it is taken again, and what is never trusted.

Also tests `core/check_options`.
"""

from __future__ import annotations

import pytest

from genrec_batch.core.errors import ConfigError
from genrec_batch.core.options import ScoreConfig
from genrec_batch.engines import checked, choose
from genrec_batch.engines.decode import Decoding
from genrec_batch.engines.plan_cache import default_directory
from genrec_batch.model import weights

TINY = weights.demo_model(weights.PRESETS["tiny"])
FOUND = checked.Check(
    precision="bf16", arithmetic="compiled", overlap=0.995, refused={"int8-fast": 0.93}, users=512,
    at="2026-11-29T02:00:00+00:00", why="the first",
)  # fmt: skip


def record(model=TINY, decoding=Decoding(top_k=10), **changes):  # noqa: B008 (frozen)
    asked = {"engine": "torch", "device": "cpu", "fast": ("int8-fast", "bf16")}
    options = {name: value for name, value in changes.items() if name not in asked}
    given = asked | {name: value for name, value in changes.items() if name in asked}
    return checked.Record.of(model, decoding, checked.Terms.of(ScoreConfig(**options)), **given)


def file():
    (path,) = default_directory().glob("checked-*.json")
    return path


def test_what_was_found_is_found_again():
    assert record().read() == "the first run with this model here"
    record().write(FOUND)
    assert record().read() == FOUND
    assert (default_directory().stat().st_mode & 0o777, file().stat().st_mode & 0o777) == (0o700, 0o600)


def other_model():
    return weights.demo_model(weights.PRESETS["tiny"], seed=1)


@pytest.mark.parametrize(
    ("different", "told"),
    [
        (lambda: record(other_model()), "the first run with this model here"),
        (lambda: record(TINY.with_catalog(90)), "tokens"),
        (lambda: record(decoding=Decoding(top_k=20)), "decoding.top_k (10, now 20)"),
        (lambda: record(engine="onnxruntime"), "engine ('torch', now 'onnxruntime')"),
        (lambda: record(fast=["int8"]), "fast (['int8-fast', 'bf16'], now ['int8'])"),
        (lambda: record(max_events=20), "options.max_events (50, now 20)"),
        (lambda: record(include_seen=True), "options.include_seen (False, now True)"),
        (lambda: record(users="users.parquet"), "options.users (False, now True)"),
    ],
    ids=["model", "catalog", "decoding", "engine", "fast precision", "max events", "seen", "a table"],
)
def test_where_anything_differs_the_check_is_made_again_and_says_why(different, told):
    record().write(FOUND)
    why = different().read()
    assert isinstance(why, str)
    assert told in why
    assert record().read() == FOUND


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("libraries", lambda real=checked.libraries: {**real(), "torch": "99"}, "libraries.torch"),
        ("machine_of", lambda *_: {"cores": 96}, "machine.cores"),
        ("__version__", "99", "version"),
    ],
)
def test_another_library_machine_or_version_checks_again(monkeypatch, name, value, told):
    record().write(FOUND)
    monkeypatch.setattr(checked, name, value)
    assert told in record().read()


def test_tables_with_other_rows_are_the_same_options():
    record(users="monday.parquet", as_of="2026-04-20").write(FOUND)
    assert record(users="tuesday.parquet", as_of="2026-04-21", user=("7",)).read() == FOUND


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[:-40],
        lambda _: "[]",
        lambda text: text.replace('"precision": "bf16"', '"precision": "fp32"'),
        lambda text: text.replace('"overlap": 0.995', '"overlap": 0.5'),
        lambda text: text.replace('"users": 512', '"users": 100000'),
        lambda text: text.replace('"at"', '"when"'),
        lambda _: "\udcff",
        lambda _: "[" * 100_000,
    ],
)
def test_a_damaged_record_is_checked_again_and_written_anew(damage):
    record().write(FOUND)
    file().write_bytes(damage(file().read_text()).encode("utf-8", "surrogateescape"))
    assert "is damaged" in record().read()
    record().write(FOUND)
    assert record().read() == FOUND


def test_a_record_of_another_key_is_not_taken_whatever_its_name():
    record().write(FOUND)
    mine = file()
    mine.rename(default_directory() / record(max_events=20)._name())
    assert "is damaged" in record(max_events=20).read()


def test_a_record_that_others_may_write_is_not_read():
    record().write(FOUND)
    file().chmod(0o622)
    assert "may be written by others" in record().read()


def test_recheck_does_not_read_the_record():
    record().write(FOUND)
    assert record(recheck=True).read() == "--recheck"


def test_a_folder_that_cannot_be_used_costs_a_check_and_nothing_else(monkeypatch, tmp_path, caplog):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("GENREC_BATCH_CACHE", str(tmp_path / "file" / "cache"))
    with caplog.at_level("INFO", "genrec_batch"):
        assert record() is None


def test_gpus_are_known_by_name_and_driver_and_must_be_alike(tmp_path):
    (tmp_path / "cpuinfo").write_text("processor : 0\nmodel name : EPYC\nflags : b a\n\nprocessor : 1\n")
    assert checked.machine_of("cpu", tmp_path)["model name"] == "EPYC"
    assert checked.machine_of("cuda", tmp_path) is None
    for number, name in enumerate(("H200", "H200")):
        folder = tmp_path / "driver" / "nvidia" / "gpus" / str(number)
        folder.mkdir(parents=True)
        (folder / "information").write_text(f"Model: \t NVIDIA {name}\nIRQ: {number}\n")
    (tmp_path / "driver" / "nvidia" / "version").write_text("NVRM version: 570\n")
    machine = checked.machine_of("cuda", tmp_path)
    assert (machine["gpu"], machine["driver"]) == ("NVIDIA H200", "NVRM version: 570")
    (folder / "information").write_text("Model: NVIDIA A100\n")
    assert checked.machine_of("cuda", tmp_path) is None
    assert checked.machine_of("cpu", tmp_path / "nowhere") is None


def test_a_run_takes_the_check_of_the_run_before_it_and_says_so(run, log_file, model_dir, monkeypatch):
    monkeypatch.setattr(choose, "fast_precisions", lambda *_: ("bf16",))
    asked = ["--model", model_dir, "--engine", "torch", "--device", "cpu", "--if-exists", "overwrite"]
    first = run("score", log_file, "recs.parquet", *asked)
    monkeypatch.setattr(choose, "_fastest", None)  # no comparison from here on
    second = run("score", log_file, "recs.parquet", *asked)
    for name in ("engine", "precision", "run_id", "rows", "bytes"):
        assert second.summary[name] == first.summary[name]
    was, again = first.summary["engine_check"], second.summary["engine_check"]
    assert (was.pop("taken_again"), again.pop("taken_again")) == (False, True)
    assert (was, was["why"]) == (again, "the first run with this model here")
    assert f"checked at {was['at']} and taken again" in second.err
    assert "its precision was checked now: the first run with this model here" in first.err


def test_a_run_with_more_users_to_compare_or_with_recheck_checks_again(run, log_file, model_dir, monkeypatch):
    monkeypatch.setattr(choose, "fast_precisions", lambda *_: ("bf16",))
    asked = ["--model", model_dir, "--engine", "torch", "--device", "cpu", "--if-exists", "overwrite"]
    few = run("score", log_file, "recs.parquet", *asked, "--limit", 5).summary["engine_check"]
    more = run("score", log_file, "recs.parquet", *asked).summary["engine_check"]
    assert (few["users"], more["users"], more["taken_again"]) == (5, 32, False)
    assert f"the check of {few['at']} compared 5 users" in more["why"]
    fewer = run("score", log_file, "recs.parquet", *asked, "--limit", 5).summary["engine_check"]
    assert (fewer["users"], fewer["taken_again"]) == (32, True)
    anew = run("score", log_file, "recs.parquet", *asked, "--recheck").summary["engine_check"]
    assert (anew["why"], anew["taken_again"]) == ("--recheck", False)


def test_what_is_asked_for_by_name_has_no_check(run, log_file, model_dir):
    summary = run("score", log_file, "recs.parquet", "--model", model_dir, "--precision", "fp32").summary
    assert "engine_check" not in summary
    assert not list(default_directory().glob("checked-*"))


def test_a_sample_is_verified_in_every_run(run, log_file, model_dir, monkeypatch):
    monkeypatch.setattr(choose, "fast_precisions", lambda *_: ("bf16",))
    asked = ["--model", model_dir, "--device", "cpu", "--if-exists", "overwrite", "--verify-sample", 20]
    for _ in range(2):
        assert "verified over 20 users" in run("score", log_file, "recs.parquet", *asked, "--min-topk-overlap", 0).err


@pytest.mark.parametrize("wrong", [{"verify_sample": -1}, {"min_topk_overlap": 1.5}])
def test_checks_are_checked(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong)).replace("_", "-")):
        ScoreConfig(**wrong)
