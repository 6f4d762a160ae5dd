"""`inspect`: what an output says of itself, held against the rows; damage, strangers and unfinished runs.

Also tests `checks`, `finished`, `inspect_text` and `terminal`.
"""

from __future__ import annotations

import json
import shutil
from contextlib import contextmanager

import polars as pl
import pyarrow.parquet as pq
import pytest

from genrec_batch.core.errors import GateError, InputError
from genrec_batch.io import manifest as manifests
from genrec_batch.reports import inspect


@pytest.fixture
def outputs(run, log_file, model_dir, tmp_path):
    """The same recommendations as one file, as a directory of parts, and nested."""
    common = ("--model", model_dir, "--quiet", "--top-k", 6, "--engine", "onnxruntime")
    for name, more in (
        ("one.parquet", ()),
        ("parts", ("--shard-users", 7)),
        ("nested.parquet", ("--layout", "nested")),
    ):
        done = run("score", log_file, tmp_path / name, *common, *more)
        assert done.code == 0, done.err
    return tmp_path


def altered(path, change):
    """Write a changed table under the metadata of a whole output."""
    table = pq.read_table(path)
    changed = change(pl.DataFrame(pl.from_arrow(table))).to_arrow(compat_level=pl.CompatLevel.oldest())
    pq.write_table(changed.replace_schema_metadata(table.schema.metadata), path)


@pytest.mark.parametrize("name", ["one.parquet", "parts", "nested.parquet"])
def test_progress_ends_at_100_percent(outputs, name, monkeypatch):
    counted = []

    @contextmanager
    def progress(_title, total, _unit):
        counted.append(total)
        yield counted.append

    monkeypatch.setattr(inspect.console, "progress", progress)
    inspect.inspected(str(outputs / name))
    total, *advanced = counted
    assert sum(advanced) == total


@pytest.mark.parametrize("name", ["one.parquet", "parts", "nested.parquet"])
def test_an_output_is_told_as_its_rows_are(outputs, name, model_dir):
    facts = inspect.inspected(str(outputs / name))
    rows = pl.read_parquet(outputs / "one.parquet")
    assert facts["counts"]["rows"] == len(rows)
    assert facts["counts"]["users"] == facts["counts"]["users_with_rows"] == 40
    assert facts["counts"]["longest"] == 6
    lengths = rows.filter(pl.col("rank") == 1)["history_length"]
    assert facts["counts"]["mean_history_length"] == pytest.approx(lengths.mean())
    assert facts["lineage"]["engine"] == "onnxruntime"
    assert facts["config"]["top_k"] == 6
    counted = rows["video_id"].value_counts().sort(["count", "video_id"], descending=[True, False])
    assert facts["videos"]["distinct"] == len(counted)
    assert [v["video_id"] for v in facts["videos"]["most_recommended"]] == counted["video_id"].head(10).to_list()
    catalog = len(pl.read_parquet(model_dir / "catalog.parquet"))
    assert facts["videos"]["catalog"]["coverage"] == round(len(counted) / catalog, 4)
    width = rows["score"].max() - rows["score"].min()
    for row in facts["scores"]:
        mine = rows.filter(pl.col("rank") == row["rank"])["score"]
        assert (row["users"], row["min"], row["max"]) == (40, round(mine.min(), 4), round(mine.max(), 4))
        exact = mine.quantile(0.5, "lower"), mine.quantile(0.5, "higher")
        assert exact[0] - width / inspect.BINS - 1e-4 <= row["p50"] <= exact[1] + width / inspect.BINS + 1e-4
    assert all(c["ok"] for c in facts["checks"]), facts["checks"]
    inspect.check(facts)
    assert json.loads(json.dumps(facts)) == facts


@pytest.mark.parametrize(
    ("check", "change"),
    [
        ("users rise", lambda rows: rows.sort("user_id", descending=True, maintain_order=True)),
        ("ranks are 1, 2, 3, ...", lambda rows: rows.with_columns(pl.col("rank") + 1)),
        ("score never rises with rank", lambda rows: rows.with_columns(-pl.col("score"))),
        ("no null", lambda rows: rows.with_columns(video_id=pl.when(pl.col("rank") == 2).then(pl.col("video_id")))),
        ("no video twice for a user", lambda rows: rows.with_columns(video_id=pl.lit(1001))),
        ("as many rows as the metadata says", lambda rows: rows.head(50)),
        *(
            ("every score is a finite number, every head within 0..1", change)
            for change in (
                lambda rows: rows.with_columns(log_prob=pl.lit(float("nan"), pl.Float32)),
                lambda rows: rows.with_columns(score=pl.lit(float("-inf"), pl.Float32)),
                lambda rows: rows.with_columns(retention=pl.lit(1.5, pl.Float32)),
                lambda rows: rows.with_columns(
                    feature_scores=pl.struct(
                        engagement=pl.lit(float("nan"), pl.Float32),
                        retention=pl.lit(0.0, pl.Float32),
                        diversity=pl.lit(0.0, pl.Float32),
                    )
                ),
            )
        ),
    ],
)
def test_each_broken_promise_is_found(outputs, run, check, change):
    altered(outputs / "one.parquet", change)
    facts = inspect.inspected(str(outputs / "one.parquet"))
    assert check in [c["check"] for c in facts["checks"] if not c["ok"]]
    with pytest.raises(GateError, match=check.replace(".", r"\.")):
        inspect.check(facts)
    assert run("inspect", outputs / "one.parquet").code == 6


