"""What sessions of a server save in processor time, and what features that are not fresh cost in ranking quality.

    python tests/benchmarks/bench_sessions.py [--preset reference] [--only cost|quality] [--write NAME]

Cost: users with full histories ask again and again, each time with one event more, in one process without Triton, one
at a time and 16 together. Servers without sessions and with features refreshed every 2, 5, 10 and 20 events take
turns, round by round. Processor time of all threads, without reading the answer.

Quality: each user's newest event is hidden, and found or not among the 10 recommended. A session that refreshes every N
events answers with features of 0 to N - 1 events ago; each user is asked at each of these moments, through the same
code. The last line is JSON; `--write` keeps it under a name.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
from pathlib import Path

import numpy as np
import polars as pl

from genrec_batch.model import weights
from genrec_batch.serving import repository
from genrec_batch.serving.arms import Arms
from genrec_batch.serving.options import ExportConfig
from genrec_batch.serving.served import Answer
from tests.benchmarks.bench_serving import EVENTS, requests_of
from tests.logs import catalog_of
from tests.serving.requests import events_of, request

ROOT = Path(__file__).parents[2]
RESULTS = Path(__file__).parent / "results" / "sessions.json"
REFRESH = (1, 2, 5, 10, 20)  # 1: no sessions
TOGETHER = {1: 4, 16: 16}  # users at a time, and users in all
ROUNDS = 20  # so that each user's features are refreshed once at least
CACHE_MB = 512


def opened(model: Path, folder: Path, refresh: int, **options) -> Arms:
    """Return what a server opens; a refresh at every event is a server without sessions."""
    sessions = {} if refresh == 1 else {"session_cache_mb": CACHE_MB, "session_refresh": refresh}
    config = ExportConfig(format="triton", out=str(folder), name=f"every-{refresh}", **sessions, **options)
    return Arms.open(repository.export(model, config))


def newest(events: dict[str, list], count: int, user: int) -> bytes:
    """Return the request of a user after so many events, with the newest of them."""
    return request({name: values[max(0, count - EVENTS) : count] for name, values in events.items()}, user_id=user)


def asked(arms: Arms, contents: list[bytes], together: int) -> list[Answer]:
    """Return the answers to some requests, so many at a time."""
    found = []
    for start in range(0, len(contents), together):
        found += arms.answers(contents[start : start + together])
    assert all(isinstance(each, Answer) for each in found), found
    return found


def cost(folder: Path, preset: str, decode: str) -> dict[str, object]:
    """Return processor milliseconds of an answer by the number of users together and the events between refreshes."""
    config = weights.PRESETS[preset]
    videos = pl.DataFrame({"video_id": np.arange(1000, 1000 + config.vocabulary - 2)})
    catalog_of(videos, vocabulary=config.vocabulary).write(folder / "model" / "catalog.parquet")
    weights.save(folder / "model", config, weights.initial_weights(config, 1), trained=True, card="a benchmark\n")
    servers = {each: opened(folder / "model", folder / "repository", each, decode=decode) for each in REFRESH}
    everybody = [json.loads(each)["events"] for each in requests_of(videos["video_id"].to_list(), 2 * EVENTS)]
    found: dict[str, object] = {}
    for together, number in TOGETHER.items():
        users, used = everybody[:number], dict.fromkeys(REFRESH, 0.0)
        start = EVENTS + max(REFRESH)
        for each, arms in servers.items():  # sessions begin at different events, so that refreshes are spread
            begun = [newest(events, start - user % each, user) for user, events in enumerate(users)]
            asked(arms, begun, together)
        for turn in range(1 + ROUNDS):
            contents = [newest(events, start + 1 + turn, user) for user, events in enumerate(users)]
            for each, arms in servers.items():
                began = time.process_time()
                asked(arms, contents, together)
                if turn:  # the first one warms up
                    used[each] += time.process_time() - began
        found[str(together)] = {str(each): round(1000 * s / ROUNDS / number, 2) for each, s in used.items()}
        print(decode, together, "together", found[str(together)], flush=True)
        for arms in servers.values():
            if arms.sessions is not None:
                arms.sessions.clear()
    return found


def quality(model: Path, log: Path, folder: Path, options: dict[str, str]) -> dict[str, object]:
    """Return HR and NDCG at 10 of each user's newest event by the events between refreshes."""
    rows = pl.read_parquet(log)
    time_of = "timestamp" if "timestamp" in rows.columns else "time_ms"
    columns = {"columns": tuple(rows.columns)} if "schema" in options else {}
    users = events_of(rows.sort(time_of, maintain_order=True), **columns)
    users = {user: events for user, events in users.items() if len(events["video_id"]) > 1 + max(REFRESH)}
    found: dict[str, object] = {"users": len(users)}
    for each in REFRESH:
        arms, ranks = opened(model, folder, each, **options), []
        for ago in range(each):
            if arms.sessions is not None:
                arms.sessions.clear()
            for before in (ago, 0) if ago else (0,):
                contents = [
                    newest(events, len(events["video_id"]) - 1 - before, user) for user, events in users.items()
                ]
                answers = asked(arms, contents, 32)
            for answer, events in zip(answers, users.values(), strict=True):
                hit = np.flatnonzero(answer.video_K == events["video_id"][-1])
                ranks.append(int(hit[0]) + 1 if len(hit) else 0)
        ranks_N = np.array(ranks)
        gain_N = np.where(ranks_N > 0, 1 / np.log2(1 + np.maximum(ranks_N, 1)), 0.0)
        found[str(each)] = {"hr": round(float((ranks_N > 0).mean()), 4), "ndcg": round(float(gain_N.mean()), 4)}
        print("refresh every", each, found[str(each)], flush=True)
    return found


def main() -> None:
    """Measure, print, and keep what was asked for."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--preset", default="reference")
    parser.add_argument("--only", choices=("cost", "quality"))
    parser.add_argument("--model", type=Path, default=ROOT / "sample_data" / "model")
    parser.add_argument("--log", type=Path, default=ROOT / "sample_data" / "events.parquet")
    parser.add_argument("--videos")
    parser.add_argument("--schema")
    parser.add_argument("--decode", default="auto")
    parser.add_argument("--write", metavar="NAME", help="cost: `cost`; quality: the name of the log")
    given = parser.parse_args()
    result: dict[str, object] = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        if given.only != "quality":
            result["cost"] = {d: cost(folder / d, given.preset, d) for d in ("slate", "candidates")}
            result["machine"] = (
                f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores, load {os.getloadavg()[1]:.1f}"
            )
        if given.only != "cost":
            options = {"schema": given.schema, "videos": given.videos, "decode": given.decode}
            options = {name: value for name, value in options.items() if value is not None}
            result[given.write or "quality"] = quality(given.model, given.log, folder / "quality", options)
    if given.write:
        before = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
        RESULTS.write_text(json.dumps(before | result, indent=1) + "\n")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
