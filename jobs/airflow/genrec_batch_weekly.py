"""A DAG that trains a model every week and makes it the champion if it holds against the gates; Airflow 3 and 2.10.

Owns: when a log is complete, which days are trained and tested on, what is tried again. Must not know: anything of
genrec-batch but its command line and its exit codes. In: the log of the week's last day, `events/ds=YYYY-MM-DD/` with a
`_SUCCESS` in it. Out: `models/ds=YYYY-MM-DD/`, a version in the registry, `reports/weekly-ds=YYYY-MM-DD.json`.

Copy it into the DAGs folder. The environment of the workers sets GENREC_JOB_ROOT, GENREC_JOB_PROGRAM and
GENREC_BATCH_REGISTRY, and GENREC_BATCH_* or a `genrec-batch.toml` in GENREC_JOB_ROOT the options of the commands, such
as the preset. The nightly DAG scores with GENREC_BATCH_MODEL=registry:ranker@champion.
"""

from __future__ import annotations

import datetime as dt
import json
import os
from pathlib import Path
from typing import Any

from airflow.providers.standard.hooks.subprocess import SubprocessHook
from airflow.timetables.interval import CronDataIntervalTimetable

try:
    from airflow.sdk import DAG, BaseOperator, task
    from airflow.sdk.exceptions import AirflowException, AirflowFailException
except ImportError:  # Airflow 2.10
    from airflow.decorators import task
    from airflow.exceptions import AirflowException, AirflowFailException
    from airflow.models.baseoperator import BaseOperator
    from airflow.models.dag import DAG

ROOT = Path(os.environ.get("GENREC_JOB_ROOT", "/data/genrec"))
PROGRAM = os.environ.get("GENREC_JOB_PROGRAM", "genrec-batch")
POOL = os.environ.get("GENREC_JOB_POOL", "genrec_gpu")  # one slot for each GPU
NAME = os.environ.get("GENREC_JOB_NAME", "ranker")  # of the model in the registry
TEST_DAYS = int(os.environ.get("GENREC_JOB_TEST_DAYS", "1"))  # newest days, which no model was trained on
GATES = os.environ.get("GENREC_JOB_GATE", "ndcg@10>=0.98*champion").split()
MIN_COVERAGE = os.environ.get("GENREC_JOB_MIN_COVERAGE", "0.8")  # share of the log's events whose video is known
MARKER = "_SUCCESS"  # file that marks a day's log as complete
TRY_AGAIN = (75, 129, 130, 137, 143)  # exit codes after which the same command continues where it stopped
ENGINE, GATE = 5, 6


class GenrecBatch(BaseOperator):
    """Runs genrec-batch; its exit code decides between success, another try and failure.

    Returns the last line that the command prints, as JSON.
    """

    template_fields = ("arguments", "made")

    def __init__(self, *, arguments: list[str], made: str = "", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.arguments = arguments
        self.made = made  # file that is there once an earlier try has done all of it
        self._hook: SubprocessHook | None = None

    def execute(self, context: Any) -> dict[str, Any]:
        """Run the command in ROOT, its output in the task's log."""
        del context
        if self.made and (ROOT / self.made).exists():
            return {"status": "done by an earlier try"}
        self._hook = SubprocessHook()
        settings = {"GENREC_BATCH_REGISTRY": str(ROOT / "registry"), **os.environ}
        done = self._hook.run_command([PROGRAM, *self.arguments], cwd=str(ROOT), env=settings)
        if done.exit_code in TRY_AGAIN or done.exit_code < 0:  # below 0: killed by that signal
            raise AirflowException(f"exit code {done.exit_code}: the next try continues where this one stopped")
        if done.exit_code == ENGINE and "(exit 5: device)" in done.output:
            raise AirflowException(f"this worker's device is at fault, another one may do: {done.output}")
        if done.exit_code == GATE:
            raise AirflowFailException(f"a gate failed, the champion stays live: {done.output}")
        if done.exit_code != 0:
            raise AirflowFailException(f"exit code {done.exit_code} another try would end the same way: {done.output}")
        summary: dict[str, Any] = json.loads(done.output)
        return summary

    def on_kill(self) -> None:
        """Stop the command; what training has saved stays for the next try."""
        if self._hook is not None:
            self._hook.send_sigterm()


LOG, MODEL = "events/ds={{ ds }}", "models/ds={{ ds }}"
TESTED_FROM = f"{{{{ macros.ds_add(ds, {1 - TEST_DAYS}) }}}}"
TRAINED_UNTIL = f"{{{{ macros.ds_add(ds, {-TEST_DAYS}) }}}}T23:59:59.999999Z"
VERSION = f"{NAME}@{{{{ ti.xcom_pull(task_ids='register')['version'] }}}}"

with DAG(
    dag_id="genrec_batch_weekly",
    description="Train on the newest log, test, and promote what holds against the champion",
    schedule=CronDataIntervalTimetable("30 6 * * 1", timezone="UTC"),  # Mondays
    start_date=dt.datetime(2026, 1, 1, tzinfo=dt.timezone.utc),
    catchup=False,
    max_active_runs=1,
    doc_md=__doc__,
    tags=["genrec"],
):

    @task.sensor(poke_interval=60, timeout=6 * 3600, mode="reschedule")
    def wait_for_log(ds: str) -> bool:
        """Wait for the log to be complete."""
        return (ROOT / "events" / f"ds={ds}" / MARKER).exists()

    train = GenrecBatch(
        task_id="train",
        arguments=["train", LOG, "--out", MODEL, "--as-of", TRAINED_UNTIL],
        made=f"{MODEL}/config.json",  # written last
        pool=POOL,
        retries=3,
        retry_exponential_backoff=True,
        execution_timeout=dt.timedelta(hours=12),
    )
    register = GenrecBatch(  # the same files keep their number
        task_id="register", arguments=["model", "register", MODEL, NAME], retries=3, retry_exponential_backoff=True
    )
    promote = GenrecBatch(  # a version that was live before, or an older one, stays: a rollback is not undone
        task_id="promote",
        arguments=[
            "model", "promote", VERSION, "--only-new", "--log", LOG, "--min-coverage", MIN_COVERAGE,
            "--evaluate", LOG, "--test-from", TESTED_FROM, *(word for gate in GATES for word in ("--gate", gate)),
        ],
        pool=POOL,
        retries=3,
        retry_exponential_backoff=True,
        execution_timeout=dt.timedelta(hours=6),
    )  # fmt: skip

    @task(trigger_rule="all_done")
    def report(ds: str, ti: Any) -> dict[str, Any]:
        """Write a report of the week, also where a gate failed; then fail, so that the run does, too."""
        steps = {name: ti.xcom_pull(task_ids=name) for name in ("train", "register", "promote")}
        folder = ROOT / "reports"
        folder.mkdir(exist_ok=True)
        facts = {"ds": ds, "promoted": bool((steps["promote"] or {}).get("changed")), **steps}
        scratch = folder / f".weekly-ds={ds}.json"
        scratch.write_text(json.dumps(facts, indent=1) + "\n")
        scratch.replace(folder / f"weekly-ds={ds}.json")
        if steps["promote"] is None:
            raise AirflowFailException("not promoted; the task that failed says why")
        return facts

    wait_for_log() >> train >> register >> promote >> report()
