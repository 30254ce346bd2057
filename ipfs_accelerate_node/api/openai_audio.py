"""``POST /v1/audio/transcriptions``: speech as text, from a form with a file.

The file lies on disk while it comes in, so that slow senders of large files cost no memory; it is read when all of the
form is here.
"""

from __future__ import annotations

import asyncio
import math
import tempfile
import time
from dataclasses import dataclass, field
from typing import IO

import msgspec
from aiohttp import BodyPartReader, web
from aiohttp.http_exceptions import HttpProcessingError

from ipfs_accelerate_node.api import asking
from ipfs_accelerate_node.api.access import Surface
from ipfs_accelerate_node.api.bodies import BODY_STALL_S, check_content_type
from ipfs_accelerate_node.api.inference_replies import inputs_called, mark_of, model_reply
from ipfs_accelerate_node.api.openai_wire import Transcription, TranscriptionForm, VerboseTranscription
from ipfs_accelerate_node.api.pipeline import Route
from ipfs_accelerate_node.api.problems import Dialect
from ipfs_accelerate_node.content.cid import shown
from ipfs_accelerate_node.errors import BadRequest, InvalidInput, NodeError, PayloadTooLarge
from ipfs_accelerate_node.inference import Options
from ipfs_accelerate_node.inference.model import Audio, Generated
from ipfs_accelerate_node.inference.tasks.wav import BadAudio, read_wav

FORM_DEADLINE_S = 600.0
MAX_AUDIO_BYTES = 25 << 20  # as in OpenAI's own API
MAX_PARTS = 32
MAX_FIELD_BYTES = 4096
_PIECE_BYTES = 256 << 10
_IN_MEMORY_BYTES = 1 << 20
_FORMATS = ("json", "text", "verbose_json")
_REPEATED = frozenset({"timestamp_granularities[]", "include[]"})


@dataclass(slots=True)
class Form:
    """fields: texts by name. file: of the sound, None until it came."""

    fields: dict[str, str] = field(default_factory=dict)
    file: IO[bytes] | None = None

    def close(self) -> None:
        if self.file is not None:
            self.file.close()


async def transcriptions(request: web.Request) -> web.Response:
    began = time.perf_counter()
    check_content_type(request, "multipart/form-data")
    form = Form()
    try:
        async with asyncio.timeout(FORM_DEADLINE_S):
            await _receive(request, form)
        sound = await asyncio.to_thread(_read, form)
    except TimeoutError as exc:
        raise BadRequest("the form took too long to come in", code="timeout") from exc
    finally:
        await asyncio.to_thread(form.close)
    model, shape, options = _asked(form.fields)
    with inputs_called("file"):
        done = await asking.infer(request, model, [Audio(sound)], options, task="automatic-speech-recognition")
    (output,) = done.outputs
    assert isinstance(output, Generated)
    if shape == "text":
        text = (output.text + "\n").encode()
        return await model_reply(request, done, lambda: text, began=began, content_type="text/plain")
    mark = mark_of(done.model)
    reply: Transcription | VerboseTranscription = Transcription(output.text, mark)
    if shape == "verbose_json":
        duration = await asyncio.to_thread(_duration, sound, mock=done.model.implementation == "MOCK")
        reply = VerboseTranscription("transcribe", options.language or "und", duration, output.text, mark)
    return await model_reply(request, done, lambda: msgspec.json.encode(reply), began=began)


def _asked(fields: dict[str, str]) -> tuple[str, str, Options]:
    """(model, response_format, options). Raises InvalidInput with ``param``."""
    model = fields.get("model", "")
    if not 0 < len(model) <= 512:
        raise InvalidInput("model must be a name", param="model")
    shape = fields.get("response_format", "json")
    if shape not in _FORMATS:
        raise InvalidInput(f"response_format must be one of {', '.join(_FORMATS)}", param="response_format")
    for name in ("prompt", "timestamp_granularities[]", "chunking_strategy", "include[]"):
        if fields.get(name):
            raise InvalidInput(f"{name} is not served here", param=name.removesuffix("[]"))
    if fields.get("stream", "false").lower() not in ("false", "0", ""):
        raise InvalidInput("transcriptions are not streamed here", param="stream")
    temperature = _temperature(fields.get("temperature"))
    return model, shape, Options(language=fields.get("language") or None, temperature=temperature)


