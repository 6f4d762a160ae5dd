"""How much of a log a model's catalog covers.

Owns: that share. Must not know: what it is compared with. In: options, a log, a catalog. Out: a number from 0 to 1.
"""

from __future__ import annotations

import numpy as np

from genrec_batch.core.arrays import FIRST_ITEM
from genrec_batch.core.errors import InputError
from genrec_batch.core.options import HistoryConfig
from genrec_batch.events.log import EventLog
from genrec_batch.events.survey import check_rejects, survey
from genrec_batch.io import read
from genrec_batch.model.catalog import Catalog
from genrec_batch.runtime import console, threads


def share_of_events(config: HistoryConfig, source: str, catalog: Catalog, flag: str) -> float:
    """Return the share of a log's usable events whose video is in a catalog.

    Raises:
        InputError: the log cannot be read, or has no usable event.
        GateError: too many of its rows are rejected.
        ModelError: the ids of the catalog can never be those of the log.
    """
    where = f"{flag} {source}"
    opened = read.scan(source, flag)
    log = EventLog.of(opened, config.schema, where).since(config.since, config.as_of_us())
    with console.busy("counting the videos of the log"):
        found = survey(log, config.as_of_us(), threads.cores())
    check_rejects(found, config.max_rejects, where)
    counts_V = found.videos["count"].to_numpy().astype(np.int64)
    if not counts_V.sum():
        raise InputError(f"{where}: no usable event, so nothing to measure the coverage of")
    catalog.check_type(found.videos.schema["video_id"], where)
    known_V = catalog.tokens(found.videos["video_id"]).to_numpy() >= FIRST_ITEM
    return float(counts_V[known_V].sum() / counts_V.sum())
