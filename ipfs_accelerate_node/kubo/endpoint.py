"""Where a daemon's RPC API is and what it wants to see: one value, made once, whose secret never prints."""

from __future__ import annotations

import base64
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

from multiaddr import Multiaddr
from multiaddr.exceptions import Error as MultiaddrError

from ipfs_accelerate_node.errors import InvalidConfig, Unavailable

_HOST_PROTOCOLS = ("ip4", "ip6", "dns", "dns4", "dns6")


@dataclass(frozen=True, slots=True)
class Endpoint:
    """url: ``http(s)://host:port``, no path, no credentials. authorization: value of that header, or None."""

    url: str
    authorization: str | None = field(default=None, repr=False)

    @property
    def headers(self) -> dict[str, str]:
        return {} if self.authorization is None else {"Authorization": self.authorization}

    @property
    def multiaddr(self) -> str:
        """The same place in the form that `ipfshttpclient` takes."""
        parts = urlsplit(self.url)
        host = parts.hostname or ""
        if ":" in host:
            kind = "ip6"
        elif host.replace(".", "").isdigit():
            kind = "ip4"
        else:
            kind = "dns"
        return f"/{kind}/{host}/tcp/{parts.port}/{parts.scheme}"


def endpoint(address: str, auth: str | None = None) -> Endpoint:
    """From a URL or multiaddr of an RPC API and ``basic:user:password`` or ``bearer:token``.

    Raises InvalidConfig: another scheme, a path other than ``/api/v0``, credentials in the URL, an unknown kind of
    auth.
    """
    url = _from_multiaddr(address) if address.startswith("/") else address
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as exc:
        raise InvalidConfig(f"kubo: not a URL of an RPC API: {address!r}", param="kubo") from exc
    if parts.scheme not in ("http", "https") or not host or parts.query or parts.fragment:
        raise InvalidConfig(f"kubo: wants http(s)://HOST:PORT or a multiaddr, not {address!r}", param="kubo")
    if parts.username is not None or parts.password is not None:
        raise InvalidConfig("kubo: no credentials in the URL, use the separate auth setting", param="kubo")
    if parts.path.rstrip("/") not in ("", "/api/v0"):
        raise InvalidConfig(f"kubo: unexpected path {parts.path!r} in the RPC URL", param="kubo")
    if not host.isascii():
        raise InvalidConfig("kubo: the RPC host name must be ASCII", param="kubo")
    port = port or (443 if parts.scheme == "https" else 80)
    netloc = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    return Endpoint(urlunsplit((parts.scheme, netloc, "", "", "")), _authorization(auth))


def endpoint_of_repo(repo: Path, auth: str | None = None) -> Endpoint:
    """Of the daemon that runs on this repo (its ``api`` file). Raises Unavailable when none has left one."""
    try:
        address = (repo / "api").read_text(encoding="ascii").strip()
    except (OSError, ValueError) as exc:
        raise Unavailable(
            f"no Kubo daemon runs on {repo} (it has no readable api file): start `ipfs daemon`",
            code="kubo_unavailable",
        ) from exc
    return endpoint(address, auth)


def _from_multiaddr(address: str) -> str:
    try:
        parts = list(Multiaddr(address).items())
    except (MultiaddrError, ValueError) as exc:
        raise InvalidConfig(f"kubo: not a multiaddr: {address!r}", param="kubo") from exc
    names = [protocol.name for protocol, _ in parts]
    if len(names) < 2 or names[0] not in _HOST_PROTOCOLS or names[1] != "tcp":
        raise InvalidConfig(f"kubo: an RPC address is /ip4/…/tcp/…, not {address!r}", param="kubo")
    host = f"[{parts[0][1]}]" if names[0] == "ip6" else str(parts[0][1])
    scheme = "https" if "https" in names or "tls" in names else "http"
    return f"{scheme}://{host}:{parts[1][1]}"


def _authorization(auth: str | None) -> str | None:
    if auth is None:
        return None
    kind, _, secret = auth.partition(":")
    if kind == "bearer" and secret and secret.isprintable() and secret.isascii():
        return f"Bearer {secret}"
    if kind == "basic" and ":" in secret:
        return "Basic " + base64.b64encode(secret.encode()).decode()
    raise InvalidConfig("kubo auth: wants basic:USER:PASSWORD or bearer:TOKEN", param="kubo_auth")
