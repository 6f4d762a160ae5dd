"""Random sets of all rules together through the whole job: no ineligible row, no repeat, K rows or a reason.

The test marked `slow` draws 1,000 sets, or as many as GENREC_RULE_SETS says: 10,000 take some ten minutes.
"""

from __future__ import annotations

import datetime as dt
import itertools
import math
import os
from collections import Counter
from functools import cached_property

import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from genrec_batch import score
from genrec_batch.core.arrays import HEADS
from genrec_batch.core.errors import GateError, InputError
from tests.conftest import START, small_log
from tests.rule_jobs import AS_OF, Job
from tests.twins import popular
from tests.twins.rules import Rules, why_short

BEYOND = [5001, 5002, 5003, 5004]  # videos of the log that the model does not know
COLD = [300, 301, 302]  # users who know no video of the catalog
NOBODY = 400  # a user of `--users` without an event
NIGHTS = [7, 14]  # days before as-of


def log_of_all():
    """Twelve users of few videos, cold users, and new videos."""
    views = [(user, video, START) for user in COLD for video in BEYOND[: user % 10 + 2]]
    views += [(105, BEYOND[3], START), (106, BEYOND[2], START + dt.timedelta(days=39))]
    types = {"user_id": pl.Int64, "video_id": pl.Int64, "timestamp": pl.Datetime("us", "UTC")}
    return pl.concat([small_log(users=12, videos=30, mean=8), pl.DataFrame(views, types, orient="row")], how="diagonal")


LOG = log_of_all()
SEEN = {user: set(videos) for user, videos in LOG.group_by("user_id").agg("video_id").iter_rows()} | {NOBODY: set()}
USERS = sorted(SEEN)
PLANS = {user: [None, "a", "b"][user % 3] for user in USERS}
random = np.random.default_rng(4)
VIDEOS = pl.DataFrame({"video_id": [*range(1000, 1110), *BEYOND[:3]]}).with_columns(
    creator_id=pl.when(pl.col("video_id") % 13 == 0).then(None).otherwise(pl.col("video_id") % 7),
    category=pl.col("video_id").cast(pl.String).str.slice(-1).replace(["0", "1", "2"], [None, "9", "9"]),
    is_new=pl.col("video_id") % 4 == 0,
    quality=pl.Series(random.normal(size=113)),
    created_at=AS_OF - pl.duration(days=pl.col("video_id") * 7 % 90),
    embedding=pl.Series(random.normal(size=(113, 4)).tolist()),
)
AGE = {video: None if at is None else (AS_OF - at).days for video, at in VIDEOS["video_id", "created_at"].iter_rows()}
OF_COLUMN = {name: dict(VIDEOS.select("video_id", name).iter_rows()) for name in ("creator_id", "category")}


@pytest.fixture(scope="module")
def job(tmp_path_factory, model_dir):
    folder = tmp_path_factory.mktemp("rules")
    job = Job(folder=folder, model_dir=model_dir, log=LOG)
    VIDEOS.write_parquet(folder / "videos.parquet")
    pl.DataFrame({"user_id": USERS, "plan": [PLANS[user] for user in USERS]}).write_parquet(folder / "users.parquet")
    LOG.write_parquet(folder / "events.parquet")
    for night in NIGHTS:
        target = folder / f"night-{night}"
        score(
            folder / "events.parquet", target, model=str(model_dir), engine="torch", precision="fp32",
            as_of=(AS_OF - dt.timedelta(days=night)).isoformat(), top_k=night,
            layout="nested" if night == NIGHTS[0] else "long",
        )  # fmt: skip
        rows = pl.read_parquet(target / "*.parquet").select("user_id", "video_id")
        rows = rows.explode("video_id") if rows.schema["video_id"].is_nested() else rows
        of_users = {user: set(of) for user, of in rows.group_by("user_id").agg("video_id").iter_rows()}
        job.earlier.append((str(target), of_users))
    return job


videos = st.frozensets(st.sampled_from([*range(999, 1120), *BEYOND]), min_size=1, max_size=120)
most = videos.map(lambda few: frozenset([*range(999, 1120), *BEYOND]) - few)
few = st.frozensets(st.sampled_from([*range(1000, 1040), *BEYOND]), min_size=1, max_size=9)
lists = st.dictionaries(st.sampled_from([*USERS, 7]), few, min_size=1, max_size=8)
counting = st.sampled_from([True] * 7 + [False])
promotions = st.lists(
    st.tuples(st.sampled_from([None, None, *USERS]), st.integers(1000, 1100), st.sampled_from([None, 1, 2, 3, 7])),
    min_size=1, max_size=12, unique_by=(lambda row: row[:2]),
)  # fmt: skip


def maybe(strategy):
    return st.none() | strategy


