"""A converted model on an OpenVINO device. Imports neither torch nor transformers, and nothing that does."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from pathlib import Path

import numpy as np
import openvino

from ipfs_accelerate_node.errors import BadContent, DeviceUnavailable, InferenceFailed, ModelUnsupported, NodeError
from ipfs_accelerate_node.inference import depthwise
from ipfs_accelerate_node.inference.model_files import ModelFiles
from ipfs_accelerate_node.inference.openvino.artefact import Artefact, form_of, read_artefact, weights_of
from ipfs_accelerate_node.inference.openvino.decoder import OpenVinoDecoder
from ipfs_accelerate_node.inference.openvino.paged import OpenVinoSequences, make_paged
from ipfs_accelerate_node.inference.openvino.passes import TokenLimits, run_pass
from ipfs_accelerate_node.inference.session import Array

PREFIX = "openvino:"
DECODER = "decoder"
VECTORS = "vectors"
HIDDEN = "hidden"  # an output of graph ``vectors``, and a graph of its own to who asks

# What the float arithmetic of each precision is asked to be. An int8 graph keeps its float parts in f32: its gate was
# measured so.
_HINT = {"f32": "f32", "bf16": "bf16", "f16": "f16", "int8": "f32"}

# Compiled kernels that are kept for shapes seen before. A new shape of a batch costs a third of a megabyte of them and
# a few milliseconds; by its own limit of 5,000 OpenVINO lets a worker grow by more than the weights of many models.
KERNELS_KEPT = 200
_INTEGERS = frozenset({"input_ids", "attention_mask", "token_type_ids"})


def load(
    artefact: Path, files: ModelFiles, task: str, *, device: str, precision: str, threads: int | None = None
) -> OpenVinoEngine:
    """Compile every graph of an artefact for a device. Blocking.

    artefact: a directory that ``artefacts.ensure`` returned, whose bytes were checked there. device: ``openvino:CPU``,
    ``openvino:GPU``, … threads: of the CPU; None is OpenVINO's own choice.
    Raises DeviceUnavailable: no such device, or it does not compute in that precision. BadContent(bad_artefact): not a
    whole artefact, or one of another task or precision.
    """
    described = read_artefact(artefact)
    if described.form != form_of(task) or described.weights != weights_of(precision):
        raise BadContent(f"artefact {artefact.name} is not one of {task} in {precision}", code="bad_artefact")
    core, name = openvino.Core(), device.removeprefix(PREFIX)
    compiled: dict[str, openvino.CompiledModel] = {}
    stateful: Callable[[], openvino.CompiledModel] | None = None
    hidden: Callable[[], openvino.CompiledModel] | None = None
    for graph in described.graphs:
        xml, settings = artefact / graph.xml.name, _settings(name, "f32" if graph.exact else precision, threads)
        try:
            model = core.read_model(xml)
            if files.family == "causal" and graph.name == DECODER and name == "CPU" and make_paged(model):
                stateful = cache(partial(core.compile_model, str(xml), name, settings))
            else:
                model = core.read_model(xml)
            if HIDDEN in graph.outputs and graph.name == VECTORS:
                hidden = cache(partial(_compile_hidden, core, xml, name, settings))
                _keep(model, [output for output in graph.outputs if output != HIDDEN])
            compiled[graph.name] = core.compile_model(model, name, settings)
        except RuntimeError as exc:
            raise _refused(core, name, graph.name, exc) from exc
    longest = files.max_tokens if files.family in ("encoder", "dual") else 0
    limits = TokenLimits(files.vocab_size, longest)
    engine = OpenVinoEngine(described, compiled, limits, stateful=stateful, hidden=hidden, positions=files.max_tokens)
    if engine.precision != precision:
        raise DeviceUnavailable(
            f"{engine.device} computes in {engine.precision} when it is asked for {precision}",
            device=device,
            reason=f"no {precision} arithmetic",
        )
    return engine


class OpenVinoEngine:
    """One compiled model per graph. Every method blocks; main thread of the worker only.

    Small batches of about one length do as much per second on a CPU as large ones, and answer sooner. A shape that was
    not seen lately costs some milliseconds, so lengths and numbers of rows are few.
    """

    engine = "openvino"
    batch_tokens = 768
    pass_tokens = 64
    length_step = 4
    even_rows = True

    def __init__(
        self,
        artefact: Artefact,
        compiled: Mapping[str, openvino.CompiledModel],
        limits: TokenLimits,
        *,
        stateful: Callable[[], openvino.CompiledModel] | None = None,
        hidden: Callable[[], openvino.CompiledModel] | None = None,
        positions: int = 0,
    ) -> None:
        """stateful: compiles the decoder as it is in the artefact, where ``compiled`` has it in its paged form.
        hidden: compiles what gives ``hidden``, which takes the weights' memory again, when it is first asked for.
        positions: tokens of one text that it writes."""
        self.device = PREFIX + "+".join(sorted({name for model in compiled.values() for name in _devices(model)}))
        self.precision = _precision(artefact, compiled)
        self.notes = artefact.notes + _wider_parts(artefact, self.precision)
        self.versions = {"openvino": str(openvino.__version__).split("-")[0], "numpy": np.__version__}
        self._artefact = artefact
        self._limits = limits
        self.compiled = compiled
        self._requests: dict[str, openvino.InferRequest] = {}
        self._stateful = stateful
        self._hidden = hidden
        self._positions = positions
        self._sequences: OpenVinoSequences | None = None

    def run(self, graph: str, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """One pass. Inputs that the graph has no use for are ignored; token types that are not given are zeros.

        Raises ModelUnsupported(task_unsupported): the model has no such graph. InferenceFailed: the device did.
        """
        if graph in self._artefact.scalars:
            return {graph: np.asarray(self._artefact.scalars[graph], dtype=np.float32)}
        described = self._artefact.graph(VECTORS if graph == HIDDEN else graph)
        if described is None or graph == DECODER or (graph == HIDDEN and self._hidden is None):
            raise ModelUnsupported(f"the model has no graph {graph!r}", code="task_unsupported")
        if graph not in self._requests:
            self._requests[graph] = self._of(graph).create_infer_request()
        self._limits.check(inputs)
        request = self._requests[graph]
        run_pass(request, graph, {name: _given(name, inputs) for name in described.inputs})
        found = [output.get_any_name() for output in self._of(graph).outputs]
        return {name: np.array(request.get_tensor(name).data, dtype=np.float32) for name in found}

    def _of(self, graph: str) -> openvino.CompiledModel:
        return self._hidden() if graph == HIDDEN and self._hidden is not None else self.compiled[graph]

    def decoder(self) -> OpenVinoDecoder:
        """Raises ModelUnsupported(task_unsupported): the model does not generate."""
        described = self._artefact.graph(DECODER)
        if described is None:
            raise ModelUnsupported("the model does not generate", code="task_unsupported")
        compiled = self.compiled[DECODER] if self._stateful is None else self._stateful()
        return OpenVinoDecoder(compiled.create_infer_request(), described, self._limits)

    def sequences(self) -> OpenVinoSequences | None:
        """See ``session.Engine``."""
        if self._sequences is None and self._stateful is not None:
            self._sequences = OpenVinoSequences(self.compiled[DECODER], self._limits, positions=self._positions)
        return self._sequences

    def memory_bytes(self) -> int:
        """What OpenVINO says that a GPU holds for this process; 0 on devices that use the machine's own memory."""
        name = self.device.removeprefix(PREFIX)
        core = openvino.Core()
        if not name.startswith("GPU") or "GPU_MEMORY_STATISTICS" not in core.get_property(name, "SUPPORTED_PROPERTIES"):
            return 0
        return sum(int(size) for size in core.get_property(name, "GPU_MEMORY_STATISTICS").values())


