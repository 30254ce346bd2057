"""`report`: every model on every device of this machine, and two machines side by side."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ipfs_accelerate_node.cli.client import refusal
from ipfs_accelerate_node.cli.new_files import FORCE, check_new, write_new
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
@click.option("--peers", is_flag=True, help="Set beside what other nodes claim of the same models; they are asked.")
@FORCE
@daemon_options
def report(
    refs: tuple[str, ...],
    devices: tuple[str, ...],
    precisions: tuple[str, ...],
    markdown: Path | None,
    others: tuple[Path, ...],
    peers: bool,
    force: bool,
    daemon: Daemon,
    as_json: bool,
) -> None:
    """Run every model on every device and say what is REAL, how fast, and by what evidence.

    Each device is loaded by name, read back, and compared with torch on the CPU in f32. What has no device here is
    UNAVAILABLE; mocks are never measured. It takes minutes; without a REF, every stored model is run. What others claim
    is marked CLAIM: it was not run here.
    """
    if others and peers:
        raise click.UsageError("claims are not cells that machines are compared by: leave out --peers or --compare")
    if len(others) > 1 and (refs or devices or precisions):
        raise click.UsageError("with two files to --compare nothing is measured: leave out models and devices")
    if markdown is not None:
        check_new(markdown, force=force)
    reports = [_read(path) for path in others]
    if len(others) < 2:
        wanted = {"refs": list(refs), "devices": list(devices), "precisions": list(precisions), "peers": peers}
        reports.insert(0, _made(daemon, {name: value for name, value in wanted.items() if value}, quiet=as_json))
    _show(reports, markdown, force=force, as_json=as_json)


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


def _show(reports: list[Report], markdown: Path | None, *, force: bool, as_json: bool) -> None:
    import msgspec

    from ipfs_accelerate_node.benchmarks.cells import compare
    from ipfs_accelerate_node.cli import report_tables

    together = compare(reports) if len(reports) > 1 else None
    if markdown is not None:
        text = report_tables.markdown(reports[0]) if together is None else report_tables.markdown_of_many(together)
        write_new(markdown, text.encode("utf-8", "backslashreplace"), force=force)
    if as_json:
        print_json(msgspec.to_builtins(together or reports[0]))
    elif together is not None:
        report_tables.show_many(together)
    else:
        report_tables.show(reports[0], terminal=sys.stdout.isatty())
