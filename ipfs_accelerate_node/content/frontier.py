"""Where a walk stands: the places of a DAG whose blocks are still to come, in depth-first order."""

from __future__ import annotations

from collections.abc import Iterator

from ipfs_accelerate_node.content.cid import Cid
from ipfs_accelerate_node.content.hamt import Position
from ipfs_accelerate_node.content.plan import Leaf


class OpenFile:
    """A file whose leaves are being found. path: of its first place."""

    __slots__ = ("cid", "leaves", "path", "size")

    def __init__(self, path: str, cid: Cid, size: int) -> None:
        self.path, self.cid, self.size = path, cid, size
        self.leaves: list[Leaf] = []

    def sorted_leaves(self) -> tuple[Leaf, ...]:
        return tuple(sorted(self.leaves, key=_start))


def _start(leaf: Leaf) -> tuple[int, int]:
    return leaf.offset, leaf.length  # an empty leaf before the one at the same offset


class Folder:
    """A directory that is being read. names: entries found. shards: of it, still to come."""

    __slots__ = ("names", "path", "shards")

    def __init__(self, path: str) -> None:
        self.path = path
        self.names: list[str] = []
        self.shards = 1

    def below(self, name: str) -> str:
        return f"{self.path}/{name}" if self.path else name


class _Linked:
    """A link that was followed: one occurrence of a block. depth: links from the root."""

    __slots__ = ("after", "before", "cid", "depth")

    def __init__(self, cid: Cid, depth: int) -> None:
        self.cid, self.depth = cid, depth
        self.before: Place | None = None
        self.after: Place | None = None


class Entry(_Linked):
    """The root, or what a directory's entry means."""

    __slots__ = ("path",)

    def __init__(self, cid: Cid, depth: int, path: str) -> None:
        super().__init__(cid, depth)
        self.path = path


class Shard(_Linked):
    """A shard below the root of a sharded directory."""

    __slots__ = ("folder", "position")

    def __init__(self, cid: Cid, depth: int, folder: Folder, position: Position) -> None:
        super().__init__(cid, depth)
        self.folder, self.position = folder, position


class Part(_Linked):
    """A dag-pb block inside a file, with the bytes its parent gives it."""

    __slots__ = ("file", "offset", "size")

    def __init__(self, cid: Cid, depth: int, file: OpenFile, offset: int, size: int) -> None:
        super().__init__(cid, depth)
        self.file, self.offset, self.size = file, offset, size


Place = Entry | Shard | Part


class Frontier:
    """Places in order (a linked list, as any of them may be replaced by many), found by CID too."""

    def __init__(self) -> None:
        self._head: Place | None = None
        self._tail: Place | None = None
        self._by_cid: dict[Cid, dict[Place, None]] = {}  # ordered sets

    def __bool__(self) -> bool:
        return self._head is not None

    def __contains__(self, cid: Cid) -> bool:
        return cid in self._by_cid

    def first(self, limit: int) -> list[Cid]:
        """Distinct CIDs of the first places."""
        found: dict[Cid, None] = {}
        for place in self._places():
            if len(found) >= limit:
                break
            found[place.cid] = None
        return list(found)

    def _places(self) -> Iterator[Place]:
        place = self._head
        while place is not None:
            yield place
            place = place.after

    def places(self, cid: Cid) -> tuple[Place, ...]:
        return tuple(self._by_cid.get(cid, ()))

    def take(self, place: Place) -> Place | None:
        """Remove a place; returns the one after it, before which what replaces it belongs."""
        before, after = place.before, place.after
        if before is None:
            self._head = after
        else:
            before.after = after
        if after is None:
            self._tail = before
        else:
            after.before = before
        same = self._by_cid[place.cid]
        del same[place]
        if not same:
            del self._by_cid[place.cid]
        place.before = place.after = None
        return after

    def insert(self, place: Place, after: Place | None) -> None:
        """Add a place before another, or last."""
        before = self._tail if after is None else after.before
        place.before, place.after = before, after
        if before is None:
            self._head = place
        else:
            before.after = place
        if after is None:
            self._tail = place
        else:
            after.before = place
        self._by_cid.setdefault(place.cid, {})[place] = None
