"""The `model` commands of the registry: register, list, promote, rollback, follow.

Owns: their flags and what they print. Must not know: how a version is stored, how a gate is measured.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from genrec_batch.cli.exits import done
from genrec_batch.cli.flags import options
from genrec_batch.core.errors import ConfigError, GateError
from genrec_batch.core.options import RegistryConfig
from genrec_batch.evaluation.promote_options import ALIAS, PromoteConfig
from genrec_batch.model import registry
from genrec_batch.runtime import console
from genrec_batch.serving.follow_options import FollowConfig
from genrec_batch.stores.bucket import is_uri

NAME = Annotated[str, typer.Argument(metavar="NAME", help="Name of the model in the registry.")]


@options(RegistryConfig)
def register(
    directory: Annotated[str, typer.Argument(metavar="DIR", help="The model directory, by path or URI.")],
    name: NAME,
    *,
    options: RegistryConfig,
) -> None:
    """Copy a model directory into the registry as the next version of a name; the same files keep their version.

    Example: genrec-batch model register model/ ranker --registry /data/registry
    """
    from genrec_batch.model import opening, registering

    root = registry.root_of(options.registry, "model register")
    with console.busy("copying the model"):
        place = opening.directory(directory, "DIR")
        with opening.named_by(directory, place):
            version, new = registering.register(root, name, place, directory if is_uri(directory) else None)
    with done(f"{version.label} is registered"):
        console.LOG.info("%s %s: %s", version.label, "is new" if new else "holds these files already", version.path)
        facts = {"name": version.name, "version": version.number, "new": new, "path": str(version.path)}
        console.last_line({"status": "ok", "command": "model register", **facts})


@options(RegistryConfig)
def list_(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="Only the versions of this name.")] = None,
    *,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    check: Annotated[
        bool, typer.Option("--check", help="Compare the sha256 of every file; exit code 6 where something was changed.")
    ] = False,
    options: RegistryConfig,
) -> None:
    """List the versions in the registry: which are live, since when they are there, what validation measured.

    Without --check the files of the models are not read, only what was recorded of them.

    Example: genrec-batch model list --registry /data/registry
    """
    from genrec_batch.reports import registry_facts

    root = registry.root_of(options.registry, "model list")
    facts = registry_facts.listed(root, name, check=check)
    if as_json:
        console.last_line(facts)
    else:
        registry_facts.show(facts)
    faults = registry_facts.faults(facts)
    if check and faults:
        raise GateError("\n  ".join(faults))


@options(PromoteConfig)
def promote(
    version: Annotated[
        str, typer.Argument(metavar="NAME@N", help="The version to make live, such as ranker@3, or ranker@challenger.")
    ],
    *,
    options: PromoteConfig,
) -> None:
    """Make a version the champion, if it holds against the gates; a gate that fails is exit code 6 and changes nothing.

    Example: genrec-batch model promote ranker@3 --evaluate events.parquet --gate 'ndcg@10>=0.98*champion'
    """
    from genrec_batch.evaluation import gates
    from genrec_batch.model import registering
    from genrec_batch.reports import promotion, registry_facts

    root = registry.root_of(options.registry, "model promote")
    reference = registry.parse(version, "NAME@N")
    if "@" not in version:
        raise ConfigError(f"NAME@N {version!r}: name the version, such as {reference.name}@3")
    candidate = registry.resolve(root, reference.name, reference.which)
    held = registry.state(root, candidate.name)
    facts = {"command": "model promote", "name": candidate.name, "version": candidate.number, "alias": options.alias}
    why = _nothing_to_do(candidate, held, options)
    if why:
        console.LOG.info("%s; nothing to do", why)
        console.last_line({"status": "ok", **facts, "changed": False, "why": why})
        return
    judged = promotion.judged(options, candidate, held.aliases.get(registry.CHAMPION))
    if not options.quiet and options.log_format == "text":
        registry_facts.show_gates(judged)
    if not all(gate["passed"] for gate in judged):
        console.last_line({"status": "failed", **facts, "changed": False, "gates": judged})
    gates.check(judged, f"{candidate.label} is not promoted")

    def compared(aliases: Mapping[str, int]) -> bool:
        same = all(aliases.get(alias) == held.aliases.get(alias) for alias in (registry.CHAMPION, options.alias))
        return same or not (judged or options.only_new)

    before = registering.promote(candidate, root, alias=options.alias, compared=compared, gates=judged)
    _tell({**facts, "before": before, "changed": True, "gates": judged})


@options(RegistryConfig)
def rollback(
    name: NAME,
    *,
    alias: Annotated[str, typer.Option(help=ALIAS)] = registry.CHAMPION,
    options: RegistryConfig,
) -> None:
    """Make the version live again that was live before the last promotion.

    Example: genrec-batch model rollback ranker --registry /data/registry
    """
    from genrec_batch.model import registering

    root = registry.root_of(options.registry, "model rollback")
    reference = registry.parse(f"{name}@{alias}", "NAME")
    version, before = registering.rollback(root, reference.name, alias=alias)
    facts = {"command": "model rollback", "name": version.name, "version": version.number, "alias": alias}
    _tell({**facts, "before": before, "changed": True})


@options(FollowConfig)
def follow(
    reference: Annotated[
        str | None,
        typer.Argument(
            metavar="[NAME]",
            help="What is followed, such as ranker, which is ranker@champion; omit it for the models of --arm.",
        ),
    ] = None,
    *,
    options: FollowConfig,
) -> None:
    """Keep a running Triton server at what an alias of the registry means, without a stop; runs until it is ended.

    Example: genrec-batch model follow ranker --registry /data/registry --out repository/ --triton http://127.0.0.1:8000
    """
    from genrec_batch.serving.follow import Follower

    follower = Follower.of(options, reference)
    if options.once:
        console.last_line({"status": "ok", "command": "model follow", **follower.look()})
        return
    console.LOG.info("following %s every %g s", reference or ", ".join(options.arm), options.every)
    follower.run()


def _nothing_to_do(candidate: registry.Version, held: registry.State, options: PromoteConfig) -> str:
    """Return why a version is not promoted at all, "" where it may be."""
    if held.aliases.get(options.alias) == candidate.number:
        return f"{candidate.label} is the {options.alias} already"
    newest = max((int(entry["version"]) for entry in held.history if entry["alias"] == options.alias), default=0)
    if options.only_new and candidate.number <= newest:
        return f"{candidate.name}@{newest} was the {options.alias} before"
    return ""


def _tell(facts: Mapping[str, Any]) -> None:
    """Print what is live now, on stderr for a person and on stdout for a job."""
    before = f"instead of {facts['name']}@{facts['before']}" if facts["before"] else "the first one"
    with done(f"{facts['name']}@{facts['version']} is the {facts['alias']}"):
        console.LOG.info("%s@%d is the %s, %s", facts["name"], facts["version"], facts["alias"], before)
        console.last_line({"status": "ok", **facts})
