"""A DAG that scores each day's log with genrec-batch and publishes the result; Airflow 3 and 2.10.

Owns: when the log is complete, how often scoring is tried, what is checked before a result is published. Must not
know: anything of genrec-batch but its command line, its exit codes and the `_manifest.json` that it writes. In: a
folder for each day, `events/ds=YYYY-MM-DD/` with a `_SUCCESS` in it. Out: `recs/ds=YYYY-MM-DD/`, the link `current` to
the newest one, `reports/ds=YYYY-MM-DD.json`.

Copy it into the DAGs folder. The environment of the workers sets GENREC_JOB_ROOT and GENREC_JOB_PROGRAM, and
GENREC_BATCH_* or a `genrec-batch.toml` in GENREC_JOB_ROOT the options of the command, such as the model.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import json
import os
import subprocess
from pathlib import Path
from typing import Any

from airflow.providers.standard.hooks.subprocess import SubprocessHook
from airflow.timetables.interval import CronDataIntervalTimetable

try:
    from airflow.sdk import DAG, BaseOperator, task
    from airflow.sdk.exceptions import AirflowException, AirflowFailException, AirflowSkipException
except ImportError:  # Airflow 2.10
    from airflow.decorators import task
    from airflow.exceptions import AirflowException, AirflowFailException, AirflowSkipException
    from airflow.models.baseoperator import BaseOperator
    from airflow.models.dag import DAG

ROOT = Path(os.environ.get("GENREC_JOB_ROOT", "/data/genrec"))
PROGRAM = os.environ.get("GENREC_JOB_PROGRAM", "genrec-batch")
POOL = os.environ.get("GENREC_JOB_POOL", "genrec_gpu")  # one slot for each GPU
MARKER = "_SUCCESS"  # file that marks a day's log as complete
CARRY_FOR = os.environ.get("GENREC_JOB_CARRY_FOR", "7d")  # age up to which users without new events keep their rows
MIN_ROWS_SHARE = 0.5  # of the rows that are published now; an output with fewer is not published
TRY_AGAIN = (75, 129, 130, 137, 143)  # exit codes after which the same command continues where it stopped
ENGINE, NOTHING_TO_SCORE = 5, 99


class GenrecBatch(BaseOperator):
    """Runs genrec-batch; its exit code decides between success, skipped, another try and failure.

    Another try runs the same command, which continues after the parts that are written. Returns the run's summary, the
    last line that the command prints.
    """

    template_fields = ("arguments", "day")

    def __init__(self, *, arguments: list[str], day: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.arguments = arguments
        self.day = day
        self._hook: SubprocessHook | None = None

    def execute(self, context: Any) -> dict[str, Any]:
        """Run the command in ROOT, its output in the task's log."""
        del context
        (ROOT / "recs").mkdir(exist_ok=True)
        self._hook = SubprocessHook()
        command = [PROGRAM, *self.arguments, *carried(self.day)]
        done = self._hook.run_command(command, cwd=str(ROOT), env={**os.environ, **pinned(self.day)})
        if done.exit_code == NOTHING_TO_SCORE:
            raise AirflowSkipException("nothing to score: the log holds no rows")
        if done.exit_code in TRY_AGAIN or done.exit_code < 0:  # below 0: killed by that signal
            raise AirflowException(f"exit code {done.exit_code}: the next try continues where this one stopped")
        if done.exit_code == ENGINE and "(exit 5: device)" in done.output:
            raise AirflowException(f"this worker's device is at fault, another one may do: {done.output}")
        if done.exit_code != 0:
            raise AirflowFailException(f"exit code {done.exit_code} another try would end the same way: {done.output}")
        summary: dict[str, Any] = json.loads(done.output)
        return summary

    def on_kill(self) -> None:
        """Stop the command; the parts that it has written stay for the next try."""
        if self._hook is not None:
            self._hook.send_sigterm()


def carried(day: str) -> list[str]:
    """Return the options that keep rows of the newest earlier output.

    A file keeps the choice, so that each try of a day makes the same run.
    """
    pin = ROOT / "recs" / f".ds={day}.previous"
    if not CARRY_FOR:
        return []
    if not pin.exists():
        outputs = sorted(path for path in (ROOT / "recs").glob("ds=*") if (path / "_SUCCESS").exists())
        earlier = [path.name for path in outputs if path.name < f"ds={day}"]
        pin.write_text("".join(f"recs/{name}" for name in earlier[-1:]))
    previous = pin.read_text()
    there = previous and (ROOT / previous).exists()
    return ["--previous", previous, "--carry-for", CARRY_FOR] if there else []


