"""`pin`, which watches its job to the end, and `unpin`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

import click

from ipfs_accelerate_node.cli.client import path_of, refusal
from ipfs_accelerate_node.cli.options import MODEL_NAME, REFERENCE, daemon_options
from ipfs_accelerate_node.cli.render import clean, fields, note, print_json, receipt, size, yes_no
from ipfs_accelerate_node.errors import Unavailable

if TYPE_CHECKING:
    from ipfs_accelerate_node.cli.client import Daemon


class Watcher(Protocol):
    """Shows the states of a job as they come."""

    def show(self, job: dict[str, Any]) -> None: ...


@click.command()
@click.argument("ref", metavar="REF", type=REFERENCE)
@click.option("--name", type=MODEL_NAME, help="A name to call it by from now on.")
@click.option("--announce/--no-announce", default=None, help="Tell the IPFS network (by default a CID's pin is told).")
@click.option("--source", metavar="URL", help="Fetch from this one source only.")
@daemon_options
def pin(ref: str, name: str | None, announce: bool | None, source: str | None, daemon: Daemon, as_json: bool) -> None:
    """Fetch a model, verify every block, keep it and seed it.

    What was verified is kept when it breaks off, or when you leave with Ctrl-C: the same command goes on from there.
    """
    wanted = {"ref": ref, "name": name, "announce": announce, "source": source}
    job = daemon.call("POST", "/api/pins", {k: v for k, v in wanted.items() if v is not None})
    try:
        with _watcher(quiet=as_json) as watcher:
            done = _watch(daemon, job, watcher)
    except KeyboardInterrupt:
        note(f"left; what is verified is kept: `ian pin {ref}` goes on")
        raise
    if as_json:
        print_json(done)
    else:
        receipt(done)


def _watch(daemon: Daemon, job: dict[str, Any], watcher: Watcher) -> dict[str, Any]:
    """The receipt, once the job has ended well. Raises Refused with the job's own failure."""
    watcher.show(job)
    if job["state"] not in ("pinned", "failed"):
        for _, state in daemon.events(path_of("/api/pins", job["id"], "events")):
            watcher.show(state)
            job = state
    if job["state"] == "failed":
        problem = job["error"] or {}
        raise refusal(int(problem.get("status", 500)), problem)
    if job["state"] != "pinned":
        raise Unavailable("the daemon stopped; what is verified is kept: pin again", code="daemon_gone")
    done: dict[str, Any] = job["receipt"]
    return done


@contextmanager
def _watcher(*, quiet: bool) -> Iterator[Watcher]:
    """A bar on a terminal, a line per tenth elsewhere, nothing beside JSON."""
    if quiet or not sys.stderr.isatty():
        yield _Lines(quiet=quiet)
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (
        TextColumn("{task.description}", markup=False), BarColumn(bar_width=None), DownloadColumn(),
        TransferSpeedColumn(), TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        yield _Bar(progress)


class _Lines:
    """The bar's plain stand-in: a line when the state changes and at every tenth of the way."""

    def __init__(self, *, quiet: bool) -> None:
        self._quiet = quiet
        self._last: tuple[str, int] | None = None

    def show(self, job: dict[str, Any]) -> None:
        total = job["bytes_total"]
        tenth = 10 * job["bytes_done"] // total if total else 0
        if self._quiet or (job["state"], tenth) == self._last or job["state"] == "failed":
            return
        self._last = (job["state"], tenth)
        source = f" from {job['source']}" if job["source"] and job["state"] == "fetching" else ""
        note(f"{job['state']}: {size(job['bytes_done'])} of {size(total)}{source}")


class _Bar:
    def __init__(self, progress: Any) -> None:
        self._progress = progress
        self._task = progress.add_task("asking", total=None)

    def show(self, job: dict[str, Any]) -> None:
        source = f" {clean(job['source'])}" if job["source"] else ""
        self._progress.update(
            self._task,
            description=f"{job['state']}{source}",
            completed=job["bytes_done"],
            total=job["bytes_total"],
        )


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
