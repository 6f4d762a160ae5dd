"""jobs/cron/nightly.sh, run as cron runs it: alone, twice at once, failing, with nothing to score, out of time."""

from __future__ import annotations

import fcntl
import gzip
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import polars as pl
import pytest

ROOT = Path(__file__).parents[2]
NIGHTLY = ROOT / "jobs" / "cron" / "nightly.sh"
DAY = "2026-05-17"
STAND_IN = """#!/bin/sh
# genrec-batch's place: makes OUTPUT ($3) as a finished run leaves it, after what $BEHAVE says.
echo "$*" >>calls
{behave}
mkdir -p "$3" && touch "$3/_SUCCESS" && echo '{{"status": "ok"}}'
"""


class Night:
    """A folder to score in, and a way to run the wrapper there."""

    script = NIGHTLY

    def __init__(self, folder):
        self.folder = folder
        self.settings = {"GENREC_JOB_ROOT": str(folder), "GENREC_JOB_DATE": DAY, "GENREC_JOB_RETRY_DELAY": "1"}
        self.program("genrec-batch", f'exec "{sys.executable}" -m genrec_batch "$@"')

    def log_of(self, day, frame=None, *, marker=True):
        folder = self.folder / "events" / f"ds={day}"
        folder.mkdir(parents=True)
        if frame is None:
            (folder / "part.parquet").touch()
        else:
            frame.write_parquet(folder / "part.parquet")
        if marker:
            (folder / "_SUCCESS").touch()

    def program(self, name, body):
        path = self.folder / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(body if body.startswith("#!") else f"#!/bin/sh\n{body}\n")
        path.chmod(0o755)
        return path

    def stand_in(self, behave=""):
        self.program("genrec-batch", STAND_IN.format(behave=behave))

    def start(self, *arguments, into=subprocess.DEVNULL, **settings):
        path = f"{self.folder / 'bin'}:{os.environ['PATH']}"
        environment = {**os.environ, "PYTHONPATH": str(ROOT), **self.settings, **settings, "PATH": path}
        command = ["/bin/sh", str(self.script), *arguments]
        return subprocess.Popen(command, env=environment, stdout=into, stderr=into, text=True)

    def run(self, *arguments, **settings):
        with self.start(*arguments, into=subprocess.PIPE, **settings) as process:
            out, err = process.communicate(timeout=120)
        return process.returncode, out + err

    def wait_for(self, name):
        deadline = time.monotonic() + 30
        while not (self.folder / name).exists():
            assert time.monotonic() < deadline, f"{name} never came"
            time.sleep(0.05)

    def text(self, name):
        return (self.folder / name).read_text()

    def outputs(self):
        return sorted(path.name for path in (self.folder / "recs").iterdir())

    @property
    def current(self):
        return str((self.folder / "current").readlink())

    @property
    def calls(self):
        return self.text("calls").splitlines()


@pytest.fixture
def night(tmp_path):
    (tmp_path / "night").mkdir()
    return Night(tmp_path / "night")


@pytest.mark.slow
def test_a_night_scores_publishes_and_says_nothing(night, log, model_dir):
    night.log_of(DAY, log)
    code, said = night.run("--top-k", "3", GENREC_BATCH_MODEL=str(model_dir))
    assert (code, said) == (0, "")
    assert night.current == f"recs/ds={DAY}"
    assert len(pl.read_parquet(night.folder / "current" / "part-*.parquet")) == 3 * log["user_id"].n_unique()
    assert json.loads(night.text(f"logs/score-{DAY}.json"))["rows"] == 3 * log["user_id"].n_unique()
    again = night.run("--top-k", "3", GENREC_BATCH_MODEL=str(model_dir))
    assert again == (0, "")  # the finished output is accepted
    assert "nothing to do" in night.text(f"logs/score-{DAY}.log")


@pytest.mark.slow
def test_nothing_to_score_is_no_failure(night, log, model_dir):
    night.log_of(DAY, log.head(0))
    settings = {"GENREC_BATCH_MODEL": str(model_dir), "GENREC_JOB_ON_FAILURE": "/bin/false"}
    assert night.run(**settings) == (99, "")
    assert night.run(**settings, GENREC_JOB_EXIT_WHEN_EMPTY="0") == (0, "")
    assert not (night.folder / "current").exists()


@pytest.mark.slow
def test_a_failing_run_passes_its_code_on_and_calls_the_hook(night, log):
    night.log_of(DAY, log)
    hook = night.program("page", f'echo "$@" >"{night.folder}/paged"')
    code, said = night.run(GENREC_BATCH_MODEL="nowhere", GENREC_JOB_ON_FAILURE=str(hook))
    assert code == 4
    assert "nowhere" in said  # cron mails the reason, not only the code
    assert night.text("paged") == f"4 {DAY} {night.folder}/logs/score-{DAY}.log\n"
    assert not (night.folder / "current").exists()
    assert not (night.folder / f"logs/score-{DAY}.json").exists()