rule_sets = st.fixed_dictionaries(
    {
        "exclude": maybe(st.tuples(videos, counting)),
        "only": maybe(st.tuples(most | videos, counting)),
        "exclude_own": maybe(lists),
        "only_own": maybe(lists),
        "nights": st.sampled_from([(), (0,), (1,), (0, 1)]),
        "again_after": st.sampled_from(["7d", "14d", "30d"]),
        "max_age": maybe(st.integers(5, 90)),
        "caps": maybe(st.dictionaries(st.sampled_from(["creator_id", "category"]), st.integers(1, 4), min_size=1)),
        "diversify": maybe(
            st.sampled_from(["mmr", "mmr=0.7", "mmr=1", "mmr=0", "dpp", "dpp=0.5", "dpp=0.01", "dpp=1"])
        ),
        "diversify_by": maybe(st.sampled_from(["category", "creator_id,category"])),
        "boost": maybe(st.sampled_from(["is_new=0.5", "quality=-3", "is_new=1000000,quality=0.1"])),
        "promote": maybe(promotions),
        "promote_share": st.sampled_from([0.0, 0.2, 0.5, 1.0]),
        "explore": st.sampled_from([0.0, 0.3, 1.0]),
        "fallback": st.sampled_from([None, "popular", "popular:10d", "popular:by=plan", "popular:20d:by=plan"]),
        "scored": st.sampled_from(["auto", "slate", "candidates", "given"]),
        "pool": st.integers(0, 30),
        "include_seen": st.booleans(),
        "top_k": st.integers(1, 9),
    }
)


