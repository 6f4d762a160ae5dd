"""The private folder of built engines: what it finds, what is built again, what is refused."""

import multiprocessing
import os
import stat
import time
from pathlib import Path

import pytest

from genrec_batch.core.errors import EngineError
from genrec_batch.engines.plan_cache import EngineCache, EngineKey, default_directory


def key(**changes) -> EngineKey:
    values = {
        "name": "prefill",
        "weights_sha256": "a" * 64,
        "graph_sha256": "b" * 64,
        "precision": "fp16",
        "shape": {"rows": 64, "positions": 51},
        "library": "tensorrt 8.6.0",
        "architecture": "sm_90",
    }
    return EngineKey(**(values | changes))


@pytest.fixture
def cache(tmp_path):
    return EngineCache(tmp_path / "engines")


def never():
    raise AssertionError("it was in the cache")


def test_an_engine_is_built_once(cache):
    assert cache.get(key(), lambda: b"plan") == b"plan"
    assert cache.get(key(), never) == b"plan"
    assert EngineCache(cache.directory).get(key(), never) == b"plan"


@pytest.mark.parametrize(
    "change",
    [
        {"weights_sha256": "c" * 64},
        {"graph_sha256": "c" * 64},
        {"precision": "fp32"},
        {"shape": {"rows": 128, "positions": 51}},
        {"library": "tensorrt 8.6.1"},
        {"architecture": "sm_89"},
        {"options": {"level": "5"}},
    ],
    ids=lambda change: next(iter(change)),
)
def test_any_difference_is_another_engine(cache, change):
    cache.get(key(), lambda: b"plan")
    assert cache.get(key(**change), lambda: b"other") == b"other"
    assert cache.get(key(), never) == b"plan"


@pytest.mark.parametrize("damage", ["truncated", "changed", "no sha256", "no engine"])
def test_a_damaged_engine_is_built_again(cache, damage):
    cache.get(key(), lambda: b"plan")
    path = cache.path(key())
    if damage == "truncated":
        path.write_bytes(b"pl")
    elif damage == "changed":
        path.write_bytes(b"plam")
    elif damage == "no sha256":
        path.with_suffix(".sha256").unlink()
    else:
        path.unlink()
    assert cache.read(key()) is None
    assert cache.get(key(), lambda: b"plan again") == b"plan again"
    assert cache.get(key(), never) == b"plan again"


def test_a_failed_build_leaves_nothing(cache):
    def fail():
        raise EngineError("no such kernel")

    with pytest.raises(EngineError, match="no such kernel"):
        cache.get(key(), fail)
    assert cache.read(key()) is None
    assert cache.get(key(), lambda: b"plan") == b"plan"


def test_folder_and_files_are_private(cache):
    cache.get(key(), lambda: b"plan")
    assert stat.S_IMODE(cache.directory.stat().st_mode) == 0o700
    for path in cache.directory.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0


def test_a_folder_that_others_may_write_to_is_refused(tmp_path):
    folder = tmp_path / "shared"
    folder.mkdir()
    folder.chmod(0o777)
    with pytest.raises(EngineError, match="may be written by others") as caught:
        EngineCache(folder)
    assert caught.value.exit_code == 5
    assert str(folder) in str(caught.value)


def test_a_file_that_others_may_write_to_is_refused(cache):
    cache.get(key(), lambda: b"plan")
    cache.path(key()).chmod(0o666)
    with pytest.raises(EngineError, match="may be written by others"):
        cache.get(key(), never)


def test_links_are_not_followed(cache, tmp_path):
    cache.get(key(), lambda: b"plan")
    elsewhere = tmp_path / "elsewhere.engine"
    cache.path(key()).rename(elsewhere)
    cache.path(key()).symlink_to(elsewhere)
    with pytest.raises(EngineError, match=str(cache.path(key()))):
        cache.get(key(), never)
    (tmp_path / "link").symlink_to(cache.directory)
    with pytest.raises(EngineError, match="symbolic link"):
        EngineCache(tmp_path / "link")


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a file to another user")
def test_what_another_user_owns_is_refused(cache):
    cache.get(key(), lambda: b"plan")
    os.chown(cache.path(key()), 12345, -1)
    with pytest.raises(EngineError, match="belongs to user 12345"):
        cache.get(key(), never)
    os.chown(cache.directory, 12345, -1)
    with pytest.raises(EngineError, match="belongs to user 12345"):
        EngineCache(cache.directory)


def test_where_the_cache_is(monkeypatch, tmp_path):
    monkeypatch.delenv("GENREC_BATCH_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_directory() == tmp_path / ".cache" / "genrec-batch" / "engines"
    monkeypatch.setenv("XDG_CACHE_HOME", "/caches")
    assert default_directory() == Path("/caches/genrec-batch/engines")
    monkeypatch.setenv("GENREC_BATCH_CACHE", "/mine")
    assert default_directory() == Path("/mine")


def build_slowly(folder, number, log):
    def build():
        with Path(log).open("a") as file:
            file.write(f"{number}\n")
        time.sleep(0.3)
        return f"plan of {number}".encode()

    plan = EngineCache(Path(folder)).get(key(), build)
    Path(f"{log}.{number}").write_bytes(plan)


def test_processes_that_build_at_once_build_once(tmp_path):
    log = tmp_path / "log"
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=build_slowly, args=(tmp_path / "engines", i, log)) for i in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    assert len(log.read_text().splitlines()) == 1
    assert len({Path(f"{log}.{i}").read_bytes() for i in range(3)}) == 1
    assert not [path for path in (tmp_path / "engines").iterdir() if path.name.startswith(".")]
