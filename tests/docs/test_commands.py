"""The README cannot rot: its commands run, and every command and module is in it."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import duckdb
import pytest
from typer.testing import CliRunner

from genrec_batch.cli.app import app

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


RECIPES = README[README.index("## Recipes\n") : README.index("## Speed\n")]


def console_commands(text):
    """Each command of a text with the output lines shown under it."""
    commands = []
    for line in text.splitlines():
        if line.startswith("$ "):
            commands.append((line[2:], []))
        elif line != "...":
            commands[-1][1].append(line.strip())
    return commands


def blocks(text):
    """The fenced blocks of a text in order: language and content."""
    return re.findall(r"^```(\w+)\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)


def run_console(run, text):
    for command, shown in console_commands(text):
        program, *arguments = shlex.split(command)
        assert program == "genrec-batch"
        done = run(*arguments)
        assert done.code == 0, (command, done.err)
        if arguments[0] in ("model", "layout"):
            printed = {line.strip() for line in done.out.splitlines()}
            assert set(shown) <= printed, (command, set(shown) - printed)


@pytest.fixture
def sample_folder(tmp_path):
    """The folder that the README's commands run in: the sample tables, and `jobs/` beside them."""
    for name in ("events", "users", "videos"):
        shutil.copy(ROOT / "sample_data" / f"{name}.parquet", f"{name}.parquet")
    Path("jobs").symlink_to(ROOT / "jobs")
    return tmp_path


@pytest.mark.slow
@pytest.mark.usefixtures("sample_folder")
def test_the_commands_of_the_readme_run_and_show_what_it_says(run):
    consoles = [content for language, content in blocks(README.replace(RECIPES, "")) if language == "console"]
    assert sum(len(console_commands(content)) for content in consoles) > 8
    for content in consoles:
        run_console(run, content)


@pytest.mark.slow
def test_the_recipes_of_the_readme_run(run, sample_folder, monkeypatch, capsys):
    program = sample_folder / "bin" / "genrec-batch"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nPYTHONPATH="{ROOT}" exec "{sys.executable}" -m genrec_batch "$@"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=os.pathsep)
    assert run("model", "init", "model", "--preset", "tiny", "--catalog-from", "events.parquet").code == 0
    ran = []
    for language, content in blocks(RECIPES):
        ran.append(language)
        if language == "console":
            run_console(run, content)
        elif language == "python":
            exec(compile(content, "README.md", "exec"), {"__name__": "recipe"})  # noqa: S102 (it is our own README)
        elif language == "sql":
            assert duckdb.sql(content).fetchall()
        elif language == "toml":
            Path(content.splitlines()[0].removeprefix("# ")).write_text(content)
        else:
            done = subprocess.run(["sh", "-euc", content], capture_output=True, text=True, check=False)
            assert (language, done.returncode) == ("sh", 0), (content, done.stderr)
    assert set(ran) == {"console", "python", "sql", "toml", "sh"}
    assert "video_id" in capsys.readouterr().out
    assert json.loads(Path("summary.json").read_text())["rows"] == 5000
    assert Path("nightly/current/_SUCCESS").exists()


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
