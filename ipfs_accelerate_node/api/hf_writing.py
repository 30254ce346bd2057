"""Texts that a model writes, in the shape of text-generation-inference: whole, or as events."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator

import msgspec
from aiohttp import web

from ipfs_accelerate_node.api.generation import Wanted, answers, pieces, wanted, written
from ipfs_accelerate_node.api.hf_question import Question
from ipfs_accelerate_node.api.hf_wire import Writing, check_neutral
from ipfs_accelerate_node.api.inference_replies import inputs_called, marked, model_headers, timing_headers
from ipfs_accelerate_node.api.sse import event, send_events
from ipfs_accelerate_node.errors import InvalidInput, NodeError, Overloaded
from ipfs_accelerate_node.inference import Options
from ipfs_accelerate_node.inference.model import Text


async def write(request: web.Request, ref: str, question: Question, task: str) -> web.StreamResponse:
    began = time.perf_counter()
    asked = question.asked(Writing)
    check_neutral(asked)
    texts, _ = question.texts()
    options = _options(asked)
    with inputs_called("inputs"):
        work = await wanted(request, ref, [Text(text) for text in texts], options, [task])
        if question.stream:
            if len(texts) > 1:
                raise InvalidInput("one text at a time is streamed", param="inputs", index=1)
            events = _events(request, work, texts[0], asked)
            return await send_events(request, events, headers=model_headers(work.model), failed=_error_event)
        done = await written(request, work)
    shown = []
    for text, answer in zip(texts, answers(done), strict=True):
        one: dict[str, object] = {"generated_text": text + answer.text if asked.return_full_text else answer.text}
        if asked.details:
            one["details"] = _details(asked, answer.finish, len(answer.ids), prefill=[], tokens=[])
        shown.append(marked(done.model, one))
    headers = {
        **model_headers(done.model),
        **timing_headers(done, tokens=done.tokens, began=began, characters=sum(map(len, texts))),
    }
    return web.Response(body=msgspec.json.encode(shown), content_type="application/json", headers=headers)


def _options(asked: Writing) -> Options:
    """Greedy, unless the caller asks for draws, or for a temperature without saying that it wants none."""
    draws = asked.do_sample or (asked.do_sample is None and asked.temperature is not None)
    return Options(
        max_new_tokens=asked.max_new_tokens,
        temperature=(asked.temperature or 1.0) if draws else None,
        top_p=asked.top_p,
        top_k=asked.top_k,
        seed=asked.seed,
        stop=(*(asked.stop or ()), *(asked.stop_sequences or ())),
    )


def _details(asked: Writing, finish: str, count: int, **more: object) -> dict[str, object]:
    """The model does not tell an end of its own from one of the caller's texts: where there are such, it is said to be
    one of them."""
    stopped = "stop_sequence" if asked.stop or asked.stop_sequences else "eos_token"
    reason = "length" if finish == "length" else stopped
    return {"finish_reason": reason, "generated_tokens": count, "seed": asked.seed, **more}


async def _events(request: web.Request, work: Wanted, prompt: str, asked: Writing) -> AsyncIterator[bytes]:
    text, count = "", 0
    async for piece in pieces(request, work):
        text += piece.text
        count += len(piece.ids)
        ended = piece.finish is not None
        shown: dict[str, object] = {
            "index": count,
            "token": {"id": piece.ids[-1] if piece.ids else 0, "text": piece.text, "logprob": None, "special": False},
            "generated_text": (prompt + text if asked.return_full_text else text) if ended else None,
            "details": _details(asked, piece.finish, count, input_length=piece.prompt_tokens) if piece.finish else None,
        }
        yield event(msgspec.json.encode(marked(work.model, shown)))


def _error_event(error: NodeError) -> bytes:
    kind = "overloaded" if isinstance(error, Overloaded) else "generation"
    return msgspec.json.encode({"error": str(error), "error_type": kind})
