"""Asking every source at once what it has of a root, each in its own time; a bad one costs the others nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Iterable, Sequence
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass
from typing import TypeVar

from ipfs_accelerate_node.content.cid import Cid
from ipfs_accelerate_node.errors import IntegrityError, NodeError, NoSource, SourceUnavailable
from ipfs_accelerate_node.fetch.origins import Discover
from ipfs_accelerate_node.fetch.threads import in_thread
from ipfs_accelerate_node.sources import GatewaySource
from ipfs_accelerate_node.sources.source import Held, Source

T = TypeVar("T")

ASK_S = 10.0  # for one question to one source
DISCOVER_S = 10.0  # for the search for nodes that announced the root


@dataclass(eq=False, slots=True)
class Answer:
    """What one source said. held: None if it cannot say, or failed. at_hand: False for a gateway that would have to
    search the network for the root. error: why it is of no use."""

    source: Source
    held: Held | None = None
    at_hand: bool | None = None
    error: NodeError | None = None


class Inquiry:
    """One root, its sources. `run` asks them; meanwhile and afterwards `block` reads through those that answered.

    sources: stay the caller's. discover: finds further ones, which are closed with the stack.
    """

    def __init__(
        self,
        root: Cid,
        sources: Sequence[Source],
        discover: Discover | None,
        stack: AsyncExitStack,
        *,
        ask_s: float = ASK_S,
        discover_s: float = DISCOVER_S,
    ) -> None:
        self.answers: list[Answer] = []
        self._root = root
        self._sources = sources
        self._discover = discover
        self._stack = stack
        self._ask_s = ask_s
        self._discover_s = discover_s
        self._blocks: dict[Cid, bytes] = {}
        self._asking = True
        self._changed = asyncio.Event()

    async def run(self) -> None:
        """Asks them all. Failures are answers too."""
        try:
            async with asyncio.TaskGroup() as group:
                for source in self._sources:
                    group.create_task(self._ask(source), name=f"ask {source.name}")
                if self._discover is not None:
                    await self._search(self._discover, group)
        finally:
            self._asking = False
            self._changed.set()

    async def block(self, cid: Cid) -> bytes:
        """A verified block, from whichever source has it. Raises what `verdict` says when none has."""
        tried: set[int] = set()
        while True:
            changed = self._changed
            if (block := self._blocks.get(cid)) is not None:
                return block
            for answer in [a for a in self.answers if a.error is None and id(a) not in tried]:
                tried.add(id(answer))
                try:
                    return await self._read(answer, cid)
                except NodeError as exc:
                    if not isinstance(exc, SourceUnavailable) or exc.code not in ("not_found", "blocked"):
                        answer.error = exc
            if not self._asking and changed is self._changed:  # else one more answered meanwhile
                raise self.verdict(cid)
            await changed.wait()

    def verdict(self, cid: Cid) -> NodeError:
        """Why nobody has the block: IntegrityError if anyone sent wrong bytes, else NoSource. detail: attempts."""
        attempts = [
            {"source": a.source.name, "kind": a.source.kind, "code": a.error.code, "reason": str(a.error)}
            for a in self.answers
            if a.error is not None
        ]
        wrong = next((a.error for a in self.answers if isinstance(a.error, IntegrityError)), None)
        if wrong is not None:
            return wrong
        if not self.answers:
            return NoSource(f"{cid}: no source to ask; add --gateway or --peer, or start Kubo", source="none", cid=cid)
        names = ", ".join(answer.source.name for answer in self.answers)
        only = self.answers[0].error if len(self.answers) == 1 else None
        code = "no_source" if only is None else only.code
        reasons = "; ".join(str(a.error) for a in self.answers if a.error is not None) or "it is missing everywhere"
        return NoSource(f"no source has {cid}: {reasons}", source=names, cid=cid, code=code, attempts=attempts)

    async def blocks(self, cids: Iterable[Cid]) -> list[bytes]:
        """`block` of each, side by side."""
        tasks = [asyncio.create_task(self.block(cid), name=f"block {cid}") for cid in cids]
        try:
            return await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            if tasks:
                await asyncio.wait(tasks)

    async def _search(self, discover: Discover, group: asyncio.TaskGroup) -> None:
        asked = {source.name for source in self._sources}
        try:
            async with asyncio.timeout(self._discover_s), aclosing(discover(self._root)) as found:
                async for source in found:
                    self._stack.push_async_callback(source.aclose)
                    if source.name not in asked:
                        asked.add(source.name)
                        group.create_task(self._ask(source), name=f"ask {source.name}")
        except TimeoutError:
            return

    async def _ask(self, source: Source) -> None:
        """What it holds; if it cannot say, whether it has the root's own block."""
        answer = Answer(source)
        try:
            answer.held = await self._timed(source, source.held(self._root))
            if isinstance(source, GatewaySource):
                answer.at_hand = await self._timed(source, source.cached(self._root))
            if answer.held is None:
                self._blocks[self._root] = await self._read(answer, self._root)
        except NodeError as exc:
            answer.error = exc
        self.answers.append(answer)
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    async def _read(self, answer: Answer, cid: Cid) -> bytes:
        block = await self._timed(answer.source, answer.source.read_block(cid))
        await in_thread(cid.check, block, answer.source.name)
        return block

    async def _timed(self, source: Source, asked: Awaitable[T]) -> T:
        try:
            async with asyncio.timeout(self._ask_s):
                return await asked
        except TimeoutError as exc:
            raise SourceUnavailable(
                f"{source.name} did not answer within {self._ask_s:g} s",
                source=source.name,
                cid=self._root,
                code="stalled",
            ) from exc
