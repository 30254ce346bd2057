"""Asking sources what they have: each in its own time, none at the others' cost."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import AsyncExitStack

import pytest

from ipfs_accelerate_node.content.cid import Buffer, Cid
from ipfs_accelerate_node.content.plan import FilePlan
from ipfs_accelerate_node.errors import IntegrityError, NoSource, SourceUnavailable
from ipfs_accelerate_node.fetch.inquiry import Inquiry
from ipfs_accelerate_node.sources.source import Held, Source
from tests.support.small_model import random_model

MODEL = random_model(4)
NODES = {cid.canonical: block for cid, block in MODEL.nodes}


class Said:
    """A source that has these blocks, says what it holds, or waits for ever."""

    kind = "peer"
    ranges = True

    def __init__(
        self, name: str, blocks: dict[Cid, bytes] | None = None, held: Held | None = None, *, silent: bool = False
    ) -> None:
        self.name = name
        self.closed = False
        self._blocks = blocks or {}
        self._held = held
        self._silent = silent

    async def read_block(self, cid: Cid) -> bytes:
        if cid.canonical not in self._blocks:
            raise SourceUnavailable(f"{self.name} lacks {cid}", source=self.name, cid=cid, code="not_found")
        return self._blocks[cid.canonical]

    async def read_range(self, file: FilePlan, start: int, stop: int) -> AsyncGenerator[Buffer, None]:
        raise AssertionError("no plan needs a range")
        yield b""

    async def held(self, root: Cid) -> Held | None:
        if self._silent:
            await asyncio.Event().wait()
        return self._held

    async def settled(self, cids: Sequence[Cid]) -> None:
        raise AssertionError("nothing was fetched")

    async def aclose(self) -> None:
        self.closed = True


def inquiry(*sources: Source, ask_s: float = 0.05) -> Inquiry:
    return Inquiry(MODEL.root, sources, None, AsyncExitStack(), ask_s=ask_s)


async def test_failures_are_answers_beside_the_others() -> None:
    lying = Said("liar", {MODEL.root: b"something else"})
    asked = inquiry(
        Said("all", NODES), Said("claims", NODES, Held(True, {})), Said("none"), Said("silent", silent=True), lying
    )
    await asked.run()
    errors = {a.source.name: getattr(a.error, "code", None) for a in asked.answers}
    assert errors == {"all": None, "claims": None, "none": "not_found", "silent": "stalled", "liar": "hash_mismatch"}
    assert await asked.blocks([cid for cid, _ in MODEL.nodes]) == [block for _, block in MODEL.nodes]


async def test_a_block_is_read_while_others_are_still_asked() -> None:
    asked = inquiry(Said("silent", silent=True), Said("all", NODES), ask_s=60)
    run = asyncio.create_task(asked.run())
    assert await asked.block(MODEL.root) == NODES[MODEL.root]
    assert not run.done()
    run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await run


async def test_nobody_has_it() -> None:
    asked = inquiry(Said("one"), Said("two"))
    await asked.run()
    with pytest.raises(NoSource) as refused:
        await asked.block(MODEL.root)
    assert [attempt["source"] for attempt in refused.value.detail["attempts"]] == ["one", "two"]  # type: ignore[attr-defined]
    only = inquiry(Said("one"))
    await only.run()
    with pytest.raises(NoSource) as alone:
        await only.block(MODEL.root)
    assert alone.value.code == "not_found"
    nobody = inquiry()
    await nobody.run()
    with pytest.raises(NoSource):
        await nobody.block(MODEL.root)


async def test_wrong_bytes_are_no_matter_of_availability() -> None:
    asked = inquiry(Said("one"), Said("liar", {MODEL.root: b"else"}))
    await asked.run()
    with pytest.raises(IntegrityError):
        await asked.block(MODEL.root)


async def test_sources_that_are_found_join_once_and_are_closed() -> None:
    found = [Said("found", NODES), Said("known", NODES)]

    async def discover(root: Cid) -> AsyncGenerator[Source, None]:
        for source in found:
            yield source
        await asyncio.Event().wait()

    async with AsyncExitStack() as stack:
        asked = Inquiry(MODEL.root, [Said("known")], discover, stack, ask_s=0.05, discover_s=0.05)
        await asked.run()
        assert sorted(answer.source.name for answer in asked.answers) == ["found", "known"]
        assert await asked.block(MODEL.root) == NODES[MODEL.root]
    assert all(source.closed for source in found)