def test_two_at_once_run_once(night):
    night.log_of(DAY)
    night.stand_in("while [ ! -e go-on ]; do sleep 0.05; done")
    first = night.start()
    night.wait_for("calls")
    code, said = night.run()
    assert code == 75
    assert "another night is still running" in said
    (night.folder / "go-on").touch()
    assert first.wait(timeout=30) == 0
    assert len(night.calls) == 1
    assert night.run()[0] == 0  # and the lock is free again


def test_the_lock_outlives_a_killed_wrapper_as_long_as_the_work(night):
    night.log_of(DAY)
    night.stand_in("while [ ! -e go-on ]; do sleep 0.05; done")
    first = night.start()
    night.wait_for("calls")
    first.kill()
    first.wait()
    assert night.run()[0] == 75
    (night.folder / "go-on").touch()
    night.wait_for(f"recs/ds={DAY}/_SUCCESS")
    deadline = time.monotonic() + 30
    while night.run()[0] != 0:
        assert time.monotonic() < deadline


def test_exit_75_runs_the_same_command_again(night):
    night.log_of(DAY)
    night.stand_in("[ $(wc -l <calls) -gt 1 ] || exit 75")
    assert night.run("--top-k", "3") == (0, "")
    assert night.calls == [f"score {night.folder}/events/ds={DAY} recs/ds={DAY} --if-exists resume --top-k 3"] * 2
    assert "again in 1 s (1 of 3)" in night.text(f"logs/score-{DAY}.log")


def test_rows_of_the_newest_earlier_night_are_carried_over_by_each_attempt(night):
    days = [f"2026-05-0{day}" for day in (1, 2, 3, 5)]
    for day in days:
        night.log_of(day)
    night.stand_in(f"case $*-$(wc -l <calls) in *{days[3]}*-[45]) mkdir -p recs/ds=2026-05-04; exit 75 ;; esac")
    (night.folder / "recs/ds=2026-05-02").mkdir(parents=True)  # not finished
    for day in (days[0], days[2]):
        assert night.run("--top-k", "3", GENREC_JOB_DATE=day) == (0, "")
    assert night.run(GENREC_JOB_DATE=days[1], GENREC_JOB_CARRY_FOR="") == (0, "")
    assert night.run(GENREC_JOB_DATE=days[3]) == (0, "")
    (night.folder / "recs/ds=2026-05-04/_SUCCESS").touch()
    assert night.run(GENREC_JOB_DATE=days[3]) == (0, "")
    options = [call.partition("--if-exists resume")[2].split() for call in night.calls]
    carried = ["--previous", f"recs/ds={days[0]}", "--carry-for", "7d"]
    assert options[:3] == [["--top-k", "3"], [*carried, "--top-k", "3"], []]
    assert options[3:] == [["--previous", f"recs/ds={days[2]}", "--carry-for", "7d"]] * 4


def test_retries_end(night):
    night.log_of(DAY)
    night.stand_in("exit 75")
    assert night.run(GENREC_JOB_RETRIES="1")[0] == 75
    assert len(night.calls) == 2


@pytest.mark.parametrize("code", [1, 2, 3, 4, 5, 6, 129, 130, 143])
def test_other_codes_are_passed_on_at_once(night, code):
    night.log_of(DAY)
    night.stand_in(f"exit {code}")
    assert night.run()[0] == code
    assert len(night.calls) == 1


def test_a_log_without_its_marker_is_waited_for(night):
    night.log_of(DAY, marker=False)
    night.stand_in()
    started = night.start(GENREC_JOB_RETRIES="20")
    night.wait_for(f"logs/score-{DAY}.log")
    (night.folder / f"events/ds={DAY}/_SUCCESS").touch()
    assert started.wait(timeout=60) == 0
    missing = night.run(GENREC_JOB_DATE="2026-05-18", GENREC_JOB_RETRIES="0")
    assert missing[0] == 75
    assert "not there yet" in missing[1]


def test_out_of_time_is_124_and_resumable(night):
    night.log_of(DAY)
    night.stand_in("exec sleep 60")
    code, said = night.run(GENREC_JOB_TIMEOUT="1")
    assert code == 124
    assert "time limit of 1 s" in said
    night.stand_in()
    assert night.run()[0] == 0


