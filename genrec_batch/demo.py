"""The demo: the real job over the sample log, and what came out.

Owns: which files it reads and writes, and what it shows. Must not know: how anything is computed.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import polars as pl

from genrec_batch import model, pipeline, sampling, show
from genrec_batch.config import ScoreConfig
from genrec_batch.console import LOG, stdout
from genrec_batch.errors import ConfigError
from genrec_batch.job import catalog_of

SAMPLE = Path(__file__).parent.parent / "sample_data" / "events.parquet"  # beside the package in a checkout

MARK = ".genrec-batch-demo"  # in a folder that the demo made and may make anew


def run(folder: Path, users: int) -> dict[str, Any]:
    """Score the sample log, or a generated one where there is none, into `folder` and show the top of the result.

    Returns: the run's summary.

    Raises:
        ConfigError: the folder holds something that the demo did not make.
    """
    if folder.exists() and any(folder.iterdir()) and not (folder / MARK).exists():
        raise ConfigError(f"--folder {folder}: not empty and not made by the demo; name another")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MARK).touch()
    log = SAMPLE
    if not log.is_file():
        log = folder / "events.parquet"
        log.unlink(missing_ok=True)
        sampling.write(sampling.SampleConfig(users=users, events_per_user=25, seed=7), log)
        LOG.info("no sample log beside the package, so one of %s users was generated", f"{users:,}")
    directory = folder / "model"
    shutil.rmtree(directory, ignore_errors=True)
    config = model.PRESETS["reference"]
    model.save(directory, config, model.initial_weights(config, model.DEMO_SEED), trained=False, card="A demo model.\n")
    catalog_of(str(log), None, config.vocabulary).write(directory / "catalog.parquet")
    output = folder / "recs.parquet"
    command = f"genrec-batch score {log} {output} --model {directory} --if-exists overwrite"
    stdout.print(f"$ {command}", markup=False, highlight=False, soft_wrap=True)
    summary = pipeline.score(ScoreConfig(model=str(directory), if_exists="overwrite"), str(log), str(output))
    rows = pl.read_parquet(output)
    first = rows["user_id"].unique(maintain_order=True).head(2)
    show.recommendations(rows.filter(pl.col("user_id").is_in(first.implode())).to_arrow(), "long")
    show.summary(summary)
    stdout.print(
        f"The rows are in {output}, the model in {directory}. Next: the same command with your own log.", soft_wrap=True
    )
    return summary
