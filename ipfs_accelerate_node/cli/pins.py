"""`pin`, which watches its job to the end, and `unpin`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from ipfs_accelerate_node.cli.client import path_of, refusal
from ipfs_accelerate_node.cli.maps import is_asked, published
from ipfs_accelerate_node.cli.options import MODEL_NAME, REFERENCE, choosing, daemon_options
from ipfs_accelerate_node.cli.remote import pin_there
from ipfs_accelerate_node.cli.render import fields, note, print_json, receipt, yes_no
from ipfs_accelerate_node.cli.watching import Watcher, watcher
from ipfs_accelerate_node.errors import EXIT_UNAVAILABLE, Unavailable

if TYPE_CHECKING:
    from ipfs_accelerate_node.cli.client import Daemon


@click.command()
@click.argument("ref", metavar="REF", type=REFERENCE)
@click.option("--name", type=MODEL_NAME, help="A name to call it by from now on.")
@click.option("--announce/--no-announce", default=None, help="Tell the IPFS network (by default a CID's pin is told).")
@click.option("--source", metavar="URL|PEERID", help="Fetch from this one source only.")
@choosing
@click.option("--publish-map", is_flag=True, help="Then put the map of that Hub commit on IPFS, as `publish` does.")
@click.option("--remote", metavar="NAME", help="Have that pinning service (`remote add`) keep it, not this node.")
@click.option("--no-wait", is_flag=True, help="With --remote: leave as soon as the service has the request.")
@daemon_options
def pin(
    ref: str,
    name: str | None,
    announce: bool | None,
    source: str | None,
    include: tuple[str, ...],
    exclude: tuple[str, ...],
    publish_map: bool,
    remote: str | None,
    no_wait: bool,
    daemon: Daemon,
    as_json: bool,
) -> None:
    """Fetch a model, verify every block, keep it and seed it.

    What was verified is kept when it breaks off, or when you leave with Ctrl-C: the same command goes on from there.
    With --include or --exclude, just those files; a later pin adds others, one without them all that lack.
    """
    if remote is not None:
        if announce is not None or source or include or exclude or publish_map:
            raise click.UsageError(
                "a service keeps a whole root: of the options only --name and --no-wait go with --remote"
            )
        pin_there(daemon, remote, ref, name, wait=not no_wait, as_json=as_json)
        return
    wanted: dict[str, Any] = {"ref": ref, "name": name, "announce": announce, "source": source}
    ask = publish_map and is_asked()
    wanted |= {"only": list(include) or None, "exclude": list(exclude) or None}
    wanted |= {"publish_map": True if publish_map and not ask else None}
    job = daemon.call("POST", "/api/pins", {k: v for k, v in wanted.items() if v is not None})
    try:
        with watcher(quiet=as_json) as shown:
            done = _watch(daemon, job, shown)
    except KeyboardInterrupt:
        note(f"left; what is verified is kept: `ian pin {ref}` goes on")
        raise
    if ask:
        told = published(daemon, ref, ask=True)
        done |= {"map_envelope": told["envelope_cid"] if told["published"] else None, "map_note": told["note"]}
    if as_json:
        print_json(done)
    else:
        receipt(done)
    if publish_map and done["map_envelope"] is None:
        click.get_current_context().exit(EXIT_UNAVAILABLE)


def _watch(daemon: Daemon, job: dict[str, Any], shown: Watcher) -> dict[str, Any]:
    """The receipt, once the job has ended well. Raises Refused with the job's own failure."""
    shown.show(job)
    if job["state"] not in ("pinned", "failed"):
        for _, state in daemon.events(path_of("/api/pins", job["id"], "events")):
            shown.show(state)
            job = state
    if job["state"] == "failed":
        problem = job["error"] or {}
        raise refusal(int(problem.get("status", 500)), problem)
    if job["state"] != "pinned":
        raise Unavailable("the daemon stopped; what is verified is kept: pin again", code="daemon_gone")
    done: dict[str, Any] = job["receipt"]
    return done


@click.command()
@click.argument("ref", metavar="REF", type=REFERENCE)
@daemon_options
def unpin(ref: str, daemon: Daemon, as_json: bool) -> None:
    """Let a model go when space is needed; until then it stays."""
    model = daemon.call("DELETE", path_of("/api/pins", ref))
    if as_json:
        print_json(model)
    else:
        fields([("root", model["root"]), ("pinned", yes_no(model["pinned"]))])
