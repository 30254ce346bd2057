"""Roots that are being fetched: what of them is here already, for nodes that want it too.

A fetch announces its plan when it knows it and withdraws it at its end, whatever that is; by then a committed model
answers instead. Only verified bytes count: leaves in the open partial files, and files that are blobs. Access is
decided by root, as for stored models: strangers see what a public fetch brings, never what an upgrade of a private
model does; and a leaf that only some other file holds is not part of the root before it was brought for it. Nor do
strangers learn that a private model has a file: one that was here before a public fetch of it began, and that no public
model holds, is not here for them until the fetch's own model is stored.

Everything blocks for its I/O only, and may be called from any thread.
"""

from __future__ import annotations

import threading
import time
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from ipfs_accelerate_node.content.cid import Cid
from ipfs_accelerate_node.content.plan import FilePlan, Leaf, ModelPlan
from ipfs_accelerate_node.store.index import Index
from ipfs_accelerate_node.store.models import Models
from ipfs_accelerate_node.store.partials import Partials

_LOOKED_AT = 64  # leaves at once
_ASKED_KEPT = 1024  # of the latest CIDs that others asked for

_NOT_PUBLIC = (  # files that no public model holds, also those of no model
    "SELECT cid FROM files WHERE NOT EXISTS"
    "(SELECT 1 FROM members JOIN models ON models.id=model WHERE file=files.id AND public)"
)


@dataclass(frozen=True, slots=True)
class HeldFile:
    """bitmap: leaf i of the file is bit ``i % 8`` (least significant first) of byte ``i // 8``."""

    path: str
    cid: Cid
    leaves: int
    bitmap: bytes


@dataclass(frozen=True, slots=True)
class Have:
    """What is here of a root. complete: every leaf, in a stored model."""

    root: Cid
    complete: bool
    files: tuple[HeldFile, ...]


@dataclass(eq=False, slots=True)
class Arriving:
    """One fetch whose plan is known. Keys are canonical. hidden: of a public one, files that were here before it, or on
    their way, for private models alone."""

    plan: ModelPlan
    nodes: Mapping[Cid, bytes]
    public: bool
    files: Mapping[Cid, FilePlan]
    hidden: frozenset[Cid] = frozenset()
    _places: dict[Cid, list[tuple[FilePlan, Leaf]]] | None = field(default=None, repr=False)

    def places(self, leaf: Cid) -> list[tuple[FilePlan, Leaf]]:
        """Where in its files a leaf belongs. The map is made when someone first asks for a leaf by itself."""
        if (places := self._places) is None:
            places = {}
            for file in self.files.values():
                for item in file.leaves:
                    places.setdefault(item.cid.canonical, []).append((file, item))
            self._places = places
        return places.get(leaf, [])

    def names(self, cid: Cid) -> bool:
        return cid in self.nodes or cid in self.files or bool(self.places(cid))


