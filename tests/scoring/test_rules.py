"""`rules`: rules about which videos may be recommended in the commands; `test_rule_sets.py` has random sets of them."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

from genrec_batch import Scorer
from genrec_batch.core.errors import InputError
from tests.conftest import small_log
from tests.rule_jobs import Job

LOG = small_log(users=12, videos=30, mean=8)
USERS = LOG["user_id"].unique().sort().to_list()


@pytest.fixture
def job(tmp_path, model_dir):
    return Job(folder=tmp_path, model_dir=model_dir, log=LOG)


def test_rules_are_options_of_the_python_api_too(job, model_dir):
    plain = Scorer(model=str(model_dir), engine="torch", precision="fp32", top_k=3)
    best = pl.DataFrame(plain(LOG))["video_id"].value_counts(sort=True)["video_id"].head(2).to_list()
    ruled = Scorer(model=str(model_dir), engine="torch", precision="fp32", top_k=3, exclude=(job.listed(best),))
    rows = pl.DataFrame(ruled(LOG))
    assert len(rows) == 36
    assert not rows["video_id"].is_in(best).any()


def test_a_change_of_rules_scores_only_those_whom_it_concerns_again(run, job, model_dir):
    LOG.write_parquet("events.parquet")
    fixed = ["--model", model_dir, "--engine", "torch", "--precision", "fp32"]
    ban = {USERS[3]: {1001, 1002}}
    assert run("score", "events.parquet", "a", *fixed, "--exclude", job.own(ban)).code == 0
    longer = job.own({**ban, USERS[5]: {1003}})
    more = run("score", "events.parquet", "b", *fixed, "--exclude", longer, "--previous", "a")
    assert more.code == 0, more.err
    assert more.summary["scored_users"] == 1
    full = run("score", "events.parquet", "c", *fixed, "--exclude", longer)
    assert full.code == 0
    b, c = (pl.read_parquet(f"{name}/*.parquet") for name in "bc")
    assert b.select("user_id", "rank", "video_id").equals(c.select("user_id", "rank", "video_id"))


def test_verify_compares_engines_under_the_same_rules(run, job, model_dir):
    LOG.write_parquet("events.parquet")
    done = run("verify", "events.parquet", "--model", model_dir, "--engine", "torch", "--against", "torch", "--exclude",
               job.listed(job.catalog), "--min-match", 0)  # fmt: skip
    assert (done.code, "no video of the catalog is left for anybody" in done.err) == (6, True)


def test_pages_of_the_tables_of_rules_are_verified(job):
    path = job.listed([1001])
    content = bytearray(Path(path).read_bytes())
    content[12] ^= 255
    Path(path).write_bytes(content)
    with pytest.raises(InputError, match="--exclude"):
        job.part(job.options(exclude=(path,), verify_input="pages"))


def test_a_video_that_is_promoted_and_excluded_is_told_and_counted(run, job, model_dir):
    LOG.write_parquet("events.parquet")
    tables = ["--exclude", job.listed([1001, 1002]), "--promote", job.listed([1001, max(job.catalog)])]
    done = run("score", "events.parquet", "a", "--model", model_dir, "--engine", "torch", *tables)
    assert done.code == 0, done.err
    assert f"1 of the 2 videos of --promote are not promoted, since a rule removes them for everybody: {tables[0]}" in (
        " ".join(done.err.split())
    )
    assert done.summary["promoted_excluded"] == 12
    assert 1001 not in set(pl.read_parquet("a/*.parquet")["video_id"])
