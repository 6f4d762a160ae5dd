"""The pages cannot rot: every command on them runs and prints what they show, or says why it cannot run here."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import duckdb
import pytest
import typer

from docs import render
from genrec_batch.cli.app import app

ROOT = Path(__file__).parents[2]
FENCE = re.compile(r"^( *)```(\w*)(?: not run: ([^\n]*))?\n(.*?)^ *```$", re.DOTALL | re.MULTILINE)
MACHINE = re.compile(
    r"engine|users/s|precision|^stage seconds"
)  # lines that depend on what is installed or on the machine
REASONS = (  # why a block may be marked `not run`, by how the reason begins
    "needs an NVIDIA GPU",
    "needs a cluster",
    "needs Docker",
    "needs Airflow",
    "needs cron",
    "needs a bucket",
    "installs packages",
    "measures for minutes",
    "changes the shell",
    "make builds",
    "a picture of",
    "tests/",  # runs in the test file that it names
)


def blocks(text):
    """The fenced blocks of a page in order: language, why it is not run (or None), content."""
    return [(language, reason, textwrap.dedent(content)) for _, language, reason, content in fences(text)]


def fences(text):
    return [(*found[:2], found[2] or None, found[3]) for found in FENCE.findall(text)]


def console_commands(text):
    """Each command of a console block with the lines shown under it."""
    commands = []
    for line in text.splitlines():
        if line.startswith("$ "):
            commands.append((line[2:], []))
        elif line.strip() not in ("", "..."):
            commands[-1][1].append(line)
    return commands


def alike(line):
    """A line of output without what differs from run to run: numbers, ids, widths of columns."""
    line = re.sub(r"\b[0-9a-f]{16}\b", "#", line)
    line = re.sub(r"\d(?:[\d.,:T+-]*\d)?", "#", line)
    return re.sub(r"\s+", " ", re.sub(r"[━─]+", "─", line)).strip()


def shown_by(lines, printed):
    """The shown lines that are not in what was printed."""
    there = {alike(line) for line in printed.splitlines()}
    missing = []
    for line in lines:
        wanted = alike(line)
        found = wanted in there or MACHINE.search(line)
        if line.endswith("..."):
            found = found or any(line.startswith(alike(wanted[:-3])) for line in there)
        if not found:
            missing.append(line)
    return missing


def run_console(run, content):
    for command, shown in console_commands(content):
        program, *arguments = shlex.split(command)
        assert program == "genrec-batch", f"{command}: what is not genrec-batch goes into a block of sh"
        done = run(*arguments)
        assert done.code == 0, (command, done.err)
        assert shown_by(shown, done.out + done.err) == [], (command, done.out + done.err)


def run_block(run, page, language, content):
    if language == "console":
        run_console(run, content)
    elif language == "python":
        exec(compile(content, page, "exec"), {"__name__": "page"})  # noqa: S102 (it is our own page)
    elif language == "sql":
        assert duckdb.sql(content).fetchall()
    elif language == "toml":
        name = content.splitlines()[0].removeprefix("# ")
        assert name.endswith(".toml"), f"{page}: the first line of a block of TOML names its file: {name}"
        Path(name).write_text(content)
    elif language == "sh":
        done = subprocess.run(["sh", "-euc", content], capture_output=True, text=True, check=False)
        assert done.returncode == 0, (content, done.stderr)
    else:
        assert language in ("text", "json"), f"{page}: a block of {language or 'no language'} is neither run nor text"
        assert not re.search(r"^(\$ |genrec-batch )", content, re.MULTILINE), f"{page}: a command in a block of text"


@pytest.fixture
def sample_folder(tmp_path, monkeypatch):
    """The folder that the pages' commands run in: the sample tables, `jobs/` beside them, genrec-batch on the PATH."""
    for name in ("events", "users", "videos"):
        shutil.copy(ROOT / "sample_data" / f"{name}.parquet", f"{name}.parquet")
    Path("jobs").symlink_to(ROOT / "jobs")
    program = tmp_path / "bin" / "genrec-batch"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nPYTHONPATH="{ROOT}" exec "{sys.executable}" -m genrec_batch "$@"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=os.pathsep)
    monkeypatch.setenv("COLUMNS", "120")
    return tmp_path


