"""The process that holds one model: ``python -m ipfs_accelerate_node.inference.worker FD PARENT THREADS KIND PAGE``.

Two kinds from one tree of modules: ``torch`` imports torch at once, so that a model finds it there; ``openvino`` starts
in a fraction of that time and refuses to import torch at all, whoever asks. The main thread is the device's: it does
one thing after another. A second one reads, so that a hung-up daemon ends the process in the middle of a computation,
and a cancelled job is dropped between two passes; a third one tokenizes (``intake``). It opens no connection.
"""

from __future__ import annotations

import ctypes
import faulthandler
import os
import resource
import signal
import socket
import sys
import threading
import time
from importlib.abc import MetaPathFinder
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ipfs_accelerate_node.errors import DeviceUnavailable, NodeError, Unavailable
from ipfs_accelerate_node.inference import devices, frames, wire
from ipfs_accelerate_node.inference.blame import Blame
from ipfs_accelerate_node.inference.devices import Kind
from ipfs_accelerate_node.inference.edge import Cancelled, attempt
from ipfs_accelerate_node.inference.intake import Begun, Intake, Ready
from ipfs_accelerate_node.inference.model import Options, Timing
from ipfs_accelerate_node.inference.session import Session
from ipfs_accelerate_node.inference.tasks.spelling import decoded, tokenized
from ipfs_accelerate_node.inference.writings import Writings

PR_SET_PDEATHSIG = 1
SIGN_OF_LIFE_S = 0.5  # Progress is sent at most so often
SWITCH_S = 0.0005  # a thread that wants to go on, back from a pass, waits at most so long for another one
MAX_EXAMPLES = 4096
MIN_TIMINGS, MAX_TIMINGS = 3, 50
HEAVY = frozenset({"torch", "transformers", "nncf"})  # what an OpenVINO worker never imports


