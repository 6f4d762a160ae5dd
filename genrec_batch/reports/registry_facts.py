"""What is in a registry, and how gates went, for people and for jobs.

Owns: the facts of `model list`, and the tables on a terminal. Must not know: how a version is stored or judged.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from genrec_batch.core.errors import ModelError, nearest
from genrec_batch.core.text import harmless
from genrec_batch.model import registry
from genrec_batch.model.registry_files import Root, is_folder
from genrec_batch.runtime import console


def listed(root: Root, name: str | None, *, check: bool = False) -> dict[str, Any]:
    """Return the versions of one name or of all, each with its aliases, and the aliases' history; newest version first.

    A version whose record is damaged has `"record_whole": false` and no more. `files_whole` is whether its files are
    those of the record; None where they were not read, which only `check` does. `fault` says what is wrong.

    Raises:
        ModelError: there is no such registry or name, or its state is damaged.
    """
    names = registry.names(root)
    if not is_folder(root):
        raise ModelError(f"--registry {root}: no such directory; `genrec-batch model register DIR NAME` makes it")
    if name is not None and name not in names:
        there = nearest(name, names) or f" There is {', '.join(names) or 'no model in it'}"
        raise ModelError(f"--registry {root}: there is no model {name!r}.{there}")
    chosen = names if name is None else [name]
    return {"registry": str(root), "models": {each: _model(root, each, check=check) for each in chosen}}


def faults(facts: Mapping[str, Any]) -> list[str]:
    """Return what is wrong with the versions that `listed` found."""
    every = [version for model in facts["models"].values() for version in model["versions"]]
    return [version["fault"] for version in every if "fault" in version]


def _model(root: Root, name: str, *, check: bool) -> dict[str, Any]:
    state, made = registry.state(root, name), []
    for number in reversed(registry.numbers(root, name)):
        live = sorted(alias for alias, of in state.aliases.items() if of == number)
        made.append({"version": number, "aliases": live, **_version(root, name, number, check=check)})
    return {"aliases": dict(state.aliases), "versions": made, "history": [dict(each) for each in state.history]}


def _version(root: Root, name: str, number: int, *, check: bool) -> dict[str, Any]:
    try:
        version = registry.version(root, name, number)
    except ModelError as error:
        return {"record_whole": False, "files_whole": None, "fault": str(error)}
    found: dict[str, Any] = {"record_whole": True, "files_whole": None}
    if check:
        try:
            registry.check(version)
            found["files_whole"] = True
        except ModelError as error:
            found |= {"files_whole": False, "fault": str(error)}
    left_out = ("format", "name", "files", "sha256")
    return found | {key: value for key, value in version.record.items() if key not in left_out}


def show(facts: Mapping[str, Any]) -> None:
    """Print what `listed` found on stdout."""
    table = Table(title=f"registry {facts['registry']}")
    for column in ("version", "live as", "registered", "on", "size", "videos", "validation"):
        table.add_column(column, justify="right" if column in ("size", "videos") else "left")
    for name, model in facts["models"].items():
        for version in model["versions"]:
            table.add_row(*map(harmless, _row(name, version)))
    console.stdout.print(table)


def _row(name: str, version: Mapping[str, Any]) -> list[str]:
    label, live = f"{name}@{version['version']}", ", ".join(version["aliases"])
    if not version["record_whole"]:
        return [label, live, "damaged", "", "", "", ""]
    metrics = ", ".join(f"{metric} {value:.4f}" for metric, value in version["metrics"].items())
    return [
        label,
        live,
        "files changed" if version["files_whole"] is False else version["at"],
        version["host"],
        f"{version['bytes'] / 1e6:.1f} MB",
        f"{version['catalog_videos']:,}",
        metrics or ("none" if version["trained"] else "untrained"),
    ]


def show_gates(judged: Sequence[Mapping[str, Any]]) -> None:
    """Log each gate: what was measured, and whether it holds."""
    for gate in judged:
        measured = "not measured" if gate["measured"] is None else f"{gate['measured']:.5g}"
        verdict = "holds" if gate["passed"] else "FAILS"
        flag, why = gate.get("flag", "--gate"), f" ({gate['why']})" if gate.get("why") else ""
        console.LOG.info("%s: %s %s: %s%s", verdict, flag, gate["gate"], measured, why)
