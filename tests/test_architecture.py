"""The structure, enforced: rooms import only from lower floors, torch stays where it computes, start-up stays light.

`python tests/test_architecture.py` prints the rooms with their lines, and counts imports and levels.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections import Counter
from functools import cache
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
PACKAGE = TESTS.parent / "genrec_batch"
OURS = "genrec_batch."
FLOORS = [  # a room imports only from floors above it in this list, never from its own floor
    {"core"},
    {"runtime", "stores"},
    {"model"},
    {"io", "engines"},
    {"events"},
    {"features", "rules"},
    {"scoring", "training", "evaluation", "serving", "exports"},
    {"reports", "api"},
    {"demo"},
    {"cli"},
    {"__main__"},
]
SHARED_NETWORK = "engines.torch.network"  # the one module of `engines/torch` that another kind of engine may import
TENSOR_SIDE = ("core", "runtime", "model", "engines", "features")  # rooms that see no Polars
POLARS_AT_HOME = {"model.catalog"}  # the catalog is a table on disk
EXACT_IN_ANY_ORDER = {"_products"}  # kernels that sum whole numbers
TORCH_AT_HOME = ("engines.torch", "engines.cuda", "training", "reports.torch_ceilings")


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}
NAMES = sorted(name for name in MODULES if name)


def room(name: str) -> str:
    return name.partition(".")[0]


def floor(name: str) -> int:
    found = [number for number, rooms in enumerate(FLOORS) if room(name) in rooms]
    assert found, f"{room(name)} is on no floor: give it one"
    return found[0]


@cache
def imported(name: str) -> frozenset[str]:
    """Return everything that a module imports, also inside functions, by its whole dotted name."""
    found = set()
    for node in ast.walk(ast.parse(MODULES[name].read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                found.add(whole if whole.removeprefix(OURS) in MODULES else node.module)
    return frozenset(found)


def ours(name: str) -> set[str]:
    """Return the modules of this package that a module imports, without the package's name."""
    return {other.removeprefix(OURS) for other in imported(name) if other.startswith(OURS)} - {name}


def outside(name: str) -> set[str]:
    """Return the packages of others that a module imports."""
    return {other.split(".")[0] for other in imported(name)} - {"genrec_batch"}


@pytest.mark.parametrize("name", NAMES)
def test_a_room_imports_only_from_lower_floors(name):
    for other in ours(name):
        assert room(other) == room(name) or floor(other) < floor(name), f"{name} imports {other}"


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("engines.")])
def test_kinds_of_engines_do_not_import_each_other(name):
    kinds = ("torch", "cuda", "onnx", "tensorrt")
    here = name.split(".")[1]
    for other in ours(name):
        there = other.split(".")[1] if other.startswith("engines.") else None
        if here in kinds and there in kinds and there != here:
            assert here != "torch", f"{name} imports {other}"
            assert other == SHARED_NETWORK, f"{name} imports {other}"


def test_no_module_imports_itself_by_a_detour():
    levels()


@pytest.mark.parametrize("name", [name for name in NAMES if room(name) in TENSOR_SIDE and name not in POLARS_AT_HOME])
def test_the_tensor_side_never_sees_polars(name):
    assert not outside(name) & {"polars", "pyarrow"}


@pytest.mark.parametrize("name", NAMES)
def test_torch_is_imported_only_where_it_computes(name):
    if "tensorrt.plugin" in name or name.startswith(TORCH_AT_HOME):  # the plugin's kernels are written in Triton
        return
    assert not outside(name) & {"torch", "triton"}


@pytest.mark.parametrize("name", NAMES)
def test_only_the_edge_of_the_command_line_catches_everything(name):
    broad = [
        node.lineno
        for node in ast.walk(ast.parse(MODULES[name].read_text()))
        if isinstance(node, ast.ExceptHandler)
        and (node.type is None or (isinstance(node.type, ast.Name) and node.type.id in ("Exception", "BaseException")))
    ]
    assert len(broad) == (1 if name == "cli.exits" else 0), broad


@pytest.mark.parametrize("name", NAMES)
def test_files_fit_one_sitting(name):
    assert len(MODULES[name].read_text().splitlines()) <= 350


def named_in(test: Path) -> set[str]:
    """Return the modules that a test file's docstring names in code spans, by their dotted names.

    `sorter`, `sorter.py` or `numba/fill.py` is a module beside the test file's folder, `core.errors` one of any room.
    """
    found = set()
    for span in re.findall(r"`([\w./]+)`", ast.get_docstring(ast.parse(test.read_text())) or ""):
        name = span.removesuffix(".py").replace("/", ".")
        folder = ".".join(test.parent.relative_to(TESTS).parts)
        found |= {name, f"{folder}.{name}" if folder else name}
    return found


