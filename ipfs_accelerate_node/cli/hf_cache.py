"""`hydrate`, `import-hf-cache` and `share`: the Hugging Face cache of the user who types, and what others may have."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ipfs_accelerate_node.cli.options import REFERENCE, daemon_options
from ipfs_accelerate_node.cli.render import clean, fields, note, print_json, size, table, yes_no
from ipfs_accelerate_node.errors import EXIT_VERIFICATION, StorageError

if TYPE_CHECKING:
    from ipfs_accelerate_node.cli.client import Daemon

_WAYS = {"hard": "hard links", "reflink": "reflinks", "copy": "copies", "here": "there already"}
_SHOWN = 10  # of a list of paths
_CACHE_DIR = click.option(
    "--cache-dir",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="The Hugging Face cache; else HF_HUB_CACHE, HF_HOME/hub, XDG_CACHE_HOME/huggingface/hub.",
)


def hub_cache(env: Mapping[str, str]) -> Path:
    """Where the Hub's own client keeps its files, as it reads the environment."""

    def read(text: str) -> str:
        return os.path.expanduser(os.path.expandvars(text))

    home = env.get("HF_HOME") or os.path.join(env.get("XDG_CACHE_HOME") or "~/.cache", "huggingface")
    return Path(read(env.get("HF_HUB_CACHE") or env.get("HUGGINGFACE_HUB_CACHE") or os.path.join(home, "hub")))


def _resolved(folder: Path | None, *, make: bool) -> str:
    """Made by the user who types, not by the daemon; symlinks on the way to it are theirs, so followed here."""
    folder = hub_cache(os.environ) if folder is None else folder
    try:
        if make:
            folder.mkdir(parents=True, exist_ok=True)
        return str(folder.resolve())
    except (OSError, RuntimeError) as exc:
        raise StorageError(f"{clean(folder)} cannot be used: {getattr(exc, 'strerror', None) or exc}") from exc


@click.command()
@click.argument("ref", metavar="REF", type=REFERENCE)
@_CACHE_DIR
@click.option(
    "--link",
    type=click.Choice(["hard", "reflink", "copy"]),
    help="This way only; by default a hard link, else a reflink, else a copy.",
)
@daemon_options
def hydrate(ref: str, cache_dir: Path | None, link: str | None, daemon: Daemon, as_json: bool) -> None:
    """Write a stored model into the Hugging Face cache, so that every tool loads it offline.

    Hard links take no room; they are read-only, as the store's own files that they are: use --link copy for files that
    you mean to change.
    """
    body = {"ref": ref, "cache_dir": _resolved(cache_dir, make=True), "link": link}
    done = daemon.call("POST", "/api/hydrate", body)
    if as_json:
        print_json(done)
        return
    ways = ((_WAYS[way], f"{of['files']} files, {size(of['bytes'])}") for way, of in done["ways"].items())
    fields(
        [
            ("repository", done["repo"]),
            ("commit", done["commit"]),
            ("snapshot", done["snapshot"]),
            *ways,
            ("refs", " ".join(done["refs"]) or None),
            ("refs kept", " ".join(done["refs_kept"]) or None),
            ("lacks", _some(done["absent"])),
            ("claimed", "these files are a peer's word, the Hub was not asked" if done["claimed"] else None),
        ]
    )


@click.command(name="import-hf-cache")
@click.argument("ref", metavar="[REF]", type=REFERENCE, required=False)
@_CACHE_DIR
@daemon_options
def import_hf_cache(ref: str | None, cache_dir: Path | None, daemon: Daemon, as_json: bool) -> None:
    """Take what is in the Hugging Face cache into the store, checked, without a download.

    Files are copied (sharing disk blocks where the file system can), never linked. What the Hub does not confirm to be
    public stays private. Exit code 4 if anything is corrupt.
    """
    done = daemon.call("POST", "/api/import-hf-cache", {"ref": ref, "cache_dir": _resolved(cache_dir, make=False)})
    found: list[dict[str, Any]] = done["imported"]
    if as_json:
        print_json(done)
    else:
        table(
            ("repository", "commit", "outcome", "files", "size", "copied", "public", "root"), [_row(i) for i in found]
        )
        for item in found:
            for why in item["refused"]:
                note(f"{item['repo']}@{item['commit'][:8]} {why['path'] or item['outcome']}: {why['reason']}")
            if item["absent"]:
                note(f"{item['repo']}@{item['commit'][:8]} lacks {_some(item['absent'])}{_kept(item)}")
    if any(why["code"] in ("hash_mismatch", "wrong_blob") for item in found for why in item["refused"]):
        click.get_current_context().exit(EXIT_VERIFICATION)


@click.command()
@click.argument("ref", metavar="REF", type=REFERENCE)
@click.option("--undo", is_flag=True, help="Make it private again.")
@daemon_options
def share(ref: str, undo: bool, daemon: Daemon, as_json: bool) -> None:
    """Let others have a model that is private here; --undo takes that back.

    What its licence allows is yours to know: see the warning that is shown.
    """
    done = daemon.call("POST", "/api/share", {"ref": ref, "undo": undo})
    note(done["warning"])
    if as_json:
        print_json(done)
        return
    fields(
        [
            ("root", done["root"]),
            ("repository", done["repo"]),
            ("licence", done["licence"]),
            ("public", yes_no(done["public"])),
            ("seeded", yes_no(done["seeded"])),
            ("note", done["note"]),
            ("announced", yes_no(done["announced"])),
        ]
    )


def _row(item: dict[str, Any]) -> tuple[object, ...]:
    stored = item["files"] > 0
    return (
        item["repo"],
        item["commit"][:8] or "-",
        item["outcome"],
        item["files"] if stored else "-",
        size(item["size_bytes"]) if stored else "-",
        size(item["copied_bytes"]) if stored else "-",
        yes_no(item["public"]) if stored else "-",
        item["root"] or "-",
    )


def _kept(item: dict[str, Any]) -> str:
    return f"; what is here is kept for `ian pin hf:{item['repo']}`" if item["files"] and item["root"] is None else ""


def _some(paths: list[str]) -> str | None:
    more = f" and {len(paths) - _SHOWN} more" if len(paths) > _SHOWN else ""
    return (", ".join(paths[:_SHOWN]) + more) or None
