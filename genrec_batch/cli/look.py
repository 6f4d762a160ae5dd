"""The commands that show something: `profile`, `inspect`, and what `score` shows beside its result.

Owns: their arguments. Must not know: how anything is computed. Heavy modules are imported inside commands.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from genrec_batch.cli.flags import options
from genrec_batch.core.errors import ConfigError
from genrec_batch.core.options import LogConfig
from genrec_batch.reports.options import ProfileConfig, RunConfig
from genrec_batch.runtime import console

if TYPE_CHECKING:
    from genrec_batch.runtime.clock import Stages


def check_paths(options: RunConfig) -> None:
    """Raise ConfigError where `--report` or `--trace` could not be written, before any work is done."""
    from genrec_batch.reports import report

    report.check_path(options.report, "--report", (".html", ".json"))
    report.check_path(options.trace, "--trace", (".json",))
    if options.report and options.trace and Path(options.report).resolve() == Path(options.trace).resolve():
        raise ConfigError(f"--report and --trace {options.trace}: one would replace the other; give two names")


def write_reports(options: RunConfig, stages: Stages, summary: Mapping[str, Any]) -> None:
    """Write `--report` and `--trace` of a finished run.

    Raises:
        ConfigError: a file cannot be written.
        RetryError: the disk is full.
    """
    from genrec_batch.reports import report, trace

    if options.report:
        report.write_run(stages, summary, Path(options.report))
    if options.trace:
        trace.write(stages, Path(options.trace))


def explain(options: RunConfig, source: str, output: str | None) -> None:
    """Explain the list of one user (`score --explain`)."""
    import pyarrow as pa

    from genrec_batch.reports import inspect_text, tables, terminal
    from genrec_batch.reports.explain import explained

    if output is not None or options.user or options.report or options.trace:
        raise ConfigError("--explain describes one user and writes nothing: omit OUTPUT, --user, --report and --trace")
    found = explained(options, source, str(options.explain))
    if not options.quiet and options.log_format == "text":
        terminal.show(inspect_text.explanation(found))
        tables.recommendations(pa.Table.from_pylist(found["recommended"]), "long")
        brief = ("status", "command", "user_id", "arm", "bucket", "events", "recommended")
        found = {name: found[name] for name in brief if name in found}
    console.last_line(found)


@options(ProfileConfig)
def profile(*, options: ProfileConfig) -> None:
    """Measure the model, a log, the engines and a real run on this machine; as tables, JSON and a page.

    Example: genrec-batch profile --model model/ --data events.parquet --html report.html --json report.json
    """
    from genrec_batch.reports import chapters, report, terminal
    from genrec_batch.reports.profile import profiled

    report.check_path(options.html, "--html", (".html",))
    report.check_path(options.json, "--json", (".json",))
    report.check_path(options.trace, "--trace", (".json",))
    found = profiled(options)
    if not options.quiet and options.log_format == "text":
        terminal.show(chapters.sections(found))
    for path, flag in ((options.html, "--html"), (options.json, "--json")):
        if path:
            report.write(found, Path(path), flag)
    console.last_line(report.brief(found))


@options(LogConfig)
def inspect(
    output: Annotated[str, typer.Argument(metavar="OUT", help="What `score` wrote: a .parquet file or a directory.")],
    *,
    model: Annotated[
        str | None, typer.Option(help="Model directory whose catalog coverage is shown; default: that of the run.")
    ] = None,
    registry: Annotated[
        str | None, typer.Option(envvar="GENREC_BATCH_REGISTRY", help="Directory of the model registry.")
    ] = None,
    top: Annotated[int, typer.Option(help="Number of most recommended videos to list.", min=1)] = 10,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Show a finished output: lineage, counts, scores by rank, most recommended videos; exit code 6 if it is damaged.

    Example: genrec-batch inspect recs.parquet
    """
    from genrec_batch.reports import inspect_text, terminal
    from genrec_batch.reports.inspect import check, inspected

    facts = inspected(output, model=model, root=registry, top=top)
    if as_json:
        console.last_line(facts)
    else:
        terminal.show(inspect_text.inspection(facts))
    check(facts)
