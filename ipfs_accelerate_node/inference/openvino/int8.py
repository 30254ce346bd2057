"""Post-training quantisation of text encoders to int8, with a judgement of how near the result is. Converting process.

Scales are set by calibration texts; the judgement uses others. A model that int8 moves too far is refused, never served
in silence: ``Int8Gate`` says by how much every int8 answer differs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import cast

import numpy as np
import openvino
from numpy.typing import NDArray

from ipfs_accelerate_node.errors import InferenceFailed, ModelUnsupported
from ipfs_accelerate_node.inference.model import Item, Pair, Text
from ipfs_accelerate_node.inference.openvino.artefact import Int8Gate
from ipfs_accelerate_node.inference.openvino.int8_texts import CALIBRATION, JUDGING, lengthened
from ipfs_accelerate_node.inference.session import Array, Engine, Processing

TASKS = ("embedding", "text-classification", "rerank", "token-classification")
LEAST_MEAN_COSINE = 0.99
_SETTINGS = {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0}


@dataclass
class Compiled:
    """One graph on the CPU in f32, as much of an engine as a processing of texts needs; keeps what it was given."""

    graph: str
    model: openvino.Model
    given: list[dict[str, Array]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._compiled = openvino.Core().compile_model(self.model, "CPU", _SETTINGS)

    def run(self, graph: str, inputs: Mapping[str, Array]) -> dict[str, Array]:
        if graph != self.graph:
            raise InferenceFailed(f"no graph {graph!r}")
        self.given.append({port.get_any_name(): inputs[port.get_any_name()] for port in self._compiled.inputs})
        found = self._compiled(self.given[-1])
        return {port.get_any_name(): np.array(found[port]) for port in self._compiled.outputs}


def quantised(
    graph: str, model: openvino.Model, task: str, processing: Processing, say: Callable[[str], None]
) -> tuple[openvino.Model, Int8Gate]:
    """The model in int8, and how near it is. model: unchanged.

    Raises ModelUnsupported: task_unsupported, not a task whose encoder is quantised; int8_inaccurate, too far from f32.
    """
    if task not in TASKS:
        raise ModelUnsupported(f"int8 is for {', '.join(TASKS)} of texts, not {task}", code="task_unsupported")
    exact = Compiled(graph, model)
    calibration = lengthened(CALIBRATION)
    _primaries(processing, exact, items_of(calibration, task))
    say(f"quantising graph {graph}")
    small = _quantise(model, exact.given)
    say("judging int8")
    judging = items_of(lengthened(JUDGING), task)
    found = judge(_primaries(processing, exact, judging), _primaries(processing, Compiled(graph, small), judging))
    gate = Int8Gate(len(judging), len(calibration), *found)
    if not gate.mean_cosine >= LEAST_MEAN_COSINE:
        raise ModelUnsupported(
            f"int8 moves this model too far: mean cosine {gate.mean_cosine:.4f} to f32, {LEAST_MEAN_COSINE} is needed "
            f"(minimum {gate.min_cosine:.4f} over {gate.texts} texts)",
            code="int8_inaccurate",
            mean_cosine=gate.mean_cosine,
            min_cosine=gate.min_cosine,
            changed_neighbours=gate.changed_neighbours,
        )
    return small, gate


def items_of(texts: Sequence[str], task: str) -> list[Item]:
    if task != "rerank":
        return [Text(text) for text in texts]
    return [Pair(first, second) for first, second in zip(texts, (*texts[1:], texts[0]), strict=True)]


def _quantise(model: openvino.Model, given: Sequence[Mapping[str, Array]]) -> openvino.Model:
    import nncf  # type: ignore[import-untyped,unused-ignore]

    nncf.set_log_level(40)
    found: openvino.Model = nncf.quantize(
        model,
        nncf.Dataset(list(given)),
        model_type=nncf.ModelType.TRANSFORMER,
        subset_size=len(given),
    )
    return found


def _primaries(processing: Processing, engine: Compiled, items: Sequence[Item]) -> list[NDArray[np.float32]]:
    return [processing.primary(cast(Engine, engine), item) for item in items]


def judge(exact: Sequence[NDArray[np.float32]], small: Sequence[NDArray[np.float32]]) -> tuple[float, float, float]:
    """(mean cosine, least cosine, share of changed neighbours) of small to exact, text by text.

    A single number a text has no direction: then all of them together are one vector. Only vectors of one width have
    neighbours.
    """
    sizes = {array.size for array in exact}
    if sizes == {1}:
        exact, small = [np.concatenate(exact, axis=None)], [np.concatenate(small, axis=None)]
    cosines = [_cosine(a, b) for a, b in zip(exact, small, strict=True)]
    changed = 0.0
    if len(sizes) == 1 and len(exact) > 1:
        changed = float((_neighbours(exact) != _neighbours(small)).mean())
    return float(np.mean(cosines)), float(np.min(cosines)), changed


def _cosine(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    one, other = a.astype(np.float64).ravel(), b.astype(np.float64).ravel()
    norms = float(np.linalg.norm(one) * np.linalg.norm(other))
    return float(one @ other) / norms if norms > 0 else 0.0


def _neighbours(vectors: Sequence[NDArray[np.float32]]) -> NDArray[np.int64]:
    """For each vector the index of the nearest other one."""
    rows = np.stack([vector.ravel() for vector in vectors]).astype(np.float64)
    rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    near = rows @ rows.T
    np.fill_diagonal(near, -np.inf)
    nearest: NDArray[np.int64] = near.argmax(axis=1)
    return nearest
