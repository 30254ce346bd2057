"""The parts of the page, made once for all who watch: a part is rendered again when it is looked at and may have
changed, at most every PARTS_S seconds, whoever asks how often."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable

from aiohttp import web

from ipfs_accelerate_node.api.dashboard.page import Part, rendered
from ipfs_accelerate_node.api.dashboard.plots import plots_of
from ipfs_accelerate_node.api.dashboard.results import Findings, ResultsReader
from ipfs_accelerate_node.api.dashboard.view import (
    FIRST,
    DevicesView,
    ReportView,
    model_rows,
    node_view,
    peers_view,
    pin_rows,
    report_view,
)
from ipfs_accelerate_node.api.dashboard.words import clean, cut
from ipfs_accelerate_node.api.limiter import Giving
from ipfs_accelerate_node.benchmarks.last_report import last_report
from ipfs_accelerate_node.errors import NodeError
from ipfs_accelerate_node.fetch.jobs import PinJob
from ipfs_accelerate_node.inference.model import Accelerator
from ipfs_accelerate_node.node import Node

log = logging.getLogger(__name__)

PARTS_S = 2.0
DEVICES_S = 60.0  # before runtimes that did not answer are asked again
ORDER = ("node", "pins", "models", "results", "report", "devices", "peers")


class PinRow:
    """One pin as it is shown."""

    def __init__(self, job: PinJob) -> None:
        self.id = job.id
        self.job = job
        self.html = rendered("pin.html", job=job)


class Board:
    """pinned: how many models are. givings: what counts bytes given away. draining: whether the node is stopping. Owns
    the question to the runtimes, which takes seconds the first time; `close` ends it."""

    def __init__(self, here: Node, givings: Iterable[Giving], draining: Callable[[], bool]) -> None:
        self._here = here
        self._givings = tuple(givings)
        self._draining = draining
        self._reader: ResultsReader | None = None
        self._making = asyncio.Lock()
        self._parts: dict[str, Part] = {}
        self._made_s = float("-inf")
        self.pinned = 0
        self._rows: dict[str, PinRow] = {}
        self._survey: asyncio.Task[list[Accelerator]] | None = None
        self._survey_s = 0.0
        self._found: tuple[Accelerator, ...] | None = None
        self._note = ""

    async def close(self, _: web.Application) -> None:
        if self._survey is not None and not self._survey.done():
            self._survey.cancel()
            await asyncio.wait([self._survey])

    async def parts(self) -> list[Part]:
        """In the order of the page; pins as they are now, the rest at most PARTS_S old."""
        async with self._making:
            if time.monotonic() - self._made_s >= PARTS_S:
                self._look_for_devices()
                self._parts = {part.id: part for part in await asyncio.to_thread(self._make)}
                self._made_s = time.monotonic()
        return [*(self._parts[name] if name != "pins" else self.pins() for name in ORDER)]

    def pins(self) -> Part:
        rows = self.rows()
        going = sum(not row.job.ended for row in rows)
        return Part.of("pins", rows=rows, going=going, pinned=self.pinned, first=FIRST)

    def rows(self) -> list[PinRow]:
        """A job never changes, another takes its place: what was rendered of it stays."""
        jobs = pin_rows(self._here.pin_jobs())
        known = self._rows
        self._rows = {
            job.id: row if (row := known.get(job.id)) is not None and row.job is job else PinRow(job) for job in jobs
        }
        return list(self._rows.values())

    def _make(self) -> list[Part]:
        """Blocks: reads the store, the disk and the records."""
        here = self._here
        models, loaded = here.models(), here.registry.loaded()
        self.pinned = sum(model.pinned for model in models)
        rows, left_out = model_rows(models, loaded)
        found = self._results()
        return [
            Part.of("node", node=node_view(here, models, self._givings, draining=self._draining())),
            Part.of("models", rows=rows, left_out=left_out, loaded=len(loaded), first=FIRST),
            Part.of("results", found=found, cards=[(model, plots_of(model)) for model in found.models]),
            Part.of("report", report=self._report(), first=FIRST),
            Part.of(
                "devices",
                devices=DevicesView(self._found, self._note, tuple(one for one in loaded if one.choice)),
                first=FIRST,
            ),
            Part.of("peers", peers=peers_view(here), first=FIRST),
        ]

    def _results(self) -> Findings:
        if self._reader is None:
            self._reader = ResultsReader(self._here.config.cache, self._here.exchange.store)
        try:
            return self._reader.read(self._here.models(), self._here.exchange.book.trusted)
        except NodeError as exc:
            log.warning("dashboard.no_results code=%s reason=%s", exc.code, exc)
            return Findings((), 0, 0)

    def _report(self) -> ReportView | None:
        kept = last_report(self._here.config.cache)
        return None if kept is None else report_view(kept.report, kept.at)

    def _look_for_devices(self) -> None:
        """Takes what was found, and asks where that is due."""
        if self._survey is not None and self._survey.done():
            asked, self._survey = self._survey, None
            try:
                self._found, self._note = tuple(asked.result()), ""
            except NodeError as exc:
                self._note = f"The runtimes could not be asked: {exc}"
        complete = self._found is not None and all(one.available for one in self._found)
        due = self._survey_s == 0.0 or time.monotonic() - self._survey_s > DEVICES_S
        if self._survey is None and not complete and due:
            self._survey_s = time.monotonic()
            self._survey = asyncio.create_task(self._here.accelerators(), name="devices for the dashboard")


class Watch:
    """What one page does not show yet. have: digest of each part that it shows."""

    def __init__(self, board: Board, have: dict[str, str]) -> None:
        self._board = board
        self._have = have
        self._rows: list[PinRow] | None = None
        self._shape: tuple[object, ...] = ()
        self._parts_s = float("-inf")

    async def changes(self) -> list[tuple[str, dict[str, str]]]:
        """Events as (name, value): pins each time, the other parts every PARTS_S seconds."""
        found: list[tuple[str, dict[str, str]]] = []
        if time.monotonic() - self._parts_s >= PARTS_S:
            for part in await self._board.parts():
                if part.id != "pins" and self._have.get(part.id) != part.digest:
                    found.append(self._news_of(part))
            self._parts_s = time.monotonic()
        return self._of_pins() + found

    def _of_pins(self) -> list[tuple[str, dict[str, str]]]:
        """A row where only its job went on; the whole part where there are other pins, or one of them ended."""
        rows, known = self._board.rows(), {row.id: row for row in self._rows or ()}
        shape = (self._board.pinned, *((row.id, row.job.state) for row in rows))
        found: list[tuple[str, dict[str, str]]] = []
        if self._rows is None or shape != self._shape:
            part = self._board.pins()
            if self._have.get("pins") != part.digest:
                found.append(self._news_of(part))
        else:
            changed = [row for row in rows if known[row.id] is not row]
            found += [("row", {"id": f"pin-{row.id}", "html": str(row.html)}) for row in changed]
        if self._rows is not None:
            found += [("news", {"text": text}) for row in rows if (text := _told(known.get(row.id), row))]
        self._rows, self._shape = rows, shape
        return found

    def _news_of(self, part: Part) -> tuple[str, dict[str, str]]:
        self._have[part.id] = part.digest
        return "part", {"id": part.id, "digest": part.digest, "html": str(part.html)}


def _told(before: PinRow | None, now: PinRow) -> str:
    """For who does not see it: that a pin began or ended."""
    if before is not None and before.job.state == now.job.state:
        return ""
    ended = {"pinned": "is pinned", "failed": "failed"}.get(now.job.state)
    if ended is None and before is not None:
        return ""
    return f"{cut(str(clean(now.job.name or now.job.ref)), 80)} {ended or 'is being fetched'}"
