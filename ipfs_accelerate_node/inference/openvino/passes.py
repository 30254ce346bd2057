"""One forward pass of a compiled graph, with the device's errors as ours."""

from __future__ import annotations

from collections.abc import Mapping

import openvino

from ipfs_accelerate_node.errors import InferenceFailed, Unavailable
from ipfs_accelerate_node.inference.session import Array


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
