"""Peers' word for what the Hub says, for when the Hub cannot be asked, and for the CIDs of its files.

A claim is held to its form here, and never replaces what the Hub itself said. Its CIDs are only a way to get bytes:
where the Hub's oids are known those decide, and where only the peer's are, what comes is marked as its claim.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

import msgspec

from ipfs_accelerate_node.content.cid import Cid
from ipfs_accelerate_node.content.names import check_tree
from ipfs_accelerate_node.errors import InvalidCid, SourceUnavailable, UnsafeContent
from ipfs_accelerate_node.fetch.hub_shelf import KeptCommit
from ipfs_accelerate_node.sources.hub_answers import TreeEntry
from ipfs_accelerate_node.sources.hub_maps import peer_map
from ipfs_accelerate_node.sources.hub_names import HubRepo, is_commit, is_hidden

log = logging.getLogger(__name__)

MAX_ENTRIES = 10_000
DENIED_S = 60.0  # a map that no peer had is not asked for again so soon
_SHA1, _SHA256 = re.compile(r"[0-9a-f]{40}"), re.compile(r"[0-9a-f]{64}")
_WORDS = frozenset(
    "author lastModified createdAt private gated disabled downloads likes pipeline_tag library_name mask_token".split()
)


class Claims:
    """peers: origins, in the order in which they are asked."""

    def __init__(self, peers: Sequence[str]) -> None:
        self._peers = [peer for peer in peers if peer.startswith(("http://", "https://"))]
        self._denied_s: dict[tuple[HubRepo, str], float] = {}

    async def ask(self, repo: HubRepo, revision: str) -> KeptCommit | None:
        """The first usable map that a peer has, None if there is none; never raises for a peer's faults."""
        now_s = asyncio.get_running_loop().time()
        if now_s - self._denied_s.get((repo, revision), -DENIED_S) < DENIED_S:
            return None
        for url in self._peers:
            try:
                said = await peer_map(url, repo, revision)
                if said is not None:
                    return await asyncio.to_thread(_read, said, url, repo, revision)
            except SourceUnavailable as exc:
                log.info("hub.no_map source=%s repo=%s code=%s", url, repo, exc.code)
            except (msgspec.MsgspecError, ValueError, InvalidCid, UnsafeContent, RecursionError) as exc:
                log.warning("hub.bad_map source=%s repo=%s reason=%s", url, repo, ascii(str(exc))[:200])
        self._denied_s[repo, revision] = now_s
        while len(self._denied_s) > MAX_ENTRIES:
            del self._denied_s[next(iter(self._denied_s))]
        return None


def _read(data: bytes, url: str, repo: HubRepo, revision: str) -> KeptCommit:
    """Hidden files are left out: no root has them, so no peer gives them. Raises ValueError and its kin."""
    said = msgspec.json.decode(data, type=KeptCommit)
    if said.of_repo != repo or not is_commit(said.commit) or (is_commit(revision) and said.commit != revision):
        raise ValueError("it is of something else")
    if said.restricted or len(said.entries) > MAX_ENTRIES:
        raise ValueError("it is of a restricted repository, or too large")
    for entry in said.entries:
        _check_entry(entry)
    check_tree((e.path for e in said.entries if not e.folder), (e.path for e in said.entries if e.folder))
    for cid in (*said.cids.values(), *([said.root] if said.root else [])):
        Cid.parse(cid)
    entries = tuple(entry for entry in said.entries if not is_hidden(entry.path))
    return replace(said, entries=entries, said=_words(said.said), source=url, claimed=True)


def _check_entry(entry: TreeEntry) -> None:
    lfs = entry.lfs
    sizes = (entry.size,) if lfs is None else (entry.size, lfs.size, lfs.pointer_size)
    if not _SHA1.fullmatch(entry.oid) or any(not 0 <= size < 1 << 63 for size in sizes):
        raise ValueError(f"{entry.path[:80]!a} has no usable oid or size")
    if lfs is not None and (not _SHA256.fullmatch(lfs.sha256) or lfs.size != entry.size):
        raise ValueError(f"{entry.path[:80]!a} has no usable oid or size")


def _words(said: Mapping[str, object]) -> dict[str, object]:
    def is_plain(value: object) -> bool:
        return isinstance(value, bool | int | float) or (isinstance(value, str) and len(value) <= 1000)

    tags = said.get("tags")
    kept: dict[str, object] = {key: value for key, value in said.items() if key in _WORDS and is_plain(value)}
    return {**kept, "tags": [tag for tag in tags if is_plain(tag)][:1000] if isinstance(tags, list) else []}
