"""The Hugging Face Hub as a source: whole files of one commit, each checked against the Hub's own oid.

The token goes to the configured upstream's origin and nowhere else: redirects are followed here, by hand, and lose it
as soon as they leave. Nothing of the Hub's answer is used as a file name but paths that passed `check_tree`.
"""

from __future__ import annotations

import asyncio
import ipaddress
import re
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from types import TracebackType
from typing import Self, TypeVar
from urllib.parse import quote

import aiohttp
from yarl import URL

from ipfs_accelerate_node.content.cid import Buffer
from ipfs_accelerate_node.content.names import check_tree
from ipfs_accelerate_node.errors import AuthRequired, InvalidConfig, NodeError, NotFound, SourceUnavailable
from ipfs_accelerate_node.sources.guard import Guard, Origin, literal
from ipfs_accelerate_node.sources.hub_answers import (
    INVALID_TOKEN,
    About,
    Asker,
    Commit,
    HubFile,
    TreeEntry,
    bad_source,
    refusal,
)
from ipfs_accelerate_node.sources.hub_body import ALLOW_IT, begins, named_errors, runs
from ipfs_accelerate_node.sources.hub_names import (
    DEFAULT_REVISION,
    HubRepo,
    check_repo,
    checked_revision,
)
from ipfs_accelerate_node.sources.hub_snapshot import Snapshot, Traffic

T = TypeVar("T")

MAX_HOPS = 3
ATTEMPTS = 4
RETRY_AFTER_CAP_S = 60.0

_ETAG = re.compile(r'"?([0-9a-f]{64}|[0-9a-f]{40})"?')
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_PASSING = frozenset({"rate_limited", "source_unavailable", "truncated", "stalled"})  # worth another attempt


