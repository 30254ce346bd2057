"""Runs of leaves out of a trustless gateway that serves no plain ranges: one CAR with just the leaves of a byte range.

Source: IPFS trustless gateway specification, "CAR responses" (``dag-scope=entity``, ``entity-bytes=from:to``, both ends
included); table R of the bad input.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing

from ipfs_accelerate_node.content.car import CarReader
from ipfs_accelerate_node.content.cid import Buffer, Cid
from ipfs_accelerate_node.content.plan import FilePlan
from ipfs_accelerate_node.errors import BadContent, SourceUnavailable
from ipfs_accelerate_node.sources import answers
from ipfs_accelerate_node.sources.http import Asked, Reply
from ipfs_accelerate_node.sources.source import MAX_BLOCK_BYTES

CAR_TYPE = "application/vnd.ipld.car"
ACCEPT = f"{CAR_TYPE}; version=1; order=dfs; dups=y"  # whoever sends them once is understood too
_SPARE_BYTES = 1 << 20  # with a tenth of the range: room for headers and the nodes on the way (R10)
_NOT_SERVED = frozenset({400, 406, 415, 501})


def query(start: int, stop: int) -> str:
    return f"format=car&dag-scope=entity&entity-bytes={start}:{stop - 1}"


async def span(reply: Reply, asked: Asked, file: FilePlan, start: int, stop: int) -> AsyncGenerator[Buffer, None]:
    """The file's bytes from start to stop out of a CAR, each block hashed; in order, whatever the order of the blocks.

    Raises IntegrityError (R7), BadContent (bad_dag: the DAG itself lies), or SourceUnavailable: no_ranges (no CARs
    here, or always whole ones), truncated, missing_block, bad_car, block_too_large, budget_exceeded, and as
    `answers.refusal`.
    """
    _check(reply, asked)
    run = _Run(file, start, stop)
    budget_bytes = (stop - start) * 11 // 10 + _SPARE_BYTES + MAX_BLOCK_BYTES
    reader = CarReader(budget_bytes=budget_bytes, origin=asked.source)
    try:
        async with aclosing(reply.chunks()) as chunks:
            async for chunk in chunks:
                for cid, block in await asyncio.to_thread(reader.feed, chunk):
                    run.take(cid, block)
                    for payload in run.ready():
                        yield payload
                if run.complete:  # what may still come is not ours to wait for
                    return
        reader.close()
    except BadContent as exc:
        if exc.code == "bad_dag":  # no other source can mend that
            raise
        raise _fault(exc, asked, run) from exc
    raise asked.fault(f"leaves out block {run.next_leaf}", "missing_block")


def _check(reply: Reply, asked: Asked) -> None:
    if reply.status in _NOT_SERVED:
        raise asked.fault(f"answers {reply.status} to a CAR", "no_ranges")
    if reply.status != 200:
        raise answers.refusal(reply, asked)
    if reply.content_type != CAR_TYPE:
        code = "bad_source" if reply.content_type == "text/html" else "no_ranges"
        raise asked.fault(f"answers with {reply.content_type[:60]!a}, not with a CAR", code)


def _fault(exc: BadContent, asked: Asked, run: _Run) -> SourceUnavailable:
    if exc.code == "budget_exceeded" and run.strays:
        return asked.fault("sends more of the file than the range that was asked for", "no_ranges")
    return asked.fault(str(exc), "truncated" if exc.code == "incomplete" else exc.code)


class _Run:
    """The leaves of a range, in the order in which their payloads must leave."""

    def __init__(self, file: FilePlan, start: int, stop: int) -> None:
        self._start, self._stop = start, stop
        self._leaves = [leaf for leaf in file.leaves if leaf.offset < stop and leaf.offset + leaf.length > start]
        self._others = frozenset(leaf.cid.canonical for leaf in file.leaves)
        self._wanted = Counter(leaf.cid.canonical for leaf in self._leaves)
        self._early: dict[Cid, bytes] = {}  # came before their turn, or are needed again
        self._at = 0
        self.strays = False  # leaves of this file that nobody asked for

    @property
    def complete(self) -> bool:
        return self._at == len(self._leaves)

    @property
    def next_leaf(self) -> Cid:
        return self._leaves[self._at].cid

    def take(self, cid: Cid, block: bytes) -> None:
        key = cid.canonical
        if self._wanted[key]:
            self._early[key] = block
        elif key in self._others:
            self.strays = True

    def ready(self) -> Iterator[memoryview]:
        """The payloads whose turn it is now. Raises BadContent (bad_dag) for a block that is not as its parent says."""
        while not self.complete:
            leaf = self._leaves[self._at]
            key = leaf.cid.canonical
            block = self._early.get(key, leaf.cid.inline)
            if block is None:
                return
            self._wanted[key] -= 1
            if not self._wanted[key]:
                self._early.pop(key, None)
            self._at += 1
            yield memoryview(leaf.unwrap(block))[max(0, self._start - leaf.offset) : self._stop - leaf.offset]
