"""`exits` and `runtime.signals`: signals that arrive in twos, too early, too late.

Also tests `__main__`.
"""

from __future__ import annotations

import logging
import os
import pty
import signal
import subprocess
import sys
import time
from contextlib import suppress

import pytest
import typer

from genrec_batch.cli import exits
from genrec_batch.runtime import console, signals


class Again(logging.Handler):
    """The second SIGTERM, while the first is being told."""

    def emit(self, record):
        del record
        signal.raise_signal(signal.SIGTERM)


def test_a_second_sigterm_does_not_break_the_first():
    """`timeout` sends SIGTERM to its child and then to its group; the exit code must stay 143."""
    before, again = {each: signal.getsignal(each) for each in signals.STOPS}, Again()
    console.LOG.addHandler(again)
    try:
        with pytest.raises(typer.Exit) as left:
            exits.guarded(lambda: signal.raise_signal(signal.SIGTERM), verbose=False)
    finally:
        console.LOG.removeHandler(again)
        for each, handler in before.items():
            signal.signal(each, handler)
    assert left.value.exit_code == 143


@pytest.fixture(
    params=[(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)], ids=["SIGTERM", "SIGINT", "SIGHUP"]
)
def stop(request):
    number, code = request.param
    before = {each: signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}
    yield number, code
    signals.begin_command()
    for each, handler in before.items():
        signal.signal(each, handler)


def test_a_signal_while_the_only_output_is_put_in_place_or_later_changes_nothing(stop):
    done = []

    def work():
        signals.end_with_output()
        with signals.placing():
            signal.raise_signal(stop[0])
            done.append("placed")
        signal.raise_signal(stop[0])
        done.append("said")

    exits.guarded(work, verbose=False)
    assert done == ["placed", "said"]


def test_a_command_that_goes_on_ends_after_the_output_is_in_place(stop):
    done = []

    def work():
        with signals.placing():
            signal.raise_signal(stop[0])
            done.append("placed")
        done.append("went on")

    with pytest.raises(typer.Exit) as left:
        exits.guarded(work, verbose=False)
    assert (left.value.exit_code, done) == (stop[1], ["placed"])


def test_a_signal_after_an_output_that_could_not_be_placed_still_ends_the_run(stop, tmp_path):
    def work():
        signals.end_with_output()
        with suppress(OSError), signals.placing():
            (tmp_path / "none").rename(tmp_path / "recs")
        signal.raise_signal(stop[0])

    with pytest.raises(typer.Exit) as left:
        exits.guarded(work, verbose=False)
    assert left.value.exit_code == stop[1]


