"""`plan`: what a pin would fetch, from whom, and what it needs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

import click

from ipfs_accelerate_node.cli.options import REFERENCE, choosing, daemon_options
from ipfs_accelerate_node.cli.render import fields, print_json, size, table

if TYPE_CHECKING:
    from ipfs_accelerate_node.cli.client import Daemon


@click.command()
@click.argument("ref", metavar="REF", type=REFERENCE)
@choosing
@click.option("--source", metavar="URL|PEERID", help="Ask this one source only.")
@daemon_options
def plan(
    ref: str, include: tuple[str, ...], exclude: tuple[str, ...], source: str | None, daemon: Daemon, as_json: bool
) -> None:
    """Say what a pin would fetch, from whom, and what it needs; nothing is fetched.

    Every source is asked what it has, for at most ten seconds. Only directories and file nodes are read.
    """
    choice = [*(("only", pattern) for pattern in include), *(("exclude", pattern) for pattern in exclude)]
    query = [("ref", ref), *choice, *((("source", source),) if source else ())]
    found: dict[str, Any] = daemon.call("GET", f"/api/plan?{urlencode(query)}")
    if as_json:
        print_json(found)
        return
    quota = f", quota {size(found['quota_bytes'])}" if found["quota_bytes"] else ""
    free = f"{size(found['room_bytes'])} free, {size(found['evictable_bytes'])} can be freed{quota}"
    fields(
        [
            ("root", found["root"] or "known once it is here"),
            ("commit", found["hub_commit"]),
            ("size", f"{size(found['bytes_total'])} in {len(found['files'])} files"),
            ("here", size(found["bytes_here"]) if found["bytes_here"] else None),
            ("copyable", size(found["bytes_copyable"]) if found["bytes_copyable"] else None),
            ("to fetch", size(found["bytes_to_fetch"])),
            ("disk", f"{size(found['disk_needed_bytes'])} needed, {free}"),
            ("fits", None if found["fits"] else "no: pin would be refused"),
        ]
    )
    if found["sources"]:
        print()
        table(("source", "kind", "has", "note"), [_source(one) for one in found["sources"]])
    print()
    table(("file", "size", "here", "cid"), [_file(one) for one in found["files"]])


def _source(one: dict[str, Any]) -> tuple[object, ...]:
    has = "all" if one["complete"] else "some of it" if one["bytes"] is None else size(one["bytes"])
    notes = (one["reason"], "" if one["ranges"] or one["reason"] else "block by block", one["doubt"])
    return one["source"], one["kind"], one["code"] or has, "; ".join(note for note in notes if note)


def _file(one: dict[str, Any]) -> tuple[object, ...]:
    had = one["bytes_here"] + one["bytes_copyable"]
    here = "yes" if one["here"] else f"{100 * had // one['size']} %" if had and one["size"] else "-"
    return one["path"] or "(the root itself)", size(one["size"]), here, one["cid"] or "-"
