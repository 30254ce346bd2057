"""What a fetch says about itself: while it runs (`Progress`) and once its model is committed (`Fetched`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from ipfs_accelerate_node.content.cid import Cid
from ipfs_accelerate_node.content.plan import ModelPlan
from ipfs_accelerate_node.fetch.hub_chain import ChainStep

if TYPE_CHECKING:
    from ipfs_accelerate_node.store.types import SourceFailure, SourceShare, StoredModel


@dataclass(frozen=True, slots=True)
class SourceNow:
    """One source of a fetch at this moment. bytes_per_s: over the last seconds. state: working, idle (nothing for it
    to do), resting (asked us to come back later), or out (failed, or sent wrong bytes)."""

    source: str
    kind: str
    bytes: int
    bytes_per_s: int
    rejected: int
    state: Literal["working", "idle", "resting", "out"]


@dataclass(frozen=True, slots=True)
class Progress:
    """bytes_total: of the files, None until the walk has seen them all. phase: "walking", "fetching" or "committing".
    source: the one that delivered last, by its name; None before the first. left_s: at the present rate."""

    bytes_total: int | None
    bytes_done: int
    phase: str
    source: str | None
    sources: tuple[SourceNow, ...] = ()
    left_s: float | None = None


@dataclass(frozen=True, slots=True)
class Fetched:
    """A committed model and what it cost.

    nodes: every node block of the plan, for seeding. bytes_total: of the files that were asked for: bytes_fetched came
    from sources, bytes_copied from other files' leaves, bytes_here was here already, also as what an earlier try left
    (None: all the rest). already_here: nothing was asked of anyone. replaced: selections that this made superfluous.
    failures: what each source did wrong that lied, stalled or broke off, though others then finished the job.
    chain: how a reference to the Hub was followed.
    """

    model: StoredModel
    plan: ModelPlan
    nodes: tuple[tuple[Cid, bytes], ...]
    bytes_total: int
    bytes_fetched: int
    bytes_copied: int
    seconds: float
    sources: tuple[SourceShare, ...]
    already_here: bool
    failures: tuple[SourceFailure, ...] = ()
    chain: tuple[ChainStep, ...] = ()
    bytes_here: int | None = None
    replaced: tuple[Cid, ...] = ()

    @property
    def here(self) -> int:
        """bytes_here, computed where it was not counted."""
        rest = self.bytes_total - self.bytes_fetched - self.bytes_copied
        return max(0, rest if self.bytes_here is None else self.bytes_here)
