"""`import-hf-cache`: what lies in a user's Hugging Face cache becomes models of the store, without a download.

Files are copied, sharing disk blocks where the file system can, and never linked: the client leaves its blobs writable,
and making them read-only would change what is not ours. Each is hashed on the way and must have the oid that the
commit's tree gives it, which must be its blob's name. The tree is the Hub's own answer where the Hub can be asked, else
the one that was kept here, else the one that the client noted, which is then marked as its claim. What of a commit is
there is kept (`taking`); it is private unless the Hub says that everybody may have it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from ipfs_accelerate_node.content.reference import DEFAULT_REVISION, HubRef, parse_reference
from ipfs_accelerate_node.errors import AuthRequired, BadRequest, NodeError, NotFound, SourceUnavailable
from ipfs_accelerate_node.fetch.hf_cache.found import Found, Unreadable, look
from ipfs_accelerate_node.fetch.hf_cache.taking import Imported, Refusal, Taking, unread
from ipfs_accelerate_node.fetch.hub_shelf import CACHE, HubShelf, KeptCommit
from ipfs_accelerate_node.fetch.threads import in_thread
from ipfs_accelerate_node.sources.hub import HubSource
from ipfs_accelerate_node.store import Store, StoredModel

log = logging.getLogger(__name__)


class Importing:
    """hub: the configured upstream with the user's token, to be entered. landed: told of each model, on the loop."""

    def __init__(
        self,
        store: Store,
        shelf: HubShelf,
        hub: Callable[[], HubSource],
        landed: Callable[[StoredModel], None],
    ) -> None:
        self._taking = Taking(store, shelf)
        self._shelf = shelf
        self._hub = hub
        self._landed = landed

    async def run(self, cache_dir: Path, ref: str | None = None) -> list[Imported]:
        """ref: a repository of the Hub, all of whose snapshots are meant, or one of them (``@revision``); None is all.

        Raises NotFound (no such folder, or nothing of ref in it), BadRequest, Forbidden, UnsafeContent, StorageError.
        """
        wanted = _wanted(ref)
        found = [item for item in await in_thread(_listed, cache_dir) if _is_wanted(item, wanted)]
        if wanted is not None and not found:
            raise NotFound(f"there is nothing of {ref} in {cache_dir}", code="model_not_found")
        done: list[Imported] = []
        async with self._hub() as hub:
            asker = _Asker(hub)
            for item in found:
                done.append(await self._one(cache_dir, item, asker))
        return done

    async def _one(self, cache_dir: Path, item: Found | Unreadable, asker: _Asker) -> Imported:
        if isinstance(item, Unreadable):
            return Imported(item.folder, "", "refused", refused=(Refusal("", item.code, item.reason),))
        kept = await self._known(item, asker)
        if kept is None:
            reason = "which files the commit has is not known: the cache does not say, and the Hub cannot be asked"
            return unread(item, reason, "no_tree", "incomplete")
        try:
            model, done = await asyncio.to_thread(self._taking.take, cache_dir, item, kept)
        except NodeError as exc:
            return unread(item, str(exc), exc.code, "refused")
        if model is not None:
            self._landed(model)
        log.info("hf_cache.import repo=%s commit=%s outcome=%s", item.repo, item.commit, done.outcome)
        return done

    async def _known(self, item: Found, asker: _Asker) -> KeptCommit | None:
        """The commit's tree; restricted unless the Hub said otherwise, now or when it was kept."""
        answer = await asker.ask(item)
        if answer is not None:
            return answer
        kept = await in_thread(self._shelf.commit, item.repo, item.commit)
        if kept is not None and not kept.claimed:
            return replace(kept, restricted=True) if asker.denied else kept
        if item.tree is None:
            return None
        return KeptCommit(item.repo.kind, item.repo.id, item.commit, True, {}, item.tree, CACHE)


class _Asker:
    """Asks the Hub about one commit after the other, until it does not answer. denied: it did not let this user have
    the one that was asked for last."""

    def __init__(self, hub: HubSource) -> None:
        self._hub = hub
        self._reachable = True
        self.denied = False

    async def ask(self, item: Found) -> KeptCommit | None:
        self.denied = False
        if not self._reachable:
            return None
        try:
            return KeptCommit.of(item.repo, await self._hub.commit(item.repo, item.commit), self._hub.name)
        except (AuthRequired, NotFound) as exc:
            self.denied = True
            log.info("hf_cache.denied repo=%s code=%s", item.repo, exc.code)
        except SourceUnavailable as exc:
            self._reachable = False
            log.info("hf_cache.hub_unreachable code=%s", exc.code)
        return None


def _listed(cache_dir: Path) -> list[Found | Unreadable]:
    return list(look(cache_dir))


def _wanted(ref: str | None) -> HubRef | None:
    if ref is None:
        return None
    reference = parse_reference(ref)
    if not isinstance(reference, HubRef):
        raise BadRequest(f"{ref} is no repository of the Hub: hf:org/name", code="invalid_reference", param="ref")
    return reference


def _is_wanted(item: Found | Unreadable, wanted: HubRef | None) -> bool:
    if wanted is None or isinstance(item, Unreadable):
        return wanted is None
    if str(item.repo) != wanted.named:
        return False
    return wanted.revision in (DEFAULT_REVISION, item.commit, *item.refs)
