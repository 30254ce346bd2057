"""What a worker did since it told of it last."""

from __future__ import annotations

from dataclasses import dataclass

from ipfs_accelerate_node.inference import wire
from ipfs_accelerate_node.inference.batching import Batch
from ipfs_accelerate_node.inference.model import Output
from ipfs_accelerate_node.inference.writings import Done


@dataclass(slots=True)
class Tally:
    """What was done since it was told last."""

    passes: int = 0
    rows: int = 0
    tokens: int = 0
    padded: int = 0
    compute_s: float = 0.0
    tokenize_s: float = 0.0
    dropped: int = 0
    expired: int = 0
    last: tuple[int, int, int] = (0, 0, 0)

    def count(self, batch: Batch[object, Output], seconds: float) -> None:
        """A pass of rows."""
        self.passes += 1
        self.last = (len(batch.members), batch.tokens, batch.padded)
        self.rows, self.tokens, self.padded = (
            self.rows + len(batch.members), self.tokens + batch.tokens, self.padded + batch.padded,
        )  # fmt: skip
        self.compute_s += seconds

    def wrote(self, done: Done) -> None:
        """A turn of texts that are written."""
        if done.tokens:
            self.passes += 1
            self.last = (done.rows, done.tokens, done.tokens)
        self.rows, self.tokens, self.padded = (
            self.rows + done.rows, self.tokens + done.tokens, self.padded + done.tokens,
        )  # fmt: skip
        self.compute_s += done.seconds
        self.dropped += done.dropped
        self.expired += done.expired

    def told(self, waiting: tuple[int, int]) -> wire.Work:
        """waiting: rows and tokens."""
        return wire.Work(
            self.passes, self.rows, self.tokens, self.padded, self.compute_s, self.tokenize_s, self.dropped,
            self.expired, *self.last, *waiting,
        )  # fmt: skip
