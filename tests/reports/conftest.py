"""One whole profile for every test that reads its report, its page or its trace."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from genrec_batch.cli.app import app


@pytest.fixture(scope="session")
def profiled(tmp_path_factory, model_dir, log):
    """A whole profile of the tiny model over the small log: the JSON, the page, the trace, what was printed."""
    folder = tmp_path_factory.mktemp("profile")
    log.write_parquet(folder / "events.parquet")
    arguments = [
        "profile", "--model", model_dir, "--data", folder / "events.parquet", "--batch-sizes", "1,8", "--seconds", "0",
        "--compare", "lightweight,tiny", "--engines", "onnxruntime,torch", "--top-k", "5", "--max-events", "20",
        "--html", folder / "report.html", "--json", folder / "report.json", "--trace", folder / "trace.json",
    ]  # fmt: skip
    result = CliRunner().invoke(app, [str(a) for a in arguments], env={"COLUMNS": "160"})
    assert result.exit_code == 0, result.output
    return folder, result
