"""``POST /v1/chat/completions``: the answer to a conversation, whole or as it is written."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterator

import msgspec
from aiohttp import web

from ipfs_accelerate_node.api.access import Surface
from ipfs_accelerate_node.api.asked_model import NO_NAMES, default_model
from ipfs_accelerate_node.api.bodies import read_json
from ipfs_accelerate_node.api.context import node
from ipfs_accelerate_node.api.generation import CHATTERS, Wanted, answers, pieces, wanted, written
from ipfs_accelerate_node.api.inference_replies import inputs_called, mark_of, model_headers
from ipfs_accelerate_node.api.media import media_bytes
from ipfs_accelerate_node.api.openai_completions import (
    DONE,
    check_sampling,
    error_event,
    fingerprint,
    options_of,
    usage_of,
)
from ipfs_accelerate_node.api.openai_wire import (
    AnswerMessage,
    AudioPart,
    ChatChoice,
    ChatChunk,
    ChatCompletion,
    ChatMessage,
    ChatRequest,
    ChunkChoice,
    Delta,
    ImagePart,
    RefusalPart,
    TextPart,
    Usage,
)
from ipfs_accelerate_node.api.pipeline import Route
from ipfs_accelerate_node.api.problems import Dialect
from ipfs_accelerate_node.api.sse import event, send_events
from ipfs_accelerate_node.errors import InvalidInput
from ipfs_accelerate_node.inference import LoadedModel
from ipfs_accelerate_node.inference.model import Chat, Message

CHAT_LIMIT_BYTES = 16 << 20  # conversations may hold pictures


async def chat_completions(request: web.Request) -> web.StreamResponse:
    body = await read_json(request, ChatRequest, limit_bytes=CHAT_LIMIT_BYTES)
    return await _answer(request, body, await _model(request, body.model))


async def chat_of_model(request: web.Request) -> web.StreamResponse:
    """The same below ``/models/{id}``, where the path and not the body names the model."""
    body = await read_json(request, ChatRequest, limit_bytes=CHAT_LIMIT_BYTES)
    return await _answer(request, body, request.match_info["id"])


async def _model(request: web.Request, named: str) -> str:
    """Clients that were given a URL and no model send a word in its place."""
    if named not in NO_NAMES or node(request).registry.find(named) is not None:
        return named
    return await default_model(request, CHATTERS)


async def _answer(request: web.Request, body: ChatRequest, ref: str) -> web.StreamResponse:
    _check(body)
    chat = Chat(tuple(_message(message, index) for index, message in enumerate(body.messages)))
    limit = body.max_completion_tokens if body.max_tokens is None else body.max_tokens
    copies = body.n or 1
    with inputs_called("messages", copies=copies):
        asked = await wanted(request, ref, [chat], options_of(body, limit), CHATTERS, copies=copies)
        told = _Told(body, ref, asked.model)
        if body.stream:
            events = told.events(request, asked)
            return await send_events(request, events, headers=model_headers(asked.model), failed=error_event)
        done = await written(request, asked)
    reply = ChatCompletion(
        id=told.id,
        created=told.created,
        model=ref,
        choices=[
            ChatChoice(index, AnswerMessage("assistant", one.text), one.finish)
            for index, one in enumerate(answers(done))
        ],
        usage=usage_of(answers(done), copies),
        system_fingerprint=fingerprint(done.model),
        implementation=mark_of(done.model),
    )
    return web.Response(
        body=msgspec.json.encode(reply), content_type="application/json", headers=model_headers(done.model)
    )


def _check(body: ChatRequest) -> None:
    check_sampling(body)
    if body.response_format is not None and body.response_format.type != "text":
        raise InvalidInput("only response_format text is served here", param="response_format")
    for name in ("tools", "functions", "logprobs", "top_logprobs"):
        if getattr(body, name):
            raise InvalidInput(f"{name} is not served here", param=name)
    if body.modalities not in (None, [], ["text"]):
        raise InvalidInput("answers are texts only", param="modalities")
    if body.max_tokens is not None and body.max_completion_tokens not in (None, body.max_tokens):
        raise InvalidInput("max_tokens and max_completion_tokens differ", param="max_completion_tokens")


def _message(message: ChatMessage, index: int) -> Message:
    """The message as templates know it: a text. Raises InvalidInput with the message's index."""
    if message.tool_calls:
        raise InvalidInput("calls of tools are not served here", param="messages", index=index)
    role = "system" if message.role == "developer" else message.role
    if message.content is None:
        if message.role != "assistant":
            raise InvalidInput(f"message {index} has no content", param="messages", index=index)
        return Message(role, "")
    if isinstance(message.content, str):
        return Message(role, message.content)
    texts = []
    for part in message.content:
        match part:
            case TextPart(text):
                texts.append(text)
            case RefusalPart(refusal):
                texts.append(refusal)
            case ImagePart(image_url):
                media_bytes(image_url.url, param="messages", index=index)
                raise InvalidInput("no model here talks about pictures", param="messages", index=index)
            case AudioPart():
                raise InvalidInput("no model here talks about sounds", param="messages", index=index)
    return Message(role, "\n".join(texts))


class _Told:
    """One request's replies."""

    def __init__(self, body: ChatRequest, ref: str, model: LoadedModel) -> None:
        self.id = f"chatcmpl-{secrets.token_hex(12)}"
        self.created = int(time.time())
        self._ref = ref
        self._model = model
        options = body.stream_options
        self._counted = options is not None and bool(options.include_usage)

    def _chunk(self, choices: list[ChunkChoice], usage: Usage | None = None) -> bytes:
        chunk = ChatChunk(
            id=self.id,
            created=self.created,
            model=self._ref,
            choices=choices,
            usage=usage if self._counted else msgspec.UNSET,
            system_fingerprint=fingerprint(self._model),
            implementation=mark_of(self._model),
        )
        return event(msgspec.json.encode(chunk))

    async def events(self, request: web.Request, asked: Wanted) -> AsyncIterator[bytes]:
        begun: set[int] = set()
        prompt = completion = 0
        async for piece in pieces(request, asked):
            completion += piece.answer_tokens
            prompt = prompt or piece.prompt_tokens
            if piece.index not in begun:
                begun.add(piece.index)
                yield self._chunk([ChunkChoice(piece.index, Delta("assistant", ""))])
            if piece.text:
                yield self._chunk([ChunkChoice(piece.index, Delta(content=piece.text))])
            if piece.finish is not None:
                yield self._chunk([ChunkChoice(piece.index, Delta(), piece.finish)])
        if self._counted:
            yield self._chunk([], Usage(prompt, completion, prompt + completion))
        yield DONE


ROUTES = tuple(
    Route("POST", path, handler, Surface.INFER, Dialect.OPENAI, takes=ChatRequest, gives=ChatCompletion)
    for path, handler in (
        ("/v1/chat/completions", chat_completions),
        ("/models/{id:.+}/v1/chat/completions", chat_of_model),
    )
)
