"""Everything about maps of Hub commits, as one part: ours made, told and on request published; of peers asked for; and
all of them audited."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass

from ipfs_accelerate_node.content.cid import Cid
from ipfs_accelerate_node.errors import NodeError, NotFound
from ipfs_accelerate_node.fetch.hub_audit import Asked, Audit, Auditor
from ipfs_accelerate_node.fetch.hub_claims import Claims, MapAnswer
from ipfs_accelerate_node.fetch.hub_map_shelf import KeptMap, MapShelf
from ipfs_accelerate_node.fetch.hub_maps import MapMaker
from ipfs_accelerate_node.fetch.hub_shelf import HubShelf, KeptCommit
from ipfs_accelerate_node.fetch.pins import KUBO_PATIENCE_S, Pins
from ipfs_accelerate_node.fetch.threads import in_thread
from ipfs_accelerate_node.kubo import KuboClient, KuboService
from ipfs_accelerate_node.kubo.publishing import publish_blocks
from ipfs_accelerate_node.records.rendezvous import map_meeting
from ipfs_accelerate_node.sources.hub_names import HubRepo, check_repo, checked_revision
from ipfs_accelerate_node.store import Store

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class PublishedMap:
    """map: as JSON has it. meeting: the block at which nodes meet that have a map of that commit. published: all blocks
    are pinned in Kubo and were read back by CID. note: why not, where that was asked for, or why nobody has been told
    yet."""

    map: dict[str, object]
    record_cid: str
    envelope_cid: str
    signer: str
    meeting: str
    published: bool
    note: str | None


class HubMaps:
    """shelf: what the Hub said. pins: whose fetches, origins and upstream are shared. own: our PeerID."""

    def __init__(
        self,
        store: Store,
        shelf: HubShelf,
        maps: MapShelf,
        claims: Claims,
        pins: Pins,
        kubo: KuboService,
        *,
        own: str,
    ) -> None:
        self.maker = MapMaker(store, maps)
        self.claims = claims
        self._shelf = shelf
        self._kubo = kubo
        self._auditor = Auditor(
            store, shelf, self.maker, claims, pins.fetcher, pins.origins, own=own, hub=pins.hub, kubo=self._client
        )

    async def told(self, repo: HubRepo, revision: str) -> MapAnswer | None:
        """Our map, for whoever asks; None where we have none to tell."""
        kept = await in_thread(self._kept, repo, checked_revision(revision))
        own = None if kept is None else await in_thread(self.maker.own, kept)
        if kept is None or own is None:
            return None
        return MapAnswer(repo.id, repo.kind, kept.commit, [own.parcel])

    async def audit(self, repo: HubRepo, revision: str, asked: Asked) -> Audit:
        """See `Auditor.audit`."""
        check_repo(repo.id)
        return await self._auditor.audit(repo, checked_revision(revision), asked)

    async def publish(self, repo: HubRepo, revision: str, *, publish: bool) -> PublishedMap:
        """Our map of a commit that is here, made if need be, and put on IPFS if publish says so: for everybody, and for
        good. Raises NotFound(no_map) where not all of the commit is here and public, Unavailable without a Kubo."""
        check_repo(repo.id)
        kept = await in_thread(self._kept, repo, checked_revision(revision))
        own = None if kept is None else await in_thread(lambda: self.maker.own(kept, thorough=True))
        if kept is None or own is None:
            raise NotFound(
                f"there is no map of {repo} at {revision} here: pin all of that commit first, and it must be public",
                code="no_map",
            )
        if not publish:
            return self._shown(own, published=await in_thread(self.maker.maps.published, own), note=None)
        client = await self._client()
        meeting = map_meeting(str(repo), kept.commit)
        try:
            note = await publish_blocks(client, [*own.parcel.listed(), meeting])
        except NodeError as exc:
            log.warning("map.not_published repo=%s commit=%s reason=%s", repo, kept.commit, exc)
            return self._shown(own, published=False, note=f"kept here, not published: {exc}")
        await asyncio.to_thread(self.maker.maps.note_published, own)
        log.info("map.published repo=%s commit=%s envelope=%s", repo, kept.commit, own.opened.envelope_cid)
        return self._shown(own, published=True, note=note)

    # private

    def _kept(self, repo: HubRepo, revision: str) -> KeptCommit | None:
        ref = self._shelf.ref(repo, revision)
        return None if ref is None else self._shelf.commit(repo, ref[0])

    async def _client(self) -> KuboClient:
        return await self._kubo.wait_ready(KUBO_PATIENCE_S)

    def _shown(self, own: KeptMap, *, published: bool, note: str | None) -> PublishedMap:
        opened = own.opened
        meeting, _ = map_meeting(str(HubRepo(opened.map.repo, opened.map.repo_type)), opened.map.commit)
        return PublishedMap(
            map_json(own),
            str(opened.record_cid),
            str(opened.envelope_cid),
            opened.signer,
            str(meeting),
            published,
            note,
        )


def map_json(kept: KeptMap) -> dict[str, object]:
    """A map for people: CIDs and oids as text."""

    def text(cid: Cid | None) -> str | None:
        return None if cid is None else str(cid)

    found = kept.opened.map
    return {
        "repo_type": found.repo_type,
        "repo": found.repo,
        "commit": found.commit,
        "profile": found.profile,
        "root": text(found.root),
        "about": dict(found.about),
        "files": [
            {"path": file.path, "size": file.size, "oid": file.oid, "cid": text(file.cid)} for file in found.files
        ],
        "created": found.created,
        "expires": found.expires,
        "seq": found.seq,
    }