def test_a_stopped_night_stops_its_run_and_is_143(night):
    night.log_of(DAY)
    night.stand_in(f'exec "{sys.executable}" -c "import time; time.sleep(60)"')
    process = night.start()
    night.wait_for("calls")
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=30) == 143
    code, said = night.run(GENREC_JOB_TIMEOUT="1")
    assert code == 124, said  # the lock is free, so nothing of it still runs


def test_old_outputs_and_logs_go_and_the_published_one_stays(night):
    for day in range(1, 6):
        night.log_of(f"2026-05-0{day}")
    night.stand_in()
    (night.folder / "recs/.ds=2026-04-01.unfinished").mkdir(parents=True)
    (night.folder / "recs/.ds=2026-05-05.unfinished").mkdir()
    (night.folder / "recs/mine").mkdir()
    keep = {"GENREC_JOB_KEEP_OUTPUTS": "2", "GENREC_JOB_KEEP_LOGS": "3"}
    for day in range(1, 6):
        assert night.run(GENREC_JOB_DATE=f"2026-05-0{day}", **keep) == (0, "")
    assert night.current == "recs/ds=2026-05-05"
    assert night.outputs() == [".ds=2026-05-05.unfinished", "ds=2026-05-04", "ds=2026-05-05", "mine"]
    logs = sorted(path.name for path in (night.folder / "logs").iterdir() if "log" in path.name)
    assert logs == [f"score-2026-05-0{day}.log.gz" for day in (2, 3, 4)] + ["score-2026-05-05.log"]
    with gzip.open(night.folder / "logs/score-2026-05-04.log.gz", "rt") as archived:
        assert "current -> recs/ds=2026-05-04" in archived.read()


def test_an_older_day_is_scored_and_not_published_and_nothing_published_is_removed(night):
    for day in ("2026-05-01", DAY):
        night.log_of(day)
    night.stand_in()
    assert night.run()[0] == 0
    assert night.run(GENREC_JOB_DATE="2026-05-01", GENREC_JOB_KEEP_OUTPUTS="2")[0] == 0
    assert night.current == f"recs/ds={DAY}"
    assert night.outputs() == ["ds=2026-05-01", f"ds={DAY}"]


def test_settings_come_from_a_file_and_the_environment_wins(night):
    night.log_of(DAY)
    night.stand_in('echo "$GENREC_BATCH_MODEL" >model')
    shutil.copy(night.folder / f"events/ds={DAY}/part.parquet", night.folder / f"{DAY}.parquet")
    config = night.folder / "nightly.env"
    config.write_text(
        "GENREC_JOB_DATE=2020-01-01\nGENREC_BATCH_MODEL=from-the-file\n"
        f"GENREC_JOB_INPUT={night.folder}/$GENREC_JOB_DATE.parquet\n"
    )
    assert night.run(GENREC_JOB_CONFIG=str(config))[0] == 75  # the file set another day, for which there is no log
    config.write_text(config.read_text().split("\n", 1)[1])
    assert night.run(GENREC_JOB_CONFIG=str(config)) == (0, "")
    assert night.text("model") == "from-the-file\n"
    assert night.calls[-1].startswith(f"score {night.folder}/{DAY}.parquet recs/ds={DAY}")


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"GENREC_JOB_DATE": "17.5.2026"}, "GENREC_JOB_DATE"),
        ({"GENREC_JOB_TIMEOUT": "6h"}, "GENREC_JOB_TIMEOUT"),
        ({"GENREC_JOB_KEEP_OUTPUTS": "0"}, "GENREC_JOB_KEEP_OUTPUTS"),
        ({"GENREC_JOB_ROOT": "/nowhere"}, "GENREC_JOB_ROOT"),
        ({"GENREC_JOB_PROGRAM": "no-such-program"}, "no-such-program"),
        ({"GENREC_JOB_CONFIG": "/nowhere.env"}, "GENREC_JOB_CONFIG"),
    ],
)
def test_a_wrong_setting_is_named(night, settings, named):
    code, said = night.run(**settings)
    assert code == 2
    assert named in said


