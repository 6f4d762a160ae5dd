"""What a file is, by its first bytes: Parquet, text that is read as a table, or something else with the way out.

Owns: the marks of formats, the separator of a text, commands that make a readable file of another. Must not know: which
files belong to an input, columns of a log. In: a file. Out: "parquet", a `Text`, or the error about it.
"""

from __future__ import annotations

import csv
import json
import re
import shlex
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import pyarrow as pa

from genrec_batch.core.errors import InputError
from genrec_batch.io.places import LOCAL

HEAD = 1 << 16  # bytes that are looked at
SEPARATORS = (",", "\t", ";", "|")
COMPRESSED = ((b"\x1f\x8b", "gzip"), (b"\x28\xb5\x2f\xfd", "zstd"))
SUFFIXES = (".csv", ".tsv", ".ndjson", ".jsonl")  # of texts in a folder, also with one of these:
PACKED = (".gz", ".zst")

UNREAD = (".bz2", ".xz")
PYTHON = "python -c {}"
FEATHER = "import pyarrow.feather as f, pyarrow.parquet as p; p.write_table(f.read_table({source}), {target})"
STREAM = "import pyarrow as a, pyarrow.parquet as p; p.write_table(a.ipc.open_stream({source}).read_all(), {target})"
ORC = "import pyarrow.orc as o, pyarrow.parquet as p; p.write_table(o.read_table({source}), {target})"
AVRO = "import polars; polars.read_avro({source}).write_parquet({target})"
ARRAY = "import polars; polars.read_json({source}).write_parquet({target})"
COLONS = (
    'import polars; t = polars.read_csv(open({source}, "rb").read().replace("::".encode(), "\\t".encode()), '
    'separator="\\t", has_header=False); t.columns = ["column_%d" % n for n in range(1, t.width + 1)]; '
    "t.write_parquet({target})"
)


@dataclass(frozen=True, kw_only=True)
class Other:
    """A format that is not read: how a file of it begins, what it is, and what to do."""

    begins: bytes
    what: str
    way_out: str = ""
    code: str = ""  # Python that makes Parquet of `source` in `target`
    program: str = ""  # of a shell, from what is read of such a file to what can be read here


OTHERS = (
    Other(
        begins=b"PARE",
        what="Parquet whose footer is encrypted",
        way_out="decrypt it with the key that it was written with",
    ),
    Other(begins=b"ARROW1", what="an Arrow file (Feather)", code=FEATHER),
    Other(begins=b"FEA1", what="an old Feather file", code=FEATHER),
    Other(begins=b"\xff\xff\xff\xff", what="a stream of Arrow record batches", code=STREAM),
    Other(begins=b"ORC", what="an ORC file", code=ORC),
    Other(begins=b"Obj\x01", what="an Avro file", code=AVRO),
    Other(begins=b"PK\x03\x04", what="a zip archive or an Excel file", way_out="unpack it, or export its sheet as CSV"),
    Other(begins=b"BZh", what="packed with bzip2", program="bunzip2"),
    Other(begins=b"\xfd7zXZ", what="packed with xz", program="unxz"),
    Other(begins=b"SQLite format 3", what="an SQLite data base", way_out="export the table as CSV or Parquet"),
    Other(begins=b"\x89HDF", what="an HDF5 file", way_out="export the table as CSV or Parquet"),
    Other(
        begins=b"version https://git-lfs",
        what="a pointer of git-lfs, not the file itself",
        way_out="fetch the file with git lfs pull",
    ),
    Other(begins=b"\xff\xfe", what="text in UTF-16", program="iconv -f UTF-16 -t UTF-8"),
    Other(begins=b"\xfe\xff", what="text in UTF-16", program="iconv -f UTF-16 -t UTF-8"),
)


@dataclass(frozen=True, kw_only=True)
class Text:
    """A text that is read as a table: JSON lines, or lines with a separator."""

    separator: str | None  # None for JSON lines

    @property
    def name(self) -> str:
        """Return what a person calls it."""
        names = {None: "JSON lines", ",": "CSV", "\t": "text with tabs"}
        return names.get(self.separator, f"text with {self.separator!r} between its values")

    def way_to_parquet(self, file: str, words: Sequence[str]) -> str:
        """Return a command that makes Parquet of a file once and for all; `words` are its columns of text, as 007."""
        scan = "scan_ndjson({source}, infer_schema_length=None)"
        if self.separator is not None:
            scan = "scan_csv({source}, infer_schema_length=None{more})"
        more = "" if self.separator == "," else f", separator={json.dumps(self.separator)}, decimal_comma=True"
        if words:
            more += f", schema_overrides=dict.fromkeys({json.dumps(list(words))}, polars.String)"
        return command(f"import polars; polars.{scan.replace('{more}', more)}.sink_parquet({{target}})", file)


