"""Who may look: whoever has the admin key makes a link that opens once, and the browser that opens it gets a session.

A browser has no way to send our key, and a key in an address would stay in its history. So the link holds a code that
is of no use once it was used or a minute has passed. Codes and sessions live in memory, as digests, and end with the
daemon; a session also ends with the stored key that made it.
"""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass

from ipfs_accelerate_node.api.keys import Caller, KeyRing

CODE_S = 60.0
SESSION_S = 12 * 3600.0
MAX_CODES = 16  # of each the oldest makes room
MAX_SESSIONS = 64


@dataclass(frozen=True, slots=True)
class _Grant:
    """until: of the clock. key_id: of the stored key that it came from; None for the daemon's own."""

    until: float
    key_id: str | None


class Sessions:
    def __init__(self, keys: KeyRing, clock: Callable[[], float] = time.monotonic) -> None:
        self._keys = keys
        self._clock = clock
        self._codes: dict[bytes, _Grant] = {}
        self._sessions: dict[bytes, _Grant] = {}

    def new_code(self, caller: Caller) -> str:
        """For a caller whose key was checked. Opens one session within CODE_S."""
        stored = {key.id for key in self._keys.stored()}
        key_id = caller.key_id if caller.key_id in stored else None
        return self._add(self._codes, _Grant(self._clock() + CODE_S, key_id), MAX_CODES)

    def open(self, code: str) -> str | None:
        """The secret of a new session; None for a code that is not known, was used, or is too old."""
        grant = self._codes.pop(_digest(code), None)
        if grant is None or not self._stands(grant):
            return None
        return self._add(self._sessions, _Grant(self._clock() + SESSION_S, grant.key_id), MAX_SESSIONS)

    def knows(self, secret: str) -> bool:
        """Whether that is the secret of a session that still stands."""
        grant = self._sessions.get(_digest(secret))
        return grant is not None and self._stands(grant)

    def _stands(self, grant: _Grant) -> bool:
        if self._clock() >= grant.until:
            return False
        return grant.key_id is None or any(key.id == grant.key_id for key in self._keys.stored())

    def _add(self, grants: dict[bytes, _Grant], grant: _Grant, most: int) -> str:
        for digest in [digest for digest, known in grants.items() if not self._stands(known)]:
            del grants[digest]
        while len(grants) >= most:
            del grants[next(iter(grants))]
        secret = secrets.token_urlsafe(32)
        grants[_digest(secret)] = grant
        return secret


def _digest(secret: str) -> bytes:
    """Looked up by digest: how long that takes says nothing about the secret."""
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).digest()
