"""One file of parts: the same bytes in whatever order the parts come, and whichever run wrote them."""

from __future__ import annotations

import itertools
import threading

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from genrec_batch.io import parquet, single_file
from genrec_batch.io.single_file import SingleFile

SCHEMA = pa.schema({"user_id": pa.int64(), "videos": pa.list_(pa.int64())})
TABLES = [
    pa.table([[10 * number + i for i in range(number + 1)], [[i] * i for i in range(number + 1)]], schema=SCHEMA)
    for number in range(7)
]


@pytest.fixture
def part(tmp_path):
    def place(number):
        return tmp_path / f"part-{number}.parquet"

    for number, table in enumerate(TABLES):
        parquet.write(place(number), table.replace_schema_metadata({"of": "the part"}), quick=True)
    return place


def whole(tmp_path, part, offers):
    """Offer (number, with its table) in order; return the finished file's bytes."""
    joined = SingleFile(tmp_path / "whole", part, {"run": "1"})
    for number, given in offers:
        joined.offer(number, TABLES[number] if given else None)
    joined.finish(len(TABLES), {"rows": "28"})
    joined.close()
    assert pq.read_table(tmp_path / "whole").equals(pa.concat_tables(TABLES))
    return (tmp_path / "whole").read_bytes()


def test_the_order_of_the_offers_does_not_show(tmp_path, part, monkeypatch):
    expected = whole(tmp_path, part, [])  # all of them read from the disk
    assert pq.read_metadata(tmp_path / "whole").metadata[b"rows"] == b"28"
    assert pq.read_metadata(tmp_path / "whole").metadata[b"run"] == b"1"
    monkeypatch.setattr(single_file, "HELD", 2)
    for order in itertools.islice(itertools.permutations(range(7)), 0, 5040, 333):
        offers = [(number, number % 3 > 0) for number in order]
        assert whole(tmp_path, part, offers) == expected, order
        assert whole(tmp_path, part, offers[:4]) == expected, order


def test_what_the_disk_refuses_is_raised(tmp_path, part):
    joined = SingleFile(tmp_path / "nowhere" / "whole", part, {})
    joined.offer(0, TABLES[0])
    with pytest.raises(OSError, match="nowhere"):
        joined.finish(len(TABLES), {})
    joined.close()


def test_giving_up_ends_at_once_and_leaves_nothing(tmp_path, part, monkeypatch):
    joined = SingleFile(tmp_path / "whole", part, {})
    begun, let_go = threading.Event(), threading.Event()
    whole_file = pq.ParquetFile

    def slow(path):
        begun.set()
        let_go.wait(10)
        return whole_file(path)

    monkeypatch.setattr(single_file.pq, "ParquetFile", slow)
    for number in range(7):
        joined.offer(number)
    assert begun.wait(10)
    threading.Timer(0.2, let_go.set).start()
    joined.close()
    assert joined._next == 1, "of the backlog only what was begun is appended"
    assert not (tmp_path / "whole").exists()


def test_a_disk_that_refuses_the_end_of_an_unwanted_file_is_no_error(tmp_path, part, monkeypatch):
    joined = SingleFile(tmp_path / "whole", part, {})
    joined.offer(0, TABLES[0])
    joined._wait()

    def refuse(_writer):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(pq.ParquetWriter, "close", refuse)
        joined.close()
    assert not (tmp_path / "whole").exists()
