"""The process that holds one model: ``python -m ipfs_accelerate_node.inference.worker FD PARENT_PID THREADS``.

Its main thread imports torch at once and then does one thing after another; a second thread only reads, so that a
hung-up daemon ends the process in the middle of a computation, and a cancelled job is dropped between two forward
passes. It opens no connection.
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
from pathlib import Path
from typing import TYPE_CHECKING

from ipfs_accelerate_node.errors import InferenceFailed, InvalidInput, ModelUnsupported, NodeError, Unavailable
from ipfs_accelerate_node.inference import wire
from ipfs_accelerate_node.inference.memory import available_bytes, data_bytes
from ipfs_accelerate_node.inference.model_files import inspect

if TYPE_CHECKING:
    from ipfs_accelerate_node.inference.torch_engine import TorchSession

PR_SET_PDEATHSIG = 1
SIGN_OF_LIFE_S = 0.5  # Progress is sent at most so often
ROOM_BYTES = 4 << 30  # beyond twice the weights: activations, tokenizer, thread stacks


class _Cancelled(Exception):
    pass


class Worker:
    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._requests: queue.SimpleQueue[wire.Request] = queue.SimpleQueue()
        self._cancelled: set[int] = set()
        self._session: TorchSession | None = None
        self._last_sign = 0.0

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
                assert isinstance(request, wire.Embed)
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
        match request:
            case wire.Load():
                return self._load(request), b""
            case wire.Embed():
                return self._embed(request)
            case wire.Devices():
                from ipfs_accelerate_node.inference import torch_engine

                return wire.DeviceList(torch_engine.cuda_devices(), torch_engine.versions()), b""
            case wire.Cancel():
                raise AssertionError("taken by the reader")

    def _load(self, request: wire.Load) -> wire.Loaded:
        from ipfs_accelerate_node.inference import torch_engine

        self._progress("loading")
        files = inspect(Path(request.path), available_bytes=available_bytes())
        limit = data_bytes() + 2 * files.estimate_bytes + ROOM_BYTES
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
        session, notes = torch_engine.TorchSession.load(files)
        self._progress("warming")
        session.warm_up()
        self._session = session
        return wire.Loaded(
            device=session.device,
            width=session.width,
            max_tokens=files.max_tokens,
            vocab_size=files.encoder.vocab_size,
            architecture=files.encoder.architecture,
            pooling=files.settings.pooling,
            normalize=files.settings.normalize,
            notes=files.notes + notes,
            versions=torch_engine.versions(),
        )

    def _embed(self, request: wire.Embed) -> tuple[wire.Reply, bytes]:
        if self._session is None:
            raise Unavailable("no model is loaded in this process")

        def between() -> None:
            if request.job in self._cancelled:
                self._cancelled.discard(request.job)
                raise _Cancelled
            self._progress("computing")

        between()
        tokens = self._session.tokens
        if request.ids is not None:
            rows = tokens.of_ids(request.ids, truncate=request.truncate)
        else:
            rows = tokens.of_texts(request.texts or [], truncate=request.truncate)
        vectors = self._session.embed(rows, dimensions=request.dimensions, normalize=request.normalize, between=between)
        count = sum(len(row) for row in rows.ids)
        header = wire.Vectors(request.job, vectors.shape[0], vectors.shape[1], count, rows.truncated)
        return header, vectors.tobytes()


def _out_of_memory(exc: BaseException) -> Unavailable:
    return Unavailable(f"not enough memory: {str(exc)[:200]}", code="out_of_memory", retry_after_s=5.0)


def _translated(request: wire.Request, exc: Exception) -> NodeError:
    """A library's error as one of ours, by what was asked for."""
    said = f"{type(exc).__name__}: {str(exc).strip()[:300]}"
    if "allocate memory" in str(exc) or "out of memory" in str(exc):
        return _out_of_memory(exc)
    if isinstance(request, wire.Load):
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


def main(arguments: list[str]) -> None:
    descriptor, parent, threads = (int(argument) for argument in arguments)
    die_with(parent)
    limit_files()
    faulthandler.enable()
    worker = Worker(socket.socket(fileno=descriptor))
    threading.Thread(target=worker.read, name="read requests", daemon=True).start()
    import torch

    from ipfs_accelerate_node.inference import torch_engine  # noqa: F401 - loaded before a model is asked for

    torch.set_num_threads(threads)
    torch.set_grad_enabled(False)
    worker.run()


if __name__ == "__main__":
    main(sys.argv[1:])
