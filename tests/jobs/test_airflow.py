"""jobs/airflow: the DAG in a real Airflow (an environment of its own), over the sample log, to a published output."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest

ROOT = Path(__file__).parents[2]
DAGS = ROOT / "jobs" / "airflow"
VENV = Path(os.environ.get("GENREC_TEST_AIRFLOW", ROOT / ".venv-airflow"))  # `make` builds it
DAG, WEEKLY = "genrec_batch_nightly", "genrec_batch_weekly"

KILLED_ONCE = """\
import os, pathlib, signal, subprocess, sys, time
command = [sys.executable, "-m", "genrec_batch", *sys.argv[1:]]
os.environ["GENREC_BATCH_SHARD_USERS"] = "5"
tried = pathlib.Path("tried")
if tried.exists():
    os.execv(sys.executable, command)
tried.touch()
run = subprocess.Popen(command)
output = pathlib.Path(sys.argv[3])
while run.poll() is None and not list(output.parent.glob(f".{output.name}.unfinished/part-*.parquet")):
    time.sleep(0.005)
run.send_signal(signal.SIGTERM)
sys.exit(run.wait())
"""


class Airflow:
    """One Airflow home with the pool in it, and a folder to score in."""

    def __init__(self, home):
        self.home = home
        self.settings = {
            "AIRFLOW_HOME": str(home),
            "AIRFLOW__CORE__DAGS_FOLDER": str(DAGS),
            "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
            "AIRFLOW__CORE__DEFAULT_TASK_RETRY_DELAY": "1",
            "AIRFLOW__USAGE_DATA_COLLECTION__ENABLED": "False",
            "PYTHONDONTWRITEBYTECODE": "1",
        }

    def __call__(self, *command, **settings):
        """Run `airflow ...`; return its stdout."""
        return self.ran("airflow", *command, **settings)

    def ran(self, program, *arguments, **settings):
        outside = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        environment = {**outside, **self.settings, **settings}
        command = [str(VENV / "bin" / program), *arguments]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=300)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def states(self, day, dag=DAG):
        found = self("tasks", "states-for-dag-run", dag, f"{day}T00:00:00+00:00", "--output", "json")
        return {task["task_id"]: task["state"] for task in json.loads(found.strip().splitlines()[-1])}


@pytest.fixture(scope="session")
def airflow(tmp_path_factory):
    if not (VENV / "bin" / "airflow").exists():
        pytest.skip("no Airflow environment beside this checkout; `make test` builds one")
    airflow = Airflow(tmp_path_factory.mktemp("airflow"))
    airflow("db", "migrate")
    airflow("pools", "import", str(DAGS / "pools.json"))
    return airflow


class Work:
    """A folder with a log for a day, a model, and a program in genrec-batch's place."""

    def __init__(self, folder, model_dir):
        self.folder = folder
        self.model_dir = model_dir

    def log_of(self, day, frame):
        folder = self.folder / "events" / f"ds={day}"
        folder.mkdir(parents=True)
        frame.write_parquet(folder / "part-0.parquet")
        (folder / "_SUCCESS").touch()

    def settings(self, script=None):
        program = self.folder / "program"
        runs = "-m genrec_batch" if script is None else f"'{self.folder}/script.py'"
        program.write_text(f'#!/bin/sh\nexport PYTHONPATH="{ROOT}"\nexec "{sys.executable}" {runs} "$@"\n')
        program.chmod(0o755)
        if script is not None:
            (self.folder / "script.py").write_text(script)
        return {
            "GENREC_JOB_ROOT": str(self.folder),
            "GENREC_JOB_PROGRAM": str(program),
            "GENREC_BATCH_MODEL": str(self.model_dir),
            "GENREC_BATCH_MIN_MATCH": "0",  # the model is of another log
        }

    def report(self, day, kind=""):
        return json.loads((self.folder / "reports" / f"{kind}ds={day}.json").read_text())


@pytest.fixture
def work(tmp_path, model_dir):
    (tmp_path / "work").mkdir()
    return Work(tmp_path / "work", model_dir)


def test_the_dag_knows_nothing_of_ours():
    for path in (ROOT / "jobs").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not {"genrec_batch", "polars", "pyarrow", "torch"} & {name.split(".")[0] for name in names}, path


