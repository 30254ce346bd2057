"""A request of the Hub's inference API: JSON with ``inputs``, or a picture or sound as the body itself."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TypeVar

import msgspec
from aiohttp import web

from ipfs_accelerate_node.api.bodies import (
    JSON_DEADLINE_S,
    check_content_type,
    chunks,
    converted,
    parse_json,
    read_json,
)
from ipfs_accelerate_node.api.inference_routes import INFER_LIMIT_BYTES
from ipfs_accelerate_node.api.media import media_bytes
from ipfs_accelerate_node.errors import BadRequest, InvalidInput

# No web page can send these without being asked, so they need no further shield.
_RAW = ("image/", "audio/", "application/octet-stream")
T = TypeVar("T", bound=msgspec.Struct)


@dataclass(frozen=True, slots=True)
class Question:
    """inputs: as JSON has them; bytes of a body that is no JSON. parameters: None where the body has none, as those of
    text-embeddings-inference. body: all of the JSON."""

    inputs: object
    parameters: dict[str, object] | None = None
    stream: bool = False
    body: dict[str, object] = field(default_factory=dict)

    def asked(self, kind: type[T]) -> T:
        """The parameters as that type. Raises InvalidInput with the parameter's name."""
        return converted(self.parameters or {}, kind)

    def media(self) -> bytes:
        """The picture or sound. Raises InvalidInput."""
        return self.inputs if isinstance(self.inputs, bytes) else media_bytes(self.inputs, param="inputs")

    def texts(self) -> tuple[list[str], bool]:
        """(texts, whether it is one alone). Raises InvalidInput with the index."""
        if isinstance(self.inputs, str):
            return [self.inputs], True
        if not isinstance(self.inputs, list):
            raise InvalidInput("inputs must be a text or a list of texts", param="inputs")
        if not self.inputs:
            raise InvalidInput("inputs has no item", param="inputs", code="empty_input")
        for index, one in enumerate(self.inputs):
            if not isinstance(one, str):
                raise InvalidInput("every item of inputs must be a text", param="inputs", index=index)
        return self.inputs, False


async def read_question(request: web.Request) -> Question:
    """Raises what `read_json` raises."""
    if "Content-Type" not in request.headers:  # so the Hub's client sends bytes that it was given
        check_content_type(request, "application/json")
        data = await _raw(request)
        if not data.lstrip().startswith(b"{"):
            return Question(data)
        body = await asyncio.to_thread(parse_json, data, dict[str, object])
    elif request.content_type.startswith(_RAW):
        return Question(await _raw(request))
    else:
        body = await read_json(request, dict[str, object], limit_bytes=INFER_LIMIT_BYTES)
    parameters = body.get("parameters")
    if parameters is not None and not isinstance(parameters, dict):
        raise InvalidInput("parameters must be an object", param="parameters")
    stream = body.get("stream", False)
    if not isinstance(stream, bool):
        raise InvalidInput("stream must be true or false", param="stream")
    return Question(body.get("inputs"), parameters, stream, body)


async def _raw(request: web.Request) -> bytes:
    try:
        async with asyncio.timeout(JSON_DEADLINE_S):
            data = b"".join([chunk async for chunk in chunks(request, limit_bytes=INFER_LIMIT_BYTES)])
    except TimeoutError as exc:
        raise BadRequest(f"the body took over {JSON_DEADLINE_S:.0f} s", code="timeout") from exc
    if not data:
        raise InvalidInput("the body is empty", param="inputs", code="empty_input")
    return data
