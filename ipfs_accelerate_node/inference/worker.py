"""The process that holds one model: ``python -m ipfs_accelerate_node.inference.worker FD PARENT_PID THREADS KIND``.

Two kinds from one tree of modules: ``torch`` imports torch at once, so that a model finds it there; ``openvino`` starts
in a fraction of that time and refuses to import torch at all, whoever asks. The main thread does one thing after
another; a second thread only reads, so that a hung-up daemon ends the process in the middle of a computation, and a
cancelled job is dropped between two passes. It opens no connection.
"""

from __future__ import annotations

import ctypes
import faulthandler
import os
import queue
import resource
import signal
import socket
import sys
import threading
import time
from importlib.abc import MetaPathFinder
from pathlib import Path

import numpy as np

from ipfs_accelerate_node.errors import (
    DeviceUnavailable,
    InferenceFailed,
    InvalidInput,
    ModelUnsupported,
    NodeError,
    Unavailable,
)
from ipfs_accelerate_node.inference import devices, wire
from ipfs_accelerate_node.inference.devices import Kind
from ipfs_accelerate_node.inference.model import Options
from ipfs_accelerate_node.inference.session import Session

PR_SET_PDEATHSIG = 1
SIGN_OF_LIFE_S = 0.5  # Progress is sent at most so often
MAX_EXAMPLES = 4096
MIN_TIMINGS, MAX_TIMINGS = 3, 50
HEAVY = frozenset({"torch", "transformers", "nncf"})  # what an OpenVINO worker never imports


class _Cancelled(Exception):
    pass


class Worker:
    def __init__(self, connection: socket.socket, kind: Kind, threads: int) -> None:
        self._connection = connection
        self._kind = kind
        self._threads = threads
        self._requests: queue.SimpleQueue[wire.Request] = queue.SimpleQueue()
        self._cancelled: set[int] = set()
        self._session: Session | None = None
        self._last_sign = 0.0
        self.lack: NodeError | None = None  # why this process can do nothing

    def read(self) -> None:
        """Second thread: requests into the queue, cancelled jobs into their set; at the end of all the process ends."""
        try:
            while (request := wire.read_request(self._connection)) is not None:
                if isinstance(request, wire.Cancel):
                    self._cancelled.add(request.job)
                else:
                    self._requests.put(request)
        finally:
            os._exit(0)

    def run(self) -> None:
        """Main thread: answer one request after another, for ever."""
        while True:
            request = self._requests.get()
            try:
                self._send(*self._answer(request))
            except NodeError as exc:
                self._send(wire.Failure.of(exc))
            except _Cancelled:
                assert isinstance(request, wire.Infer | wire.Primary)
                self._send(wire.Dropped(request.job))
            except MemoryError as exc:
                self._send(wire.Failure.of(_out_of_memory(exc)))
            except Exception as exc:  # batch edge: the libraries' errors end here, as ours
                self._send(wire.Failure.of(_translated(request, exc)))

    def _send(self, reply: wire.Reply, payload: bytes = b"") -> None:
        self._connection.sendall(wire.frame(reply, payload))

    def _progress(self, phase: wire.Phase) -> None:
        now = time.monotonic()
        if phase != "computing" or now - self._last_sign > SIGN_OF_LIFE_S:
            self._last_sign = now
            self._send(wire.Progress(phase))

    def _answer(self, request: wire.Request) -> tuple[wire.Reply, bytes]:
        if self.lack is not None:
            raise self.lack
        match request:
            case wire.Infer():
                return self._infer(request)
            case wire.Primary():
                self._between(request.job)
                values = np.ascontiguousarray(self._held.primary(request.item), dtype="<f4")
                return wire.Array(request.job, values.shape), values.tobytes()
            case wire.Examples():
                count = min(request.count, MAX_EXAMPLES)
                items = [self._held.processing.example(request.first + i) for i in range(count)]
                return wire.Samples(request.job, items), b""
            case wire.Calibrate():
                return self._calibrate(request), b""
            case wire.Imports():
                return wire.Imported(request.job, sorted({name.partition(".")[0] for name in sys.modules})), b""
            case wire.Cancel():
                raise AssertionError("taken by the reader")
            case _:
                return self._prepare(request), b""

    def _prepare(self, request: wire.Inspect | wire.Load | wire.Devices) -> wire.Reply:
        from ipfs_accelerate_node.inference import opening

        match request:
            case wire.Inspect():
                return opening.describe(Path(request.path))
            case wire.Load():
                self._session, loaded = opening.open_session(request, self._kind, self._threads, self._progress)
                return loaded
            case wire.Devices():
                return devices.torch_devices() if self._kind == "torch" else devices.openvino_devices()

    @property
    def _held(self) -> Session:
        if self._session is None:
            raise Unavailable("no model is loaded in this process")
        return self._session

    def _between(self, job: int) -> None:
        """Called between passes: the place where a job nobody waits for ends."""
        if job in self._cancelled:
            self._cancelled.discard(job)
            raise _Cancelled
        self._progress("computing")

    def _infer(self, request: wire.Infer) -> tuple[wire.Reply, bytes]:
        def between() -> None:
            self._between(request.job)

        between()
        outputs = self._held.infer(request.items, request.options, between)
        return wire.pack_outputs(request.job, outputs)

    def _calibrate(self, request: wire.Calibrate) -> wire.Timings:
        """One pass that does not count, then as many as the time allows."""
        session, options = self._held, Options(max_new_tokens=8)
        until = time.monotonic() + request.seconds
        samples: list[int] = []
        while len(samples) <= MAX_TIMINGS and (len(samples) <= MIN_TIMINGS or time.monotonic() < until):
            self._progress("computing")
            item = session.processing.example(len(samples) % 4)
            began = time.perf_counter_ns()
            session.infer([item], options, lambda: None)
            samples.append(time.perf_counter_ns() - began)
            if len(samples) > 1 and time.monotonic() > until + request.seconds:
                break
        return wire.Timings(samples[1:])