class Worker:
    def __init__(self, connection: socket.socket, kind: Kind, threads: int, blame: Blame) -> None:
        self._connection = connection
        self._kind = kind
        self._threads = threads
        self._sending = threading.Lock()
        self._session: Session | None = None
        self._last_sign = 0.0
        self._alone: int | None = None  # the job that is computed by itself
        self._blame = blame
        self._under_way: Begun | None = None  # a pass that the device has
        self.intake = Intake(self._send, blame.tokenizing)
        self.lack: NodeError | None = None  # why this process can do nothing

    def read(self) -> None:
        """The reader's thread: requests go to the intake; at the end of all the process ends."""
        try:
            while (request := frames.read_request(self._connection)) is not None:
                if isinstance(request, wire.Cancel):
                    self.intake.cancel(request.job)
                else:
                    self.intake.put(request)
        finally:
            os._exit(0)

    def run(self) -> None:
        """Main thread, the device's: one turn after another, for ever."""
        while True:
            turn = self.intake.next(wait=self._under_way is None)
            if isinstance(turn, Ready):
                self._pass(turn)
                continue
            self._collect()
            if isinstance(turn, Writings):
                self._write(turn)
            elif turn is not None:
                self._by_itself(turn)

    def _pass(self, ready: Ready) -> None:
        """One pass. Where the device takes it without being waited for, the one before is collected meanwhile."""
        at_it = [] if self._alone is None else [self._alone]
        before = [] if self._under_way is None else self._under_way.ready.jobs
        self._blame.computing([*at_it, *before, *ready.jobs])
        begun = self.intake.begin(ready, self._held)
        self._collect()
        self._under_way = begun
        if self._alone is not None or not hasattr(self._held.engine, "submit"):
            self._collect()
        self._blame.computing([*at_it, *([] if self._under_way is None else ready.jobs)])

    def _collect(self) -> None:
        """The outputs of the pass that is under way, if there is one."""
        begun, self._under_way = self._under_way, None
        if begun is not None:
            self._tell(*self.intake.finish(begun))

    def _write(self, writings: Writings) -> None:
        self._blame.computing(writings.jobs())
        answers = self.intake.write(writings)
        self._blame.computing([])
        self._tell(answers, b"")

    def _tell(self, answers: wire.Answers, payload: bytes) -> None:
        """What a turn came to, or now and then that there are turns."""
        now = time.monotonic()
        if answers.answers or answers.deltas:
            self._last_sign = now
            self._send(answers, payload)
        elif now - self._last_sign > SIGN_OF_LIFE_S:
            self._last_sign = now
            self._send(wire.Progress("computing", self.intake.told()))

    def _by_itself(self, request: wire.Request) -> None:
        self._alone = job = getattr(request, "job", None)
        self._blame.computing([] if job is None else [job])
        try:
            found = attempt(lambda: self._answer(request), loading=isinstance(request, wire.Load | wire.Inspect))
            reply, payload = (wire.Failure.of(found, job), b"") if isinstance(found, NodeError) else found
        except Cancelled:
            assert job is not None
            reply, payload = wire.Dropped(job), b""
        self._alone = None
        self._blame.computing([])
        self.intake.done()
        self._send(reply, payload)

    def _send(self, reply: wire.Reply, payload: bytes = b"") -> None:
        data = frames.frame(reply, payload)
        with self._sending:
            self._connection.sendall(data)

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
                return _array(request.job, self._held.primary(request.item))
            case wire.Shown():
                return _array(None, self._held.primary(self._held.processing.example(request.number)))
            case wire.Examples():
                count = min(request.count, MAX_EXAMPLES)
                items = [self._held.processing.example(request.first + i) for i in range(count)]
                return wire.Samples(request.job, items), b""
            case wire.Calibrate():
                return self._calibrate(request), b""
            case wire.Imports():
                return wire.Imported(request.job, sorted({name.partition(".")[0] for name in sys.modules})), b""
            case wire.Tokenize(job, texts, special):
                return wire.Tokenized(job, tokenized(self._held.processing, texts, special=special)), b""
            case wire.Decode(job, rows, skip):
                return wire.Decoded(job, decoded(self._held.processing, rows, skip_special=skip)), b""
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
                self.intake.open(self._session)
                return loaded
            case wire.Devices():
                return devices.torch_devices() if self._kind == "torch" else devices.openvino_devices()

    @property
    def _held(self) -> Session:
        if self._session is None:
            raise Unavailable("no model is loaded in this process")
        return self._session

    def _between(self, job: int) -> None:
        """Called between passes of a job that is computed by itself: where it ends when nobody waits for it, and where
        a batch of others goes through."""
        self.intake.check(job)
        self._progress("computing")
        if (ready := self.intake.rows()) is not None:
            self._pass(ready)

    def _infer(self, request: wire.Infer) -> tuple[wire.Reply, bytes]:
        began = time.monotonic()
        if request.expires is not None and request.expires <= began:
            return wire.Dropped(request.job, expired=True), b""

        def between() -> None:
            self._between(request.job)

        between()
        outputs = self._held.infer(request.items, request.options, between)
        timing = Timing(max(0.0, began - (request.since or began)), 0.0, time.monotonic() - began)
        return frames.pack_outputs(request.job, outputs, timing)

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


def _array(job: int | None, values: NDArray[np.float32]) -> tuple[wire.Reply, bytes]:
    values = np.ascontiguousarray(values, dtype="<f4")
    return wire.Array(job, values.shape), values.tobytes()


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
    descriptor, parent, threads, page = (int(argument) for argument in (*arguments[:3], arguments[4]))
    kind: Kind = "openvino" if arguments[3] == "openvino" else "torch"
    die_with(parent)
    limit_files()
    faulthandler.enable()
    worker = Worker(socket.socket(fileno=descriptor), kind, threads, Blame(page))
    sys.setswitchinterval(SWITCH_S)
    threading.Thread(target=worker.read, name="read requests", daemon=True).start()
    threading.Thread(target=worker.intake.tokenize, name="tokenize", daemon=True).start()
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
