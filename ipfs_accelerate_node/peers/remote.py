"""Running a model on another node: the request goes there signed, what comes back is that node's claim.

By PeerID through a tunnel, whose other end has shown that it has the key; by URL to a listener that says itself which
key it has. The node that is asked decides by the key that signs (`peers allow` there). Nothing of an answer is believed
but its form: every part is read by a type of its own, and the root that it names must be the one that was asked for.
"""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Annotated, Literal

import msgspec

from ipfs_accelerate_node.config_values import peer_id
from ipfs_accelerate_node.errors import (
    BadContent,
    BadRequest,
    Conflict,
    DeviceUnavailable,
    Forbidden,
    InferenceFailed,
    InvalidInput,
    Loading,
    ModelUnsupported,
    NodeError,
    NotFound,
    Overloaded,
    PayloadTooLarge,
    SourceUnavailable,
    Unauthorized,
    Unavailable,
)
from ipfs_accelerate_node.fetch.threads import in_thread
from ipfs_accelerate_node.peers.protocol import ask_key
from ipfs_accelerate_node.peers.tunnels import Tunnels
from ipfs_accelerate_node.records.key import NodeKey
from ipfs_accelerate_node.records.request import DIGEST, content_digest, sign
from ipfs_accelerate_node.records.request import Asked as Signed
from ipfs_accelerate_node.sources.guard import Origin
from ipfs_accelerate_node.sources.http import Asked, GuardedSession, Pace, Reply

log = logging.getLogger(__name__)

INFER = "/api/infer"
EMBED = "/v1/embeddings"
MAX_REQUEST_BYTES = 16 << 20
MAX_REPLY_BYTES = 32 << 20
MAX_PROBLEM_BYTES = 64 << 10
PATIENCE_S = 90.0  # longer than a node gives a peer's request, so that its own words come through
NAME_S = 5.0
_INLINE_BYTES = 256 << 10  # a longer reply is parsed in a thread

_Name = Annotated[str, msgspec.Meta(max_length=300)]
_Text = Annotated[str, msgspec.Meta(max_length=4 << 20)]

# What a node may say of its refusal, by the title of the problem; whatever else it says is Unavailable.
_REFUSALS: dict[str, type[NodeError]] = {
    kind.__name__: kind
    for kind in (
        BadRequest, InvalidInput, PayloadTooLarge, ModelUnsupported, Unauthorized, Forbidden, NotFound, Conflict,
        Unavailable, DeviceUnavailable, Overloaded, Loading, InferenceFailed,
    )
}  # fmt: skip


class _Scored(msgspec.Struct, frozen=True):
    label: _Name
    score: float


class _Entity(msgspec.Struct, frozen=True):
    label: _Name
    text: _Text
    start: int
    end: int
    score: float


class _Fill(msgspec.Struct, frozen=True):
    token: _Name
    text: _Text
    score: float
    id: int | None = None


class Answered(msgspec.Struct, frozen=True, omit_defaults=True):
    """One output, as `POST /api/infer` has it: exactly one of vector, scores, entities, fills and text."""

    vector: list[float] | None = None
    scores: list[_Scored] | None = None
    entities: list[_Entity] | None = None
    fills: list[_Fill] | None = None
    text: _Text | None = None
    ids: list[int] | None = None
    finish: _Name | None = None
    tokens_in: int = 0
    truncated: bool = False

    def __post_init__(self) -> None:
        kinds = (self.vector, self.scores, self.entities, self.fills, self.text)
        if sum(kind is not None for kind in kinds) != 1:
            raise ValueError("an output is one of vector, scores, entities, fills and text")
        if (self.text is None) != (self.finish is None):
            raise ValueError("a text has a finish")


class Said(msgspec.Struct, frozen=True):
    """What a node says that it ran."""

    root: _Name
    task: _Name
    device: _Name
    engine: _Name
    precision: _Name
    implementation: Literal["REAL", "MOCK"]
    outputs: list[Answered]
    tokens: int
    seconds: float


@dataclass(frozen=True, slots=True)
class RemoteReply:
    """peer: PeerID of the key of the node that answered; shown, by the tunnel, or only said, over http. said: its
    claim."""

    peer: str
    way: Literal["tunnel", "http"]
    said: Said


class _Problem(msgspec.Struct, frozen=True):
    title: str = ""
    detail: str = ""
    code: str = ""
    retry_after_s: float | None = None


@dataclass(frozen=True, slots=True)
class _Place:
    url: str
    peer: str
    way: Literal["tunnel", "http"]


