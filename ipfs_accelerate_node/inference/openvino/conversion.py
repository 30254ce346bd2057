"""The converting process as the daemon sees it: started, watched, ended."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec

from ipfs_accelerate_node.errors import InferenceFailed, StorageError
from ipfs_accelerate_node.inference.openvino.artefact import Weights
from ipfs_accelerate_node.inference.process import worker_environment
from ipfs_accelerate_node.inference.wire import Failure

log = logging.getLogger(__name__)

SILENCE_S = 600.0  # without a word from the process; the largest graph takes that long to be traced and written
_LAST_WORDS_BYTES = 1000
_END_S = 2.0


@dataclass(frozen=True, slots=True)
class Order:
    """What to convert. directory: the model's files. form: see ``artefact.form_of``."""

    directory: Path
    root: str
    task: str
    form: str
    weights: Weights
    versions: dict[str, str]


class Phase(msgspec.Struct, tag=True, frozen=True):
    """What the process is at, in words."""

    words: str


class Done(msgspec.Struct, tag=True, frozen=True):
    """The folder holds a whole artefact. peak_bytes: the process's largest resident size."""

    peak_bytes: int


Line = Phase | Done | Failure


class Conversion:
    """One converting process, writing into ``folder``. ``run`` may be cancelled and called again: it goes on."""

    def __init__(self, folder: Path, order: Order) -> None:
        self.folder = folder
        self._order = order
        self._process: asyncio.subprocess.Process | None = None
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._said = -1
        self._began = 0.0

    async def run(self, report: Callable[[str], None]) -> None:
        """Returns when the folder holds the artefact. Raises what the process refused the model with; StorageError;
        InferenceFailed: it ended or fell silent."""
        if self._reader is None:
            await self._start()
        assert self._reader is not None
        while True:
            try:
                async with asyncio.timeout(SILENCE_S):
                    line = await self._reader.readline()
            except TimeoutError:
                raise InferenceFailed(f"converting: no sign of life for {SILENCE_S:g} s") from None
            except (ConnectionError, ValueError):
                line = b""
            if not line.endswith(b"\n"):
                raise InferenceFailed(await self._verdict())
            match self._decoded(line):
                case Phase(words):
                    report(words)
                case Done(peak_bytes):
                    seconds = time.monotonic() - self._began
                    log.info(
                        "convert.done root=%s form=%s weights=%s peak=%d s=%.1f",
                        self._order.root, self._order.form, self._order.weights, peak_bytes, seconds,
                    )  # fmt: skip
                    return
                case Failure() as failure:
                    raise StorageError(failure.message) if failure.kind == "StorageError" else failure.error()

    async def end(self) -> None:
        """End the process if it still runs, and give back what belongs to it. Idempotent."""
        if self._writer is not None:
            self._writer.close()
        process = self._process
        try:
            if process is not None and process.returncode is None:
                process.kill()
                await process.wait()
        except ProcessLookupError:
            log.debug("convert.gone")
        finally:
            if self._said >= 0:
                os.close(self._said)
                self._said = -1

    async def _start(self) -> None:
        ours, theirs = socket.socketpair()
        threads = len(os.sched_getaffinity(0))
        self._began = time.monotonic()
        self._said = os.memfd_create("convert-stderr")
        order = self._order
        try:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable, "-P", "-s", "-m", "ipfs_accelerate_node.inference.openvino.convert",
                str(theirs.fileno()), str(os.getpid()), str(threads), str(self.folder.absolute()),
                str(order.directory.absolute()), order.root, order.task, order.weights,
                stdin=asyncio.subprocess.DEVNULL, stdout=self._said, stderr=self._said,
                env=worker_environment(threads), cwd="/", pass_fds=(theirs.fileno(),), start_new_session=True,
            )  # fmt: skip
            self._reader, self._writer = await asyncio.open_connection(sock=ours)
        except OSError as exc:
            ours.close()
            raise InferenceFailed(f"converting: no process to be had: {exc.strerror}") from exc
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()

    def _decoded(self, line: bytes) -> Line:
        try:
            decoded: Line = msgspec.json.decode(line, type=Line)
            return decoded
        except msgspec.DecodeError as exc:
            raise InferenceFailed(f"converting: the process said what is no answer: {exc}") from exc

    async def _verdict(self) -> str:
        """How it ended, for a person."""
        assert self._process is not None
        try:
            async with asyncio.timeout(_END_S):
                code = await self._process.wait()
        except TimeoutError:
            return "converting: the process hung up"
        log.warning("convert.ended code=%d said=%r", code, self._last_words())
        if code >= 0:
            return f"converting: the process ended with exit code {code}"
        return f"converting: the process was ended by signal {-code}" + (" (out of memory?)" if code == -9 else "")

    def _last_words(self) -> str:
        size = os.fstat(self._said).st_size
        return os.pread(self._said, _LAST_WORDS_BYTES, max(0, size - _LAST_WORDS_BYTES)).decode("utf-8", "replace")
