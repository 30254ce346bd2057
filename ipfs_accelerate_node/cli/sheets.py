"""A table whose columns have types: for a terminal or a pipe, as CSV, Markdown or Parquet; the same rows in each.

Texts of others are made harmless when a row is made. pyarrow (the extra ``parquet``) is imported only where it is
needed.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from ipfs_accelerate_node.cli.render import clean
from ipfs_accelerate_node.errors import Unavailable

Value = str | int | float | bool | None
Type = Literal["text", "count", "number", "flag"]


def _shown(value: Value) -> str:
    if value is None or value == "":
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if not isinstance(value, float):
        return str(value)
    return f"{value:.0f}" if value >= 1000 else f"{value:.4g}"


@dataclass(frozen=True, slots=True)
class Column:
    """shown: how a person reads it. wide: only where there is room without end: not on a terminal, nor in Markdown."""

    name: str
    type: Type = "text"
    shown: Callable[[Value], str] = _shown
    wide: bool = False


def milliseconds(value: Value) -> str:
    return f"{value:.3f}" if isinstance(value, float) else "-"


@dataclass(frozen=True, slots=True)
class Sheet:
    """rows: values in the order of the columns; None where there is none."""

    columns: tuple[Column, ...]
    rows: tuple[tuple[Value, ...], ...]

    def header(self, *, wide: bool) -> list[str]:
        return [column.name for column in self.columns if wide or not column.wide]

    def texts(self, *, wide: bool) -> list[list[str]]:
        """As people read them."""
        kept = [index for index, column in enumerate(self.columns) if wide or not column.wide]
        return [[self.columns[index].shown(row[index]) for index in kept] for row in self.rows]

    def csv(self) -> str:
        """In full precision, nothing where there is no value; no cell is a formula to the spreadsheet that opens it."""
        output = io.StringIO()
        writer = csv.writer(output, lineterminator="\n")
        writer.writerow(self.header(wide=True))
        writer.writerows([_csv_cell(value) for value in row] for row in self.rows)
        return output.getvalue()

    def markdown(self) -> str:
        header = self.header(wide=False)
        lines = [f"| {' | '.join(map(markdown_text, header))} |", "|" + " --- |" * len(header)]
        lines += [f"| {' | '.join(map(markdown_text, cells))} |" for cells in self.texts(wide=False)]
        return "\n".join(lines) + "\n"

    def parquet(self) -> bytes:
        """With the columns' types. Raises Unavailable (extra_missing)."""
        require_parquet()
        import pyarrow
        import pyarrow.parquet

        types = {
            "text": pyarrow.string(),
            "count": pyarrow.int64(),
            "number": pyarrow.float64(),
            "flag": pyarrow.bool_(),
        }
        arrays = [
            pyarrow.array([row[index] for row in self.rows], type=types[column.type])
            for index, column in enumerate(self.columns)
        ]
        output = io.BytesIO()
        made = pyarrow.Table.from_arrays(arrays, names=[column.name for column in self.columns])
        pyarrow.parquet.write_table(made, output)
        return output.getvalue()


def require_parquet() -> None:
    """Raises Unavailable (extra_missing) where pyarrow is not there."""
    try:
        import pyarrow  # noqa: F401
    except ImportError as exc:
        raise Unavailable(
            "Parquet needs pyarrow, which is not installed: pip install 'ipfs-accelerate-node[parquet]'",
            code="extra_missing",
            extra="parquet",
        ) from exc


def _csv_cell(value: Value) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if not isinstance(value, str):
        return repr(value)
    return f"'{value}" if value[:1] in ("=", "+", "-", "@") else value


def markdown_text(text: str) -> str:
    """Plain text in Markdown: no markup, no HTML, no end of a table's cell."""
    plain = clean(text)
    for mark in "\\`*_[]<>|#":
        plain = plain.replace(mark, f"\\{mark}")
    return plain.replace("&", "&amp;")
