"""The README cannot rot: its commands run, and every command and module is in it."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from genrec_batch.cli import app

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def console_commands():
    blocks = re.findall(r"```console\n(.*?)```", README, flags=re.DOTALL)
    return [line[2:] for block in blocks for line in block.splitlines() if line.startswith("$ ")]


@pytest.mark.slow
def test_the_commands_of_the_readme_run_in_their_order(run):
    for name in ("events", "users", "videos"):
        shutil.copy(ROOT / "sample_data" / f"{name}.parquet", f"{name}.parquet")
    commands = console_commands()
    assert len(commands) > 8
    for command in commands:
        program, *arguments = shlex.split(command)
        assert program == "genrec-batch"
        done = run(*arguments)
        assert done.code == 0, (command, done.err)


def test_every_command_and_module_is_in_the_readme():
    help_ = CliRunner().invoke(app, ["--help"], env={"COLUMNS": "200"}).stdout
    for command in re.findall(r"^│ (\w+) ", help_, flags=re.MULTILINE):
        assert f"genrec-batch {command}" in README or f"**{command}**" in README, command
    for path in (ROOT / "genrec_batch").iterdir():
        name = path.name.removesuffix(".py")
        if not name.startswith("_") and name not in ("schemas", "py.typed"):
            assert f"`{name}" in README, name
