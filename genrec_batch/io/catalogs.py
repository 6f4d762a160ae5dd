"""Iceberg catalogs: the table that `iceberg://CATALOG/NAMESPACE.TABLE` names, and what the package raises.

Owns: that form of a name, and loading a catalog by its name from pyiceberg's own settings (`~/.pyiceberg.yaml` or
`PYICEBERG_CATALOG__...` in the environment), with the store that the environment describes. Must not know: what a table
holds.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from typing import Any, TypeVar

from genrec_batch.core.errors import EngineError, GenrecError, InputError, RetryError
from genrec_batch.stores.bucket import ENDPOINTS

T = TypeVar("T")

SCHEME = "iceberg://"
FORM = f"{SCHEME}CATALOG/NAMESPACE.TABLE"
OF_STORE = {  # what pyiceberg reads of a store, and the environment that all other readers of stores take it from
    "s3.endpoint": ENDPOINTS,
    "s3.region": ("AWS_REGION", "AWS_DEFAULT_REGION"),
    "s3.access-key-id": ("AWS_ACCESS_KEY_ID",),
    "s3.secret-access-key": ("AWS_SECRET_ACCESS_KEY",),
    "s3.session-token": ("AWS_SESSION_TOKEN",),
}


@dataclass(frozen=True, kw_only=True)
class TableName:
    """The name of a table in a catalog."""

    catalog: str
    identifier: str  # NAMESPACE.TABLE, of any depth

    @staticmethod
    def read(path: str, where: str) -> TableName:
        """Return what `iceberg://CATALOG/NAMESPACE.TABLE` names; `where` names it in errors.

        Raises:
            InputError: not of this form.
        """
        catalog, slash, identifier = path.removeprefix(SCHEME).partition("/")
        if not catalog or not slash or "." not in identifier.strip(".") or "/" in identifier:
            raise InputError(f"{where}: not the name of a table in an Iceberg catalog; such as {FORM}")
        return TableName(catalog=catalog, identifier=identifier)


def is_name(path: str) -> bool:
    """Return whether a path is meant to name a table in a catalog."""
    return path.startswith(SCHEME)


@contextmanager
def opened(name: TableName, where: str) -> Iterator[Any]:
    """Open a catalog of pyiceberg; it is closed at the end of the block.

    Raises:
        EngineError: the package pyiceberg is not installed.
        InputError: it knows no such catalog, or the catalog refuses.
        RetryError: a connection was lost.
    """
    os.environ.setdefault("POLARS_ICEBERG_PLANNER", "pyiceberg")  # else Polars warns of another package
    try:
        package = import_module("pyiceberg.catalog")
    except ImportError as error:
        raise EngineError(
            f"{where}: an Iceberg table, which the package pyiceberg opens: pip install 'genrec-batch[iceberg]'"
        ) from error
    settings = import_module("pyiceberg.utils.config").Config().get_catalog_config(name.catalog) or {}
    try:
        catalog = package.load_catalog(name.catalog, **{**of_store(), **settings})
    except import_module("pyiceberg.exceptions").NotInstalledError as error:
        raise EngineError(f"{where}: the catalog {name.catalog} needs more packages: {said(error)}") from error
    except failures() as error:
        raise InputError(
            f"{where}: the catalog {name.catalog} cannot be used ({said(error)}); its settings are in "
            f".pyiceberg.yaml or PYICEBERG_CATALOG__{name.catalog.upper()}__URI"
        ) from error
    try:
        yield catalog
    finally:
        getattr(catalog, "close", lambda: None)()  # since pyiceberg 0.11


def of_store() -> dict[str, str]:
    """Return pyiceberg's settings of an S3 store, which it does not take from the environment itself."""
    found = {key: next(filter(None, map(os.environ.get, names)), None) for key, names in OF_STORE.items()}
    return {key: value for key, value in found.items() if value}


def table_of(catalog: Any, name: TableName, where: str) -> Any:
    """Return a table of a catalog.

    Raises:
        InputError: it has none of that name, or refuses.
        RetryError: a connection was lost.
    """
    if not asked(lambda: catalog.table_exists(name.identifier), f"{where}: the catalog {name.catalog} cannot be used"):
        raise InputError(f"{where}: the catalog {name.catalog} has no table {name.identifier}")
    return asked(lambda: catalog.load_table(name.identifier), where)


def asked(ask: Callable[[], T], where: str) -> T:
    """Return what a catalog answers, and map what pyiceberg raises.

    Raises:
        InputError: it refuses, or there is no such table.
        RetryError: a connection was lost.
    """
    try:
        return ask()
    except GenrecError:
        raise
    except (ConnectionError, TimeoutError) as error:
        raise RetryError(f"{where}: connection lost ({error}); run the same command again") from error
    except failures() as error:
        raise InputError(f"{where}: {said(error)}") from error


def failures() -> tuple[type[Exception], ...]:
    """Return the classes of what pyiceberg raises: its own, those of the database of a catalog, and of Python."""
    module = sys.modules.get("pyiceberg.exceptions")
    own = [each for each in vars(module).values() if isinstance(each, type)] if module else []
    database = sys.modules.get("sqlalchemy.exc")
    own += [database.SQLAlchemyError] if database else []
    return (*(each for each in own if issubclass(each, Exception)), ValueError, RuntimeError, OSError)


def said(error: Exception) -> str:
    """Return the first line of what an error says, or its kind."""
    return next(iter(str(error).splitlines()), "") or type(error).__name__
