"""Which addresses the node may be talked into contacting (table G6, G10; security default 4).

Whoever can make us fetch a URL (a gateway that redirects, a DNS server) must not be able to point us at this machine
or its network. So every address is judged twice: by the resolver, which knows the host name, and by the socket
factory at connect, which sees IP literals too and cannot be bypassed by a name that changes its mind in between.
Loopback and private addresses are reached only where the user configured that very address.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.resolver import ThreadedResolver
from yarl import URL

from ipfs_accelerate_node.errors import InvalidConfig

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_DEFAULT_PORT = {"http": 80, "https": 443}
# Names that no public DNS answers for (RFC 6761, 6762, 8375, ICANN's .internal): only the local network can mean them.
_LOCAL_SUFFIXES = ("localhost", "local", "lan", "internal", "home.arpa", "test")


class AddressRefused(OSError):
    """An address the node must not contact. An OSError, so that aiohttp treats it like any failed connect."""


@dataclass(frozen=True, slots=True)
class Origin:
    """scheme (http or https), host (lower case ASCII; an IPv6 literal without brackets) and port of a server."""

    scheme: str
    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> Origin:
        """The origin that a user configured as a gateway or peer, like ``https://gateway.example``.

        Raises InvalidConfig for another scheme, user information, a path, a query, a fragment, or a host that is not
        ASCII (table G10).
        """
        shown = ascii(text[:80])
        try:
            url = URL(text)
            host, port = url.host, url.port
        except (ValueError, TypeError) as exc:
            raise InvalidConfig(f"{shown} is not a URL: {exc}", param="url") from exc
        if url.scheme not in _DEFAULT_PORT or not host or not port:
            raise InvalidConfig(f"{shown}: a source is http://HOST[:PORT] or https://HOST[:PORT]", param="url")
        if url.user is not None or url.password is not None:
            raise InvalidConfig("a source's URL must not carry a user name or password", param="url")
        if not text.isascii() or any(c.isspace() or not c.isprintable() or c == "\\" for c in text):
            raise InvalidConfig(f"{shown}: write the host in ASCII (xn--… for other scripts)", param="url")
        if url.raw_path not in ("", "/") or "?" in text or "#" in text:
            raise InvalidConfig(f"{shown}: a source's URL has no path, query or fragment", param="url")
        return cls(url.scheme, host.lower(), port)

    @classmethod
    def of(cls, url: URL) -> Origin:
        """The origin of an absolute http(s) URL. Raises ValueError if it has none."""
        if url.scheme not in _DEFAULT_PORT or not url.host or not url.port:
            raise ValueError(f"not an http(s) URL: {str(url)[:200]!r}")
        return cls(url.scheme, url.host.lower(), url.port)

    def url(self, path: str, query: str = "") -> URL:
        """path: encoded, starts with "/"; query: encoded, without "?"."""
        return URL(f"{self}{path}{'?' + query if query else ''}", encoded=True)

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}" + ("" if self.port == _DEFAULT_PORT[self.scheme] else f":{self.port}")


def embedded(address: Address) -> Address:
    """The address that packets really go to: IPv4 taken out of its IPv6 disguises (mapped, NAT64, 6to4, Teredo)."""
    if isinstance(address, ipaddress.IPv4Address):
        return address
    if address.ipv4_mapped is not None:
        return address.ipv4_mapped
    if address in _NAT64:
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    if address.sixtofour is not None:
        return address.sixtofour
    if address.teredo is not None:
        return address.teredo[1]
    return address


def public(address: Address) -> bool:
    """Whether anyone on the internet could have told us to go there without harm to this network."""
    real = embedded(address)
    return real.is_global and not (real.is_multicast or real.is_reserved or real.is_unspecified)


def literal(host: str) -> Address | None:
    """The address that a host spells, if it is one (a zone index is ignored); None for a name."""
    try:
        return ipaddress.ip_address(host.strip("[]").partition("%")[0])
    except ValueError:
        return None


def local_name(host: str) -> bool:
    """Whether a host name can only be meant for the local network: no dot, or a special-use suffix."""
    name = host.rstrip(".")
    return "." not in name or any(name.endswith("." + suffix) for suffix in _LOCAL_SUFFIXES)


def _disguised(host: str) -> bool:
    try:
        socket.inet_aton(host)
    except OSError:
        return False
    return True


class Guard(AbstractResolver):
    """Resolver and socket factory of one trust zone.

    configured: what the user wrote down. An IP literal among them may be private; a name among them may lead to a
    private address only if it is a local name (``localhost``, ``nas.lan``): a public name that suddenly means
    127.0.0.1 is an attack. Names below a configured local name count as it (subdomain gateways on ``localhost``).
    """

    def __init__(self, configured: Iterable[Origin], *, resolver: AbstractResolver | None = None) -> None:
        self._configured = frozenset((o.host.rstrip("."), o.port) for o in configured)
        self._granted: set[tuple[Address, int]] = set()
        for host, port in self._configured:
            if (address := literal(host)) is not None:
                self._granted.add((embedded(address), port))
        self._resolver = resolver

    def admits(self, address: Address, port: int) -> bool:
        return public(address) or (embedded(address), port) in self._granted

    def check_host(self, host: str, port: int) -> None:
        """Raises AddressRefused if host spells an IP address that may not be contacted, or one in disguise
        (``2130706433``, ``0x7f.1``); names are judged when resolved."""
        address = literal(host)
        if address is not None and not self.admits(address, port):
            raise AddressRefused(f"{host} is not a public address and not one that was configured")
        if address is None and _disguised(host):
            raise AddressRefused(f"{host} is a disguised address")

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """Addresses of a name, less those that may not be contacted. Raises AddressRefused when none is left."""
        if self._resolver is None:
            self._resolver = ThreadedResolver()
        # RFC 6761 §6.3: every name below localhost is this machine, also where the system's resolver does not know it
        # (a Kubo gateway on localhost redirects each CID to a name of its own).
        asked = "localhost" if host.lower().rstrip(".").endswith(".localhost") else host
        found = await self._resolver.resolve(asked, port, family)
        addresses = [(r, a) for r in found if (a := literal(r["host"])) is not None]
        if self._is_configured_local_name(host.lower().rstrip("."), port):
            self._granted.update((embedded(address), port) for _, address in addresses)
            kept = [ResolveResult(**{**r, "hostname": host}) for r, _ in addresses]
        else:
            kept = [r for r, address in addresses if public(address)]
        if not kept:
            shown = ", ".join(r["host"] for r in found[:4]) or "nothing"
            raise AddressRefused(
                f"{host} resolves to {shown}, which is not public; if that is meant, configure the address itself"
            )
        return kept

    def socket(self, info: tuple[Any, ...]) -> socket.socket:
        """aiohttp's socket factory: the last look at an address before it is connected to."""
        family, kind, proto, _, target = info
        address = literal(str(target[0]))
        if address is None or not self.admits(address, int(target[1])):
            raise AddressRefused(f"{target[0]} is not a public address and not one that was configured")
        return socket.socket(family=family, type=kind, proto=proto)

    async def close(self) -> None:
        if self._resolver is not None:
            await self._resolver.close()

    def _is_configured_local_name(self, host: str, port: int) -> bool:
        return any(
            local_name(host) and port == its_port and (host == name or host.endswith("." + name))
            for name, its_port in self._configured
            if local_name(name) and literal(name) is None
        )