def _out_of_memory(exc: BaseException) -> Unavailable:
    return Unavailable(f"not enough memory: {str(exc)[:200]}", code="out_of_memory", retry_after_s=5.0)


def _translated(request: wire.Request, exc: Exception) -> NodeError:
    """A library's error as one of ours, by what was asked for."""
    said = f"{type(exc).__name__}: {str(exc).strip()[:300]}"
    if "allocate memory" in str(exc) or "out of memory" in str(exc):
        return _out_of_memory(exc)
    if isinstance(request, wire.Load | wire.Inspect):
        return ModelUnsupported(f"the model cannot be loaded: {said}", code="bad_config")
    if isinstance(exc, UnicodeError):
        return InvalidInput(f"a text is not valid Unicode: {said}", param="input")
    return InferenceFailed(f"the model failed: {said}")


def die_with(parent: int) -> None:
    """Have the kernel end this process when its parent ends."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it ended before
        os._exit(0)


def limit_files() -> None:
    """No core dumps (they would hold texts of users), and no large files."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (16 << 20, 16 << 20))


class NoTorch(MetaPathFinder):
    """Makes ``import torch`` fail as if it were not installed: a library that would like it does without."""

    def find_spec(self, fullname: str, path: object = None, target: object = None) -> None:
        if fullname.partition(".")[0] in HEAVY:
            raise ModuleNotFoundError(f"{fullname} is not imported in an OpenVINO worker", name=fullname)


def main(arguments: list[str]) -> None:
    descriptor, parent, threads = (int(argument) for argument in arguments[:3])
    kind: Kind = "openvino" if arguments[3] == "openvino" else "torch"
    die_with(parent)
    limit_files()
    faulthandler.enable()
    worker = Worker(socket.socket(fileno=descriptor), kind, threads)
    threading.Thread(target=worker.read, name="read requests", daemon=True).start()
    try:
        _set_up(kind, threads)
    except ImportError as exc:
        worker.lack = _lack(kind, exc)
    worker.run()


def _lack(kind: Kind, exc: ImportError) -> DeviceUnavailable:
    """exc: of the runtime, or of what it needs."""
    package = (exc.name or kind).partition(".")[0]
    reason = f"Python package {package} cannot be imported ({str(exc)[:200]}); `pip install {package}` brings it"
    return DeviceUnavailable(f"{kind} is not available: {reason}", reason=reason)


def _set_up(kind: Kind, threads: int) -> None:
    """Imports what models will need, before one is asked for. Raises ImportError."""
    if kind == "torch":
        return _set_up_torch(threads)
    sys.meta_path.insert(0, NoTorch())
    import openvino  # noqa: F401


def _set_up_torch(threads: int) -> None:
    import torch

    from ipfs_accelerate_node.inference import opening  # noqa: F401 - loaded before a model is asked for
    from ipfs_accelerate_node.inference.torch import engine  # noqa: F401

    torch.set_num_threads(threads)
    torch.set_grad_enabled(False)


if __name__ == "__main__":
    main(sys.argv[1:])