def _settings(device: str, precision: str, threads: int | None) -> dict[str, object]:
    """KV_CACHE_PRECISION always by name: OpenVINO's own choice is 8 bits, whatever the hint says."""
    settings: dict[str, object] = {"INFERENCE_PRECISION_HINT": _HINT[precision], "PERFORMANCE_HINT": "LATENCY"}
    if device != "CPU":
        return settings | ({"KV_CACHE_PRECISION": "f16"} if device.startswith("GPU") else {})
    settings |= {
        "KV_CACHE_PRECISION": _HINT[precision],
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0,
        "NUM_STREAMS": 1,
        "ENABLE_CPU_PINNING": False,  # the machine is shared, with our own other workers too
        "CPU_RUNTIME_CACHE_CAPACITY": KERNELS_KEPT,
    }
    return settings if threads is None else settings | {"INFERENCE_NUM_THREADS": threads}


def _compile_hidden(core: openvino.Core, xml: Path, device: str, settings: dict[str, object]) -> openvino.CompiledModel:
    """Raises InferenceFailed."""
    try:
        model = core.read_model(xml)
        _keep(model, [HIDDEN])
        return core.compile_model(model, device, settings)
    except RuntimeError as exc:
        raise _refused(core, device, HIDDEN, exc) from exc


def _keep(model: openvino.Model, outputs: Sequence[str]) -> None:
    """Only these outputs: what is computed for the others alone is not computed at all."""
    for port in model.outputs:
        if port.get_any_name() not in outputs:
            model.remove_result(port.get_node())