def test_a_manifest_that_was_changed_is_found_by_inspect_resume_and_previous(outputs, run, log_file, model_dir):
    def hide(manifest, folder):
        manifest["files"].pop(1)
        (folder / "part-00001.parquet").unlink()

    def lead_outside(manifest, folder):
        shutil.copy(folder / "part-00001.parquet", outputs / "elsewhere.parquet")
        manifest["files"][1]["file"] = "../elsewhere.parquet"

    def link(_manifest, folder):
        part = folder / "part-00001.parquet"
        part.replace(outputs / "elsewhere.parquet")
        part.symlink_to(outputs / "elsewhere.parquet")

    changes = {
        "hidden part": hide,
        "outside": lead_outside,
        "link": link,
        "lineage": lambda manifest, _: manifest["metadata"].update({"genrec.model": "0" * 64}),
        "counts": lambda manifest, _: manifest["metadata"].update({"genrec.counts": "nope"}),
        "rows": lambda manifest, _: manifest["files"][0].update(rows=5),
        "total": lambda manifest, _: manifest["metadata"].update({"genrec.rows": "7"}),
        "empty": lambda manifest, _: manifest.clear(),
    }
    command = ("score", log_file, "changed", "--model", model_dir, "--quiet", "--top-k", 6, "--engine", "onnxruntime")
    command = (*command, "--shard-users", 7)
    for name, change in changes.items():
        for sealed in (False, True):
            shutil.rmtree("changed", ignore_errors=True)
            shutil.copytree(outputs / "parts", "changed")
            folder = outputs / "changed"
            manifest = json.loads((folder / "_manifest.json").read_text())
            change(manifest, folder)
            text = json.dumps(manifests.sealed(manifest) if sealed and manifest else manifest)
            (folder / "_manifest.json").write_text(text)
            looked = run("inspect", "changed")
            assert looked.code in (3, 6), (name, sealed, looked.out)
            resumed = run(*command, "--if-exists", "resume")
            assert resumed.code == 2, (name, sealed, resumed.err)
            assert "--if-exists overwrite" in resumed.err, (name, sealed, resumed.err)
            other = ["again.parquet" if word == "changed" else word for word in command]
            carried = run(*other, "--previous", "changed", "--if-exists", "overwrite")
            assert (carried.code, carried.summary["carried_users"]) == (0, 0), (name, sealed, carried.err)
            assert "--previous changed: " in carried.summary["warnings"][-1], (name, sealed)
    assert run(*command, "--if-exists", "overwrite").code == 0, "a folder that only a run can have written"
    assert run("inspect", "changed").code == 0


def test_a_changed_part_and_a_strange_file_are_found(outputs):
    part = sorted((outputs / "parts").glob("part-*.parquet"))[1]
    altered(part, lambda rows: rows.with_columns(pl.col("log_prob") - 1))
    (outputs / "parts" / "note.txt").write_text("hello")
    failed = {c["check"]: c["found"] for c in inspect.inspected(str(outputs / "parts"))["checks"] if not c["ok"]}
    assert failed == {
        "every part is what the manifest says (sha256)": part.name,
        "no file that the manifest does not name": "note.txt",
    }  # fmt: skip


def flip(path, place):
    whole = bytearray(path.read_bytes())
    whole[place] ^= 0xFF
    path.write_bytes(whole)


def values_of(path, name, group=0):
    """Return a place in the last page of a column."""
    about = pq.read_metadata(path).row_group(group)
    columns = [about.column(i) for i in range(about.num_columns)]
    column = next(c for c in columns if c.path_in_schema.startswith(name))
    return (column.dictionary_page_offset or column.data_page_offset) + column.total_compressed_size - 3


def truncate(path):
    path.write_bytes(path.read_bytes()[:-50])


SHA = "every part is what the manifest says (sha256)"


@pytest.mark.parametrize(
    "spoil",
    [
        lambda part: flip(part, 30),  # in a page's header
        lambda part: flip(part, values_of(part, "score")),
        lambda part: flip(part, part.stat().st_size - 6),  # in the length of the file's end
        truncate,
        lambda part: part.write_bytes(b""),
        lambda part: pl.DataFrame({"a": [1]}).write_parquet(part),
    ],
)
@pytest.mark.parametrize("number", [0, 1])
def test_a_damaged_part_is_named_and_the_others_are_shown(outputs, run, spoil, number):
    part = outputs / "parts" / f"part-{number:05d}.parquet"
    rows = pl.read_parquet(part)
    spoil(part)
    done = run("inspect", outputs / "parts")
    assert done.code == 6, done.err
    assert f"{SHA}: {part.name} (damaged: what cannot be read is left out)" in done.err
    assert "Score by rank" in done.out
    told = run("inspect", outputs / "parts", "--json").summary
    everything = pl.read_parquet(outputs / "one.parquet")
    assert (told["counts"]["users"], told["counts"]["users_with_rows"]) == (40, 33)
    assert told["counts"]["rows"] == len(everything) - len(rows)
    failed = {c["check"]: c["found"] for c in told["checks"] if not c["ok"]}
    assert set(failed) == {SHA, "as many rows as the metadata says"}


