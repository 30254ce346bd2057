"""`keys`: what callers from other machines identify themselves with."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from ipfs_accelerate_node.cli.client import path_of
from ipfs_accelerate_node.cli.options import daemon_options
from ipfs_accelerate_node.cli.render import fields, note, print_json, table

if TYPE_CHECKING:
    from ipfs_accelerate_node.cli.client import Daemon

SCOPES = ("infer", "peer", "pin", "metrics", "admin")


@click.group()
def keys() -> None:
    """Make, list and remove API keys."""


@keys.command("add")
@click.option("--scope", "scopes", type=click.Choice(SCOPES), multiple=True, required=True, help="May be repeated.")
@click.option("--name", help="What it is for.")
@daemon_options
def add_key(scopes: tuple[str, ...], name: str | None, daemon: Daemon, as_json: bool) -> None:
    """Make a key and print it, this once."""
    wanted = {"scopes": list(scopes), **({} if name is None else {"name": name})}
    made = daemon.call("POST", "/api/keys", wanted)
    if as_json:
        print_json(made)
        return
    fields([("id", made["id"]), ("scopes", " ".join(made["scopes"])), ("name", made["name"]), ("key", made["key"])])
    note("The key is shown this once; the node keeps only its hash.")


@keys.command("ls")
@daemon_options
def list_keys(daemon: Daemon, as_json: bool) -> None:
    """List the keys, without what they are."""
    known = daemon.call("GET", "/api/keys")
    if as_json:
        print_json(known)
        return
    rows = [(k["id"], " ".join(k["scopes"]), k["created"], k["name"] or "-") for k in known["keys"]]
    table(("id", "scopes", "created", "name"), rows)


@keys.command("rm")
@click.argument("key_id", metavar="ID")
@daemon_options
def remove_key(key_id: str, daemon: Daemon, as_json: bool) -> None:
    """Remove a key; whoever holds it is a stranger from now on."""
    done = daemon.call("DELETE", path_of("/api/keys", key_id))
    if as_json:
        print_json(done)
    else:
        fields([("removed", done["removed"])])
