"""From a request to load to a session: check the files, start the engine, warm it up. Runs in a worker process."""

from __future__ import annotations

import resource
from collections.abc import Callable
from pathlib import Path

from ipfs_accelerate_node.errors import DeviceUnavailable, ModelUnsupported
from ipfs_accelerate_node.inference import wire
from ipfs_accelerate_node.inference.devices import Kind, kind_of
from ipfs_accelerate_node.inference.memory import available_bytes, data_bytes
from ipfs_accelerate_node.inference.model import PRECISIONS, Vector
from ipfs_accelerate_node.inference.model_files import ModelFiles, inspect
from ipfs_accelerate_node.inference.session import Engine, Rowwise, Session, passes_of
from ipfs_accelerate_node.inference.tasks import notes_of, processing_for
from ipfs_accelerate_node.inference.writings import Writes

ROOM_BYTES = 4 << 30  # beyond twice the weights: activations, tokenizer, thread stacks


def describe(path: Path) -> wire.Described:
    files = inspect(path, available_bytes=available_bytes())
    return wire.Described(
        tasks=files.tasks,
        architecture=files.model_type,
        estimate_bytes={precision: files.estimate_bytes(precision) for precision in PRECISIONS},
    )


def open_session(
    request: wire.Load, kind: Kind, threads: int, progress: Callable[[wire.Phase], None]
) -> tuple[Session, wire.Loaded]:
    """Raises ModelUnsupported, DeviceUnavailable, Unavailable (out_of_memory), and the libraries' own errors."""
    progress("loading")
    files = inspect(
        Path(request.path), available_bytes=available_bytes(), precision=request.precision, task=request.task
    )
    task = files.check_task(request.task)
    if not request.device.startswith("cuda"):  # CUDA maps more than there is memory
        limit = data_bytes() + 2 * files.estimate_bytes(request.precision) + ROOM_BYTES
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    engine = _engine(request, kind, threads, files, task)
    session = Session(task, processing_for(files, task), engine)
    progress("warming")
    first = session.warm_up()
    return session, _told(session, files, width=first.values.size if isinstance(first, Vector) else 0)


def _engine(request: wire.Load, kind: Kind, threads: int, files: ModelFiles, task: str) -> Engine:
    if kind_of(request.device) != kind:
        raise DeviceUnavailable(f"a {kind} worker has no {request.device}", device=request.device)
    if kind == "torch":
        from ipfs_accelerate_node.inference.torch import engine as torch_engine

        return torch_engine.load(files, task, device=request.device, precision=request.precision)
    from ipfs_accelerate_node.inference.openvino import engine as openvino_engine

    if request.artefact is None:
        raise ModelUnsupported("OpenVINO loads converted models, and none was given", code="bad_weights")
    return openvino_engine.load(
        Path(request.artefact), files, task, device=request.device, precision=request.precision, threads=threads
    )


def _told(session: Session, files: ModelFiles, *, width: int) -> wire.Loaded:
    engine, sentence, processing = session.engine, files.sentence, session.processing
    return wire.Loaded(
        device=engine.device,
        engine="openvino" if engine.engine == "openvino" else "torch",
        precision=engine.precision,
        task=session.task,
        tasks=files.tasks,
        width=width,
        max_tokens=files.max_tokens,
        vocab_size=files.vocab_size,
        architecture=files.model_type,
        pooling=sentence.settings.pooling if sentence else (),
        normalize=sentence.settings.normalize if sentence else False,
        notes=files.notes + notes_of(session.processing) + engine.notes,
        versions=dict(engine.versions),
        device_bytes=engine.memory_bytes(),
        rowwise=isinstance(processing, Rowwise),
        together=processing.sequences(engine).most if isinstance(processing, Writes) else 0,
        pass_tokens=processing.passes(passes_of(engine)).tokens if isinstance(processing, Rowwise) else 0,
    )
