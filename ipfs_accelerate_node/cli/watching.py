"""A pin's progress as it comes: a bar and a line for each source on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from ipfs_accelerate_node.cli.render import clean, duration, note, size


class Watcher(Protocol):
    """Shows the states of a job as they come."""

    def show(self, job: dict[str, Any]) -> None: ...


@contextmanager
def watcher(*, quiet: bool) -> Iterator[Watcher]:
    """quiet: nothing is shown beside JSON."""
    if quiet or not sys.stderr.isatty():
        yield Lines(quiet=quiet)
        return
    from rich.console import Console
    from rich.live import Live

    with Live(console=Console(stderr=True), transient=True, auto_refresh=False) as live:
        yield Board(live)


class Lines:
    """A line when the state changes and at every tenth of the way, with who delivers and how fast."""

    def __init__(self, *, quiet: bool) -> None:
        self._quiet = quiet
        self._last: tuple[str, int] | None = None

    def show(self, job: dict[str, Any]) -> None:
        total = job["bytes_total"]
        tenth = 10 * job["bytes_done"] // total if total else 0
        if self._quiet or (job["state"], tenth) == self._last or job["state"] == "failed":
            return
        self._last = (job["state"], tenth)
        note(f"{job['state']}: {size(job['bytes_done'])} of {size(total)}{_told(job)}")


def _told(job: dict[str, Any]) -> str:
    if job["state"] != "fetching":
        return ""
    working = [f"{s['source']} ({size(s['bytes_per_s'])}/s)" for s in job.get("sources") or () if s["bytes_per_s"]]
    names = ", ".join(working) or job["source"]
    left = job.get("left_s")
    return (f" from {names}" if names else "") + (f", {duration(left)} left" if left is not None else "")


class Board:
    """live: a `rich.live.Live` that is drawn anew with every state."""

    def __init__(self, live: Any) -> None:
        self._live = live

    def show(self, job: dict[str, Any]) -> None:
        from rich.console import Group

        self._live.update(Group(self._way(job), self._sources(job)), refresh=True)

    def _way(self, job: dict[str, Any]) -> Any:
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        rate = sum(source["bytes_per_s"] for source in job.get("sources") or ())
        left = job.get("left_s")
        line = Table.grid(padding=(0, 1), expand=True)
        line.add_column()
        line.add_column(ratio=1)
        for _ in range(3):
            line.add_column(justify="right", no_wrap=True)
        line.add_row(
            Text(job["state"]),
            ProgressBar(total=job["bytes_total"], completed=job["bytes_done"]),
            Text(f"{size(job['bytes_done'])} of {size(job['bytes_total'])}"),
            Text(f"{size(rate)}/s" if rate else ""),
            Text("" if left is None else f"{duration(left)} left"),
        )
        return line

    def _sources(self, job: dict[str, Any]) -> Any:
        from rich.table import Table
        from rich.text import Text

        lines = Table.grid(padding=(0, 2))
        lines.add_column(overflow="ellipsis", no_wrap=True)
        for _ in range(3):
            lines.add_column(justify="right", no_wrap=True)
        for source in job.get("sources") or ():
            rejected = f"{source['rejected']} rejected" if source["rejected"] else ""
            lines.add_row(
                Text(f"  {clean(source['source'])}"),
                Text(size(source["bytes"])),
                Text(f"{size(source['bytes_per_s'])}/s" if source["bytes_per_s"] else source["state"]),
                Text(rejected),
            )
        return lines
