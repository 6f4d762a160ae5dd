"""The rows of a test: each a user with a history, and what that user did next.

Owns: which users are tested and at which moment, their histories, targets and exposures. Must not know: engines,
rankings, metrics. In: a whole log and the options. Out: `Rows`.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from genrec_batch.core.arrays import FIRST_ITEM, I32, I64, U8, Histories, Ragged
from genrec_batch.core.errors import InputError
from genrec_batch.evaluation import targets
from genrec_batch.evaluation.baselines import Past
from genrec_batch.evaluation.targets import Targets
from genrec_batch.events import splits
from genrec_batch.events.splits import Cuts

MOST_EXPOSURES = 100  # of a row by which heads are judged: its first ones


@dataclass(frozen=True, kw_only=True)
class Rows:
    """M rows in id order of their users."""

    cuts: Cuts
    histories: Histories  # as `score` builds them at each cut
    later: Ragged  # tokens of the events after each cut
    code_E: I32  # of each of those events: equal exactly where the video is
    place_E: I64  # of each of those events in the whole log's arrays
    past: Past  # what baselines read

    def __len__(self) -> int:
        return len(self.cuts)

    def take(self, rows_B: I64) -> Rows:
        """Return some rows; what baselines read stays that of the whole log."""
        picked, _ = splits.places(self.later.offsets_N1[rows_B], self.later.lengths_N[rows_B])
        return Rows(
            cuts=self.cuts.take(rows_B),
            histories=self.histories.take(rows_B),
            later=self.later.take(rows_B),
            code_E=self.code_E[picked],
            place_E=self.place_E[picked],
            past=replace(
                self.past,
                rows_M=self.past.rows_M[rows_B],
                seen=None if self.past.seen is None else self.past.seen.take(rows_B),
            ),
        )

    def targets(self, horizon: int) -> Targets:
        """Return the distinct videos of each row's next events."""
        return targets.next_videos(self.later, self.code_E, horizon)

    def first_M(self) -> I32:
        """Return the token of each row's next video."""
        return self.later.values[self.later.offsets_N1[:-1]]

    def groups(self) -> Mapping[str, U8]:
        """Return the rows that are reported apart."""
        cold_M, seen = self.histories.cold_start_N(), self.histories.seen
        return targets.groups(self.first_M(), cold_M=cold_M, seen=seen, views_V=self.past.views_V)

    def exposures(self) -> tuple[Ragged, I64]:
        """Return the tokens of each row's first events after the cut, and their places in the whole log's arrays."""
        lengths_M = np.minimum(self.later.lengths_N, MOST_EXPOSURES)
        place, _ = splits.places(self.later.offsets_N1[:-1], lengths_M)
        offsets_M1 = np.concatenate([[0], np.cumsum(lengths_M)])
        return Ragged(offsets_N1=offsets_M1, values=self.later.values[place]), self.place_E[place]


def at_moment(whole: Histories, moment_us: int, flag: str, where: str) -> Cuts:
    """Cut every user who has events from a moment on at that moment; the log may have no earlier event.

    Raises:
        InputError: the log has no event from the moment on; `flag` names what gave it.
    """
    if int(whole.time_us_E.min(initial=moment_us)) < moment_us <= int(whole.time_us_E.max(initial=0)):
        return splits.from_moment(whole, moment_us, flag)
    if not len(whole.time_us_E) or int(whole.time_us_E.max()) < moment_us:
        raise InputError(f"{where}: no event to test on: none is later than {moment_text(moment_us)} ({flag})")
    user_N = np.flatnonzero(whole.lengths_N)
    return Cuts(
        user_N=user_N,
        place_N=whole.offsets_N1[user_N],
        stop_N=whole.offsets_N1[user_N + 1],
        as_of_us_N=np.full(len(user_N), moment_us - 1),
    )


def rows_of(whole: Histories, cuts: Cuts, *, tokens: int, max_events: int, seen_limit: int, include_seen: bool) -> Rows:
    """Return the rows of some cuts; `tokens` are those of the catalog, with padding and unknown."""
    histories = splits.histories_at(whole, cuts, max_events=max_events, seen_limit=seen_limit)
    lengths_M = cuts.stop_N - cuts.place_N
    place_E, _ = splits.places(cuts.place_N, lengths_M)
    offsets_M1 = np.concatenate([[0], np.cumsum(lengths_M)])
    before = splits.before(whole, cuts)
    one_moment = bool((cuts.as_of_us_N == cuts.as_of_us_N[0]).all())
    return Rows(
        cuts=cuts,
        histories=histories,
        later=Ragged(offsets_N1=offsets_M1, values=whole.tokens_E[place_E]),
        code_E=whole.video_code_E[place_E],
        place_E=place_E,
        past=Past(
            histories=before.token_rows(),
            time_us_E=before.time_us_E if splits.has_real_times(whole) else None,
            until_us=1 + int(cuts.as_of_us_N[0] if one_moment else before.time_us_E.max(initial=0)),
            rows_M=cuts.user_N,
            seen=None if include_seen else histories.seen,
            tokens=tokens,
        ),
    )


def counts(rows: Rows) -> dict[str, int]:
    """Return what there is to say of the rows in numbers."""
    return {
        "rows": len(rows),
        "events": len(rows.code_E),
        "targets_beyond_the_catalog": int((rows.first_M() < FIRST_ITEM).sum()),
        "history_events": len(rows.past.histories.values),
        "history_users": int((rows.past.histories.lengths_N > 0).sum()),
    }


def moment_text(time_us: int) -> str:
    """Return a moment in ISO 8601."""
    moment = dt.datetime(1970, 1, 1, tzinfo=dt.timezone.utc) + dt.timedelta(microseconds=time_us)
    return moment.isoformat().replace("+00:00", "Z")
