"""Answers about commits, encoded once: a commit never changes, and a list of thousands of files takes longer to write
than a client that asks for it again should wait.

Only what is answered is kept here; who may hear it is decided before. An answer is of the very entries that it was made
of: when another listing takes their place (the Hub was asked again, hidden files cannot be had) it is made anew.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

from ipfs_accelerate_node.api import hub_forms
from ipfs_accelerate_node.api.wire import json_bytes
from ipfs_accelerate_node.fetch.hub_shelf import KeptCommit
from ipfs_accelerate_node.sources.hub_answers import TreeEntry

MAX_BYTES = 16 << 20  # of encoded answers
MAX_COMMITS = 64
MANY = 500  # more entries are written down in a thread, so that other requests go on meanwhile
T = TypeVar("T")


@dataclass(frozen=True)
class Listing:
    """The files and folders of a commit, by path."""

    kept: KeptCommit

    @cached_property
    def entries(self) -> list[TreeEntry]:
        return hub_forms.with_folders(self.kept.entries)

    @cached_property
    def by_path(self) -> dict[str, TreeEntry]:
        return {entry.path: entry for entry in self.entries}

    def below(self, folder: str, *, recursive: bool) -> Sequence[TreeEntry] | None:
        """Files and folders below a folder ("" is the root), by path; None where there is no such folder."""
        if not folder and recursive:
            return self.entries
        if folder and not ((found := self.by_path.get(folder)) and found.folder):
            return None
        prefix = f"{folder}/" if folder else ""
        found_below = [entry for entry in self.entries if entry.path.startswith(prefix)]
        return [e for e in found_below if recursive or "/" not in e.path.removeprefix(prefix)]

    def is_of(self, kept: KeptCommit) -> bool:
        """Whether it says what kept says; CIDs are in no answer."""
        mine = self.kept
        return mine.entries is kept.entries and mine.said is kept.said


class Listings:
    """Used on the event loop; threads only write answers down."""

    def __init__(self, *, max_bytes: int = MAX_BYTES, max_commits: int = MAX_COMMITS) -> None:
        self._max_bytes, self._max_commits = max_bytes, max_commits
        self._listings: OrderedDict[tuple[str, str, str], Listing] = OrderedDict()
        self._answers: OrderedDict[tuple[Any, ...], tuple[Listing, bytes]] = OrderedDict()
        self._bytes = 0

    async def of(self, kept: KeptCommit) -> Listing:
        """The listing of what is kept of a commit, with its folders."""
        key = (kept.kind, kept.repo, kept.commit)
        listing = self._listings.get(key)
        if listing is None or not listing.is_of(kept):
            listing = Listing(kept)
            await _made(listing, lambda: listing.by_path)
        self._listings[key] = listing
        self._listings.move_to_end(key)
        while len(self._listings) > self._max_commits:
            self._listings.popitem(last=False)
        return listing

    async def answer(self, listing: Listing, asked: tuple[object, ...], make: Callable[[], object]) -> bytes:
        """What make says, as JSON. asked: the question, of which the answer depends beside the listing."""
        kept = listing.kept
        key = (kept.kind, kept.repo, kept.commit, *asked)
        known = self._answers.get(key)
        if known is not None and known[0] is listing:
            self._answers.move_to_end(key)
            return known[1]
        body = await _made(listing, lambda: json_bytes(make()))
        self._drop(key)
        self._answers[key] = listing, body
        self._bytes += len(body)
        while self._bytes > self._max_bytes:
            self._drop(next(iter(self._answers)))
        return body

    def _drop(self, key: tuple[Any, ...]) -> None:
        known = self._answers.pop(key, None)
        self._bytes -= 0 if known is None else len(known[1])


async def _made(listing: Listing, make: Callable[[], T]) -> T:
    return await asyncio.to_thread(make) if len(listing.kept.entries) > MANY else make()
