"""Outputs in a store: whole or not there, whatever is killed.

By `stored_output`, `stored_writer`, `stored`, `fetched` and `manifest`, against a real S3 server.
GENREC_TEST_STORE_KILLS=all kills a run at every request of its way (some 500 times, an hour); by default a few.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import polars as pl
import pytest

from genrec_batch.core.errors import ConfigError, InputError, RetryError
from genrec_batch.io import fetched, output, published, stored
from genrec_batch.io.stored import Stored
from genrec_batch.stores import lease
from tests import s3, store_proxy
from tests.io import commit

pytest.importorskip("obstore")
ROOT = Path(__file__).parent.parent.parent
ALL = os.environ.get("GENREC_TEST_STORE_KILLS") == "all"
TARGETS = [("recs", None), ("recs.parquet", None), ("folders", "source")]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A bucket of a real server, and a proxy in front of it, which nobody uses unless a test asks it to."""
    with (
        s3.serving(tmp_path_factory.mktemp("server")) as served,
        store_proxy.in_front_of(served.port) as proxy,
        pytest.MonkeyPatch.context() as patch,
    ):
        for name in s3.open_to_all():
            patch.delenv(name)
        for name, value in served.settings.items():
            patch.setenv(name, value)
        served.bucket("out")
        yield proxy


@pytest.fixture
def place(server, request):
    """A folder of its own in the bucket."""
    server.forget()
    return f"s3://out/{request.node.name.replace('[', '-').strip(']')}"


def start(target, seed, if_exists, tmp_path, column=None, **settings):
    """Begin a process that writes an output."""
    command = [sys.executable, "-m", "tests.io.commit", target, str(seed), if_exists, str(tmp_path)]
    return subprocess.Popen(
        command + ([column] if column else []),
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), **settings},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ended(process):
    """Return the exit code of a process and what it said, once it has ended."""
    _, said = process.communicate(timeout=120)
    return process.returncode, said


def objects(place):
    """Return the names and ETags of everything in a folder of the bucket."""
    store = Stored.of(f"{place}/x").store
    prefix = place.removeprefix("s3://out/")
    return {each.key.removeprefix(prefix): each.version["e_tag"] for each in store.below(prefix)}


def rows(target):
    """Return the rows that a reader of the manifest sees, None where there is no output."""
    fetched._fetched.clear()  # of a reader that begins now
    try:
        path = fetched.local(target, "OUT")
    except InputError:
        return None
    published.check_whole(path)
    assert published.fingerprint_file(path).is_file()
    files, metadata = published.files_of(path)
    found = pl.concat([pl.read_parquet(file, columns=["user_id", "video_id"]) for file in files])
    assert metadata[published.ROWS] == str(len(found))
    return sorted(found.rows())


def rows_of_a_glob(target):
    """Return the rows that a reader sees who waits for _SUCCESS and reads all parts, None without it."""
    at = Stored.of(target)
    if at.store.entry(f"{at.key}/_SUCCESS") is None:
        return None
    keys = [each.key for each in at.inside() if each.key.endswith(".parquet")]
    frames = [pl.read_parquet(at.store.get(key)[0], columns=["user_id", "video_id"]) for key in keys]
    return sorted(pl.concat(frames).rows())


def expected(seed):
    frames = [pl.from_arrow(commit.part(seed, number)[0]) for number in range(commit.PARTS)]
    return sorted(pl.concat(frames).select("user_id", "video_id").rows())


@pytest.mark.parametrize(("name", "column"), TARGETS)
def test_an_output_is_that_of_a_disk(place, tmp_path, name, column):
    target = f"{place}/{name}"
    assert commit.write(target, 1, None, tmp_path, column) == 0
    assert rows(target) == expected(1)
    local = output.open_output(tmp_path / name, {"seed": 1, "input": {}}, None, column)
    for number in range(commit.PARTS):
        table, prints = commit.part(1, number)
        local.write(number, table, {"users": 10}, prints)
    local.finish({"scope": 1})
    there, here = published.files_of(fetched.local(target, "OUT")), published.files_of(tmp_path / name)
    assert [file.read_bytes() for file in there[0]] == [file.read_bytes() for file in here[0]]
    assert there[1] == here[1]
    assert not list(tmp_path.glob(".genrec*"))


