"""A request by itself, for tasks whose items are rows: the same steps that requests go through together."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ipfs_accelerate_node.errors import NodeError
from ipfs_accelerate_node.inference.model import Item, Options, Output
from ipfs_accelerate_node.inference.session import Asked, Engine, Rowwise, passes_of
from ipfs_accelerate_node.inference.tasks.batches import batches


def infer_rows(
    processing: Rowwise, engine: Engine, items: Sequence[Item], options: Options, between: Callable[[], None]
) -> list[Output]:
    """See ``Processing.infer``."""
    pieces = processing.prepare(items, options)
    passes = processing.passes(passes_of(engine))
    found: dict[int, Output] = {}
    for lane in dict.fromkeys(piece.lane for piece in pieces):
        own = [index for index, piece in enumerate(pieces) if piece.lane == lane]
        lengths = [passes.length(pieces[index].cost) for index in own]
        for batch in batches(lengths, passes.tokens, most=passes.rows):
            between()
            rows = [Asked(pieces[own[at]], own[at], items[own[at]], options) for at in batch]
            arrays = processing.feed([row.piece for row in rows], passes).begin(engine)()
            for row, output in zip(rows, processing.outputs(arrays, rows), strict=True):
                if isinstance(output, NodeError):
                    raise output
                found[row.index] = output
    return [found[index] for index in range(len(items))]
