"""What the node gives to others, and its limits: one `Giving` for the whole node, whatever listener a request came by.

So many replies with content at a time, the rest is told to come back; but who has hardly taken anything for a while
then makes room. While inference is busy, all of them together
stay under a rate, slice by slice, each connection in its turn; else nothing slows them and no timer runs. Files leave
by sendfile from threads: a page that has to come from the disk first must not hold up the loop.
"""

from __future__ import annotations

import asyncio
import io
import os
import select
import socket
import struct
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from ipfs_accelerate_node.errors import Unavailable

BUSY_S = 2.0  # inference counts as busy for so long after its last request
BURST_S = 0.25  # what a late timer may catch up on
RETRY_AFTER_S = 1.0
PATIENCE_S = 15.0  # a transfer is not judged before
SLOW_BYTES = 64 << 10  # a second: who takes less makes room for others, if there is none
_SMALLEST_SLICE, _LARGEST_SLICE, _FREE_SLICE = 64 << 10, 1 << 20, 4 << 20
_SLICES_A_SECOND = 100
_ACKED_AT = 120  # tcpi_bytes_acked in the kernel's struct tcp_info, since Linux 4.1


class Limiter:
    """Bytes per second for all connections together, in the order in which they ask, while busy() says so."""

    def __init__(
        self,
        rate_bytes: int,
        busy: Callable[[], bool],
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        self.rate_bytes = rate_bytes
        self._busy = busy
        self._clock = clock
        self._sleep = sleep
        self._turn = asyncio.Lock()  # those who wait for it get it in order
        self._free_s = 0.0  # when all that was let through so far has had its time

    def slice_bytes(self) -> int:
        """How much to ask for in one turn."""
        if not self._busy():
            return _FREE_SLICE
        return max(_SMALLEST_SLICE, min(_LARGEST_SLICE, self.rate_bytes // _SLICES_A_SECOND))

    async def turn(self, size_bytes: int) -> None:
        """Returns when so many bytes may leave."""
        if not self._busy():
            return
        async with self._turn:
            begins_s = max(self._free_s, self._clock() - BURST_S)
            before_s, self._free_s = self._free_s, begins_s + size_bytes / self.rate_bytes
            try:
                while (wait_s := begins_s - self._clock()) > 0 and self._busy():
                    await self._sleep(min(wait_s, BUSY_S))
            except asyncio.CancelledError:
                self._free_s = before_s  # nothing left after all
                raise


def taken_bytes(transport: asyncio.BaseTransport) -> int:
    """What the other end has acknowledged since the connection began; 0 where the system does not tell."""
    sock = transport.get_extra_info("socket")
    try:
        told = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _ACKED_AT + 8)
    except (AttributeError, OSError):
        return 0
    return int(struct.unpack_from("=Q", told, _ACKED_AT)[0]) if len(told) >= _ACKED_AT + 8 else 0


@dataclass(eq=False, slots=True)
class _Transfer:
    """before: `taken_bytes` when it began."""

    transport: asyncio.Transport
    began_s: float
    before: int


class Giving:
    """given_bytes: handed to the system so far, by kind (file, block, car, listing). active: replies with content under
    way. refused: how many were one too many; cut: how many were too slow when there was no room."""

    def __init__(
        self,
        limiter: Limiter,
        *,
        connections: int,
        clock: Callable[[], float] = time.monotonic,
        taken: Callable[[asyncio.BaseTransport], int] = taken_bytes,
    ) -> None:
        self._limiter = limiter
        self._connections = connections
        self._clock = clock
        self._taken = taken
        self._transfers: list[_Transfer] = []
        self._threads = ThreadPoolExecutor(connections, thread_name_prefix="giving")
        self.given_bytes: Counter[str] = Counter()
        self.active = 0
        self.refused = 0
        self.cut = 0

    @contextmanager
    def transfer(self, transport: asyncio.Transport | None = None) -> Iterator[None]:
        """One reply with content. transport: by which it can be cut when it is slow and others wait.

        Raises Unavailable (code too_many_transfers) if that would be one too many.
        """
        if self.active >= self._connections and not self._make_room():
            self.refused += 1
            raise Unavailable(
                f"{self.active} transfers are under way, no more at a time",
                code="too_many_transfers",
                retry_after_s=RETRY_AFTER_S,
            )
        entry = None if transport is None else _Transfer(transport, self._clock(), self._taken(transport))
        self.active += 1
        if entry is not None:
            self._transfers.append(entry)
        try:
            yield
        finally:
            if entry is None:
                self.active -= 1
            else:
                self._leave(entry)

    def _leave(self, entry: _Transfer) -> None:
        """Once for each, cut or ended."""
        if entry in self._transfers:
            self._transfers.remove(entry)
            self.active -= 1

    def _make_room(self) -> bool:
        """Cuts the slowest transfer, if it is slow for no fault of ours."""
        now = self._clock()
        rates = [
            ((self._taken(entry.transport) - entry.before) / age_s, entry)
            for entry in self._transfers
            if (age_s := now - entry.began_s) >= PATIENCE_S and age_s > 0
        ]
        rate, slowest = min(rates, key=lambda rated: rated[0], default=(0.0, None))
        if slowest is None or rate >= min(SLOW_BYTES, self._limiter.rate_bytes / self._connections / 4):
            return False
        slowest.transport.abort()
        self._leave(slowest)
        self.cut += 1
        return True

    async def turn(self, kind: str, size_bytes: int) -> None:
        """Returns when so many bytes of that kind may leave, and counts them."""
        await self._limiter.turn(size_bytes)
        self.given_bytes[kind] += size_bytes

    async def send(self, transport: asyncio.Transport, file: io.BufferedReader, start: int, stop: int) -> None:
        """Those bytes of the file behind what was written to the transport so far; takes the file over and closes it.

        Raises ConnectionError, also where the file ends too early or cannot be read: the reply cannot be finished.
        """
        at, pipe = start, None
        try:
            if transport.get_write_buffer_size():
                count = min(_SMALLEST_SLICE, stop - start)
                await self.turn("file", count)
                await _behind_the_rest(transport, file, start, count)
                at += count
            pipe = _Pipe(transport, file)
            while at < stop:
                count = min(self._limiter.slice_bytes(), stop - at)
                await self.turn("file", count)
                await pipe.push(self._threads, at, count)
                at += count
        finally:
            (pipe or file).close()

    async def close(self, _: object = None) -> None:
        """Once no request is under way any more; waits for threads that still read for one that was cut."""
        await asyncio.to_thread(self._threads.shutdown)


async def _behind_the_rest(transport: asyncio.Transport, file: io.BufferedReader, start: int, count: int) -> None:
    """By the loop, once it has sent what the transport still has to send."""
    try:
        sent = await asyncio.get_running_loop().sendfile(transport, file, start, count)
    except (RuntimeError, OSError) as exc:
        raise ConnectionResetError("the client is gone") from exc
    if sent != count:
        raise ConnectionAbortedError("a stored file is shorter than the index says")


class _Pipe:
    """A file and a connection whose transport has nothing to send itself; bytes go from one to the other by threads,
    one at a time. Has a descriptor of its own for the connection, and keeps both open while a thread uses them."""

    def __init__(self, transport: asyncio.Transport, file: io.BufferedReader) -> None:
        self._file = file
        try:
            self._socket: socket.socket = transport.get_extra_info("socket").dup()
        except OSError as exc:
            raise ConnectionResetError("the client is gone") from exc
        self._pushing: asyncio.Future[int] | None = None

    async def push(self, threads: ThreadPoolExecutor, start: int, count: int) -> None:
        loop = asyncio.get_running_loop()
        self._pushing = loop.run_in_executor(threads, _push, self._socket.fileno(), self._file.fileno(), start, count)
        if await asyncio.shield(self._pushing) != count:
            raise ConnectionAbortedError("a stored file is shorter than the index says")

    def close(self) -> None:
        if self._pushing is None or self._pushing.done():
            self._close()
            return
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)  # the thread stops waiting for the reader
        self._pushing.add_done_callback(self._close)

    def _close(self, pushing: asyncio.Future[int] | None = None) -> None:
        if pushing is not None and not pushing.cancelled():
            pushing.exception()  # of a reply that nobody waits for any more
        self._file.close()
        self._socket.close()


def _push(to: int, file: int, start: int, count: int) -> int:
    """Blocks until the system has taken the bytes; returns fewer only where the file ends.

    Raises ConnectionError: the reader is gone, or the system gave up on one who takes nothing (READER_STALL_S).
    """
    writable = select.poll()
    writable.register(to, select.POLLOUT)
    sent = 0
    while sent < count:
        try:
            step = os.sendfile(to, file, start + sent, count - sent)
        except BlockingIOError:
            writable.poll()
            continue
        except OSError as exc:
            raise ConnectionResetError(f"cannot send: {exc.strerror}") from exc
        if step == 0:
            break
        sent += step
    return sent