class Drawn:
    """A set of rules as it was drawn: options of the job, and plain facts to compare its lists with."""

    def __init__(self, job, drawn):
        self.job, self.drawn, self.top_k = job, drawn, drawn["top_k"]
        self.given = None
        if drawn["scored"] == "given":
            self.given = {user: [1000 + (user * 7 + at * 3) % 60 for at in range(user % 5 * 5 + 1)] for user in USERS}

    def options(self):
        drawn, job = self.drawn, self.job
        options = {name: drawn[name] for name in ("again_after", "boost", "explore", "include_seen", "top_k")}
        options |= {"users": str(job.folder / "users.parquet"), "videos": str(job.folder / "videos.parquet")}
        for flag in ("exclude", "only"):
            tables = [job.listed(*drawn[flag])] if drawn[flag] else []
            options[flag] = (*tables, *([job.own(drawn[f"{flag}_own"])] if drawn[f"{flag}_own"] else []))
        options["exclude_recommended"] = tuple(job.earlier[n][0] for n in drawn["nights"])
        options["max_age"] = None if drawn["max_age"] is None else f"{drawn['max_age']}d"
        options["max_per"] = None if drawn["caps"] is None else ",".join(f"{n}={c}" for n, c in drawn["caps"].items())
        if drawn["diversify"] is not None:
            options |= {name: drawn[name] for name in ("diversify", "diversify_by")}
        if drawn["promote"] is not None:
            options |= {"promote": job.promotions(self.promoted()), "promote_share": drawn["promote_share"]}
        if drawn["scored"] == "given":
            return options | {"candidates": job.given(self.given)}
        options |= {"fallback": drawn["fallback"], "decode": drawn["scored"]}
        composes = any(drawn[name] for name in ("caps", "diversify", "boost", "promote", "explore"))
        more = max(drawn["pool"], 1 if drawn["explore"] else 0)
        if drawn["scored"] == "slate" and composes:
            return options | {"pool": self.top_k + more}
        return options | {"num_candidates": self.top_k + 4 * more}

    def promoted(self):
        """Return the promoted rows, of all users or of each, in each list no place twice."""
        about_all = self.drawn["promote"][0][0] is None
        rows = [row for row in self.drawn["promote"] if (row[0] is None) == about_all]
        taken, kept = set(), []
        for user, video, rank in rows:
            free = rank is not None and rank <= self.top_k and (user, rank) not in taken
            taken.add((user, rank))
            kept.append((user, video, rank if free else None))
        return kept

    @cached_property
    def rules(self):
        drawn = self.drawn
        counting = [n for n in drawn["nights"] if NIGHTS[n] <= int(drawn["again_after"][:-1])]
        age = drawn["max_age"]
        return Rules(
            exclude=(drawn["exclude"][0],) if drawn["exclude"] and drawn["exclude"][1] else (),
            only=(drawn["only"][0],) if drawn["only"] else (),
            exclude_own=(drawn["exclude_own"],) if drawn["exclude_own"] else (),
            only_own=(drawn["only_own"],) if drawn["only_own"] else (),
            recommended=tuple(self.job.earlier[n][1] for n in counting),
            fresh=None if age is None else {video for video, days in AGE.items() if days is not None and days <= age},
        )

    def error(self):
        """Return the error that a run must end with, None for lists."""
        drawn, known = self.drawn, self.job.catalog
        if drawn["only"] is not None and not drawn["only"][1]:
            return InputError
        if drawn["promote"] is not None and not any(video in known for _, video, _ in self.promoted()):
            return InputError
        for_all = Rules(exclude=self.rules.exclude, only=self.rules.only, fresh=self.rules.fresh)
        return None if for_all.eligible(0, known | {*(self.viewed(USERS[0]) if self.fills else ())}) else GateError

    @property
    def fills(self):
        return self.drawn["fallback"] is not None and self.given is None

    def viewed(self, user):
        """Return the videos that the fallback has for a user, the most viewed of the user's plan first."""
        parts = self.drawn["fallback"].split(":")
        window = LOG
        if len(parts) > 1 and parts[1].endswith("d"):
            window = LOG.filter(pl.col("timestamp") > AS_OF - dt.timedelta(days=int(parts[1][:-1])))
        same = [other for other in USERS if PLANS[other] == PLANS[user]] if PLANS[user] else []
        groups = [window.filter(pl.col("user_id").is_in(same))] if "by=plan" in parts else []
        return [video for views in (*groups, window) for video in popular.ranked(views["video_id"])]

    def within_caps(self, listed):
        for name, cap in (self.drawn["caps"] or {}).items():
            counts = Counter(OF_COLUMN[name].get(video) for video in listed)
            if any(count > cap for value, count in counts.items() if value is not None):
                return False
        return True

    def check(self, user, rows, why):
        """Compare a user's list with what the rules say."""
        drawn, listed = self.drawn, [row["video_id"] for row in rows]
        seen = set() if drawn["include_seen"] else SEEN[user]
        known = self.job.catalog if self.given is None else self.job.catalog & set(self.given[user])
        promoted = {video for to, video, _ in self.promoted() if to in (None, user)} if drawn["promote"] else set()
        viewed = self.viewed(user) if self.fills else []
        eligible = self.rules.eligible(user, known | set(viewed) | (promoted & self.job.catalog))
        assert set(listed) <= eligible - seen, "no ineligible row"
        assert len(set(listed)) == len(listed) <= self.top_k, "no repeat"
        assert self.within_caps(listed), "caps hold"
        self.check_rows(rows, promoted, viewed)
        others = (eligible - seen - set(listed)) & {*known, *viewed}
        left = {video for video in others if self.within_caps([*listed, video])}
        if len(listed) < self.top_k:
            assert not left & set(viewed), "a popular video would fit"
            assert why is not None, "K rows or a reason"
            narrow = drawn["caps"] is not None
            assert not left or narrow, "all that there are"
            if self.given is None:
                of_model = self.rules.eligible(user, known)
                assert why == (why_short(of_model, seen, self.top_k) or "caps")
            assert why != "caps" or narrow
        else:
            assert why is None

    def check_rows(self, rows, promoted, viewed):
        scores = [row["score"] for row in rows if row.get("source", "model") == "model"]
        assert all(a >= b for a, b in itertools.pairwise(scores)), "score never rises"
        assert all(map(math.isfinite, scores))
        for row in rows:
            source = row.get("source", "model")
            assert row.get("propensity", 1) == 1 or source in ("model", "explored")
            assert 0 < row.get("propensity", 1) <= 1
            assert (row["score"] is None) == (source != "model")
            assert source != "promoted" or row["video_id"] in promoted
            assert source != "popular" or row["video_id"] in viewed
            numbers = [row["log_prob"], *(row[head] for head in HEADS)]
            assert source in ("promoted", "popular") or all(map(math.isfinite, numbers))


def holds(job, drawn):
    """Run a set of rules, and compare every user's list with what the rules say."""
    them = Drawn(job, drawn)
    options, error = job.options(**them.options()), them.error()
    if error is not None:
        with pytest.raises(error):
            job.part(options)
        return
    rows, why, counts = job.part(options)
    assert set(why) == set(USERS)
    for user in USERS:
        them.check(user, rows.get(user, []), why[user])
    if them.given is None:
        assert counts["short_users"] == sum(reason is not None for reason in why.values())


SETS = int(os.environ.get("GENREC_RULE_SETS", "1000"))
fixed = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]


@settings(max_examples=200, deadline=None, suppress_health_check=fixed)
@given(drawn=rule_sets)
def test_lists_obey_any_set_of_rules(job, drawn):
    holds(job, drawn)


@pytest.mark.slow
@settings(max_examples=SETS, deadline=None, suppress_health_check=fixed)
@given(drawn=rule_sets)
def test_lists_obey_many_sets_of_rules(job, drawn):
    holds(job, drawn)
