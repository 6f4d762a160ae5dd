"""What a person at a terminal notices: one line for a mistake, quiet pipes, progress, help, widths, completion.

Also tests `usage` and `runtime.console`.
"""

from __future__ import annotations

import json
import os
import pty
import re
import select
import shutil
import signal
import subprocess
import sys
import time
import uuid

import polars as pl
import pytest

from genrec_batch.cli import exits
from genrec_batch.cli.model import PRESETS
from genrec_batch.core.errors import ConfigError
from genrec_batch.engines import registry
from genrec_batch.model import weights
from genrec_batch.runtime import console

COMMAND = [sys.executable, "-m", "genrec_batch"]
PLAIN = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def started(*arguments, **options):
    environment = {name: value for name, value in os.environ.items() if name != "COLUMNS"}
    environment |= options.pop("env", {})
    return subprocess.Popen([*COMMAND, *map(str, arguments)], env=environment, **options)


def on_a_terminal(*arguments, columns=80, until=None, **environment):
    """Run a command on a pseudo-terminal of so many columns; return its exit code and all that it drew."""
    main, side = pty.openpty()
    size = {"COLUMNS": str(columns), "LINES": "40", "TERM": "xterm"}
    process = started(*arguments, stdin=side, stdout=side, stderr=side, env=size | environment)
    os.close(side)
    drawn, deadline = b"", time.monotonic() + 120
    while time.monotonic() < deadline:
        if not select.select([main], [], [], 0.2)[0]:
            if process.poll() is not None:
                break
            continue
        try:
            drawn += os.read(main, 65536)
        except OSError:  # the other side is closed
            break
        if until is not None and until in drawn:
            process.send_signal(signal.SIGINT)
            until = None
    process.wait(timeout=60)
    os.close(main)
    return process.returncode, drawn.decode(errors="replace")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("scroe", "no such command 'scroe'. Did you mean 'score'?"),
        ("model exprot x", "no such command 'exprot'. Did you mean 'export', 'promote'?"),
        ("score a b --top-kk 3", "no such option --top-kk. Did you mean '--top-k'?"),
        ("score a b --top-k many", "--top-k 'many': not a whole number."),
        ("score a b --max-rejects some", "--max-rejects 'some': not a number."),
        ("sample x.parquet --user 3", "no such option --user. Did you mean '--users'"),
        ("inspect recs --top 0", "--top '0': at least 1."),
        ("score", "missing argument 'INPUT'."),
        ("model init x --preset refrence", "Did you mean 'reference'?"),
        ("score a b --engine torhc", "Did you mean 'torch'?"),
    ],
)
def test_a_mistake_is_told_in_one_line_with_the_way_out(run, line, said):
    done = run(*line.split())
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("error: ")
    assert said in done.err
    assert done.err.count("\n") == 1


@pytest.mark.parametrize(
    ("line", "environment", "file"),
    [
        ("score a b --top-kk 3 --log-format json", {}, ""),
        ("score a b --log-format=json --top-k many", {}, ""),
        ("score --log-format json", {}, ""),
        ("scroe --log-format json", {}, ""),
        ("sample", {"GENREC_BATCH_LOG_FORMAT": "json"}, ""),
        ("score a b --top-k many", {}, 'log-format = "json"\n'),
        ("model init x --preset refrence --log-format json", {}, ""),
    ],
)
def test_a_mistake_is_a_line_of_json_where_logs_are(run, tmp_path, line, environment, file):
    (tmp_path / "genrec-batch.toml").write_text(file)
    done = run(*line.split(), **environment)
    assert done.code == 2
    (said,) = done.err.splitlines()
    assert json.loads(said)["level"] == "error"


def test_a_wrong_value_is_named_where_it_stands(run, tmp_path):
    done = run("score", "a", "b", GENREC_BATCH_TOP_K="many")
    assert "GENREC_BATCH_TOP_K=many: not a whole number" in done.err
    (tmp_path / "genrec-batch.toml").write_text('top-k = "many"\n')
    assert "genrec-batch.toml: top-k = 'many': not a whole number" in run("score", "a", "b").err


def test_an_exported_version_is_no_flag(run):
    done = run("layout", GENREC_BATCH_VERSION="1.2", GENREC_BATCH_SHOW_COMPLETION="1")
    assert (done.code, len(done.out.splitlines())) == (0, 1024)


@pytest.mark.parametrize(
    "arguments", [("score", "events.parquet", "--user", "103", "--quiet"), ("layout",), ("--help",)]
)
def test_a_reader_that_goes_away_ends_it_quietly(log_file, model_dir, arguments):
    more = ("--model", model_dir) if arguments[0] == "score" else ()
    reading, writing = os.pipe()
    os.close(reading)  # gone before the first line
    process = started(*arguments, *more, stdout=writing, stderr=subprocess.PIPE, text=True)
    os.close(writing)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 141
    assert said == ""
    assert log_file.exists()


