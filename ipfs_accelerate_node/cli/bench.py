"""`bench`: a model by workloads, as signed records."""

from __future__ import annotations

import json
import os
import sys
from typing import TYPE_CHECKING, Any

import click

from ipfs_accelerate_node.cli.client import refusal
from ipfs_accelerate_node.cli.options import REFERENCE, daemon_options
from ipfs_accelerate_node.cli.render import fields, note, print_json, table, yes_no
from ipfs_accelerate_node.errors import EXIT_FAILURE, Unavailable

if TYPE_CHECKING:
    from ipfs_accelerate_node.cli.client import Daemon

HEADER = ("workload", "device", "engine", "precision", "p50 ms", "p95 ms", "rate", "more", "published", "record")


@click.command()
@click.argument("ref", metavar="REF", type=REFERENCE)
@click.option("--device", metavar="D", help="auto (where it would be put), all, cpu, cuda:N, openvino:CPU, …")
@click.option("--task", metavar="TASK", help="Another than the model's first.")
@click.option("--precision", type=click.Choice(["f32", "bf16", "f16", "int8"]))
@click.option(
    "--workload", "workloads", multiple=True, metavar="NAME",
    help="Only this one; may be repeated: encode-8x128, pair-8x128, pp512, tg128, images-8, rtf-30, examples-8, load, "
    "fetch (what the last fetch took). Numbers are free.",
)  # fmt: skip
@click.option("--quick", is_flag=True, help="Fewer workloads and repeats, nothing compared with the reference.")
@click.option("--even-if-busy", is_flag=True, help="Keep a record of a busy machine too: marked, never published.")
@click.option("--publish", is_flag=True, help="Put the records on IPFS, for everybody and for good.")
@click.option("--yes", is_flag=True, help="Publish without asking.")
@daemon_options
def bench(
    ref: str,
    workloads: tuple[str, ...],
    publish: bool,
    yes: bool,
    daemon: Daemon,
    as_json: bool,
    **wanted: str | bool | None,
) -> None:
    """Measure a model by workloads, as signed records.

    Samples are whole requests, warmed up, in nanoseconds. A workload is refused when other processes took the machine
    meanwhile, or when the samples are too far apart. Before publishing, a terminal is shown the records and asked;
    without a terminal, --publish is the consent.
    """
    if publish and wanted["even_if_busy"]:
        raise click.UsageError("what was measured on a busy machine is never published: leave out --even-if-busy")
    ask = publish and not yes and sys.stdin.isatty() and sys.stderr.isatty() and not _standing_consent()
    body: dict[str, Any] = {"ref": ref, "publish": publish and not ask, **{k: v for k, v in wanted.items() if v}}
    if workloads:
        body["workloads"] = list(workloads)
    done = _measured(daemon, body, quiet=as_json)
    if ask:
        _ask(done)
        done["results"] = [
            daemon.call("POST", "/api/benchmarks", {"record": result["envelope_cid"], "publish": True})
            for result in done["results"]
        ]
    if as_json:
        print_json(done)
    else:
        _show(done)


def _measured(daemon: Daemon, body: dict[str, Any], *, quiet: bool) -> dict[str, Any]:
    """What the daemon measured, told on stderr as it goes."""
    last: tuple[str, str, str] | None = None
    for name, data in daemon.events("/api/benchmarks", method="POST", body=body):
        if name == "failed":
            raise refusal(int(data.get("status", 500)), data)
        if name == "bench":
            found: dict[str, Any] = data
            return found
        if name != "doing" or quiet:
            continue
        phase = (data["device"], data["workload"], data["phase"])
        if phase != last or data["done"]:
            what = " ".join(filter(None, (data["workload"], f"on {data['device']}" if data["device"] else "")))
            count = f" {data['done'] + 1} of {data['of']}" if data["of"] else ""
            note(f"{what}: {data['phase']}{count}".removeprefix(": "))
        last = phase
    raise Unavailable("the daemon stopped before the benchmark was done", code="daemon_gone")


def _show(done: dict[str, Any]) -> None:
    results = done["results"]
    if len(results) == 1:
        _show_one(results[0])
    else:
        table(HEADER, [_row(result) for result in results])
    for result in results:
        if result["note"]:
            note(f"{result['record']['workload']['name']}: {result['note']}")
    for left in done["left_out"]:
        what = " ".join(filter(None, (left["workload"], "on", left["device"])))
        note(f"left out: {what}: {left['reason']} ({left['code']})")


def _row(result: dict[str, Any]) -> tuple[object, ...]:
    record, found = result["record"], result["figures"]
    rate = f"{found['throughput']:g} {found['unit']}"
    times = (f"{found['p50_ms']:.4g}", f"{found['p95_ms']:.4g}")
    return (
        record["workload"]["name"], record["device"], record["engine"], record["precision"], *times, rate,
        _more(found), _standing(result), result["envelope_cid"],
    )  # fmt: skip


def _show_one(result: dict[str, Any]) -> None:
    record, found = result["record"], result["figures"]
    samples = record["samples_ns"]
    fields(
        [
            (
                "workload",
                f"{record['workload']['name']} on {record['device']} ({record['engine']}, {record['precision']})",
            ),
            ("time", f"{found['p50_ms']:.4g} ms, median of {len(samples)}; p95 {found['p95_ms']:.4g} ms"),
            ("rate", f"{found['throughput']:g} {found['unit']}"),
            ("more", _more(found) or None),
            ("record", result["record_cid"]),
            ("envelope", result["envelope_cid"]),
            ("signer", result["signer"]),
            ("published", _standing(result)),
        ]
    )


def _standing(result: dict[str, Any]) -> str:
    """Published is what was read back by CID; queued, what will be as soon as Kubo is there."""
    return "queued" if result.get("queued") else yes_no(result["published"])


def _more(found: dict[str, Any]) -> str:
    """What the field asks for beside time and rate."""
    said = [
        f"{label} {found[name]:.4g}{unit}"
        for label, name, unit in (
            ("first token", "ttft_ms", " ms"),
            ("per token", "tpot_ms", " ms"),
            ("real-time factor", "rtf", ""),
        )
        if found[name] is not None
    ]
    named = {name: ms for name, ms in found["phases_ms"].items() if name != "first_token"}
    return ", ".join([*said, *(f"{name} {ms:.4g} ms" for name, ms in named.items())])


def _standing_consent() -> bool:
    from ipfs_accelerate_node.config import load_config

    return load_config({}, os.environ, None).publish


def _ask(done: dict[str, Any]) -> None:
    """Shows the very records that would be public. Returns if the person agrees; else the command ends here."""
    for result in done["results"]:
        for line in json.dumps(result["record"], indent=2).splitlines():
            note(line)
    note("This and this node's public key go to IPFS: for everybody, and never to be taken back.")
    if not click.confirm("Publish?", default=False, err=True):
        note("not published")
        click.get_current_context().exit(EXIT_FAILURE)
