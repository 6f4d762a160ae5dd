"""Files that carry the sha256 of themselves, written by `parquet` and `single_file`."""

from __future__ import annotations

import random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from genrec_batch.io import parquet, sealed_file

TABLE = pa.table({"user_id": list(range(50)), "score": [value / 7 for value in range(50)]})


@pytest.fixture
def file(tmp_path):
    place = tmp_path / "part-00000.parquet"
    parquet.write(place, TABLE.replace_schema_metadata({"genrec.run_id": "1"}))
    return place


def test_every_flipped_bit_is_noticed_whether_a_checksum_covers_it_or_not(file):
    content = file.read_bytes()
    assert parquet.is_whole(file)
    footer = len(content) - int.from_bytes(content[-8:-4], "little")
    some = random.Random(1).sample(range(len(content)), 200)
    for place in {*range(footer, len(content), 7), *range(len(content) - 12, len(content) - 4), *some}:
        damaged = bytearray(content)
        damaged[place] ^= 1 << place % 8
        file.write_bytes(damaged)
        assert not parquet.is_whole(file), place


@pytest.mark.parametrize("content", [b"", b"PAR1", b"PAR1" + b"\xff" * 8, b"\0" * 100])
def test_what_is_no_sealed_file_is_not_whole(file, content):
    file.write_bytes(content)
    assert not parquet.is_whole(file)
    file.unlink()
    assert not parquet.is_whole(file)


def test_a_file_is_longer_by_nothing_that_a_reader_sees(file, tmp_path):
    assert pq.read_table(file).equals(TABLE)
    parquet.write(tmp_path / "again.parquet", TABLE.replace_schema_metadata({"genrec.run_id": "1"}))
    assert (tmp_path / "again.parquet").read_bytes() == file.read_bytes()
    assert len(pq.read_metadata(file).metadata[sealed_file.NAME.encode()]) == 64
