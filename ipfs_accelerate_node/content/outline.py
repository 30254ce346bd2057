"""What files a DAG has, read from its directories and file nodes alone: no leaf is wanted, so a plan of terabytes costs
kilobytes.

Without I/O, like `walk.DagWalk`, and for people, not for a fetch: the size of a file that is one raw block is what its
directory says (the walk of a fetch measures it), and a dag-pb block below a file node that may be a leaf is taken as
one part, unopened.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from ipfs_accelerate_node.content import hamt, unixfs
from ipfs_accelerate_node.content.cid import DAG_PB, RAW, Cid
from ipfs_accelerate_node.content.names import check_name, check_tree
from ipfs_accelerate_node.content.plan import FilePlan, Leaf, ModelPlan
from ipfs_accelerate_node.content.unixfs import NodeType, UnixfsNode
from ipfs_accelerate_node.content.walk import FREE_NODE_BYTES, MAX_BLOCK_BYTES, MAX_NODE_BYTES, NODE_SHARE
from ipfs_accelerate_node.errors import BadContent, UnsafeContent

MAX_ENTRIES = 10_000
MAX_DEPTH = 128
MAX_PARTS = 4_000_000


@dataclass(eq=False, slots=True)
class _File:
    cid: Cid
    size: int
    parts: list[Leaf] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Entry:
    """size: bytes of its DAG, as its directory says."""

    path: str
    depth: int
    size: int


@dataclass(frozen=True, slots=True)
class _Shard:
    folder: str
    position: hamt.Position
    depth: int


@dataclass(frozen=True, slots=True)
class _Part:
    file: _File
    offset: int
    size: int
    depth: int


_Place = _Entry | _Shard | _Part


class Outline:
    """node_bytes: of the blocks given so far."""

    def __init__(self, root: Cid) -> None:
        """Raises BadContent for a root that can be neither file nor directory."""
        self.root = root.canonical
        self.node_bytes = 0
        self._wanted: dict[Cid, list[_Place]] = {}
        self._nodes: dict[Cid, UnixfsNode] = {}
        self._files: dict[Cid, _File] = {}
        self._paths: list[tuple[str, _File]] = []
        self._directories: list[str] = []
        self._entries = self._parts = self._bytes = 0
        self._follow([(self.root, _Entry("", 0, -1))])

    @property
    def done(self) -> bool:
        return not self._wanted

    def wanted(self, limit: int) -> list[Cid]:
        """Blocks to give next, at most limit."""
        return [cid for cid, _ in zip(self._wanted, range(limit), strict=False)]

    def give(self, cid: Cid, block: bytes) -> None:
        """Takes a block that the caller has checked against cid. Raises BadContent, UnsafeContent."""
        places = self._wanted.pop(cid.canonical, None)
        if places is None:
            return
        if len(block) > MAX_BLOCK_BYTES:
            raise BadContent(f"block {cid} has {len(block)} bytes", code="block_too_large", cid=str(cid))
        self._learn(cid.canonical, block)
        self._follow([(cid.canonical, place) for place in places])

    def plan(self) -> ModelPlan:
        """Leaves of a file: as far as they are known, without what wraps them. Raises ValueError unless done."""
        if not self.done:
            raise ValueError(f"the outline of {self.root} still wants blocks")
        check_tree((path for path, _ in self._paths if path), self._directories)
        files = (
            FilePlan(path, file.cid, file.size, tuple(sorted(file.parts, key=lambda leaf: leaf.offset)))
            for path, file in sorted(self._paths, key=lambda item: item[0])
        )
        return ModelPlan(self.root, tuple(files), tuple(sorted(self._directories)))

    def _learn(self, cid: Cid, block: bytes) -> None:
        if cid.codec == RAW:  # only a root is asked for
            self._nodes[cid] = UnixfsNode(NodeType.RAW, data=block)
            return
        node = unixfs.decode(block)
        self.node_bytes += len(block) - len(node.data)
        if self.node_bytes > min(FREE_NODE_BYTES + self._bytes // NODE_SHARE, MAX_NODE_BYTES):
            raise BadContent(f"{self.node_bytes} bytes of node blocks are too many for {self._bytes} bytes of files")
        self._nodes[cid] = node

    def _follow(self, work: list[tuple[Cid, _Place]]) -> None:
        while work:
            cid, place = work.pop()
            if place.depth > MAX_DEPTH:
                raise BadContent(f"the DAG is deeper than {MAX_DEPTH} blocks")
            if cid.codec not in (RAW, DAG_PB):
                raise BadContent(f"codec 0x{cid.codec:x} is not part of a model: {cid}", code="unsupported_codec")
            if isinstance(place, _Entry) and cid.codec == RAW and place.size >= 0 and cid.inline is None:
                self._file(cid, place.path, place.size).parts[:] = [Leaf(cid, 0, place.size)]
                continue
            if cid not in self._nodes and (inline := cid.inline) is not None:
                self._learn(cid, inline)
            node = self._nodes.get(cid)
            if node is None:
                self._wanted.setdefault(cid, []).append(place)
            elif isinstance(place, _Shard):
                work += self._shard(place, node)
            elif isinstance(place, _Part):
                work += self._content(cid, node, place)
            else:
                work += self._entry(cid, node, place)

    def _entry(self, cid: Cid, node: UnixfsNode, place: _Entry) -> Sequence[tuple[Cid, _Place]]:
        if node.type in (NodeType.FILE, NodeType.RAW):
            size = unixfs.content_size(node)
            known = cid in self._files
            file = self._file(cid, place.path, size)
            return () if known else self._content(cid, node, _Part(file, 0, size, place.depth))
        if node.type is NodeType.SYMLINK:
            raise UnsafeContent(f"{place.path or cid} is a symlink: refused", code="unsafe_file")
        if node.type not in (NodeType.DIRECTORY, NodeType.HAMT_SHARD):
            raise BadContent(f"{place.path or cid} is a {node.type.name} node: neither file nor directory")
        if place.path:
            self._directories.append(place.path)
        if node.type is NodeType.HAMT_SHARD:
            return self._shard(_Shard(place.path, hamt.root_position(node.hash_type, node.fanout), place.depth), node)
        return [self._named(place.path, link.name, link.cid, link.tsize, place.depth) for link in node.links]

    def _shard(self, place: _Shard, node: UnixfsNode) -> Sequence[tuple[Cid, _Place]]:
        if node.type is not NodeType.HAMT_SHARD:
            raise BadContent(f"directory {place.folder!r} has something else in place of a shard")
        hamt.check_below(place.position, node.hash_type, node.fanout)
        found: list[tuple[Cid, _Place]] = []
        for slot in hamt.slots(place.position, node.data, node.links):
            link = slot.link
            if slot.name is None:
                below = _Shard(place.folder, place.position.below(slot.index), place.depth + 1)
                found.append((link.cid.canonical, below))
            else:
                found.append(self._named(place.folder, slot.name, link.cid, link.tsize, place.depth))
        return found

    def _named(self, folder: str, raw: bytes, cid: Cid, tsize: int, depth: int) -> tuple[Cid, _Entry]:
        name = unixfs.entry_name(raw)
        check_name(name)
        self._entries += 1
        if self._entries > MAX_ENTRIES:
            raise BadContent(f"the model has more than {MAX_ENTRIES} files and directories")
        path = f"{folder}/{name}" if folder else name
        return cid.canonical, _Entry(path, depth + 1, min(tsize, MAX_BLOCK_BYTES))

    def _file(self, cid: Cid, path: str, size: int) -> _File:
        file = self._files.setdefault(cid, _File(cid, size))
        self._paths.append((path, file))
        self._bytes += size
        return file

    def _content(self, cid: Cid, node: UnixfsNode, place: _Part) -> Sequence[tuple[Cid, _Place]]:
        """Leaves go to the file; blocks that are too large to be one are followed."""
        if unixfs.content_size(node) != place.size:
            raise BadContent(f"{cid} is not the {place.size} file bytes that its parent says")
        parts, offset = place.file.parts, place.offset
        if node.data or not node.links:
            parts.append(Leaf(cid, offset, len(node.data)))
            offset += len(node.data)
        self._parts += 1 + len(node.links)
        if self._parts > MAX_PARTS:
            raise BadContent(f"the model has more than {MAX_PARTS} parts")
        below: list[tuple[Cid, _Place]] = []
        for link, size in zip(node.links, node.blocksizes, strict=True):
            if link.cid.codec == DAG_PB and size > MAX_BLOCK_BYTES:
                below.append((link.cid.canonical, _Part(place.file, offset, size, place.depth + 1)))
            else:
                parts.append(Leaf(link.cid.canonical, offset, size))
            offset += size
        return below
