"""Who may use which surface, from which bind: the table below is the whole policy.

A loopback bind opens what reads and what infers to every local program; what changes state or names a local path needs
the admin key everywhere. Any other bind needs a key for all but the health probes.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Protocol

from aiohttp import web

from ipfs_accelerate_node.api.keys import Caller, KeyRing
from ipfs_accelerate_node.errors import Forbidden, Unauthorized

_QUERY_KEYS = frozenset({"key", "api_key", "apikey", "access_token", "token", "authorization"})
_MAX_SECRET = 512  # letters; ours have 47, other programs' bearers are accepted and ignored on a loopback bind


class Surface(enum.Enum):
    """What a route belongs to. The value: (scope it needs, is it open on a loopback bind)."""

    OPEN = (None, True)  # probes
    INFER = ("infer", True)
    SHARE = ("peer", True)  # what other nodes read; also open elsewhere with --share
    CONTENT = ("peer or hub", True)  # a path that is SHARE's or HUB's: its handler finds out, and asks again for that
    HUB = ("hub", True)  # the Hub's protocol: the bearer is the caller's Hugging Face token, never a key of ours
    METRICS = ("metrics", True)
    PIN = ("pin", False)  # the Pinning Service API: what is kept here on somebody's request
    STATE = ("admin", False)  # changes state, or names a local path


class Admission(Protocol):
    """Who may enter by a listener, and what they see."""

    def admit(self, request: web.BaseRequest, surface: Surface) -> Caller | None:
        """The caller, None for one without a known key. Raises what refuses them."""

    def sees_private(self, caller: Caller | None) -> bool:
        """May this caller read stored content that is not public?"""


@dataclass(frozen=True, slots=True)
class Gate:
    """The user's listener. loopback: its address is one that only this host reaches. share: the user opened SHARE to
    all. hub_open: and HUB, for public content."""

    keys: KeyRing
    loopback: bool
    share: bool
    hub_open: bool = False

    def admit(self, request: web.BaseRequest, surface: Surface) -> Caller | None:
        """The caller, None for one without a known key. Raises Unauthorized (no or unknown key) and Forbidden (a known
        key without the scope)."""
        if surface is Surface.HUB or (surface is Surface.CONTENT and self.hub_open):
            self._admit_to_hub(request)
            return None
        surface = Surface.SHARE if surface is Surface.CONTENT else surface
        caller = self._caller(request)
        scope, open_on_loopback = surface.value
        if scope is None or (self.loopback and open_on_loopback) or (self.share and surface is Surface.SHARE):
            return caller
        if caller is None:
            raise Unauthorized(f"this needs a key with the scope {scope}: Authorization: Bearer KEY", scope=scope)
        if not caller.may(scope):
            raise Forbidden(f"this key lacks the scope {scope}", code="scope_missing", scope=scope)
        return caller

    def _admit_to_hub(self, request: web.BaseRequest) -> None:
        _authorization(request)
        if not (self.loopback or self.hub_open):
            raise Forbidden("the Hub's routes are closed on this address; --hub-open opens them", code="hub_closed")

    def sees_private(self, caller: Caller | None) -> bool:
        """May this caller read stored content that is not public? On loopback too, only who has the daemon's own key:
        another user of this machine, or another node on it, is a stranger."""
        return caller is not None and caller.may("admin")

    def _caller(self, request: web.BaseRequest) -> Caller | None:
        secret = bearer(request)
        return None if secret is None else self.keys.identify(secret)


def bearer(request: web.BaseRequest) -> str | None:
    """What the request carries as ``Authorization: Bearer``. Raises Unauthorized for several, or one in the URL."""
    scheme, _, secret = (_authorization(request) or "").partition(" ")
    return secret if scheme.lower() == "bearer" and 0 < len(secret) <= _MAX_SECRET else None


def _authorization(request: web.BaseRequest) -> str | None:
    named = request.headers.getall("Authorization", [])
    if len(named) > 1:
        raise Unauthorized("one Authorization header is needed, several came")
    if any(name.lower() in _QUERY_KEYS for name in request.query):
        raise Unauthorized("a key in a URL ends up in logs: send it as Authorization: Bearer KEY")
    return named[0] if named else None