@pytest.mark.slow
def test_the_dag_parses_and_scores_in_the_pool(airflow):
    found = json.loads(airflow("dags", "report", "--output", "json").strip().splitlines()[-1])
    parsed = sorted((Path(file["file"]).name, file["dags"]) for file in found)
    assert parsed == [(f"{DAG}.py", [DAG]), (f"{WEEKLY}.py", [WEEKLY])]
    pools = json.loads(airflow("pools", "list", "--output", "json").strip().splitlines()[-1])
    slots = {pool["pool"]: int(pool["slots"]) for pool in pools}
    code = f"import {DAG} as d; print(d.score.pool, d.score.retries, [t.pool for t in d.score.dag.tasks].count(d.POOL))"
    pool, retries, tasks = airflow.ran("python", "-c", code, PYTHONPATH=str(DAGS)).splitlines()[-1].split()
    assert (slots[pool], int(retries), int(tasks)) == (1, 3, 1)  # only scoring waits for the GPU


@pytest.mark.slow
def test_a_day_is_scored_checked_published_and_reported(airflow, work):
    day = "2026-05-17"
    work.log_of(day, pl.read_parquet(ROOT / "sample_data" / "events.parquet"))
    airflow("dags", "test", DAG, day, **work.settings())
    assert airflow.states(day) == dict.fromkeys(("wait_for_log", "score", "check", "publish", "report"), "success")
    assert (work.folder / "current").readlink() == Path(f"recs/ds={day}")
    assert len(pl.read_parquet(work.folder / "current" / "part-*.parquet")) == 5000
    assert work.report(day).items() >= {"rows": 5000, "published": f"recs/ds={day}", "status": "ok"}.items()


@pytest.mark.slow
def test_a_run_that_is_killed_succeeds_on_retry_where_it_stopped(airflow, work):
    day = "2026-05-18"
    work.log_of(day, pl.read_parquet(ROOT / "sample_data" / "events.parquet"))
    airflow("dags", "test", DAG, day, **work.settings(KILLED_ONCE))
    assert set(airflow.states(day).values()) == {"success"}
    report = work.report(day)
    assert report["rows"] == 5000
    assert report["resumed_parts"] > 0


@pytest.mark.slow
def test_nothing_to_score_is_skipped_and_told(airflow, work, log):
    day = "2026-05-19"
    work.log_of(day, log.head(0))
    airflow("dags", "test", DAG, day, **work.settings())
    skipped = dict.fromkeys(("score", "check", "publish"), "skipped")
    assert airflow.states(day) == {"wait_for_log": "success", "report": "success", **skipped}
    assert work.report(day) == {"ds": day, "published": None, "status": "nothing to score"}


CHECKS = """
import json, os, hashlib, pathlib, sys
import genrec_batch_nightly as d

def output(ds, rows, damage=False):
    folder = d.ROOT / "recs" / f"ds={ds}"
    folder.mkdir(parents=True)
    (folder / "part-0").write_bytes(b"rows")
    digest = "0" * 64 if damage else hashlib.sha256(b"rows").hexdigest()
    files = [{"file": "part-0", "rows": rows, "sha256": digest}]
    (folder / "_manifest.json").write_text(json.dumps({"files": files}))
    (folder / "_SUCCESS").touch()

def refused(kind, function, *arguments):
    try:
        function(*arguments)
    except kind as error:
        return str(error)
    raise SystemExit(f"not refused: {arguments}")

check, publish = d.check.function, d.publish.function
output("2026-05-02", 100)
assert check({"rows": 100}, "2026-05-02") == 100
publish("2026-05-02")
assert "summary says 101" in refused(d.AirflowFailException, check, {"rows": 101}, "2026-05-02")
output("2026-05-03", 49)
assert "is the log complete?" in refused(d.AirflowFailException, check, {"rows": 49}, "2026-05-03")
output("2026-05-04", 100, damage=True)
assert "differs from the manifest" in refused(d.AirflowFailException, check, {"rows": 100}, "2026-05-04")
assert "no _SUCCESS" in refused(d.AirflowFailException, check, {"rows": 1}, "2026-05-05")
output("2026-05-01", 100)
assert "newer ds=2026-05-02" in refused(d.AirflowSkipException, publish, "2026-05-01")
assert os.readlink(d.ROOT / "current") == "recs/ds=2026-05-02"

def ends(code):
    program = d.ROOT / "program"
    program.write_text(f"#!/bin/sh\\necho why\\nexit {code}\\n")
    program.chmod(0o755)
    d.PROGRAM = str(program)
    try:
        d.GenrecBatch(task_id=f"ends_{code}", arguments=[], day="2026-05-09").execute({})
    except Exception as error:
        return type(error).__name__
for code in (75, 129, 130, 137, 143):
    assert ends(code) == "AirflowException", code
for code in (1, 2, 3, 4, 5, 6):
    assert ends(code) == "AirflowFailException", code
assert ends(99) == "AirflowSkipException"

carry = ["--previous", "recs/ds=2026-05-04", "--carry-for", "7d"]
assert d.carried("2026-05-09") == carry
output("2026-05-06", 100)
assert d.carried("2026-05-09") == carry, "each try of a day makes the same run"
assert d.carried("2026-05-10") == ["--previous", "recs/ds=2026-05-06", "--carry-for", "7d"]
assert d.carried("2026-05-01") == []
d.CARRY_FOR = ""
assert d.carried("2026-05-10") == []

class Score:
    def __init__(self, **summary):
        self.summary = summary

    def xcom_pull(self, task_ids):
        return self.summary

reports = [d.report.function("2026-05-02", Score(rows=100, scored_users=7)),
           d.report.function("2026-05-02", Score(rows=100, already_complete=True))]
assert reports[0] == reports[1] and reports[0]["scored_users"] == 7, "a finished day keeps its summary"
begun = d.ROOT / "recs" / ".ds=2026-05-11.unfinished"
begun.mkdir()
(begun / "_run.json").write_text('{"engine": "onnxruntime"}')
assert d.pinned("2026-05-11")["GENREC_BATCH_ENGINE"] == "onnxruntime"
(begun / "_run.json").write_text('{"engine": "onn')
assert d.pinned("2026-05-11") == {}, "damaged: the command begins anew"
"""


