"""Read a DAG of any layout, without I/O: the walk says which blocks it needs, takes them, and ends as a ModelPlan.

A caller loops over `wanted` and `give`; blocks may be given in any order, and asking for the first wanted ones first
keeps the walk depth-first and small. File bytes inside dag-pb blocks are handed back at once and never kept, so a file
of any size passes through. What is kept per block is what the plan needs anyway: CIDs, offsets, the few bytes around a
payload. Raw leaves below a file node are not wanted at all: the plan lists them with the sizes their parent declares.

Bounds, as a DAG of a few KiB can describe exabytes: the bytes of all files (`max_bytes`), directory entries, depth, the
links followed in proportion to those received, and the bytes of node blocks in proportion to the file bytes declared.

Every CID in plan and answers is canonical. A block that occurs at several places is wanted once: its bytes come back
for each place known by then; at a later one they are a leaf of the plan that the caller has already, elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from ipfs_accelerate_node.content import hamt, unixfs
from ipfs_accelerate_node.content.cid import DAG_PB, RAW, Cid
from ipfs_accelerate_node.content.dagpb import Link
from ipfs_accelerate_node.content.frontier import Entry, Folder, Frontier, OpenFile, Part, Place, Shard
from ipfs_accelerate_node.content.names import check_name, check_tree
from ipfs_accelerate_node.content.plan import FilePlan, Leaf, ModelPlan
from ipfs_accelerate_node.content.unixfs import NodeType, UnixfsNode
from ipfs_accelerate_node.errors import BadContent, QuotaExceeded, UnsafeContent

MAX_BLOCK_BYTES = 2 << 20
FREE_LINKS = 250_000  # links that any DAG may have …
REPEATS = 16  # … and this many for each link in a distinct block: repetition is what makes a small DAG large
FREE_NODE_BYTES = 32 << 20
NODE_SHARE = 256  # node bytes beyond those: at most this fraction of the file bytes declared …
MAX_NODE_BYTES = 512 << 20  # … and never more: some 2 TiB in leaves of 256 KiB

FILE_TYPES = (NodeType.FILE, NodeType.RAW)


@dataclass(frozen=True, slots=True)
class FilePlace:
    """path: where the file stands ("" for a root that is a file); its first place, where it has several."""

    path: str
    cid: Cid
    size: int


@dataclass(frozen=True, slots=True)
class LeafPayload:
    """File bytes that came inside a given block: ``leaf.offset`` within the file, ``leaf.wrap(payload)`` the block."""

    file: FilePlace
    leaf: Leaf
    payload: bytes


@dataclass(frozen=True, slots=True)
class Given:
    """node: the block links others or has no file bytes, so the store must keep it as it is; False for a block that its
    leaf re-makes. payloads: the file bytes it brought, and those of inline CIDs it led to."""

    node: bool
    payloads: tuple[LeafPayload, ...]


NOTHING = Given(False, ())


@dataclass(frozen=True, slots=True)
class _Content:
    """What is remembered of a block: all but its payload. length: of the payload. size: file bytes of it and all below.
    node: without data that is payload; None for a raw block."""

    length: int
    size: int
    prefix: bytes = b""
    suffix: bytes = b""
    node: UnixfsNode | None = None

    @property
    def is_file(self) -> bool:
        return self.node is None or self.node.type in FILE_TYPES


class DagWalk:
    """One walk, for one caller at a time; after an error it is of no further use.

    opened: what the root brings by itself, before any block is given (only an inline root brings anything).
    nodes: CIDs of the node blocks given so far.
    """

    def __init__(
        self,
        root: Cid,
        *,
        max_bytes: int = 2**63 - 1,
        max_entries: int = 10_000,
        max_depth: int = 128,
        max_block_bytes: int = MAX_BLOCK_BYTES,
        skips: Callable[[str], bool] = lambda _path: False,
    ) -> None:
        """skips: whether the file at a path is only listed: if it is one raw block, that is not wanted, and its size is
        what its directory says.

        Raises BadContent (code unsupported_codec) for a root that is no file or directory, and what `give` raises
        if the root is inline."""
        self.root = root.canonical
        self.nodes: list[Cid] = []
        self._max_bytes, self._max_entries = max_bytes, max_entries
        self._max_depth, self._max_block_bytes = max_depth, max_block_bytes
        self._skips = skips
        self._frontier = Frontier()
        self._contents: dict[Cid, _Content] = {}
        self._files: dict[Cid, OpenFile] = {}
        self._paths: list[tuple[str, OpenFile]] = []
        self._directories: list[str] = []
        self._leaf_contents: dict[_Content, _Content] = {}
        self._payloads: list[LeafPayload] = []  # of the block being given
        self._bytes = self._entries = self._links = self._distinct_links = self._node_bytes = 0
        self._settle(self._entry("", root, depth=0), before=None)
        self.opened = Given(False, self._drain())

    @property
    def done(self) -> bool:
        return not self._frontier

    def wanted(self, limit: int = 64) -> list[Cid]:
        """The next blocks to give, at most limit, distinct, depth-first, none given before."""
        return self._frontier.first(limit)

    def give(self, cid: Cid, block: bytes) -> Given:
        """Take a block that the caller has checked against cid; one that is not wanted changes nothing.

        Raises BadContent (code bad_dag, unsupported_codec, block_too_large), UnsafeContent (code invalid_path,
        unsafe_file), QuotaExceeded (code quota_exceeded).
        """
        key = cid.canonical
        if key not in self._frontier:
            return NOTHING
        content = self._learn(key, block)
        for place in self._frontier.places(key):
            after = self._frontier.take(place)
            self._settle(place, before=after, held=block)
        is_node = content.node is not None and (bool(content.node.links) or not content.length)
        if is_node:
            self.nodes.append(key)
        return Given(is_node, self._drain())

    def plan(self) -> ModelPlan:
        """The whole DAG: files and directories by path, leaves by offset. Raises ValueError unless done."""
        if not self.done:
            raise ValueError(f"the walk of {self.root} still wants blocks")
        leaves = {cid: file.sorted_leaves() for cid, file in self._files.items()}
        files = tuple(
            FilePlan(path, file.cid, file.size, leaves[file.cid]) for path, file in sorted(self._paths, key=_path)
        )
        return ModelPlan(self.root, files, tuple(sorted(self._directories)))

    def _drain(self) -> tuple[LeafPayload, ...]:
        payloads, self._payloads = tuple(self._payloads), []
        return payloads

    # A block, once

    def _learn(self, cid: Cid, block: bytes) -> _Content:
        if len(block) > self._max_block_bytes:
            raise self._too_large(cid, len(block))
        content = _Content(len(block), len(block)) if cid.codec == RAW else self._learn_node(block)
        self._contents[cid] = content
        return content

    def _learn_node(self, block: bytes) -> _Content:
        node = unixfs.decode(block)
        if node.type not in FILE_TYPES:
            self._count_node(len(block), len(node.links))
            return _Content(0, 0, node=node)
        if (node.filesize or 0) > self._max_bytes:  # before anything else is made of such a claim
            raise self._over_quota(node.filesize or 0)
        size, length = unixfs.content_size(node), len(node.data)
        self._count_node(len(block) - length, len(node.links))
        bare = replace(node, data=b"", data_at=0)
        if not length:
            return _Content(0, size, node=bare)
        prefix, suffix = block[: node.data_at], block[node.data_at + length :]
        content = _Content(length, size, prefix, suffix, bare)
        # Nearly all leaves of a file differ in their payload only: one object stands for them.
        return content if node.links else self._leaf_contents.setdefault(content, content)

    # Its places, each

    def _settle(self, place: Place, *, before: Place | None, held: bytes | None = None) -> None:
        """Replace a place by what it leads to, as far as the blocks are known; the rest joins the frontier instead.

        held: the block of this place, while it is at hand.
        """
        work = [place]
        while work:
            item = work.pop()
            block = item.cid.known_block if held is None or item is not place else held
            content = self._contents.get(item.cid)
            if content is None and block is not None:
                content = self._learn(item.cid, block)
            if content is None:
                self._frontier.insert(item, before)
            else:
                work += reversed(self._follow(item, content, block))

    def _follow(self, place: Place, content: _Content, block: bytes | None) -> list[Place]:
        """The places below one whose content is known; its file bytes are handed back if its block is at hand."""
        if isinstance(place, Part):
            if not content.is_file or content.size != place.size:
                raise BadContent(f"{place.cid} is not the {place.size} file bytes that its parent says")
            return self._parts(place, content, block)
        if isinstance(place, Shard):
            return self._shard(place.folder, place.position, content.node, place.depth)
        if not content.is_file:
            return self._directory(place, content.node)
        self._bytes += content.size
        if self._bytes > self._max_bytes:
            raise self._over_quota(self._bytes)
        known = self._files.get(place.cid)
        file = known or OpenFile(place.path, place.cid, content.size)
        self._paths.append((place.path, file))
        if known is not None:  # the same file elsewhere: one set of leaves serves both
            return []
        self._files[place.cid] = file
        return self._parts(Part(place.cid, place.depth, file, 0, content.size), content, block)

    def _parts(self, part: Part, content: _Content, block: bytes | None) -> list[Place]:
        """Leaves go to the file at once, dag-pb blocks below become places."""
        if content.length or content.node is None:
            leaf = Leaf(part.cid, part.offset, content.length, content.prefix, content.suffix)
            self._add_leaf(part.file, leaf, block)
        if content.node is None:
            return []
        children: list[Place] = []
        offset = part.offset + content.length
        for link, size in zip(content.node.links, content.node.blocksizes, strict=True):
            cid = link.cid.canonical
            self._count_link(part.depth)
            if cid.codec == DAG_PB:
                children.append(Part(cid, part.depth + 1, part.file, offset, size))
            elif cid.codec == RAW:
                if size > self._max_block_bytes:
                    raise self._too_large(cid, size)
                self._add_leaf(part.file, Leaf(cid, offset, size), cid.known_block)
            else:
                raise _unsupported(cid, f"a part of {part.file.path or part.file.cid}")
            offset += size
        return children

    def _add_leaf(self, file: OpenFile, leaf: Leaf, block: bytes | None) -> None:
        file.leaves.append(leaf)
        if block is not None:
            place = FilePlace(file.path, file.cid, file.size)
            self._payloads.append(LeafPayload(place, leaf, leaf.unwrap(block)))

    def _directory(self, place: Entry, node: UnixfsNode | None) -> list[Place]:
        if node is None or node.type is NodeType.SYMLINK:
            raise UnsafeContent(f"{place.path or place.cid} is a symlink: refused", code="unsafe_file")
        if node.type not in (NodeType.DIRECTORY, NodeType.HAMT_SHARD):
            raise BadContent(f"{place.path or place.cid} is a {node.type.name} node: neither file nor directory")
        if place.path:
            self._directories.append(place.path)
        folder = Folder(place.path)
        if node.type is NodeType.HAMT_SHARD:
            return self._shard(folder, hamt.root_position(node.hash_type, node.fanout), node, place.depth)
        children: list[Place] = [self._named(folder, link.name, link, place.depth) for link in node.links]
        check_tree(folder.names)
        return children

    def _shard(self, folder: Folder, position: hamt.Position, node: UnixfsNode | None, depth: int) -> list[Place]:
        if node is None or node.type is not NodeType.HAMT_SHARD:
            raise BadContent(f"directory {folder.path!r} has something else in place of a shard")
        hamt.check_below(position, node.hash_type, node.fanout)
        children: list[Place] = []
        for slot in hamt.slots(position, node.data, node.links):
            cid = slot.link.cid
            if slot.name is not None:
                children.append(self._named(folder, slot.name, slot.link, depth))
                continue
            if cid.codec != DAG_PB:
                raise _unsupported(cid, f"a shard of directory {folder.path!r}")
            self._count_link(depth)
            folder.shards += 1
            children.append(Shard(cid.canonical, depth + 1, folder, position.below(slot.index)))
        folder.shards -= 1
        if not folder.shards:
            check_tree(folder.names)
        return children

    def _named(self, folder: Folder, raw: bytes, link: Link, depth: int) -> Entry:
        """The place of a directory's entry."""
        name = unixfs.entry_name(raw)
        check_name(name)
        folder.names.append(name)
        self._entries += 1
        if self._entries > self._max_entries:
            raise BadContent(f"the model has more than {self._max_entries} files and directories")
        path, cid = folder.below(name), link.cid
        if cid.codec == RAW and cid.inline is None and 0 < link.tsize <= self._max_block_bytes and self._skips(path):
            self._contents.setdefault(cid.canonical, _Content(link.tsize, link.tsize))
        return self._entry(path, cid, depth)

    def _entry(self, path: str, cid: Cid, depth: int) -> Entry:
        if cid.codec not in (RAW, DAG_PB):
            raise _unsupported(cid, path or "the root")
        self._count_link(depth)
        return Entry(cid.canonical, depth + 1, path)

    # Bounds

    def _count_link(self, depth: int) -> None:
        if depth >= self._max_depth:
            raise BadContent(f"the DAG is deeper than {self._max_depth} blocks")
        self._links += 1
        if self._links > FREE_LINKS + REPEATS * self._distinct_links:
            raise BadContent(f"the DAG repeats {self._distinct_links} links {self._links} times and more")

    def _count_node(self, size: int, links: int) -> None:
        self._distinct_links += links
        self._node_bytes += size
        if self._node_bytes > min(FREE_NODE_BYTES + self._bytes // NODE_SHARE, MAX_NODE_BYTES):
            raise BadContent(f"{self._node_bytes} bytes of node blocks are too many for {self._bytes} bytes of files")

    def _over_quota(self, declared: int) -> QuotaExceeded:
        return QuotaExceeded(
            f"{self.root} declares at least {declared} bytes, {self._max_bytes} are allowed", cid=str(self.root)
        )

    def _too_large(self, cid: Cid, size: int) -> BadContent:
        return BadContent(
            f"block {cid} has {size} bytes, over the limit of {self._max_block_bytes}",
            code="block_too_large",
            cid=str(cid),
        )


def _unsupported(cid: Cid, what: str) -> BadContent:
    return BadContent(
        f"{what} has codec 0x{cid.codec:x} in {cid}: neither file nor directory", code="unsupported_codec"
    )


def _path(item: tuple[str, OpenFile]) -> str:
    return item[0]
