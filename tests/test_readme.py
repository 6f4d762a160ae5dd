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
    """Each command of the README with the output lines shown under it."""
    commands = []
    for block in re.findall(r"```console\n(.*?)```", README, flags=re.DOTALL):
        for line in block.splitlines():
            if line.startswith("$ "):
                commands.append((line[2:], []))
            elif line != "...":
                commands[-1][1].append(line.strip())
    return commands


@pytest.mark.slow
def test_the_commands_of_the_readme_run_and_show_what_it_says(run):
    for name in ("events", "users", "videos"):
        shutil.copy(ROOT / "sample_data" / f"{name}.parquet", f"{name}.parquet")
    commands = console_commands()
    assert len(commands) > 8
    for command, shown in commands:
        program, *arguments = shlex.split(command)
        assert program == "genrec-batch"
        done = run(*arguments)
        assert done.code == 0, (command, done.err)
        if arguments[0] in ("model", "layout"):
            printed = {line.strip() for line in done.out.splitlines()}
            assert set(shown) <= printed, (command, set(shown) - printed)


def test_nothing_in_the_readme_waits_to_be_written():
    assert "@@" not in README


def test_every_command_and_module_is_in_the_readme():
    help_ = CliRunner().invoke(app, ["--help"], env={"COLUMNS": "200"}).stdout
    for command in re.findall(r"^│ (\w+) ", help_, flags=re.MULTILINE):
        assert f"genrec-batch {command}" in README or f"**{command}**" in README, command
    for path in (ROOT / "genrec_batch").iterdir():
        name = path.name.removesuffix(".py")
        if not name.startswith("_") and name not in ("schemas", "py.typed"):
            assert f"`{name}" in README, name
