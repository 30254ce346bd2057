"""Peers' word for what the Hub says, for when the Hub cannot be asked, and for the CIDs of its files.

A claim is a signed map (`records.hub_map`), verified here, kept, and named by its signer. It never replaces what the
Hub itself said. Its CIDs are only a way to get bytes: where the Hub's oids are known those decide, and where only the
peer's are, what comes is marked as its claim. A map that turns out wrong is thrown away, and its signer is not believed
any more.

Peers that the configuration names are asked, by URL or through a tunnel; of a commit also those who announced on the
network that they have a map of it. Which commit a branch means no map says: that is the word of who was asked.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import AsyncGenerator, Callable, Iterable
from contextlib import AbstractAsyncContextManager, aclosing, nullcontext
from weakref import WeakValueDictionary

import msgspec

from ipfs_accelerate_node.config_values import peer_id
from ipfs_accelerate_node.content.cid import Cid
from ipfs_accelerate_node.errors import NodeError, SourceUnavailable, Unavailable
from ipfs_accelerate_node.fetch.hub_map_shelf import KeptMap, MapShelf, Parcel
from ipfs_accelerate_node.fetch.hub_maps import claimed_commit, fault, own_fault, same_cid
from ipfs_accelerate_node.fetch.hub_shelf import HubShelf, KeptCommit
from ipfs_accelerate_node.fetch.threads import in_thread
from ipfs_accelerate_node.records.rendezvous import map_meeting
from ipfs_accelerate_node.sources import Source
from ipfs_accelerate_node.sources.hub_maps import peer_map
from ipfs_accelerate_node.sources.hub_names import HubRepo, is_commit

log = logging.getLogger(__name__)

DENIED_S = 60.0  # a map that no peer had is not asked for again so soon
SEARCH_S = 30.0  # for nodes that announced a map, and for what each answers
MAX_PARCELS = 16  # of one answer
_MAX_DENIED = 10_000
_MAX_HELD = 1000

Reach = Callable[[str], AbstractAsyncContextManager[str]]
Meet = Callable[[Cid], AsyncGenerator[Source, None]]


class MapAnswer(msgspec.Struct, frozen=True):
    """What `GET /api/maps` says. commit: what the revision that was asked for means there, unsigned."""

    repo: str
    kind: str
    commit: str
    maps: list[Parcel]


class Claims:
    """peers: origins and PeerIDs that are asked. shelf: what the Hub said, to which maps are held. reach: the URL of a
    node by its PeerID while inside; meet: nodes that announced a rendezvous block. Both are None on a node without
    tunnels."""

    def __init__(
        self,
        peers: Iterable[str],
        maps: MapShelf,
        shelf: HubShelf,
        *,
        reach: Reach | None = None,
        meet: Meet | None = None,
    ) -> None:
        self.maps = maps
        self._shelf = shelf
        self._peers = peers
        self._reach = reach
        self._meet = meet
        self._denied_s: dict[tuple[HubRepo, str, bool], float] = {}
        self._asking: WeakValueDictionary[tuple[HubRepo, str], asyncio.Lock] = WeakValueDictionary()
        self._held: dict[Cid, bool] = {}  # by envelope: also to what the Hub said

    async def ask(
        self, repo: HubRepo, revision: str, again: bool = False, *, search: bool = False
    ) -> KeptCommit | None:
        """What the best map of it says, None if there is none; never raises for a peer's faults.

        search: also looks on the network for nodes that announced a map of the commit, for up to SEARCH_S. again: so
        too, and also if nobody had one a moment ago.
        """
        search = search or again
        lock = self._asking.setdefault((repo, revision), asyncio.Lock())
        async with lock:  # one search, for all who want it
            if is_commit(revision) and (found := await in_thread(self._usable, repo, revision)):
                return claimed_commit(found[0])
            if not again and self._was_denied(repo, revision, search):
                return None
            best = await self._ask_peers(repo, revision)
            if best is None and search and is_commit(revision):
                best = await self._search(repo, revision)
            if best is not None:
                return claimed_commit(best)
            self._deny(repo, revision, search)
            return None

    async def ask_one(self, peer: str, repo: HubRepo, revision: str) -> MapAnswer | None:
        """What this peer (a URL or a PeerID) answers, its maps not verified; None for none. Raises Unavailable."""
        where = peer_id(peer)
        if where is not None and self._reach is None:
            raise Unavailable("this node opens no tunnels, so it reaches no PeerID", code="no_tunnels")
        reached = self._reach(where) if where is not None and self._reach is not None else nullcontext(peer)
        async with reached as url:
            said = await peer_map(url, repo, revision)
        return None if said is None else await in_thread(_decoded, said, repo, revision, peer)

    async def refuted(
        self, repo: HubRepo, commit: str, path: str, reason: str, *, root: Cid | None = None
    ) -> list[str]:
        """What maps say of that file is wrong: those that say it (that have this root, where one is named) are thrown
        away. Their signers."""
        return await in_thread(self._refute, repo, commit, path, reason, root)

    def refute(self, kept: KeptMap, path: str, reason: str) -> None:
        """That map is wrong: nothing that it said is kept. Blocks. path: "" for the map as a whole."""
        found = kept.opened.map
        self.maps.refute(kept, path, reason)
        root = None if found.root is None else str(found.root)
        repo = HubRepo(found.repo, found.repo_type)
        self._shelf.forget_claim(repo, found.commit, f"peer:{kept.opened.signer}", root)

    # private

    def _was_denied(self, repo: HubRepo, revision: str, search: bool) -> bool:
        denied_s = max(self._denied_s.get((repo, revision, far), -math.inf) for far in {search, True})
        return asyncio.get_running_loop().time() - denied_s < DENIED_S

    def _deny(self, repo: HubRepo, revision: str, search: bool) -> None:
        self._denied_s[repo, revision, search] = asyncio.get_running_loop().time()
        while len(self._denied_s) > _MAX_DENIED:
            del self._denied_s[next(iter(self._denied_s))]

    def _refute(self, repo: HubRepo, commit: str, path: str, reason: str, root: Cid | None) -> list[str]:
        found = [kept for kept in self.maps.of(repo, commit) if root is None or same_cid(kept.opened.map.root, root)]
        for kept in found:
            self.refute(kept, path, reason)
        return [kept.opened.signer for kept in found]

    async def _ask_peers(self, repo: HubRepo, revision: str) -> KeptMap | None:
        """All at once; the first that has a whole map is enough."""
        asking = [asyncio.create_task(self._asked(peer, repo, revision), name=f"map of {peer}") for peer in self._peers]
        return await _best(asking)

    async def _asked(self, peer: str, repo: HubRepo, revision: str) -> KeptMap | None:
        try:
            answer = await self.ask_one(peer, repo, revision)
            return None if answer is None else await in_thread(self._taken, answer, repo)
        except Unavailable as exc:
            log.info("hub.no_map source=%s repo=%s code=%s", peer, repo, exc.code)
        except NodeError as exc:
            log.warning("hub.bad_map source=%s repo=%s reason=%s", peer, repo, ascii(str(exc))[:200])
        return None

    async def _search(self, repo: HubRepo, commit: str) -> KeptMap | None:
        """Of those who announced that they have a map of it, the first that gives one."""
        if self._meet is None:
            return None
        meeting, _ = map_meeting(str(repo), commit)
        try:
            async with asyncio.timeout(SEARCH_S), aclosing(self._meet(meeting)) as found:
                async for source in found:
                    name = source.name
                    await source.aclose()
                    if (kept := await self._asked(name, repo, commit)) is not None:
                        return kept
        except TimeoutError:
            log.info("hub.no_map source=network repo=%s commit=%s", repo, commit)
        return None

    def _taken(self, answer: MapAnswer, repo: HubRepo) -> KeptMap | None:
        """The best of them. Blocks. Raises NodeError where none is good."""
        failure: NodeError | None = None
        good: list[KeptMap] = []
        for parcel in answer.maps[:MAX_PARCELS]:
            try:
                kept = self.maps.take(parcel, repo, answer.commit)
            except NodeError as exc:
                failure = exc
                continue
            if self._holds(kept):
                good.append(kept)
        if not good and failure is not None:
            raise failure
        return max(good, key=lambda kept: kept.opened.map.known, default=None)

    def _usable(self, repo: HubRepo, commit: str) -> list[KeptMap]:
        return [kept for kept in self.maps.of(repo, commit) if self._holds(kept)]

    def _holds(self, kept: KeptMap) -> bool:
        """Whether a map agrees with itself, and with what the Hub said as far as that is here. Else it is refuted."""
        found, envelope = kept.opened.map, kept.opened.envelope_cid
        said = self._shelf.commit(HubRepo(found.repo, found.repo_type), found.commit)
        known = said is not None and said.confirmed
        if envelope in self._held and (self._held[envelope] or not known):
            return True
        wrong = fault(found, said) if said is not None and known else own_fault(found)
        if wrong is not None:
            self.refute(kept, wrong.path, wrong.reason)
            return False
        self._held[envelope] = known
        while len(self._held) > _MAX_HELD:
            self._held.pop(next(iter(self._held)), None)
        return True


def _decoded(said: bytes, repo: HubRepo, revision: str, peer: str) -> MapAnswer:
    """Raises SourceUnavailable(bad_source) for what is no answer to what was asked."""
    try:
        answer = msgspec.json.decode(said, type=MapAnswer)
    except (msgspec.MsgspecError, RecursionError) as exc:
        raise SourceUnavailable(f"{peer} answers no map: {exc}", source=peer, code="bad_source") from exc
    commit = revision if is_commit(revision) else answer.commit
    if not is_commit(commit) or answer.commit != commit or (answer.repo, answer.kind) != (repo.id, repo.kind):
        raise SourceUnavailable(f"{peer} answers of something else", source=peer, code="bad_source")
    return answer


async def _best(asking: list[asyncio.Task[KeptMap | None]]) -> KeptMap | None:
    best: KeptMap | None = None
    try:
        for done in asyncio.as_completed(asking):
            found = await done
            if found is not None and (best is None or found.opened.map.known > best.opened.map.known):
                best = found
            if best is not None and best.opened.map.root is not None:
                break
    finally:
        for task in asking:
            task.cancel()
        if asking:
            await asyncio.wait(asking)
    return best
