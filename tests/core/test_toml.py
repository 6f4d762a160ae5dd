"""TOML files in the encodings that editors save them in."""

from __future__ import annotations

import shutil
import subprocess

import pytest

TEXT = '# Größe\nuser_id = "user_id"\n'


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "latin-1"])
def test_a_schema_file_in_any_encoding_is_read_or_converted_as_the_error_says(
    tmp_path, run, log_file, model_dir, encoding
):
    (tmp_path / "my.toml").write_bytes(TEXT.encode(encoding))
    score = ["score", log_file, "recs.parquet", "--model", model_dir, "--top-k", 2, "--schema"]
    ran = run(*score, "my.toml")
    if encoding.startswith("utf-8"):
        assert ran.code == 0, ran.err
        return
    assert ran.code == 2
    advice = ran.err.partition("convert it with ")[2].strip().replace("\n", " ")
    assert advice.startswith("iconv -f")
    if shutil.which("iconv") is None:
        pytest.skip("no iconv here")
    subprocess.run(["sh", "-c", advice], check=True, cwd=tmp_path)
    ran = run(*score, "new.toml")
    assert ran.code == 0, ran.err


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_the_option_file_too(tmp_path, run, log_file, model_dir, encoding):
    (tmp_path / "genrec-batch.toml").write_bytes("top_k = 2\n".encode(encoding))
    ran = run("score", log_file, "recs.parquet", "--model", model_dir)
    assert ran.code == (0 if encoding == "utf-8-sig" else 2), ran.err
    assert ("UTF-16" in ran.err) == (encoding == "utf-16")
