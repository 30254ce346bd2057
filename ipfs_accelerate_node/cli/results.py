"""`results`: how a model runs elsewhere, as a table, as plots, and beside what this machine makes of the same work."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

import click

from ipfs_accelerate_node.cli.new_files import FORCE
from ipfs_accelerate_node.cli.options import REFERENCE, daemon_options
from ipfs_accelerate_node.cli.render import note, print_json, table
from ipfs_accelerate_node.cli.results_files import Files, plot_file

if TYPE_CHECKING:
    from ipfs_accelerate_node.cli.client import Daemon
    from ipfs_accelerate_node.cli.sheets import Sheet

_FILE = click.Path(path_type=Path)


@click.command()
@click.argument("ref", metavar="REF", type=REFERENCE)
@click.option("--peer", "peers", multiple=True, metavar="URL|PEERID", help="Ask only this one; may be repeated.")
@click.option("--hardware", type=click.Choice(["like-mine"]), help="Only what ran on hardware like this machine's.")
@click.option("--offline", is_flag=True, help="Ask nobody: what is here already.")
@click.option("--by-key", is_flag=True, help="A row for each key, not the medians of all.")
@click.option("--csv", "form", flag_value="csv", help="Print comma-separated values.")
@click.option("--markdown", "form", flag_value="markdown", help="Print a Markdown table.")
@click.option("--parquet", type=_FILE, metavar="FILE", help="Write the table there (extra parquet).")
@click.option(
    "--plot", "plots", type=_FILE, multiple=True, callback=plot_file, metavar="FILE",
    help="Draw latency by device and throughput by batch, as .png or .svg (extra plot); may be repeated.",
)  # fmt: skip
@click.option("--html", type=_FILE, metavar="FILE", help="Plots and tables as one page (extra plot).")
@FORCE
@click.option("--verify", is_flag=True, help="Run here what others claim, and show both; takes minutes.")
@click.option("--signer", "keys", multiple=True, metavar="PEERID", help="With --verify: only what this key claims.")
@click.option("--device", metavar="D", help="With --verify: run it there, not on what is closest to the claim's.")
@click.option("--workload", "workloads", multiple=True, metavar="NAME", help="With --verify: only this one.")
@click.option("--quick", is_flag=True, help="With --verify: fewer repeats, nothing compared with the reference.")
@daemon_options
def results(
    ref: str,
    peers: tuple[str, ...],
    hardware: str | None,
    offline: bool,
    by_key: bool,
    form: str | None,
    parquet: Path | None,
    plots: tuple[Path, ...],
    html: Path | None,
    force: bool,
    verify: bool,
    daemon: Daemon,
    as_json: bool,
    **rerun: Any,
) -> None:
    """Ask other nodes how a model runs on their hardware.

    Peers of the configuration, those added, and whoever announced results of the model are asked at once. A signature
    proves who says it, not that it is true: one vote per key, the median of the keys, trusted keys first. What is far
    from this machine's own figure, or from the other keys', is flagged as unlike. Failures are told on stderr.
    """
    _check(verify=verify, by_key=by_key, hardware=hardware, rerun=rerun)
    files = Files(parquet, plots, html, force=force)
    files.check()
    query = [("model", ref), *(("peer", peer) for peer in peers)]
    query += [("hardware", hardware)] if hardware else []
    query += [("ask", "no")] if offline or verify else []
    done = _run_again(daemon, {"ref": ref, "peers": peers, "ask": not offline}, rerun) if verify else None
    found: Any = daemon.call("GET", f"/api/results?{urlencode(query)}") if done is None or files.wanted else None
    sheet, lines = _sheet(done, found, by_key=by_key), _told(found) if done is None else _verified(done)
    if as_json:
        print_json(found if done is None else done)
    else:
        _show(sheet, form)
    files.write(ref, found, sheet, lines, verified=verify)
    for line in lines if not as_json else ():
        note(line)


def _run_again(daemon: Daemon, wish: dict[str, Any], rerun: dict[str, Any]) -> dict[str, Any]:
    wanted = {name: list(value) if isinstance(value, tuple) else value for name, value in rerun.items() if value}
    done: dict[str, Any] = daemon.call("POST", "/api/results/verify", {**wish, **wanted})
    return done


def _check(*, verify: bool, by_key: bool, hardware: str | None, rerun: dict[str, Any]) -> None:
    if verify and (by_key or hardware):
        raise click.UsageError("--verify has a row for each claim: leave out --by-key and --hardware")
    if not verify and (alone := [name for name, value in rerun.items() if value]):
        named = {"keys": "signer", "workloads": "workload"}
        raise click.UsageError(f"--{named.get(alone[0], alone[0])} is for --verify")


def _sheet(done: dict[str, Any] | None, found: dict[str, Any] | None, *, by_key: bool) -> Sheet:
    from ipfs_accelerate_node.cli import results_sheets

    if done is not None:
        return results_sheets.beside(done)
    return (results_sheets.by_key if by_key else results_sheets.summary)(found or {})


def _show(sheet: Sheet, form: str | None) -> None:
    if form == "csv":
        sys.stdout.write(sheet.csv())
    elif form == "markdown":
        sys.stdout.write(sheet.markdown())
    else:
        wide = not sys.stdout.isatty()
        table(sheet.header(wide=wide), sheet.texts(wide=wide))


def _told(found: dict[str, Any]) -> list[str]:
    """What is to be said of the answers, and of who gave none."""
    unconfirmed = found.get("unconfirmed", ())
    lines = [] if found["results"] or unconfirmed else ["nobody's results are known here"]
    lines += [f"unconfirmed: {_claimed(result)}" for result in unconfirmed]
    if unconfirmed:
        lines.append("nobody was found who has this model: what is claimed of it is not ranked")
    if found.get("queued"):
        lines.append(f"{found['queued']} records of this node are queued: published as soon as Kubo is there")
    lines += [f"{signer} contradicted itself: its results are not counted" for signer in found["flagged"]]
    lines += [f"{signer} revoked its key: its results are not counted" for signer in found.get("revoked", ())]
    unlike = sum(1 for result in found["results"] for vote in result["votes"] if vote["unlike"])
    if unlike:
        lines.append(
            f"{unlike} claims are unlike: far from this machine's figure or the other keys' (--by-key says whose)"
        )
    return lines + _asked(found["inquiry"])


def _claimed(result: dict[str, Any]) -> str:
    what = " ".join((result["workload"], "on", result["device"], result["engine"], result["precision"]))
    return f"{what}: median {result['median_ns'] / 1e6:.3f} ms, claimed by {result['keys']} keys"


def _asked(inquiry: dict[str, Any] | None) -> list[str]:
    if inquiry is None:
        return []
    lines = [
        f"{answer['peer']}: {refused['count']} records refused: {refused['code']}: {refused['reason']}"
        for answer in inquiry["answers"]
        for refused in answer["refused"]
    ]
    lines += [f"{gone['peer']}: no answer: {gone['code']}: {gone['reason']}" for gone in inquiry["failures"]]
    if inquiry["note"]:
        lines.append(inquiry["note"])
    new = sum(answer["accepted"] for answer in inquiry["answers"])
    counts = len(inquiry["answers"]), len(inquiry["failures"])
    return [*lines, f"{counts[0]} nodes answered, {counts[1]} did not; {new} new records"]


def _verified(done: dict[str, Any]) -> list[str]:
    """What came of the claims that were run again, and by which rule."""
    left = Counter((left["workload"], left["device"], left["reason"]) for left in done["left_out"])
    lines = [f"not run again: {workload} on {device}: {reason}" for workload, device, reason in left]
    lines += _asked(done["inquiry"])
    verdicts = Counter(pair["verdict"].replace("_", " ") for pair in done["beside"])
    said = ", ".join(f"{count} {verdict}" for verdict, count in verdicts.most_common())
    lines.append(f"{len(done['beside'])} claims run again here: {said}; our records are kept here, not published")
    return [*lines, done["rule"]]
