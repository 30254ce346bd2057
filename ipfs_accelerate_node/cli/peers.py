"""`peers`: whom this node asks, and whose key it allows to ask it to run models."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from ipfs_accelerate_node.cli.client import path_of
from ipfs_accelerate_node.cli.options import daemon_options
from ipfs_accelerate_node.cli.render import fields, note, print_json, table, yes_no
from ipfs_accelerate_node.errors import EXIT_FAILURE

if TYPE_CHECKING:
    from ipfs_accelerate_node.cli.client import Daemon


@click.group()
def peers() -> None:
    """List, add and remove the nodes that this one asks, and allow their keys to run models here."""


@peers.command("ls")
@daemon_options
def list_peers(daemon: Daemon, as_json: bool) -> None:
    """List the peers, and which of them are reached through a tunnel now."""
    known = daemon.call("GET", "/api/peers")
    if as_json:
        print_json(known)
        return
    tunnels = {tunnel["peer_id"]: tunnel for tunnel in known["tunnels"]}
    configured = list(known["configured"])
    rows = [
        (
            peer,
            "configuration" if peer in configured else "added",
            yes_no(peer in known["trusted"]),
            _reached(tunnels.get(peer)),
        )
        for peer in dict.fromkeys((*configured, *known["added"]))
    ]
    rows += [
        (peer, "met", "no", _reached(tunnel))
        for peer, tunnel in tunnels.items()
        if peer not in {row[0] for row in rows}
    ]
    table(("peer", "from", "trusted", "tunnel"), rows)
    if (known["index"]["standing"] or {}).get("revoked"):
        note("this node's key was revoked: nobody believes what it signed")
    if known["queued"]:
        note(f"{known['queued']} records are queued: published as soon as Kubo is there")
    if known["serves_peers"]:
        note(f"may run models here: {', '.join(known['allowed']) or 'nobody yet (peers allow PEERID)'}")
    elif known["allowed"]:
        note(f"allowed to run models here, but the node runs without --serve-peers: {', '.join(known['allowed'])}")


def _reached(tunnel: dict[str, Any] | None) -> str:
    return "-" if tunnel is None else f"open, version {tunnel['version']}"


@peers.command("add")
@click.argument("peer", metavar="URL|PEERID")
@click.option("--trust", is_flag=True, help="Results that this PeerID's key signed rank first.")
@daemon_options
def add_peer(peer: str, trust: bool, daemon: Daemon, as_json: bool) -> None:
    """Ask this node too, from now on: for models and for results."""
    done = daemon.call("POST", "/api/peers", {"peer": peer, "trust": trust})
    if as_json:
        print_json(done)
    else:
        fields([("added", done["peer"]), ("trusted", yes_no(done["trusted"]))])


@peers.command("rm")
@click.argument("peer", metavar="URL|PEERID")
@daemon_options
def remove_peer(peer: str, daemon: Daemon, as_json: bool) -> None:
    """Ask it no more; trust in its key ends too."""
    done = daemon.call("DELETE", path_of("/api/peers", peer))
    if as_json:
        print_json(done)
    else:
        fields([("removed", done["removed"])])


@peers.command("allow")
@click.argument("key", metavar="PEERID")
@daemon_options
def allow_key(key: str, daemon: Daemon, as_json: bool) -> None:
    """Let the node with this key run public models here, where `up` was given --serve-peers."""
    done = daemon.call("POST", "/api/allowed-peers", {"key": key})
    if as_json:
        print_json(done)
    else:
        fields([("allowed", done["allowed"])])


@peers.command("deny")
@click.argument("key", metavar="PEERID")
@daemon_options
def deny_key(key: str, daemon: Daemon, as_json: bool) -> None:
    """Take that back."""
    done = daemon.call("DELETE", path_of("/api/allowed-peers", key))
    if as_json:
        print_json(done)
    else:
        fields([("denied", done["denied"])])


@peers.command("revoke")
@click.option("--yes", is_flag=True, help="Do not ask.")
@daemon_options
def revoke(yes: bool, daemon: Daemon, as_json: bool) -> None:
    """Tell everybody, for good, that this node's own key was lost or stolen.

    Nothing that it signed is believed any more. To go on, stop the node and move node.key away: a new key is made.
    """
    if not yes and not click.confirm("Revoke this node's key for ever?", default=False, err=True):
        note("not revoked")
        click.get_current_context().exit(EXIT_FAILURE)
    done = daemon.call("POST", "/api/revocation", {})
    if as_json:
        print_json(done)
    else:
        fields([("revoked", done["name"]), ("envelope", done["envelope_cid"])])
