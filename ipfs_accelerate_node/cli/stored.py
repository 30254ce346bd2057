"""What is in the store: `ls`, `info`, `rm`, `gc`, `verify`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from ipfs_accelerate_node.cli.client import path_of
from ipfs_accelerate_node.cli.inference import choice_lines
from ipfs_accelerate_node.cli.options import REFERENCE, daemon_options
from ipfs_accelerate_node.cli.render import clean, fields, incomplete, left_out, note, print_json, size, table, yes_no
from ipfs_accelerate_node.errors import EXIT_VERIFICATION

if TYPE_CHECKING:
    from ipfs_accelerate_node.cli.client import Daemon


_SHOWN = 5  # of files that no model holds


@click.command()
@daemon_options
def ls(daemon: Daemon, as_json: bool) -> None:
    """List the stored models: root, size, files, pinned, names, what lacks (into a pipe: tabs between).

    Files that no model holds are told of below: they go when room is needed, and with `gc`.
    """
    store = daemon.call("GET", "/api/store")
    if as_json:
        print_json(store)
        return
    rows = [
        (
            m["root"],
            size(m["size_bytes"]),
            m["file_count"],
            "pinned" if m["pinned"] else "-",
            " ".join(m["names"]) or "-",
        )
        for m in store["models"]
    ]
    lacks = [incomplete(m) or "-" for m in store["models"]]
    if any(lack != "-" for lack in lacks):  # a further column, and only then
        table(
            ("root", "size", "files", "pinned", "names", "lacks"),
            [(*row, lack) for row, lack in zip(rows, lacks, strict=True)],
        )
    else:
        table(("root", "size", "files", "pinned", "names"), rows)
    quota = f" of {size(store['quota_bytes'])}" if store["quota_bytes"] else ""
    note(f"{len(rows)} models, {size(store['used_bytes'])}{quota}")
    if loose := store.get("loose"):
        note(f"{_counted(loose)} of no model, until room is needed or `gc`: {_some(loose)}")


def _counted(loose: list[dict[str, Any]]) -> str:
    return f"{len(loose)} file{'' if len(loose) == 1 else 's'} ({size(sum(f['size_bytes'] for f in loose))})"


def _some(loose: list[dict[str, Any]]) -> str:
    names = [clean(file["name"] or file["cid"]) for file in loose[-_SHOWN:][::-1]]
    return ", ".join(names) + (f" and {len(loose) - _SHOWN} more" if len(loose) > _SHOWN else "")


@click.command()
@click.argument("ref", metavar="REF", type=REFERENCE)
@daemon_options
def info(ref: str, daemon: Daemon, as_json: bool) -> None:
    """Show one model: files, hashes, where it came from."""
    found = daemon.call("GET", path_of("/api/store", ref))
    if as_json:
        print_json(found)
        return
    model, loaded = found["model"], found["loaded"]
    came = model["provenance"]
    fields(
        [
            ("root", model["root"]),
            ("names", " ".join(model["names"]) or None),
            ("path", model["path"]),
            ("size", f"{size(model['size_bytes'])} in {model['file_count']} files"),
            ("lacks", incomplete(model)),
            ("left out", left_out(came.get("selection"))),
            ("pinned", yes_no(model["pinned"])),
            ("public", yes_no(model["public"])),
            ("came as", f"{came['kind']}: {came['reference']}, {came['at']}"),
            *(("from", f"{s['source']}: {size(s['bytes'])}") for s in came["sources"]),
            *(row for one in found.get("loads") or ([loaded] if loaded else []) for row in _load_rows(one)),
        ]
    )
    print()
    table(
        ("file", "size", "sha256", "cid"),
        [(f["path"] or "(the root itself)", size(f["size"]), f["sha256"] or "-", f["cid"]) for f in found["files"]],
    )


def _load_rows(loaded: dict[str, Any]) -> list[tuple[str, object]]:
    """Where it is, and why there and so."""
    what = f", {loaded['task']} in {loaded['precision']}" if loaded.get("task") else ""
    state = f"{loaded['state']} on {loaded['device'] or '?'}, {loaded['implementation']}{what}"
    notes = (("note", text) for text in loaded.get("notes", ()))
    return [("loaded", state), *(("choice", line) for line in choice_lines(loaded)), *notes]


@click.command()
@click.argument("ref", metavar="REF", type=REFERENCE)
@click.option("--force", is_flag=True, help="Also when it is pinned.")
@daemon_options
def rm(ref: str, force: bool, daemon: Daemon, as_json: bool) -> None:
    """Delete a model from the store; files that another model holds too stay for that one."""
    done = daemon.call("DELETE", path_of("/api/store", ref) + ("?force=true" if force else ""))
    if as_json:
        print_json(done)
    else:
        fields([("removed", done["root"]), ("freed", size(done["freed_bytes"]))])


@click.command()
@daemon_options
def gc(daemon: Daemon, as_json: bool) -> None:
    """Delete everything that is not pinned or in use, also files that no model holds and no fetch under way needs."""
    done = daemon.call("POST", "/api/gc")
    if as_json:
        print_json(done)
    else:
        files = [
            ("removed", f"{size(file['size_bytes'])} {clean(file['name'] or file['cid'])}")
            for file in done.get("files", ())
        ]
        fields([*(("removed", root) for root in done["models"]), *files, ("freed", size(done["freed_bytes"]))])


@click.command()
@click.argument("ref", metavar="[REF]", type=REFERENCE, required=False)
@daemon_options
def verify(ref: str | None, daemon: Daemon, as_json: bool) -> None:
    """Read everything again and name what is corrupt; exit code 4 if anything is.

    What is corrupt is moved to quarantine/ at once, and its models are taken down until they are pinned again.
    """
    report: dict[str, Any] = daemon.call("POST", "/api/verify", {"ref": ref} if ref else {})
    if as_json:
        print_json(report)
    else:
        fields([("checked", f"{size(report['bytes_checked'])} in {report['files_checked']} files")])
        for bad in report["corrupt"]:
            print(f"corrupt  {clean(', '.join(bad['paths']) or bad['cid'])}: {clean(bad['reason'])}")
    if report["corrupt"]:
        click.get_current_context().exit(EXIT_VERIFICATION)