def _temperature(text: str | None) -> float | None:
    if not text:
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= 1:
        raise InvalidInput("temperature must be a number from 0 to 1", param="temperature")
    return value or None


async def _receive(request: web.Request, form: Form) -> None:
    """Raises BadRequest, InvalidInput, PayloadTooLarge."""
    if (request.content_length or 0) > MAX_AUDIO_BYTES + MAX_PARTS * MAX_FIELD_BYTES:
        raise _too_large()
    if request.headers.get("Content-Encoding", "identity").lower() != "identity":
        raise BadRequest("a form is not compressed", code="bad_body")
    try:
        reader = await request.multipart()
        for _ in range(MAX_PARTS):
            async with asyncio.timeout(BODY_STALL_S):
                part = await reader.next()
            if part is None:
                return
            if not isinstance(part, BodyPartReader) or part.name is None:
                raise BadRequest("every part of the form needs a name", code="bad_body")
            await _take(part, part.name, form)
    except NodeError:
        raise
    except (ValueError, AssertionError, web.RequestPayloadError, HttpProcessingError) as exc:
        raise BadRequest("the body is not multipart/form-data, or ends early", code="bad_body") from exc
    raise BadRequest(f"the form has over {MAX_PARTS} parts", code="bad_body")


async def _take(part: BodyPartReader, name: str, form: Form) -> None:
    if part.headers.get("Content-Encoding") or part.headers.get("Content-Transfer-Encoding", "binary") != "binary":
        raise BadRequest("a part of the form is not encoded", code="bad_body")
    if name == "file":
        if form.file is not None:
            raise InvalidInput("one file at a time", param="file")
        form.file = tempfile.SpooledTemporaryFile(_IN_MEMORY_BYTES)  # closed with the form
        taken = 0
        while chunk := await _chunk(part):
            taken += len(chunk)
            if taken > MAX_AUDIO_BYTES:
                raise _too_large()
            await asyncio.to_thread(form.file.write, chunk)
        return
    text = b""
    while chunk := await _chunk(part):
        text += chunk
        if len(text) > MAX_FIELD_BYTES:
            raise PayloadTooLarge(f"{shown(name)} is over {MAX_FIELD_BYTES} bytes", param=shown(name))
    if name in form.fields and name not in _REPEATED:
        raise InvalidInput(f"{shown(name)} came twice", param=shown(name))
    try:
        form.fields[name] = text.decode()
    except UnicodeDecodeError as exc:
        raise InvalidInput(f"{shown(name)} is not UTF-8", param=shown(name)) from exc


async def _chunk(part: BodyPartReader) -> bytes:
    try:
        async with asyncio.timeout(BODY_STALL_S):
            return await part.read_chunk(_PIECE_BYTES)
    except TimeoutError as exc:
        raise BadRequest(f"the body stalled for {BODY_STALL_S:.0f} s", code="timeout") from exc


def _read(form: Form) -> bytes:
    if form.file is None:
        raise InvalidInput("the form has no part named file", param="file")
    form.file.seek(0)
    return form.file.read()


def _duration(sound: bytes, *, mock: bool) -> float:
    """Seconds. A mock takes anything for a sound, and then there are none."""
    try:
        samples, rate = read_wav(sound)
    except BadAudio:
        if not mock:
            raise
        return 0.0
    return round(len(samples) / rate, 3)


def _too_large() -> PayloadTooLarge:
    return PayloadTooLarge(f"a sound is over {MAX_AUDIO_BYTES >> 20} MiB", param="file")


ROUTES = (
    Route(
        "POST",
        "/v1/audio/transcriptions",
        transcriptions,
        Surface.INFER,
        Dialect.OPENAI,
        takes=TranscriptionForm,
        takes_type="multipart/form-data",
        gives=Transcription,
    ),
)
