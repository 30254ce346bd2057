"""What an HTTP server may answer when it is asked for a block or for a part of a file, judged once for every kind of
server (tables G1–G9).

Nothing here hashes: it holds a server to its own protocol, so that what is hashed is what was asked for.
"""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator
from contextlib import aclosing
from datetime import UTC, datetime

from ipfs_accelerate_node.content.cid import Buffer
from ipfs_accelerate_node.errors import AuthRequired, SourceUnavailable
from ipfs_accelerate_node.sources.http import Asked, Reply, retry_after_s

RAW_TYPE = "application/vnd.ipld.raw"
# What a block may call itself: a plain file server knows no better than octet-stream. The hash decides anyway; the type
# only tells an error page from a block before it is read.
TYPES_OF_BLOCKS = frozenset({RAW_TYPE, "application/octet-stream", ""})

_LACKS = {404: "not_found", 410: "not_found", 412: "not_found", 451: "blocked"}
_BUSY = frozenset({429, 503, 504})
_WITHOUT_RANGES = frozenset({200, 406, 416, 501})  # ignores ranges, serves blocks only, or will not serve this one
_SPAN = re.compile(r"bytes ([0-9]{1,19})-([0-9]{1,19})/([0-9]{1,19}|\*)", re.ASCII)


def refusal(reply: Reply, asked: Asked) -> SourceUnavailable:
    """The typed failure behind a status that is none of those that were hoped for (tables G1, G2)."""
    status = reply.status
    if status in _LACKS:
        return asked.fault(f"answers {status}", _LACKS[status])
    if status in (401, 403):
        return AuthRequired(f"{asked.source} answers {status}", source=asked.source, cid=asked.cid)
    if status in _BUSY:
        wait_s = retry_after_s(reply.headers.get("Retry-After"), datetime.now(UTC))
        return asked.fault(f"answers {status}", "rate_limited" if status == 429 else "source_unavailable", wait_s)
    code = "source_unavailable" if status >= 500 else "bad_source"
    return asked.fault(f"answers {status}", code)


async def block(reply: Reply, asked: Asked, limit_bytes: int) -> bytes:
    """The body of an answer to ``?format=raw``. Raises SourceUnavailable."""
    if reply.status != 200:
        raise refusal(reply, asked)
    if reply.content_type not in TYPES_OF_BLOCKS:
        raise asked.fault(f"answers with {reply.content_type[:60]!a}, not with a block", "bad_source")
    return await reply.read(limit_bytes)


def range_header(start: int, stop: int) -> dict[str, str]:
    """stop is not part of the range, as everywhere in this program; on the wire the last byte is named."""
    return {"Range": f"bytes={start}-{stop - 1}"}


async def span(reply: Reply, asked: Asked, start: int, stop: int, size: int) -> AsyncGenerator[Buffer, None]:
    """The body of an answer to a range request, as it arrives: exactly stop - start bytes, or an error.

    size: of the whole file. Raises SourceUnavailable: no_ranges (the server ignores ranges or will not serve this
    one), bad_source (another range than asked, another size, more bytes), truncated (fewer), and as `refusal`.
    """
    _check_span(reply, asked, start, stop, size)
    left = stop - start
    async with aclosing(reply.chunks()) as chunks:
        async for chunk in chunks:
            if len(chunk) > left:
                if left:
                    yield chunk[:left]
                raise asked.fault(f"sends more than the {stop - start} bytes of the range", "bad_source")
            left -= len(chunk)
            yield chunk
    if left:
        raise asked.fault(f"ends {left} bytes before the end of the range", "truncated")


def _check_span(reply: Reply, asked: Asked, start: int, stop: int, size: int) -> None:
    if reply.status in _WITHOUT_RANGES:
        if reply.status == 200 and reply.content_type == "text/html":  # a sign-in page, not a server without ranges
            raise asked.fault("answers with a page, not with a range", "bad_source")
        raise asked.fault(f"answers {reply.status} to a range", "no_ranges")
    if reply.status != 206:
        raise refusal(reply, asked)
    if reply.content_type == "multipart/byteranges":
        raise asked.fault("answers one range as multipart/byteranges", "no_ranges")
    said = reply.headers.get("Content-Range", "").strip()
    found = _SPAN.fullmatch(said)
    if found is None:
        raise asked.fault(f"answers a range with Content-Range {said[:60]!a}", "bad_source")
    if (int(found[1]), int(found[2])) != (start, stop - 1):
        raise asked.fault(f"answers bytes {found[1]}-{found[2]} to {start}-{stop - 1}", "bad_source")
    if found[3] != "*" and int(found[3]) != size:
        raise asked.fault(f"has a file of {found[3]} bytes, not {size}", "bad_source")
    declared = reply.headers.get("Content-Length")
    if declared is not None and declared.strip() != str(stop - start):
        raise asked.fault(f"announces {declared[:20]!a} bytes for a range of {stop - start}", "bad_source")
