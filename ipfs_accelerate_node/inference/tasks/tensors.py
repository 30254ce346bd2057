"""What a model itself gives, for callers who do the rest: vectors of single tokens, and logits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from ipfs_accelerate_node.errors import NodeError, PayloadTooLarge
from ipfs_accelerate_node.inference.model import Output, Tensor
from ipfs_accelerate_node.inference.session import Asked, Engine, passes_of
from ipfs_accelerate_node.inference.tasks.batches import BATCH_TOKENS, batches
from ipfs_accelerate_node.inference.tasks.numbers import check_finite, not_finite
from ipfs_accelerate_node.inference.tasks.text_graphs import TextGraph, real
from ipfs_accelerate_node.inference.tasks.texts import Row

HIDDEN = "hidden"
MAX_BYTES = 32 << 20  # of one answer: 16,000 tokens of 512 numbers each


def token_vectors(graph: TextGraph, engine: Engine, rows: Sequence[Row], between: Callable[[], None]) -> list[Output]:
    """The last layer's vectors of each row's tokens, special ones included: a Tensor (tokens, width) each.

    Few rows go through at once, and between them whatever else waits. Raises PayloadTooLarge after the first pass at
    the latest; InferenceFailed.
    """
    passes = replace(passes_of(engine), packed=False)
    graph, found = replace(graph, graph=HIDDEN), dict[int, Output]()
    tokens = sum(len(row.ids) for row in rows)
    budget = min(passes.tokens, BATCH_TOKENS)
    for batch in batches([passes.length(len(row.ids)) for row in rows], budget, most=passes.rows):
        between()
        together = [rows[index] for index in batch]
        feed = graph.feed([graph.piece(row) for row in together], passes)
        hidden = engine.run(feed.graph, feed.arrays)[HIDDEN]
        check_answer(tokens * hidden.shape[-1])
        own = [real(hidden[at], row) for at, row in enumerate(together)]
        for index, row, values in zip(batch, together, own, strict=True):
            check_finite(values[None], [index])
            found[index] = Tensor(values.copy(), len(row.ids), row.truncated)
    return [found[index] for index in range(len(rows))]


def check_answer(numbers: int) -> None:
    """Raises PayloadTooLarge: one answer would have more than ``MAX_BYTES``."""
    if 4 * numbers > MAX_BYTES:
        raise PayloadTooLarge(
            f"the answer would have {4 * numbers >> 20} MiB, at most {MAX_BYTES >> 20} are given: send fewer at once",
            param="input",
        )


def raw_logits(logits: NDArray[np.float32], asked: Asked) -> Output | NodeError:
    """logits: of one item, without padding."""
    if not np.isfinite(logits).all():
        return not_finite(asked.index)
    row = asked.piece.content
    told = (len(row.ids), row.truncated) if isinstance(row, Row) else (0, False)
    return Tensor(np.array(logits), *told)
