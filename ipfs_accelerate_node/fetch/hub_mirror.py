"""The Hub as this node knows it: from the shelf where that will do, from the Hub with the caller's own token where not.

A commit never changes, so what is kept of a public one is the answer. What a branch means is asked again after
`FRESH_S`; while the Hub cannot be reached, what it meant last is the answer, at once. Of a private or gated repository
nothing is told or given without the Hub's leave for this very caller. Tokens live as long as the request that brought
them.
"""

from __future__ import annotations

import asyncio
import logging
import math
from dataclasses import replace

from ipfs_accelerate_node.config import Config
from ipfs_accelerate_node.errors import (
    AuthRequired,
    IntegrityError,
    InvalidConfig,
    NodeError,
    NotFound,
    SourceUnavailable,
)
from ipfs_accelerate_node.fetch.flights import Flights
from ipfs_accelerate_node.fetch.hub_claims import Claims
from ipfs_accelerate_node.fetch.hub_files import HubFiles
from ipfs_accelerate_node.fetch.hub_nearby import Nearby
from ipfs_accelerate_node.fetch.hub_nodes import HubNodes
from ipfs_accelerate_node.fetch.hub_shelf import HubShelf, KeptCommit
from ipfs_accelerate_node.fetch.pins import Pins
from ipfs_accelerate_node.fetch.seeder import Seeder
from ipfs_accelerate_node.fetch.threads import in_thread
from ipfs_accelerate_node.sources.hub import HubSource
from ipfs_accelerate_node.sources.hub_answers import INVALID_TOKEN, Commit, HubFile, TreeEntry
from ipfs_accelerate_node.sources.hub_names import HubRepo, check_repo, checked_revision, is_hidden
from ipfs_accelerate_node.store import Store, StoredFile, StoredModel

log = logging.getLogger(__name__)

FRESH_S = 60.0  # what a branch means is taken from the shelf for so long
PATIENCE_S = 2.0  # for the Hub, where the shelf has an answer that may be old
OUTAGE_S = 30.0  # a Hub that did not answer is not waited for again
LINGER_S = 1.5  # a file is fetched on for so long after its last client left: the real ones come back after a second
WRONG_S = 20.0  # a file that came wrong twice is not fetched again so soon, whoever asks
MAX_WRONG = 1000


