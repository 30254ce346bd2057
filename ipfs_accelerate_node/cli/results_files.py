"""The files of `results`: plots, a page, a table as Parquet. What cannot be written is said before anybody is asked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ipfs_accelerate_node.cli.new_files import check_new, write_new
from ipfs_accelerate_node.cli.render import note

if TYPE_CHECKING:
    from ipfs_accelerate_node.benchmarks.page import Part
    from ipfs_accelerate_node.cli.sheets import Sheet


def plot_file(_ctx: click.Context, _param: click.Parameter, paths: tuple[Path, ...]) -> tuple[Path, ...]:
    """A callback: by its name a picture that can be drawn."""
    for path in paths:
        if path.suffix.lower() not in (".png", ".svg"):
            raise click.BadParameter(f"{path}: a plot is a .png or a .svg")
    return paths


@dataclass(frozen=True, slots=True, kw_only=False)
class Files:
    """What is to be written; None and empty for what is not."""

    parquet: Path | None
    plots: tuple[Path, ...]
    html: Path | None
    force: bool

    @property
    def wanted(self) -> bool:
        """Whether all results are needed for it."""
        return bool(self.plots or self.html)

    def check(self) -> None:
        """Raises what `write` would raise, as far as that can be known before."""
        paths = [path for path in (self.parquet, *self.plots, self.html) if path is not None]
        if len(set(paths)) < len(paths):
            raise click.UsageError("two outputs have the same file")
        for path in paths:
            check_new(path, force=self.force)
        if self.parquet is not None:
            from ipfs_accelerate_node.cli.sheets import require_parquet

            require_parquet()
        if self.wanted:
            from ipfs_accelerate_node.benchmarks.plots import require

            require()

    def write(
        self, ref: str, found: dict[str, Any] | None, sheet: Sheet, notes: Sequence[str], *, verified: bool
    ) -> None:
        """sheet: the table that is shown; verified: it is of claims that were run again. Raises Conflict, StorageError,
        Unavailable."""
        if self.parquet is not None:
            self._put(self.parquet, sheet.parquet())
        if not self.wanted or found is None:
            return
        from ipfs_accelerate_node.benchmarks.charts import latency, throughput
        from ipfs_accelerate_node.benchmarks.page import page
        from ipfs_accelerate_node.benchmarks.plots import drawn
        from ipfs_accelerate_node.peers.likeness import RULE

        title = ref if ref == found["model"] else f"{ref}: {found['model']}"
        charts = [latency(found), throughput(found)]
        for path in self.plots:
            self._put(path, drawn(title, charts, "svg" if path.suffix.lower() == ".svg" else "png"))
        if self.html is not None:
            parts = _parts(found, sheet if verified else None)
            self._put(self.html, page(title, drawn("", charts, "svg"), parts, notes=notes, rule=RULE))

    def _put(self, path: Path, data: bytes) -> None:
        write_new(path, data, force=self.force)
        note(f"wrote {path}")


def _parts(found: dict[str, Any], verified: Sheet | None) -> list[Part]:
    from ipfs_accelerate_node.cli.results_sheets import by_key, summary

    sheets = [("Medians of the keys", summary(found)), ("What each key says", by_key(found))]
    if verified is not None:
        sheets.insert(0, ("Claims run again here", verified))
    return [_part(title, sheet) for title, sheet in sheets]


def _part(title: str, sheet: Sheet) -> Part:
    from ipfs_accelerate_node.benchmarks.page import Part

    shown = [column for column in sheet.columns if not column.wide]
    numeric = frozenset(index for index, column in enumerate(shown) if column.type in ("count", "number"))
    return Part(title, [column.name for column in shown], sheet.texts(wide=False), numeric)
