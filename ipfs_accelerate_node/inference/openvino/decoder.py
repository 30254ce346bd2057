"""Token by token through a stateful graph: OpenVINO keeps the cache of keys and values between passes."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import openvino
from numpy.typing import NDArray

from ipfs_accelerate_node.errors import InferenceFailed
from ipfs_accelerate_node.inference.openvino.artefact import Graph
from ipfs_accelerate_node.inference.openvino.passes import TokenLimits, run_pass
from ipfs_accelerate_node.inference.session import Array

CROSS = "cross."  # prefix of what the encoder hands over: keys and values of the cross-attention
ENCODER_MASK = "encoder_attention_mask"


class OpenVinoDecoder:
    """One batch of sequences. Owns its request, and in it the cache; main thread of the worker only."""

    def __init__(self, request: openvino.InferRequest, graph: Graph, limits: TokenLimits) -> None:
        self._request = request
        self._graph = graph
        self._limits = limits
        self._encoded: dict[str, Array] = {}  # by the graph's names; bound in place, so they stay alive here
        self._owner: NDArray[np.int64] | None = None  # which encoded sequence each row goes on from
        self._started = False

    def start(self, encoded: Mapping[str, Array] | None) -> None:
        """encoded: what graph ``encoder`` returned, and its attention_mask; None for a decoder-only model.

        Raises InferenceFailed: something that the decoder needs is not among it.
        """
        self._request.reset_state()
        self._encoded, self._owner, self._started = {}, None, True
        for name in self._graph.inputs:
            if name != ENCODER_MASK and not name.startswith(CROSS):
                continue
            given = (encoded or {}).get("attention_mask" if name == ENCODER_MASK else name)
            if given is None:
                raise InferenceFailed(f"the decoder needs the encoder's {name!r}")
            kind = np.int64 if name == ENCODER_MASK else np.float32
            self._encoded[name] = np.ascontiguousarray(given, dtype=kind)
        if self._encoded:
            self._owner = np.arange(len(next(iter(self._encoded.values()))), dtype=np.int64)
            self._bind()

    def step(self, input_ids: Array, attention_mask: Array, *, beam: Array | None = None) -> NDArray[np.float32]:
        """Logits of the last position, (batch, vocabulary).

        input_ids: (batch, n) int64, the new tokens. attention_mask: (batch, total) int64 over past and new ones. beam:
        (batch,), which of the earlier sequences each row goes on from; None: its own.
        Raises InferenceFailed, also when it was not started; Unavailable(out_of_memory).
        """
        if not self._started:
            raise InferenceFailed("a decoder is started before its first step")
        self._limits.check({"input_ids": input_ids, "attention_mask": attention_mask})
        rows, new = input_ids.shape
        order = np.arange(rows) if beam is None else np.asarray(beam)
        self._follow(order)
        inputs: dict[str, Array] = {
            "input_ids": np.ascontiguousarray(input_ids, dtype=np.int64),
            "attention_mask": np.ascontiguousarray(attention_mask, dtype=np.int64),
            "beam_idx": order.astype(np.int32),
        }
        if "position_ids" in self._graph.inputs:
            inputs["position_ids"] = positions(inputs["attention_mask"], new)
        run_pass(self._request, "decoder", {name: inputs[name] for name in self._graph.inputs if name in inputs})
        return np.array(self._request.get_tensor("logits").data, dtype=np.float32)

    def _follow(self, order: Array) -> None:
        """Give each row the encoded sequence of the one that it goes on from."""
        if self._owner is None or (len(order) == len(self._owner) and (self._owner[order] == self._owner).all()):
            return
        self._owner = self._owner[order]
        self._encoded = {name: np.ascontiguousarray(array[order]) for name, array in self._encoded.items()}
        self._bind()

    def _bind(self) -> None:
        """Once per batch, not per token."""
        for name, array in self._encoded.items():
            self._request.set_tensor(name, openvino.Tensor(array, shared_memory=True))


def positions(attention_mask: NDArray[np.int64], new: int) -> NDArray[np.int64]:
    """(batch, new): how many real tokens come before each of the last ``new`` ones; 0 for padding on the left."""
    return np.ascontiguousarray(np.maximum(attention_mask.cumsum(axis=1) - 1, 0)[:, -new:])
