"""`results`: how a model runs elsewhere."""

from __future__ import annotations

import csv
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

import click

from ipfs_accelerate_node.cli.options import REFERENCE, daemon_options
from ipfs_accelerate_node.cli.render import clean, note, print_json, table

if TYPE_CHECKING:
    from ipfs_accelerate_node.cli.client import Daemon

_COLUMNS = (
    "device", "cpu", "engine", "precision", "workload", "keys", "trusted", "median_ms", "low_ms", "high_ms", "per_s",
    "unit", "own_ms", "own_per_s",
)  # fmt: skip


@click.command()
@click.argument("ref", metavar="REF", type=REFERENCE)
@click.option("--peer", "peers", multiple=True, metavar="URL|PEERID", help="Ask only this one; may be repeated.")
@click.option("--hardware", type=click.Choice(["like-mine"]), help="Only what ran on hardware like this machine's.")
@click.option("--offline", is_flag=True, help="Ask nobody: what is here already.")
@click.option("--csv", "form", flag_value="csv", help="Print comma-separated values.")
@click.option("--markdown", "form", flag_value="markdown", help="Print a Markdown table.")
@daemon_options
def results(
    ref: str,
    peers: tuple[str, ...],
    hardware: str | None,
    offline: bool,
    form: str | None,
    daemon: Daemon,
    as_json: bool,
) -> None:
    """Ask other nodes how a model runs on their hardware.

    Peers of the configuration, those added, and whoever announced results of the model are asked at once. A signature
    proves who says it, not that it is true: one vote per key, the median of the keys, trusted keys first. Failures are
    told on stderr.
    """
    query = [("model", ref), *(("peer", peer) for peer in peers)]
    query += [("hardware", hardware)] if hardware else []
    query += [("ask", "no")] if offline else []
    done = daemon.call("GET", f"/api/results?{urlencode(query)}")
    if as_json:
        print_json(done)
        return
    rows = [_row(result) for result in done["results"]]
    if form == "csv":
        csv.writer(sys.stdout, lineterminator="\n").writerows([_COLUMNS, *(map(_harmless, row) for row in rows)])
    elif form == "markdown":
        _markdown(rows)
    else:
        table(_COLUMNS, rows)
    _tell(done)


def _row(result: dict[str, Any]) -> list[str]:
    device = result["device"]
    if result["device_name"] and result["device_name"] not in (device, *result["cpus"]):
        device = f"{device} ({result['device_name']})"
    figures = (result["median_ns"], result["low_ns"], result["high_ns"])
    return [
        device,
        ", ".join(result["cpus"]),
        result["engine"],
        result["precision"],
        " ".join(part for part in (result["workload"], result["settings"]) if part),
        str(result["keys"]),
        str(result["trusted"]),
        *map(_ms, figures),
        _rate(result["per_s"]),
        f"{result['unit']}/s",
        _ms(result["own_ns"]),
        _rate(result["own_per_s"]),
    ]


def _ms(ns: int | None) -> str:
    return "-" if ns is None else f"{ns / 1e6:.3f}"


def _rate(per_s: float | None) -> str:
    return "-" if per_s is None else f"{per_s:.4g}"


def _harmless(cell: str) -> str:
    """No cell is a formula for the spreadsheet that opens it: others wrote these texts."""
    text = clean(cell)
    return f"'{text}" if text[:1] in ("=", "+", "@") or (text[:1] == "-" and text != "-") else text


def _markdown(rows: Sequence[Sequence[str]]) -> None:
    def cell(text: str) -> str:
        plain = clean(text).replace("\\", "\\\\").replace("|", "\\|")
        return plain.replace("&", "&amp;").replace("<", "&lt;").replace("`", "\\`").replace("[", "\\[")

    print(f"| {' | '.join(_COLUMNS)} |")
    print(f"|{' --- |' * len(_COLUMNS)}")
    for row in rows:
        print(f"| {' | '.join(map(cell, row))} |")


def _tell(done: dict[str, Any]) -> None:
    for result in done["unconfirmed"]:
        what = " ".join((result["workload"], "on", result["device"], result["engine"], result["precision"]))
        note(f"unconfirmed: {what}: {_ms(result['median_ns'])} ms, claimed by {result['keys']} keys")
    if done["unconfirmed"]:
        note("nobody was found who has this model: what is claimed of it is not ranked")
    elif not done["results"]:
        note("nobody's results are known here")
    if done["queued"]:
        note(f"{done['queued']} records of this node are queued: published as soon as Kubo is there")
    for signer in done["flagged"]:
        note(f"{signer} contradicted itself: its results are not counted")
    asked = done["inquiry"]
    if asked is None:
        return
    for answer in asked["answers"]:
        for refused in answer["refused"]:
            note(f"{answer['peer']}: {refused['count']} records refused: {refused['code']}: {refused['reason']}")
    for failure in asked["failures"]:
        note(f"{failure['peer']}: no answer: {failure['code']}: {failure['reason']}")
    if asked["note"]:
        note(asked["note"])
    new = sum(answer["accepted"] for answer in asked["answers"])
    note(f"{len(asked['answers'])} nodes answered, {len(asked['failures'])} did not; {new} new records")
