"""`store` and `run`, with a real Redis server: versions, the pointer, and what can go wrong."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import polars as pl
import pytest

from genrec_batch.exports import store
from genrec_batch.exports.form import Entries
from tests.fakes import recs

redis = pytest.importorskip("redis")
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A Redis server on a free port of loopback, which ends with the tests."""
    program = shutil.which("redis-server")
    if program is None:
        if os.environ.get("CI"):
            pytest.fail("redis-server is not installed, which `make test` does")
        pytest.skip("redis-server is not installed")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder = tmp_path_factory.mktemp("redis")
    flags = ["--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(folder), "--daemonize", "no"]
    with subprocess.Popen([program, *flags], stdout=subprocess.DEVNULL) as process:
        client = redis.Redis(port=port)
        for _ in range(600):
            try:
                client.ping()
                break
            except redis.ConnectionError:
                time.sleep(0.05)
        yield client
        client.close()
        process.terminate()


@pytest.fixture
def client(server):
    server.config_set("maxmemory", 0)
    server.config_set("maxmemory-policy", "noeviction")
    server.flushall()
    yield server
    server.config_set("requirepass", "")


@pytest.fixture
def url(client):
    return f"redis://127.0.0.1:{client.connection_pool.connection_kwargs['port']}/0"


def live(client, pointer="recs:live", key="recs:"):
    """What a reader that follows the pointer sees: each user's value."""
    version = client.get(pointer).decode()
    found = client.keys(f"{version}:{key}*")
    users = [int(name.decode().rpartition(":")[2]) for name in found]
    return dict(zip(users, map(json.loads, client.mget(found)), strict=True))


def wanted(users, night, columns=("video_id", "score")):
    by_user = recs.rows(users, night=night).group_by("user_id", maintain_order=True).agg(pl.struct(columns).alias("r"))
    return dict(by_user.select("user_id", "r").rows())


@pytest.mark.parametrize("layout", ["long", "nested", "wide"])
@pytest.mark.parametrize("name", ["recs", "recs.parquet"])
def test_readers_find_each_users_list_by_the_pointer(run, client, url, tmp_path, layout, name):
    recs.write(tmp_path / name, 20, layout=layout)
    done = run("export", name, url)
    assert done.code == 0, done.err
    assert live(client) == wanted(20, 0)
    assert (done.summary["users"], done.summary["replaced"], done.summary["pointer"]) == (20, None, "recs:live")
    assert client.ttl(f"{done.summary['version']}:recs:3") == -1
    assert done.summary["users_per_s"] > 0
    assert not client.exists("recs:live:lock")


def test_ids_alone_keys_and_columns_are_chosen(run, client, url, tmp_path):
    recs.write(tmp_path / "recs", 20)
    assert run("export", "recs", url, "--value", "ids", "--key", "home:{user_id}:v", "--pointer", "home").code == 0
    version = client.get("home").decode()
    assert client.get(f"{version}:home:7:v") == b"701,702,703"
    assert run("export", "recs", url, "--columns", "rank,title,about").code == 0
    assert live(client)[7][1] == {"rank": 2, "title": 'night 0, "2"', "about": {"like": 1.75, "tags": ["a", "b"]}}


def test_texts_as_ids_go_whole(client):
    some = recs.rows(1).with_columns(pl.lit('ü "\r\n$').alias("user_id"), pl.col("video_id").cast(pl.String))
    entries = store.Store(shown="", client=client, version="v", pointer="p", expires_s=None)
    entries.write(Entries().of(some, "RECS r"))
    assert json.loads(client.get('v:recs:ü "\r\n$'))[0]["video_id"] == "1"
    with pytest.raises(ValueError, match="holds a comma"):
        Entries(value="ids").of(some.with_columns(video_id=pl.lit("a,b")), "RECS r")


def test_the_next_night_replaces_the_version_and_lets_the_old_one_expire(run, client, url, tmp_path):
    for night in (0, 1):
        recs.write(tmp_path / f"night{night}", 20, night=night)
    first = run("export", "night0", url).summary
    second = run("export", "night1", url, "--ttl", "2d", "--keep-old", "30m").summary
    assert (second["replaced"], second["expiring_keys"]) == (first["version"], 20)
    assert live(client) == wanted(20, 1)
    assert 0 < client.ttl(f"{first['version']}:recs:3") <= 1800
    assert 172_700 < client.ttl(f"{second['version']}:recs:3") <= 172_800
    assert 172_700 < client.ttl("recs:live") <= 172_800
    third = run("export", "night0", url).summary
    assert (third["version"], client.ttl(f"{third['version']}:recs:3")) == (first["version"], -1), "back, and for good"


def test_the_same_output_again_changes_nothing(run, client, url, tmp_path):
    recs.write(tmp_path / "recs", 20)
    first = run("export", "recs", url).summary
    again = run("export", "recs", url).summary
    assert (again["version"], again["replaced"], again["expiring_keys"]) == (first["version"], first["version"], 0)
    assert live(client) == wanted(20, 0)


def test_a_reader_never_sees_a_mixture(run, url, tmp_path):
    for night in (0, 1):
        recs.write(tmp_path / f"night{night}", 200, night=night)
    assert run("export", "night0", url).code == 0
    stop, mixtures, looks = threading.Event(), [], []

    def read():
        reader = redis.Redis.from_url(url)
        while not stop.is_set():
            version = reader.get("recs:live").decode()
            values = [json.loads(value) for value in reader.mget([f"{version}:recs:{user}" for user in range(200)])]
            nights = {row["video_id"] // 1_000_000 for value in values for row in value}
            looks.append(nights)
            mixtures.extend([nights] if len(nights) > 1 else [])
        reader.close()

    thread = threading.Thread(target=read)
    thread.start()
    for night in (1, 0, 1):
        assert run("export", f"night{night}", url).code == 0
    stop.set()
    thread.join()
    assert not mixtures
    assert len(looks) > 3


@pytest.mark.parametrize("stop", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_export_leaves_the_old_version_live_and_the_next_finishes(run, client, url, tmp_path, stop):
    recs.write(tmp_path / "night0", 20)
    recs.write(tmp_path / "night1", 3000, night=1, shard=10)
    assert run("export", "night0", url).code == 0
    program = [sys.executable, "-m", "genrec_batch", "export", "night1", url]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(program, env={**os.environ, "PYTHONPATH": str(ROOT)}, **quiet) as process:
        while client.dbsize() < 200 and process.poll() is None:
            time.sleep(0.01)
        process.send_signal(stop)
    assert process.returncode in (-signal.SIGKILL, 143)
    assert live(client) == wanted(20, 0)
    done = run("export", "night1", url)
    assert done.code == 0, done.err
    assert live(client) == wanted(3000, 1)
    assert client.scard("recs:live:versions") == 1


def test_a_version_that_nobody_finished_expires_with_the_next_one(run, client, url, tmp_path):
    recs.write(tmp_path / "night1", 20, night=1)
    client.sadd("recs:live:versions", "killed")
    client.set("killed:recs:3", "half")
    client.set("killedother:recs:3", "of somebody else")
    assert run("export", "night1", url).code == 0
    assert 0 < client.ttl("killed:recs:3") <= 3600
    assert client.ttl("killedother:recs:3") == -1


def test_a_second_export_at_the_same_time_is_told_to_wait(run, client, url, tmp_path, monkeypatch):
    recs.write(tmp_path / "recs", 20)
    monkeypatch.setattr(store, "LOCK_S", 0.2)
    client.set("recs:live:lock", "of another")
    done = run("export", "recs", url)
    assert (done.code, "another export is writing for 'recs:live' now" in done.err) == (75, True), done.err
    assert not client.exists("recs:live")


def test_an_export_that_lost_its_lock_publishes_nothing(run, client, url, tmp_path, monkeypatch):
    recs.write(tmp_path / "recs", 20)
    written = store.Store.write

    def taken_over(self, entries):
        client.set("recs:live:lock", "of another")
        return written(self, entries)

    monkeypatch.setattr(store.Store, "write", taken_over)
    done = run("export", "recs", url)
    assert (done.code, "another began" in done.err) == (75, True), done.err
    assert not client.exists("recs:live")
    assert client.get("recs:live:lock") == b"of another"


def test_a_server_without_room_keeps_the_live_version_and_gets_its_room_back(run, client, url, tmp_path):
    recs.write(tmp_path / "night0", 20)
    recs.write(tmp_path / "night1", 20_000, night=1, shard=1000)
    assert run("export", "night0", url).code == 0
    client.config_set("maxmemory", client.info("memory")["used_memory"] + 2_000_000)
    done = run("export", "night1", url)
    assert (done.code, "the server is out of memory" in done.err) == (75, True), done.err
    assert live(client) == wanted(20, 0)
    assert client.dbsize() == 20 + 2, "the lists, the pointer and the set of versions"


def test_a_server_that_evicts_keys_gets_no_version_with_holes(run, client, url, tmp_path):
    recs.write(tmp_path / "night1", 20_000, night=1, shard=1000)
    client.config_set("maxmemory-policy", "allkeys-lru")
    client.config_set("maxmemory", client.info("memory")["used_memory"] + 2_000_000)
    done = run("export", "night1", url)
    assert (done.code, "the server evicted keys meanwhile" in done.err) == (75, True), done.err
    assert "it drops any keys when its memory is full (allkeys-lru)" in done.err
    assert not client.exists("recs:live")


@pytest.mark.parametrize("given", ["url", "variable", "wrong", "none"])
def test_the_password_is_of_the_url_or_the_environment_and_never_shown(run, client, url, tmp_path, monkeypatch, given):
    recs.write(tmp_path / "recs", 20)
    client.config_set("requirepass", "s3cret")
    place = url.removeprefix("redis://")
    password = {"url": ":s3cret@", "wrong": ":s3cret-no@"}.get(given, "")
    if given == "variable":
        monkeypatch.setenv("REDISCLI_AUTH", "s3cret")
    done = run("export", "recs", f"redis://{password}{place}", "--verbose")
    if given in ("url", "variable"):
        assert done.code == 0, done.err
        assert done.summary["target"] == url
    else:
        assert (done.code, "refuses this user or password" in done.err) == (5, True), done.err
        assert "(exit 5: store)" in done.err
    assert "s3cret" not in done.out + done.err


@pytest.mark.parametrize("columns", [[], ["--columns", "video_id,titel"]])
def test_a_server_that_is_not_there(run, tmp_path, columns):
    recs.write(tmp_path / "recs", 20)
    done = run("export", "recs", "redis://127.0.0.1:1/0", *columns)
    assert done.code == (2 if columns else 75)
    assert ("Did you mean 'title'?" if columns else "TARGET redis://127.0.0.1:1/0: no connection") in done.err


def test_a_connection_that_is_lost_is_for_the_scheduler_to_try_again(run, client, url, tmp_path, monkeypatch):
    for night in (0, 1):
        recs.write(tmp_path / f"night{night}", 20, night=night)
    assert run("export", "night0", url).code == 0
    send = redis.Connection.send_packed_command

    def cut(self, commands, check_health=True):
        if isinstance(commands[0], memoryview):
            client.client_kill_filter(_type="normal", skipme=True)
        send(self, commands, check_health)

    with monkeypatch.context() as patch:
        patch.setattr(redis.Connection, "send_packed_command", cut)
        done = run("export", "night1", url)
    assert (done.code, "no connection" in done.err, "the live version stays" in done.err) == (75, True, True), done.err
    assert live(client) == wanted(20, 0)
    assert run("export", "night1", url).code == 0
    assert live(client) == wanted(20, 1)


@pytest.mark.parametrize(
    ("flags", "code", "said"),
    [
        (["--key", "recs"], 2, "--key 'recs': a text with {user_id} once"),
        (["--key", "{user_id}{user_id}"], 2, "a text with {user_id} once"),
        (["--value", "pickle"], 2, "--value 'pickle' is not one of json, ids"),
        (["--ttl", "soon"], 2, "--ttl 'soon': a span of time"),
        (["--keep-old", "1"], 2, "--keep-old '1': a span of time"),
    ],
)
def test_options_that_make_no_sense(run, url, tmp_path, flags, code, said):
    recs.write(tmp_path / "recs", 20)
    done = run("export", "recs", url, *flags)
    assert (done.code, said in done.err) == (code, True), done.err


def test_a_url_of_nothing(run, tmp_path):
    recs.write(tmp_path / "recs", 20)
    done = run("export", "recs", "redis://127.0.0.1:port/0")
    assert (done.code, "not redis://HOST:PORT/DB" in done.err) == (2, True), done.err


def test_without_the_package_the_error_says_how_to_install_it(run, url, tmp_path, monkeypatch):
    recs.write(tmp_path / "recs", 20)
    monkeypatch.setitem(sys.modules, "redis", None)
    done = run("export", "recs", url)
    assert (done.code, "pip install 'genrec-batch[redis]'" in done.err) == (5, True), done.err


@pytest.mark.parametrize(("version", "mode"), [("6.0.16", "standalone"), ("7.0.15", "cluster")])
def test_a_server_that_cannot_do_it_is_refused(client, monkeypatch, version, mode):
    target = store.Store(shown="TARGET t", client=client, version="v", pointer="p", expires_s=None)
    monkeypatch.setattr(client, "info", lambda _: {"redis_version": version, "redis_mode": mode})
    with pytest.raises(store.EngineError, match="too old" if version < "6.2" else "a Redis Cluster"):
        target.check()


def test_what_one_pointer_leaves_is_not_live_for_another(run, client, url, tmp_path):
    recs.write(tmp_path / "night1", 20)
    recs.write(tmp_path / "night2", 20, night=2)
    assert run("export", "night1", url, "--pointer", "app:live").code == 0
    assert run("export", "night1", url, "--pointer", "web:live").code == 0
    assert run("export", "night2", url, "--pointer", "web:live").code == 0
    version = client.get("app:live").decode()
    assert {client.ttl(key) for key in client.keys(f"{version}:*")} == {-1}, "night 1 is still live for the app"
    assert live(client, "app:live") == wanted(20, 0)


@pytest.mark.parametrize("held", ["text", "hash", "versions"])
def test_a_key_of_another_program_is_not_overwritten(run, client, url, tmp_path, held):
    recs.write(tmp_path / "recs", 20)
    if held == "text":
        client.set("recs:live", "on")
    else:
        client.hset("recs:live" if held == "hash" else "recs:live:versions", "a", "b")
    before = client.keys("*")
    done = run("export", "recs", url)
    assert (done.code, "perhaps of another program; --pointer names another key" in done.err) == (5, True), done.err
    assert client.keys("*") == before
    assert run("export", "recs", url, "--pointer", "mine").code == 0


def test_a_server_that_was_restarted_meanwhile_may_have_lost_keys(run, client, url, tmp_path, monkeypatch):
    recs.write(tmp_path / "recs", 20)
    info, looks = redis.Redis.info, []

    def restarted(self, section=None):
        found = info(self, section)
        if section == "server":
            looks.append(section)
            found["run_id"] = f"start {len(looks)}"
        return found

    monkeypatch.setattr(redis.Redis, "info", restarted)
    done = run("export", "recs", url)
    assert (done.code, "the server was restarted meanwhile" in done.err) == (75, True), done.err
    assert not client.exists("recs:live")


def test_a_user_with_few_rights_is_told_those_that_an_export_needs(run, client, url, tmp_path):
    recs.write(tmp_path / "recs", 20)
    recs.write(tmp_path / "night2", 20, night=2)
    as_job = url.replace("//", "//job:pw@")
    client.acl_setuser("job", enabled=True, reset=True, passwords=["+pw"], keys=["*"], commands=["+get"])
    done = run("export", "recs", as_job)
    assert (done.code, "the user needs +info, " in done.err, "password" in done.err) == (5, True, False), done.err
    client.acl_setuser("job", enabled=True, commands=[*store.COMMANDS])
    for night in ("recs", "night2"):
        done = run("export", night, as_job, "--ttl", "1d")
        assert done.code == 0, done.err
    client.acl_deluser("job")
    assert live(client) == wanted(20, 2)


def test_a_replica_is_no_place_to_write(run, client, url, tmp_path):
    recs.write(tmp_path / "recs", 20)
    client.execute_command("REPLICAOF", "127.0.0.1", "1")
    try:
        done = run("export", "recs", url)
    finally:
        client.execute_command("REPLICAOF", "NO", "ONE")
    assert (done.code, "a replica, which nobody writes to" in done.err) == (5, True), done.err
    assert "name its primary" in done.err


def test_a_database_that_is_no_number_is_not_taken_for_the_first(run, url, tmp_path):
    recs.write(tmp_path / "recs", 20)
    done = run("export", "recs", url.removesuffix("/0") + "/prod")
    assert (done.code, "DB is a number, 0 by default, not 'prod'" in done.err) == (2, True), done.err