@pytest.mark.parametrize("name", ["recs.parquet", "recs"])
def test_a_run_that_is_stopped_when_its_output_is_there_is_done(stop, log_file, model_dir, tmp_path, name):
    command = [sys.executable, "-m", "genrec_batch", "score", str(log_file), str(tmp_path / name)]
    command += ["--model", str(model_dir), "--precision", "fp32", "--quiet"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while not (tmp_path / name).exists() and process.poll() is None:
        time.sleep(0.0005)
    process.send_signal(stop[0])
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert '"status": "ok"' in out


def test_a_signal_is_told_in_one_line(stop, monkeypatch):
    number, code = stop
    told = []
    monkeypatch.setattr(console.LOG, "warning", lambda text, *values: told.append(text % values))
    with pytest.raises(typer.Exit) as left:
        exits.guarded(lambda: signal.raise_signal(number), verbose=False)
    said = {129: "the terminal went away", 130: "interrupted", 143: "terminated"}[code]
    assert left.value.exit_code == code
    assert told == [f"{said}; run the same command again to resume"]


def test_under_nohup_a_terminal_that_goes_away_changes_nothing(stop):
    del stop  # puts the handlers back
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    done = []
    exits.guarded(lambda: (signal.raise_signal(signal.SIGHUP), done.append("went on")), verbose=False)
    assert done == ["went on"]
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN


@pytest.mark.parametrize("command", ["score", "layout", "--help", "--version"])
def test_under_nohup_a_run_says_that_its_terminal_is_closed(log_file, model_dir, tmp_path, command):
    """With exit code 129 and one line, and of a run that its output is whole."""
    arguments = [command]
    if command == "score":
        arguments += [str(log_file), "recs.parquet", "--model", str(model_dir), "--precision", "fp32", "--quiet"]
    ours, its = pty.openpty()
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # the process gets it from us
    process = subprocess.Popen(
        [sys.executable, "-m", "genrec_batch", *arguments],
        stdout=its,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    signal.signal(signal.SIGHUP, before)
    os.close(its)
    os.close(ours)
    (said,) = process.communicate(timeout=60)[1].splitlines()
    assert process.returncode == 129, said
    whole = "; the run itself is done: the output recs.parquet is whole, and --if-exists resume accepts it"
    assert said.startswith("error: the terminal went away, and stdout with it")
    assert said.endswith(whole) == (command == "score") == (tmp_path / "recs.parquet").exists()


@pytest.mark.parametrize("lost", [True, False], ids=["lost", "held up"])
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_that_does_not_reach_the_command_still_ends_it(tmp_path, number, code, lost):
    """Python drops what is raised in a callback, and a thread that hangs holds up what waits for it."""
    text = f"""if True:
        import signal, sys, time, weakref
        from genrec_batch.core import layout
        from genrec_batch.runtime import threads
        from genrec_batch.__main__ import main
        threads.GRACE_S = 0.5
        class Held: pass
        def describe():
            if {lost}:
                held = Held()
                gone = weakref.ref(held, lambda _: signal.raise_signal({int(number)}))
                del held
                time.sleep(20)
            try:
                signal.raise_signal({int(number)})
            finally:
                time.sleep(20)
        layout.describe = describe
        sys.argv = ["genrec-batch", "layout"]
        main()"""
    (tmp_path / "probe.py").write_text(text)
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-m", "probe"], capture_output=True, text=True, check=False)
    assert (done.returncode, time.monotonic() - began < 15) == (code, True), done.stderr
    assert done.stderr.endswith("ending now; the same command goes on where it stopped\n")


def test_an_interrupt_in_the_middle_of_an_import_has_the_same_exit_code(tmp_path):
    """`python -m` ends itself by SIGINT where a KeyboardInterrupt went through `exec` of a text, as in dataclasses."""
    code = """if True:
        import sys
        from genrec_batch.core import layout
        from genrec_batch.__main__ import main
        layout.describe = lambda: exec("raise KeyboardInterrupt")
        sys.argv = ["genrec-batch", "layout"]
        main()"""
    (tmp_path / "probe.py").write_text(code)
    done = subprocess.run([sys.executable, "-m", "probe"], capture_output=True, text=True, check=False)
    assert (done.returncode, "interrupted; run the same command again" in done.stderr) == (130, True), done.stderr


def test_a_signal_while_python_ends_does_not_make_a_failure_of_what_is_done(stop):
    code = f"""if True:
        import atexit, os, sys
        from genrec_batch.__main__ import main
        atexit.register(os.kill, os.getpid(), {int(stop[0])})
        sys.argv = ["genrec-batch", "layout"]
        main()"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_ctrl_c_while_modules_are_imported_is_one_line():
    """Wherever it falls: an exception in a finalizer would be told as a traceback and then forgotten."""
    code = """if True:
        import signal, sys
        from genrec_batch.__main__ import main
        class Dying:
            def __del__(self): signal.raise_signal(signal.SIGINT)
        class Finder:
            def find_spec(self, name, path=None, target=None):
                if name == "genrec_batch.cli.app": Dying()
        sys.meta_path.insert(0, Finder())
        sys.argv = ["genrec-batch", "layout"]
        main()"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr, done.stdout) == (130, "interrupted before anything began\n", "")


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-"])
def test_closed_streams_are_nobody_who_listens(closed):
    done = subprocess.run(
        ["/bin/sh", "-c", f"{sys.executable} -m genrec_batch layout {closed}"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")


def test_a_report_and_a_trace_of_one_name_are_refused(run, log_file, model_dir):
    done = run("score", log_file, "a", "--model", model_dir, "--report", "r.json", "--trace", "./r.json")
    assert (done.code, "one would replace the other" in done.err) == (2, True), done.err
