"""What the summary of a run says of its data set: counts of rows, users and videos, and how they were read.

Owns: the names of these counts, and the warning of rejected rows. Must not know: how anything was read.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping

from genrec_batch.events import plausible
from genrec_batch.events.log import EventLog
from genrec_batch.events.rejects import facts_of, warn_of
from genrec_batch.events.survey import Survey
from genrec_batch.events.user_histories import UserHistories
from genrec_batch.model.catalog import Catalog


def facts_of_run(
    log: EventLog,
    found: Survey,
    users: UserHistories,
    catalog: Catalog,
    of_tables: Mapping[str, Mapping[str, int]],
) -> dict[str, object]:
    """Return the counts of the summary, and warn of rejected rows."""
    store, events_N = users.store, users.users.events_N
    rejected = sum(found.rejects.values())
    filtered = found.rows - found.usable - rejected
    warn_of(found.rejects, found.rows)
    as_of = dt.datetime(1970, 1, 1, tzinfo=dt.timezone.utc) + dt.timedelta(microseconds=found.as_of_us)
    odd = plausible.counts(store.reader.looks)
    return {
        "input_rows": found.rows,
        "events": found.usable,
        **facts_of(found.rejects, of_tables),
        **({"filtered_rows": filtered} if filtered > 0 and not log.contract.explode else {}),
        **({"odd_values": odd} if odd else {}),
        "ignored_columns": list(log.contract.reading.ignored),
        **({"absent_columns": dict(log.contract.reading.absent)} if log.contract.reading.absent else {}),
        "timestamps": log.contract.reading.time_unit,
        "time_ordered": found.by_time,
        "partitioned": store.way,
        "buckets": len(store.buckets),
        "spilled_mib": round(store.spilled_bytes / 2**20, 1),
        "as_of": as_of.replace(tzinfo=None).isoformat() + "Z",
        "users": len(users),
        "users_without_events": int((events_N == 0).sum()),
        "kept_events": int(users.lengths_N.sum()),
        "catalog_videos": len(catalog),
        "videos_beyond_vocabulary": catalog.unknown_videos,
    }