def test_shellcheck_finds_nothing():
    program = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if program is None:
        pytest.skip("shellcheck is not installed; `make test` installs it")
    others = ("jobs/cron/nightly.env", "jobs/docker/genrec-batch", "tests/gpu.sh")
    scripts = [*sorted((ROOT / "jobs").rglob("*.sh")), *(ROOT / name for name in others)]
    done = subprocess.run([program, *map(str, scripts)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_a_second_start_beside_a_running_night_pages_nobody(night):
    night.log_of(DAY)
    night.stand_in("while [ ! -e go-on ]; do sleep 0.05; done")
    hook = night.program("page", f'echo "$@" >"{night.folder}/paged"')
    first = night.start()
    night.wait_for("calls")
    code, said = night.run(GENREC_JOB_ON_FAILURE=str(hook))
    assert (code, "nothing was started" in said, "failed" in said) == (75, True, False)
    (night.folder / "go-on").touch()
    assert first.wait(timeout=30) == 0
    assert not (night.folder / "paged").exists()


@pytest.mark.slow
def test_a_finished_night_keeps_its_summary_and_its_engine(night, log, model_dir):
    night.log_of(DAY, log)
    given = {"GENREC_BATCH_MODEL": str(model_dir), "GENREC_BATCH_ENGINE": "onnxruntime"}
    assert night.run(**given) == (0, "")
    summary = night.text(f"logs/score-{DAY}.json")
    del given["GENREC_BATCH_ENGINE"]
    assert night.run(**given) == (0, ""), "auto would take the torch engine, which is another run"
    assert night.text(f"logs/score-{DAY}.json") == summary
    assert '"already_complete"' not in summary


def test_each_attempt_computes_with_what_the_first_one_took(night):
    night.log_of(DAY)
    begun = '{\n "device": "cpu",\n "engine": "onnxruntime",\n "precision": "fp32"\n}'
    night.stand_in(
        f"""unfinished=recs/.ds={DAY}.unfinished
echo "$GENREC_BATCH_ENGINE $GENREC_BATCH_DEVICE $GENREC_BATCH_PRECISION" >>took
[ -d $unfinished ] || {{ mkdir -p $unfinished; printf '%s\\n' '{begun}' >$unfinished/_run.json; exit 75; }}"""
    )
    assert night.run(GENREC_BATCH_PRECISION="bf16") == (0, "")
    assert night.text("took").splitlines() == ["  bf16", "onnxruntime cpu bf16"]


MANIFEST = """case $1 in inspect) exit ${INSPECT:-0} ;; esac
mkdir -p "$3"; printf '{{\\n "metadata": {{\\n  "genrec.rows": "%s"\\n }}\\n}}\\n' "$ROWS" >"$3/_manifest.json\""""


def test_an_output_with_far_fewer_rows_or_a_fault_is_not_published(night):
    for day in ("2026-05-01", "2026-05-02", "2026-05-03"):
        night.log_of(day)
    night.stand_in(MANIFEST.replace("{{", "{").replace("}}", "}"))
    assert night.run(GENREC_JOB_DATE="2026-05-01", ROWS="100") == (0, "")
    code, said = night.run(GENREC_JOB_DATE="2026-05-02", ROWS="49")
    assert (code, "49 rows, under 50 % of the 100" in said) == (6, True), said
    assert night.run(GENREC_JOB_DATE="2026-05-03", ROWS="100", INSPECT="6")[0] == 6
    again = MANIFEST + """; echo '{"already_complete": true}'"""  # as of an output that is finished
    night.stand_in(again.replace("{{", "{").replace("}}", "}"))
    assert night.run(GENREC_JOB_DATE="2026-05-02", ROWS="49")[0] == 6, "the same night once more"
    assert night.run(GENREC_JOB_DATE="2026-05-03", ROWS="100", INSPECT="6")[0] == 6
    assert night.current == "recs/ds=2026-05-01"
    assert night.run(GENREC_JOB_DATE="2026-05-02", ROWS="49", GENREC_JOB_MIN_ROWS_PERCENT="40") == (0, "")
    assert night.current == "recs/ds=2026-05-02"


@pytest.mark.parametrize(("about", "says"), [("device", "another machine may do"), ("installation", "not installed")])
def test_exit_5_tells_this_machine_from_the_installation(night, about, says):
    night.log_of(DAY)
    night.stand_in(f"echo 'error: --device cuda: none here (exit 5: {about})' >&2; exit 5")
    code, said = night.run()
    assert (code, says in said) == (5, True), said
    code, said = night.run(GENREC_JOB_EXIT_DEVICE="69")  # as in Kubernetes
    assert (code, says in said) == (69 if about == "device" else 5, True), said


def test_spill_files_of_a_killed_run_are_removed_and_told(night):
    night.log_of(DAY)
    night.stand_in()
    for name in ("dead", "alive"):
        (night.folder / f"recs/.genrec-spill-{name}").mkdir(parents=True)
        (night.folder / f"recs/.genrec-spill-{name}/.lock").touch()
    with (night.folder / "recs/.genrec-spill-alive/.lock").open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert night.run() == (0, "")
    assert night.outputs() == [".genrec-spill-alive", f"ds={DAY}"]
    assert "removed recs/.genrec-spill-dead" in night.text(f"logs/score-{DAY}.log")
