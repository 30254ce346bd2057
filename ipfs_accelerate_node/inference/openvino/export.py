"""From a torch model to OpenVINO graphs, each compared with what it was made from. Runs in the converting process.

A traced graph keeps the path that the traced inputs took. So they have a batch, padding, and lengths that occur nowhere
else, and each finished graph then runs on inputs of other sizes beside the torch module: one that differs is refused.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import openvino
import openvino.opset13 as ops
import torch
from torch import Tensor, nn

from ipfs_accelerate_node.errors import ModelUnsupported
from ipfs_accelerate_node.inference.openvino.stateful import BEAM, keep_state
from ipfs_accelerate_node.inference.session import Array

Arrays = dict[str, Array]
Dims = tuple[int, ...]  # -1: any

# Of each graph's outputs to torch's, in f32. Far below what any wrong branch gives, far above rounding.
LEAST_COSINE = 0.99995

_MASKED = -30_000.0  # added to a score: its exponential is 0 beside any other, and f16 holds it


@dataclass(frozen=True, slots=True)
class Port:
    """An input. dims: -1 where any size may come. example: what is traced."""

    name: str
    dims: Dims
    example: Tensor


@dataclass(frozen=True, slots=True)
class Plan:
    """One graph to make. module: takes the ports' tensors in their order, gives the outputs in theirs. past: input →
    output that is its next value, for what becomes state. checks: inputs of other sizes than the examples; of a decoder
    one after the other, each with ``beam_idx``. exact: see ``artefact.Graph``."""

    name: str
    module: nn.Module
    ports: tuple[Port, ...]
    outputs: tuple[str, ...]
    past: Mapping[str, str]
    checks: tuple[Arrays, ...]
    exact: bool = False


class Named(nn.Module):
    """A function from named tensors to named tensors, as a module that takes and returns them in order."""

    def __init__(
        self, run: Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]], inputs: Sequence[str], outputs: Sequence[str]
    ) -> None:
        super().__init__()
        self._run = run
        self._inputs = tuple(inputs)
        self._outputs = tuple(outputs)

    def forward(self, *arrays: Tensor) -> tuple[Tensor, ...]:
        found = self._run(dict(zip(self._inputs, arrays, strict=True)))
        return tuple(found[name] for name in self._outputs)


def convert(plan: Plan) -> openvino.Model:
    """The graph, with named inputs and outputs, dynamic sizes, and state.

    Raises ModelUnsupported(task_unsupported), and any error of the two libraries, over a stranger's model.
    """
    example = tuple(port.example for port in plan.ports)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the tracer, about the paths it took: that is what the check is for
        model = openvino.convert_model(plan.module, example_input=example)
    _name(model, plan)
    _finite_masks(model)
    if plan.past:
        keep_state(model, plan.past)
        model.set_rt_info("f32", ["runtime_options", "KV_CACHE_PRECISION"])
    return model


def _name(model: openvino.Model, plan: Plan) -> None:
    if len(model.inputs) != len(plan.ports) or len(model.outputs) != len(plan.outputs):
        raise ModelUnsupported(
            f"graph {plan.name!r} cannot be converted: {len(model.inputs)} inputs and {len(model.outputs)} outputs "
            f"came out of {len(plan.ports)} and {len(plan.outputs)}",
            code="task_unsupported",
        )
    for port, found in zip(plan.ports, model.inputs, strict=True):
        found.get_tensor().set_names({port.name})
        found.get_node().set_friendly_name(port.name)
    for name, output in zip(plan.outputs, model.outputs, strict=True):
        output.get_tensor().set_names({name})
    model.reshape({found: list(port.dims) for port, found in zip(plan.ports, model.inputs, strict=True)})


def _finite_masks(model: openvino.Model) -> None:
    """Attention masks as numbers. By a boolean mask OpenVINO makes NaN of a row that may look at nothing, as rows of
    padding in a sliding window; a number keeps it finite, and is as good as infinite for the others."""
    for node in model.get_ops():
        if node.get_type_name() != "ScaledDotProductAttention" or node.get_input_size() < 4:
            continue
        mask = node.input_value(3)
        if mask.get_element_type() == openvino.Type.boolean:
            zero, cut = ops.constant(np.float32(0)), ops.constant(np.float32(_MASKED))
            node.input(3).replace_source_output(ops.select(mask, zero, cut).output(0))
    model.validate_nodes_and_infer_types()


def check(plan: Plan, model: openvino.Model, core: openvino.Core) -> None:
    """Run graph and module on the same inputs. Raises ModelUnsupported(task_unsupported): they differ."""
    settings = {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0}
    request = core.compile_model(model, "CPU", settings).create_infer_request()
    outputs = [name for name in plan.outputs if name not in plan.past.values()]
    past = {port.name: torch.zeros(0, port.dims[1], 0, port.dims[3]) for port in plan.ports if port.name in plan.past}
    for arrays in plan.checks:
        try:
            request.infer(arrays)
            expected, past = _torch(plan, arrays, past)
        except RuntimeError as exc:
            said = " ".join(str(exc).split())[-300:]
            message = f"graph {plan.name!r} fails on other sizes than it was traced with: {said}"
            raise ModelUnsupported(message, code="task_unsupported") from exc
        for name in outputs:
            _compare(plan.name, name, np.array(request.get_tensor(name).data), expected[name])


def _torch(plan: Plan, arrays: Arrays, past: Mapping[str, Tensor]) -> tuple[Arrays, dict[str, Tensor]]:
    """The module's outputs, and the past of the next call."""
    given = {name: torch.from_numpy(array) for name, array in arrays.items() if name != BEAM}
    rows = len(next(iter(given.values())))
    for name, tensor in past.items():
        order = torch.from_numpy(arrays[BEAM]).long()
        begun = tensor.shape[0] > 0
        given[name] = tensor.index_select(0, order) if begun else tensor.new_zeros(rows, *tensor.shape[1:])
    with torch.no_grad():
        found = plan.module(*(given[port.name] for port in plan.ports))
    named = dict(zip(plan.outputs, found, strict=True))
    following = {into: named[out] for into, out in plan.past.items()}
    return {name: tensor.float().numpy() for name, tensor in named.items()}, following


def _compare(graph: str, output: str, ours: Array, expected: Array) -> None:
    a, b = ours.astype(np.float64).ravel(), expected.astype(np.float64).ravel()
    norms = float(np.linalg.norm(a) * np.linalg.norm(b))
    same = a.shape == b.shape and np.isfinite(a).all() == np.isfinite(b).all()
    cosine = float(a @ b) / norms if same and norms > 0 else float(same and np.allclose(a, b, atol=1e-6))
    if not cosine >= LEAST_COSINE and np.isfinite(b).all():
        raise ModelUnsupported(
            f"graph {graph!r} is not what it was made from: {output} has a cosine of {cosine:.5f} to torch's",
            code="task_unsupported",
        )
