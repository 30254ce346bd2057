"""The bytes of one of the Hub's answers, held to what was asked for; still nothing that is verified (table F5h)."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing, contextmanager

import aiohttp

from ipfs_accelerate_node.content.cid import Buffer
from ipfs_accelerate_node.sources import bulk
from ipfs_accelerate_node.sources.guard import AddressRefused
from ipfs_accelerate_node.sources.hub_answers import HubFile, bad_source
from ipfs_accelerate_node.sources.hub_snapshot import Traffic

CHUNK_BYTES = 1 << 20
MIN_PROGRESS_BYTES = 16 << 10  # within the time that a stall takes, or the transfer counts as stalled

ALLOW_IT = ": if that is meant, allow its origin with hf_redirect_origin"

_RANGE = re.compile(r"bytes (\d{1,19})-(\d{1,19})/(\d{1,19})")


@contextmanager
def named_errors(name: str, file: HubFile) -> Iterator[None]:
    """Failures of the network as ours. name: of the source."""
    try:
        yield
    except (TimeoutError, bulk.Stalled) as exc:
        raise bad_source(name, f"did not go on in time with {file.path}", code="stalled") from exc
    except aiohttp.ClientSSLError as exc:
        raise bad_source(name, "has no valid TLS certificate", code="tls_error") from exc
    except aiohttp.ClientPayloadError as exc:
        raise bad_source(name, f"broke off within {file.path}", code="truncated") from exc
    except ValueError as exc:
        raise bad_source(name, f"sends more than it announced of {file.path}") from exc
    except (aiohttp.ClientError, OSError) as exc:
        if isinstance(exc, AddressRefused) or isinstance(exc.__cause__, AddressRefused):
            refused = f"leads to an address of this machine or a private network{ALLOW_IT}"
            raise bad_source(name, refused, code="redirect_refused") from exc
        reason = f"cannot be reached ({type(exc).__name__})"
        raise bad_source(name, reason, code="source_unavailable") from exc


def begins(name: str, response: aiohttp.ClientResponse, file: HubFile, start: int, stop: int) -> int:
    """0 or start: where the body begins. Raises for a part of something else; code no_ranges where the whole file comes
    though its end was not asked for."""
    whole = response.status != 206
    if whole and stop < file.size:
        raise bad_source(name, f"knows no ranges of {file.path}", code="no_ranges")
    at = 0 if whole else start
    if not whole:
        match = _RANGE.fullmatch(response.headers.get("Content-Range", ""))
        if match is None or tuple(map(int, match.groups())) != (start, stop - 1, file.size):
            raise bad_source(name, f"sent another part of {file.path}", code="range_refused")
    length = response.headers.get("Content-Length")
    if length is not None and length != str(stop - at):
        raise bad_source(name, f"has {file.path} with {length[:20]!a} bytes, expected {stop - at}")
    return at


async def runs(
    name: str, response: aiohttp.ClientResponse, file: HubFile, span: tuple[int, int], traffic: Traffic, stall_s: float
) -> AsyncGenerator[Buffer, None]:
    """Exactly the bytes of the span, as they come, or an error."""
    start, stop = span
    expected = stop - start
    eager = start == 0  # somebody may wait for the first byte of the file
    with named_errors(name, file):
        async with aclosing(_raw(response, stall_s, eager)) as raw:
            async for run in raw:
                traffic.bytes += len(run)
                expected -= len(run)
                if expected < 0:
                    raise bad_source(name, f"sends more than the {file.size} bytes of {file.path}")
                yield run
    if expected:
        raise bad_source(name, f"broke off within {file.path}", code="truncated")


async def _raw(response: aiohttp.ClientResponse, stall_s: float, eager: bool) -> AsyncGenerator[Buffer, None]:
    if eager:
        async with asyncio.timeout(stall_s):
            first = await response.content.readany()
        if first:
            yield first
    if bulk.rest_of(response) >= bulk.MIN_BYTES:
        async with aclosing(bulk.pieces(response, stall_s, MIN_PROGRESS_BYTES / stall_s)) as pieces:
            async for piece in pieces:
                yield piece
        return
    failure: Exception | None = None
    while failure is None:
        run, failure = await _run(response, stall_s)
        if run:
            yield run
        elif failure is None:
            return
    raise failure


async def _run(response: aiohttp.ClientResponse, stall_s: float) -> tuple[bytes, Exception | None]:
    """Up to CHUNK_BYTES and a little, less at the end or before a failure; nothing and no failure at the end. A
    source that only drips has stalled."""
    loop = asyncio.get_running_loop()
    run, marked = bytearray(), 0
    try:
        async with asyncio.timeout(stall_s) as patience:
            while len(run) < CHUNK_BYTES and (part := await response.content.readany()):
                run += part
                if len(run) - marked >= MIN_PROGRESS_BYTES:
                    marked = len(run)
                    patience.reschedule(loop.time() + stall_s)
    except (aiohttp.ClientError, OSError) as exc:  # a TimeoutError is an OSError
        return bytes(run), exc
    return bytes(run), None
