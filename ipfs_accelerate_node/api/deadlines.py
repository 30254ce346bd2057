"""How long a caller will wait, and what happens then.

It is said by the header ``x-request-timeout`` (seconds, from when the request came in); by KServe's clients as the
parameter ``timeout`` (microseconds). When that has passed, the request is answered with 503 ``deadline_exceeded``, and
what was not computed yet is not computed any more; one that would certainly wait longer is refused at once.
"""

from __future__ import annotations

import asyncio
import math
import time
from contextlib import nullcontext

from aiohttp import web

from ipfs_accelerate_node.errors import InvalidInput, Unavailable

TIMEOUT = "x-request-timeout"
MAX_TIMEOUT_S = 86_400.0
ARRIVED: web.RequestKey[float] = web.RequestKey("arrived", float)  # of time.perf_counter
_DEADLINE: web.RequestKey[float] = web.RequestKey("deadline", float)


def note_deadline(request: web.Request) -> None:
    """Reads the header. Raises InvalidInput for what is no number of seconds."""
    said = request.headers.getall(TIMEOUT, [])
    if not said:
        return
    try:
        seconds = float(said[0])
    except ValueError:
        seconds = math.nan
    if len(said) > 1 or not 0 < seconds <= MAX_TIMEOUT_S:
        raise InvalidInput(f"{TIMEOUT} is a number of seconds, up to {MAX_TIMEOUT_S:g}", param=TIMEOUT)
    wait_at_most(request, seconds)


def wait_at_most(request: web.Request, seconds: float) -> None:
    """From when the request came in; the shorter one counts, where that is said twice."""
    deadline = request[ARRIVED] + seconds
    request[_DEADLINE] = min(deadline, request.get(_DEADLINE, math.inf))


def left_s(request: web.Request) -> float | None:
    """None: for ever. Raises Unavailable (deadline_exceeded) once it has passed."""
    deadline: float | None = request.get(_DEADLINE)
    if deadline is None:
        return None
    if (left := deadline - time.perf_counter()) <= 0:
        raise _too_late()
    return left


class _Until:
    """Ends what is inside at the deadline. Raises Unavailable (deadline_exceeded)."""

    def __init__(self, seconds: float) -> None:
        self._timeout = asyncio.timeout(seconds)

    async def __aenter__(self) -> None:
        await self._timeout.__aenter__()

    async def __aexit__(self, *exc: object) -> None:
        try:
            await self._timeout.__aexit__(*exc)  # type: ignore[arg-type]
        except TimeoutError as error:
            raise _too_late() from error


def until(request: web.Request) -> _Until | nullcontext[None]:
    seconds = left_s(request)
    return nullcontext() if seconds is None else _Until(seconds)


def _too_late() -> Unavailable:
    return Unavailable("the request's deadline passed before it was answered", code="deadline_exceeded")
