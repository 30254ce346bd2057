"""What a peer's HTTP interface answers when it is asked for results: signed records as blocks, nothing believed yet."""

from __future__ import annotations

from urllib.parse import urlencode

import msgspec

from ipfs_accelerate_node.content.cid import Cid
from ipfs_accelerate_node.sources.guard import Origin
from ipfs_accelerate_node.sources.http import Asked, GuardedSession, Pace

MAX_ANSWER_BYTES = 16 << 20
MAX_PARCELS = 1_000  # of one answer; the rest is not looked at


class RecordParcel(msgspec.Struct, frozen=True):
    """A signed record as it travels: both blocks, base64 in JSON. Empty where a node has not published its record."""

    envelope: bytes = b""
    block: bytes = b""


class _Answer(msgspec.Struct, frozen=True):
    benchmarks: list[RecordParcel]


async def peer_results(url: str, model: Cid, *, name: str, pace: Pace) -> list[RecordParcel]:
    """The newest first, as the peer orders them; none is no fault. name: for errors. Raises SourceUnavailable."""
    origin = Origin.parse(url)
    asked = Asked(name)
    query = urlencode({"model": str(model)})
    async with (
        GuardedSession([origin], pace=pace) as session,
        session.request("GET", origin.url("/api/benchmarks", query), asked, {"Accept": "application/json"}) as reply,
    ):
        if reply.status != 200 or reply.content_type != "application/json":
            raise asked.fault(f"answers {reply.status} when asked for results", "bad_source")
        said = await reply.read(MAX_ANSWER_BYTES)
    try:
        answer = msgspec.json.decode(said, type=_Answer)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as exc:
        raise asked.fault("answers what are no results", "bad_source") from exc
    return [parcel for parcel in answer.benchmarks if parcel.envelope][:MAX_PARCELS]
