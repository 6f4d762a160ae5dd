"""Commands whose files are in an object store: the same results, and no secret anywhere. Against a real S3 server.

Also `stores.copies`, `stores.paths`, `stores.made`, `model.registry_files`, `io.fetched` and `runtime.leftovers`.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest

from genrec_batch.core.errors import RetryError
from genrec_batch.io import fetched
from genrec_batch.model import registering, registry
from genrec_batch.stores.bucket import Bucket
from tests import s3

pytest.importorskip("obstore")
PAGES = [Path(__file__).parents[2] / "docs" / name for name in ("operations.md", "recipes.md")]


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    with s3.serving(tmp_path_factory.mktemp("server")) as server, pytest.MonkeyPatch.context() as patch:
        for name in s3.open_to_all():
            patch.delenv(name)
        for name, value in server.settings.items():
            patch.setenv(name, value)
        server.bucket("recs")
        server.bucket("data")
        server.bucket("models")
        yield server


@pytest.fixture
def upload():
    """Copy a file or folder into the bucket `data` and return its URI."""

    def call(path, name):
        store, path = Bucket("s3://data", "INPUT"), Path(path)
        for file in [path] if path.is_file() else [each for each in path.rglob("*") if each.is_file()]:
            below = "" if path.is_file() else f"/{file.relative_to(path).as_posix()}"
            store.put(name + below, file)
        return f"s3://data/{name}"

    return call


def pairs(folder):
    """Who is recommended what."""
    return pl.read_parquet(folder / "part-*.parquet", columns=["user_id", "video_id"]).rows()


def facts(done):
    """What a summary says but for paths, times and the machine."""
    assert done.code == 0, done.err
    left = ("output", "seconds", "users_per_s", "stages_s", "processor_s", "peak_rss_mib", "out", "run_id", "bytes")
    left = (*left, "warnings")
    return {name: value for name, value in done.summary.items() if name not in left}


@pytest.mark.usefixtures("served")
def test_an_output_in_folders_is_that_of_a_disk(run, log_file, model_dir, tmp_path):
    """Of lists that are too short, too, which the summary names users of."""
    score = ["score", log_file, "--model", model_dir, "--shard-users", "15", "--partition-by", "cold_start"]
    score += ["--top-k", "118", "--precision", "fp32", "--batch-size", "8"]
    done = [run(*score, place) for place in ("s3://recs/folders", tmp_path / "folders")]
    assert facts(done[0]) == facts(done[1])
    assert done[0].summary["shortfall_users"]
    assert run("inspect", "s3://recs/folders", "--json").code == 0


@pytest.mark.usefixtures("served")
def test_what_reads_an_output_reads_one_in_a_store(run, log_file, model_dir, tmp_path):
    there, here = "s3://recs/x/tonight", tmp_path / "tonight"
    score = ["score", log_file, "--model", model_dir, "--shard-users", "15", "--precision", "fp32"]
    done = run(*score, there)
    assert facts(done) == facts(run(*score, here))
    assert done.summary["output"] == there
    assert facts(run(*score, there, "--if-exists", "resume"))["already_complete"]
    looked, wanted = run("inspect", there, "--json"), run("inspect", here, "--json")
    assert (looked.code, looked.summary["checks"]) == (0, wanted.summary["checks"])
    assert looked.summary["files"] == wanted.summary["files"]
    again = [
        facts(run(*score, tmp_path / f"again{at}", "--previous", place, "--verify-input", place))
        for at, place in enumerate((there, here))
    ]
    assert again[0] == again[1]
    assert again[0]["carried_users"] == again[0]["users"]
    other = facts(run(*score, tmp_path / "other", "--exclude-recommended", there))
    assert other["rules"] == {f"--exclude-recommended {there}": {"rows": 400, "as_of": done.summary["as_of"]}}
    assert not set(pairs(tmp_path / "other")) & set(pairs(here))
    for name, place in (("a.csv", there), ("b.csv", here)):
        assert run("export", place, tmp_path / name).code == 0
    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "b.csv").read_bytes()


@pytest.mark.usefixtures("served")
def test_tables_and_models_in_a_store_are_those_of_a_disk(run, log, log_file, model_dir, tmp_path, upload):
    users = log["user_id"].unique().sort()
    pl.DataFrame({"user_id": users, "country": "PT"}).write_parquet(tmp_path / "users.parquet")
    pl.DataFrame({"video_id": log["video_id"].unique(), "title": "a"}).write_csv(tmp_path / "videos.csv")
    (tmp_path / "seen.txt").write_text("1001\n1002\n")
    log.select("video_id").unique().write_parquet(tmp_path / "only.parquet")
    tables = {"--users": "users.parquet", "--videos": "videos.csv", "--exclude": "seen.txt", "--only": "only.parquet"}
    score = ["score", "--precision", "fp32", "--carry", "country"]
    here = [each for flag, name in tables.items() for each in (flag, tmp_path / name)]
    there = [each for flag, name in tables.items() for each in (flag, upload(tmp_path / name, f"t/{name}"))]
    model = upload(model_dir, "models/tiny")
    wanted = run(*score, log_file, tmp_path / "a.parquet", "--model", model_dir, *here)
    found = run(*score, upload(log_file, "t/log.parquet"), tmp_path / "b.parquet", "--model", model, *there)
    assert (wanted.code, found.code) == (0, 0), found.err
    assert pl.read_parquet(tmp_path / "a.parquet").equals(pl.read_parquet(tmp_path / "b.parquet"))
    assert found.summary["model"] == wanted.summary["model"]
    looked = run("inspect", tmp_path / "b.parquet", "--json").summary
    assert (
        looked["videos"]["catalog"]["coverage"]
        == run("inspect", tmp_path / "a.parquet", "--json").summary["videos"]["catalog"]["coverage"]
    )
    store = Bucket("s3://data", "INPUT")
    store.put("models/tiny/catalog.parquet", (tmp_path / "only.parquet").read_bytes())
    other = run(*score[:3], log_file, tmp_path / "c.parquet", "--model", model)
    assert (other.code, "catalog.parquet: column token" in other.err) == (4, True), other.err  # not the older copy
    gone = run(*score[:3], log_file, tmp_path / "c.parquet", "--model", "s3://data/models/none")
    assert (gone.code, "--model s3://data/models/none: " in gone.err) == (4, True), gone.err


@pytest.mark.usefixtures("served")
def test_a_registry_in_a_store_is_that_of_a_disk(run, log_file, model_dir, tmp_path, monkeypatch):
    root = "s3://data/registry"
    monkeypatch.setenv("GENREC_BATCH_REGISTRY", root)
    other = tmp_path / "other"
    shutil.copytree(model_dir, other)
    (other / "README.md").write_text("another\n")
    assert run("model", "list").code == 4
    assert run("model", "promote", "tiny@1").code == 4
    assert [run("model", "register", each, "tiny").summary["version"] for each in (model_dir, other, other)] == [
        1,
        2,
        2,
    ]
    assert [run("model", "promote", f"tiny@{number}").code for number in (1, 2)] == [0, 0]
    listed = run("model", "list", "--json").summary["models"]["tiny"]
    assert (listed["aliases"], [each["version"] for each in listed["versions"]]) == ({"champion": 2}, [2, 1])
    done = run("score", log_file, tmp_path / "recs.parquet", "--model", "registry:tiny", "--precision", "fp32")
    assert done.summary["registry"] == {"name": "tiny", "version": 2, "alias": "champion"}
    assert run("inspect", tmp_path / "recs.parquet", "--json").summary["videos"]["catalog"]["coverage"] is not None
    assert run("model", "rollback", "tiny").summary["version"] == 1
    place = registry.root_of(root, "test")
    held = registry.state(place, "tiny")  # as of somebody whose promotion takes long
    assert run("model", "promote", "tiny@2").code == 0
    with pytest.raises(RetryError, match="nothing was changed"), registering._changing(place, "tiny"):
        registering._put(place / "tiny", replace(held, aliases={"champion": 1}))
    assert registry.state(place, "tiny").aliases == {"champion": 2}
    store = Bucket("s3://data", "INPUT")
    store.put("registry/tiny/2/model/README.md", b"changed")
    spoilt = run("score", log_file, tmp_path / "no.parquet", "--model", "registry:tiny", "--precision", "fp32")
    assert (spoilt.code, "not what was registered as tiny@2: README.md was changed" in spoilt.err) == (4, True)


@pytest.mark.usefixtures("served")
def test_what_is_not_there_or_no_output_is_named_by_its_uri(run, log_file, upload):
    uri = upload(log_file, "log/events.parquet")
    for command in (["inspect"], ["export", "a.csv"]):
        for place, said in (("s3://recs/none", "not a finished output"), (uri, "not ")):
            done = run(command[0], place, *command[1:])
            assert (done.code, f"{place}: {said}" in done.err) == (3, True), done.err


def test_no_secret_is_in_what_a_run_says_or_keeps(run, served, log_file, model_dir, tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.DEBUG)
    report = tmp_path / "report.html"
    done = run("score", log_file, "s3://recs/secret", "--model", model_dir, "--report", report, "--verbose")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("GENREC_BATCH_STORE_PATIENCE", "1")
    lost = run("score", log_file, "s3://recs/secret", "--model", model_dir, "--verbose")
    monkeypatch.setenv("AWS_ENDPOINT_URL", served.settings["AWS_ENDPOINT_URL"])
    assert (done.code, lost.code) == (0, 75)
    texts = [done.out, done.err, lost.out, lost.err, report.read_text(), caplog.text]
    store = Bucket("s3://recs", "OUTPUT")
    kept = [store.get(each.key)[0] for each in store.below("secret")]
    kept.append(pl.read_parquet_metadata(kept[-1]).__repr__().encode())
    for secret in (s3.SECRET, served.settings["AWS_ACCESS_KEY_ID"]):
        assert not [text for text in texts if secret in text]
        assert not [content for content in kept if secret.encode() in content]


@pytest.mark.usefixtures("served")
def test_the_commands_of_the_pages_run(run, model_dir, log_file, tmp_path, upload):
    (tmp_path / "model").symlink_to(model_dir)
    upload(log_file, "events/ds=2026-05-17/events.parquet")
    text = "".join(page.read_text() for page in PAGES)
    blocks = re.findall(r"```sh not run: tests/cli/test_stores.py[^\n]*\n(.*?)```", text, re.DOTALL)
    assert len(blocks) == 3
    for command in "".join(blocks).splitlines():
        program, *arguments = command.split()
        assert program == "genrec-batch"
        done = run(*arguments)
        assert done.code == 0, (command, done.err)


LOCAL_ONLY = [
    ("--schema", ["score", "{log}", "a.parquet", "--schema", "{uri}.toml"]),
    ("--spill-dir", ["score", "{log}", "a.parquet", "--spill-dir", "{uri}"]),
    ("--report", ["score", "{log}", "a.parquet", "--report", "{uri}.html"]),
    ("--rates", ["plan", "--users", "1e6", "--events-per-user", "50", "--rates", "{uri}.json"]),
    ("--folder", ["demo", "--folder", "{uri}"]),
    ("OUT", ["sample", "{uri}"]),
    ("TARGET", ["export", "recs", "{uri}.csv"]),
    ("WEIGHTS", ["model", "import", "{uri}", "model"]),
    ("--catalog", ["model", "import", "a", "model", "--catalog", "{uri}"]),
    ("DIR", ["model", "export", "{uri}"]),
    ("--out", ["model", "export", "model", "--format", "triton", "--out", "{uri}"]),
    ("--config", ["--config", "{uri}", "layout"]),
]


@pytest.mark.parametrize(("flag", "command"), LOCAL_ONLY, ids=[flag for flag, _ in LOCAL_ONLY])
def test_what_must_be_local_is_refused_before_anything_is_done(run, log_file, tmp_path, flag, command):
    before = sorted(tmp_path.iterdir())
    done = run(*[each.format(log=log_file, uri="s3://recs/x") for each in command])
    assert (done.code, f"{flag} s3://recs/x" in done.err) == (2, True), done.err
    assert "copy it" in done.err
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.usefixtures("served")
def test_models_are_made_in_a_store(run, log_file, model_dir, tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    uri = "s3://models/made"
    train = ["--preset", "tiny", "--epochs", "1", "--no-refit", "--leave-one-out"]
    trained = run("train", log_file, "--out", f"{uri}/trained", *train)
    assert (trained.code, trained.summary["model"]) == (0, f"{uri}/trained"), trained.err
    assert run("model", "init", f"{uri}/made", "--preset", "tiny", "--catalog-from", log_file).code == 0
    weights = ["model", "import", model_dir / "model.safetensors", f"{uri}/imported"]
    assert run(*weights, "--catalog", model_dir / "catalog.parquet").code == 0
    for name in ("trained", "made", "imported"):
        done = run("score", log_file, f"{name}.parquet", "--model", f"{uri}/{name}")
        assert done.code == 0, done.err
    for command in (["train", log_file, "--out", f"{uri}/made"], ["model", "init", f"{uri}/made"]):
        again = run(*command)
        assert (again.code, f"{uri}/made holds a model already" in again.err) == (4, True), again.err
    assert not [each.key for each in Bucket(uri, "DIR").below("made") if each.key.rpartition("/")[2].startswith(".")]
    assert not list(tmp_path.glob("genrec-made-*"))
    assert not list((tmp_path / "cache" / "unfinished").iterdir())
    registered = run("model", "register", f"{uri}/trained", "ranker", "--registry", "s3://models/registry")
    assert (registered.code, registered.summary["new"]) == (0, True), registered.err
    exported = run("model", "export", f"{uri}/trained", "--format", "triton", "--out", "repository")
    assert exported.code == 0, exported.err


@pytest.mark.usefixtures("served")
def test_a_training_for_a_store_that_refuses_ends_before_it_begins(run, log_file, monkeypatch):
    whole = run("train", log_file, "--out", "s3://models", "--preset", "tiny")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "another")
    done = run("train", log_file, "--out", "s3://models/refused", "--preset", "tiny")
    assert (done.code, "--out s3://models/refused: the store refuses" in done.err) == (4, True), done.err
    rejects = run("score", log_file, "c.parquet", "--rejects", "s3://recs/a.parquet")
    assert (rejects.code, "--rejects s3://recs/a.parquet: " in rejects.err) == (2, True), rejects.err
    assert (whole.code, "name a folder in it, such as s3://models/model" in whole.err) == (4, True), whole.err


@pytest.mark.usefixtures("served")
def test_rejected_rows_are_written_to_a_store(run, log, model_dir, tmp_path):
    log.with_columns(pl.when(pl.col("user_id") != 100).then("user_id").alias("user_id")).write_parquet("log.parquet")
    here, there = tmp_path / "rejects.parquet", "s3://recs/a b/rejects=1%.parquet"
    for at, place in enumerate((here, there)):
        done = run("score", "log.parquet", f"{at}.parquet", "--model", model_dir, "--rejects", place)
        assert done.code == 0, done.err
    store = Bucket("s3://recs", "--rejects")
    assert store.get("a b/rejects=1%.parquet")[0] == here.read_bytes()
    assert [each.key for each in store.below("a b")] == ["a b/rejects=1%.parquet"]


@pytest.mark.usefixtures("served")
def test_a_command_leaves_no_copy_of_what_it_read(run, log_file, model_dir, tmp_path):
    run("score", log_file, "s3://recs/copied", "--model", model_dir)
    command = [sys.executable, "-m", "genrec_batch", "inspect", "s3://recs/copied", "--json"]
    folder = tmp_path / "temporary"
    folder.mkdir()
    done = subprocess.run(command, env={**os.environ, "TMPDIR": str(folder)}, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert not list(folder.iterdir())


@pytest.mark.usefixtures("served")
def test_an_input_of_a_store_is_not_compared_with_one_of_a_disk(run, log_file, model_dir, upload):
    score = ["score", "--model", model_dir, "--precision", "fp32"]
    run(*score, upload(log_file, "v/log.parquet"), "s3://recs/v")
    done = run(*score, log_file, "v.parquet", "--verify-input", "s3://recs/v")
    assert (done.code, "told apart in another way: by ETags in a store" in done.err) == (3, True), done.err


@pytest.fixture(autouse=True)
def nothing_fetched():
    fetched._fetched.clear()
