"""`audit` and `publish`: maps of Hub commits, which say under which CIDs their files are."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ipfs_accelerate_node.cli.options import REFERENCE, daemon_options
from ipfs_accelerate_node.cli.render import clean, fields, note, print_json, yes_no
from ipfs_accelerate_node.content.cid import Cid
from ipfs_accelerate_node.errors import (
    EXIT_FAILURE,
    EXIT_OK,
    EXIT_UNAVAILABLE,
    EXIT_VERIFICATION,
    InvalidCid,
    InvalidInput,
)

if TYPE_CHECKING:
    from ipfs_accelerate_node.cli.client import Daemon

MAX_FILE_BYTES = 24 << 20
_EXIT = {"confirmed": EXIT_OK, "refused": EXIT_VERIFICATION, "unchecked": EXIT_UNAVAILABLE}


@click.command()
@click.argument("ref", metavar="REF", type=REFERENCE)
@click.option("--peer", metavar="URL|PEERID", help="Audit the map that this peer has.")
@click.option(
    "--map",
    "which",
    metavar="CID|FILE",
    help="Audit a map by its envelope's CID, or what GET /api/maps said, in a file.",
)
@click.option("--fetch", is_flag=True, help="Fetch, by CID, the bytes that are not here.")
@daemon_options
def audit(ref: str, peer: str | None, which: str | None, fetch: bool, daemon: Daemon, as_json: bool) -> None:
    """Recompute a map of a Hub commit: confirmed, or refused with what is wrong.

    Its files and their hashes are compared with what the Hub says now, its CIDs with the bytes that are here, its root
    with both. Without --peer and --map it is this node's own map, else the best that a peer has. Exit code 0:
    confirmed, 4: refused, 5: not all of it could be checked.
    """
    if peer is not None and which is not None:
        raise click.UsageError("--peer and --map exclude each other")
    wanted: dict[str, Any] = {"ref": ref, "peer": peer, "fetch": fetch}
    if which is not None:
        wanted |= _which(which)
    done = daemon.call("POST", "/api/audit", {name: value for name, value in wanted.items() if value is not None})
    if as_json:
        print_json(done)
    else:
        _show(done)
    click.get_current_context().exit(_EXIT[done["outcome"]])


def _which(text: str) -> dict[str, Any]:
    try:
        return {"map": str(Cid.parse(text))}
    except InvalidCid:
        path = Path(text)
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as exc:
        raise InvalidInput(f"{clean(path)} is no CID, and cannot be read: {exc.strerror}", param="map") from exc
    if len(data) > MAX_FILE_BYTES:
        raise InvalidInput(f"{clean(path)} is larger than a map can be", param="map")
    try:
        return {"answer": json.loads(data)}
    except ValueError as exc:
        raise InvalidInput(f"{clean(path)} is not what GET /api/maps says: it is no JSON", param="map") from exc


def _show(done: dict[str, Any]) -> None:
    said = "the Hub, asked now" if done["tree"] == "hub" else "the Hub, as it said last: it cannot be asked now"
    where = f"{clean(done['path'])}: " if done["path"] else ""
    fields(
        [
            ("audit", done["outcome"].upper()),
            (
                "wrong" if done["outcome"] == "refused" else "lacks",
                f"{where}{done['reason']}" if done["reason"] else None,
            ),
            ("commit", f"{done['repo']}@{done['commit']}"),
            ("root", done["root"]),
            ("signer", f"{done['signer']}{' (this node)' if done['own'] else ''}"),
            ("envelope", done["envelope_cid"]),
            ("files by", said),
            ("checked", f"{done['checked']} of {done['files']} files against their bytes"),
        ]
    )


def is_asked() -> bool:
    """Whether the person at this terminal is asked: there is one, and no standing consent."""
    from ipfs_accelerate_node.config import load_config

    return sys.stdin.isatty() and sys.stderr.isatty() and not load_config({}, os.environ, None).publish


def published(daemon: Daemon, ref: str, *, ask: bool) -> dict[str, Any]:
    """What `POST /api/maps` said. ask: the map is shown first, and the command ends here if the person declines."""
    done: dict[str, Any] = daemon.call("POST", "/api/maps", {"ref": ref, "publish": not ask})
    if ask:
        _ask(done)
        done = daemon.call("POST", "/api/maps", {"ref": ref, "publish": True})
    return done


@click.command()
@click.argument("ref", metavar="REF", type=REFERENCE)
@click.option("--yes", is_flag=True, help="Publish without asking.")
@daemon_options
def publish(ref: str, yes: bool, daemon: Daemon, as_json: bool) -> None:
    """Put this node's map of a Hub commit on IPFS, for everybody and for good.

    A terminal is shown the map and asked; without a terminal, the command is the consent. Nodes that look for the
    commit find this one then. All of the commit must be here, and public at the Hub or shared.
    """
    done = published(daemon, ref, ask=not yes and is_asked())
    if as_json:
        print_json(done)
    else:
        fields(
            [
                ("commit", f"{done['map']['repo']}@{done['map']['commit']}"),
                ("root", done["map"]["root"]),
                ("record", done["record_cid"]),
                ("envelope", done["envelope_cid"]),
                ("meeting", done["meeting"]),
                ("signer", done["signer"]),
                ("published", yes_no(done["published"])),
                ("note", done["note"]),
            ]
        )
    if not done["published"]:
        click.get_current_context().exit(EXIT_UNAVAILABLE)


def _ask(done: dict[str, Any]) -> None:
    """Shows the very map that would be public. Returns if the person agrees; else the command ends here."""
    for line in json.dumps(done["map"], indent=2).splitlines():
        note(line)
    note("This and this node's public key go to IPFS: for everybody, and never to be taken back.")
    if not click.confirm("Publish?", default=False, err=True):
        note("not published")
        click.get_current_context().exit(EXIT_FAILURE)
