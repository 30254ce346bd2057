"""`remote`: pinning services of others, which keep models when this machine is off, and `pin --remote`."""

from __future__ import annotations

import os
import stat
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

import click

from ipfs_accelerate_node.cli import Refused
from ipfs_accelerate_node.cli.client import path_of
from ipfs_accelerate_node.cli.options import REFERENCE, daemon_options
from ipfs_accelerate_node.cli.render import fields, note, print_json, table
from ipfs_accelerate_node.config import PREFIX
from ipfs_accelerate_node.errors import EXIT_FAILURE, InvalidConfig, NodeError

if TYPE_CHECKING:
    from ipfs_accelerate_node.cli.client import Daemon

KEY_VARIABLE = f"{PREFIX}REMOTE_KEY"
LOOK_S = 1.0  # between two looks at a pin that a service works on
MAX_LOOK_S = 15.0


@click.group()
def remote() -> None:
    """Have pinning services keep models, and see what they keep."""


@remote.command("add")
@click.argument("name", metavar="NAME")
@click.argument("service_url", metavar="URL")
@click.option(
    "--service-key-file", type=click.Path(path_type=Path), metavar="FILE",
    help=f"The service's key (a file of mode 0600); else {KEY_VARIABLE}, else standard input.",
)  # fmt: skip
@daemon_options
def add_remote(name: str, service_url: str, service_key_file: Path | None, daemon: Daemon, as_json: bool) -> None:
    """Name a service that speaks the Pinning Service API; URL is without /pins. Its key is tried at once."""
    body = {"name": name, "url": service_url, "key": _service_key(service_key_file)}
    done = daemon.call("POST", "/api/remotes", body)
    if as_json:
        print_json(done)
    else:
        fields([("remote", done["name"]), ("url", done["url"])])


@remote.command("ls")
@daemon_options
def list_remotes(daemon: Daemon, as_json: bool) -> None:
    """List the services, without their keys."""
    known = daemon.call("GET", "/api/remotes")
    if as_json:
        print_json(known)
    else:
        table(("name", "url"), [(each["name"], each["url"]) for each in known["remotes"]])


@remote.command("rm")
@click.argument("name", metavar="NAME")
@daemon_options
def remove_remote(name: str, daemon: Daemon, as_json: bool) -> None:
    """Forget a service and its key; what it keeps, it goes on keeping."""
    done = daemon.call("DELETE", path_of("/api/remotes", name))
    if as_json:
        print_json(done)
    else:
        fields([("removed", done["name"])])


@remote.command("status")
@click.argument("name", metavar="[NAME]", required=False)
@click.option("--ref", type=REFERENCE, metavar="REF", help="Only requests of this root.")
@click.option("--limit", type=click.IntRange(1, 1000), default=100, show_default=True, help="At most so many of each.")
@daemon_options
def show_status(name: str | None, ref: str | None, limit: int, daemon: Daemon, as_json: bool) -> None:
    """Show what a service keeps, or all of them; one that fails is named beside the others."""
    names = [name] if name is not None else [each["name"] for each in daemon.call("GET", "/api/remotes")["remotes"]]
    query = urlencode({"limit": limit, **({} if ref is None else {"ref": ref})})
    told: list[dict[str, Any]] = []
    failed: Refused | None = None
    for each in names:
        try:
            told.append(daemon.call("GET", f"{path_of('/api/remotes', each, 'pins')}?{query}"))
        except Refused as exc:
            failed = exc
            told.append({"remote": each, "error": exc.body})
    if name is not None and failed is not None:
        raise failed
    if as_json:
        print_json({"remotes": told})
    else:
        _print_status(told)
    if failed is not None:
        click.get_current_context().exit(failed.exit_code)


@remote.command("unpin")
@click.argument("name", metavar="NAME")
@click.argument("ref", metavar="REF|ID")
@daemon_options
def unpin_remote(name: str, ref: str, daemon: Daemon, as_json: bool) -> None:
    """Remove every request of a root at a service, or the one with that id."""
    done = daemon.call("DELETE", path_of("/api/remotes", name, "pins", ref))
    if as_json:
        print_json(done)
    else:
        table(("removed", "cid", "name"), [(pin["id"], pin["cid"], pin["name"] or "-") for pin in done["removed"]])