def command(code: str, file: str) -> str:
    """Return the shell command that runs Python code over the name of a file and of the Parquet file to make."""
    place = Path(file)
    stem = place.with_suffix("") if place.suffix in PACKED else place
    target = stem.with_suffix(".parquet")
    target = place.with_name(f"new-{target.name}") if target == place else target
    filled = code.replace("{source}", json.dumps(file)).replace("{target}", json.dumps(str(target)))
    return PYTHON.format(shlex.quote(filled))


def through(program: str, file: str, suffix: str = "") -> str:
    """Return the shell command that sends a file, or the copy of an object, through a program into a file beside it."""
    place = Path(file.rpartition("/")[2] if "://" in file else file)
    target = place.with_suffix("") if place.suffix in (*PACKED, *UNREAD) else place.with_name(f"new-{place.name}")
    target = place.with_suffix(suffix) if suffix not in ("", place.suffix) else target
    return f"{program} < {shlex.quote(str(place))} > {shlex.quote(str(target))}"


def is_parquet(file: str, open_file: Callable[[str], IO[bytes]] = LOCAL.open) -> bool:
    """Return whether a file begins as Parquet does; OSError where it cannot be read."""
    with open_file(file) as opened:
        return opened.read(4) in (b"PAR1", b"PARE")


def is_text_name(name: str) -> bool:
    """Return whether a name says that a file of a folder is a text with a table."""
    lower = name.lower()
    for packed in PACKED:
        lower = lower.removesuffix(packed)
    return lower.endswith(SUFFIXES)


def text_of(file: str, where: str, open_file: Callable[[str], IO[bytes]] = LOCAL.open) -> Text:
    """Return how a file that is not Parquet is read.

    Raises:
        InputError: it is something else; the message says what, and what to do.
        OSError: it cannot be read.
    """
    with open_file(file) as opened:
        head = opened.read(HEAD)
    packed = next((name for begins, name in COMPRESSED if head.startswith(begins)), None)
    if packed:
        head = _unpacked(head, packed, where)
        if head.startswith(b"PAR1"):
            unpack = {"gzip": "gunzip", "zstd": "unzstd"}[packed]
            raise InputError(
                f"{where}: Parquet packed with {packed}, though it is compressed inside; unpack it with "
                f"{through(unpack, file)}"
            )
    if not head:
        raise InputError(f"{where}: empty (0 bytes), so no table; copy it again")
    if head.startswith(b"PAR1"):
        raise InputError(f"{where}: truncated or damaged: it begins as Parquet and has no footer; copy it again")
    other = next((each for each in OTHERS if head.startswith(each.begins)), None)
    if other is not None:
        shell = through(other.program, file) if other.program else command(other.code, file)
        way_out = other.way_out or f"convert it with {shell}"
        raise InputError(f"{where}: {other.what}; {way_out}")
    return _of_text(head.removeprefix(b"\xef\xbb\xbf"), file, where)


@contextmanager
def unpacked(open_file: Callable[[], IO[bytes]]) -> Iterator[IO[bytes]]:
    """Open a text, packed or not."""
    with open_file() as opened:
        head = opened.read(4)
    packed = next((name for begins, name in COMPRESSED if head.startswith(begins)), None)
    with open_file() as opened:
        yield pa.CompressedInputStream(opened, packed) if packed else opened


def _unpacked(head: bytes, packed: str, where: str) -> bytes:
    """Return the beginning of a packed text."""
    found = b""
    try:
        with pa.CompressedInputStream(pa.BufferReader(head), packed) as opened:
            while len(found) < HEAD and (more := opened.read(1024)):
                found += more
    except (OSError, pa.ArrowException) as error:
        if not found and len(head) < HEAD:
            raise InputError(f"{where}: packed with {packed} and damaged ({error}); copy it again") from error
    return found