@pytest.mark.slow
@pytest.mark.usefixtures("sample_folder")
@pytest.mark.parametrize("path", render.PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_commands_of_a_page_run_and_print_what_it_shows(path, run, monkeypatch):
    text = path.read_text()
    if path.parent != ROOT:  # the README shows what auto takes; elsewhere a start without PyTorch saves seconds
        monkeypatch.setenv("GENREC_BATCH_ENGINE", "onnxruntime")
    if path == ROOT / "README.md":  # says that model/ is the one in sample_data/
        shutil.copytree(ROOT / "sample_data" / "model", "model")
    elif "$ genrec-batch model init model/" not in text:  # the page says that model/ is a model directory
        assert run("model", "init", "model", "--preset", "tiny", "--catalog-from", "events.parquet").code == 0
    for language, reason, content in blocks(text):
        if reason is None:
            run_block(run, path.name, language, content)


@pytest.mark.parametrize("path", render.PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_what_is_not_run_says_why_and_has_commands_that_exist(path):
    for language, reason, content in blocks(path.read_text()):
        if reason is None:
            continue
        assert reason.startswith(REASONS), reason
        if reason.startswith("tests/"):
            assert (ROOT / reason.split()[0]).is_file(), reason
        for line in content.replace("\\\n", " ").splitlines():
            words = shlex.split(line.removeprefix("$ "), comments=True) if language in ("console", "sh") else []
            if words[:1] == ["genrec-batch"]:
                parsed(typer.main.get_command(app), words[1:])
            if words[:1] == ["python"] and words[1].endswith(".py"):
                assert (ROOT / words[1]).is_file(), line
                source = (ROOT / words[1]).read_text()
                own = words[: words.index("--")] if "--" in words else words
                assert all(f'"{word}"' in source for word in own if word.startswith("--")), line


def parsed(command, words):
    """Fail unless the command line takes these words; nothing is run."""
    context = command.make_context(command.name or "genrec-batch", list(words))
    if hasattr(command, "commands"):
        name, chosen, rest = command.resolve_command(context, list(words))
        assert chosen is not None, name
        parsed(chosen, rest)


@pytest.mark.parametrize("path", render.PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_option_that_a_page_names_exists(path):
    text = path.read_text()
    known = {flag for name in commands() for flag in flags(name)} | set(render.PROGRAM)
    known |= set(
        re.findall(r'"(--[a-z][a-z0-9-]*)"', "".join(p.read_text() for p in ROOT.glob("tests/benchmarks/*.py")))
    )
    named = {
        flag
        for line in text.splitlines()
        if not OTHERS.search(line)
        for flag in re.findall(r"`(--[a-z][a-z0-9-]*)", line)
    }
    assert named <= known, named - known


OTHERS = re.compile(r"kubectl|docker|airflow|cron|pip|pytest|git|render\.py")  # lines about other programs


def commands(group=None, prefix=""):
    """Every command's words, such as `model init`."""
    group = group or typer.main.get_command(app)
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, f"{prefix}{name} ")
        else:
            yield f"{prefix}{name}"


def flags(name):
    return [flag for option in render.listed(name).values() for flag in (*option.opts, *option.secondary_opts)]


@pytest.mark.parametrize("name", list(commands()))
def test_a_command_has_a_section_with_all_its_options(name):
    page = (ROOT / "docs" / "commands.md").read_text()
    heading = f"\n## {name.split()[0]}\n" if " " not in name else f"\n### {name}\n"
    assert heading in page, f"docs/commands.md has no section {heading.strip()!r}"
    rest = page.split(heading, 1)[1]
    section = re.split(r"^##+ ", rest, maxsplit=1, flags=re.MULTILINE)[0]
    shared = page.split("\n## Options of every command\n", 1)[1].split("\n## ", 1)[0]
    beyond = re.findall(r"<!-- options (.+?) beyond (.+?) -->", section)
    known = {flag for _, other in beyond for flag in flags(other)}
    shown = set(re.findall(r"(?<=[`/])--[a-z][a-z0-9-]*(?=[`/])", section + shared))
    missing = set(flags(name)) - shown - known
    assert not missing, missing


def test_the_readme_of_the_project_can_be_read_to_its_end():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 160


def test_a_line_that_a_command_does_not_print_is_noticed():
    printed = "users             505\n03:20:46 INFO     engine: torch in fp32\nseconds 1.5\n"
    assert shown_by(["users   12,312", "03:20:46 INFO  engine: onnxruntime in fp32", "seconds ..."], printed) == []
    assert shown_by(["videos 505"], printed) == ["videos 505"]
