"""What goes over the wire: request types by route, and how our own types become JSON.

Unknown fields of a request are ignored everywhere (existing clients send more than we know). A reply never holds a
float that JSON cannot say, and a CID is always its canonical text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import fields, is_dataclass
from pathlib import PurePath
from typing import Annotated, Literal

import msgspec
from aiohttp import web

from ipfs_accelerate_node.content.cid import Cid
from ipfs_accelerate_node.fetch.hub_claims import MapAnswer

RefText = Annotated[str, msgspec.Meta(min_length=1, max_length=2048)]
DeviceText = Annotated[str, msgspec.Meta(min_length=1, max_length=64)]
NameText = Annotated[str, msgspec.Meta(min_length=1, max_length=512)]
PatternText = Annotated[str, msgspec.Meta(min_length=1, max_length=512)]
MAX_PATTERNS = 64
Patterns = Annotated[list[PatternText], msgspec.Meta(max_length=MAX_PATTERNS)]


class AddRequest(msgspec.Struct, frozen=True):
    """path: a directory of the daemon's own host, absolute."""

    path: Annotated[str, msgspec.Meta(min_length=1, max_length=4096)]
    name: NameText | None = None
    announce: bool = False
    move: bool = False


class PinRequest(msgspec.Struct, frozen=True):
    """announce: None leaves it to the node's configuration. source: use only this one. include (only is the same):
    patterns of the files that are wanted, none is all; exclude: of those that are not. publish_map: then puts the map
    of that commit of the Hub on IPFS."""

    ref: RefText
    name: NameText | None = None
    announce: bool | None = None
    source: RefText | None = None
    only: Patterns = []
    include: Patterns = []
    exclude: Patterns = []
    publish_map: bool = False


class BenchRequest(msgspec.Struct, frozen=True):
    """ref: measure this model; the rest as in `benchmarks.Wish`. record: publish the kept record of that envelope CID
    instead."""

    ref: RefText | None = None
    record: RefText | None = None
    publish: bool = False
    device: DeviceText = "auto"
    task: NameText | None = None
    precision: Literal["f32", "bf16", "f16", "int8"] | None = None
    workloads: Annotated[tuple[NameText, ...], msgspec.Meta(max_length=32)] = ()
    quick: bool = False
    even_if_busy: bool = False


class PeerRequest(msgspec.Struct, frozen=True):
    """peer: a URL or a PeerID. trust: what its key signed ranks first."""

    peer: RefText
    trust: bool = False


class MapRequest(msgspec.Struct, frozen=True):
    """ref: of a commit of the Hub that is here. publish: put its map on IPFS."""

    ref: RefText
    publish: bool = False


class AuditRequest(msgspec.Struct, frozen=True):
    """ref: of a commit of the Hub. At most one of peer (a URL or a PeerID), map (an envelope's CID) and answer (what
    `GET /api/maps` of somebody said, as it stands) says whose map. fetch: bytes that are not here too."""

    ref: RefText
    peer: RefText | None = None
    map: RefText | None = None
    answer: MapAnswer | None = None
    fetch: bool = False


class RerunRequest(msgspec.Struct, frozen=True):
    """ref: a stored model. peers: only these are asked, and of PeerIDs only what their keys say is run again; none are
    all. keys: PeerIDs, likewise without asking. ask: false asks nobody. The rest as in `benchmarks.rerun.Again`."""

    ref: RefText
    peers: Annotated[list[RefText], msgspec.Meta(max_length=64)] = []
    keys: Annotated[list[RefText], msgspec.Meta(max_length=64)] = []
    ask: bool = True
    device: DeviceText | None = None
    workloads: Annotated[tuple[NameText, ...], msgspec.Meta(max_length=32)] = ()
    quick: bool = False


class ReportRequest(msgspec.Struct, frozen=True):
    """refs: none are all stored models; devices: none are all; precisions: none is f32. peers: what others claim of the
    same models comes with it; they are asked."""

    refs: Annotated[list[RefText], msgspec.Meta(max_length=1000)] = []
    devices: Annotated[list[DeviceText], msgspec.Meta(max_length=32)] = []
    precisions: Annotated[list[Literal["f32", "bf16", "f16", "int8"]], msgspec.Meta(max_length=4)] = []
    peers: bool = False


class VerifyRequest(msgspec.Struct, frozen=True):
    """ref: None checks the whole store."""

    ref: RefText | None = None


class KeyRequest(msgspec.Struct, frozen=True):
    scopes: Annotated[list[Literal["infer", "peer", "pin", "metrics", "admin"]], msgspec.Meta(min_length=1)]
    name: NameText | None = None


class EmbeddingsRequest(msgspec.Struct, frozen=True):
    """The OpenAI request, and the extras that its relatives send. input is checked by its route, item by item."""

    model: NameText
    input: object
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: Annotated[int, msgspec.Meta(ge=1, le=1 << 16)] | None = None
    user: str | None = None
    truncate: bool = True
    prompt_name: str | None = None
    modality: Literal["text", "image", "audio"] = "text"


class EmbeddingObject(msgspec.Struct, frozen=True):
    """embedding: a JSON array, or base64 of little-endian float32."""

    object: Literal["embedding"]
    index: int
    embedding: msgspec.Raw | str
    implementation: Literal["MOCK"] | msgspec.UnsetType = msgspec.UNSET


class TokenUsage(msgspec.Struct, frozen=True):
    prompt_tokens: int
    total_tokens: int


class EmbeddingsReply(msgspec.Struct, frozen=True):
    object: Literal["list"]
    data: list[EmbeddingObject]
    model: str
    usage: TokenUsage
    implementation: Literal["MOCK"] | msgspec.UnsetType = msgspec.UNSET


class ModelObject(msgspec.Struct, frozen=True):
    """created: seconds since the epoch. root, names, loaded, implementation: ours, beyond the protocol."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    root: str
    names: tuple[str, ...]
    loaded: bool
    implementation: Literal["REAL", "MOCK"]


class ModelList(msgspec.Struct, frozen=True):
    object: Literal["list"]
    data: list[ModelObject]


def plain(value: object) -> object:
    """The value as JSON builtins: dataclasses and structs by field, CIDs and paths as text, bytes as hex, sets sorted.

    Raises TypeError for what has no JSON form, so that a new type is noticed by its first test.
    """
    match value:
        case None | bool() | int() | float() | str():
            return value
        case Cid():
            return str(value.canonical)
        case PurePath():
            return str(value)
        case Mapping():
            return {str(key): plain(item) for key, item in value.items()}
        case Set():
            return sorted(str(plain(item)) for item in value)
        case bytes():
            return value.hex()
        case Sequence():
            return [plain(item) for item in value]
        case msgspec.Struct():
            return msgspec.to_builtins(value)
        case _ if is_dataclass(value) and not isinstance(value, type):
            return {field.name: plain(getattr(value, field.name)) for field in fields(value)}
        case _:
            raise TypeError(f"{type(value).__name__} has no JSON form")


def json_bytes(value: object) -> bytes:
    return msgspec.json.encode(plain(value))


def json_reply(value: object, *, status: int = 200, headers: Mapping[str, str] | None = None) -> web.Response:
    """A JSON response that no cache keeps."""
    return web.Response(
        body=json_bytes(value),
        status=status,
        content_type="application/json",
        headers={"Cache-Control": "no-store", **(headers or {})},
    )
