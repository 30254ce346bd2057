"""Running models: `load`, `unload`, `embed`."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from ipfs_accelerate_node.cli import Refused
from ipfs_accelerate_node.cli.client import path_of
from ipfs_accelerate_node.cli.options import MODEL_NAME, REFERENCE, choosing, daemon_options
from ipfs_accelerate_node.cli.render import fields, note, print_json, size

if TYPE_CHECKING:
    from ipfs_accelerate_node.cli.client import Daemon

LOADING_PATIENCE_S = 900.0  # the daemon answers every 20 s while it loads, and gives up by itself before this
SHOWN_NUMBERS = 4


@click.command()
@click.argument("ref", metavar="REF", type=REFERENCE)
@click.option(
    "--device", default="auto", show_default=True,
    help="cpu, cuda:0, openvino:CPU, …; a named device is used or the load fails. auto measures and takes the fastest.",
)  # fmt: skip
@click.option(
    "--precision", help="auto, f32, bf16, f16 or int8 (auto: bf16 where it was compared with f32 and agrees)."
)
@click.option("--task", help="What for; else the model's own first task.")
@click.option("--as", "alias", type=MODEL_NAME, help="A name to call the loaded model by.")
@click.option("--keep-alive", type=float, metavar="SECONDS", help="Unload it when idle for so long; -1: never.")
@click.option("--pin/--no-pin", "pinned", default=None, help="Keep it in memory whatever else is loaded.")
@click.option("--allow-mock", is_flag=True, help="With --task: if the model cannot be had, load a mock.")
@choosing
@daemon_options
def load(ref: str, alias: str | None, allow_mock: bool, daemon: Daemon, as_json: bool, **wanted: Any) -> None:
    """Start a model's worker process and wait until it answers.

    Of hf:org/name what a loader needs is fetched first: settings, tokenizer and safetensors, no second copy of the
    weights in another format. --include and --exclude choose otherwise; `pin` fetches all of it.
    """
    body = {
        "ref": ref,
        **{name: value for name, value in wanted.items() if value is not None and value != ()},
        **({} if alias is None else {"as": alias}),
        **({"allow_mock": True} if allow_mock else {}),
    }
    loaded = daemon.call("POST", "/api/loads", body)
    if as_json:
        print_json(loaded)
        return
    if loaded["implementation"] == "MOCK":
        note("MOCK: no model answers under this name")
    fields(
        [
            ("id", loaded["id"]),
            ("root", loaded["root"]),
            ("task", loaded.get("task")),
            ("device", f"{loaded['device']} ({loaded['engine']}, {loaded['precision']})"),
            *(("choice", line) for line in choice_lines(loaded)),
            ("status", loaded["implementation"]),
            ("took", f"{loaded['load_s']:.1f} s"),
            ("memory", size(loaded["memory_bytes"])),
            *(("note", text) for text in loaded.get("notes", ())),
        ]
    )


def choice_lines(loaded: Mapping[str, Any]) -> list[str]:
    """What ``auto`` looked at, a line each; nothing for a named device."""
    lines = []
    for one in loaded.get("choice", ()):
        took = "" if one["median_ms"] is None else f" {one['median_ms']:.2f} ms,"
        lines.append(f"{'→' if one['chosen'] else ' '} {one['device']} ({one['precision']}):{took} {one['reason']}")
    return lines


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
    reply, headers = when_loaded(daemon, "/v1/embeddings", body)
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
        print(short_vector(vector))
    status, device, root = (headers.get(f"x-{name}", "?") for name in ("implementation", "device", "model-root"))
    note(f"{status} on {device}, root {root}")


def short_vector(vector: Sequence[float]) -> str:
    shown = ", ".join(f"{number:.4f}" for number in vector[:SHOWN_NUMBERS])
    return f"[{shown}{', …' if len(vector) > SHOWN_NUMBERS else ''}]  {len(vector)} numbers"


def when_loaded(daemon: Daemon, path: str, body: dict[str, Any]) -> tuple[Any, Mapping[str, str]]:
    """The reply and its headers, waiting for as long as the daemon says that the model is on its way."""
    deadline = time.monotonic() + LOADING_PATIENCE_S
    while True:
        try:
            return daemon.exchange("POST", path, body)
        except Refused as exc:
            if exc.code != "loading" or time.monotonic() > deadline:
                raise
            wait = exc.body.get("retry_after_s")
            time.sleep(min(30.0, max(0.1, wait if isinstance(wait, (int, float)) else 1.0)))