class Remote:
    """key: signs what is asked. tunnels: None where this node opens none."""

    def __init__(self, key: NodeKey, tunnels: Tunnels | None, *, patience_s: float = PATIENCE_S) -> None:
        self._key = key
        self._tunnels = tunnels
        self._patience_s = patience_s

    async def infer(self, where: str, body: bytes, *, root: str, outputs: int) -> RemoteReply:
        """where: URL or PeerID. body: as `POST /api/infer` takes it, naming the model by its root. outputs: as many are
        expected.

        Raises what the node says (its code, its class where that is one of `_REFUSALS`); PayloadTooLarge; Unavailable
        as `Tunnels.open`, no_tunnels; SourceUnavailable; BadContent: foreign_root for an answer by another model,
        bad_answer for what is none.
        """
        if len(body) > MAX_REQUEST_BYTES:
            raise PayloadTooLarge(f"a peer takes {MAX_REQUEST_BYTES >> 20} MiB at most", limit_bytes=MAX_REQUEST_BYTES)
        async with self._place(where) as place:
            data = await self._posted(place, INFER, body)
        said = await in_thread(_read, data, place.peer) if len(data) > _INLINE_BYTES else _read(data, place.peer)
        if said.root != root:
            raise BadContent(
                f"peer:{place.peer} says that it ran {ascii(said.root)[1:-1]}, not {root}", code="foreign_root"
            )
        if len(said.outputs) != outputs:
            raise _no_answer(place.peer, f"it has {len(said.outputs)} outputs for {outputs} items")
        log.info("remote.done peer=%s way=%s root=%s items=%d", place.peer, place.way, root, outputs)
        return RemoteReply(place.peer, place.way, said)

    @asynccontextmanager
    async def _place(self, where: str) -> AsyncIterator[_Place]:
        named = peer_id(where)
        if named is None:
            url = str(Origin.parse(where))
            yield _Place(url, await ask_key(url, timeout_s=NAME_S), "http")
            return
        if self._tunnels is None:
            raise Unavailable("this node opens no tunnels, so it reaches no PeerID", code="no_tunnels")
        async with self._tunnels.using(named) as tunnel:
            yield _Place(tunnel.url, tunnel.who.peer_id, "tunnel")

    async def _posted(self, place: _Place, path: str, body: bytes) -> bytes:
        origin = Origin.parse(place.url)
        asked = Asked(f"peer:{place.peer}")
        headers = {
            "Content-Type": "application/json",
            "Accept": "application/json",
            DIGEST: content_digest(body),
            **sign(self._key, Signed("POST", path, body), to=place.peer, now=time.time()),
        }
        pace = Pace(first_byte_s=self._patience_s)
        async with (
            GuardedSession([origin], pace=pace) as session,
            session.request("POST", origin.url(path), asked, headers, body=body) as reply,
        ):
            if reply.status != 200:
                raise await _refusal(place, reply)
            if reply.content_type != "application/json":
                raise asked.fault("does not answer in JSON", "bad_source")
            return await reply.read(MAX_REPLY_BYTES)


async def _refusal(place: _Place, reply: Reply) -> NodeError:
    """What the node says of why not, as ours; a stranger's words are cut and cleaned."""
    try:
        said = msgspec.json.decode(await reply.read(MAX_PROBLEM_BYTES), type=_Problem)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, SourceUnavailable):
        said = _Problem()
    words = "".join(letter for letter in said.detail if letter.isprintable())[:500]
    code = said.code if said.code.isascii() and said.code.isidentifier() and len(said.code) <= 64 else "refused"
    if reply.status == 404 and code == "not_found":
        words, code = "it runs no models for others, or has no such route", "not_served"
    reason = f"peer:{place.peer}: {words or f'answers {reply.status}'}"
    kind = _REFUSALS.get(said.title, Unavailable)
    made: NodeError
    if issubclass(kind, Unavailable):
        wait_s = said.retry_after_s
        made = kind(reason, code=code, retry_after_s=None if wait_s is None else min(max(wait_s, 0.0), 3600.0))
    else:
        made = kind(reason, code=code)
    made.detail |= {"peer": place.peer, "peer_status": reply.status}
    return made


def _read(data: bytes, peer: str) -> Said:
    try:
        return msgspec.json.decode(data, type=Said)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as exc:
        raise _no_answer(peer, ascii(str(exc))[1:121]) from exc


def _no_answer(peer: str, reason: str) -> BadContent:
    return BadContent(f"peer:{peer} answers what is no answer: {reason}", code="bad_answer")
