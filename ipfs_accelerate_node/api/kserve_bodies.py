"""Bodies of KServe's inference requests: JSON, JSON with tensors after it, or one raw tensor; and of the replies."""

from __future__ import annotations

import asyncio
import gzip
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
from aiohttp import web

from ipfs_accelerate_node.api.bodies import JSON_DEADLINE_S, check_content_type, chunks, parse_json
from ipfs_accelerate_node.api.inference_replies import check_json
from ipfs_accelerate_node.api.kserve_signatures import Made, Signature, check_finite, shape_of
from ipfs_accelerate_node.api.kserve_tensors import Array, Tensor, from_bytes, from_json, refused, to_bytes, to_json
from ipfs_accelerate_node.api.kserve_wire import InferReply, InferRequest, InputTensor, OutputTensor, WantedOutput
from ipfs_accelerate_node.errors import BadRequest, InvalidInput

HEADER = "Inference-Header-Content-Length"
INFER_LIMIT_BYTES = 64 << 20  # also of a compressed body, once it is not
_INLINE_BYTES = 64 << 10
_BINARY = "application/octet-stream"


@dataclass(frozen=True, slots=True)
class Asked:
    """tensors: by name. raw: the body was one tensor without a name, of the model's only input."""

    request: InferRequest
    tensors: dict[str, Tensor]
    raw: bytes | None = None


async def read_asked(request: web.Request) -> Asked:
    """Raises UnsupportedMediaType, PayloadTooLarge, BadRequest, InvalidInput."""
    if request.content_type != _BINARY or "Content-Type" not in request.headers:
        check_content_type(request, "application/json")
    try:
        async with asyncio.timeout(JSON_DEADLINE_S):
            body = b"".join([chunk async for chunk in chunks(request, limit_bytes=INFER_LIMIT_BYTES)])
    except TimeoutError as exc:
        raise BadRequest(f"the body took over {JSON_DEADLINE_S:.0f} s", code="timeout") from exc
    length = _header_length(request, len(body))
    if length == 0:
        return Asked(InferRequest([]), {}, body)
    if len(body) <= _INLINE_BYTES:
        return _parsed(body, length)
    return await asyncio.to_thread(_parsed, body, length)


def _header_length(request: web.Request, size: int) -> int:
    """Of the JSON at the body's beginning. Raises BadRequest."""
    stated = request.headers.getall(HEADER, [])
    if not stated:
        return size
    if len(stated) > 1 or not stated[0].isascii() or not stated[0].isdigit() or len(stated[0]) > 12:
        raise BadRequest(f"{HEADER} must be a number of bytes", code="invalid_request")
    length = int(stated[0])
    if length > size:
        raise BadRequest(f"{HEADER} is {length}, the body has {size} bytes", code="invalid_request")
    return length


def _parsed(body: bytes, length: int) -> Asked:
    asked = parse_json(body[:length], InferRequest)
    rest, at = memoryview(body)[length:], 0
    tensors: dict[str, Tensor] = {}
    for tensor in asked.inputs:
        if tensor.name in tensors:
            raise refused(tensor.name, "came twice")
        size = _binary_size(tensor)
        if size is None:
            tensors[tensor.name] = from_json(tensor)
            continue
        if size > len(rest) - at:
            raise refused(tensor.name, f"has {size} bytes after the JSON, {len(rest) - at} are left")
        tensors[tensor.name] = from_bytes(tensor, rest[at : at + size])
        at += size
    if at != len(rest):
        raise InvalidInput(f"{len(rest) - at} bytes after the JSON belong to no input", param="inputs")
    return Asked(asked, tensors)


def _binary_size(tensor: InputTensor) -> int | None:
    parameters = tensor.parameters
    if parameters is not None and parameters.shared_memory_region is not None:
        raise refused(tensor.name, "lies in shared memory, which is not served here")
    size = None if parameters is None else parameters.binary_data_size
    if (size is None) == (tensor.data is None):
        raise refused(tensor.name, "needs either data or binary_data_size")
    return size


def named_raw(asked: Asked, signature: Signature) -> dict[str, Tensor]:
    """The tensors; a raw body is the one element of the one input. Raises InvalidInput where there are several."""
    if asked.raw is None:
        return asked.tensors
    if len(signature.inputs) != 1:
        raise InvalidInput("a raw body is for models with one input", param="inputs")
    name = signature.inputs[0][0]
    return {name: Tensor(name, "BYTES", (1,), [asked.raw])}


def chosen_outputs(asked: Asked, signature: Signature) -> list[tuple[str, bool]]:
    """(name, whether its data follow the JSON), in the order that was asked for. Raises InvalidInput."""
    known = [name for name, _, _ in (*signature.outputs, *signature.raw_outputs)]
    unnamed = signature.unnamed(asked.tensors)
    if asked.raw is not None:
        return [(name, True) for name in unnamed]
    binary = (asked.request.parameters or {}).get("binary_data_output", False)
    if not isinstance(binary, bool):
        raise InvalidInput("binary_data_output must be true or false", param="parameters")
    if not asked.request.outputs:
        return [(name, binary) for name in unnamed]
    chosen = [(one.name, _is_binary(one, binary)) for one in asked.request.outputs]
    for name, _ in chosen:
        if name not in known:
            raise InvalidInput(f"there is no output {name[:80]!r}: {', '.join(known)} are", param="outputs")
    if len(dict(chosen)) != len(chosen):
        raise InvalidInput("an output is named twice", param="outputs")
    return chosen


def _is_binary(wanted: WantedOutput, default: bool) -> bool:
    parameters = wanted.parameters
    if parameters is None:
        return default
    if parameters.classification or parameters.shared_memory_region is not None:
        raise InvalidInput(f"output {wanted.name[:80]!r}: neither classification nor shared memory", param="outputs")
    return default if parameters.binary_data is None else parameters.binary_data


def encoded(reply: InferReply, outputs: Made, chosen: Sequence[tuple[str, bool]]) -> tuple[bytes, int | None]:
    """(body, length of the JSON in it or None for a body that is JSON). Raises InferenceFailed, InvalidInput,
    PayloadTooLarge."""
    check_finite(outputs)
    tensors: list[OutputTensor] = []
    rest: list[bytes] = []
    for name, binary in chosen:
        values = outputs[name]
        if not binary and not isinstance(values, list):
            check_json(values.size)
        data = to_bytes(values) if binary else None
        shown = None if binary else to_json(values)
        parameters = None if data is None else {"binary_data_size": len(data)}
        kind = _datatype(values)
        shape = shape_of(name, values, outputs)
        tensors.append(OutputTensor(name, kind, shape, parameters, shown))  # type: ignore[arg-type]
        rest += [] if data is None else [data]
    head = msgspec.json.encode(msgspec.structs.replace(reply, outputs=tensors))
    return (b"".join([head, *rest]), len(head)) if rest else (head, None)


def _datatype(values: Array | list[bytes]) -> str:
    if isinstance(values, list):
        return "BYTES"
    return f"{'FP' if values.dtype.kind == 'f' else 'INT'}{8 * values.dtype.itemsize}"


def compressed(request: web.Request, body: bytes) -> tuple[bytes, dict[str, str]]:
    """The body as a client that names exactly one coding wants it, and the header that says so."""
    match request.headers.get("Accept-Encoding", "").strip().lower():
        case "gzip":
            return gzip.compress(body, compresslevel=1, mtime=0), {"Content-Encoding": "gzip"}
        case "deflate":
            return zlib.compress(body, level=1), {"Content-Encoding": "deflate"}
        case _:
            return body, {}