class HubSource:
    """One upstream, one caller's token. An async context manager; owns its connections.

    endpoint: origin of the Hub, https or a loopback address. token: None asks without one, whatever the environment
    has. redirect_origins: further origins on loopback or a private network that a redirect may lead to; public https
    ones always may. hops: the nodes that ask, see `hub_hops`. backoff_s: wait before the second attempt, doubled for
    each further one.
    """

    kind = "hub"

    def __init__(
        self,
        endpoint: str,
        *,
        token: str | None = None,
        offline: bool = False,
        redirect_origins: Sequence[str] = (),
        hops: tuple[str, ...] = (),
        stall_timeout_s: float = 10.0,
        first_byte_timeout_s: float = 15.0,
        backoff_s: float = 0.5,
    ) -> None:
        self._upstream = Origin.parse(endpoint)
        if self._upstream.scheme != "https" and not _is_loopback(self._upstream):
            raise InvalidConfig(
                f"hf_upstream {self._upstream}: https, or http to a loopback address", param="hf_upstream"
            )
        if token is not None and (not token.isascii() or not token.isprintable() or not token.strip()):
            raise InvalidConfig("the Hugging Face token is not a token: check HF_TOKEN", param="hf_token")
        self.name = str(self._upstream)
        self._allowed = frozenset(map(Origin.parse, redirect_origins))
        self._token = token.strip() if token is not None else None
        self._asker = Asker(self._upstream, self._token, hops)
        self._offline = offline
        self._stall_s, self._first_byte_s, self._backoff_s = stall_timeout_s, first_byte_timeout_s, backoff_s
        self._session: aiohttp.ClientSession | None = None
        self._guard: Guard | None = None

    def __repr__(self) -> str:
        return f"HubSource({self.name!r}, token={'set' if self._token else None})"

    async def __aenter__(self) -> Self:
        self._guard = Guard([self._upstream, *self._allowed])
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(resolver=self._guard, socket_factory=self._guard.socket, limit=8),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=5.0),
            auto_decompress=False,
            trust_env=False,
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def snapshot(self, repo: str, revision: str | None = None) -> Snapshot:
        """revision (default: main) resolved to a commit, and the files its root is made of.

        Raises BadRequest(invalid_reference), UnsafeContent for a tree with a name that no disk should have, NotFound,
        AuthRequired, SourceUnavailable.
        """
        asked = HubRepo.named(repo)
        return Snapshot.of(asked, await self.commit(asked, DEFAULT_REVISION if revision is None else revision))

    async def commit(self, repo: HubRepo, revision: str) -> Commit:
        """revision resolved once, and the whole tree of that commit, every name of it checked. Raises as `snapshot`."""
        about = await self.about(repo, revision)
        return Commit(about, await self.tree(repo, about.sha))

    async def about(self, repo: HubRepo, revision: str) -> About:
        """Raises as `snapshot`."""
        check_repo(repo.id)
        checked = checked_revision(revision)

        def ask() -> About:
            from ipfs_accelerate_node.sources.hub_library import read_about  # half a second, so in the worker thread

            return read_about(self._asker, repo, checked)

        return await self._asked(ask)

    async def tree(self, repo: HubRepo, commit: str) -> tuple[TreeEntry, ...]:
        """Raises as `snapshot`."""

        def ask() -> tuple[TreeEntry, ...]:
            from ipfs_accelerate_node.sources.hub_library import read_tree

            return read_tree(self._asker, repo, commit)

        entries = await self._asked(ask)
        check_tree(  # the hidden ones too: "../x" is one
            (entry.path for entry in entries if not entry.folder), (entry.path for entry in entries if entry.folder)
        )
        return entries

    async def refs(self, repo: HubRepo) -> dict[str, str]:
        """Full name (``refs/heads/main``) to commit. Raises as `snapshot`."""
        check_repo(repo.id)

        def ask() -> dict[str, str]:
            from ipfs_accelerate_node.sources.hub_library import read_refs

            return read_refs(self._asker, repo)

        return await self._asked(ask)

    async def identity(self) -> dict[str, object]:
        """Whose token it is. Raises AuthRequired, SourceUnavailable."""
        if self._token is None:
            raise AuthRequired("whose token is it? none came", source=self.name)

        def ask() -> dict[str, object]:
            from ipfs_accelerate_node.sources.hub_library import read_identity

            return read_identity(self._asker)

        try:
            return await self._asked(ask)
        except NotFound as exc:
            raise AuthRequired(f"{self.name} refuses this token", source=self.name, hub_message=INVALID_TOKEN) from exc

    async def _asked(self, ask: Callable[[], T]) -> T:
        """The answer of ask, in a thread and as often as it is worth another try."""
        self._check_online()
        for attempt in range(ATTEMPTS):
            try:
                return await asyncio.to_thread(ask)
            except SourceUnavailable as exc:
                await self.pause(attempt, exc)
        raise AssertionError("the last attempt raises")

    def _check_online(self) -> None:
        if self._offline:
            raise SourceUnavailable(f"{self.name} is not asked: offline mode is on", source=self.name, code="offline")

    async def admits(self, snapshot: Snapshot, file: HubFile) -> None:
        """Asks for the head of a file only: raises what the Hub refuses this token with, else SourceUnavailable."""
        self._check_online()
        with named_errors(self.name, file):
            async with asyncio.timeout(self._first_byte_s):
                assert self._session is not None, "entered"
                url = self._file_url(snapshot, file)
                response = await self._session.head(url, headers=self._headers(url), allow_redirects=False)
                response.release()
        self._check_first(response, snapshot, file)

    async def pause(self, attempt: int, failure: SourceUnavailable) -> None:
        """Waits before the attempt after this one; raises failure instead when there is none, or no use in one."""
        wait_s = failure.retry_after_s
        if attempt + 1 >= ATTEMPTS or failure.code not in _PASSING or (wait_s or 0) > RETRY_AFTER_CAP_S:
            raise failure
        await asyncio.sleep(self._backoff_s * 2**attempt if wait_s is None else wait_s)

    @asynccontextmanager
    async def open(
        self, snapshot: Snapshot, file: HubFile, start: int, traffic: Traffic, *, stop: int | None = None
    ) -> AsyncIterator[tuple[int, AsyncIterator[Buffer]]]:
        """Bytes of file from start to stop (None: its end), NOT verified, as (offset they really begin at, runs of up
        to CHUNK_BYTES).

        The offset is 0 when the server knows no ranges, or refuses this one. Raises NotFound, AuthRequired and
        SourceUnavailable (code no_ranges, range_refused), here and while the runs are read.
        """
        self._check_online()
        ends = file.size if stop is None else stop
        with named_errors(self.name, file):
            async with asyncio.timeout(self._first_byte_s):
                response = await self._get(snapshot, file, (start, ends), traffic)
        try:
            if response.status == 416:
                raise bad_source(self.name, f"has no byte {start} of {file.path}", code="range_refused")
            at = begins(self.name, response, file, start, ends)
            async with aclosing(runs(self.name, response, file, (at, ends), traffic, self._stall_s)) as body:
                yield at, body
        finally:
            response.close()

    async def _get(
        self, snapshot: Snapshot, file: HubFile, span: tuple[int, int], traffic: Traffic
    ) -> aiohttp.ClientResponse:
        """The answer that has the bytes, after at most MAX_HOPS redirects."""
        assert self._session is not None, "entered"
        url = self._file_url(snapshot, file)
        asked = _range_header(span, file.size)
        for hop in range(MAX_HOPS + 1):
            traffic.requests += 1
            response = await self._session.get(url, headers={**self._headers(url), **asked}, allow_redirects=False)
            try:
                if hop == 0:
                    self._check_first(response, snapshot, file)
                if response.status not in _REDIRECTS:
                    self._check_delivers(response, snapshot)
                    return response
                url = self._redirected(url, response, snapshot)
            except BaseException:
                response.close()
                raise
            response.release()
        raise bad_source(self.name, f"redirects more than {MAX_HOPS} times", code="redirect_refused")

    def _file_url(self, snapshot: Snapshot, file: HubFile) -> URL:
        return self._upstream.url(f"{snapshot.of_repo.path}/resolve/{snapshot.commit}/{quote(file.path, safe='/')}")

    def _headers(self, url: URL) -> dict[str, str]:
        headers = {"Accept-Encoding": "identity", "User-Agent": "ipfs-accelerate-node"}
        if Origin.of(url) == self._upstream:
            headers |= self._asker.headers
            if self._token is not None:
                headers["Authorization"] = f"Bearer {self._token}"
        return headers

    def _check_first(self, response: aiohttp.ClientResponse, snapshot: Snapshot, file: HubFile) -> None:
        """The Hub's own answer says which commit and which oid it is about to deliver, or it is no Hub's."""
        if response.status >= 400 and response.status != 416:
            raise refusal(
                self.name, str(snapshot.of_repo), response.status, response.headers, token=self._token is not None
            )
        if response.status == 416:
            return
        if response.headers.get("X-Repo-Commit") != snapshot.commit:
            raise bad_source(self.name, f"does not say that {file.path} is of commit {snapshot.commit}")
        etag: str = response.headers.get("X-Linked-Etag", response.headers.get("ETag", ""))
        match = _ETAG.fullmatch(etag)
        if match is None:
            raise bad_source(self.name, f"names no usable oid of {file.path} (ETag {etag[:80]!a})")
        if match[1] != file.oid:
            raise bad_source(self.name, f"is about to send another {file.path}: oid {match[1]}, expected {file.oid}")

    def _check_delivers(self, response: aiohttp.ClientResponse, snapshot: Snapshot) -> None:
        if response.status not in (200, 206, 416):
            raise refusal(
                self.name, str(snapshot.of_repo), response.status, response.headers, token=self._token is not None
            )
        if response.headers.get("Content-Encoding", "identity") != "identity":
            raise bad_source(self.name, "compresses what was asked for as it is")

    def _refusal(self, response: aiohttp.ClientResponse, snapshot: Snapshot) -> NodeError:
        return refusal(
            self.name, str(snapshot.of_repo), response.status, response.headers, token=self._token is not None
        )

    def _redirected(self, url: URL, response: aiohttp.ClientResponse, snapshot: Snapshot) -> URL:
        location = response.headers.get("Location")
        if location is None:
            raise self._refusal(response, snapshot)
        try:
            target = url.join(URL(location, encoded=True))
            origin = Origin.of(target)
        except (TypeError, ValueError) as exc:
            raise bad_source(self.name, "redirects to no http(s) address", code="redirect_refused") from exc
        if target.user is not None or target.password is not None:
            raise bad_source(self.name, "redirects to an address with credentials in it", code="redirect_refused")
        if origin != self._upstream and origin.scheme != "https" and origin not in self._allowed:
            raise bad_source(self.name, f"redirects to {origin}, which is not https{ALLOW_IT}", code="redirect_refused")
        if url.scheme == "https" and origin.scheme != "https":
            raise bad_source(self.name, f"redirects from https down to {origin}", code="redirect_refused")
        return target


def _is_loopback(origin: Origin) -> bool:
    address = literal(origin.host)
    return origin.host == "localhost" or (
        isinstance(address, ipaddress.IPv4Address | ipaddress.IPv6Address) and address.is_loopback
    )


def _range_header(span: tuple[int, int], size: int) -> dict[str, str]:
    """The end is named only where it is not the file's."""
    start, stop = span
    if stop < size:
        return {"Range": f"bytes={start}-{stop - 1}"}
    return {"Range": f"bytes={start}-"} if start else {}
