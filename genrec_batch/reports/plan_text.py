"""How `plan` looks: its numbers as a section of sentences and tables.

Owns: order, words and units. Must not know: how the numbers came about.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from genrec_batch.reports.sections import Section, Table, figure, share

NAMES = {
    "start": "imports, engine and catalog",
    "reading": "the host's cores, which survey the log",
    "split": "the host's cores, which split the log",
    "finish": "the files to be put in place",
    "host cores": "the host's cores",
    "GPU": "the GPUs",
    "disk": "the disks",
    "network": "the network",
}
UNITS = ((86400.0, "d"), (3600.0, "h"), (60.0, "min"))


def span(seconds: float) -> str:
    """Return seconds in the unit that suits: s, min, h or d."""
    for size, unit in UNITS:
        if seconds >= 2 * size:
            return figure(seconds / size, unit)
    return figure(seconds, "s")


def section(plan: Mapping[str, Any]) -> Section:
    """Return the section of a plan."""
    job, machines, measured = plan["job"], plan["machines"], plan["measured"]
    on = f"{machines['gpus']:,} GPUs in " if machines["gpus"] else ""
    where = f"{on}{machines['count']:,} machine{'s' if machines['count'] > 1 else ''} of {machines['cores']:,} cores"
    what = f"{job['users']:,} users, {job['rows']:,.0f} events on {where}"
    lead = [
        f"{what}: {span(plan['seconds'])}, {plan['users_per_s']:,.0f} users/s.",
        f"The longest phase, {plan['bounds_in']}, waits for {NAMES.get(plan['saturates'], plan['saturates'])}.",
    ]
    if plan["gpu_hours"] is not None:
        price = "" if plan["cost"] is None else f", which cost {plan['cost']:,.2f}"
        lead.append(
            f"{plan['gpu_hours']:,.1f} GPU hours{price}; the GPUs compute {share(plan['gpu_busy_share'])} of the time."
        )
    phases = [
        [
            phase["phase"],
            span(phase["seconds"]),
            share(phase["seconds"] / plan["seconds"]),
            phase["limited_by"],
            ", ".join(f"{name} {span(seconds)}" for name, seconds in phase["alone"].items()),
        ]
        for phase in plan["phases"]
    ]
    lead += [f"Warning: {each}." for each in plan["warnings"]]
    assumed = [
        [each["assumption"], "" if each["value"] is None else figure(each["value"], each["unit"]), each["source"]]
        for each in plan["assumptions"]
    ]
    run = f"{measured['engine']} in {measured['precision']} on {measured['device']}, {measured['processor']}"
    return Section(
        name="plan",
        title="Plan",
        lead=[
            *lead,
            f"Rates: {measured['report']}, {measured['users']:,} users in {span(measured['seconds'])}; {run}.",
        ],
        tables=[
            Table(
                title="Phases",
                columns=["phase", "time", "of the job", "waits for", "what each resource alone would take"],
                rows=phases,
            ),
            Table(title="Assumptions", columns=["what", "value", "from"], rows=assumed),
        ],
    )
