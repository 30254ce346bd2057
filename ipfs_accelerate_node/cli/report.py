"""`report`: every model on every device of this machine, and two machines side by side."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ipfs_accelerate_node.cli.client import refusal
from ipfs_accelerate_node.cli.options import REFERENCE, daemon_options
from ipfs_accelerate_node.cli.render import note, print_json
from ipfs_accelerate_node.errors import InvalidInput, Unavailable

if TYPE_CHECKING:
    from ipfs_accelerate_node.benchmarks.cells import Report
    from ipfs_accelerate_node.cli.client import Daemon


@click.command()
@click.argument("refs", metavar="[REF]...", type=REFERENCE, nargs=-1)
@click.option("--device", "devices", multiple=True, metavar="D", help="Only this one; may be repeated.")
@click.option("--precision", "precisions", multiple=True, type=click.Choice(["f32", "bf16", "f16", "int8"]))
@click.option(
    "--markdown", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE", help="Write the table there too."
)
@click.option(
    "--compare", "others", multiple=True, type=click.Path(exists=True, dir_okay=False, path_type=Path), metavar="FILE",
    help="Set beside what `report --json` wrote elsewhere; with two of them nothing is measured here.",
)  # fmt: skip
@daemon_options
def report(
    refs: tuple[str, ...],
    devices: tuple[str, ...],
    precisions: tuple[str, ...],
    markdown: Path | None,
    others: tuple[Path, ...],
    daemon: Daemon,
    as_json: bool,
) -> None:
    """Run every model on every device and say what is REAL, how fast, and by what evidence.

    Each device is loaded by name, read back, and compared with torch on the CPU in f32. What has no device here is
    UNAVAILABLE; mocks are never measured. It takes minutes; without a REF, every stored model is run.
    """
    if len(others) > 1 and (refs or devices or precisions):
        raise click.UsageError("with two files to --compare nothing is measured: leave out models and devices")
    reports = [_read(path) for path in others]
    if len(others) < 2:
        wanted = {"refs": refs, "devices": devices, "precisions": precisions}
        reports.insert(0, _made(daemon, {k: list(v) for k, v in wanted.items() if v}, quiet=as_json))
    _show(reports, markdown, as_json=as_json)


def _read(path: Path) -> Report:
    from ipfs_accelerate_node.benchmarks.cells import MAX_REPORT_BYTES, read_report

    try:
        with path.open("rb") as file:
            data = file.read(MAX_REPORT_BYTES + 1)
    except OSError as exc:
        raise InvalidInput(f"{path} cannot be read: {exc.strerror}", param="compare") from exc
    return read_report(data, name=str(path))


def _made(daemon: Daemon, wanted: dict[str, Any], *, quiet: bool) -> Report:
    """The daemon's report, told step by step on stderr."""
    import msgspec

    from ipfs_accelerate_node.benchmarks.cells import Report

    for name, data in daemon.events("/api/report", method="POST", body=wanted):
        if name == "failed":
            raise refusal(int(data.get("status", 500)), data)
        if name == "report":
            return msgspec.convert(data, Report)
        if quiet:
            continue
        if name == "step":
            note(f"{data['model']} on {data['device']} ({data['precision']}): {data['doing']}")
        elif name == "cell":
            note(
                f"{data['model']} on {data['device']} ({data['precision']}): {data['status']} {data['reason']}".rstrip()
            )
    raise Unavailable("the daemon stopped before the report was whole", code="daemon_gone")


def _show(reports: list[Report], markdown: Path | None, *, as_json: bool) -> None:
    import msgspec

    from ipfs_accelerate_node.benchmarks.cells import compare
    from ipfs_accelerate_node.cli import report_tables

    together = compare(reports) if len(reports) > 1 else None
    if markdown is not None:
        text = report_tables.markdown(reports[0]) if together is None else report_tables.markdown_of_many(together)
        try:
            markdown.write_text(text, encoding="utf-8")
        except OSError as exc:
            raise InvalidInput(f"{markdown} cannot be written: {exc.strerror}", param="markdown") from exc
    if as_json:
        print_json(msgspec.to_builtins(together or reports[0]))
    elif together is not None:
        report_tables.show_many(together)
    else:
        report_tables.show(reports[0], terminal=sys.stdout.isatty())
