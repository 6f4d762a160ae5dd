"""Object stores and servers, by `places`: the same files, skipping and errors as in a folder."""

from __future__ import annotations

import http.server
import io
import threading
from functools import partial
from pathlib import Path

import polars as pl
import pytest

from genrec_batch.core.errors import InputError, RetryError
from genrec_batch.events.log import EventLog
from genrec_batch.io.places import matching
from genrec_batch.io.read import scan

pytest.importorskip("obstore")
EVENTS = pl.DataFrame(
    {"user_id": [1, 1, 2], "video_id": [7, 8, 7], "timestamp": [1_760_000_000] * 3, "is_liked": [True] * 3}
)


def events(path):
    log = EventLog.of(scan(path, "INPUT"), None, f"INPUT {path}")
    return pl.concat([log.usable(number) for number in range(len(log.row_groups))])


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A web server with a folder of files, and its address."""
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

        def send_head(self):
            file = Path(self.translate_path(self.path))
            if not file.is_file():
                self.send_error(404)
                return
            content = file.read_bytes()
            start, stop = 0, len(content)
            asked = self.headers.get("Range", "").removeprefix("bytes=")
            if asked:
                first, _, last = asked.partition("-")
                stop = min(stop, int(last) + 1) if first and last else stop
                start = int(first) if first else max(0, stop - int(last))
            self.send_response(206 if asked else 200)
            self.send_header("Content-Length", str(stop - start))
            self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{len(content)}")
            self.send_header("ETag", f'"{file.stat().st_mtime_ns}"')
            self.send_header("Last-Modified", self.date_time_string(file.stat().st_mtime))
            self.end_headers()
            self.copyfile(io.BytesIO(content[start:stop]), self.wfile)
            return

    folder = tmp_path / "served"
    folder.mkdir()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder))) as serving:
        threading.Thread(target=serving.serve_forever, daemon=True).start()
        yield folder, f"http://127.0.0.1:{serving.server_port}"
        serving.shutdown()


def test_a_file_of_a_server_is_read_as_the_file_itself(server):
    folder, address = server
    EVENTS.write_parquet(folder / "a.parquet")
    EVENTS.write_csv(folder / "a.csv")
    assert events(f"{address}/a.parquet").equals(events(str(folder / "a.parquet")))
    assert events(f"{address}/a.csv").equals(events(str(folder / "a.parquet")))
    (folder / "b.parquet").write_text("<!DOCTYPE html>")
    with pytest.raises(InputError, match="web page"):
        scan(f"{address}/b.parquet", "INPUT")


def test_an_object_that_changes_between_two_looks_is_named(server):
    folder, address = server
    EVENTS.write_parquet(folder / "a.parquet")
    source = scan(f"{address}/a.parquet", "INPUT")
    assert scan(f"{address}/a.parquet", "INPUT").fingerprint == source.fingerprint
    log = EventLog.of(source, None, "log")
    log.required(0)
    EVENTS.reverse().write_parquet(folder / "a.parquet")
    with pytest.raises(RetryError, match=r"a\.parquet changed"):
        log.usable(0)


@pytest.fixture(scope="module")
def bucket(s3):
    """A bucket with a log and what is beside logs."""
    obstore, stores = pytest.importorskip("obstore"), pytest.importorskip("obstore.store")
    store = stores.from_url(s3, client_options={"allow_http": True})

    def put(name, frame):
        made = io.BytesIO()
        frame.write_parquet(made)
        obstore.put(store, name, made.getvalue())

    put("log/day=1/a.parquet", EVENTS)
    put("log/day=2/b.parq", EVENTS.with_columns(user_id=pl.lit(3)))
    put("log/_temporary/0/c.parquet", EVENTS)
    put("log/day=2/.d.parquet", EVENTS)
    obstore.put(store, "log/_SUCCESS", b"")
    obstore.put(store, "text/a.csv", EVENTS.write_csv().encode())
    return s3


@pytest.mark.timeout(180)
def test_a_bucket_is_read_as_a_folder(bucket):
    source = scan(f"{bucket}/log/", "INPUT")
    assert [name.rpartition("/")[2] for name in source.files] == ["a.parquet", "b.parq"]
    assert source.frame().collect()["day"].to_list() == [1, 1, 1, 2, 2, 2]
    assert events(f"{bucket}/log")["user_id"].to_list() == [1, 1, 2, 3, 3, 3]
    assert events(f"{bucket}/log/day=2")["user_id"].to_list() == [3, 3, 3]
    assert events(f"{bucket}/log/day=*/*.parquet")["user_id"].to_list() == [1, 1, 2]
    assert events(f"{bucket}/text/a.csv").equals(events(f"{bucket}/log/day=1/a.parquet"))
    with pytest.raises(InputError, match="no such object or folder"):
        scan(f"{bucket}/none", "INPUT")


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("*", ["a", "d/b", "d/e/c"]),
        ("d", ["d/b", "d/e/c"]),
        ("d/*", ["d/b", "d/e/c"]),
        ("d/e/*", ["d/e/c"]),
        ("**/c", ["d/e/c"]),
        ("**", ["a", "d/b", "d/e/c"]),
        ("?", ["a", "d/b", "d/e/c"]),
        ("x*", []),
    ],
)
def test_patterns_match_objects_and_folders(pattern, found):
    assert list(matching(["a", "d/b", "d/e/c"], pattern)) == found
