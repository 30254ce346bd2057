"""`share`: the user's word that strangers may have a model which the Hub keeps for some, or of which it was not asked.

What the licence allows is the user's to know: it is named, with a warning. Undone, a model is given to nobody any more;
copies that were given out are out.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from datetime import UTC, datetime

from ipfs_accelerate_node.errors import NodeError
from ipfs_accelerate_node.fetch.hub_shelf import HubShelf
from ipfs_accelerate_node.fetch.seeder import Seeder
from ipfs_accelerate_node.fetch.threads import in_thread
from ipfs_accelerate_node.sources.hub_names import HubRepo
from ipfs_accelerate_node.store import Store, StoredModel

log = logging.getLogger(__name__)

RESTRICTED = (
    "{repo} is private or gated at the Hub, or was never confirmed to be public: its licence ({licence}) may forbid"
    " passing it on. Whoever knows its CID can have it from this node from now on; what was given away cannot be taken"
    " back."
)
OTHERWISE = "Whoever knows its CID can have it from this node from now on; what was given away cannot be taken back."
UNDONE = "This node gives it to nobody from now on. Copies that others have made are theirs."


@dataclass(frozen=True, slots=True)
class Shared:
    """public: strangers are served now. licence: as the Hub names it, None if that is not known. warning: for the user
    to read. note: why Kubo does not serve it, or could not be told."""

    root: str
    repo: str | None
    public: bool
    licence: str | None
    warning: str
    seeded: bool = False
    announced: bool = False
    note: str | None = None


class Sharing:
    """announce: whether what is shared is also told to the network."""

    def __init__(self, store: Store, shelf: HubShelf, seeder: Seeder, *, announce: bool) -> None:
        self._store = store
        self._shelf = shelf
        self._seeder = seeder
        self._announce = announce

    async def share(self, model: StoredModel) -> Shared:
        """Durable before anybody is given a byte. Raises NotFound, StorageError."""
        now = datetime.now(UTC).isoformat(timespec="seconds")
        shared = await in_thread(self._store.share, model.root, now)
        await in_thread(self._store.set_announce, model.root, self._announce)
        log.info("share.done root=%s repo=%s", model.root, shared.provenance.hub_repo)
        seeded = await self._seeder.seed(model.root, announce=self._announce, brought=False)
        restricted, licence = await in_thread(self._said, shared)
        text = RESTRICTED if restricted else OTHERWISE
        warning = text.format(repo=shared.provenance.hub_repo, licence=licence or "not known here")
        return Shared(
            str(model.root),
            shared.provenance.hub_repo,
            True,
            licence,
            warning,
            seeded.seeded,
            seeded.announced,
            seeded.note,
        )

    async def undo(self, model: StoredModel) -> Shared:
        """Private before Kubo is told, which lets go of what no other public model has. Raises as `share`."""
        private = await in_thread(self._store.share, model.root, None)
        log.info("share.undone root=%s repo=%s", model.root, private.provenance.hub_repo)
        note: str | None = None
        try:
            await self._seeder.withdraw(model.root)
        except NodeError as exc:
            note = f"Kubo could not be told ({exc}): it is taken back there as soon as Kubo is ready"
        _, licence = await in_thread(self._said, private)
        return Shared(str(model.root), private.provenance.hub_repo, False, licence, UNDONE, note=note)

    async def landed(self, model: StoredModel) -> None:
        """A model that came without a pin is given on like one that was pinned, if it is public."""
        if not model.public:
            return
        try:
            await in_thread(self._store.set_announce, model.root, self._announce)
        except NodeError as exc:  # removed meanwhile
            log.info("share.not_seeded root=%s reason=%s", model.root, exc)
            return
        await self._seeder.seed(model.root, announce=self._announce, brought=False)

    def _said(self, model: StoredModel) -> tuple[bool, str | None]:
        """Whether the Hub keeps it for some, as far as is known here, and the licence that it names."""
        came = model.provenance
        repo, commit = came.hub_repo, came.hub_commit or came.claimed_commit
        if repo is None or commit is None:
            return False, None
        kept = self._shelf.commit(HubRepo.named(repo), commit)
        if kept is None:
            return True, None
        tags = kept.said.get("tags")
        named = [tag for tag in tags if isinstance(tag, str) and tag.startswith("license:")] if tags else []
        return kept.restricted or not kept.confirmed, named[0].removeprefix("license:") if named else None