def _refused(core: openvino.Core, device: str, graph: str, exc: RuntimeError) -> NodeError:
    """A device that is not there, or a graph that it does not take."""
    said = " ".join(str(exc).split())[-300:]
    if device not in core.available_devices:
        found = ", ".join(PREFIX + name for name in core.available_devices) or "none"
        reason = f"OpenVINO reports no such device here (it has: {found})"
        full = PREFIX + device
        return DeviceUnavailable(f"device {full} is not available: {reason}", device=full, reason=reason)
    return InferenceFailed(f"{PREFIX}{device} does not compile graph {graph!r}: {said}")


def _devices(model: openvino.CompiledModel) -> list[str]:
    """Where it really runs."""
    return [str(name).strip("()") for name in model.get_property("EXECUTION_DEVICES")]


def _precision(artefact: Artefact, compiled: Mapping[str, openvino.CompiledModel]) -> str:
    """Of all graphs that are not exact, as read back: a device that lacks a precision takes another without a word."""
    models = [compiled[graph.name] for graph in artefact.graphs if not graph.exact]
    names = {str(model.get_property("INFERENCE_PRECISION_HINT").to_string()) for model in models}
    found = "+".join(sorted(names))
    return "int8" if artefact.weights == "int8" and found == _HINT["int8"] else found


def _wider_parts(artefact: Artefact, precision: str) -> tuple[str, ...]:
    """For a person: what computes in f32 though another precision was asked for."""
    if precision not in ("bf16", "f16"):
        return ()
    exact = [graph.name for graph in artefact.graphs if graph.exact]
    told = [f"graph {', '.join(exact)} computes in f32"] if exact else []
    mixed = [graph.mixed for graph in artefact.graphs if graph.mixed is not None]
    return (*told, *(depthwise.told(narrow, products, precision) for narrow, products in mixed))


def _given(name: str, inputs: Mapping[str, Array]) -> Array:
    array = inputs.get(name)
    if array is None and name == "token_type_ids" and "input_ids" in inputs:
        return np.zeros(inputs["input_ids"].shape, dtype=np.int64)
    if array is None:
        raise InferenceFailed(f"the model needs {name!r}")
    return np.ascontiguousarray(array, dtype=np.int64 if name in _INTEGERS else np.float32)