def test_an_output_whose_parts_are_all_damaged_is_told_so(outputs, run):
    for part in (outputs / "parts").glob("part-*.parquet"):
        truncate(part)
    done = run("inspect", outputs / "parts")
    assert done.code == 6, (done.err, done.exception)
    assert "part-00005.parquet (damaged" in done.err
    assert "Lineage" in done.out


@pytest.mark.parametrize("layout", ["long", "nested"])
def test_a_damaged_page_of_one_file_is_told_with_its_row_group(run, log_file, model_dir, tmp_path, layout):
    out = tmp_path / "groups.parquet"
    flags = ("--shard-users", 7, "--top-k", 6, "--engine", "onnxruntime", "--layout", layout)
    assert run("score", log_file, out, "--model", model_dir, *flags).code == 0
    flip(out, values_of(out, "log_prob", group=2))
    done = run("inspect", out)
    assert done.code == 6, done.err
    assert "every page is what its checksum says: row groups 2 are damaged and left out" in done.err
    told = run("inspect", out, "--json").summary
    assert (told["counts"]["users_with_rows"], told["counts"]["rows"]) == (33, 33 * 6)


def test_a_missing_part_is_found(outputs):
    part = sorted((outputs / "parts").glob("part-*.parquet"))[1]
    part.unlink()
    failed = {c["check"]: c["found"] for c in inspect.inspected(str(outputs / "parts"))["checks"] if not c["ok"]}
    assert failed["every part is what the manifest says (sha256)"] == part.name


def test_what_is_no_output_is_said_so(outputs, run, log_file, model_dir):
    for place, message in (
        (outputs / "one.parqet", "no such file or directory. Did you mean 'one.parquet'"),
        (log_file, "its metadata names no run"),
        (model_dir, "not a finished output"),
    ):
        with pytest.raises(InputError, match=message):
            inspect.inspected(str(place))
    (outputs / "text.parquet").write_text("not parquet")
    assert run("inspect", outputs / "text.parquet").code == 3
    assert run("features", log_file, "f.parquet", "--model", model_dir, "--quiet").code == 0
    done = run("inspect", "f.parquet")
    assert done.code == 3
    assert "not an output of `score`" in done.err


def test_an_unfinished_output_is_said_to_be_one(outputs):
    shutil.move(outputs / "parts", outputs / ".parts.unfinished")
    with pytest.raises(InputError, match="unfinished; its parts are in"):
        inspect.inspected(str(outputs / "parts"))


def test_a_catalog_of_another_model_covers_nothing(outputs, run):
    run("model", "init", "other", "--preset", "tiny")
    facts = inspect.inspected(str(outputs / "one.parquet"), model="other")
    assert facts["videos"]["catalog"]["coverage"] is None
    assert "is not there" in facts["videos"]["catalog"]["why"]


def test_the_command_shows_it_and_prints_json(outputs, run):
    done = run("inspect", outputs / "parts", "--top", 3)
    assert done.code == 0, done.err
    for text in ("users with recommendations", "Score by rank", "Most recommended videos", "coverage of the catalog"):
        assert text in done.out
    told = run("inspect", outputs / "parts", "--json", "--top", 3).summary
    assert len(told["videos"]["most_recommended"]) == 3


@pytest.mark.parametrize("width", [40, 60, 120])
def test_a_narrow_terminal_gets_whole_numbers_and_is_told_what_is_left_out(outputs, width, monkeypatch):
    from rich.console import Console

    from genrec_batch.reports import inspect_text, terminal

    console = Console(width=width, record=True, force_terminal=False)
    monkeypatch.setattr(terminal, "stdout", console)
    facts = inspect.inspected(str(outputs / "one.parquet"))
    terminal.show(inspect_text.inspection(facts))
    text = console.export_text()
    assert max(map(len, text.splitlines())) <= width
    for row in facts["scores"]:
        assert f"{row['min']:.3f}" in text
    assert ("on a wider terminal also" in text) == (width < 120)


def test_the_checks_read_no_column_that_they_do_not_check(outputs, monkeypatch):
    """A carried embedding may be most of an output."""
    read, seen = pq.ParquetFile.read_row_group, set()

    def noted(self, number, columns=None, **options):
        seen.update(self.schema_arrow.names if columns is None else columns)
        return read(self, number, columns=columns, **options)

    monkeypatch.setattr(pq.ParquetFile, "read_row_group", noted)
    facts = inspect.inspected(str(outputs / "parts"))
    assert all(c["ok"] for c in facts["checks"]), facts["checks"]
    assert {"user_id", "score"} <= seen
    assert not {"history_length", "cold_start"} & seen
