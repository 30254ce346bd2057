"""What is left to say when the event loop does not turn: a thread beside it.

Everything here runs on one loop, so a handler that holds it up holds up everybody. The thread notices that within a
moment, logs where the loop stands, and, as long as it does, takes new connections in its place: probes of ``/healthz``
are answered, all others are handed to the loop, which finds them when it turns again. Requests on connections that were
there before have to wait. A loop that is stuck for longer than ``DEAD_S`` is not alive any more, and the probe says so,
that a supervisor may end the process.
"""

from __future__ import annotations

import asyncio
import json
import logging
import select
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from aiohttp import web

log = logging.getLogger(__name__)

BEAT_S = 0.5
STUCK_S = 1.0  # without a turn, then the log says where
UNANSWERED_S = 0.02  # a connection that waits for so long is not going to be taken by the loop
PATIENCE_S = 0.5  # for the head of a request
DEAD_S = 30.0
MAX_HEAD = 4096
MAX_HELD = 64  # connections whose heads are not there yet
_LINES = (b"GET /healthz HTTP/1.1\r\n", b"HEAD /healthz HTTP/1.1\r\n", b"GET /healthz HTTP/1.0\r\n")
_NOT_PLAIN = ("origin", "content-length", "transfer-encoding", "expect")
_END = b"\r\n\r\n"

Hand = Callable[[socket.socket], None]
"""Gives a connection to the loop; called in the loop's thread."""


@dataclass(slots=True)
class _Held:
    sock: socket.socket
    since: float


class Watchdog:
    """blocked: how often the loop was stuck for longer than `STUCK_S`; longest_s: the longest time."""

    def __init__(self) -> None:
        self.blocked = 0
        self.longest_s = 0.0

    @contextmanager
    def watching(self, sock: socket.socket, hand: Hand, *, is_ours: Callable[[str], bool]) -> Iterator[None]:
        """While inside. sock: the listening one. is_ours: whether a Host header may be answered."""
        thread = _Thread(self, asyncio.get_running_loop(), sock, hand, is_ours)
        thread.start()
        try:
            yield
        finally:
            thread.stop()


WATCHDOG: web.AppKey[Watchdog] = web.AppKey("watchdog", Watchdog)


