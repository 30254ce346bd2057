"""Running a model on anything: `infer`."""

from __future__ import annotations

import base64
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ipfs_accelerate_node.cli.inference import short_vector, when_loaded
from ipfs_accelerate_node.cli.options import REFERENCE, daemon_options
from ipfs_accelerate_node.cli.render import clean, note, print_json, table

if TYPE_CHECKING:
    from ipfs_accelerate_node.cli.client import Daemon

MAX_FILE_BYTES = 32 << 20
_PICTURES = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF87a", b"GIF89a", b"II*\x00", b"MM\x00*")


@click.command()
@click.argument("ref", metavar="REF", type=REFERENCE)
@click.argument("inputs", metavar="INPUT...", nargs=-1)
@click.option("--task", help="What to do; else what the model is loaded for, or its own first task.")
@click.option(
    "--device", default="auto", show_default=True, help="cpu, cuda:0, openvino:CPU, …; named: used, or it fails."
)
@click.option("--precision", help="auto, f32, bf16, f16 or int8 (auto: as it is loaded).")
@click.option("--query", metavar="TEXT", help="Read each INPUT together with this text, which comes first.")
@click.option("--label", "labels", multiple=True, metavar="TEXT", help="What a picture may show; may be repeated.")
@click.option("--chat", is_flag=True, help="Each INPUT is what a user says, in the model's own chat format.")
@click.option("--system", metavar="TEXT", help="With --chat: what the model is told before.")
@click.option("--top-k", type=click.IntRange(1, 1000), help="As many labels or candidates.")
@click.option("--dimensions", type=click.IntRange(1, 65536), help="Cut vectors to so many numbers.")
@click.option("--max-new-tokens", type=click.IntRange(1, 131072), help="End a generated text after so many.")
@click.option("--temperature", type=click.FloatRange(0, 100), help="Draw tokens instead of taking the likeliest.")
@click.option(
    "--top-p", type=click.FloatRange(0, 1, min_open=True), help="Draw among those that are so likely together."
)
@click.option("--seed", type=click.IntRange(0, (1 << 63) - 1), help="The same draws again.")
@click.option("--stop", multiple=True, metavar="TEXT", help="End a generated text before this; may be repeated.")
@click.option("--language", help="Of the speech, such as en.")
@click.option(
    "--peer", metavar="URL|PEERID", help="Run it on that node, if it lets this one: what it answers is its claim."
)
@click.option("--allow-mock", is_flag=True, help="With --task: if the model cannot be had, let a mock answer.")
@daemon_options
def infer(
    ref: str,
    inputs: tuple[str, ...],
    task: str | None,
    device: str,
    precision: str | None,
    query: str | None,
    labels: tuple[str, ...],
    chat: bool,
    system: str | None,
    peer: str | None,
    allow_mock: bool,
    daemon: Daemon,
    as_json: bool,
    **options: Any,
) -> None:
    """Run a model on texts, pictures or sound.

    An INPUT is a text; @FILE is what the file holds, - is standard input. A picture, or a WAV file, may also be given
    by its path alone.
    """
    if not inputs:
        if sys.stdin.isatty():
            raise click.UsageError("Missing argument 'INPUT...' (or pipe something in)")
        inputs = ("-",)
    if inputs.count("-") > 1:
        raise click.UsageError("- can be given once: there is one standard input")
    if peer is not None and allow_mock:
        raise click.UsageError("--allow-mock is for this node: leave it out with --peer")
    body = {
        "ref": ref,
        "device": device,
        "items": [_item(text, query=query, labels=labels, chat=chat, system=system) for text in inputs],
        "options": {name: value for name, value in options.items() if value not in (None, ())},
        **({"task": task} if task else {}),
        **({"precision": precision} if precision else {}),
        **({"allow_mock": True} if allow_mock else {}),
        **({"peer": peer} if peer is not None else {}),
    }
    reply, _ = when_loaded(daemon, "/api/infer" if peer is None else "/api/peers/infer", body)
    if as_json:
        print_json(reply)
        return
    if reply["implementation"] == "MOCK":
        note(f"MOCK: no model computed this ({reply.get('warning', reply['root'])})")
    for output in reply["outputs"]:
        _show(output)
    ran = f"{reply['implementation']} on {reply['device']} in {reply['precision']}, root {reply['root']}"
    if peer is not None:
        note(f"peer:{reply['peer']} claims: {ran}")
    elif sys.stdout.isatty():
        note(ran)


def _item(text: str, *, query: str | None, labels: tuple[str, ...], chat: bool, system: str | None) -> object:
    """One item of the request, by what the argument names and what was asked for."""
    data = _content(text)
    if data is not None and (kind := _kind(data)):
        encoded = base64.b64encode(data).decode()
        return {kind: encoded, **({"labels": list(labels)} if labels else {})}
    if data is not None:
        try:
            text = data.decode()
        except UnicodeDecodeError as exc:
            raise click.UsageError(f"{clean(text)} is neither a text in UTF-8, nor a picture, nor a WAV file") from exc
    if chat:
        told = [{"role": "system", "content": system}] if system is not None else []
        return {"messages": [*told, {"role": "user", "content": text}]}
    if query is not None:
        return {"first": query, "second": text}
    return text


def _content(argument: str) -> bytes | None:
    """What standard input or a named file holds; None for a text."""
    if argument == "-":
        data = sys.stdin.buffer.read(MAX_FILE_BYTES + 1)
    elif argument.startswith("@") and len(argument) > 1:
        data = _read(Path(argument[1:]))
    elif _kind(_head(argument)):
        data = _read(Path(argument))
    else:
        return None
    if len(data) > MAX_FILE_BYTES:
        raise click.UsageError(f"{clean(argument)} is longer than {MAX_FILE_BYTES >> 20} MiB")
    return data.removesuffix(b"\n") if not _kind(data) else data


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(MAX_FILE_BYTES + 1)
    except OSError as exc:
        raise click.UsageError(f"{clean(path)} cannot be read: {exc.strerror}") from exc


def _head(argument: str) -> bytes:
    """The first bytes of a file, if the argument is the path of one."""
    try:
        path = Path(argument)
        if not path.is_file():
            return b""
        with path.open("rb") as file:
            return file.read(16)
    except (OSError, ValueError):
        return b""


def _kind(data: bytes) -> str | None:
    """``image``, ``audio``, or None for what may be a text."""
    if data[:4] == b"RIFF":
        return {b"WAVE": "audio", b"WEBP": "image"}.get(data[8:12])
    bitmap = data[:2] == b"BM" and data[6:10] == bytes(4)  # reserved; a text may begin with BM too
    return "image" if bitmap or data.startswith(_PICTURES) else None


def _show(output: dict[str, Any]) -> None:
    """Into a pipe one line per output or candidate, as JSON or with tabs; on a terminal for people."""
    match output:
        case {"vector": vector}:
            print(short_vector(vector) if sys.stdout.isatty() else json.dumps(vector))
        case {"text": text, "finish": _}:
            lines = str(text).splitlines() or [""]
            print("\n".join(clean(line) for line in lines))
        case {"scores": scores}:
            table(("label", "score"), [(s["label"], f"{s['score']:.4f}") for s in scores])
        case {"entities": entities}:
            rows = [(e["label"], e["text"], f"{e['start']}-{e['end']}", f"{e['score']:.4f}") for e in entities]
            table(("label", "text", "characters", "score"), rows)
        case {"fills": fills}:
            table(("token", "score", "text"), [(f["token"], f"{f['score']:.4f}", f["text"]) for f in fills])
        case _:
            print(json.dumps(output))
