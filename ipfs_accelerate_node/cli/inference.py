"""Running models: `load`, `unload`, `embed`, `bench`."""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from ipfs_accelerate_node.cli import Refused
from ipfs_accelerate_node.cli.client import path_of
from ipfs_accelerate_node.cli.options import MODEL_NAME, REFERENCE, daemon_options
from ipfs_accelerate_node.cli.render import fields, note, print_json, size, yes_no
from ipfs_accelerate_node.errors import EXIT_FAILURE

if TYPE_CHECKING:
    from ipfs_accelerate_node.cli.client import Daemon

LOADING_PATIENCE_S = 900.0  # the daemon answers every 20 s while it loads, and gives up by itself before this
SHOWN_NUMBERS = 4


@click.command()
@click.argument("ref", metavar="REF", type=REFERENCE)
@click.option(
    "--device", default="auto", show_default=True, help="cpu, cuda:0, …; a named device is used or the load fails."
)
@click.option("--precision", default="f32", show_default=True)
@click.option("--as", "alias", type=MODEL_NAME, help="A name to call the loaded model by.")
@daemon_options
def load(ref: str, device: str, precision: str, alias: str | None, daemon: Daemon, as_json: bool) -> None:
    """Start a model's worker process and wait until it answers."""
    wanted = {"ref": ref, "device": device, "precision": precision, **({} if alias is None else {"as": alias})}
    loaded = daemon.call("POST", "/api/loads", wanted)
    if as_json:
        print_json(loaded)
        return
    fields(
        [
            ("id", loaded["id"]),
            ("root", loaded["root"]),
            ("device", f"{loaded['device']} ({loaded['engine']}, {loaded['precision']})"),
            ("status", loaded["implementation"]),
            ("took", f"{loaded['load_s']:.1f} s"),
            ("memory", size(loaded["memory_bytes"])),
        ]
    )


@click.command()
@click.argument("name", metavar="NAME")
@daemon_options
def unload(name: str, daemon: Daemon, as_json: bool) -> None:
    """End a model's worker process; its memory is free at once."""
    done = daemon.call("DELETE", path_of("/api/loads", name))
    if as_json:
        print_json(done)
    else:
        fields([("unloaded", done["unloaded"])])


@click.command()
@click.argument("ref", metavar="REF", type=REFERENCE)
@click.argument("texts", metavar="TEXT...", nargs=-1)
@click.option("--dimensions", type=click.IntRange(1, 65536), help="Cut to so many numbers, then normalise again.")
@daemon_options
def embed(ref: str, texts: tuple[str, ...], dimensions: int | None, daemon: Daemon, as_json: bool) -> None:
    """Embed texts with a model; without any, the lines of standard input.

    On a terminal the first numbers of each vector are shown; into a pipe every vector is one line, a JSON array.
    """
    if not texts:
        if sys.stdin.isatty():
            raise click.UsageError("Missing argument 'TEXT...' (or pipe lines in)")
        texts = tuple(line.rstrip("\r\n") for line in sys.stdin)
    body = {"model": ref, "input": list(texts), **({} if dimensions is None else {"dimensions": dimensions})}
    reply, headers = _embeddings(daemon, body)
    if as_json:
        print_json(reply)
        return
    if reply.get("implementation") == "MOCK" or headers.get("x-implementation") == "MOCK":
        note("MOCK: no model computed these numbers")
    vectors = [item["embedding"] for item in sorted(reply["data"], key=lambda item: int(item["index"]))]
    if not sys.stdout.isatty():
        for vector in vectors:
            print("[" + ", ".join(repr(number) for number in vector) + "]")
        return
    for vector in vectors:
        print(_short(vector))
    status, device, root = (headers.get(f"x-{name}", "?") for name in ("implementation", "device", "model-root"))
    note(f"{status} on {device}, root {root}")


def _short(vector: Sequence[float]) -> str:
    shown = ", ".join(f"{number:.4f}" for number in vector[:SHOWN_NUMBERS])
    return f"[{shown}{', …' if len(vector) > SHOWN_NUMBERS else ''}]  {len(vector)} numbers"


def _embeddings(daemon: Daemon, body: dict[str, Any]) -> tuple[Any, Mapping[str, str]]:
    """The reply, waiting for as long as the daemon says that the model is on its way."""
    deadline = time.monotonic() + LOADING_PATIENCE_S
    while True:
        try:
            return daemon.exchange("POST", "/v1/embeddings", body)
        except Refused as exc:
            if exc.code != "loading" or time.monotonic() > deadline:
                raise
            wait = exc.body.get("retry_after_s")
            time.sleep(min(30.0, max(0.1, wait if isinstance(wait, (int, float)) else 1.0)))


@click.command()
@click.argument("ref", metavar="REF", type=REFERENCE)
@click.option("--publish", is_flag=True, help="Put the record on IPFS, for everybody and for good.")
@click.option("--yes", is_flag=True, help="Publish without asking.")
@daemon_options
def bench(ref: str, publish: bool, yes: bool, daemon: Daemon, as_json: bool) -> None:
    """Measure a model once, as a signed record.

    Before publishing, a terminal is shown the record and asked; without a terminal, --publish is the consent.
    """
    ask = publish and not yes and sys.stdin.isatty() and sys.stderr.isatty() and not _standing_consent()
    done = daemon.call("POST", "/api/benchmarks", {"ref": ref, "publish": publish and not ask})
    if ask:
        _ask(done)
        done = daemon.call("POST", "/api/benchmarks", {"record": done["envelope_cid"], "publish": True})
    if as_json:
        print_json(done)
    else:
        _bench_fields(done)


def _bench_fields(done: dict[str, Any]) -> None:
    samples = done["record"].get("samples_ns") or []
    timed = f"{statistics.median(samples) / 1e6:.2f} ms, median of {len(samples)}" if samples else None
    fields(
        [
            ("time", timed),
            ("record", done["record_cid"]),
            ("envelope", done["envelope_cid"]),
            ("signer", done["signer"]),
            ("published", yes_no(done["published"])),
            ("note", done["note"]),
        ]
    )


def _standing_consent() -> bool:
    from ipfs_accelerate_node.config import load_config

    return load_config({}, os.environ, None).publish


def _ask(done: dict[str, Any]) -> None:
    """Shows the very record that would be public. Returns if the person agrees; else the command ends here."""
    for line in json.dumps(done["record"], indent=2).splitlines():
        note(line)
    note("This and this node's public key go to IPFS: for everybody, and never to be taken back.")
    if not click.confirm("Publish?", default=False, err=True):
        note("not published")
        click.get_current_context().exit(EXIT_FAILURE)
