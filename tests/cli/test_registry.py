"""The commands of the registry, and a version of it as the model of every command that takes one.

Also tests `model.opening`, `reports.promotion` and `reports.registry_facts`, which the commands are made of.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import polars as pl
import pytest

from genrec_batch import Scorer
from genrec_batch.core.errors import RetryError
from genrec_batch.io.output import Output
from genrec_batch.model import weights
from tests.logs import catalog_of


@pytest.fixture
def stronger(tmp_path, log):
    """Another model of the same sizes and catalog."""
    config = weights.PRESETS["tiny"]
    weights.save(tmp_path / "stronger", config, weights.initial_weights(config, 4), trained=True, card="the other\n")
    catalog_of(log, vocabulary=config.vocabulary).write(tmp_path / "stronger" / "catalog.parquet")
    return tmp_path / "stronger"


@pytest.fixture
def registered(run, model_dir, stronger, monkeypatch):
    """A registry with two versions, the first of them the champion."""
    monkeypatch.setenv("GENREC_BATCH_REGISTRY", "registry")
    assert run("model", "register", model_dir, "ranker").summary["version"] == 1
    assert run("model", "register", stronger, "ranker").summary["version"] == 2
    assert run("model", "promote", "ranker@1").summary["changed"]
    return Path("registry")


def registry_of(output):
    return json.loads(pl.read_parquet_metadata(output)["genrec.registry"])


def test_a_version_is_registered_promoted_listed_and_rolled_back(run, registered, model_dir):
    again = run("model", "register", model_dir, "ranker")
    assert (again.code, again.summary["version"], again.summary["new"]) == (0, 1, False)
    done = run("model", "promote", "ranker@2").summary
    assert done.items() >= {"status": "ok", "version": 2, "alias": "champion", "before": 1, "changed": True}.items()
    assert run("model", "promote", "ranker@2").summary.items() >= {"status": "ok", "changed": False}.items()
    listed = run("model", "list")
    assert [line.split()[1:4] for line in listed.out.splitlines() if "ranker@" in line] == [
        ["ranker@2", "│", "champion"], ["ranker@1", "│", "│"],
    ]  # fmt: skip
    facts = run("model", "list", "ranker", "--json").summary["models"]["ranker"]
    assert facts["aliases"] == {"champion": 2}
    assert [(each["version"], each["aliases"]) for each in facts["versions"]] == [(2, ["champion"]), (1, [])]
    assert run("model", "rollback", "ranker").summary.items() >= {"version": 1, "before": 2, "changed": True}.items()
    assert registered.exists()


def test_a_list_says_what_it_compared(run, registered):
    (registered / "ranker" / "1" / "model" / "README.md").write_text("other")
    (registered / "ranker" / "2" / "version.json").write_text("{}")
    plain = run("model", "list", "--json")
    assert plain.code == 0
    second, first = plain.summary["models"]["ranker"]["versions"]
    assert (first["record_whole"], first["files_whole"], "fault" in first) == (True, None, False)
    assert (second["record_whole"], second["files_whole"]) == (False, None)
    done = run("model", "list", "--check")
    assert done.code == 6
    assert "ranker@1: README.md was changed" in done.err
    assert "changed since ranker@2 was registered" in done.err
    assert "files changed" in done.out


def test_a_job_does_not_undo_a_rollback(run, registered):
    assert run("model", "promote", "ranker@2", "--only-new").summary["changed"]
    assert run("model", "rollback", "ranker").summary["version"] == 1
    done = run("model", "promote", "ranker@2", "--only-new")
    assert (done.code, done.summary["changed"], done.summary["why"]) == (0, False, "ranker@2 was the champion before")
    assert json.loads((registered / "ranker" / "registry.json").read_text())["aliases"] == {"champion": 1}
    assert run("model", "promote", "ranker@2").summary["changed"], "a person may"


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["promote", "ranker"], 2, "name the version, such as ranker@3"),
        (["promote", "ranker@7"], 4, "no ranker@7"),
        (["promote", "rankr@1"], 4, "Did you mean 'ranker'"),
        (["promote", "ranker@2", "--gate", "ndcg@10>=0.1"], 2, "--gate goes with --evaluate"),
        (["promote", "ranker@2", "--evaluate", "events.parquet"], 2, "--evaluate goes with --gate"),
        (["promote", "ranker@2", "--min-topk-overlap", "0.9"], 2, "--min-topk-overlap goes with --log"),
        (["promote", "ranker@2", "--alias", "3"], 2, "--alias '3'"),
        (["promote", "ranker@2", "--registry", "nowhere"], 4, "no such directory"),
        (["rollback", "ranker"], 2, "no champion before ranker@1"),
        (["rollback", "nobody"], 4, "nobody has no champion"),
        (["register", "nowhere", "ranker"], 4, "nowhere: no such directory"),
        (["register", "stronger", "a/b"], 2, "not NAME"),
        (["list", "rankr"], 4, "Did you mean 'ranker'"),
        (["list", "--registry", "https://host/models"], 2, "neither a local directory nor a folder in a store"),
        (["export", "registry:ranker@1"], 2, "a version never changes"),
        (["info", "registry:ranker@next"], 4, "no next yet"),
    ],
)
@pytest.mark.usefixtures("registered")
def test_a_wrong_call_is_told_with_its_exit_code_and_changes_nothing(run, words, code, said):
    before = Path("registry/ranker/registry.json").read_text()
    done = run("model", *words)
    assert (done.code, said in done.err) == (code, True), done.err
    assert Path("registry/ranker/registry.json").read_text() == before


def test_a_registry_must_be_named(run, model_dir):
    for words in (["register", model_dir, "ranker"], ["list"], ["rollback", "ranker"], ["info", "registry:ranker"]):
        done = run("model", *words)
        assert (done.code, "GENREC_BATCH_REGISTRY" in done.err) == (2, True), done.err


@pytest.mark.usefixtures("registered")
def test_the_option_file_names_the_registry_for_every_command(run, log_file, monkeypatch):
    monkeypatch.delenv("GENREC_BATCH_REGISTRY")
    Path("genrec-batch.toml").write_text('registry = "registry"\nmodel = "registry:ranker"\n')
    assert run("model", "list").code == 0
    assert run("model", "promote", "ranker@2").code == 0
    assert run("model", "rollback", "ranker").code == 0
    assert run("score", log_file, "o.parquet", "--limit", 3, "--quiet").summary["registry"]["version"] == 1


@pytest.mark.usefixtures("registered")
def test_a_run_records_the_version_and_the_next_takes_the_new_champion(run, log_file, model_dir, stronger):
    for output, version, directory in (("a.parquet", 1, model_dir), ("b.parquet", 2, stronger)):
        done = run("score", log_file, output, "--model", "registry:ranker@champion", "--quiet")
        wanted = {"name": "ranker", "version": version, "alias": "champion"}
        assert (done.code, done.summary["registry"], registry_of(output)) == (0, wanted, wanted), done.err
        run("score", log_file, "plain.parquet", "--model", directory, "--quiet", "--if-exists", "overwrite")
        assert pl.read_parquet(output).equals(pl.read_parquet("plain.parquet"))
        assert "genrec.registry" not in pl.read_parquet_metadata("plain.parquet")
        run("model", "promote", "ranker@2")
    assert run("score", log_file, "c.parquet", "--model", "registry:ranker@1", "--quiet").summary["registry"] == {
        "name": "ranker", "version": 1, "alias": None,
    }  # fmt: skip
    shown = run("inspect", "a.parquet")
    assert "ranker@1, as champion" in shown.out
    assert run("inspect", "a.parquet", "--json", "--registry", "registry").summary["videos"]["catalog"]["why"] == ""


def stopped_after(monkeypatch, parts):
    """Let a run write some parts and then fail as on a full disk."""
    write, left = Output.write, [parts]

    def some(output, *part):
        left[0] -= 1
        if left[0] < 0:
            raise RetryError("stopped by the test")
        write(output, *part)

    monkeypatch.setattr(Output, "write", some)


@pytest.mark.parametrize("parts", [0, 2])
@pytest.mark.parametrize("output", ["recs", "recs.parquet"])
@pytest.mark.usefixtures("registered")
def test_a_run_that_is_continued_keeps_the_version_it_began_with(run, log_file, parts, output, monkeypatch, model_dir):
    command = ["score", log_file, output, "--model", "registry:ranker@champion", "--shard-users", 10, "--quiet"]
    command += ["--if-exists", "resume"]
    with monkeypatch.context() as patched:
        stopped_after(patched, parts)
        assert run(*command).code == 75
    run("model", "promote", "ranker@2")
    done = run(*command)
    assert (done.code, done.summary["registry"]["version"], done.summary["resumed_parts"]) == (0, 1, parts), done.err
    again = run(*command)
    assert (again.code, again.summary["already_complete"], again.summary["registry"]["version"]) == (0, True, 1)
    files = sorted(Path(output).glob("*.parquet")) if output == "recs" else [Path(output)]
    assert {registry_of(file)["version"] for file in files} == {1}
    run("score", log_file, "plain.parquet", "--model", model_dir, "--shard-users", 10, "--quiet")
    assert pl.read_parquet(files).equals(pl.read_parquet("plain.parquet"))
    assert run("inspect", output).code == 0
    anew = run(*command, "--if-exists", "overwrite")
    assert (anew.code, anew.summary["registry"]["version"]) == (0, 2)


@pytest.mark.usefixtures("registered")
def test_a_version_that_an_unfinished_run_needs_and_that_is_gone_is_another_run(run, log_file, monkeypatch):
    command = ["score", log_file, "recs", "--model", "registry:ranker@champion", "--shard-users", 10, "--quiet"]
    with monkeypatch.context() as patched:
        stopped_after(patched, 1)
        assert run(*command).code == 75
    run("model", "promote", "ranker@2")
    shutil.rmtree("registry/ranker/1")
    done = run(*command)
    assert (done.code, "differs from it in model" in done.err) == (2, True), done.err
    assert run(*command, "--if-exists", "overwrite").summary["registry"]["version"] == 2


@pytest.mark.usefixtures("registered")
def test_every_command_that_takes_a_model_takes_a_version(run, log_file):
    named = ["--model", "registry:ranker", "--quiet"]
    assert run("features", log_file, "f.parquet", *named).summary["registry"]["version"] == 1
    judged = run("evaluate", log_file, *named, "--decode", "candidates").summary
    assert (judged["model"], judged["registry"]["version"]) == ("registry:ranker", 1)
    assert run("verify", log_file, *named, "--sample", 5).code == 0
    info = run("model", "info", "registry:ranker@champion", "--json")
    assert (info.code, info.summary["model"]) == (0, "ranker@1")


@pytest.mark.usefixtures("registered")
def test_a_profile_measures_one_version_in_both_of_its_processes(run, monkeypatch):
    def opened(config):
        raise RetryError(f"asked for {config.model}")

    monkeypatch.setattr("genrec_batch.reports.profile.open_model", opened)
    assert "asked for registry:ranker@1" in run("profile", "--model", "registry:ranker@champion").err


@pytest.mark.usefixtures("registered")
def test_a_scorer_keeps_its_version_in_every_process(run, log):
    scorer = Scorer(model="registry:ranker@champion", registry="registry", top_k=3)
    run("model", "promote", "ranker@2")
    assert scorer.config.model == "registry:ranker@1"
    assert scorer(log).equals(Scorer(model="registry/ranker/1/model", top_k=3)(log))


@pytest.mark.usefixtures("registered")
def test_a_version_that_was_edited_on_disk_is_not_scored_with(run, log_file):
    card = Path("registry/ranker/1/model/README.md")
    card.chmod(0o644)
    card.write_text("edited\n")
    done = run("score", log_file, "o.parquet", "--model", "registry:ranker")
    assert (done.code, "README.md was changed" in done.err, Path("o.parquet").exists()) == (4, True, False)
    assert run("model", "rollback", "ranker").code == 2
    assert run("model", "promote", "ranker@2").code == 0
    assert run("score", log_file, "o.parquet", "--model", "registry:ranker", "--quiet").code == 0
    shutil.rmtree("registry/ranker/1/model")
    (row,) = [line for line in run("model", "list").out.splitlines() if "ranker@1" in line]
    assert "damaged" not in row, "its record is whole; its files are compared when they are read"
    Path("registry/ranker/1/version.json").chmod(0o644)
    Path("registry/ranker/1/version.json").write_text("{}")
    assert "damaged" in run("model", "list").out


@pytest.mark.usefixtures("registered")
def test_a_promotion_through_gates_holds_or_changes_nothing(run, log_file):
    gated = ["model", "promote", "ranker@2", "--log", log_file, "--evaluate", log_file]
    failed = run(*gated, "--min-coverage", "0.9", "--gate", "hr@10>=0.999*champion", "--gate", "hr@10>=2")
    assert failed.code == 6
    assert "--gate hr@10>=2: measured" in failed.err
    assert failed.summary.items() >= {"status": "failed", "changed": False}.items()
    assert [gate["gate"] for gate in failed.summary["gates"]] == ["0.9", "hr@10>=0.999*champion", "hr@10>=2"]
    assert run("model", "list", "--json").summary["models"]["ranker"]["aliases"] == {"champion": 1}
    held = run(*gated, "--min-topk-overlap", "0.5", "--gate", "hr@10>=0.01*champion", "--gate", "hr@10<=1")
    assert (held.code, held.summary["changed"]) == (0, True), held.err
    (entry,) = run("model", "list", "--json").summary["models"]["ranker"]["history"][1:]
    assert [gate["passed"] for gate in entry["gates"]] == [True] * 4


@pytest.mark.usefixtures("registered")
def test_a_catalog_that_covers_too_little_of_the_log_fails_by_how_much(run, log):
    other = log.with_columns(pl.when(pl.col("user_id") % 2 == 0).then("video_id").otherwise(pl.col("video_id") + 10**6))
    other.write_parquet("half.parquet")
    done = run("model", "promote", "ranker@2", "--log", "half.parquet", "--min-coverage", "0.8")
    assert done.code == 6
    share = (log["user_id"] % 2 == 0).mean()
    assert f"--min-coverage 0.8: measured {round(share, 4)}, the share of the events of half.parquet" in done.err