def test_help_has_examples_groups_and_defaults(run):
    top = run("--help").out
    assert all(group in top for group in ("Score", "Look", "Try", "Model"))
    assert "GENREC_BATCH_VERSION" not in top
    for command in ("score", "features", "verify", "profile", "inspect", "demo", "sample", "layout"):
        assert f"Example: genrec-batch {command}" in run(command, "--help").out
    for command in ("init", "import", "info", "export", "build"):
        assert f"Example: genrec-batch model {command}" in run("model", command, "--help").out
    for flag, default in (("--top-k", "10"), ("--max-events", "50"), ("--memory-limit", "1GiB")):
        help_ = " ".join(run("score", "--help").out.rsplit(f"{flag} ", 1)[1].split())
        assert f"[default: {default}]" in help_[:400]


@pytest.mark.parametrize("columns", [40, 80])
def test_nothing_is_wider_than_the_terminal(log_file, model_dir, columns):
    given = ("--model", model_dir, "--top-k", "3")
    for arguments in (
        ("--help",),
        ("score", "--help"),
        ("score", log_file, f"o{columns}.parquet", *given),
        ("score", log_file, "--user", "103", *given),
        ("inspect", f"o{columns}.parquet"),
        ("model", "info", model_dir),
    ):
        code, drawn = on_a_terminal(*arguments, columns=columns)
        assert code == 0, drawn
        shown = [line.rsplit("\r", 1)[-1] for line in PLAIN.sub("", drawn).replace("\r\n", "\n").split("\n")]
        borders = [line for line in shown if line[:1] in "╭│╰┏┃┡└━─" and line]
        assert max(map(len, borders), default=0) <= columns, [line for line in borders if len(line) > columns]


