"""The one module that knows `ipfshttpclient`: small control calls, in threads of our own, each with a timeout.

Version 0.7 has been still since 2021 and refuses current daemons in ``connect()``; ``Client(...)`` works. Three
things are mended here: it warned about an argument that urllib3 2 ignores, it would send our secret through a proxy
named in the environment (or replace it by one from ``.netrc``), and it followed redirects.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import ipfshttpclient
from ipfshttpclient import exceptions as foreign
from ipfshttpclient.http import ClientSync

from ipfs_accelerate_node.errors import Unavailable
from ipfs_accelerate_node.kubo.calls import Call
from ipfs_accelerate_node.kubo.endpoint import Endpoint

_THREADS = 4


class _Transport(ClientSync):  # type: ignore[misc]
    """Sessions that take nothing from the environment, go nowhere else, and do not pass ``strict`` on."""

    def _make_session(self) -> Any:
        session = super()._make_session()
        session.trust_env = False
        session.max_redirects = 0
        for adapter in session.adapters.values():
            adapter.poolmanager.connection_pool_kw.pop("strict", None)
        return session


class _Client(ipfshttpclient.Client):  # type: ignore[misc]
    def __init__(self, place: Endpoint) -> None:
        super().__init__(place.multiaddr)
        self._client = _Transport(place.multiaddr, "api/v0", headers=place.headers)


class Control:
    """`ipfshttpclient` for asyncio. Call `close` when done."""

    def __init__(self, place: Endpoint) -> None:
        self._url = place.url
        self._client = _Client(place)
        self._closed = False
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="kubo-control")

    async def call(self, call: Call, ask: Callable[[Any], Any], *, timeout_s: float) -> Any:
        """``ask(client)`` in a thread, its answer as plain JSON values.

        ask: makes this one call and passes ``timeout=timeout_s`` on, so that its thread ends soon after we stopped
        waiting. Raises Unavailable: code kubo_unavailable, kubo_timeout, kubo_forbidden, or kubo_error with Kubo's
        own message.
        """
        if self._closed:
            raise Unavailable("Kubo was restarted", code="kubo_unavailable", call=call.path)
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(timeout_s + 1.0):  # the thread's own timeout should come first
                answer = await loop.run_in_executor(self._threads, self._ask, call, ask)
        except TimeoutError as exc:
            raise _timed_out(call, timeout_s) from exc
        return answer

    def close(self) -> None:
        """Without waiting: a call in flight ends by its own timeout."""
        self._closed = True
        self._threads.shutdown(wait=False)

    def _ask(self, call: Call, ask: Callable[[Any], Any]) -> Any:
        try:
            answer = ask(self._client)
        except foreign.ErrorResponse as exc:
            raise refused(call, str(exc)) from exc
        except foreign.StatusError as exc:
            raise bad_status(call, exc.original.response.status_code) from exc
        except (foreign.Error, OSError) as exc:  # OSError: what `requests` raises and the library lets through
            # the answer's rest coming late is no timeout to the library
            late = isinstance(exc, foreign.TimeoutError) or "Read timed out" in str(exc)
            reason = f"does not answer {call.path} in time" if late else "does not answer"
            code = "kubo_timeout" if late else "kubo_unavailable"
            raise Unavailable(f"Kubo at {self._url} {reason}", code=code, call=call.path) from exc
        return answer.as_json() if hasattr(answer, "as_json") else answer


def _timed_out(call: Call, timeout_s: float) -> Unavailable:
    return Unavailable(f"Kubo did not answer {call.path} within {timeout_s:g} s", code="kubo_timeout", call=call.path)


def refused(call: Call, message: str) -> Unavailable:
    """Kubo understood and said no; its words are in ``kubo``."""
    return Unavailable(f"Kubo refused {call.path}: {message}", code="kubo_error", call=call.path, kubo=message)


def bad_status(call: Call, status: int) -> Unavailable:
    """An answer without a message of Kubo's."""
    if status in (401, 403):
        return Unavailable(
            f"Kubo does not allow {call.path} with the given authorization",
            code="kubo_forbidden",
            call=call.path,
        )
    if status == 404:
        return Unavailable(f"this Kubo has no {call.path}", code="kubo_unsupported", call=call.path)
    return Unavailable(
        f"what answers at the Kubo address said {status} to {call.path}",
        code="kubo_unavailable",
        call=call.path,
    )
