"""The Hub as one of several sources of a root: it knows files by path, a map says under which CIDs they are.

It has no blocks, only ranges of the files that the map names. What it sends is hashed leaf by leaf like anyone's.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing

from ipfs_accelerate_node.content.cid import Buffer, Cid
from ipfs_accelerate_node.content.plan import FilePlan
from ipfs_accelerate_node.errors import NotFound, SourceUnavailable
from ipfs_accelerate_node.sources.hub import HubSource
from ipfs_accelerate_node.sources.hub_answers import HubFile
from ipfs_accelerate_node.sources.hub_snapshot import Snapshot, Traffic
from ipfs_accelerate_node.sources.source import Held


class HubFileSource:
    """hub: entered, and its owner's. files: of the snapshot, by the CID that a map gives them."""

    kind = "hub"
    ranges = True

    def __init__(self, hub: HubSource, snapshot: Snapshot, files: Mapping[Cid, HubFile]) -> None:
        self.name = hub.name
        self._hub = hub
        self._snapshot = snapshot
        self._files = {cid.canonical: file for cid, file in files.items()}

    async def read_block(self, cid: Cid) -> bytes:
        """See `Source.read_block`: there are none here."""
        raise SourceUnavailable(f"{self.name} has files, not blocks", source=self.name, cid=cid, code="not_found")

    async def read_range(self, file: FilePlan, start: int, stop: int) -> AsyncGenerator[Buffer, None]:
        """See `Source.read_range`."""
        known = self._files.get(file.cid.canonical)
        if known is None or known.size != file.size:
            raise SourceUnavailable(f"{self.name} has no such file", source=self.name, cid=file.cid, code="not_found")
        if stop <= start:
            return
        try:
            async with self._hub.open(self._snapshot, known, start, Traffic(), stop=stop) as (begins, runs):
                if begins != start:
                    raise SourceUnavailable(f"{self.name} knows no ranges", source=self.name, code="no_ranges")
                async with aclosing(runs) as pieces:  # type: ignore[type-var]  # a generator
                    async for piece in pieces:
                        yield piece
        except SourceUnavailable as exc:
            exc.detail.setdefault("cid", str(file.cid))
            raise
        except NotFound as exc:
            raise SourceUnavailable(str(exc), source=self.name, cid=file.cid, code="not_found") from exc

    async def held(self, root: Cid) -> Held:
        """See `Source.held`: all of it, as it is not one who is still fetching. What the map leaves out turns out
        not to be there when it is asked for."""
        return Held(True, {})

    async def settled(self, cids: Sequence[Cid]) -> None:
        """Nothing: the Hub keeps its own."""

    async def aclose(self) -> None:
        """Nothing: the Hub is its owner's."""