class Underway:
    """Owns the announcements; `Store` owns this."""

    def __init__(self, index: Index, models: Models, partials: Partials) -> None:
        self._index = index
        self._models = models
        self._partials = partials
        self._lock = threading.Lock()
        self._arriving: list[Arriving] = []
        self._asked_s: OrderedDict[Cid, float] = OrderedDict()  # when last, latest last

    def announce(self, plan: ModelPlan, nodes: Iterable[tuple[Cid, bytes]], *, public: bool) -> Arriving:
        """From now on others see what is here of the plan's root. Ends with `withdraw` of what this returns."""
        files = {file.cid.canonical: file for file in plan.files}
        hidden = self._hidden(files) if public else frozenset[Cid]()
        arriving = Arriving(plan, {cid.canonical: block for cid, block in nodes}, public, files, hidden)
        with self._lock:
            self._arriving = [*self._arriving, arriving]
        return arriving

    def withdraw(self, arriving: Arriving) -> None:
        """May be called again."""
        with self._lock:
            self._arriving = [other for other in self._arriving if other is not arriving]

    def names(self, cid: Cid, *, public_only: bool) -> bool:
        """Whether a fetch that this caller may see has this root, directory, file or leaf in its plan."""
        cid = cid.canonical
        self._note(cid)
        return any(arriving.names(cid) for arriving in self._seen(public_only))

    def file(self, cid: Cid, *, public_only: bool) -> FilePlan | None:
        """The plan of a file that is being brought, complete or not; what is `hidden` only for who sees all."""
        cid = cid.canonical
        seen = (a for a in self._seen(public_only) if cid in a.files)
        return next((a.files[cid] for a in seen if not (public_only and cid in a.hidden)), None)

    def block(self, cid: Cid, *, public_only: bool) -> bytes | None:
        """A node block, or a leaf that was brought, hashed before it is returned; None if it is not here."""
        cid = cid.canonical
        for arriving in self._seen(public_only):
            block = arriving.nodes.get(cid)
            if block is not None and cid.matches(block):
                return block
            for file, leaf in arriving.places(cid):
                if public_only and not self._is_shown(file.cid):
                    continue
                if (block := self._leaf(file, leaf)) is not None:
                    return block
        return None

    def lend(self, file: FilePlan, start: int, stop: int) -> int | None:
        """A descriptor from which these bytes of the file can be read, also after it became a blob; the caller closes
        it. None unless all of them are in its partial file and verified."""
        part = self._partials.opened(file.cid)
        return None if part is None else part.lend(start, stop - start)

    def reaches(self, file: FilePlan, offset: int) -> int:
        """Where the verified bytes of its partial file end that lie without a gap from offset; offset if there are
        none, or nobody brings it now."""
        part = self._partials.opened(file.cid)
        first = bisect_right(file.leaves, offset, key=lambda leaf: leaf.offset) - 1
        end = offset
        for start in range(max(0, first), len(file.leaves), _LOOKED_AT):
            leaves = file.leaves[start : start + _LOOKED_AT]
            here = [] if part is None else part.covered(leaves)
            count = here.index(False) if False in here else len(here)
            if count:
                end = leaves[count - 1].offset + leaves[count - 1].length
            if count < len(leaves):
                break
        return max(end, offset)

    def have(self, root: Cid, *, public_only: bool) -> Have | None:
        """What is here of a stored model, or of one that is being fetched; None if there is neither for this caller."""
        self._note(root.canonical)
        coming = (a.plan for a in self._seen(public_only) if a.plan.root.canonical == root.canonical)
        plan = next(coming, None)  # asked first: a fetch is withdrawn only after its model was committed
        model = self._models.shelf.model(root)
        if model is not None and public_only and not model.public:
            return None
        if plan is None and model is not None:
            plan = self._models.read_plan(model.root).plan
        if plan is None:
            return None
        files = tuple(self._held(file, public_only) for file in plan.files)
        whole = model is not None and all(_is_full(file) for file in files)
        return Have(root.canonical, whole, files)

    def asked_for(self, cids: Container[Cid], within_s: float) -> bool:
        """Whether others asked this node lately for a root, directory or file of those (canonical), here or not: then
        somebody fetches it too."""
        now = time.monotonic()
        with self._lock:
            for cid, asked_s in reversed(self._asked_s.items()):
                if now - asked_s > within_s:
                    return False
                if cid in cids:
                    return True
        return False

    # private

    def _note(self, cid: Cid) -> None:
        with self._lock:
            self._asked_s[cid] = time.monotonic()
            self._asked_s.move_to_end(cid)
            if len(self._asked_s) > _ASKED_KEPT:
                self._asked_s.popitem(last=False)

    def _seen(self, public_only: bool) -> Iterator[Arriving]:
        with self._lock:
            arriving = self._arriving
        for item in arriving:
            if not public_only or (item.public and not self._is_private(item.plan.root)):
                yield item

    def _is_private(self, root: Cid) -> bool:
        model = self._models.shelf.model(root)
        return model is not None and not model.public

    def _hidden(self, files: Mapping[Cid, FilePlan]) -> frozenset[Cid]:
        """Those of them that only private models have, or are getting."""
        found = (Cid.decode(row[0]) for row in self._index.all(_NOT_PUBLIC))
        private = {cid for cid in found if cid in files}
        with self._lock:
            coming = [a for a in self._arriving if not a.public]
        return frozenset(private.union(cid for a in coming for cid in a.files if cid in files))

    def _is_shown(self, cid: Cid) -> bool:
        """Whether strangers may know that the file, or a part of it, is here: a public model has it, or a public fetch
        brings it."""
        cid = cid.canonical
        row = self._index.file(cid)
        if row is not None and self._index.is_public(row.id):
            return True
        return any(cid in a.files and cid not in a.hidden for a in self._seen(public_only=True))

    def _leaf(self, file: FilePlan, leaf: Leaf) -> bytes | None:
        part = self._partials.opened(file.cid)
        if part is not None and (block := part.block(leaf.cid)) is not None:
            return block
        return self._models.blobs.leaf(leaf.cid) if self._index.file(file.cid) is not None else None

    def _held(self, file: FilePlan, public_only: bool) -> HeldFile:
        count = len(file.leaves)
        if public_only and not self._is_shown(file.cid):
            return HeldFile(file.path, file.cid, count, bytes((count + 7) // 8))
        part = self._partials.opened(file.cid)
        bits = 0
        if part is not None:
            here = part.covered(file.leaves)
            bits = int.from_bytes(_packed(here), "little")
        if self._index.file(file.cid) is not None:  # asked last: a part that was committed meanwhile is a blob now
            bits = (1 << count) - 1
        return HeldFile(file.path, file.cid, count, bits.to_bytes((count + 7) // 8, "little"))


def _packed(bits: Iterable[bool]) -> bytes:
    """Bit i of the sequence is bit ``i % 8`` of byte ``i // 8``."""
    packed = bytearray()
    for number, bit in enumerate(bits):
        if number % 8 == 0:
            packed.append(0)
        packed[-1] |= bit << (number % 8)
    return bytes(packed)


def _is_full(file: HeldFile) -> bool:
    return int.from_bytes(file.bitmap, "little") == (1 << file.leaves) - 1
