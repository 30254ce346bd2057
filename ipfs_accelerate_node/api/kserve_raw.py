"""Tensors that are the model's own: pixels as it takes them, and what it gave before a task made something of it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from ipfs_accelerate_node.api.kserve_tensors import Tensor, refused
from ipfs_accelerate_node.errors import PayloadTooLarge
from ipfs_accelerate_node.inference import Inferred, Item
from ipfs_accelerate_node.inference import model as models
from ipfs_accelerate_node.inference.tasks.tensors import MAX_BYTES

MASK = "attention_mask"
_FLOATS = ("FP16", "BF16", "FP32")


def pixels(given: Mapping[str, Tensor]) -> list[Item]:
    """One item for each picture of ``pixel_values`` (pictures, channels, height, width). Raises InvalidInput."""
    tensor = given["pixel_values"]
    if tensor.datatype not in _FLOATS or len(tensor.shape) != 4:
        raise refused(tensor.name, f"must be {' or '.join(_FLOATS)} of (pictures, channels, height, width)")
    values = np.ascontiguousarray(tensor.numbers(), dtype="<f4")
    _, channels, height, width = tensor.shape
    return [models.PixelValues((channels, height, width), picture.tobytes()) for picture in values]


def raw_outputs(name: str, done: Inferred, given: Mapping[str, Tensor]) -> dict[str, NDArray[np.generic]]:
    """The output, one row an item. Tokens stand where the request has them, or first; there are zeros for padding, and
    ``attention_mask`` says where. Raises PayloadTooLarge."""
    rows = [output.values for output in done.outputs if isinstance(output, models.Tensor)]
    if rows[0].ndim == 1:
        return {name: np.stack(rows)}
    real = _places(given, [len(row) for row in rows])
    shape = (*real.shape, rows[0].shape[1])
    if 4 * math.prod(shape) > MAX_BYTES:
        raise PayloadTooLarge(
            f"{name} of the shape {list(shape)} is over {MAX_BYTES >> 20} MiB: send fewer, or such of one length",
            param="inputs",
        )
    values = np.zeros(shape, dtype="<f4")
    values[real] = np.concatenate(rows)
    return {name: values, MASK: real.astype("<i8")}


def _places(given: Mapping[str, Tensor], lengths: Sequence[int]) -> NDArray[np.bool_]:
    """(items, tokens): where there is a token."""
    if "input_ids" not in given:
        return np.arange(max(lengths))[None, :] < np.array(lengths)[:, None]
    if MASK in given:
        return np.asarray(given[MASK].numbers() != 0)
    return np.ones(given["input_ids"].shape, dtype=np.bool_)