@pytest.mark.slow
def test_what_is_not_published_and_what_is_not_retried(airflow, work):
    airflow.ran("python", "-W", "ignore", "-c", CHECKS, PYTHONPATH=str(DAGS), **work.settings())


TRAINING = {f"GENREC_BATCH_{name}": value for name, value in (("PRESET", "tiny"), ("EPOCHS", "1"), ("DEVICE", "cpu"))}


@pytest.mark.slow
def test_a_week_is_trained_registered_and_promoted_and_a_gate_that_fails_keeps_the_champion(airflow, work):
    events = pl.read_parquet(ROOT / "sample_data" / "events.parquet")
    for day in ("2026-05-16", "2026-05-17"):
        work.log_of(day, events)
    settings = {**work.settings(), **TRAINING}
    airflow("dags", "test", WEEKLY, "2026-05-16", **settings, GENREC_JOB_TEST_DAYS="2")
    steps = ("wait_for_log", "train", "register", "promote", "report")
    assert airflow.states("2026-05-16", WEEKLY) == dict.fromkeys(steps, "success")
    report = work.report("2026-05-16", "weekly-")
    assert (report["promoted"], report["register"]["version"]) == (True, 1)
    gated = {**settings, "GENREC_JOB_GATE": "ndcg@10>=2", "GENREC_BATCH_SEED": "2"}
    with pytest.raises(AssertionError, match="the champion stays live"):
        airflow("dags", "test", WEEKLY, "2026-05-17", **gated)
    failed = {"promote": "failed", "report": "failed"}
    assert airflow.states("2026-05-17", WEEKLY) == {**dict.fromkeys(steps, "success"), **failed}
    report = work.report("2026-05-17", "weekly-")
    assert (report["promoted"], report["register"]["version"], report["promote"]) == (False, 2, None)
    state = json.loads((work.folder / "registry" / "ranker" / "registry.json").read_text())
    assert state["aliases"] == {"champion": 1}


WEEKLY_CHECKS = """
import genrec_batch_weekly as d

def ends(code, says=""):
    program = d.ROOT / "program"
    program.write_text(f"#!/bin/sh\\necho '{says}'\\nexit {code}\\n")
    program.chmod(0o755)
    d.PROGRAM = str(program)
    try:
        return d.GenrecBatch(task_id="t", arguments=["model"], made="made").execute({})
    except Exception as error:
        return type(error).__name__
for code in (75, 129, 130, 137, 143):
    assert ends(code) == "AirflowException", code
for code in (1, 2, 3, 4, 5, 6):
    assert ends(code) == "AirflowFailException", code
assert ends(5, "none here (exit 5: device)") == "AirflowException"
assert ends(0, '{"version": 3}') == {"version": 3}
(d.ROOT / "made").touch()
assert ends(1) == {"status": "done by an earlier try"}
"""


@pytest.mark.slow
def test_what_of_a_week_is_tried_again(airflow, work):
    airflow.ran("python", "-W", "ignore", "-c", WEEKLY_CHECKS, PYTHONPATH=str(DAGS), **work.settings())
