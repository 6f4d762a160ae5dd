"""Inputs in a real S3 server, by `find`, `places` and `read`: names, many objects, and refusals at any request."""

from __future__ import annotations

import io

import polars as pl
import pytest

from genrec_batch.core.errors import InputError, RetryError
from genrec_batch.io import read
from genrec_batch.stores.bucket import Bucket
from tests import s3, store_proxy

pytest.importorskip("obstore")
LOG = pl.DataFrame({"user_id": [1, 2], "video_id": [7, 8], "timestamp": [1_760_000_000] * 2})


def content_of(frame):
    made = io.BytesIO()
    frame.write_parquet(made)
    return made.getvalue()


@pytest.fixture(scope="module")
def proxy(tmp_path_factory):
    with s3.serving(tmp_path_factory.mktemp("server")) as server, pytest.MonkeyPatch.context() as patch:
        for name in s3.open_to_all():
            patch.delenv(name)
        for name, value in server.settings.items():
            patch.setenv(name, value)
        server.bucket("given")
        with store_proxy.in_front_of(server.port) as proxy:
            patch.setenv("AWS_ENDPOINT_URL", proxy.address)
            patch.setenv("GENREC_BATCH_STORE_PATIENCE", "2")
            yield proxy


@pytest.fixture(autouse=True)
def no_faults(proxy):
    proxy.forget()


@pytest.mark.parametrize("name", ["a b", "50%", "%20", "a+b", "a#b", "ünï", "a?b", "br[0]", "a@2", "q'\"", "日本"])
def test_an_object_is_read_by_its_name_whatever_that_is(name):
    folder = f"s3://given/names/{name}"
    Bucket(folder, "INPUT").put(f"names/{name}/x=1/log.parquet", content_of(LOG))
    for path in (folder, f"{folder}/", f"{folder}/x=1/log.parquet"):
        found = read.scan(path, "INPUT").frame().collect()
        assert found.select(LOG.columns).equals(LOG)


def test_an_object_is_asked_for_few_times(proxy):
    """Its size is in the listing; its state is asked for before it is read, and after."""
    store = Bucket("s3://given/many", "INPUT")
    for number in range(20):
        store.put(f"many/{number}.parquet", content_of(LOG))
    proxy.forget()
    assert read.scan("s3://given/many", "INPUT").rows == 40
    asked = [each.partition(" ")[0] for each in proxy.seen]
    assert asked.count("HEAD") <= 2 * 20 + 1
    assert asked.count("GET") <= 2 * 20 + 2


@pytest.mark.parametrize(("status", "error"), [(403, (InputError, RetryError)), (404, (InputError, RetryError))])
def test_a_refusal_at_any_request_is_an_error_of_the_input(proxy, status, error):
    Bucket("s3://given/refused", "INPUT").put("refused/log.parquet", content_of(LOG))
    proxy.forget()
    given = ("s3://given/refused", "--users", "user_id", lambda frame: frame)
    read.table(*given)
    for number in range(proxy.count):
        proxy.forget()
        proxy.fault = lambda at, number=number: status if at > number else None
        with pytest.raises(error, match="s3://given/refused"):
            read.table(*given)