class _Thread(threading.Thread):
    def __init__(
        self,
        told: Watchdog,
        loop: asyncio.AbstractEventLoop,
        sock: socket.socket,
        hand: Hand,
        is_ours: Callable[[str], bool],
    ) -> None:
        super().__init__(name="watchdog", daemon=True)
        self._told = told
        self._loop = loop
        self._watched = threading.get_ident()
        self._listening = sock
        self._hand = hand
        self._is_ours = is_ours
        self._turned = self._asked = time.monotonic()
        self._logged = False
        self._held: list[_Held] = []
        self._ending = threading.Event()
        self._wake, self._waker = socket.socketpair()

    def stop(self) -> None:
        self._ending.set()
        self._waker.send(b"x")
        self.join()
        self._wake.close()
        self._waker.close()

    def run(self) -> None:
        try:
            while not self._ending.is_set():
                self._beat()
                if self._waits(BEAT_S) and self._goes_unanswered():
                    self._stand_in()
        finally:
            for held in self._held:
                held.sock.close()

    def _waits(self, timeout_s: float) -> bool:
        """Whether somebody wants to connect."""
        poll = select.poll()
        poll.register(self._listening, select.POLLIN)
        poll.register(self._wake, select.POLLIN)
        return any(descriptor == self._listening.fileno() for descriptor, _ in poll.poll(timeout_s * 1000))

    def _goes_unanswered(self) -> bool:
        """Whether the loop does not take who waits."""
        if self._stuck_s > UNANSWERED_S:
            return True
        self._ask()
        return not self._ending.wait(UNANSWERED_S) and self._waits(0.0)

    # -- is the loop stuck?

    def _ask(self) -> None:
        """The loop is to turn, unless it has been asked already."""
        if self._turned >= self._asked:
            self._asked = time.monotonic()
            self._loop.call_soon_threadsafe(self._beaten)

    def _beat(self) -> None:
        """Asks the loop from time to time; logs where it stands if it does not turn."""
        now = time.monotonic()
        if self._turned >= self._asked:
            if now - self._asked >= BEAT_S:
                self._ask()
            return
        if now - self._asked >= STUCK_S and not self._logged:
            self._logged = True
            self._told.blocked += 1
            log.error("loop.stuck s=%.1f at=%s", now - self._asked, self._where())

    def _beaten(self) -> None:
        self._turned = time.monotonic()
        took_s = self._turned - self._asked
        if self._logged:
            self._logged = False
            self._told.longest_s = max(self._told.longest_s, took_s)
            log.warning("loop.turns again after_s=%.1f", took_s)

    @property
    def _stuck_s(self) -> float:
        return 0.0 if self._turned >= self._asked else time.monotonic() - self._asked

    def _where(self) -> str:
        """The innermost lines of the loop's thread, without any value."""
        frame = sys._current_frames().get(self._watched)
        lines = traceback.extract_stack(frame)[-4:] if frame is not None else []
        return " < ".join(f"{line.filename.rpartition('/')[2]}:{line.lineno} {line.name}" for line in reversed(lines))

    # -- what is done in its place

    def _stand_in(self) -> None:
        """Takes who waits now; until nobody does, and every head that is to come has come."""
        while not self._ending.is_set():
            while len(self._held) < MAX_HELD and (taken := self._accepted()) is not None:
                self._held.append(_Held(taken, time.monotonic()))
            self._held = [held for held in self._held if not self._answered(held)]
            if not self._held:
                return
            poll = select.poll()
            for descriptor in (self._listening, self._wake, *(held.sock for held in self._held)):
                poll.register(descriptor, select.POLLIN)
            poll.poll(UNANSWERED_S * 1000)
            self._beat()

    def _accepted(self) -> socket.socket | None:
        try:
            taken, _ = self._listening.accept()
        except OSError:  # the loop was faster, or there are no descriptors left
            return None
        taken.setblocking(False)
        return taken

    def _answered(self, held: _Held) -> bool:
        """Whether it is not held any more: answered, handed on, or gone."""
        try:
            head = held.sock.recv(MAX_HEAD, socket.MSG_PEEK)
        except BlockingIOError:
            head = b""
        except OSError:
            held.sock.close()
            return True
        begins = any(line.startswith(head[: len(line)]) for line in _LINES)
        late = time.monotonic() - held.since > PATIENCE_S or len(head) == MAX_HEAD
        if begins and _END not in head and not late:
            return False
        if begins and head.endswith(_END) and self._may_be_told(head):
            self._tell(held.sock, head)
        else:
            self._loop.call_soon_threadsafe(self._hand, held.sock)
        return True

    def _may_be_told(self, head: bytes) -> bool:
        """A plain request of somebody who is no web page, to a name that is ours."""
        lines = head.decode("latin-1").split("\r\n")[1:-2]
        headers = [(name.strip().lower(), value.strip()) for name, _, value in (line.partition(":") for line in lines)]
        hosts = [value for name, value in headers if name == "host"]
        plain = not any(name in _NOT_PLAIN or name.startswith("sec-") for name, _ in headers)
        return plain and len(hosts) == 1 and self._is_ours(hosts[0])

    def _tell(self, sock: socket.socket, head: bytes) -> None:
        stuck_s = self._stuck_s
        alive = stuck_s < DEAD_S
        body = json.dumps({"live": alive, "loop_stuck_s": round(stuck_s, 1)}).encode()
        reply = (
            f"HTTP/1.1 {'200 OK' if alive else '503 Service Unavailable'}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\nCache-Control: no-store\r\nConnection: close\r\n\r\n"
        ).encode()
        try:
            sock.recv(len(head))
            sock.send(reply if head.startswith(b"HEAD") else reply + body)
            sock.shutdown(socket.SHUT_WR)
        except OSError:
            pass
        finally:
            sock.close()
