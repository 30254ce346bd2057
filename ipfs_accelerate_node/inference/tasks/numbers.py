"""From logits to probabilities, and the check that they are numbers at all."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ipfs_accelerate_node.errors import InferenceFailed

Floats = NDArray[np.float32]


def softmax(logits: Floats) -> Floats:
    """Along the last axis."""
    raised = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.asarray(raised / raised.sum(axis=-1, keepdims=True), dtype=np.float32)


def sigmoid(logits: Floats) -> Floats:
    """Each for itself; saturates without overflow."""
    small = np.exp(-np.abs(logits))
    return np.asarray(np.where(logits >= 0, 1 / (1 + small), small / (1 + small)), dtype=np.float32)


def unit(vectors: Floats) -> Floats:
    """Rows of length one; a row of zeros stays as it is."""
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return np.asarray(vectors / np.maximum(lengths, 1e-12), dtype=np.float32)


def not_finite(index: int) -> InferenceFailed:
    return InferenceFailed(f"the model's output for input {index} is not finite", index=index)


def finite_rows(values: Floats) -> list[bool]:
    """Of each row of (rows, …): are its numbers all finite?"""
    finite = np.asarray(np.isfinite(values).reshape(len(values), -1).all(axis=1))
    return [bool(row) for row in finite]


def check_finite(values: Floats, indices: Sequence[int]) -> None:
    """values: (rows, …), row i for the item ``indices[i]``. Raises InferenceFailed with the first item's index whose
    values are not all finite."""
    finite = finite_rows(values)
    if not all(finite):
        raise not_finite(min(indices[at] for at, fine in enumerate(finite) if not fine))
