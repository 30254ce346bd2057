"""One forward pass of a compiled graph: what may go in, and the device's errors as ours."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import openvino

from ipfs_accelerate_node.errors import InferenceFailed, Unavailable
from ipfs_accelerate_node.inference.session import Array


@dataclass(frozen=True, slots=True)
class TokenLimits:
    """What lies in a model's tables. OpenVINO takes zeros for what does not, and repeats rows that are missing. 0: no
    limit."""

    vocab_size: int
    longest: int

    def check(self, inputs: Mapping[str, Array]) -> None:
        """Raises InferenceFailed: a token or a position that the model has not, or a mask of other rows than tokens."""
        ids = inputs.get("input_ids")
        if ids is None or not ids.size:
            return
        if self.vocab_size and not 0 <= int(ids.min()) <= int(ids.max()) < self.vocab_size:
            raise InferenceFailed(f"a token id is not one of the model's {self.vocab_size:,}")
        if self.longest and ids.shape[-1] > self.longest:
            raise InferenceFailed(f"{ids.shape[-1]:,} tokens, the model has positions for {self.longest:,}")
        mask = inputs.get("attention_mask", ids)
        if mask.ndim != 2 or len(mask) != len(ids) or mask.shape[1] < ids.shape[1]:
            raise InferenceFailed(f"an attention mask of {mask.shape} for tokens of {ids.shape}")


def run_pass(request: openvino.InferRequest, graph: str, inputs: Mapping[str, Array]) -> None:
    """Blocks until the request's outputs are there. inputs: C-contiguous arrays by the graph's names; they are used in
    place and must not change meanwhile.

    Raises InferenceFailed; Unavailable(out_of_memory).
    """
    try:
        for name, array in inputs.items():
            request.set_tensor(name, openvino.Tensor(array, shared_memory=True))
        request.infer()
    except RuntimeError as exc:
        said = " ".join(str(exc).split())
        if "allocate" in said or "out of memory" in said.lower() or "bad_alloc" in said:
            message = f"not enough memory: {said[:200]}"
            raise Unavailable(message, code="out_of_memory", retry_after_s=5.0) from exc
        raise InferenceFailed(f"OpenVINO failed in graph {graph!r}: {said[:300]}") from exc
