"""Fetching, as the rest of the node sees it: one fetch per root and file at a time, whoever asks for it.

The first caller of a root fetches it in its own task; later ones wait for that outcome. When the first caller is
cancelled, its fetch ends with everything verified kept, and the next one that waits goes on from there with its own
sources. So no caller's cancel is another's failure, the last one's cancel stops everything, and no task outlives its
caller.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from ipfs_accelerate_node.content import unixfs
from ipfs_accelerate_node.content.cid import Cid
from ipfs_accelerate_node.content.selection import Only
from ipfs_accelerate_node.errors import BadContent, Conflict, NodeError, NotFound
from ipfs_accelerate_node.fetch.experience import remembered
from ipfs_accelerate_node.fetch.outcome import Fetched, Progress
from ipfs_accelerate_node.fetch.run import Discover, Into, Run
from ipfs_accelerate_node.fetch.single import BlockReader
from ipfs_accelerate_node.fetch.threads import in_thread
from ipfs_accelerate_node.sources.source import Source
from ipfs_accelerate_node.store import Store, StoredModel

log = logging.getLogger(__name__)

Report = Callable[[Progress], None]
MAX_SHARDS = 32  # blocks read to find one name in a directory; a sharded one of any size has fewer levels


@dataclass(eq=False, slots=True)
class Flight:
    """A fetch under way. sources: names of those it asks. outcome: when ended, unless its caller was cancelled."""

    sources: frozenset[str]
    only: Only | None
    reports: list[Report] = field(default_factory=list)
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    outcome: Fetched | NodeError | None = None

    def report(self, progress: Progress) -> None:
        for report in self.reports:
            report(progress)

    @contextmanager
    def watched(self, report: Report) -> Iterator[None]:
        self.reports.append(report)
        try:
            yield
        finally:
            self.reports.remove(report)


class Fetcher:
    """Owns the flights over one store. Needs no closing: each flight lives in its caller."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._flights: dict[Cid, list[Flight]] = {}

    async def fetch(
        self,
        root: Cid,
        sources: Sequence[Source],
        *,
        reference: str,
        name: str | None = None,
        pinned: bool = True,
        public: bool = True,
        progress: Report = lambda _: None,
        only: Only | None = None,
        discover: Discover | None = None,
    ) -> Fetched:
        """The model of root, committed under name; at once if it is here.

        sources: work at the same time; they stay open until this returns, and their caller's. discover: finds further
        ones, which join on the way and are closed here. only: the paths that are wanted (`Only`);
        what is committed then is an incomplete model, unless they match all.
        Raises IntegrityError (some source sent wrong bytes and the others could not finish), NoSource (detail:
        attempts), BadContent, UnsafeContent, QuotaExceeded, StorageError, Conflict (name means another root),
        NotFound (only matches no file). What was verified is kept for the next call, also when it is cancelled.
        """
        into = Into(name=name, pinned=pinned, public=public, reference=reference, only=only)
        key, names = root.canonical, frozenset(source.name for source in sources)
        while (flight := self._met(key, only)) is not None:
            with flight.watched(progress):
                await flight.ended.wait()
            if isinstance(flight.outcome, Fetched):
                if flight.only in (None, only):
                    return await self._join(flight.outcome, into)
            elif flight.outcome is not None and names <= flight.sources and discover is None and flight.only == only:
                raise flight.outcome
        flight = Flight(names, only, [progress])
        self._flights.setdefault(key, []).append(flight)
        try:
            flight.outcome = await self._fly(flight, key, sources, into, discover)
            return flight.outcome
        except NodeError as exc:
            flight.outcome = exc
            raise
        finally:
            self._flights[key].remove(flight)
            if not self._flights[key]:
                del self._flights[key]
            flight.ended.set()

    def _met(self, root: Cid, only: Only | None) -> Flight | None:
        """One that may bring what is wanted too; those of other files by their very paths go on beside each other."""
        return next((f for f in self._flights.get(root, ()) if not _are_apart(f.only, only)), None)

    async def resolve(
        self, root: Cid, path: str, sources: Sequence[Source], *, discover: Discover | None = None
    ) -> Cid:
        """What path means below root, reading only the directories on the way, from the store or from sources; from
        those that discover finds where these cannot help.

        Raises NotFound (no such entry), BadContent (a directory that is none), and as `fetch` does where no source has
        the block of a directory.
        """
        found = root
        async with BlockReader(root, sources, discover) as reader:
            for name in filter(None, path.split("/")):
                child = await self._child(found, name, reader)
                if child is None:
                    raise NotFound(f"{root} has no {path[:200]!a}", cid=str(root.canonical))
                found = child
        return found.canonical

    async def _child(self, folder: Cid, name: str, reader: BlockReader) -> Cid | None:
        blocks: dict[Cid, bytes] = {}
        while len(blocks) <= MAX_SHARDS:
            try:
                return unixfs.child(lambda cid: blocks.get(cid.canonical), folder, name)
            except NotFound as exc:
                missing = Cid.parse(str(exc.detail["cid"]))
            block = await in_thread(self._store.block, missing)
            blocks[missing] = block or await reader.read(missing)
        raise BadContent(f"{folder} has too many levels on the way to {name[:80]!a}")

    async def _fly(
        self, flight: Flight, root: Cid, sources: Sequence[Source], into: Into, discover: Discover | None
    ) -> Fetched:
        began = time.perf_counter()
        here = await in_thread(self._stored, root, into)
        if here is not None:
            return replace(here, seconds=time.perf_counter() - began)
        log.debug("fetch.start root=%s sources=%s", root, ",".join(source.name for source in sources))
        run = Run(self._store, root, sources, flight.report, discover)
        fetched = await remembered(self._store, sources, run.fetch(into))
        log.info(
            "fetch.done root=%s bytes=%d fetched=%d s=%.2f",
            root,
            fetched.bytes_total,
            fetched.bytes_fetched,
            fetched.seconds,
        )
        return fetched

    async def _join(self, outcome: Fetched, into: Into) -> Fetched:
        """Another caller's outcome, with this caller's name and pin."""
        return replace(outcome, model=await in_thread(self._label, outcome.model.root, into))

    def _stored(self, root: Cid, into: Into) -> Fetched | None:
        """A committed model as the outcome of a fetch that had nothing to do.

        Raises Conflict now, not after the last byte, if the name means another root.
        """
        other = None if into.name is None else self._store.named(into.name)
        if other is not None and other != root:
            raise Conflict(f"{into.name!r} is the name of {other}", cid=str(other))
        model = self._store.model(root)
        if model is None or (plan := self._store.plan(root)) is None:
            return None
        files = into.wanted(plan)
        if not model.complete and {f.path for f in self._store.absent(root)} & {f.path for f in files}:
            return None
        return Fetched(
            model=self._label(root, into),
            plan=plan,
            nodes=tuple(self._store.nodes(root)),
            bytes_total=sum(file.size for file in files),
            bytes_fetched=0,
            bytes_copied=0,
            seconds=0.0,
            sources=(),
            already_here=True,
        )

    def _label(self, root: Cid, into: Into) -> StoredModel:
        """Raises NotFound (removed meanwhile), Conflict."""
        if into.name is not None:
            self._store.set_name(root, into.name)
        if into.pinned:
            self._store.pin(root)
        model = self._store.model(root)
        if model is None:
            raise NotFound(f"{root} was removed meanwhile", cid=str(root))
        return model


def _are_apart(one: Only | None, other: Only | None) -> bool:
    return isinstance(one, frozenset) and isinstance(other, frozenset) and one.isdisjoint(other)
