"""The converting process: ``python -m …openvino.convert FD PARENT THREADS FOLDER DIRECTORY ROOT TASK WEIGHTS``.

Checks the model as a worker does, loads it into torch, and writes its graphs into FOLDER. It says what it is at, a JSON
line each, over FD. It opens no connection, ends with its parent, and its memory and files are bounded by the model's
size.
"""

from __future__ import annotations

import faulthandler
import os
import resource
import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from ipfs_accelerate_node.errors import ModelUnsupported, NodeError, StorageError, Unavailable
from ipfs_accelerate_node.inference.memory import available_bytes, data_bytes
from ipfs_accelerate_node.inference.model_files import ModelFiles, inspect
from ipfs_accelerate_node.inference.openvino.artefact import (
    SCHEMA,
    Artefact,
    Graph,
    Int8Gate,
    Weights,
    artefact_key,
    form_of,
    stored_file,
    versions_of,
    write_description,
)
from ipfs_accelerate_node.inference.openvino.conversion import Done, Line, Phase
from ipfs_accelerate_node.inference.tasks import processing_for
from ipfs_accelerate_node.inference.wire import Failure
from ipfs_accelerate_node.inference.worker import die_with

if TYPE_CHECKING:
    import openvino

    from ipfs_accelerate_node.inference.openvino.export import Plan

# What converting takes beyond the weights: torch and transformers, the traced graph, and three copies of the weights.
ROOM_BYTES = 6 << 30
COPIES = 4


class Converter:
    """say: takes what it is at. One conversion, then the process ends."""

    def __init__(self, say: Callable[[Line], None], folder: Path, root: str) -> None:
        self._say = say
        self._folder = folder
        self._root = root

    def convert(self, directory: Path, task: str, weights: Weights) -> None:
        """Write the artefact. Raises ModelUnsupported, and the libraries' own errors."""
        began = time.monotonic()
        self._say(Phase("checking the model"))
        files = inspect(directory, available_bytes=available_bytes(), task=task)
        bound(files)
        self._say(Phase("loading torch"))
        from ipfs_accelerate_node.inference.openvino import plans
        from ipfs_accelerate_node.inference.torch import engine as torch_engine

        loaded = torch_engine.load(files, task, device="cpu", precision="f32")
        planned = plans.plans_of(loaded.graphs, files)
        gate: Int8Gate | None = None
        graphs: list[Graph] = []
        for number, plan in enumerate(planned, 1):
            model = self._exported(plan, f"{number} of {len(planned)}")
            if weights == "int8":
                model, gate = self._quantised(plan, model, files, task)
            graphs.append(self._written(plan, model))
        form, versions = form_of(task), versions_of(weights)
        artefact = Artefact(
            schema=SCHEMA,
            key=artefact_key(self._root, form, weights, versions),
            root=self._root,
            form=form,
            weights=weights,
            versions=versions,
            graphs=tuple(graphs),
            scalars=plans.scalars_of(loaded.graphs),
            notes=(*loaded.notes, *(() if gate is None else (_told(gate),))),
            gate=gate,
            seconds=round(time.monotonic() - began, 2),
        )
        write_description(self._folder, artefact)

    def _exported(self, plan: Plan, place: str) -> openvino.Model:
        import openvino

        from ipfs_accelerate_node.inference.openvino import export

        self._say(Phase(f"converting graph {plan.name} ({place})"))
        model = export.convert(plan)
        self._say(Phase(f"checking graph {plan.name} ({place})"))
        export.check(plan, model, openvino.Core())
        return model

    def _quantised(
        self, plan: Plan, model: openvino.Model, files: ModelFiles, task: str
    ) -> tuple[openvino.Model, Int8Gate]:
        from ipfs_accelerate_node.inference.openvino.int8 import quantised

        return quantised(plan.name, model, task, processing_for(files, task), lambda words: self._say(Phase(words)))

    def _written(self, plan: Plan, model: openvino.Model) -> Graph:
        import openvino

        from ipfs_accelerate_node.inference.openvino import exact_layers

        path = self._folder / f"{plan.name}.xml"
        layers = exact_layers.layers_of(model)
        openvino.save_model(model, path, compress_to_fp16=False)
        if layers is not None:
            exact_layers.mark(path, layers.exact)
        return Graph(
            name=plan.name,
            inputs=tuple(port.get_any_name() for port in model.inputs),
            outputs=tuple(port.get_any_name() for port in model.outputs),
            xml=stored_file(path),
            bin=stored_file(path.with_suffix(".bin")),
            exact=plan.exact,
            mixed=None if layers is None else (layers.narrow, layers.products),
        )


def _told(gate: Int8Gate) -> str:
    """The gate's figures for a person."""
    return (
        f"int8: mean cosine {gate.mean_cosine:.4f} to f32, minimum {gate.min_cosine:.4f}, nearest neighbour changed "
        f"for {gate.changed_neighbours:.1%} of {gate.texts} texts"
    )


def refuse_telemetry() -> None:
    """OpenVINO's converter and NNCF report their use to their makers unless somebody told them not to; without this
    module they do without."""
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]


def bound(files: ModelFiles) -> None:
    """Memory and files in proportion to the model, so that a hostile one costs this process only."""
    size = files.estimate_bytes("f32")
    data = data_bytes() + COPIES * size + ROOM_BYTES
    resource.setrlimit(resource.RLIMIT_DATA, (data, data))
    written = 2 * size + ROOM_BYTES
    resource.setrlimit(resource.RLIMIT_FSIZE, (written, written))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def failure(exc: Exception, doing: str) -> Failure:
    """Our own error as it is, a library's as one of ours. doing: the phase that it ended."""
    said = " ".join(str(exc).split())[:300]
    match exc:
        case NodeError():
            return Failure.of(exc)
        case MemoryError():
            return Failure.of(Unavailable(f"converting: not enough memory: {said}", code="out_of_memory"))
        case OSError():
            return Failure.of(StorageError(f"converting: {said}"))
    if "allocate memory" in said or "bad_alloc" in said:
        return Failure.of(Unavailable(f"converting: not enough memory: {said}", code="out_of_memory"))
    message = f"the model cannot be converted ({doing}): {type(exc).__name__}: {said}"
    return Failure.of(ModelUnsupported(message, code="task_unsupported"))


def end_with(connection: socket.socket) -> None:
    """The daemon says nothing; when it hangs up, the process ends in the middle of whatever it does."""
    try:
        while connection.recv(4096):
            pass
    finally:
        os._exit(1)


def main(arguments: list[str]) -> None:
    descriptor, parent = int(arguments[0]), int(arguments[1])
    folder, directory, root, task = Path(arguments[3]), Path(arguments[4]), arguments[5], arguments[6]
    weights: Weights = "int8" if arguments[7] == "int8" else "f32"
    die_with(parent)
    faulthandler.enable()
    refuse_telemetry()
    connection = socket.socket(fileno=descriptor)
    threading.Thread(target=end_with, args=(connection,), name="wait for the end", daemon=True).start()

    doing = "starting"

    def say(line: Line) -> None:
        nonlocal doing
        doing = line.words if isinstance(line, Phase) else doing
        connection.sendall(msgspec.json.encode(line) + b"\n")

    try:
        Converter(say, folder, root).convert(directory, task, weights)
        say(Done(peak_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024))
    except Exception as exc:  # the edge of the process: the libraries' errors end here, as ours
        say(failure(exc, doing))
    os._exit(0)  # torch and OpenVINO take seconds to be taken apart


if __name__ == "__main__":
    main(sys.argv[1:])
