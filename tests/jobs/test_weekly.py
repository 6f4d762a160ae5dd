"""jobs/cron/weekly.sh: trained, registered, promoted; a gate that fails, exit 75, kills, a second start, a rollback."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys

import polars as pl
import pytest

from tests.jobs.test_cron import DAY, ROOT, Night

STAND_IN = """#!/bin/sh
# genrec-batch's place: makes the model directory that `train` makes, after what $BEHAVE says.
echo "$*" >>calls
{behave}
case $1 in train) mkdir -p "$4" && touch "$4/config.json" && echo '{{"status": "done"}}' ;; esac
case $2 in register) echo '{{"status": "ok", "name": "ranker", "version": 7, "new": true}}' ;; esac
case $2 in promote) echo '{{"status": "ok", "version": 7, "changed": true}}' ;; esac
exit 0
"""
TRAIN = f"train {{root}}/events/ds={DAY} --out models/ds={DAY} --as-of 2026-05-16T23:59:59.999999Z"
REGISTER = f"model register models/ds={DAY} ranker"
PROMOTE = (
    f"model promote ranker@7 --only-new --log {{root}}/events/ds={DAY} --min-coverage 0.8 "
    f"--evaluate {{root}}/events/ds={DAY} --test-from {DAY} --gate ndcg@10>=0.98*champion"
)


class Week(Night):
    """A folder to train in, and a way to run the wrapper there."""

    script = ROOT / "jobs" / "cron" / "weekly.sh"

    def stand_in(self, behave=""):
        self.program("genrec-batch", STAND_IN.format(behave=behave))

    def expected(self, *calls):
        return [call.format(root=self.folder) for call in calls]

    def steps(self):
        """The steps of the last week's summary."""
        return [json.loads(line) for line in self.text(f"logs/weekly-{DAY}.json").splitlines()]


@pytest.fixture
def week(tmp_path):
    (tmp_path / "week").mkdir()
    return Week(tmp_path / "week")


def test_a_week_trains_on_what_it_does_not_test_on_registers_promotes_and_says_nothing(week):
    week.log_of(DAY)
    week.stand_in('[ "$1" != train ] || echo "$GENREC_BATCH_REGISTRY" >registry-is')
    assert week.run("--preset", "tiny") == (0, "")
    assert week.calls == week.expected(TRAIN + " --preset tiny", REGISTER, PROMOTE)
    assert week.text("registry-is").strip() == f"{week.folder}/registry"
    assert [step.get("version") for step in week.steps()] == [None, 7, 7]


def test_a_gate_that_fails_in_training_names_no_version(week):
    week.log_of(DAY)
    week.stand_in("case $1 in train) echo 'error: --max-rejects' >&2; exit 6 ;; esac")
    code, said = week.run()
    assert code == 6
    assert "a gate failed before anything was registered, such as --max-rejects; the champion stays live" in said


def test_gates_and_days_are_settings(week):
    week.log_of(DAY)
    week.stand_in()
    given = {"GENREC_JOB_GATE": "hr@10>=champion engagement.auc>=0.6", "GENREC_JOB_TEST_DAYS": "3"}
    assert week.run(**given, GENREC_JOB_NAME="other", GENREC_JOB_MIN_COVERAGE="0.5") == (0, "")
    assert week.calls[0].endswith("--as-of 2026-05-14T23:59:59.999999Z")
    assert week.calls[1] == f"model register models/ds={DAY} other"
    assert "--min-coverage 0.5 " in week.calls[2]
    assert week.calls[2].endswith("--test-from 2026-05-15 --gate hr@10>=champion --gate engagement.auc>=0.6")


def test_a_gate_that_fails_is_told_once_and_not_tried_again(week):
    week.log_of(DAY)
    week.stand_in("case $2 in promote) echo 'error: ranker@7 is not promoted' >&2; exit 6 ;; esac")
    hook = week.program("page", f'echo "$@" >>"{week.folder}/paged"')
    code, said = week.run(GENREC_JOB_ON_FAILURE=str(hook))
    assert code == 6
    assert "ranker@7 is not promoted" in said
    assert "ranker@7 stays registered, the champion stays live" in said
    assert week.text("paged") == f"6 {DAY} {week.folder}/logs/weekly-{DAY}.log\n"
    assert len(week.calls) == 3


@pytest.mark.parametrize("step", ["train", "register", "promote"])
def test_exit_75_runs_the_same_step_again(week, step):
    week.log_of(DAY)
    week.stand_in(f'case "$1 $2" in *{step}*) [ -e tried ] || {{ touch tried; exit 75; }} ;; esac')
    assert week.run() == (0, "")
    steps = [next(name for name in ("train", "register", "promote") if name in call.split()[:2]) for call in week.calls]
    assert len(steps) == 4
    assert steps.count(step) == 2
    assert "again in 1 s (1 of 3)" in week.text(f"logs/weekly-{DAY}.log")


@pytest.mark.parametrize("code", [1, 2, 3, 4, 5, 129, 130, 143])
def test_other_codes_are_passed_on_at_once_and_nothing_is_promoted(week, code):
    week.log_of(DAY)
    week.stand_in(f"[ $1 != train ] || exit {code}")
    assert week.run()[0] == code
    assert len(week.calls) == 1


def test_a_week_that_was_stopped_continues_without_training_again(week):
    week.log_of(DAY)
    week.stand_in("case $2 in promote) [ -e tried ] || { touch tried; exit 143; } ;; esac")
    assert week.run()[0] == 143
    assert week.run() == (0, "")
    assert week.calls == week.expected(TRAIN, REGISTER, PROMOTE, REGISTER, PROMOTE)
    assert "was trained before" in week.text(f"logs/weekly-{DAY}.log")


