"""The command `plan`.

Owns: its arguments and what it prints. Must not know: how a plan is computed.
"""

from __future__ import annotations

from typing import Annotated

import typer

from genrec_batch.cli.flags import options
from genrec_batch.reports.plan_options import PlanConfig
from genrec_batch.runtime import console


@options(PlanConfig)
def plan(
    *,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    options: PlanConfig,
) -> None:
    """Plan a job: its time, what it costs and what bounds it, from the rates of a measured run; nothing is scored.

    Example: genrec-batch plan --rates report.json --users 1e9 --events-per-user 50 --gpus 64 --gpu-hour-cost 3
    """
    from genrec_batch.reports import plan_text, terminal
    from genrec_batch.reports.plan import planned

    found = planned(options)
    if as_json:
        console.last_line(found)
    else:
        terminal.show([plan_text.section(found)])
