"""What a setting's value may be, whoever wrote it: readers by type, checks by name, refusals that name the place."""

from __future__ import annotations

import ipaddress
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from ipfs_accelerate_node.errors import InvalidConfig

SECRETS = frozenset({"kubo_auth", "hf_token"})


@dataclass(frozen=True, slots=True)
class Given:
    """One value as someone wrote it. place: flag, variable, or file and line. base: what relative paths stand on."""

    name: str
    value: object
    place: str
    base: Path

    def refused(self, reason: str) -> InvalidConfig:
        said = "a secret" if self.name in SECRETS else f"{self.value!r:.80}"
        return InvalidConfig(f"{self.place}: {self.name} {reason}, not {said}", param=self.name)


def is_loopback(host: str) -> bool:
    """Whether a bind address or URL host is reached from this machine only (``localhost`` counts; names do not)."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def _text(given: Given) -> str:
    if not isinstance(given.value, str):
        raise given.refused("wants a text")
    if not given.value or given.value != given.value.strip() or not given.value.isprintable():
        raise given.refused("wants a text without control characters or spaces around it")
    return given.value


def _path(given: Given) -> Path:
    if isinstance(given.value, Path):
        return given.base / given.value
    text = _text(given)
    try:
        return given.base / Path(text).expanduser()
    except RuntimeError as exc:
        raise given.refused("wants the path of a user that exists") from exc


def _number(given: Given) -> int:
    if isinstance(given.value, str) and re.fullmatch(r"-?[0-9]{1,18}", given.value):
        return int(given.value)
    if not isinstance(given.value, int) or isinstance(given.value, bool):
        raise given.refused("wants a whole number")
    return given.value


def _bytes(given: Given) -> int:
    """A number of bytes, also as a text with a unit: ``50GB``, ``1.5 TiB``."""
    text = str(given.value).strip()
    match = re.fullmatch(r"([0-9]{1,15}(?:\.[0-9]{1,6})?) ?([kMGT]i?)B", text, re.IGNORECASE)
    if not isinstance(given.value, str) or match is None:
        return _number(given)
    power = "kmgt".index(match[2][0].lower()) + 1
    return int(float(match[1]) * (1024 if match[2].lower().endswith("i") else 1000) ** power)


def _seconds(given: Given) -> float:
    value = given.value
    try:
        seconds = float(value) if isinstance(value, (str, int, float)) and not isinstance(value, bool) else math.nan
    except (ValueError, OverflowError):
        seconds = math.nan
    if not 0 < seconds <= 86_400:
        raise given.refused("wants a number of seconds, more than 0 and at most a day")
    return seconds


def is_true(value: str | None) -> bool:
    return value is not None and value.strip().lower() in ("1", "on", "yes", "true")


def _flag(given: Given) -> bool:
    if isinstance(given.value, bool):
        return given.value
    if isinstance(given.value, str) and given.value.lower() in ("1", "on", "yes", "true", "0", "off", "no", "false"):
        return is_true(given.value)
    raise given.refused("wants true or false")


def _texts(given: Given) -> tuple[str, ...]:
    """A list; a variable holds it with commas or spaces between, ``none`` is the empty one."""
    value = given.value
    if isinstance(value, str):
        value = [item for item in re.split(r"[,\s]+", value) if item]
    if not isinstance(value, (list, tuple)):
        raise given.refused("wants a list of texts")
    items = tuple(_text(Given(given.name, item, given.place, given.base)) for item in value)
    return () if items == ("none",) else items


# By a field's own name, else by its type.
READERS: dict[str, Callable[[Given], object]] = {
    "Path": _path,
    "Path | None": _path,
    "str": _text,
    "str | None": _text,
    "int": _number,
    "int | None": _number,
    "float": _seconds,
    "bool": _flag,
    "tuple[str, ...]": _texts,
    "tuple[str, ...] | None": _texts,
    "quota_bytes": _bytes,
    "share_rate_bytes": _bytes,
    "memory_bytes": _bytes,
    "keep_alive_s": _seconds,
}


def _within(low: int, high: int) -> Callable[[Given, object], object]:
    def check(given: Given, value: object) -> object:
        if not isinstance(value, int) or not low <= value <= high:
            raise given.refused(f"wants a number from {low} to {high}")
        return value

    return check


def _host(given: Given, value: object) -> object:
    if not re.fullmatch(r"[A-Za-z0-9.:_\[\]%-]{1,253}", str(value)):
        raise given.refused("wants an address or a host name")
    return value


def _origin(given: Given, url: str, *, said: str = "wants a URL like https://host:port") -> str:
    """The URL as ``scheme://host[:port]``. Raises InvalidConfig for another scheme, credentials, a path, a query, a
    host that is not ASCII, or no port where one is begun."""
    if "@" in url:  # never echoed
        raise InvalidConfig(f"{given.place}: {given.name}: a URL with a user or password is refused", param=given.name)
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as exc:
        raise given.refused(said) from exc
    clean = re.fullmatch(r"[A-Za-z0-9.:_-]+", host or "") and "\\" not in url
    if parts.scheme not in ("http", "https") or not clean or parts.path not in ("", "/") or re.search(r"[?#]", url):
        raise given.refused(f"{said}, without a path, query or letters beyond ASCII")
    if port == 0 or parts.netloc.endswith(":"):
        raise given.refused(said)
    named = f"[{host}]" if ":" in str(host) else str(host)
    return f"{parts.scheme}://{named}" + ("" if port is None else f":{port}")


def _origins(given: Given, value: object) -> object:
    urls = value if isinstance(value, tuple) else ()
    return tuple(dict.fromkeys(_origin(Given(given.name, url, given.place, given.base), url) for url in urls))


_PEER_ID = re.compile(
    r"(?:/p2p/|peer:)?(12D3Koo[1-9A-HJ-NP-Za-km-z]{45}|16Uiu2[1-9A-HJ-NP-Za-km-z]{48}|Qm[1-9A-HJ-NP-Za-km-z]{44})"
)


def peer_id(text: str) -> str | None:
    """The PeerID in ``12D3Koo…``, ``/p2p/12D3Koo…`` or ``peer:12D3Koo…`` (so receipts spell it; also the older kinds
    ``16Uiu2…`` and ``Qm…``), None for any other text. Only its form is looked at."""
    match = _PEER_ID.fullmatch(text)
    return match[1] if match else None


def _peers(given: Given, value: object) -> object:
    """URLs as `_origin` has them, and PeerIDs."""
    texts = value if isinstance(value, tuple) else ()
    said = "wants a URL like https://host:port, or a PeerID"
    return tuple(
        dict.fromkeys(
            peer_id(text) or _origin(Given(given.name, text, given.place, given.base), text, said=said)
            for text in texts
        )
    )


def _keys(given: Given, value: object) -> object:
    """PeerIDs of Ed25519 keys, which hold the key itself."""
    found = [peer_id(text) or "" for text in (value if isinstance(value, tuple) else ())]
    if not all(key.startswith("12D3Koo") for key in found):
        raise given.refused("wants PeerIDs of nodes' keys, like 12D3KooW…")
    return tuple(dict.fromkeys(found))


def _upstream(given: Given, value: object) -> object:
    origin = _origin(given, str(value))
    if not origin.startswith("https://") and not is_loopback(urlsplit(origin).hostname or ""):
        raise given.refused("wants https, or http to a loopback address: the Hub token goes there")
    return origin


def _kubo(given: Given, value: object) -> object:
    if value in ("auto", "managed", "off") or str(value).startswith("/"):
        return value
    return _origin(given, str(value).removesuffix("/api/v0"), said="wants auto, managed, off or the URL of an RPC API")


def _kubo_auth(given: Given, value: object) -> object:
    if not re.fullmatch(r"basic:[^:]+:.+|bearer:.+", str(value)):
        raise given.refused("wants basic:USER:PASSWORD or bearer:TOKEN")
    return value


def _collector(given: Given, value: object) -> object:
    parts = urlsplit(str(value))
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.username is not None:
        raise given.refused("wants the URL of a collector, http://host:4318")
    return value


def _precision(given: Given, value: object) -> object:
    if value not in ("auto", "f32", "bf16", "f16", "int8"):
        raise given.refused("wants auto, f32, bf16, f16 or int8")
    return value


CHECKS: dict[str, Callable[[Given, object], object]] = {
    "host": _host,
    "port": _within(0, 65535),
    "kubo": _kubo,
    "kubo_auth": _kubo_auth,
    "gateways": _origins,
    "peers": _peers,
    "allow_peers": _keys,
    "share_rate_bytes": _within(1_000_000, 1 << 62),
    "share_connections": _within(1, 4096),
    "quota_bytes": _within(1 << 20, 1 << 62),
    "memory_bytes": _within(1 << 20, 1 << 62),
    "threads": _within(1, 4096),
    "precision": _precision,
    "hf_upstream": _upstream,
    "hf_redirect_origins": _origins,
    "otlp_endpoint": _collector,
}