def pinned(day: str) -> dict[str, str]:
    """Return the variables by which each try of a day computes with what the first one took.

    On another worker `auto` may take another engine or precision, and that would be another run.
    """
    begun, finished = ROOT / "recs" / f".ds={day}.unfinished" / "_run.json", ROOT / "recs" / f"ds={day}"
    try:
        if begun.exists():
            taken = json.loads(begun.read_text())
        elif (finished / "_SUCCESS").exists():
            metadata = json.loads((finished / "_manifest.json").read_text()).get("metadata", {})
            taken = {name.removeprefix("genrec."): value for name, value in metadata.items()}
        else:
            return {}
    except (OSError, ValueError):  # damaged: the command says so, or begins anew
        return {}
    names = {name: f"GENREC_BATCH_{name.upper()}" for name in ("engine", "device", "precision")}
    return {
        variable: taken[name]
        for name, variable in names.items()
        if name in taken and os.environ.get(variable, "auto") == "auto"
    }


def read_manifest(output: Path) -> dict[str, Any]:
    """Return the manifest of a finished output; fail where it is not finished."""
    if not (output / "_SUCCESS").exists():
        raise AirflowFailException(f"{output} has no _SUCCESS")
    manifest: dict[str, Any] = json.loads((output / "_manifest.json").read_text())
    return manifest


def published() -> Path | None:
    """Return the output that readers see now."""
    link = ROOT / "current"
    return ROOT / link.readlink() if link.is_symlink() else None


def inspect(output: Path) -> None:
    """Fail where `genrec-batch inspect` finds a fault: a score that is no number, an order that is broken."""
    done = subprocess.run([PROGRAM, "inspect", str(output)], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise AirflowFailException(f"{output}: inspect ended with {done.returncode}: {done.stderr[-2000:]}")


def count_rows(output: Path) -> int:
    """Return the rows of a finished output."""
    return sum(part["rows"] for part in read_manifest(output)["files"])


with DAG(
    dag_id="genrec_batch_nightly",
    description="Score the day's log, check it, publish it",
    schedule=CronDataIntervalTimetable("30 2 * * *", timezone="UTC"),  # ds is the day before, in Airflow 2 and 3
    start_date=dt.datetime(2026, 1, 1, tzinfo=dt.timezone.utc),
    catchup=False,
    max_active_runs=1,
    doc_md=__doc__,
    tags=["genrec"],
):

    @task.sensor(poke_interval=60, timeout=6 * 3600, mode="reschedule")
    def wait_for_log(ds: str) -> bool:
        """Wait for the day's log to be complete."""
        return (ROOT / "events" / f"ds={ds}" / MARKER).exists()

    score = GenrecBatch(
        task_id="score",
        arguments=["score", "events/ds={{ ds }}", "recs/ds={{ ds }}", "--if-exists", "resume"],
        day="{{ ds }}",
        pool=POOL,
        retries=3,
        retry_exponential_backoff=True,
        execution_timeout=dt.timedelta(hours=6),
    )

    @task
    def check(summary: dict[str, Any], ds: str) -> int:
        """Compare the output with its manifest, the run's summary and what is published now; return its rows."""
        output = ROOT / "recs" / f"ds={ds}"
        for part in read_manifest(output)["files"]:
            digest = hashlib.sha256()
            with (output / part["file"]).open("rb") as file:
                while block := file.read(1 << 20):
                    digest.update(block)
            if digest.hexdigest() != part["sha256"]:
                raise AirflowFailException(f"{output}: {part['file']} differs from the manifest")
        if "metadata" in read_manifest(output):  # genrec-batch wrote it
            inspect(output)
        rows = count_rows(output)
        if rows != summary["rows"] or rows == 0:
            raise AirflowFailException(f"{output}: {rows} rows, the run's summary says {summary['rows']}")
        now = published()
        if now is not None and now != output and rows < MIN_ROWS_SHARE * count_rows(now):
            raise AirflowFailException(f"{output}: {rows} rows, less than half of {now}: is the log complete?")
        return rows

    @task
    def publish(ds: str) -> str:
        """Point `current` at the output by one rename; never back to an older day."""
        name = f"recs/ds={ds}"
        now = published()
        if now is not None and now.name > f"ds={ds}":
            raise AirflowSkipException(f"current stays at the newer {now.name}")
        link = ROOT / f".current.{ds}"
        link.unlink(missing_ok=True)
        link.symlink_to(name)
        link.replace(ROOT / "current")
        return name

    @task(trigger_rule="none_failed")
    def report(ds: str, ti: Any) -> dict[str, Any]:
        """Write a report of the day, also where there was nothing to score; a finished day keeps its summary."""
        summary = ti.xcom_pull(task_ids="score") or {"status": "nothing to score"}
        now = published()
        folder = ROOT / "reports"
        folder.mkdir(exist_ok=True)
        earlier = folder / f"ds={ds}.json"
        if summary.get("already_complete") and earlier.exists():
            summary = json.loads(earlier.read_text())
        facts = {**summary, "ds": ds, "published": str(now.relative_to(ROOT)) if now else None}
        scratch = folder / f".ds={ds}.json"
        scratch.write_text(json.dumps(facts, indent=1) + "\n")
        scratch.replace(earlier)
        return facts

    wait_for_log() >> score
    check(score.output) >> publish() >> report()
