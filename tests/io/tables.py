"""Tables that tests write to: a Delta table in the folder of a test, an Iceberg table in a catalog that it makes."""

from __future__ import annotations

import warnings
from contextlib import closing
from functools import partial
from pathlib import Path

import polars as pl
import pyarrow as pa

from genrec_batch.io import catalogs, output, stored_output, table_output
from genrec_batch.io.tables import options_of
from genrec_batch.stores.bucket import is_uri

KINDS = ("delta", "iceberg")
NAME = "iceberg://lake/shop.recs"


def target_of(kind, monkeypatch, store=None):
    """Return an OUTPUT of a format, on the disk or in a folder of a store.

    For Iceberg there is a catalog then, in a database of the current folder.
    """
    if kind == "delta":
        return "recs" if store is None else f"{store}/recs"
    make_catalog(monkeypatch, store)
    return NAME


def make_catalog(monkeypatch, store=None):
    """Configure the catalog `lake` as a user does, by the environment, and make its namespace."""

    for name, value in environment(store).items():
        monkeypatch.setenv(name, value)
    catalog = configured()
    catalog.create_namespace_if_not_exists("shop")
    return catalog


def configured():
    """Return the catalog as pyiceberg opens it by the environment of this moment."""
    from pyiceberg.catalog import load_catalog
    from pyiceberg.utils.config import Config

    return load_catalog("lake", **catalogs.of_store(), **Config().get_catalog_config("lake"))


def environment(store=None):
    """Return the environment that configures the catalog."""
    here = Path.cwd()
    return {
        "PYICEBERG_CATALOG__LAKE__TYPE": "sql",
        "PYICEBERG_CATALOG__LAKE__URI": f"sqlite:///{here}/lake.db",
        "PYICEBERG_CATALOG__LAKE__WAREHOUSE": f"file://{here}/lake" if store is None else f"{store}/lake",
    }


def rows(run, number, count=5):
    """A part of a run: its number in each row, and all kinds of columns that outputs have."""
    scores = [{"engagement": 0.5, "retention": None}] * count
    return pa.table(
        {
            "user_id": pa.array(range(number * 100, number * 100 + count), pa.int64()),
            "run": pa.array([run] * count, pa.int32()),
            "video_id": pa.array([["a", "b"]] * count, pa.large_list(pa.large_string())),
            "score": pa.array([[0.5, None]] * count, pa.list_(pa.float32())),
            "feature_scores": pa.array(scores, pa.struct([(n, pa.float32()) for n in ("engagement", "retention")])),
            "cold_start": pa.array([True, None, False, True, False][:count]),
            "arm": pa.array(["a b/c%", "a b/c%", None, "x", "x"][:count], pa.string()),
        }
    )


def write(kind, target, run=1, *, if_exists=None, partition_by=None, made=rows, commit=True):
    """Write a run of two parts as `scoring.writing` does; return what its commit says, None where it had none."""
    table = table_output.opened(kind, target, if_exists, partition_by)
    identity = {"model": str(run)}
    run_id = output.run_id(identity)
    place, keeps = table.place(run_id), table.log.column_in_files
    if table.has(run_id):
        return None
    table.log.root.make()
    if is_uri(place):
        out = stored_output.open_output(place, identity, "resume", partition_by, Path.cwd(), keeps_column=keeps)
    else:
        out = output.open_output(Path(place), identity, "resume", partition_by, keeps_column=keeps)
    if not out.complete:
        out.metadata |= {"genrec.config": "{}"}
        out.check = partial(table.check_part, staged=out.staged)
        with closing(out):
            for number in {0, 1} - out.parts_done:
                out.write(number, made(run, number))
            out.finish()
    return table.commit(run_id)["table"]["version"] if commit else table


def read(kind, target, version=None):
    """Return a version of a table as Polars reads it."""
    if kind == "delta":
        return pl.read_delta(target, version=version, storage_options=options_of(target)).sort("user_id")
    with warnings.catch_warnings(action="ignore"):
        return pl.scan_iceberg(loaded(target), snapshot_id=version).collect().sort("user_id")


def loaded(target):
    """Return a table of the catalog as pyiceberg has it."""
    return configured().load_table(target.rpartition("/")[2])


def files(kind, target):
    """Return the data files that the newest version of a table names."""
    if kind == "delta":
        from deltalake import DeltaTable

        return DeltaTable(target, storage_options=options_of(target)).file_uris()
    return [task.file.file_path.removeprefix("file://") for task in loaded(target).scan().plan_files()]


def properties(kind, target):
    """Return what the newest commits say, the newest first."""
    if kind == "delta":
        from deltalake import DeltaTable

        return DeltaTable(target, storage_options=options_of(target)).history()
    return [each.summary.additional_properties for each in reversed(loaded(target).snapshots())]