def test_what_exists_is_refused_resumed_or_replaced(place, tmp_path):
    target = f"{place}/recs"
    assert commit.write(target, 1, "error", tmp_path) == 0
    before = objects(place)
    for choice, said in ((None, "--if-exists"), ("error", "exists"), ("resume", "cannot be resumed")):
        with pytest.raises(ConfigError, match=said):
            commit.write(target, 2, choice, tmp_path)
    assert commit.write(target, 1, "resume", tmp_path) == "complete"
    assert objects(place) == before
    assert commit.write(target, 2, "overwrite", tmp_path) == 0
    assert rows(target) == rows_of_a_glob(target) == expected(2)
    assert not before.keys() & objects(place).keys() - {"/recs/_manifest.json", "/recs/_SUCCESS"}
    at = Stored.of(target)
    at.store.put(f"{at.key}/notes.txt", b"mine")
    with pytest.raises(ConfigError, match=r"not written by genrec-batch \(notes\.txt\)"):
        stored.check(target, "overwrite")
    at.store.remove([f"{at.key}/notes.txt"])
    part = next(key for key in at.inside() if key.key.endswith(".parquet"))
    at.store.put(part.key, b"damaged")
    with pytest.raises(ConfigError, match="missing or does not match"):
        commit.write(target, 2, "resume", tmp_path)


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("http://127.0.0.1/recs", "only read"),
        ("s3://out", "names no object"),
        ("s3://out/recs.csv", "outputs are Parquet"),
        ("s4://out/recs", "refuses"),
    ],
)
@pytest.mark.usefixtures("server")
def test_a_place_that_no_output_can_have(target, said):
    with pytest.raises(ConfigError, match=said):
        stored.check(target, None)


@pytest.mark.usefixtures("server")
def test_credentials_that_the_store_refuses_are_named_and_not_told(monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "another" + s3.SECRET)
    with pytest.raises(ConfigError, match="OUTPUT s3://out/recs: may not be written with these credentials") as found:
        stored.check("s3://out/recs", None)
    assert s3.SECRET not in str(found.value)


KILLS = [(*target, old, after) for target in TARGETS for old in (False, True) for after in (False, True)]
SOME = [("recs", None, True, True), ("recs.parquet", None, False, False), ("folders", "source", True, False)]


@pytest.mark.timeout(3600)
@pytest.mark.parametrize(("name", "column", "old", "after"), KILLS if ALL else SOME)
def test_a_kill_at_a_request_loses_nothing_and_shows_nothing_of_the_run(
    place, server, tmp_path, monkeypatch, name, column, old, after
):
    """`after`: once the server has done what is asked, before the run knows it; else before the server sees it."""
    whole, target = f"{place}/whole", f"{place}/{{}}/{name}"
    if old:
        commit.write(f"{whole}/{name}", 1, None, tmp_path, column)
    monkeypatch.setenv("AWS_ENDPOINT_URL", server.address)
    assert ended(start(f"{whole}/{name}", 2, "overwrite", tmp_path, column)) == (0, "")
    count, wanted = server.count, objects(whole)
    numbers = range(1, count + 1) if ALL else [count - 8 - 2 * len(column or "")]
    for number in numbers:
        here = target.format(number)
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.port}")
        if old:
            commit.write(here, 1, None, tmp_path, column)
        server.forget()
        killed = start(here, 2, "overwrite", tmp_path, column, AWS_ENDPOINT_URL=server.address)

        def fault(at, number=number, killed=killed):
            if at != number:
                return None if at < number else 503
            if after:
                return killed.kill
            killed.kill()
            return 503

        server.fault = fault
        assert ended(killed)[0] == (0 if server.count < number else -9)
        seen = rows(here)
        assert seen == (expected(1) if old else None) or seen == expected(2), server.seen
        assert name.endswith(".parquet") or rows_of_a_glob(here) in (None, seen)
        commit.write(here, 2, "overwrite", tmp_path, column)
        assert objects(f"{place}/{number}") == wanted
        assert rows(here) == expected(2)
    print(f"{len(numbers)} kills of {count} requests: {name}, {old=}, {after=}")