def _of_text(head: bytes, file: str, where: str) -> Text:
    start = head.lstrip()[:64].lower()
    if start.startswith((b"<!doctype html", b"<html")):
        raise InputError(f"{where}: a web page (HTML), such as a login form; download the file itself")
    if start.startswith(b"<"):
        raise InputError(f"{where}: XML, such as the answer of a store that refused; download the file itself")
    begin, nul, _ = head.partition(b"\0")
    if nul and b"\n" in begin and begin.isascii() and any(each.encode() in begin for each in SEPARATORS):
        line, remove = begin.count(b"\n") + 1, through(r"tr -d '\000'", file)
        raise InputError(
            f"{where}: a text with bytes 0 in line {line:,}, as a crash leaves them; remove them with {remove}"
        )
    if nul:
        raise InputError(f"{where}: neither Parquet nor a text; export the table as Parquet or CSV")
    if start.startswith(b"["):
        raise InputError(f"{where}: a JSON array; convert it with {command(ARRAY, file)}")
    if start.startswith(b"{"):
        _check_lines_of_json(head, file, where)
        return Text(separator=None)
    lines = _lines(head, file, where)
    if re.fullmatch(r"sep=.", lines[0]):
        raise InputError(
            f"{where}: a text with a line for Excel ({lines[0]!r}) above the names of its columns; remove this line "
            f"with sed -i 1d {shlex.quote(file)}"
        )
    if lines[0].startswith("#"):
        comments = through("grep -v '^#'", file)
        raise InputError(f"{where}: a text with lines of comments ({lines[0]!r:.60}); remove them with {comments}")
    if "::" in lines[0] and not any(separator in lines[0] for separator in SEPARATORS):
        raise InputError(
            f"{where}: values with '::' between them, and no names of columns; convert it with {command(COLONS, file)} "
            'and name the columns with --schema FILE.toml, such as user_id = "column_1"'
        )
    separator = _separator(lines, where)
    _check_names(next(csv.reader(lines[:1], delimiter=separator)), separator, file, where)
    return Text(separator=separator)


def _check_names(names: Sequence[str], separator: str, file: str, where: str) -> None:
    """Raise InputError where two columns of a text have one name, or none."""
    if names.count("") > 1:
        line = separator.join(name or f"column_{at}" for at, name in enumerate(names, start=1))
        raise InputError(
            f"{where}: {names.count('')} columns have no name; give them some with "
            f"sed -i {shlex.quote(f'1c {line}')} {shlex.quote(file)}"
        )
    twice = next((name for name in names if name and names.count(name) > 1), None)
    if twice is not None:
        raise InputError(
            f"{where}: two columns are named {twice!r}; rename one of them in its first line, as with "
            f"sed -i '1s/{twice}/other_{twice}/2' {shlex.quote(file)} for the second"
        )


def _check_lines_of_json(head: bytes, file: str, where: str) -> None:
    """Raise InputError for JSON of which the first objects go over several lines."""
    lines = [line.strip() for line in head.splitlines()[:-1] if line.strip()][:3]
    if lines and all(line in (b"{", b"}", b"},") or not line.endswith((b"}", b"},")) for line in lines):
        raise InputError(
            f"{where}: JSON whose objects go over several lines; put each on a line of its own with "
            f"{through('jq -c .', file, '.ndjson')}"
        )


def _lines(head: bytes, file: str, where: str) -> list[str]:
    """Return the whole lines of the beginning of a text."""
    try:
        text = head.decode()
    except UnicodeDecodeError as error:
        if len(head) - error.start > 4:  # not just a character that is cut at the end
            raise InputError(
                f"{where}: a text that is not UTF-8 (byte {error.start}); convert it with "
                f"{through('iconv -f ISO-8859-1 -t UTF-8', file)}"
            ) from error
        text = head[: error.start].decode()
    lines = text.splitlines() or [""]
    return lines[:-1] if len(lines) > 1 and len(head) >= HEAD else lines


def _separator(lines: Sequence[str], where: str) -> str:
    """Return the separator that cuts the first lines into equally many values, the most of them."""
    found = []
    for separator in SEPARATORS:
        widths = [len(row) for row in csv.reader(lines[:50], delimiter=separator) if row]
        if widths and widths[0] > 1:
            alike = sum(width == widths[0] for width in widths) / len(widths)
            found.append((alike, widths[0], separator))
    if not found:
        shown = re.sub(r"[^\x20-\x7e]", ".", lines[0])[:60]
        raise InputError(
            f"{where}: neither Parquet nor a table as text: its first line ({shown!r}) has no comma, tab, semicolon or "
            "| between values; export the table as Parquet or CSV"
        )
    return max(found)[2]
