"""The shield against web pages: a page in the user's browser can send requests to a loopback port, so where a request
comes from is checked before anything else.

Host must be one of ours (a foreign one means DNS rebinding), Origin absent or ours (``null`` is never ours),
Sec-Fetch-Site not cross-site, and the request line in origin form. There is no CORS, so no preflight ever succeeds.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from aiohttp import web

from ipfs_accelerate_node.content.cid import shown
from ipfs_accelerate_node.errors import Forbidden

_LOOPBACK_NAMES = ("localhost", "127.0.0.1", "[::1]")
_WILDCARDS = frozenset({"0.0.0.0", "::"})


class Provenance(Protocol):
    """Where a request may come from."""

    def check(self, request: web.BaseRequest) -> None:
        """Raises what refuses it, before anything else is looked at."""


@dataclass(frozen=True, slots=True)
class Origins:
    """hosts: Host header values that are ours, lower case, with the port. port: the bound one. any_local_address: the
    listener is bound to every address, so a Host that is the very address a connection came in on is ours too (a
    literal address cannot be rebound)."""

    hosts: frozenset[str]
    port: int
    any_local_address: bool

    @classmethod
    def of(cls, host: str, port: int, allowed: Iterable[str]) -> Origins:
        """host, port: as bound. allowed: further names, ``name`` (with the bound port or none) or ``name:port``."""
        names = {
            f"{name}:{port}" for name in (*_LOOPBACK_NAMES, _bracketed(host)) if name.strip("[]") not in _WILDCARDS
        }
        if port == 80:
            names |= {name.removesuffix(":80") for name in names}
        for name in allowed:
            if _has_port(name):
                names.add(name.lower())
            else:
                names |= {_bracketed(name), f"{_bracketed(name)}:{port}"}
        return cls(frozenset(name.lower() for name in names), port, host.strip("[]") in _WILDCARDS)

    def check(self, request: web.BaseRequest) -> None:
        """Raises Forbidden: code foreign_host, foreign_origin or cross_site."""
        if not request.raw_path.startswith("/"):
            raise Forbidden("the request line must hold a path, not a URL", code="foreign_host")
        hosts = request.headers.getall("Host", [])
        if len(hosts) != 1 or not self._is_ours(hosts[0], request):
            raise Forbidden(
                f"Host {shown(', '.join(hosts))} is not a name of this node: allow it with --allow-host",
                code="foreign_host",
            )
        for origin in request.headers.getall("Origin", []):
            scheme, _, host = origin.partition("://")
            if scheme not in ("http", "https") or not self._is_ours(host, request):
                raise Forbidden(f"a page of {shown(origin)} may not use this node", code="foreign_origin")
        if any(site.strip().lower() == "cross-site" for site in request.headers.getall("Sec-Fetch-Site", [])):
            raise Forbidden("a page of another site may not use this node", code="cross_site")

    def names(self, host: str) -> bool:
        """Whether that is one of the names of this node, without the connection it came in on."""
        return host.lower() in self.hosts

    def _is_ours(self, host: str, request: web.BaseRequest) -> bool:
        if host.lower() in self.hosts:
            return True
        if not self.any_local_address or request.transport is None:
            return False
        local = request.transport.get_extra_info("sockname")
        return bool(local) and host.lower() == f"{_bracketed(local[0])}:{self.port}"


def from_browser(request: web.BaseRequest) -> bool:
    """Does the request carry a header that only a browser's script or form sends?"""
    return "Origin" in request.headers or any(name.lower().startswith("sec-fetch-") for name in request.headers)


def _bracketed(host: str) -> str:
    try:
        address = ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return host.lower()
    return f"[{address}]" if address.version == 6 else str(address)


def _has_port(name: str) -> bool:
    return name.rpartition("]")[2].rpartition(":")[2].isdigit() and (name.startswith("[") or name.count(":") == 1)
