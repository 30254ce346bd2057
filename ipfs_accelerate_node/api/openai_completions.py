"""``POST /v1/completions``: texts that go on from prompts."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterator, Sequence

import msgspec
from aiohttp import web

from ipfs_accelerate_node.api.access import Surface
from ipfs_accelerate_node.api.bodies import read_json
from ipfs_accelerate_node.api.generation import WRITERS, Wanted, answers, pieces, wanted, written
from ipfs_accelerate_node.api.inference_replies import inputs_called, mark_of, model_headers
from ipfs_accelerate_node.api.openai_inputs import text_or_tokens
from ipfs_accelerate_node.api.openai_wire import Completion, CompletionChoice, CompletionRequest, Sampling, Usage
from ipfs_accelerate_node.api.pipeline import Route
from ipfs_accelerate_node.api.problems import Dialect, failure
from ipfs_accelerate_node.api.sse import event, send_events
from ipfs_accelerate_node.errors import InvalidInput, NodeError
from ipfs_accelerate_node.inference import Item, LoadedModel, Options
from ipfs_accelerate_node.inference.model import Generated, Ids, Text

MAX_NEW_TOKENS = 16  # OpenAI's own default
MAX_ANSWERS = 2048  # prompts times n
DONE = event(b"[DONE]")
_SEEDS = 1 << 63


async def completions(request: web.Request) -> web.StreamResponse:
    body = await read_json(request, CompletionRequest)
    prompts = text_or_tokens(body.prompt, "prompt")
    _check(body, prompts)
    copies = body.n or 1
    if len(prompts) * copies > MAX_ANSWERS:
        raise InvalidInput(f"{len(prompts) * copies} answers, {MAX_ANSWERS} are possible", param="n")
    items: list[Item] = [Text(one) if isinstance(one, str) else Ids(tuple(one)) for one in prompts]
    limit = MAX_NEW_TOKENS if body.max_tokens is None else body.max_tokens
    with inputs_called("prompt", copies=copies):
        asked = await wanted(request, body.model, items, options_of(body, limit), WRITERS, copies=copies)
        told = _Told(body, prompts, asked.model)
        if body.stream:
            events = told.events(request, asked)
            return await send_events(request, events, headers=model_headers(asked.model), failed=error_event)
        done = await written(request, asked)
    found = answers(done)
    choices = [told.choice(index, one.text, one.finish, begins=True) for index, one in enumerate(found)]
    reply = told.part(choices, usage_of(found, copies))
    return web.Response(
        body=msgspec.json.encode(reply), content_type="application/json", headers=model_headers(done.model)
    )


def options_of(body: Sampling, limit: int | None) -> Options:
    """OpenAI's defaults are those of a model that draws: temperature 1, all of the probability."""
    stop = (body.stop,) if isinstance(body.stop, str) else tuple(body.stop or ())
    return Options(
        max_new_tokens=limit,
        temperature=1.0 if body.temperature is None else body.temperature,
        top_p=body.top_p,
        top_k=body.top_k,
        stop=stop,
        seed=None if body.seed is None else body.seed % _SEEDS,
    )


def check_sampling(body: Sampling) -> None:
    """Raises InvalidInput for what would change the answer and is not done here."""
    for name in ("frequency_penalty", "presence_penalty", "logit_bias"):
        if getattr(body, name):
            raise InvalidInput(f"{name} is not served here", param=name)
    if body.stream_options is not None and not body.stream:
        raise InvalidInput("stream_options is for stream: true", param="stream_options")


def usage_of(found: Sequence[Generated], copies: int) -> Usage:
    """A prompt that is answered several times counts once."""
    prompt = sum(one.tokens_in for one in found[::copies])
    completion = sum(len(one.ids) for one in found)
    return Usage(prompt, completion, prompt + completion)


def error_event(error: NodeError) -> bytes:
    return msgspec.json.encode(failure(error, Dialect.OPENAI)[1])


def fingerprint(model: LoadedModel) -> str | msgspec.UnsetType:
    return "mock" if model.implementation == "MOCK" else msgspec.UNSET


def _check(body: CompletionRequest, prompts: Sequence[object]) -> None:
    check_sampling(body)
    for name in ("logprobs", "suffix"):
        if getattr(body, name) is not None:
            raise InvalidInput(f"{name} is not served here", param=name)
    if body.best_of is not None and body.best_of != (body.n or 1):
        raise InvalidInput("best_of is not served here but as n", param="best_of")
    if body.echo and not all(isinstance(prompt, str) for prompt in prompts):
        raise InvalidInput("a prompt of token ids is not echoed", param="echo")


class _Told:
    """One request's replies."""

    def __init__(self, body: CompletionRequest, prompts: Sequence[object], model: LoadedModel) -> None:
        self._body = body
        self._prompts = prompts
        self._model = model
        self._id = f"cmpl-{secrets.token_hex(12)}"
        self._created = int(time.time())

    def choice(self, index: int, text: str, finish: object, *, begins: bool) -> CompletionChoice:
        """begins: this is the first of the answer, before which the prompt may be echoed."""
        prompt = self._prompts[index // (self._body.n or 1)]
        echoed = f"{prompt}{text}" if self._body.echo and begins else text
        return CompletionChoice(index, echoed, finish)  # type: ignore[arg-type]

    def part(self, choices: list[CompletionChoice], usage: Usage | msgspec.UnsetType | None) -> Completion:
        return Completion(
            id=self._id,
            created=self._created,
            model=self._body.model,
            choices=choices,
            usage=usage,
            system_fingerprint=fingerprint(self._model),
            implementation=mark_of(self._model),
        )

    async def events(self, request: web.Request, asked: Wanted) -> AsyncIterator[bytes]:
        options = self._body.stream_options
        counted = options is not None and bool(options.include_usage)
        usage = None if counted else msgspec.UNSET
        begun: set[int] = set()
        prompt = completion = 0
        async for piece in pieces(request, asked):
            first = piece.index not in begun
            begun.add(piece.index)
            completion += piece.answer_tokens
            if piece.index % asked.copies == 0:
                prompt += piece.prompt_tokens
            choice = self.choice(piece.index, piece.text, piece.finish, begins=first)
            yield event(msgspec.json.encode(self.part([choice], usage)))
        if counted:
            yield event(msgspec.json.encode(self.part([], Usage(prompt, completion, prompt + completion))))
        yield DONE


ROUTES = (
    Route(
        "POST",
        "/v1/completions",
        completions,
        Surface.INFER,
        Dialect.OPENAI,
        takes=CompletionRequest,
        gives=Completion,
    ),
)