def test_out_of_time_is_124(week):
    week.log_of(DAY)
    week.stand_in("exec sleep 60")
    code, said = week.run(GENREC_JOB_TIMEOUT="1")
    assert (code, "time limit of 1 s" in said) == (124, True)


def test_a_stopped_week_stops_its_run_and_is_143(week):
    week.log_of(DAY)
    week.stand_in(f'exec "{sys.executable}" -c "import time; time.sleep(60)"')
    process = week.start()
    week.wait_for("calls")
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=30) == 143
    assert week.run(GENREC_JOB_TIMEOUT="1")[0] == 124, "the lock is free, so nothing of it still runs"


def test_a_second_start_beside_a_running_week_starts_nothing_and_pages_nobody(week):
    week.log_of(DAY)
    week.stand_in("while [ ! -e go-on ]; do sleep 0.05; done")
    hook = week.program("page", f'echo "$@" >"{week.folder}/paged"')
    first = week.start()
    week.wait_for("calls")
    code, said = week.run(GENREC_JOB_ON_FAILURE=str(hook))
    assert (code, "another week is still running" in said) == (75, True)
    (week.folder / "go-on").touch()
    assert first.wait(timeout=30) == 0
    assert len(week.calls) == 3
    assert not (week.folder / "paged").exists()


def test_a_late_log_is_waited_for(week):
    week.log_of(DAY, marker=False)
    week.stand_in()
    code, said = week.run(GENREC_JOB_RETRIES="0")
    assert (code, "not there yet" in said) == (75, True)
    assert not (week.folder / "calls").exists()
    started = week.start(GENREC_JOB_RETRIES="20")
    week.wait_for(f"logs/weekly-{DAY}.log")
    (week.folder / f"events/ds={DAY}/_SUCCESS").touch()
    assert started.wait(timeout=60) == 0


def test_old_models_and_logs_go(week):
    week.stand_in()
    for day in range(1, 5):
        week.log_of(f"2026-05-0{day}")
        keep = {"GENREC_JOB_KEEP_MODELS": "2", "GENREC_JOB_KEEP_LOGS": "3"}
        assert week.run(GENREC_JOB_DATE=f"2026-05-0{day}", **keep) == (0, "")
    assert sorted(path.name for path in (week.folder / "models").iterdir()) == ["ds=2026-05-03", "ds=2026-05-04"]
    logs = sorted(path.name for path in (week.folder / "logs").iterdir())
    assert logs == [f"weekly-2026-05-0{day}.{kind}" for day in (2, 3, 4) for kind in ("json", "log")]


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"GENREC_JOB_DATE": "17.5.2026"}, "GENREC_JOB_DATE"),
        ({"GENREC_JOB_TEST_DAYS": "0"}, "GENREC_JOB_TEST_DAYS"),
        ({"GENREC_JOB_TIMEOUT": "6h"}, "GENREC_JOB_TIMEOUT"),
        ({"GENREC_JOB_KEEP_MODELS": "0"}, "GENREC_JOB_KEEP_MODELS"),
        ({"GENREC_JOB_ROOT": "/nowhere"}, "GENREC_JOB_ROOT"),
        ({"GENREC_JOB_PROGRAM": "no-such-program"}, "no-such-program"),
        ({"GENREC_JOB_CONFIG": "/nowhere.env"}, "GENREC_JOB_CONFIG"),
    ],
)
def test_a_wrong_setting_is_named(week, settings, named):
    code, said = week.run(**settings)
    assert (code, named in said) == (2, True)


@pytest.mark.slow
def test_a_real_week_promotes_the_next_one_does_not_undo_a_rollback_and_the_night_takes_the_champion(week, tmp_path):
    """Real training: the first week is promoted; the second fails its gate, then holds, then is rolled back."""
    for day in ("2026-05-16", DAY):
        week.log_of(day, pl.read_parquet(ROOT / "sample_data" / "events.parquet"))
    fast = ["--preset", "tiny", "--epochs", "1", "--no-refit", "--device", "cpu", "--quiet"]
    code, said = week.run(*fast, GENREC_JOB_DATE="2026-05-16", GENREC_JOB_TEST_DAYS="2")
    assert (code, said) == (0, "")
    code, said = week.run(*fast, "--seed", "2", GENREC_JOB_GATE="ndcg@10>=2")
    assert (code, "--gate ndcg@10>=2: measured" in said) == (6, True), said
    state = json.loads(week.text("registry/ranker/registry.json"))
    assert (state["aliases"], state["last"]) == ({"champion": 1}, 2)
    code, said = week.run(*fast, "--seed", "2", GENREC_JOB_GATE="ndcg@10>=0.01*champion ndcg@10<=1")
    assert (code, said) == (0, ""), said
    assert json.loads(week.text("registry/ranker/registry.json"))["aliases"] == {"champion": 2}
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "GENREC_BATCH_REGISTRY": str(week.folder / "registry")}
    rollback = [sys.executable, "-m", "genrec_batch", "model", "rollback", "ranker", "--quiet"]
    subprocess.run(rollback, env=environment, check=True, capture_output=True)
    assert week.run(*fast, "--seed", "2", GENREC_JOB_GATE="ndcg@10<=1") == (0, "")
    assert week.steps()[-1].items() >= {"changed": False, "why": "ranker@2 was the champion before"}.items()

    night = Night(tmp_path / "week")
    shutil.rmtree(night.folder / "logs")
    live = {"GENREC_BATCH_MODEL": "registry:ranker@champion", "GENREC_BATCH_REGISTRY": "registry"}
    assert night.run("--top-k", "3", **live) == (0, "")
    assert json.loads(night.text(f"logs/score-{DAY}.json"))["registry"]["version"] == 1
