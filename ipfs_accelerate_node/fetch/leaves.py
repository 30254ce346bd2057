"""Second stage: the leaves that the plan lists and the store lacks, each fetched once however often it occurs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from ipfs_accelerate_node.content.cid import Cid
from ipfs_accelerate_node.content.plan import FilePlan, Leaf, ModelPlan
from ipfs_accelerate_node.errors import BadContent, SourceUnavailable
from ipfs_accelerate_node.fetch.landing import CHECKED_AT_ONCE, COPY_AT_ONCE, Landing
from ipfs_accelerate_node.fetch.stage import Came
from ipfs_accelerate_node.fetch.threads import in_thread
from ipfs_accelerate_node.sources.source import Source


@dataclass(slots=True)
class _Open:
    """A file with leaves still to come. left: how many."""

    file: FilePlan
    left: int


@dataclass(frozen=True, slots=True)
class _Target:
    """One place of a leaf."""

    to: _Open
    leaf: Leaf


class Leaves:
    """Owns what is still missing of every file; a file is made a blob as soon as nothing is."""

    def __init__(self, landing: Landing, came: Came) -> None:
        self._landing = landing
        self._came = came
        self._wanted: dict[Cid, list[_Target]] = {}
        self._returned: dict[Cid, list[_Target]] = {}  # wanted too, and first: the file is to grow from its start
        self._under_way: dict[Cid, list[_Target]] = {}

    async def open(self, plan: ModelPlan) -> tuple[int, int]:
        """Finds out what is missing, copies what other stored files hold, makes blobs of what is complete.

        Every file's room is claimed here, before its first leaf is fetched. Returns the bytes that are there (of all
        paths), and those of them in files that the store had before. Raises QuotaExceeded, StorageError.
        """
        here = before = 0
        places = Counter(file.cid for file in plan.files)
        for file in {file.cid: file for file in plan.files}.values():
            twins_bytes = file.size * (places[file.cid] - 1)  # further paths are hard links
            if await in_thread(self._landing.stored, file.cid):
                here += file.size + twins_bytes
                before += twins_bytes + (0 if file.cid in self._landing.finished else file.size)
                continue
            missing = await self._copied(file, await self._missing(file))
            here += file.size + twins_bytes - sum(leaf.length for leaf in missing)
            before += twins_bytes
            if not missing:
                await in_thread(self._landing.finish, file)
                continue
            to = _Open(file, len(missing))
            for leaf in missing:
                self._wanted.setdefault(leaf.cid, []).append(_Target(to, leaf))
        return here, before

    async def _missing(self, file: FilePlan) -> list[Leaf]:
        """What an earlier try did not bring; what it left unrecorded is hashed now, some leaves at a time."""
        left: list[Leaf] = []
        for start in range(0, max(1, len(file.leaves)), CHECKED_AT_ONCE):
            left += await in_thread(self._landing.missing, file, file.leaves[start : start + CHECKED_AT_ONCE])
        return left

    async def _copied(self, file: FilePlan, missing: Sequence[Leaf]) -> list[Leaf]:
        """What is missing after copying from the store's other files."""
        left: list[Leaf] = []
        for start in range(0, len(missing), COPY_AT_ONCE):
            some = missing[start : start + COPY_AT_ONCE]
            copied = await in_thread(self._landing.copy, file, some)
            self._came(sum(leaf.length for leaf in copied), False)
            offsets = {leaf.offset for leaf in copied}
            left += [leaf for leaf in some if leaf.offset not in offsets]
        return left

    @property
    def complete(self) -> bool:
        return not (self._wanted or self._returned or self._under_way)

    def take(self, skip: Collection[Cid]) -> Cid | None:
        for wanted in (self._returned, self._wanted):
            cid = next((cid for cid in wanted if cid not in skip), None)
            if cid is not None:
                self._under_way[cid] = wanted.pop(cid)
                return cid
        return None

    def put_back(self, cid: Cid) -> None:
        if (targets := self._under_way.pop(cid, None)) is not None:
            self._returned[cid] = targets

    async def local(self, cid: Cid) -> bytes | None:
        """None: what the store has was copied when the stage opened."""
        return None

    async def land(self, cid: Cid, block: bytes, source: Source | None) -> None:
        targets = self._under_way[cid]
        new_bytes = await in_thread(self._take_in, targets, block, source)
        del self._under_way[cid]
        for target, count in zip(targets, new_bytes, strict=True):
            self._came(count, source is not None and target is targets[0])
            target.to.left -= 1
        for file in {t.to.file.cid: t.to.file for t in targets if not t.to.left}.values():
            await in_thread(self._landing.finish, file)

    def _take_in(self, targets: Sequence[_Target], block: bytes, source: Source | None) -> list[int]:
        """Checks and writes in one go: a hop between threads for each costs more than the hash of a small leaf."""
        _check(targets[0].leaf, block, source)
        view = memoryview(block)
        return [
            self._landing.write(
                t.to.file.cid, t.to.file.size, t.leaf, view[len(t.leaf.prefix) : len(view) - len(t.leaf.suffix)]
            )
            for t in targets
        ]


def _check(leaf: Leaf, block: bytes, source: Source | None) -> None:
    """A block that is shorter than its leaf was cut, whatever its sender called its length; any other that does not
    match is wrong. One that matches and is shorter shows that the DAG lies: no source can mend that."""
    origin = "the store" if source is None else source.name
    expected_bytes = len(leaf.prefix) + leaf.length + len(leaf.suffix)
    if len(block) >= expected_bytes:
        leaf.cid.check(block, origin)
    elif leaf.cid.matches(block):
        raise BadContent(
            f"block {leaf.cid} holds {len(block)} bytes, not {expected_bytes} as its parent says", cid=str(leaf.cid)
        )
    else:
        raise SourceUnavailable(
            f"{origin} for {leaf.cid}: {len(block)} bytes of {expected_bytes}",
            source=origin,
            cid=leaf.cid,
            code="truncated",
        )
