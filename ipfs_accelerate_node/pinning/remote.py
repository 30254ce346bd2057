"""One remote pinning service as a client sees it: Pinning Service API 1.0.0 over https, or http on loopback.

No redirect is followed (the key would go along), no proxy of the environment is used, and an answer is bounded.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn, TypeVar

import aiohttp
import msgspec
from yarl import URL

from ipfs_accelerate_node.content.cid import Cid, shown
from ipfs_accelerate_node.errors import AuthRequired, BadRequest, Conflict, NotFound, Overloaded, SourceUnavailable
from ipfs_accelerate_node.pinning.requests import Ask, Status

TIMEOUT_S = 30.0
MAX_ANSWER_BYTES = 8 << 20
LIST = 100  # requests shown of a service
_KEY = re.compile(r"[!-~]{1,4096}")
T = TypeVar("T")


class RemotePin(msgspec.Struct, frozen=True):
    """A request as the service tells it."""

    requestid: str
    status: Status
    created: str
    pin: RemoteObject
    delegates: list[str] = []
    info: dict[str, Any] | None = None


class RemoteObject(msgspec.Struct, frozen=True):
    cid: str
    name: str | None = None


class RemotePins(msgspec.Struct, frozen=True):
    """count: of all that match; results: the latest."""

    count: int
    results: list[RemotePin]


@dataclass(frozen=True, slots=True)
class Remote:
    """name: the user's for it. url: the base, without ``/pins``."""

    name: str
    url: str
    key: str = field(repr=False)

    @property
    def local(self) -> bool:
        return _is_loopback(URL(self.url).host or "")


def checked_url(text: str) -> str:
    """The base URL of a service, without a slash at its end. Raises BadRequest (code bad_remote_url)."""
    try:
        url = URL(text)
        host, _ = url.host, url.port
    except (ValueError, TypeError) as exc:
        raise _bad_url(f"{shown(text)} is not a URL") from exc
    if url.scheme not in ("http", "https") or not host or not text.isascii() or any(c.isspace() for c in text):
        raise _bad_url(f"{shown(text)} is not https://HOST/PATH")
    if url.user is not None or url.password is not None or "?" in text or "#" in text:
        raise _bad_url("a service's URL holds no user, password, query or fragment")
    if url.scheme == "http" and not _is_loopback(host):
        raise _bad_url("the key would be readable on its way: https is needed, except for this machine itself")
    return text.rstrip("/")


def checked_key(text: str) -> str:
    """Raises BadRequest (code bad_remote_key), which does not repeat it."""
    if not _KEY.fullmatch(text):
        raise BadRequest(
            "that is no key: one word of visible ASCII letters is needed", code="bad_remote_key", param="key"
        )
    return text


def _bad_url(reason: str) -> BadRequest:
    return BadRequest(reason, code="bad_remote_url", param="url")


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class RemoteService:
    """Every method raises AuthRequired (code remote_key_refused), Conflict (remote_quota), NotFound
    (remote_pin_not_found), BadRequest (remote_refused), Overloaded, and SourceUnavailable (remote_unreachable,
    remote_bad_answer)."""

    def __init__(self, remote: Remote, *, timeout_s: float = TIMEOUT_S) -> None:
        self.remote = remote
        self._timeout_s = timeout_s

    async def add(self, ask: Ask) -> RemotePin:
        body: dict[str, object] = {"cid": str(ask.cid)}
        body |= {"name": ask.name} if ask.name is not None else {}
        body |= {"origins": list(ask.origins)} if ask.origins else {}
        body |= {"meta": dict(ask.meta)} if ask.meta else {}
        return self._as(RemotePin, await self._call("POST", "", body=body))

    async def get(self, request_id: str) -> RemotePin:
        return self._as(RemotePin, await self._call("GET", request_id))

    async def find(
        self, *, cid: Cid | None = None, statuses: Sequence[Status] = tuple(Status), limit: int = LIST
    ) -> RemotePins:
        query = {"status": ",".join(statuses), "limit": str(limit), **({} if cid is None else {"cid": str(cid)})}
        return self._as(RemotePins, await self._call("GET", "", query=query))

    async def remove(self, request_id: str) -> None:
        await self._call("DELETE", request_id)

    async def _call(
        self, method: str, request_id: str, *, body: object = None, query: Mapping[str, str] | None = None
    ) -> bytes:
        url = URL(self.remote.url + "/pins", encoded=True)
        url = url / request_id if request_id else url
        headers = {"Authorization": f"Bearer {self.remote.key}", "Accept": "application/json"}
        try:
            async with (
                asyncio.timeout(self._timeout_s),
                aiohttp.ClientSession(trust_env=False) as session,
                session.request(
                    method, url.with_query(query), json=body, headers=headers, allow_redirects=False
                ) as reply,
            ):
                data = await self._body(reply)
                if not 200 <= reply.status < 300:
                    self._refuse(reply.status, data, reply.headers.get("Retry-After"))
                return data
        except TimeoutError as exc:
            raise self._unreachable(f"no answer within {self._timeout_s:g} s") from exc
        except (aiohttp.ClientError, OSError) as exc:
            raise self._unreachable(str(exc) or type(exc).__name__) from exc

    async def _body(self, reply: aiohttp.ClientResponse) -> bytes:
        parts, size = [], 0
        async for part in reply.content.iter_chunked(1 << 16):
            size += len(part)
            if size > MAX_ANSWER_BYTES:
                raise self._strange(f"it sends more than {MAX_ANSWER_BYTES} bytes")
            parts.append(part)
        return b"".join(parts)

    def _refuse(self, status: int, data: bytes, retry_after: str | None) -> NoReturn:
        said = _said(data)
        name = self.remote.name
        told = f"{name} answered {status}" + (f": {said}" if said else "")
        if status in (401, 403):
            raise AuthRequired(f"{name} refuses the key: {told}", source=name, code="remote_key_refused")
        if status == 404:
            raise NotFound(told, code="remote_pin_not_found", remote=name)
        if status == 409 or status == 402:
            raise Conflict(f"{name} keeps no more for this key: {told}", code="remote_quota", remote=name)
        if status == 429:
            wait_s = float(retry_after) if retry_after and retry_after.isdigit() and len(retry_after) < 6 else None
            raise Overloaded(told, code="remote_busy", retry_after_s=wait_s, remote=name)
        if 400 <= status < 500:
            raise BadRequest(told, code="remote_refused", remote=name)
        if status >= 500:
            raise self._unreachable(told)
        raise self._strange(f"it answered {status}")

    def _as(self, kind: type[T], data: bytes) -> T:
        try:
            return msgspec.json.decode(data, type=kind)
        except (msgspec.MsgspecError, UnicodeDecodeError) as exc:
            raise self._strange(f"{exc}") from exc

    def _unreachable(self, reason: str) -> SourceUnavailable:
        name = self.remote.name
        return SourceUnavailable(f"{name} cannot be reached: {reason}", source=name, code="remote_unreachable")

    def _strange(self, reason: str) -> SourceUnavailable:
        name = self.remote.name
        return SourceUnavailable(
            f"what answers at {self.remote.url} is no pinning service: {reason}", source=name, code="remote_bad_answer"
        )


def _said(data: bytes) -> str:
    """What an error body tells people, shortened; nothing where it is of another kind."""
    try:
        error = json.loads(data)["error"]
        return f"{error['reason']}: {error.get('details', '')}"[:500]
    except (ValueError, KeyError, TypeError, AttributeError):
        return ""
