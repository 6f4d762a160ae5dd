"""Objects of a real S3 server, by `bucket`: conditional writes, what errors say, and what they must not say."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from genrec_batch.core.errors import ConfigError
from genrec_batch.stores import bucket
from genrec_batch.stores.bucket import Bucket, ConditionError
from tests import s3

pytest.importorskip("obstore")


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    with s3.serving(tmp_path_factory.mktemp("server")) as server, pytest.MonkeyPatch.context() as patch:
        for name in s3.open_to_all():
            patch.delenv(name)
        for name, value in server.settings.items():
            patch.setenv(name, value)
        yield Bucket(server.bucket("objects"), "OUTPUT")


def test_of_many_conditional_writes_at_once_one_succeeds(store):
    """Of creations and of replacements: what a commit and a lease rely on."""
    before = None
    for turn in range(5):

        def written(number, before=before, turn=turn):
            try:
                return store.put_if("one", f"{turn} {number}".encode(), before)
            except ConditionError:
                return None

        with ThreadPoolExecutor(8) as pool:
            done = [found for found in pool.map(written, range(8)) if found]
        assert len(done) == 1
        before = done[0]
        assert store.get("one")[1] == before
    with pytest.raises(ConditionError):
        store.put_if("none", b"", before)


def test_a_write_that_was_done_already_is_no_other_ones(store):
    first = store.put_if("again", b"mine", None)
    assert store.put_if("again", b"mine", None) == first  # as after an answer that was lost


def test_objects_are_listed_copied_fetched_and_removed(store, tmp_path):
    large = tmp_path / "large"
    large.write_bytes(bytes(range(256)) * (bucket.CHUNK // 128))  # of several requests
    store.put("a/large", large)
    store.put("a/small", b"s")
    store.put("ab", b"")
    store.copy([("a/large", "b/large"), ("a/small", "b/small")])
    assert [(each.key, each.bytes) for each in store.below("b")] == [("b/large", 2 * bucket.CHUNK), ("b/small", 1)]
    store.fetch([("b/large", tmp_path / "back")])
    assert (tmp_path / "back").read_bytes() == large.read_bytes()
    assert store.range("b/large", 255, 2) == b"\xff\x00"
    store.remove(["a/large", "a/small", "a/none"])
    assert (store.entry("a/small"), store.below("a"), store.get("a/small")) == (None, [], None)
    for missing in (lambda: store.copy([("none", "c")]), lambda: store.fetch([("none", tmp_path / "c")])):
        with pytest.raises(FileNotFoundError):
            missing()


def test_what_a_store_says_is_told_without_what_it_repeats_of_the_request():
    said = bucket.said(
        ValueError(
            "Error performing GET https://host/a?sig=SECRET&se=1 in 2ms - status code: 403: <?xml version='1.0'?>\n"
            "<Error><Code>Denied</Code><Message>No.</Message><StringToSign>SECRET</StringToSign></Error>"
            "\n\nDebug source: SECRET"
        )
    )
    assert said == "Error performing GET https://host/a in 2ms - status code: 403: Denied, No."


@pytest.mark.parametrize("given", ["0", "-1", "soon", "inf", "nan"])
def test_a_patience_that_is_none_is_refused(monkeypatch, given):
    monkeypatch.setenv(bucket.PATIENCE, given)
    with pytest.raises(ConfigError, match=f"{bucket.PATIENCE}={given}: not a number of seconds above 0"):
        bucket.patience_s()


@pytest.mark.parametrize(
    ("path", "is_one", "whole"),
    [
        ("s3://a/b/", True, "s3://a/b"),
        ("s3:/a/b", True, "s3://a/b"),
        ("S3://A/b", True, "s3://A/b"),
        ("file:///a", False, "file:///a"),
        ("a/b", False, "a/b"),
    ],
)
def test_uris_are_told_from_paths(path, is_one, whole):
    assert bucket.is_uri(path) == is_one
    assert not is_one or bucket.uri_of(path) == whole


def test_missing_credentials_are_no_reason_to_try_again(monkeypatch):
    """The machine's own role is asked last, and gives none."""
    for name in (*s3.open_to_all(), "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_METADATA_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv(bucket.PATIENCE, "1")
    with pytest.raises(PermissionError, match="the environment has none"):
        Bucket("s3://bucket/recs", "OUTPUT").get("one")


@pytest.mark.parametrize(
    ("said", "passing"),
    [
        (
            "Server returned non-2xx status code: 404 Not Found: NoSuchBucket",
            False,
        ),
        (
            "Server returned non-2xx status code: 400 Bad Request: InvalidBucketName",
            False,
        ),
        ("Server returned non-2xx status code: 400 Bad Request: ExpiredToken, The provided token has expired.", True),
        (
            "Server returned non-2xx status code: 403 Forbidden: RequestTimeTooSkewed, The difference is too large",
            False,
        ),
        ("in 9s, after 12 retries, max_retries: 12 - Server returned non-2xx status code: 503: SlowDown", True),
        ("in 4s, after 12 retries, max_retries: 12, retry_timeout: 4s - HTTP error: error sending request", True),
        ("request or response body error: operation timed out", True),
        ("Unable to recognise URL", False),
    ],
)
def test_only_what_may_be_gone_the_next_time_is_tried_again(said, passing):
    assert bucket.is_passing(said) == passing


def test_a_bucket_that_is_not_there_is_no_reason_to_try_again(store):
    del store  # its server is asked
    with pytest.raises(OSError, match="NoSuchBucket") as found:
        Bucket("s3://nobucket/a", "INPUT").below("a")
    assert not isinstance(found.value, ConnectionError)


@pytest.mark.parametrize("name", bucket.ENDPOINTS)
def test_an_endpoint_that_is_no_url_is_named(monkeypatch, name):
    """The library would panic."""
    monkeypatch.setenv(name, "127.0.0.1:9000")
    with pytest.raises(ConfigError, match=f"{name}: not the URL of a server"):
        Bucket("s3://bucket/recs", "OUTPUT")


def test_a_server_without_tls_is_not_asked_where_that_is_forbidden(store, monkeypatch):
    monkeypatch.setenv("AWS_ALLOW_HTTP", "false")
    with pytest.raises(OSError, match="AWS_ALLOW_HTTP=true") as found:
        Bucket(store.root, "INPUT").below("a")
    assert not isinstance(found.value, ConnectionError)


def test_a_uri_of_an_unknown_kind_is_told_what_there_is():
    with pytest.raises(OSError, match="begin with s3://BUCKET/, gs://BUCKET/ or az://CONTAINER/"):
        Bucket("hdfs://a/b", "INPUT")


def test_after_an_error_nothing_more_is_begun():
    """Else a store out of reach is asked for each of thousands of objects, for as long as it takes."""
    begun = []

    def work(number):
        begun.append(number)
        time.sleep(0.01)
        raise ConnectionError("no")

    with pytest.raises(ConnectionError):
        bucket.in_threads(work, range(1000), 2)
    assert len(begun) < 20
