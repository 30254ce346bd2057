"""The way from a route to a model: whoever asks one goes through here, so that deadlines, metrics and spans are the
same for every dialect.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from aiohttp import web

from ipfs_accelerate_node.api.context import node
from ipfs_accelerate_node.api.deadlines import ARRIVED, left_s, until
from ipfs_accelerate_node.api.metrics import Work
from ipfs_accelerate_node.api.pipeline import METRICS, MODEL
from ipfs_accelerate_node.api.tracing import TRACING, Span, Value
from ipfs_accelerate_node.errors import NodeError
from ipfs_accelerate_node.inference import Embeddings, Inferred, Item, LoadedModel, Options
from ipfs_accelerate_node.inference.model import Chat, Generated
from ipfs_accelerate_node.inference.wire import Delta

_OPERATIONS = {
    "embedding": "embeddings",
    "text-generation": "text_completion",
    "text2text-generation": "text_completion",
}


@dataclass(slots=True)
class _Asked:
    """What a request wants of a model, and what it got."""

    request: web.Request
    ref: str
    task: str | None
    span: Span
    finish: list[str] = field(default_factory=list)

    def got(self, work: Work) -> None:
        self.request[MODEL] = self.request.app[METRICS].label(work.model.id)
        self.request.app[METRICS].worked(work)
        told: dict[str, Value] = {
            "gen_ai.response.model": work.model.id,
            "gen_ai.usage.input_tokens": work.tokens_in,
            "ipfs_accelerate_node.model.root": work.model.root,
            "ipfs_accelerate_node.device": work.model.device,
            "ipfs_accelerate_node.implementation": work.model.implementation,
        }
        if work.timing is not None:
            told["ipfs_accelerate_node.queue_seconds"] = work.timing.queue_s
            told["ipfs_accelerate_node.compute_seconds"] = work.timing.compute_s
        if work.tokens_out is not None:
            told["gen_ai.usage.output_tokens"] = work.tokens_out
        if self.finish:
            told["gen_ai.response.finish_reasons"] = self.finish
        self.span.note(told)


async def infer(
    request: web.Request,
    ref: str,
    items: Sequence[Item],
    options: Options,
    *,
    task: str | None = None,
    device: str = "auto",
    precision: str | None = None,
    allow_mock: bool = False,
) -> Inferred:
    """As ``Serving.infer``, for a request. Raises also Unavailable (deadline_exceeded)."""
    with _asked(request, ref, task, options, chat=any(isinstance(one, Chat) for one in items)) as asked:
        async with until(request):
            done = await node(request).serving.infer(
                ref, items, options, task=task, device=device, precision=precision, allow_mock=allow_mock,
                deadline_s=left_s(request),
            )  # fmt: skip
        written = [output for output in done.outputs if isinstance(output, Generated)]
        asked.finish += [output.finish for output in written]
        tokens_out = sum(len(output.ids) for output in written) if written else None
        asked.got(Work(done.model, done.tokens, done.seconds, done.timing, tokens_out, items=len(items)))
    return done


async def embed(
    request: web.Request,
    ref: str,
    inputs: Sequence[str] | Sequence[Sequence[int]],
    *,
    dimensions: int | None = None,
    truncate: bool = True,
) -> Embeddings:
    """As ``Serving.embed``, likewise."""
    with _asked(request, ref, "embedding", Options(dimensions=dimensions)) as asked:
        async with until(request):
            done = await node(request).serving.embed(
                ref, inputs, dimensions=dimensions, truncate=truncate, deadline_s=left_s(request)
            )
        asked.got(Work(done.model, done.prompt_tokens, done.seconds, done.timing, items=len(inputs)))
    return done


async def stream(
    request: web.Request, ref: str, items: Sequence[Item], options: Options, *, task: str, model: LoadedModel
) -> AsyncGenerator[Delta, None]:
    """As ``Serving.stream``, likewise: also how long the first piece took, and each after it. model: that writes."""
    began = last = time.perf_counter()
    started = request[ARRIVED]
    tokens_in, tokens_out, metrics = 0, 0, request.app[METRICS]
    deltas = node(request).serving.stream(ref, items, options, task=task, deadline_s=left_s(request))
    with _asked(request, ref, task, options, chat=any(isinstance(one, Chat) for one in items)) as asked:
        failed = False
        try:
            while True:
                async with until(request):
                    delta = await anext(deltas, None)
                if delta is None:
                    break
                now = time.perf_counter()
                if delta.ids:
                    first = not tokens_out
                    metrics.piece(model, now - (started if first else last), first=first, tokens=len(delta.ids))
                    last = now
                tokens_in += delta.tokens_in
                tokens_out += len(delta.ids)
                asked.finish += [delta.finish] if delta.finish else []
                yield delta
        except NodeError:
            failed = True
            raise
        finally:
            await deltas.aclose()
            if not failed:  # also what a reader who left has had
                asked.got(Work(model, tokens_in, time.perf_counter() - began, None, tokens_out, items=len(items)))


@contextmanager
def _asked(
    request: web.Request, ref: str, task: str | None, options: Options, *, chat: bool = False
) -> Iterator[_Asked]:
    operation = "chat" if chat else _OPERATIONS.get(task or "", task or "inference")
    wants: dict[str, Value] = {
        "gen_ai.operation.name": operation,
        "gen_ai.provider.name": "ipfs-accelerate-node",
        "gen_ai.request.model": ref[:256],
        "http.route": request.match_info.route.resource.canonical if request.match_info.route.resource else "",
    }
    for name, value in (
        ("gen_ai.request.max_tokens", options.max_new_tokens),
        ("gen_ai.request.temperature", options.temperature),
        ("gen_ai.request.top_p", options.top_p),
        ("gen_ai.embeddings.dimension.count", options.dimensions),
    ):
        if value is not None:
            wants[name] = value
    with request.app[TRACING].span(f"{operation} {ref[:256]}", request.headers, wants) as span:
        try:
            yield _Asked(request, ref, task, span)
        except NodeError as exc:
            request.app[METRICS].failed(exc)
            if (known := node(request).registry.find(ref)) is not None:
                request[MODEL] = request.app[METRICS].label(known.id)
            raise