def test_a_killed_run_goes_on_from_the_parts_that_are_up(place, server, tmp_path):
    target = f"{place}/recs"
    running = start(target, 1, "resume", tmp_path, AWS_ENDPOINT_URL=server.address)

    def fault(_):
        if any("part-00001.json" in seen for seen in server.seen):
            return running.kill
        return None

    server.fault = fault
    assert ended(running)[0] == -9
    with pytest.raises(ConfigError, match="an unfinished run is in"):
        commit.write(target, 1, "error", tmp_path)
    with pytest.raises(ConfigError, match=r"differs from it in seed"):
        commit.write(target, 2, None, tmp_path)
    assert commit.write(target, 1, None, tmp_path) == 2
    assert rows(target) == expected(1)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("same", [True, False])
def test_of_two_runs_at_once_one_writes_and_the_other_tries_again(place, tmp_path, same):
    target = f"{place}/recs"
    for again in range(20 if ALL else 1):
        both = [start(f"{target}{again}", 1 + (not same and at), "overwrite", tmp_path) for at in range(2)]
        found = [ended(each) for each in both]
        assert {code for code, _ in found} <= {0, 75}, found
        assert 0 in [code for code, _ in found], found
        assert all("being written by another run" in said for code, said in found if code)
        assert rows(f"{target}{again}") in (expected(1), expected(2))
        found = {name for name in objects(place) if name.startswith(f"/recs{again}/")}
        assert len(found) == commit.PARTS + 3
        assert not [name for name in objects(place) if "unfinished" in name]


@pytest.mark.parametrize(("renewed", "said"), [(True, "taken over"), (False, "written by another run meanwhile")])
def test_a_run_that_lost_its_lease_changes_nothing(place, tmp_path, monkeypatch, renewed, said):
    """Also where it does not know: the manifest is written only if nobody has written one since the run began."""
    target = f"{place}/recs"
    monkeypatch.setattr(lease, "SPAN_S", 1.0)
    monkeypatch.setattr(lease, "BEAT_S", 3600.0)  # as of a process that was stopped
    slow = commit.stored_output.open_output(target, {"seed": 1, "input": {}}, None, None, tmp_path)
    for number in range(commit.PARTS):
        table, prints = commit.part(1, number)
        slow.write(number, table, {"users": 10}, prints)
    parts = objects(place)
    assert commit.write(target, 2, "overwrite", tmp_path) == 0
    before = objects(place)
    if not renewed:
        monkeypatch.setattr(slow.lease, "renew", lambda: None)
        store = slow.place.store
        for name in [each for each in parts if "lease" not in each]:  # as if the other had not removed them yet
            store.put(place.removeprefix("s3://out/") + name, (slow.staging / "part-00000.fingerprints").read_bytes())
    with pytest.raises(RetryError, match=said):
        slow.finish({"scope": 1})
    slow.close()
    assert {name: tag for name, tag in objects(place).items() if "unfinished" not in name} == before
    assert rows(target) == expected(2)


@pytest.mark.parametrize("fault", ["503", "slow", "never", "a while"])
def test_a_store_that_fails_is_asked_again_and_then_named(place, server, tmp_path, fault):
    target = f"{place}/recs"
    hold, begin = time.monotonic() + 60, time.monotonic()

    def faulty(number):
        if fault == "slow":
            time.sleep(0.05)
        elif fault == "503" and number > 12:
            return 503
        elif fault == "never" and number > 12:
            while time.monotonic() < hold and server.count:
                time.sleep(0.05)
            return 503
        elif fault == "a while" and number % 2:
            return 503
        return None

    server.fault = faulty
    running = start(target, 1, "resume", tmp_path, AWS_ENDPOINT_URL=server.address, GENREC_BATCH_STORE_PATIENCE="3")
    code, said = ended(running)
    server.forget()
    assert time.monotonic() - begin < 60
    if fault in ("slow", "a while"):
        assert code == 0, said
    else:
        assert code == 75, said
        assert f"{target}: the store cannot be reached" in said
        assert commit.write(target, 1, None, tmp_path) == 0
    assert rows(target) == expected(1)
    assert s3.SECRET not in said


def test_no_secret_is_kept(place, tmp_path):
    commit.write(f"{place}/recs", 1, None, tmp_path)
    store = Stored.of(f"{place}/x").store
    for name in objects(place):
        content = store.get(place.removeprefix("s3://out/") + name)[0]
        assert s3.SECRET.encode() not in content
