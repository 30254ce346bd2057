"""``Idempotency-Key``: a caller who sends a request again under the same key sends the same request. One with another
body is a mistake of the caller, who would take the answer to one for the answer to the other: it is refused.

What was asked twice is computed twice: no answer is kept, and models change nothing.
"""

from __future__ import annotations

import hashlib
import time
from collections import OrderedDict
from collections.abc import Callable

from aiohttp import web

from ipfs_accelerate_node.content.cid import shown
from ipfs_accelerate_node.errors import Conflict, InvalidInput

HEADER = "Idempotency-Key"
MAX_LENGTH = 255
MAX_KEYS = 8192  # the latest
KEPT_S = 86_400.0


class KnownKeys:
    """Of the last day, what was sent under each."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._known: OrderedDict[bytes, tuple[float, bytes]] = OrderedDict()

    def check(self, request: web.BaseRequest, key: str, body: bytes) -> None:
        """body: its digest. Raises Conflict (idempotency_conflict): another one came under that key, to that path from
        that caller."""
        caller = request.headers.get("Authorization", "")
        name = hashlib.sha256("\0".join((key, caller, request.method, request.raw_path)).encode()).digest()
        now = self._clock()
        since, known = self._known.get(name, (now, body))
        if now - since >= KEPT_S:
            since, known = now, body
        if known != body:
            raise Conflict(f"another body came with {HEADER} {shown(key)}", code="idempotency_conflict")
        self._known[name] = since, known
        self._known.move_to_end(name)
        while len(self._known) > MAX_KEYS:
            self._known.popitem(last=False)


KNOWN_KEYS: web.AppKey[KnownKeys] = web.AppKey("known_keys", KnownKeys)


def key_of(request: web.BaseRequest) -> str | None:
    """Raises InvalidInput for what cannot be one."""
    given = request.headers.getall(HEADER, [])
    if not given:
        return None
    if len(given) > 1 or not 0 < len(given[0]) <= MAX_LENGTH or not given[0].isprintable():
        raise InvalidInput(f"{HEADER} is a text of at most {MAX_LENGTH} characters", param=HEADER)
    return given[0]
