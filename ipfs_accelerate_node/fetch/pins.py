"""Pins: a reference in, a stored, seeded model and its receipt out. Runs each as a job that outlives its request."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace

from ipfs_accelerate_node.config import Config
from ipfs_accelerate_node.content.cid import Cid
from ipfs_accelerate_node.content.reference import (
    DEFAULT_REVISION,
    HubRef,
    MockRef,
    Reference,
    RootRef,
    check_model_name,
    parse_reference,
)
from ipfs_accelerate_node.content.selection import ALL_FILES, Choice, is_meant, selected
from ipfs_accelerate_node.errors import BadRequest, NodeError, NotFound, Unavailable, problem
from ipfs_accelerate_node.fetch.engine import Fetcher
from ipfs_accelerate_node.fetch.hub import Which, fetch_hub
from ipfs_accelerate_node.fetch.hub_nearby import Nearby
from ipfs_accelerate_node.fetch.hub_receive import Receiver
from ipfs_accelerate_node.fetch.hub_shelf import HubShelf
from ipfs_accelerate_node.fetch.jobs import JobBoard, PinJob, Receipt
from ipfs_accelerate_node.fetch.origins import Discover, Origins
from ipfs_accelerate_node.fetch.outcome import Fetched, Progress
from ipfs_accelerate_node.fetch.seeder import Seeder
from ipfs_accelerate_node.fetch.survey import Survey, Surveyor
from ipfs_accelerate_node.kubo import KuboClient, KuboService
from ipfs_accelerate_node.kubo.seeding import Seeded
from ipfs_accelerate_node.sources import Source
from ipfs_accelerate_node.sources.hub import HubSource
from ipfs_accelerate_node.sources.hub_hops import new_id, onward
from ipfs_accelerate_node.sources.hub_names import HubRepo
from ipfs_accelerate_node.store import Store, StoredModel

log = logging.getLogger(__name__)

KUBO_PATIENCE_S = 20.0  # a pin waits so long for a Kubo that is still starting
Meant = Callable[[Reference, str], StoredModel | None]


@dataclass(frozen=True, slots=True)
class Wish:
    """How a pin is to be done. announce: None leaves it to the configuration. source: use only this one (a URL, a
    PeerID, or "kubo"). choice: of the files that are wanted. needed: where nothing is chosen, of the Hub's files only
    those that a loader needs. publish_map: of the commit, when it is here."""

    name: str | None = None
    announce: bool | None = None
    source: str | None = None
    choice: Choice = ALL_FILES
    needed: bool = False
    publish_map: bool = False


class Pins:
    """Owns the pins under way. Entered by the node: its tasks live in the group that is passed in.

    discover, by_peer_id: see `Origins`.
    """

    def __init__(
        self,
        config: Config,
        store: Store,
        kubo: KuboService,
        seeder: Seeder,
        group: asyncio.TaskGroup,
        *,
        discover: Discover | None = None,
        by_peer_id: Callable[[str], Source] | None = None,
    ) -> None:
        self.shelf: HubShelf | None = None  # what the Hub says of what is fetched is kept there
        self.nearby: Nearby | None = None  # who else may have what is on the Hub
        self.hop = new_id()  # this node's, among those that a request to the Hub comes through
        self.publish_map: Callable[[HubRepo, str], Awaitable[tuple[str | None, str | None]]] | None = None
        self._config = config
        self._store = store
        self._kubo = kubo
        self._seeder = seeder
        self._group = group
        self.fetcher = Fetcher(store)
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._awaited: dict[str, NodeError | None] = {}  # pins that a caller waits for, with their failure
        self.origins = Origins(config, store, kubo, self._ready_kubo, discover=discover, by_peer_id=by_peer_id)
        self.receiver = Receiver(store)
        self.discover = discover
        self.jobs = JobBoard()
        self._surveyor = Surveyor(store, self.origins, self.fetcher.resolve, self.hub)

    def start(self, ref: str, stored: Meant, wish: Wish) -> PinJob:
        """Starts fetching. stored: finds what is here already. Raises BadRequest for what cannot be pinned so."""
        reference = parse_reference(ref)
        if wish.name is not None:
            check_model_name(wish.name)
        if isinstance(reference, MockRef):
            raise BadRequest("a mock has no bytes to pin", code="mock_not_pinnable")
        if isinstance(reference, HubRef) and wish.source is not None:
            raise BadRequest("a Hub reference comes from the Hub; a source can be named for a CID", param="source")
        if wish.publish_map and (not isinstance(reference, HubRef) or wish.choice):
            raise BadRequest("a map is of all files of a commit of the Hub", code="no_map", param="publish_map")
        self.origins.check(wish.source)
        root = str(reference.cid.canonical) if isinstance(reference, RootRef) and not reference.path else None
        job = self.jobs.open(ref, wish.name, root, only=wish.choice.include, exclude=wish.choice.exclude)
        task = self._group.create_task(self._run(job, reference, stored, wish), name=f"pin {ref}")
        self._tasks[job.id] = task
        task.add_done_callback(lambda _: self._tasks.pop(job.id, None))
        return job

    async def bring(self, ref: str, stored: Meant, wish: Wish) -> str:
        """Pins it and waits for the end, which a cancelled caller leaves to others. Returns the root. Raises as the pin
        fails."""
        job = self.start(ref, stored, wish)
        self._awaited[job.id] = None
        try:
            await asyncio.wait({self._tasks[job.id]})
            failure = self._awaited[job.id]
        finally:
            del self._awaited[job.id]
        if failure is not None:
            raise failure
        ended = self.jobs.find(job.id)
        if ended is None or ended.root is None or ended.state != "pinned":
            raise Unavailable(f"the pin of {ref} was stopped", code="cancelled")
        return ended.root

    async def survey(self, ref: str, stored: Meant, *, choice: Choice, source: str | None = None) -> Survey:
        """What a pin of the same would do; see `Surveyor.survey`."""
        reference = parse_reference(ref)
        here = None if self._may_have_moved(reference, ref) else await asyncio.to_thread(stored, reference, ref)
        if here is not None and self._is_in_part(reference, ref, here):
            here = None
        return await self._surveyor.survey(reference, ref, here, choice=choice, named=source)

    def updates(self, job: PinJob) -> AsyncIterator[PinJob]:
        return self.jobs.updates(job.id)

    async def cancel(self, ref: str) -> list[PinJob]:
        """Stops every pin under way of that reference, in any spelling, and waits until they have ended; what they
        verified stays for the next. Returns the pins that were stopped."""
        found = {job.id: self._tasks[job.id] for job in self.jobs.under_way(ref) if job.id in self._tasks}
        for job_id, task in found.items():
            task.cancel()
            self.jobs.change(job_id, state="failed", error=problem(Unavailable("unpinned meanwhile", code="cancelled")))
        if found:
            await asyncio.wait(found.values())
        return [job for job_id in found if (job := self.jobs.find(job_id)) is not None]

    def close(self) -> None:
        for task in self._tasks.values():
            task.cancel()

    async def _run(self, job: PinJob, reference: Reference, stored: Meant, wish: Wish) -> None:
        try:
            receipt = await self._pin(job, reference, stored, wish)
        except NodeError as exc:
            log.warning("pin.failed ref=%s code=%s reason=%s", job.ref, exc.code, exc)
            self.jobs.change(job.id, state="failed", error=problem(exc), left_s=None)
            if job.id in self._awaited:
                self._awaited[job.id] = exc
            return
        total = receipt.bytes_total
        log.info(
            "pin.done root=%s bytes=%d fetched=%d s=%.2f", receipt.root, total, receipt.bytes_fetched, receipt.seconds
        )
        self.jobs.change(
            job.id, state="pinned", root=receipt.root, receipt=receipt, bytes_total=total, bytes_done=total, left_s=None
        )

    async def _pin(self, job: PinJob, reference: Reference, stored: Meant, wish: Wish) -> Receipt:
        began = time.perf_counter()
        fetched: Fetched | None = None
        model = await asyncio.to_thread(stored, reference, job.ref)
        if model is None or self._may_have_moved(reference, job.ref) or self._is_in_part(reference, job.ref, model):
            fetched = await self._fetch(job, reference, wish)
        elif await asyncio.to_thread(self._lacks, model, wish.choice):
            fetched = await self._fetch(job, RootRef(model.root), wish)
        if fetched is not None:
            model = fetched.model
        elif model is not None:
            await asyncio.to_thread(self._keep, model.root, wish.name)
        assert model is not None, "stored or fetched"
        announce = wish.announce
        if announce is None:  # what comes by CID is public already; what lies here keeps the say its owner had
            announce = model.announce if fetched is None else self._config.announce_pins
        announce = announce and model.public
        await asyncio.to_thread(self._store.set_announce, model.root, announce)
        self.jobs.change(job.id, state="seeding", root=str(model.root), left_s=None)
        brought = fetched is not None and any(s.kind == "kubo" for s in fetched.sources)
        seeded = await self._seeder.seed(model.root, announce=announce, brought=brought)
        done = receipt(model, seeded, began, name=wish.name, reference=job.ref, fetched=fetched)
        if wish.publish_map and isinstance(reference, HubRef):
            envelope, note = await self._published(HubRepo.named(reference.named), reference.revision)
            done = replace(done, map_envelope=envelope, map_note=note)
        if fetched is not None:
            return done
        asked_bytes = await asyncio.to_thread(self._bytes_of, model, wish.choice)
        return replace(done, bytes_total=asked_bytes, bytes_here=asked_bytes)

    async def _published(self, repo: HubRepo, revision: str) -> tuple[str | None, str | None]:
        """The envelope of the map that is public now, and what is to be said of it. The model is pinned either way."""
        assert self.publish_map is not None, "the node sets it"
        try:
            return await self.publish_map(repo, revision)
        except NodeError as exc:
            log.warning("pin.map_not_published repo=%s reason=%s", repo, exc)
            return None, f"not published: {exc}"

    def _may_have_moved(self, reference: Reference, text: str) -> bool:
        """Whether a stored model of that reference may be an older one: main of a repository is what the Hub says."""
        moves = isinstance(reference, HubRef) and reference.revision == DEFAULT_REVISION
        return moves and self._store.named(text) is None

    def _is_in_part(self, reference: Reference, text: str, model: StoredModel) -> bool:
        """Whether a stored model of the Hub is not all of its commit, or only said to be it: then the Hub's own files
        say what is lacking."""
        came = model.provenance
        in_part = not model.complete or came.selection is not None or came.claimed_commit is not None
        return in_part and isinstance(reference, HubRef) and self._store.named(text) is None

    def _lacks(self, model: StoredModel, only: Choice) -> bool:
        """Whether a stored model lacks files that are wanted. Raises NotFound (code no_match) for patterns that mean
        none of its files."""
        if only and (plan := self._store.plan(model.root)) is not None:
            selected(plan, only)
        return any(is_meant(file.path, only) for file in self._store.absent(model.root))

    def _bytes_of(self, model: StoredModel, only: Choice) -> int:
        plan = self._store.plan(model.root) if only else None
        return model.size_bytes if plan is None else sum(file.size for file in selected(plan, only))

    def _keep(self, root: Cid, name: str | None) -> None:
        self._store.pin(root)
        if name is not None:
            self._store.set_name(root, name)

    async def _fetch(self, job: PinJob, reference: Reference, wish: Wish) -> Fetched:
        def progress(now: Progress) -> None:
            self.jobs.change(
                job.id,
                bytes_total=now.bytes_total,
                bytes_done=now.bytes_done,
                source=now.source,
                sources=now.sources,
                left_s=now.left_s,
            )

        match reference:
            case RootRef(cid=cid, path=path):
                async with AsyncExitStack() as stack:
                    sources = self.origins.open(stack, wish.source)
                    discover = self.origins.discovery(wish.source)
                    root = cid.canonical
                    if path:
                        root = await self.fetcher.resolve(cid, path, sources, discover=discover)
                    self.jobs.change(job.id, root=str(root))
                    return await self.fetcher.fetch(
                        root,
                        sources,
                        name=wish.name,
                        reference=job.ref,
                        progress=progress,
                        only=wish.choice or None,
                        discover=discover,
                    )
            case HubRef(revision=revision):
                async with self.hub() as hub:
                    return await fetch_hub(
                        self._store,
                        hub,
                        reference.named,
                        revision,
                        name=wish.name,
                        progress=progress,
                        which=Which(wish.choice, wish.needed),
                        shelf=self.shelf,
                        receiver=self.receiver,
                        nearby=self.nearby,
                    )
            case _:
                raise NotFound(
                    f"{job.ref} is neither a CID, a Hub repository nor a name known here", code="model_not_found"
                )

    def hub(self) -> HubSource:
        """The configured upstream, to be entered."""
        return self.hub_for(self._config.hf_token)

    def hub_for(self, token: str | None, *, backoff_s: float = 0.5) -> HubSource:
        """The same with a caller's token. Raises InvalidConfig for what can be none."""
        config = self._config
        return HubSource(
            endpoint=config.hf_upstream,
            token=token,
            offline=config.hf_offline,
            redirect_origins=config.hf_redirect_origins,
            hops=onward(self.hop),
            stall_timeout_s=config.stall_timeout_s,
            first_byte_timeout_s=config.first_byte_timeout_s,
            backoff_s=backoff_s,
        )

    def open_nearby(self, stack: AsyncExitStack, everyone: bool) -> list[Source]:
        """Peers that are configured; all others only for want of the Hub, which mostly is faster than a search."""
        if everyone:
            return self.origins.open(stack, None)
        return [source for peer in self.origins.peers for source in self.origins.open(stack, peer)]

    async def _ready_kubo(self) -> KuboClient:
        """Raises Unavailable."""
        client = await self._kubo.wait_ready(KUBO_PATIENCE_S)
        await self._seeder.caught_up()
        return client


def receipt(
    model: StoredModel,
    seeded: Seeded,
    began: float,
    *,
    name: str | None,
    reference: str | None = None,
    fetched: Fetched | None = None,
    copied: int = 0,
) -> Receipt:
    """began: `time.perf_counter()` when the caller asked. copied: bytes that an `add` took from this machine's disk."""
    return Receipt(
        root=str(model.root),
        name=name or (model.names[0] if model.names else None),
        path=str(model.path),
        bytes_total=fetched.bytes_total if fetched else model.size_bytes,
        bytes_fetched=fetched.bytes_fetched if fetched else 0,
        bytes_copied=fetched.bytes_copied if fetched else copied,
        seconds=round(time.perf_counter() - began, 3),
        sources=fetched.sources if fetched else (),
        seeded=seeded.seeded,
        seed_note=seeded.note,
        announced=seeded.announced,
        reference=reference or str(model.root),
        failures=fetched.failures if fetched else (),
        absent_files=model.absent_files,
        chain=fetched.chain if fetched else (),
        bytes_here=fetched.here if fetched else max(0, model.size_bytes - copied),
        selection=model.provenance.selection,
        replaced=tuple(map(str, fetched.replaced)) if fetched else (),
    )
