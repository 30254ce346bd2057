"""What a pin would fetch, from whom, and what it needs, without fetching: only directories and file nodes are read."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from ipfs_accelerate_node.content.cid import Cid
from ipfs_accelerate_node.content.outline import Outline
from ipfs_accelerate_node.content.plan import FilePlan, ModelPlan
from ipfs_accelerate_node.content.reference import HubRef, MockRef, Reference, RootRef
from ipfs_accelerate_node.content.selection import ALL_FILES, Choice, meant, selected
from ipfs_accelerate_node.errors import BadRequest, NotFound
from ipfs_accelerate_node.fetch.experience import told
from ipfs_accelerate_node.fetch.hub_gathering import same_bytes
from ipfs_accelerate_node.fetch.hub_here import stored_commit
from ipfs_accelerate_node.fetch.inquiry import Answer, Inquiry
from ipfs_accelerate_node.fetch.origins import Origins
from ipfs_accelerate_node.fetch.threads import in_thread
from ipfs_accelerate_node.sources.hub import HubSource
from ipfs_accelerate_node.sources.hub_snapshot import Snapshot
from ipfs_accelerate_node.sources.source import Held, Source
from ipfs_accelerate_node.store import Store, StoredModel

BLOCKS_AT_ONCE = 16
Resolve = Callable[[Cid, str, Sequence[Source]], Awaitable[Cid]]


@dataclass(frozen=True, slots=True)
class PlannedFile:
    """cid: None for a file of the Hub, which has none before it is here. here: stored whole. bytes_here: of it,
    durable; bytes_copyable: what other stored files, or another path of this model, hold of it."""

    path: str
    cid: Cid | None
    size: int
    here: bool
    bytes_here: int
    bytes_copyable: int


@dataclass(frozen=True, slots=True)
class Prospect:
    """One source. complete: whether it has all that is wanted, as it says; bytes: how much of it. Both are None where
    it cannot say, or was of no use: then code and reason tell why. doubt: what earlier fetches hold against
    it, or that it has to search the network for the root."""

    source: str
    kind: str
    ranges: bool
    complete: bool | None = None
    bytes: int | None = None
    code: str | None = None
    reason: str | None = None
    doubt: str | None = None


@dataclass(frozen=True, slots=True)
class Survey:
    """files: those that are wanted. bytes_to_fetch: neither here nor copyable. disk_needed_bytes: what will be written,
    with node blocks as far as they are known; room_bytes: free for it, evictable_bytes: can be freed for it. stored:
    the model is here, whole or in part. sources: () when nothing is to be fetched."""

    reference: str
    root: Cid | None
    only: tuple[str, ...]
    stored: bool
    files: tuple[PlannedFile, ...]
    bytes_total: int
    bytes_here: int
    bytes_copyable: int
    bytes_to_fetch: int
    disk_needed_bytes: int
    room_bytes: int
    evictable_bytes: int
    quota_bytes: int | None
    fits: bool
    sources: tuple[Prospect, ...]
    hub_commit: str | None = None
    exclude: tuple[str, ...] = ()


class Surveyor:
    """Makes surveys; keeps nothing. resolve: what a path means below a root. hub: the configured upstream."""

    def __init__(self, store: Store, origins: Origins, resolve: Resolve, hub: Callable[[], HubSource]) -> None:
        self._store = store
        self._origins = origins
        self._resolve = resolve
        self._hub = hub

    async def survey(
        self,
        reference: Reference,
        text: str,
        stored: StoredModel | None,
        *,
        choice: Choice = ALL_FILES,
        named: str | None = None,
    ) -> Survey:
        """stored: what is here under that reference. named: ask only that source.

        Raises NotFound (also code no_match), BadRequest, NoSource or IntegrityError if nobody could tell what the root
        is made of, BadContent, UnsafeContent, and what the Hub raises.
        """
        self._origins.check(named)
        if isinstance(reference, MockRef):
            raise BadRequest("a mock has no bytes to fetch", code="mock_not_pinnable")
        if stored is None and isinstance(reference, HubRef):
            return await self._of_hub(text, reference, choice)
        async with AsyncExitStack() as stack:
            sources = self._origins.open(stack, named)
            if stored is not None:
                root = stored.root
            elif isinstance(reference, RootRef):
                path = reference.path
                root = await self._resolve(reference.cid, path, sources) if path else reference.cid.canonical
            else:
                raise NotFound(
                    f"{text} is neither a CID, a Hub repository nor a name known here", code="model_not_found"
                )
            about = _About(text, root, choice, stored is not None)
            inquiry = Inquiry(root, sources, self._origins.discovery(named), stack)
            return await self._of_root(about, root, inquiry)

    async def _of_root(self, about: _About, root: Cid, inquiry: Inquiry) -> Survey:
        """What is here is looked at first: nobody is asked when all of it is."""
        if about.stored and (plan := await in_thread(self._store.plan, root)) is not None:
            files = selected(plan, about.choice)
            planned = await in_thread(self._files, files)
            if not all(file.here for file in planned):
                await inquiry.run()
            return await in_thread(self._sum, about, planned, files, inquiry.answers, 0)
        asking = asyncio.create_task(inquiry.run(), name=f"ask about {root}")
        try:
            plan, node_bytes = await self._outline(root, inquiry)
            files = selected(plan, about.choice)
            planned = await in_thread(self._files, files)
            await asking
        finally:
            asking.cancel()
            await asyncio.wait([asking])
        return await in_thread(self._sum, about, planned, files, inquiry.answers, node_bytes)

    async def _outline(self, root: Cid, inquiry: Inquiry) -> tuple[ModelPlan, int]:
        """The files of a root that is not here, and the bytes of the node blocks that came from elsewhere."""
        outline = Outline(root)
        fetched_bytes = 0
        while wanted := outline.wanted(BLOCKS_AT_ONCE):
            local = await in_thread(self._local, wanted)
            absent = [cid for cid in wanted if cid not in local]
            brought = dict(zip(absent, await inquiry.blocks(absent), strict=True))
            fetched_bytes += sum(map(len, brought.values()))
            for cid in wanted:
                outline.give(cid, brought.get(cid) or local[cid])
        return outline.plan(), fetched_bytes

    def _local(self, cids: Iterable[Cid]) -> dict[Cid, bytes]:
        """Those of the blocks that are here."""
        found = ((cid, self._store.block(cid) or self._store.partial_block(cid)) for cid in cids)
        return {cid: block for cid, block in found if block is not None}

    def _files(self, files: Sequence[FilePlan]) -> tuple[PlannedFile, ...]:
        """What is here of each. A file at a second path costs nothing more, nor does a leaf at a second place."""
        seen: set[Cid] = set()
        wanted: set[Cid] = set()
        planned = []
        for file in files:
            cid = file.cid.canonical
            here = cid.inline is not None or self._store.file(cid) is not None
            if here:
                here_bytes, copyable = file.size, 0
            elif cid in seen:
                here_bytes, copyable = 0, file.size
            else:
                here_bytes, copyable = self._parts_here(file, wanted)
            seen.add(cid)
            planned.append(PlannedFile(file.path, cid, file.size, here, here_bytes, copyable))
        return tuple(planned)

    def _parts_here(self, file: FilePlan, wanted: set[Cid]) -> tuple[int, int]:
        """Durable bytes of an earlier try, and further ones that other stored files hold, or that are fetched for
        another place. wanted: leaves that are to be fetched, grows."""
        brought = self._store.brought(file.cid, file.size)
        copyable = 0
        for leaf in file.leaves:
            if brought.covers(leaf.offset, leaf.offset + leaf.length):
                continue
            if leaf.cid in wanted or self._store.leaf_at(leaf.cid) is not None:
                copyable += leaf.length
            wanted.add(leaf.cid)
        return brought.total(), min(copyable, file.size - brought.total())

    async def _of_hub(self, text: str, reference: HubRef, choice: Choice) -> Survey:
        async with self._hub() as hub:
            snapshot = await hub.snapshot(reference.named, reference.revision)
            paths = meant((file.path for file in snapshot.files), choice, f"{reference.named}@{snapshot.commit}")
            known = await in_thread(stored_commit, self._store, snapshot)
            about = _About(text, None if known is None else known.root, choice, known is not None, snapshot.commit)
            if known is not None and known.complete:
                plan = await in_thread(self._store.plan, known.root)
                files = () if plan is None else selected(plan, paths)
                return await in_thread(self._sum, about, await in_thread(self._files, files), files, (), 0)
            planned = await in_thread(self._of_oids, snapshot, paths)
            prospect = Prospect(hub.name, hub.kind, True, True, sum(file.size for file in planned))
            lacks = any(not file.here for file in planned)
            return replace(await in_thread(self._sum, about, planned, (), (), 0), sources=(prospect,) if lacks else ())

    def _of_oids(self, snapshot: Snapshot, paths: frozenset[str]) -> tuple[PlannedFile, ...]:
        """Files of the Hub: what is stored with the same bytes, and what an earlier try left of them."""
        planned = []
        for file in snapshot.files:
            if file.path not in paths:
                continue
            stored = same_bytes(self._store, snapshot, file)
            left = file.size if stored is not None else self._store.unnamed.brought(file.oid, file.size)
            cid = None if stored is None else stored.cid
            planned.append(PlannedFile(file.path, cid, file.size, stored is not None, left, 0))
        return tuple(planned)

    def _sum(
        self,
        about: _About,
        planned: Sequence[PlannedFile],
        files: Sequence[FilePlan],
        answers: Iterable[Answer],
        node_bytes: int,
    ) -> Survey:
        total, here = sum(f.size for f in planned), sum(f.bytes_here for f in planned)
        copyable = sum(f.bytes_copyable for f in planned)
        absent: dict[Cid | str, int] = {}
        for file in planned:
            if not file.here:  # a file at two paths is written once
                absent.setdefault(file.cid or file.path, file.size - file.bytes_here)
        needed = sum(absent.values()) + node_bytes
        room, evictable = self._store.room_bytes(), self._store.evictable_bytes()
        return Survey(
            reference=about.text,
            root=about.root,
            only=about.choice.include,
            exclude=about.choice.exclude,
            stored=about.stored,
            files=tuple(planned),
            bytes_total=total,
            bytes_here=here,
            bytes_copyable=copyable,
            bytes_to_fetch=total - here - copyable,
            disk_needed_bytes=needed,
            room_bytes=room,
            evictable_bytes=evictable,
            quota_bytes=self._store.quota_bytes,
            fits=needed <= room + evictable,
            sources=tuple(self._prospect(answer, files) for answer in answers),
            hub_commit=about.hub_commit,
        )

    def _prospect(self, answer: Answer, files: Sequence[FilePlan]) -> Prospect:
        doubt = told(self._store, answer.source.name)
        if doubt is None and answer.at_hand is False:
            doubt = "not at hand there: it has to search for it"
        return replace(_says(answer, files), doubt=doubt)


@dataclass(frozen=True, slots=True)
class _About:
    text: str
    root: Cid | None
    choice: Choice
    stored: bool
    hub_commit: str | None = None


def _says(answer: Answer, files: Sequence[FilePlan]) -> Prospect:
    source, held, error = answer.source, answer.held, answer.error
    if error is not None:
        return Prospect(source.name, source.kind, source.ranges, code=error.code, reason=str(error))
    if held is None:
        return Prospect(source.name, source.kind, source.ranges)
    size = sum(file.size for file in files)
    count = size if held.complete else sum(_held_bytes(held, file) for file in files)
    return Prospect(source.name, source.kind, source.ranges, count == size, count)


def _held_bytes(held: Held, file: FilePlan) -> int:
    """By leaf where their number is ours, else by their share: a file whose leaves were not opened has more of them."""
    bitmap = held.files.get(file.cid.canonical, b"")
    if (len(file.leaves) + 7) // 8 == len(bitmap):
        return sum(leaf.length for i, leaf in enumerate(file.leaves) if held.has(file.cid, i))
    return (
        0 if not bitmap else file.size * min(8 * len(bitmap), int.from_bytes(bitmap).bit_count()) // (8 * len(bitmap))
    )


def _size_of(path: Path) -> int:
    try:
        return path.lstat().st_size
    except OSError:
        return 0