def test_no_color_and_pipes_have_no_colours(run, log_file, model_dir):
    code, drawn = on_a_terminal("model", "info", model_dir, NO_COLOR="1")
    assert code == 0
    assert not re.search(r"\x1b\[(3|4|9|10)\d", drawn)
    done = subprocess.run(
        [*COMMAND, "score", str(log_file), "--user", "103", "--model", str(model_dir)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "\x1b" not in done.stdout + done.stderr
    assert run("layout").code == 0


def test_lines_in_a_pipe_end_without_blanks(log_file, model_dir):
    for arguments in (["score", log_file, "o.parquet", "--model", model_dir], ["inspect", "o.parquet"]):
        done = subprocess.run([*COMMAND, *map(str, arguments)], capture_output=True, text=True, check=True)
        lines = (done.stdout + done.stderr).splitlines()
        assert len(lines) > 10
        assert [line for line in lines if line != line.rstrip()] == []


def test_progress_shows_count_rate_and_time_left(monkeypatch):
    written = []
    for columns in (40, 100):
        screen = console.Console(force_terminal=True, width=columns, file=open(os.devnull, "w"), record=True)  # noqa: SIM115, PTH123
        monkeypatch.setattr(console, "stderr", screen)
        console.set_up(quiet=False, verbose=False, log_format="text")
        with console.progress("reading", 2_000_000, "rows") as advance:
            advance(1_000_000)
            time.sleep(0.3)
        screen.file.close()
        written.append(screen.export_text())
    narrow, wide = written
    assert "50%" in narrow
    assert "1,000,000 of 2,000,000 rows" in wide
    assert all(re.search(r"[\d,]+/s +\S+ left", text) for text in written)
    assert "2,000,000" not in narrow, "a narrow terminal has no room for it"


def test_a_step_says_what_it_is_at_beside_its_title(monkeypatch):
    screen = console.Console(force_terminal=True, width=100, file=open(os.devnull, "w"), record=True)  # noqa: SIM115, PTH123
    monkeypatch.setattr(console, "stderr", screen)
    console.set_up(quiet=False, verbose=False, log_format="text")
    console.doing("nobody looks")
    with console.busy("opening the engine"):
        console.doing("engine 2 of 4, 30%")
        time.sleep(0.3)
    with console.progress("score", 10, "users"):
        console.doing("engine 3 of 4, 0%")
        time.sleep(0.3)
        with console.busy("reading a table"):  # a second display would be an error of Rich
            time.sleep(0.3)
        console.doing("")
        time.sleep(0.3)
    screen.file.close()
    shown = screen.export_text()
    assert "nobody looks" not in shown
    for text in ("opening the engine: engine 2 of 4, 30%", "score: engine 3 of 4, 0%", "score: reading a table"):
        assert text in shown, shown
    assert re.search(r"score +━", shown.rsplit("\n", 2)[-1] or shown)


def test_opening_an_engine_says_which(monkeypatch):
    pytest.importorskip("onnxruntime")
    told = []
    monkeypatch.setattr(registry, "doing", told.append)
    registry.open_engine(
        weights.demo_model(weights.PRESETS["tiny"]), name="onnxruntime", device="cpu", precision="fp32"
    )
    assert told == ["onnxruntime in fp32 on cpu"]


def test_progress_is_not_shown_where_logs_are_json(monkeypatch):
    monkeypatch.setattr(console, "stderr", console.Console(force_terminal=True, width=80))
    console.set_up(quiet=False, verbose=False, log_format="json")
    with console.progress("reading", 10, "rows") as advance, console.busy("waiting"):
        assert advance is console.nowhere


def test_a_shell_completes_options_and_choices():
    def completed(words):
        said = {
            "COMP_WORDS": words,
            "COMP_CWORD": str(len(words.split(" ")) - 1),
            "_GENREC_BATCH_COMPLETE": "complete_bash",
        }
        code = "import sys; from genrec_batch.cli.app import app; app(prog_name='genrec-batch')"
        return subprocess.run(
            [sys.executable, "-c", code], env=os.environ | said, capture_output=True, text=True, check=False
        ).stdout.split()

    assert completed("genrec-batch sc") == ["score"]
    assert "--top-k" in completed("genrec-batch score --top")
    assert completed("genrec-batch score --engine o") == ["onnxruntime"]
    assert completed("genrec-batch model init --preset ") == list(weights.PRESETS)
    assert tuple(weights.PRESETS) == PRESETS


def test_ctrl_c_is_one_line(log_file, model_dir, tmp_path):
    pl.concat([pl.read_parquet(log_file).with_columns(pl.col("user_id") + 1000 * i) for i in range(200)]).write_parquet(
        "large.parquet"
    )
    code, drawn = on_a_terminal(
        "score", "large.parquet", "out", "--model", model_dir, "--shard-users", "50", "--beam-width", "4",
        until=b"score", columns=100,
    )  # fmt: skip
    assert code == 130, drawn
    assert "interrupted; run the same command again" in PLAIN.sub("", drawn)
    assert "Traceback" not in drawn
    assert not (tmp_path / "out").exists()


def test_out_of_memory_is_no_fault_of_ours(run, monkeypatch, log_file):
    def hungry(*_, **__):
        raise MemoryError("Unable to allocate 9 GiB")

    monkeypatch.setattr("genrec_batch.scoring.pipeline.score", hungry)
    done = run("score", log_file, "out.parquet")
    assert (done.code, "--beam-width" in done.err) == (75, True)


def test_given_candidates_that_were_seen_are_counted(run, log, log_file, model_dir):
    seen = log.filter(pl.col("user_id") == 103)["video_id"].unique().sort().to_list()
    unseen = sorted(set(log["video_id"]) - set(seen))[:2]
    pl.DataFrame({"user_id": [103], "video_id": [seen[:3] + unseen]}).write_parquet("given.parquet")
    done = run("score", log_file, "a.parquet", "--candidates", "given.parquet", "--model", model_dir)
    assert done.code == 0, done.err
    assert done.summary["seen_candidates"] == 3
    assert "3 given candidates were left out, as their users have seen them; --include-seen keeps them" in done.err
    assert set(pl.read_parquet("a.parquet")["video_id"]) == set(unseen)
    done = run("score", log_file, "b.parquet", "--candidates", "given.parquet", "--include-seen", "--model", model_dir)
    assert done.summary["seen_candidates"] == 0


@pytest.mark.skipif(shutil.which("tmux") is None, reason="tmux is not installed")
@pytest.mark.parametrize("columns", [40, 80])
def test_tables_are_whole_in_a_real_terminal(log_file, model_dir, columns):
    session = f"genrec-{uuid.uuid4().hex[:8]}"
    line = " ".join(
        [*COMMAND, "score", str(log_file), "--user", "103", "--top-k", "2", "--quiet", "--model", str(model_dir)]
    )
    tmux, shown = ["tmux", "-L", session], f"env -u COLUMNS {line}; echo ready; cat"
    subprocess.run(
        [*tmux, "new-session", "-d", "-x", str(columns), "-y", "50", "-s", session, shown],
        check=True,
    )  # fmt: skip
    try:
        deadline, screen = time.monotonic() + 60, ""
        while "ready" not in screen and time.monotonic() < deadline:
            time.sleep(0.3)
            screen = subprocess.run([*tmux, "capture-pane", "-p"], capture_output=True, text=True, check=True).stdout
    finally:
        subprocess.run([*tmux, "kill-server"], check=False)
    lines = screen.splitlines()
    (top,) = (n for n, text in enumerate(lines) if text.startswith("┏"))
    (end,) = (n for n, text in enumerate(lines) if text.startswith("└"))
    assert len({len(text) for text in lines[top : end + 1]}) == 1, screen
    assert "ready" in screen


def test_an_error_outside_a_command_is_told(capsys):
    with pytest.raises(Exception, match="2"):
        exits.fail(ConfigError("--x: no"))
    assert "--x: no" in capsys.readouterr().err