def test_every_module_has_a_test_file_or_is_named_in_one():
    """A module without a file `tests/<room>/test_<module>.py` is named in the docstring of the file that tests it."""
    named = {name for test in TESTS.rglob("test_*.py") for name in named_in(test)}
    missing = []
    for name in NAMES:
        path = MODULES[name].relative_to(PACKAGE)
        only_a_docstring = len(ast.parse(MODULES[name].read_text()).body) < 2
        if not (only_a_docstring or (TESTS / path.parent / f"test_{path.stem}.py").exists() or name in named):
            missing.append(name)
    assert not missing, f"no test names {', '.join(missing)}: name them in the docstring of the file that tests them"


def printed_by(code, **options):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, **options)
    return done.stdout.strip().splitlines()[-1]


def test_help_imports_nothing_heavy():
    code = (
        "import sys\nfrom typer.testing import CliRunner\nfrom genrec_batch.cli import app\n"
        "result = CliRunner().invoke(app.app, ['score', '--help'])\nassert result.exit_code == 0, result.output\n"
        "heavy = {'torch', 'polars', 'onnxruntime', 'onnx', 'pyarrow'}\nprint(sorted(heavy & set(sys.modules)))"
    )
    assert printed_by(code) == "[]"


def test_scoring_with_onnxruntime_never_imports_torch(log_file, model_dir, tmp_path):
    code = (
        "import sys\nfrom genrec_batch import score\n"
        f"score({str(log_file)!r}, 'recs.parquet', model={str(model_dir)!r}, engine='onnxruntime')\n"
        "print('torch' in sys.modules)"
    )
    assert printed_by(code, cwd=tmp_path) == "False"


def test_the_torch_engine_never_imports_pytorch_s_compiler():
    code = (
        "import sys\nfrom genrec_batch.engines.registry import open_engine\nfrom genrec_batch.model import weights\n"
        "model = weights.demo_model(weights.PRESETS['tiny'])\n"
        "open_engine(model, name='torch', device='cpu', precision='fp32')\n"
        "print(sorted({'torch._dynamo', 'torch._inductor', 'sympy'} & set(sys.modules)))"
    )
    assert printed_by(code) == "[]"


def test_the_tensorrt_engine_never_imports_torch():
    code = (
        "import importlib, pkgutil, sys\nfrom genrec_batch.engines import tensorrt\n"
        "for module in pkgutil.iter_modules(tensorrt.__path__, tensorrt.__name__ + '.'):\n"
        "    importlib.import_module(module.name)\n"
        "print('torch' in sys.modules)"
    )
    assert printed_by(code) == "False"


@pytest.mark.parametrize("name", [name for name in NAMES if "runtime.jit" in ours(name)])
def test_reordered_kernels_that_others_call_are_inline_in_reordered_ones(name):
    functions = [node for node in ast.parse(MODULES[name].read_text()).body if isinstance(node, ast.FunctionDef)]
    kernels = {node.name: ast.unparse(node.decorator_list[0]) for node in functions if node.decorator_list}
    reordered = {kernel for kernel, options in kernels.items() if "reorder=True" in options} - EXACT_IN_ANY_ORDER
    for caller in (node for node in functions if node.name in kernels):
        calls = (node.func for node in ast.walk(caller) if isinstance(node, ast.Call))
        for kernel in reordered & {called.id for called in calls if isinstance(called, ast.Name)}:
            assert "inline=True" in kernels[kernel], f"see `jit.kernel`: {kernel}"
            assert caller.name in reordered, f"see `jit.kernel`: {caller.name} calls {kernel}"


def levels() -> dict[str, int]:
    """Return how many imports deep each module stands on others; 0 imports none of ours."""
    depth: dict[str, int] = {}

    def visit(name: str, way: tuple[str, ...]) -> int:
        assert name not in way, " imports ".join((*way[way.index(name) :], name))
        if name not in depth:
            depth[name] = max((visit(other, (*way, name)) + 1 for other in ours(name)), default=0)
        return depth[name]

    for name in NAMES:
        visit(name, ())
    return depth


def main() -> None:
    """Print what the closing note of a change of the structure needs."""
    lines = Counter()
    for name in NAMES:
        lines[room(name)] += len(MODULES[name].read_text().splitlines())
    edges = {(room(name), room(other)) for name in NAMES for other in ours(name) if room(other) != room(name)}
    for here, count in lines.items():
        below = sorted((other for this, other in edges if this == here), key=floor)
        print(f"{here:10} {count:6,} lines  imports {', '.join(below) or 'nothing of ours'}")
    print(f"{len(lines)} rooms, {len(edges)} edges between rooms, {len({floor(name) for name in NAMES})} floors")
    print(
        f"{len(NAMES)} modules, {sum(lines.values()):,} lines, {sum(len(ours(name)) for name in NAMES)} edges between "
        f"modules, {max(levels().values()) + 1} levels"
    )


if __name__ == "__main__":
    main()