def pin_there(daemon: Daemon, remote: str, ref: str, name: str | None, *, wait: bool, as_json: bool) -> None:
    """`pin --remote`. Raises Refused (code remote_pin_failed) for a pin that the service gave up."""
    wanted = {"ref": ref, **({} if name is None else {"name": name})}
    pin = daemon.call("POST", path_of("/api/remotes", remote, "pins"), wanted)
    try:
        if wait:
            pin = _watched(daemon, remote, pin)
    except KeyboardInterrupt:
        note(f"left; {remote} goes on: `ian remote status {remote}` says how far it is")
        raise
    except (Refused, NodeError):
        note(f"{remote} has the request {pin['id']}: `ian remote status {remote}` says how far it is")
        raise
    if pin["status"] == "failed":
        reason = pin["info"].get("status_details") or "it gives no reason"
        body = {"code": "remote_pin_failed", "detail": reason, "exit_code": EXIT_FAILURE, "remote": remote, "pin": pin}
        raise Refused(
            f"{remote} could not pin {pin['cid']}: {reason}",
            code="remote_pin_failed",
            exit_code=EXIT_FAILURE,
            body=body,
        )
    if as_json:
        print_json(pin)
    else:
        told = [(key, pin[key]) for key in ("cid", "id", "name", "status")]
        fields([("remote", remote), *told, ("note", pin["info"].get("status_details"))])


def _watched(daemon: Daemon, remote: str, pin: dict[str, Any]) -> dict[str, Any]:
    """The request once it has ended."""
    look_s, said = LOOK_S, ""
    while pin["status"] in ("queued", "pinning"):
        line = f"{remote}: {pin['status']}" + (f": {told}" if (told := pin["info"].get("status_details")) else "")
        if line != said and sys.stderr.isatty():
            note(line)
        said = line
        time.sleep(look_s)
        look_s = min(MAX_LOOK_S, look_s * 1.2)
        pin = daemon.call("GET", path_of("/api/remotes", remote, "pins", pin["id"]))
    return pin


def _print_status(told: list[dict[str, Any]]) -> None:
    rows = [
        (
            each["remote"],
            pin["status"],
            pin["cid"],
            pin["name"] or "-",
            pin["id"],
            pin["info"].get("status_details", ""),
        )
        for each in told
        for pin in each.get("pins", ())
    ]
    table(("remote", "status", "cid", "name", "id", "details"), rows)
    for each in told:
        if "error" in each:
            note(f"{each['remote']}: {each['error'].get('detail', 'it failed')}")
        elif each["count"] > len(each["pins"]):
            note(f"{each['remote']} has {each['count']}; the latest {len(each['pins'])} are shown")


def _service_key(path: Path | None) -> str:
    """From the file, the environment, or standard input: never an argument. Raises InvalidConfig."""
    if path is not None:
        try:
            with path.open() as file:
                private = not stat.S_IMODE(os.fstat(file.fileno()).st_mode) & 0o077
                key = file.read(8192).strip()
        except (OSError, UnicodeDecodeError) as exc:
            reason = getattr(exc, "strerror", None) or "it is not text"
            raise InvalidConfig(f"the key file {path} cannot be read: {reason}") from exc
        if not private:
            raise InvalidConfig(f"the key file {path} can be read by others: chmod 600 {path}")
    elif os.environ.get(KEY_VARIABLE):
        key = os.environ[KEY_VARIABLE].strip()
    elif sys.stdin.isatty():
        key = str(click.prompt("Key of the service", hide_input=True, err=True)).strip()
    else:
        key = sys.stdin.readline(8192).strip()
    if not key:
        raise InvalidConfig(f"a key is needed: --service-key-file FILE, {KEY_VARIABLE}, or standard input")
    return key
