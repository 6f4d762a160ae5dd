"""The commands: options in, exit code out.

Owns: the commands with their arguments. Must not know: how anything is computed. Heavy modules are imported inside
commands, so that `--help` is quick.
"""

from __future__ import annotations

import dataclasses
import json
import os
import time
from pathlib import Path
from typing import Annotated, cast

import typer

from genrec_batch import __version__
from genrec_batch.cli import evaluate, export, look, option_file, plan, train
from genrec_batch.cli import registry as registry_commands
from genrec_batch.cli.exits import done, fail
from genrec_batch.cli.flags import OPTION_FILE, located, options
from genrec_batch.cli.model import model_app
from genrec_batch.cli.usage import Commands
from genrec_batch.core.errors import ConfigError, GenrecError, nearest
from genrec_batch.core.options import HistoryConfig, LogConfig
from genrec_batch.core.verify_options import VerifyConfig
from genrec_batch.evaluation.options import EvaluateConfig
from genrec_batch.evaluation.promote_options import PromoteConfig
from genrec_batch.io.durable import check_local
from genrec_batch.model import registry
from genrec_batch.reports.options import ProfileConfig, RunConfig
from genrec_batch.runtime import aborts, console, signals
from genrec_batch.runtime.malloc import keep_freed_memory
from genrec_batch.runtime.threads import take_short_turns
from genrec_batch.training.options import TrainConfig

app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"auto_envvar_prefix": "GENREC_BATCH"},
    help="Score a whole app's users overnight: a Parquet log of views in, ranked videos with four task scores out.",
    epilog="Every option has an environment twin (its help names it) and may be set in genrec-batch.toml. "
    "Exit codes: 0 done, 1 a fault of genrec-batch, 2 usage, 3 input, 4 model, 5 engine, 6 gate, 75 try again, "
    "99 nothing to score, 129 terminal went away, 130 interrupted, 143 terminated (the same command resumes after "
    "these three), 141 the pipe that read stdout was closed.",
)
app.add_typer(model_app, name="model", rich_help_panel="Model")

INPUT = Annotated[str, typer.Argument(metavar="INPUT", help="Parquet log: a file, a glob, a directory or a URI.")]
CONFIG_FILE = "genrec-batch.toml"
MAIN: dict[str, set[str]] = {
    **{
        name: {field.name for field in dataclasses.fields(kind)}
        for name, kind in (
            ("score", RunConfig),
            ("features", HistoryConfig),
            ("verify", VerifyConfig),
            ("profile", ProfileConfig),
            ("evaluate", EvaluateConfig),
            ("train", TrainConfig),
        )
    },
    **{f"model {name}": {"registry"} for name in ("register", "list", "rollback", "follow", "info", "build")},
    "model promote": {f.name for f in dataclasses.fields(PromoteConfig) if hasattr(RunConfig, f.name)},
}
"""The commands that entries at the top of the option file are for, each with the options that it takes from there."""


def _version(wanted: bool) -> None:
    if wanted:
        console.stdout.print(f"genrec-batch {__version__}", highlight=False)
        raise typer.Exit