class HubMirror:
    """Owns what is under way on behalf of clients. Its tasks live in the group that is passed in."""

    def __init__(
        self,
        config: Config,
        store: Store,
        shelf: HubShelf,
        pins: Pins,
        seeder: Seeder,
        group: asyncio.TaskGroup,
        claims: Claims,
        nodes: HubNodes,
    ) -> None:
        """pins: whose fetches and origins are shared. nodes: of commits whose files were here."""
        self.shelf = shelf
        self._store = store
        self._seeder = seeder
        self._group = group
        self._config = config
        self._claims = claims
        self._nodes = nodes
        self._pins = pins
        self.hop = pins.hop
        self.receiver = pins.receiver
        self.nearby = pins.nearby = Nearby(store, pins.fetcher, claims, pins.open_nearby, pins.discover)
        self._files = HubFiles(store, shelf, self.receiver, self._source, self.nearby, self._is_reachable, self._landed)
        self._answers: Flights[tuple[HubRepo, str, str | None], KeptCommit] = Flights(group)
        self._transfers: Flights[str, StoredFile] = Flights(group, linger_s=LINGER_S)
        self._wrong: dict[str, tuple[float, IntegrityError]] = {}
        self._down_until = 0.0

    @property
    def joins(self) -> int:
        """Callers who waited for an answer or a file that was being fetched for another one."""
        return self._answers.joined + self._transfers.joined

    def close(self) -> None:
        self._answers.close()
        self._transfers.close()

    async def commit(
        self, repo: HubRepo, revision: str, token: str | None, *, files_are_checked: bool = False
    ) -> KeptCommit:
        """What the Hub says of that commit. files_are_checked: the caller will ask `admit` for each file, so that a
        commit of a restricted repository need not be asked for again.

        Raises BadRequest(invalid_reference), UnsafeContent, NotFound, AuthRequired, SourceUnavailable.
        """
        check_repo(repo.id)
        known = await in_thread(self._known, repo, checked_revision(revision))
        if known is None:
            return await self._first(repo, revision, token)
        kept, age_s = known
        if kept.restricted:
            asks = age_s > FRESH_S or not files_are_checked
            return await self._ask(repo, revision, token) if asks else kept
        if age_s <= FRESH_S or not self._is_reachable():
            return kept
        try:
            async with asyncio.timeout(PATIENCE_S):
                return await self._ask(repo, revision, token, hurried=True)
        except TimeoutError:
            self._note_outage(None)
        except AuthRequired:
            raise
        except SourceUnavailable as exc:
            log.info("hub.unreachable source=%s code=%s repo=%s: kept answer", exc.source, exc.code, repo)
        return kept

    async def admit(self, kept: KeptCommit, path: str, token: str | None) -> None:
        """Asks the Hub whether this caller may read a file of a private or gated repository, raising what it says."""
        entry = kept.file(path)
        file = entry.file if entry is not None else HubFile(path, 0, "")
        async with self._source(token) as hub:
            await hub.admits(kept.snapshot, file)

    async def file(self, kept: KeptCommit, entry: TreeEntry, token: str | None) -> StoredFile:
        """The whole verified file: at once if it is here, else when it is. One transfer for all who ask meanwhile.

        Raises NotFound, AuthRequired, SourceUnavailable, IntegrityError, QuotaExceeded, StorageError.
        """
        found = await in_thread(self._files.here, kept, entry)
        key = entry.file.oid
        while found is None:
            if (verdict := self._wrong.get(key)) is not None and asyncio.get_running_loop().time() < verdict[0]:
                raise verdict[1]
            leads = self._transfers.leads(key)
            try:
                found = await self._transfers.join(key, lambda: self._bring(kept, entry, token))
            except IntegrityError as exc:
                self._wrong[key] = asyncio.get_running_loop().time() + WRONG_S, exc
                while len(self._wrong) > MAX_WRONG:
                    del self._wrong[next(iter(self._wrong))]
                raise
            except (AuthRequired, NotFound):
                if leads:  # else it was another caller's token that would not do
                    raise
        return found

    async def offered(self, kept: KeptCommit) -> KeptCommit:
        """What a listing may name. Hidden files are of no root, so they come from the Hub only: while it cannot be
        asked, those that are not here are left out, else a client that takes whole commits could not finish one."""
        if self._is_reachable():
            return kept
        hidden = [entry for entry in kept.entries if not entry.folder and is_hidden(entry.path)]
        lacking = {entry.path for entry in hidden if await in_thread(self._files.here, kept, entry) is None}
        return replace(kept, entries=tuple(entry for entry in kept.entries if entry.path not in lacking))

    async def refs(self, repo: HubRepo, token: str | None) -> dict[str, str]:
        """Full name to commit; of a public repository that is known, from the shelf when the Hub cannot be asked."""
        check_repo(repo.id)
        known = await in_thread(self.shelf.refs, repo)
        try:
            async with self._source(token) as hub:
                return await hub.refs(repo)
        except AuthRequired:
            raise
        except SourceUnavailable:
            if known.restricted or not known.refs:
                raise
            return {_full(name): ref.commit for name, ref in known.refs.items()}

    async def identity(self, token: str) -> dict[str, object]:
        """Whose token it is, as the Hub says. Raises AuthRequired, SourceUnavailable."""
        async with self._source(token) as hub:
            return await hub.identity()

    # private

    async def _bring(self, kept: KeptCommit, entry: TreeEntry, token: str | None) -> StoredFile:
        await in_thread(self._nodes.lay_out, kept)
        return await self._files.bring(kept, entry, token)

    def _landed(self, model: StoredModel) -> None:
        self._group.create_task(self._seed(model), name=f"seed {model.root}")

    async def _seed(self, model: StoredModel) -> None:
        """A model that became complete file by file is given on like one that was pinned."""
        announce = self._config.announce_pins and model.public
        try:
            await in_thread(self._store.set_announce, model.root, announce)
        except NodeError as exc:  # removed meanwhile
            log.info("hub.not_seeded root=%s reason=%s", model.root, exc)
            return
        await self._seeder.seed(model.root, announce=announce, brought=False)

    def _known(self, repo: HubRepo, revision: str) -> tuple[KeptCommit, float] | None:
        ref = self.shelf.ref(repo, revision)
        if ref is None:
            return None
        kept = self.shelf.commit(repo, ref[0])
        if kept is None:
            return None
        return kept, math.inf if kept.claimed else ref[1]  # the Hub is asked as soon as it can be

    async def _first(self, repo: HubRepo, revision: str, token: str | None) -> KeptCommit:
        """The Hub's answer; a peer's claim where the Hub cannot be asked."""
        try:
            return await self._ask(repo, revision, token)
        except AuthRequired:
            raise
        except SourceUnavailable:
            claim = await self._claims.ask(repo, revision, search=True)
            if claim is None:
                raise
            log.info("hub.claimed repo=%s commit=%s source=%s", repo, claim.commit, claim.source)
            return await in_thread(self.shelf.keep, claim, revision)

    async def _ask(self, repo: HubRepo, revision: str, token: str | None, *, hurried: bool = False) -> KeptCommit:
        key = (repo, revision, token)
        return await self._answers.join(key, lambda: self._answer(repo, revision, token, hurried))

    async def _answer(self, repo: HubRepo, revision: str, token: str | None, hurried: bool) -> KeptCommit:
        try:
            async with self._source(token, hurried=hurried) as hub:
                about = await hub.about(repo, revision)
                kept = await in_thread(self.shelf.commit, repo, about.sha)
                if kept is not None and not (kept.claimed or kept.restricted or about.restricted):
                    await in_thread(self.shelf.note_ref, repo, revision, about, hub.name)
                    return kept
                answer = Commit(about, await hub.tree(repo, about.sha))
                return await in_thread(self.shelf.keep, KeptCommit.of(repo, answer, hub.name), revision)
        except NodeError as exc:
            if isinstance(exc, SourceUnavailable) and not isinstance(exc, AuthRequired):
                self._note_outage(exc.retry_after_s)
            raise

    def _is_reachable(self) -> bool:
        return not self._config.hf_offline and asyncio.get_running_loop().time() >= self._down_until

    def _note_outage(self, wait_s: float | None) -> None:
        self._down_until = asyncio.get_running_loop().time() + max(OUTAGE_S, wait_s or 0.0)

    def _source(self, token: str | None, *, hurried: bool = False) -> HubSource:
        try:
            return self._pins.hub_for(token, **({"backoff_s": 0.0} if hurried else {}))
        except InvalidConfig as exc:
            if exc.detail.get("param") != "hf_token":
                raise
            raise AuthRequired(
                "what came as a token is none", source=self._config.hf_upstream, hub_message=INVALID_TOKEN
            ) from exc


def _full(name: str) -> str:
    return name if name.startswith("refs/") else f"refs/heads/{name}"
