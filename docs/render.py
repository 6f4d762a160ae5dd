"""Fills the pages' figures from committed results, tables of options from the command line, of modules from docstrings.

    python docs/render.py            write the blocks of every page anew
    python docs/render.py --check    name the pages that differ, and end with exit code 1

A block begins with a comment that says what is in it and ends with `<!-- end -->`; what is between is written by this
script, never by hand:

    <!-- figures features.json             a file of tests/benchmarks/results/, then the text of the block, in which
    | plain | {50_plain_numpy:,} |         {path[to][a value]:format} is a value of the file, and {a / b:format} the
    -->                                    quotient of two, of which one may be a number; with several files, a path
                                           begins with a file's name

    <!-- options score -->                 every option of a command, in tables
    <!-- options verify beyond score -->   those that another command has not
    <!-- options every command -->         those that all have, which the other tables leave out

    <!-- modules io -->                     the modules of a room, each with the first line of its docstring
"""

from __future__ import annotations

import ast
import json
import re
import string
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import typer

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "tests" / "benchmarks" / "results"
PAGES = [ROOT / name for name in ("README.md", "jobs/README.md", "sample_data/README.md")]
PAGES += sorted(ROOT.glob("docs/**/*.md"))
BLOCK = re.compile(
    r"(<!-- (figures|options|modules) ([^\n]*?)(?: -->|\n(.*?)^-->)\n)(.*?)(^<!-- end -->)", re.DOTALL | re.MULTILINE
)
MODULE_WITH_CODE = 2  # statements: more than a docstring
PROGRAM = ("--help", "--version", "--config", "--install-completion", "--show-completion")  # options before a command
PANELS = (
    "Options",
    "Input",
    "Model",
    "Training",
    "Test",
    "Decoding",
    "Rules",
    "Arms",
    "Engine",
    "Output",
)  # first those without a panel


class Figures(string.Formatter):
    """`str.format` whose fields are values of a result, or quotients of two."""

    def get_field(self, field_name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Any, str]:
        """Return the value of a field, and the name that it is counted as used by."""
        above, slash, below = field_name.partition(" / ")
        if not slash:
            return super().get_field(field_name, args, kwargs)
        return self._number(above, args, kwargs) / self._number(below, args, kwargs), field_name

    def _number(self, text: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> float:
        return float(text) if re.fullmatch(r"[\d.e-]+", text) else float(super().get_field(text, args, kwargs)[0])


def figures(files: str, template: str) -> str:
    """Return a template with the values of one or several result files in it."""
    results = {name.removesuffix(".json"): _read(RESULTS / name) for name in files.split()}
    return Figures().vformat(template, (), results if len(results) > 1 else next(iter(results.values())))


def _read(path: Path) -> Any:
    """Return a result with whole numbers for keys that are written as such, as `str.format` asks for them."""
    return json.loads(path.read_text(), object_hook=lambda d: {int(k) if k.isdigit() else k: v for k, v in d.items()})


def command(name: str) -> Any:
    """Return a command of the command line by its words, such as `model init`."""
    from genrec_batch.cli.app import app

    found: Any = typer.main.get_command(app)
    for word in name.split():
        found = found.commands[word]
    return found


@cache
def listed(name: str) -> dict[str, Any]:
    """Return the options of a command by their longest flag, `--help` aside."""
    return {option.opts[-1]: option for option in command(name).params if option.param_type_name == "option"}


def options(words: str) -> str:
    """Return the options of a command as tables, a table for each panel of its help."""
    shared = [flag for flag in listed("layout") if flag in listed("sample")]
    name, _, other = words.partition(" beyond ")
    hidden = {*shared, *(listed(other) if other else ())}
    shown = listed("layout") if words == "every command" else listed(name)
    flags = shared if words == "every command" else [flag for flag in shown if flag not in hidden]
    panels = {flag: shown[flag].rich_help_panel or PANELS[0] for flag in sorted(flags)}
    tables = []
    for panel in dict.fromkeys((*PANELS, *panels.values())):
        rows = [_row(shown[flag]) for flag in panels if panels[flag] == panel]
        if rows:
            title = f"{panel}:\n\n" if panel != PANELS[0] and words != "every command" else ""
            tables.append(title + "| option | default | |\n| --- | --- | --- |\n" + "".join(rows))
    return "\n".join(tables)


def _row(option: Any) -> str:
    flags = "/".join([*option.opts, *option.secondary_opts])
    has_default = option.show_default and not option.is_flag and option.default not in (None, [])
    default = f"`{option.default}`" if has_default else ""
    return f"| `{flags}` | {default} | {option.help.replace('|', chr(92) + '|')} |\n"


def modules(room: str) -> str:
    """Return the modules of a room as a table: name, and the first line of the docstring; empty packages left out."""
    rows = []
    for path in sorted((ROOT / "genrec_batch" / room).rglob("*.py")):
        tree = ast.parse(path.read_text())
        if path.name == "__init__.py" and len(tree.body) < MODULE_WITH_CODE:
            continue
        name = path.relative_to(ROOT / "genrec_batch" / room).as_posix()
        rows.append(f"| `{name}` | {(ast.get_docstring(tree) or '').splitlines()[0].replace('|', chr(92) + '|')} |\n")
    return "| module | |\n| --- | --- |\n" + "".join(rows)


KINDS = {"options": options, "modules": modules}


def rendered(page: str) -> str:
    """Return a page with its blocks as they are to be."""

    def block(match: re.Match[str]) -> str:
        begin, kind, words, template, _, end = match.groups()
        try:
            filled = figures(words, template) if kind == "figures" else KINDS[kind](words)
        except (KeyError, IndexError, ValueError, OSError) as error:
            sys.exit(f"<!-- {kind} {words}: {type(error).__name__}: {error}")
        return begin + filled + end

    return BLOCK.sub(block, page)


def main() -> int:
    """Write or check the pages; return the exit code."""
    check, differ = "--check" in sys.argv, 0
    for path in PAGES:
        text = path.read_text()
        wanted = rendered(text)
        if wanted != text:
            differ += 1
            sys.stdout.write(f"{path.relative_to(ROOT)}: {'differs' if check else 'written'}\n")
            if not check:
                path.write_text(wanted)
    return 1 if check and differ else 0


if __name__ == "__main__":
    sys.exit(main())
