"""How like two engines' primary outputs are, and from where on they count as the same model's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]

INPUTS = 20  # sample inputs that are compared: enough for a minimum to mean something

# Cosine with f32 below which a device does not compute the same model: smallest of the inputs; int8: mean.
AGREES = {"f32": 0.9999, "bf16": 0.999, "f16": 0.999, "int8": 0.98}
# Where the output has a row for each token: of these rows, how many have their largest number in the same place.
# A random choice between two tokens that are about as likely is no fault; more than a few are.
SAME_TOKENS = 0.95


@dataclass(frozen=True, slots=True)
class Likeness:
    """minimum: smallest cosine of an output to f32's. same: share of rows whose largest number is in the same place,
    None for outputs of one row. inputs: that were compared."""

    minimum: float
    same: float | None
    inputs: int

    def __str__(self) -> str:
        same = "" if self.same is None else f", {self.same:.1%} of the tokens the same"
        return f"smallest cosine to f32 {self.minimum:.6f}{same} over {self.inputs} inputs"

    def refusal(self, precision: str) -> str:
        """Why this is not the same model; empty when it is."""
        if self.minimum < AGREES[precision]:
            return f"{self}; at least {AGREES[precision]} is wanted"
        if self.same is not None and self.same < SAME_TOKENS:
            return f"{self}; at least {SAME_TOKENS:.0%} are wanted"
        return ""


def likeness(pairs: Sequence[tuple[float, int, int]]) -> Likeness:
    """Of what ``compared`` gave for each input; at least one."""
    rows = sum(of for _, _, of in pairs)
    same = sum(same for _, same, _ in pairs) / rows if rows else None
    return Likeness(min(cosine for cosine, _, _ in pairs), same, len(pairs))


def compared(one: Array, exact: Array) -> tuple[float, int, int]:
    """(cosine, rows with their largest number in the same place, rows); no rows where an output is one vector, and a
    cosine of -1 for outputs that are none or of unlike shape."""
    if one.shape != exact.shape or not one.size or not np.isfinite(one).all():
        return -1.0, 0, 0
    if one.ndim < 2:
        return cosine(one, exact), 0, 0
    same = one.argmax(axis=-1) == exact.argmax(axis=-1)
    return cosine(one, exact), int(same.sum()), int(same.size)


def cosine(one: Array, other: Array) -> float:
    """Of two arrays of the same shape as flat vectors; exactly 1 for equal arrays, zeros among them."""
    if np.array_equal(one, other):
        return 1.0
    a, b = one.astype(np.float64).ravel(), other.astype(np.float64).ravel()
    lengths = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(np.clip(a @ b / lengths, -1.0, 1.0)) if lengths else 0.0
