"""Layer 5, the composition root: builds every part, owns start and stop order, and is what the API calls.

Start: store (takes the cache's lock) → key → Kubo (comes up in the background) → worker processes → jobs. Stop: the
same backwards; a pin under way is cancelled and resumes from its verified part at the next `pin`.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import shutil
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Self

from ipfs_accelerate_node import __version__, benchmarks
from ipfs_accelerate_node.benchmarks.exchange import Exchange
from ipfs_accelerate_node.config import Config
from ipfs_accelerate_node.content.build import PROFILE_NAME
from ipfs_accelerate_node.content.cid import Cid
from ipfs_accelerate_node.content.reference import (
    check_model_name,
)
from ipfs_accelerate_node.content.selection import ALL_FILES, Choice
from ipfs_accelerate_node.errors import BadContent, Conflict, Loading, NotFound
from ipfs_accelerate_node.fetch.hf_cache.hydrate import Hydration
from ipfs_accelerate_node.fetch.hf_cache.importing import Importing
from ipfs_accelerate_node.fetch.hf_cache.watch import LinkWatch
from ipfs_accelerate_node.fetch.hub_claims import Claims
from ipfs_accelerate_node.fetch.hub_loose import LooseFile, loose_files
from ipfs_accelerate_node.fetch.hub_map_shelf import MapShelf
from ipfs_accelerate_node.fetch.hub_mapping import HubMaps
from ipfs_accelerate_node.fetch.hub_mirror import HubMirror
from ipfs_accelerate_node.fetch.hub_nodes import HubNodes
from ipfs_accelerate_node.fetch.hub_selection import supersede
from ipfs_accelerate_node.fetch.hub_shelf import HubShelf, KeptCommit
from ipfs_accelerate_node.fetch.idle_hashing import hash_when_idle
from ipfs_accelerate_node.fetch.jobs import PinJob, Receipt, StoppedPin
from ipfs_accelerate_node.fetch.pins import KUBO_PATIENCE_S, Pins, Wish, receipt
from ipfs_accelerate_node.fetch.seeder import Seeder
from ipfs_accelerate_node.fetch.sharing import Sharing
from ipfs_accelerate_node.fetch.survey import Survey
from ipfs_accelerate_node.inference.catalogue import Catalogue
from ipfs_accelerate_node.inference.model import Accelerator
from ipfs_accelerate_node.inference.openvino import artefacts
from ipfs_accelerate_node.inference.registry import Registry
from ipfs_accelerate_node.inference.serving import Serving
from ipfs_accelerate_node.kubo.choice import service_for
from ipfs_accelerate_node.peers.network import Peers
from ipfs_accelerate_node.pinning.remotes import Remotes
from ipfs_accelerate_node.pinning.service import PinningService
from ipfs_accelerate_node.pinning.shelf import RequestShelf
from ipfs_accelerate_node.records.key import NodeKey
from ipfs_accelerate_node.sources.hub_names import HubRepo
from ipfs_accelerate_node.store import GcReport, Provenance, Store, StoredModel, VerifyReport
from ipfs_accelerate_node.store.ingest import ingest

log = logging.getLogger(__name__)

FETCH_LOOK_S = 5.0  # when to ask again for a model that is being fetched


class Node:
    """One node over one cache folder. Enter it once; every method is safe to call from several tasks."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.started_at = time.time()
        self._exit = AsyncExitStack()
        self.ready = False
        self.bench_limits = benchmarks.LIMITS  # how busy the machine may be while it is measured

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            self.store = await asyncio.to_thread(Store.open, self.config.cache, quota_bytes=self.config.quota_bytes)
            stack.callback(self.store.close)
            self._requests = await asyncio.to_thread(RequestShelf, self.config.cache)
            stack.callback(self._requests.close)
            self.key = await asyncio.to_thread(NodeKey.load_or_create, self.config.cache / "node.key")
            self.kubo = await stack.enter_async_context(service_for(self.config, self.key.seed))
            await self._meet_peers(stack)
            await self._run_models(stack)
            await self._fetch_by_cid()
            await self._speak_hub()
            await self.pinning.resume()
            self._exit = stack.pop_all()
        self.ready = True
        log.info("node.start cache=%s peer=%s version=%s", self.config.cache, self.key.peer_id, __version__)
        return self

    async def _meet_peers(self, stack: AsyncExitStack) -> None:
        self.peers = await stack.enter_async_context(Peers(self.config, self.kubo, self.key))
        self.exchange = await stack.enter_async_context(
            Exchange(
                self.config.cache,
                self.kubo,
                self.key,
                configured=self.config.peers,
                allowed=self.config.allow_peers,
                reach=self.peers.reached if self.config.tunnels else None,
                consent=self.config.publish,
                check=self.check_public,
                here=self.store.has,
            )
        )

    async def _run_models(self, stack: AsyncExitStack) -> None:
        self.registry = await stack.enter_async_context(
            Registry(
                cache=self.config.cache,
                load_timeout_s=self.config.load_timeout_s,
                threads=self.config.threads,
                keep_alive_s=math.inf if self.config.keep_alive_s is None else self.config.keep_alive_s,
                budget_bytes=self.config.memory_bytes,
                gone=lambda root: self.serving.release(root),
                queue_wait_s=self.config.queue_wait_s,
                share_identical=self.config.share_identical,
                precision=self.config.precision,
            )
        )
        self._group = await stack.enter_async_context(asyncio.TaskGroup())
        self.catalogue = Catalogue(self.store, self.registry)
        self.serving = Serving(
            self.store,
            self.registry,
            find=self._find_to_run,
            group=self._group,
            allow_mock=self.config.allow_mock,
            bring=self._bring,
        )

    async def _fetch_by_cid(self) -> None:
        self.seeder = Seeder(self.store, self.kubo)
        self._seeding = self._group.create_task(self.seeder.run(), name="seed")
        idle_hashing = hash_when_idle(self.store, lambda: self.registry.working)
        self._hashing = self._group.create_task(idle_hashing, name="hash files")
        tunnels = self.config.tunnels
        self._pins = Pins(
            self.config,
            self.store,
            self.kubo,
            self.seeder,
            self._group,
            discover=self.peers.providers if tunnels and self.kubo.state != "off" else None,
            by_peer_id=self.peers.source if tunnels else None,
        )
        self._pins.origins.peers = self.exchange.book
        self.remotes = await asyncio.to_thread(Remotes, self.config.cache, self.kubo, self.find)
        self.pinning = PinningService(
            self.config, self.store, self._requests, self._pins, self.kubo, self._group, stored=self.catalogue.meant
        )

    async def _speak_hub(self) -> None:
        """What is known of the Hub's commits, its protocol, and its clients' cache."""
        shelf = await asyncio.to_thread(HubShelf, self.config.cache)
        maps = MapShelf(self.config.cache, self.key)
        claims = Claims(
            self.exchange.book,
            maps,
            shelf,
            reach=self.peers.reached if self.config.tunnels else None,
            meet=self.peers.providers if self.config.tunnels and self.kubo.state != "off" else None,
        )
        self.maps = HubMaps(self.store, shelf, maps, claims, self._pins, self.kubo, own=self.key.peer_id)
        nodes = await asyncio.to_thread(HubNodes, self.config.cache, self.store)
        shelf.rooted = [nodes.keep, self.maps.maker.note, self._supersede]
        self._pins.publish_map = self._publish_map
        self.hub = HubMirror(self.config, self.store, shelf, self._pins, self.seeder, self._group, claims, nodes)
        self._pins.shelf = shelf
        self.sharing = Sharing(self.store, shelf, self.seeder, announce=self.config.announce_pins)
        self.links = await asyncio.to_thread(LinkWatch, self.store)
        self.hydration = Hydration(self.store, shelf, self.links, self.catalogue.meant)
        self.importing = Importing(self.store, shelf, self._pins.hub, self._landed)
        self._watching = self._group.create_task(self.links.run(), name="watch links")

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.ready = False
        self.pinning.stop()
        self._pins.close()
        self.hub.close()
        self.serving.close()
        self._seeding.cancel()
        self._watching.cancel()
        self._hashing.cancel()
        await self._exit.__aexit__(kind, error, trace)
        log.info("node.stop cache=%s", self.config.cache)

    def _supersede(self, kept: KeptCommit) -> None:
        """All files of a commit may be here: what stood in for it goes. Blocks."""
        if kept.root is not None:
            supersede(self.store, str(kept.of_repo), kept.commit, Cid.parse(kept.root))

    async def _publish_map(self, repo: HubRepo, revision: str) -> tuple[str | None, str | None]:
        done = await self.maps.publish(repo, revision, publish=True)
        return done.envelope_cid if done.published else None, done.note

    # -- what is here

    def models(self) -> list[StoredModel]:
        return self.store.models()

    def loose(self) -> list[LooseFile]:
        """Files of no model. Blocks."""
        return loose_files(self.store, self.hub.shelf)

    def find(self, ref: str) -> StoredModel:
        """The stored model that ``ref`` means. Raises NotFound, or BadRequest for what is no reference."""
        return self.catalogue.find(ref)

    def _find_to_run(self, ref: str) -> StoredModel:
        """The same for who wants to run it; Loading, not NotFound, for what is being fetched."""
        try:
            return self.find(ref)
        except NotFound:
            if any(ref in (job.ref, job.root, job.name) for job in self.fetching()):
                raise Loading(f"{ref} is being fetched", retry_after_s=FETCH_LOOK_S) from None
            raise

    async def _bring(self, ref: str, choice: Choice) -> str:
        """What is chosen of a commit of the Hub, else what a loader needs of it; the root of that."""
        return await self._pins.bring(ref, self.catalogue.meant, Wish(choice=choice, needed=True))

    def fetching(self) -> list[PinJob]:
        return [job for job in self.pin_jobs() if job.state == "fetching"]

    # -- adding and pinning

    async def add(self, path: Path, *, name: str | None = None, announce: bool = False, move: bool = False) -> Receipt:
        """Takes a directory of this host into the store, pins and seeds it; announced only on request."""
        began = time.perf_counter()
        if name is not None:
            check_model_name(name)
        provenance = Provenance(kind="local", reference=path.name, at=_now(), profile=PROFILE_NAME)
        ingested = await asyncio.to_thread(
            ingest,
            self.store,
            path,
            move=move,
            name=name,
            public=True,
            announce=announce,
            provenance=provenance,
        )
        seeded = await self.seeder.seed(ingested.model.root, announce=announce, brought=False)
        log.info(
            "add.done root=%s bytes=%d s=%.2f",
            ingested.model.root,
            ingested.model.size_bytes,
            time.perf_counter() - began,
        )
        return receipt(ingested.model, seeded, began, name=name, copied=ingested.bytes_copied)

    async def add_staged(self, directory: Path, *, name: str | None = None, announce: bool = False) -> Receipt:
        """The same for an uploaded directory on the store's device, which is taken over and removed."""
        try:
            return await self.add(directory, name=name, announce=announce, move=True)
        finally:
            await asyncio.to_thread(shutil.rmtree, directory, ignore_errors=True)

    def _landed(self, model: StoredModel) -> None:
        """A model came in without a pin of its own."""
        self._group.create_task(self.sharing.landed(model), name=f"seed {model.root}")

    def start_pin(self, ref: str, wish: Wish) -> PinJob:
        """Starts fetching; the returned job is watched with `updates`."""
        job = self._pins.start(ref, self.catalogue.meant, wish)
        self.pinning.note_own(job)
        return job

    async def plan(self, ref: str, *, choice: Choice = ALL_FILES, source: str | None = None) -> Survey:
        """What a pin of the same would fetch, from whom, and what it needs."""
        return await self._pins.survey(ref, self.catalogue.meant, choice=choice, source=source)

    def pin_job(self, id_or_root: str) -> PinJob | None:
        return self._pins.jobs.find(id_or_root)

    def pin_jobs(self) -> list[PinJob]:
        return self._pins.jobs.all()

    def updates(self, job: PinJob) -> AsyncIterator[PinJob]:
        return self._pins.updates(job)

    async def unpin(self, ref: str) -> StoredModel | StoppedPin:
        """The model stays until space is needed, or `gc`. A pin still under way is stopped; what it got stays."""
        stopped = await self._pins.cancel(ref)
        try:
            model = await asyncio.to_thread(self.find, ref)
        except NotFound:
            if stopped:
                return StoppedPin(stopped[-1].root, stopped[-1].ref)
            raise
        await asyncio.to_thread(self.store.unpin, model.root)
        return await asyncio.to_thread(self.find, str(model.root))

    async def remove(self, ref: str, *, force: bool = False) -> int:
        """Bytes freed. Raises Conflict for what is pinned (unless forced) or loaded."""
        model = await asyncio.to_thread(self.find, ref)
        freed_bytes = await asyncio.to_thread(self.store.remove, model.root, force=force)
        return freed_bytes + await asyncio.to_thread(self._drop_artefacts)

    async def gc(self) -> GcReport:
        """Deletes everything that is neither pinned nor in use, with its converted forms, and what failed fetches left
        behind."""
        report = await asyncio.to_thread(self.store.gc)
        converted_bytes = await asyncio.to_thread(self._drop_artefacts)
        return replace(report, freed_bytes=report.freed_bytes + converted_bytes)

    def _drop_artefacts(self) -> int:
        """Converted forms of models that are not in the store any more; bytes freed."""
        here = {str(model.root) for model in self.store.models()}
        roots = {kept.artefact.root for kept in artefacts.stored(self.config.cache)} - here
        return sum(artefacts.remove(self.config.cache, root) for root in roots)

    async def verify(self, ref: str | None = None) -> VerifyReport:
        """Reads every stored byte again; what does not match is quarantined and named."""
        root = None if ref is None else (await asyncio.to_thread(self.find, ref)).root
        return await asyncio.to_thread(self.store.verify, root)

    # -- measuring; running is `serving`'s

    async def bench(
        self, wish: benchmarks.Wish, *, publish: bool, tell: benchmarks.Tell = lambda _: None
    ) -> benchmarks.Bench:
        """Workloads through the same path as requests; records are signed, kept, and published on request, which
        reads the model's bytes again: what does not match its CIDs is not spoken of. Raises as `benchmarks.bench`."""
        benchmarks.refuse_mocks(wish.ref)
        if publish:
            await asyncio.to_thread(self.check_public, wish.ref)
            if damaged := (await self.verify(wish.ref)).corrupt:
                raise BadContent(f"{wish.ref} is damaged: {damaged[0].reason}", code="weights_unverified")
        done = await benchmarks.bench(
            self,
            wish,
            key=self.key,
            cache=self.config.cache,
            threads=self.config.threads or len(os.sched_getaffinity(0)),
            client=await self.exchange.client(KUBO_PATIENCE_S) if publish else None,
            limits=self.bench_limits,
            tell=tell,
        )
        if not publish:
            return done
        return replace(done, results=tuple([await self.exchange.settled(result) for result in done.results]))

    async def publish_record(self, envelope: str) -> benchmarks.BenchResult:
        """Publishes a record that `bench` kept, byte for byte what was shown, now or as soon as Kubo is there. Raises
        NotFound, Conflict; Unavailable where there never will be a Kubo."""
        cid = Cid.parse(envelope)
        client = await self.exchange.client(KUBO_PATIENCE_S)
        return await self.exchange.settled(
            await benchmarks.publish_kept(cid, cache=self.config.cache, client=client, check=self.check_public)
        )

    def check_public(self, ref: str | Cid) -> None:
        """A record names the root of its model: of a private one that would tell strangers that somebody has it. Raises
        Conflict (private_model), NotFound."""
        if not self.find(str(ref)).public:
            raise Conflict(f"{ref} is private here; `share` it before its results are published", code="private_model")

    async def accelerators(self) -> list[Accelerator]:
        return await self.registry.accelerators()

    def health(self) -> dict[str, object]:
        """state, what is degraded and why, and who this is; for people and probes, so without any path."""
        degraded = (
            [] if self.kubo.state == "ready" else [f"Kubo is {self.kubo.state}: {self.kubo.reason or 'no reason'}"]
        )
        return {
            "state": "ready" if self.ready else "stopping",
            "version": __version__,
            "peer_id": self.key.peer_id,
            "kubo": self.kubo.state,
            "degraded": degraded,
            "models": len(self.store.models()),
            "loaded": len(self.registry.loaded()),
        }


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