@app.callback()
def root(
    context: typer.Context,
    config_file: Annotated[
        str | None,
        typer.Option(
            "--config", envvar="GENREC_BATCH_CONFIG", help=f"Option file; default: ./{CONFIG_FILE} if it exists."
        ),
    ] = None,
    version: Annotated[  # noqa: ARG001 (its callback prints)
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Read the option file: entries at the top are for score, features, verify and profile; [sample] is for sample."""
    path = Path(config_file or CONFIG_FILE)
    if config_file is None and not path.is_file():
        return
    context.meta[OPTION_FILE] = str(path)
    try:
        check_local(path, "--config", reads=True)
        context.default_map = option_file.read(path, context.command, MAIN)
    except GenrecError as error:
        fail(located(context, error))


def _whole(output: str | None) -> str:
    """Return how the message of a failure after a run ends."""
    whole = f": the output {output} is whole, and --if-exists resume accepts it" if output else ""
    return f"the run itself is done{whole}"


@app.command(rich_help_panel="Score")
@options(RunConfig)
def score(
    input: INPUT,  # noqa: A002 (the argument's name is its help)
    output: Annotated[
        str | None,
        typer.Argument(
            metavar="OUTPUT",
            help="A .parquet file, else a directory of parts, by path or URI (s3://, gs://, az://), or a table, see "
            "--output-format; may be omitted with --user.",
        ),
    ] = None,
    *,
    options: RunConfig,
) -> None:
    """Score every user of a log: histories, features, generative decoding, ranked rows.

    Example: genrec-batch score events.parquet recs.parquet --model model/ --top-k 20
    """
    from genrec_batch.reports import tables
    from genrec_batch.runtime.clock import Stages
    from genrec_batch.scoring import pipeline

    if options.explain:
        look.explain(options, input, output)
        return
    if output is None and not options.user:
        raise ConfigError("OUTPUT is missing; it may be omitted only with --user, which prints the result")
    look.check_paths(options)
    signals.end_with_output()
    stages = Stages()
    if output is None:
        summary = pipeline.score(options, input, None, stages)
        tables.recommendations(summary.pop("rows"), options.layout)
    else:
        summary = pipeline.score(options, input, output, stages)
    with done(_whole(output)):
        if output is not None and options.user:
            tables.written(output, options.layout)
        if not options.quiet and options.log_format == "text":
            tables.summary(summary)
        console.last_line(summary)
        look.write_reports(options, stages, summary)


@app.command(rich_help_panel="Score")
@options(HistoryConfig)
def features(
    input: INPUT,  # noqa: A002
    output: Annotated[
        str,
        typer.Argument(
            metavar="OUTPUT", help="A .parquet file, else a directory of parts, by path or URI (s3://, gs://, az://)."
        ),
    ],
    *,
    options: HistoryConfig,
) -> None:
    """Write what the model would read: user_id, 1024 features, tokens (newest last), history_length.

    Example: genrec-batch features events.parquet features.parquet
    """
    from genrec_batch.reports import tables
    from genrec_batch.scoring.write_features import write_features

    signals.end_with_output()
    summary = write_features(options, input, output)
    with done(_whole(output)):
        if not options.quiet and options.log_format == "text":
            tables.summary(summary)
        console.last_line(summary)


for each in (
    registry_commands.register,
    registry_commands.promote,
    registry_commands.rollback,
    registry_commands.follow,
):
    model_app.command()(each)
model_app.command("list")(registry_commands.list_)
app.command(rich_help_panel="Model")(train.train)
app.command(rich_help_panel="Look")(evaluate.evaluate)
app.command(rich_help_panel="Look")(look.profile)
app.command(rich_help_panel="Look")(look.inspect)
app.command(rich_help_panel="Look")(plan.plan)
app.command(rich_help_panel="Score")(export.export)


@app.command(rich_help_panel="Look")
@options(VerifyConfig)
def verify(input: INPUT, *, options: VerifyConfig) -> None:  # noqa: A002
    """Compare an engine or precision with another over the same users, with gates (exit code 6).

    Example: genrec-batch verify events.parquet --model model/ --engine torch --precision bf16 --min-topk-overlap 0.98
    """
    from genrec_batch.evaluation import precisions
    from genrec_batch.reports import evaluation_page, tables, terminal
    from genrec_batch.scoring.verify import verified

    options = dataclasses.replace(options, model=registry.pinned(options.model, options.registry))  # for both steps
    report, found = verified(options, input)
    gates = {name: getattr(options, name) for name in ("min_topk_overlap", "min_top1", "max_difference")}
    if options.evaluate:
        report["quality"] = precisions.quality(options, input)
    if not options.quiet and options.log_format == "text":
        tables.parity(report)
        if options.evaluate:
            terminal.show([evaluation_page.quality_lost(report["quality"])])
    try:
        found.check(**gates)
        if options.evaluate:
            precisions.check(report["quality"], options.max_quality_loss)
    except GenrecError:
        console.last_line({**report, "status": "failed", **gates})
        raise
    console.last_line({**report, **gates})


@app.command(rich_help_panel="Try")
@options(LogConfig)
def demo(
    folder: Annotated[Path, typer.Option(help="Folder for the files of the demo.")] = Path("demo_output"),
    users: Annotated[int, typer.Option(help="Users of the generated log if there is no sample log.")] = 500,
) -> None:
    """Show the main features in under a minute: one user, the whole sample log, the engines' speed, an export.

    Example: genrec-batch demo
    """
    from genrec_batch.demo.demo import run

    check_local(folder, "--folder")
    console.last_line(run(folder, users))


@app.command(rich_help_panel="Try")
@options(LogConfig)
def sample(
    output: Annotated[Path, typer.Argument(metavar="OUTPUT", help="A .parquet file, else a directory of parts.")],
    *,
    users: Annotated[int, typer.Option(help="Users of the log.")] = 500,
    events_per_user: Annotated[float, typer.Option(help="Mean events of a user.")] = 25.0,
    seed: Annotated[int, typer.Option(help="Same seed, same log.")] = 7,
    dirt: Annotated[float, typer.Option(help="Share of rows with what real logs have: nulls, ties, duplicates.")] = 0.0,
    order: Annotated[
        str, typer.Option(help="Order of the rows: time, user (clustered, by user_id) or shuffled.")
    ] = "time",
    videos: Annotated[int, typer.Option(help="Videos on the app.")] = 20_000,
    days: Annotated[int, typer.Option(help="Length of the log.")] = 28,
    if_exists: Annotated[str, typer.Option(help="What to do if OUTPUT exists: error or overwrite.")] = "error",
) -> None:
    """Write a synthetic log in the events contract, of any size, in memory that does not grow with it.

    Views and videos are skewed as on a real app, and each user has a taste that a model can learn. The same options
    give the same bytes on any machine; --order alone keeps the rows and changes their places.

    Example: genrec-batch sample log/ --users 100000 --events-per-user 50 --seed 7
    """
    from genrec_batch.demo import synthetic

    if if_exists not in {"error", "overwrite"}:
        raise ConfigError(
            f"--if-exists {if_exists!r} is not one of error, overwrite.{nearest(if_exists, ['error', 'overwrite'])}"
        )
    wanted = synthetic.SampleConfig(
        users=users,
        events_per_user=events_per_user,
        seed=seed,
        videos=videos,
        dirt=dirt,
        days=days,
        order=cast("synthetic.Order", order),  # SampleConfig checks it
    )
    began = time.perf_counter()
    with console.progress("sample", round(users * events_per_user), "rows") as advance:
        made = synthetic.write(wanted, output, overwrite=if_exists == "overwrite", advance=advance)
    with done(f"the log {output} is whole"):
        console.last_line(made | {"seconds": round(time.perf_counter() - began, 3)})


@app.command(rich_help_panel="Look")
@options(LogConfig)
def layout(
    *,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON array.")] = False,
) -> None:
    """Print the name of each of the 1024 feature slots.

    Example: genrec-batch layout --json
    """
    from genrec_batch.core.layout import describe

    if as_json:
        rows = [{"slot": slot, "block": block, "name": name} for slot, block, name in describe()]
        console.line(json.dumps(rows))
        return
    console.line("\n".join(f"{slot:4d}  {block:24s}  {name}" for slot, block, name in describe()))


def main() -> None:
    """Run the command line."""
    console.accept_any_text()
    keep_freed_memory()
    take_short_turns()
    signals.own_process()
    aborts.end_with_a_code()
    if os.environ.get("NO_COLOR"):
        console.stderr.no_color = console.stdout.no_color = True
    app()
