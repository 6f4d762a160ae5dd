"""The command `evaluate`.

Owns: its argument, and where its report goes. Must not know: how anything is measured.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from genrec_batch.cli.exits import done
from genrec_batch.cli.flags import options
from genrec_batch.evaluation.options import EvaluateConfig
from genrec_batch.runtime import console


@options(EvaluateConfig)
def evaluate(
    events: Annotated[str, typer.Argument(metavar="EVENTS", help="Parquet log: a file, a glob, a directory or a URI.")],
    *,
    options: EvaluateConfig,
) -> None:
    """Compare a model's rankings and heads with what users did next, beside simple baselines; gates are exit code 6.

    Example: genrec-batch evaluate events.parquet --model model/ --test-from 2026-05-16 --gate 'ndcg@10>=0.02'
    """
    from genrec_batch.evaluation import gates, run
    from genrec_batch.reports import evaluation_page, report, terminal

    report.check_path(options.html, "--html", (".html",))
    report.check_path(options.json, "--json", (".json",))
    found = run.evaluate(options, events)
    if not options.quiet and options.log_format == "text":
        terminal.show(evaluation_page.sections(found))
    with done("the evaluation itself is done"):
        for path, flag in ((options.html, "--html"), (options.json, "--json")):
            if path:
                evaluation_page.write(found, Path(path), flag)
    failed = not all(gate["passed"] for gate in found["gates"])
    console.last_line(evaluation_page.brief(found) | ({"status": "failed"} if failed else {}))
    gates.check(found["gates"])
