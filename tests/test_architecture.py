"""The structure, enforced: imports go one way, the two worlds stay apart, start-up stays light."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "genrec_batch"
ORDER = [  # a module imports only what stands left of it (or, within a bracket, its own folder)
    "errors", "ending", "allocation", "layout", "arrays", "contract", "schema", "config", "build_config", "profiling",
    "console", "flow", "compiling", "catalog", "finding", "storage", "durable", "parquet", "joining", "existing",
    "output", "counting", "eventlog", "blocks", "packing_kernels", "ordering_kernels", "ordering", "partition",
    "sampling", "tables", "sides", "histories", "features", "model", "engines", "importing", "export", "generate",
    "recommendations", "parity", "sizing", "selection", "prebuilding", "job", "batching", "carrying", "verifying",
    "scoring", "lineage", "pipeline", "api", "reports", "inspecting", "explaining", "show_facts", "show", "show_demo",
    "demo", "edge", "usage", "cli_model", "cli_look", "cli", "__main__",
]  # fmt: skip
MODULES = sorted(PACKAGE.rglob("*.py"))
TENSOR_SIDE = ("features", "model", "engines", "generate", "arrays", "layout", "importing", "export")


def place(path):
    relative = path.relative_to(PACKAGE)
    return relative.parts[0].removesuffix(".py")


def imports(path):
    """Names of all modules that a file imports, also inside functions."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            if node.module == "genrec_batch":
                found |= {
                    f"genrec_batch.{alias.name}" for alias in node.names if (PACKAGE / f"{alias.name}.py").exists()
                }
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_left(path):
    here = place(path)
    if here == "__init__":
        return
    assert here in ORDER, f"{here} has no place in the order: give it one"
    for name in imports(path):
        parts = name.split(".")
        if parts[0] == "genrec_batch" and len(parts) > 1 and parts[1] != here:
            assert ORDER.index(parts[1]) < ORDER.index(here), f"{path.name} imports {name}, which stands right of it"


@pytest.mark.parametrize("path", [p for p in MODULES if place(p) in TENSOR_SIDE], ids=lambda p: p.name)
def test_the_tensor_side_never_sees_polars(path):
    assert not {name for name in imports(path) if name.split(".")[0] in ("polars", "pyarrow")}


def test_only_torch_files_import_torch():
    sources = [p for p in MODULES if p.parent.name != "kernels"]
    users = {p.name for p in sources if {"torch", "triton"} & {name.split(".")[0] for name in imports(p)}}
    assert all(name.startswith("torch_") for name in users), users


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_broad_excepts_stand_only_at_the_edge(path):
    broad = [
        node.lineno
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ExceptHandler)
        and (node.type is None or (isinstance(node.type, ast.Name) and node.type.id in ("Exception", "BaseException")))
    ]
    assert len(broad) == (1 if path.name == "edge.py" else 0), broad


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_files_fit_one_sitting(path):
    assert len(path.read_text().splitlines()) <= 350


def loaded_after(code):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip().splitlines()[-1]


def test_help_imports_nothing_heavy():
    code = (
        "import sys\nfrom typer.testing import CliRunner\nfrom genrec_batch import cli\n"
        "result = CliRunner().invoke(cli.app, ['score', '--help'])\nassert result.exit_code == 0, result.output\n"
        "heavy = {'torch', 'polars', 'onnxruntime', 'onnx', 'pyarrow'}\nprint(sorted(heavy & set(sys.modules)))"
    )
    assert loaded_after(code) == "[]"
