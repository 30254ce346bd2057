"""``/``, ``/invocations`` and ``/models/{id}``: one URL for whatever its model does, as the Hub's clients and those of
text-embeddings-inference use it. What a request is about is seen from its body; then from what the model is for."""

from __future__ import annotations

from collections.abc import Sequence

from aiohttp import web

from ipfs_accelerate_node.api.access import Surface
from ipfs_accelerate_node.api.asked_model import named_or_default, ready_model
from ipfs_accelerate_node.api.bodies import converted
from ipfs_accelerate_node.api.hf_question import Question, read_question
from ipfs_accelerate_node.api.hf_tasks import BY_NAME, BY_TASK, sentence_similarity, text_ranking
from ipfs_accelerate_node.api.pipeline import Route
from ipfs_accelerate_node.api.problems import Dialect
from ipfs_accelerate_node.api.tei_routes import predicted
from ipfs_accelerate_node.api.tei_wire import PredictRequest
from ipfs_accelerate_node.content.cid import shown
from ipfs_accelerate_node.errors import NotFound
from ipfs_accelerate_node.inference.model import TASKS

_PICTURES = ("image-classification", "embedding")
_SOUNDS = ("automatic-speech-recognition",)
_WRITING = ("text-generation", "text2text-generation")


async def of_default(request: web.Request) -> web.StreamResponse:
    question = await read_question(request)
    tasks = _tasks_of(question)
    return await _answer(request, await named_or_default(request, tasks), question, tasks)


async def of_named(request: web.Request) -> web.StreamResponse:
    question = await read_question(request)
    return await _answer(request, request.match_info["id"], question, _tasks_of(question))


async def of_task(request: web.Request) -> web.StreamResponse:
    name = request.match_info["task"]
    if name not in BY_NAME:
        raise NotFound(f"the task {shown(name)} is not served here: {', '.join(BY_NAME)} are", code="task_unknown")
    question = await read_question(request)
    task, answer = BY_NAME[name]
    ref = request.match_info["id"]
    await ready_model(request, ref, [task])
    return await answer(request, ref, question)


def _tasks_of(question: Question) -> Sequence[str]:
    """Tasks that the body fits, () for any: most bodies are a text."""
    if isinstance(question.inputs, bytes):
        return _SOUNDS if question.inputs[:4] == b"RIFF" and question.inputs[8:12] == b"WAVE" else _PICTURES
    if "texts" in question.body and "query" in question.body:
        return ("rerank",)
    if isinstance(question.inputs, dict) and "sentences" in question.inputs:
        return ("embedding",)
    if "candidate_labels" in (question.parameters or {}):
        return ("zero-shot-image-classification",)
    return _WRITING if question.stream else ()


async def _answer(request: web.Request, ref: str, question: Question, tasks: Sequence[str]) -> web.StreamResponse:
    model, task = await ready_model(request, ref, tasks)
    if not tasks:  # what its author made it for, whatever it was last loaded for
        task = next((own for own in model.tasks if own in TASKS), task)
    if task == "rerank" and "texts" in question.body:
        return await text_ranking(request, ref, question)
    if task == "embedding" and isinstance(question.inputs, dict):
        return await sentence_similarity(request, ref, question)
    if task in ("text-classification", "rerank") and question.parameters is None:
        return await predicted(request, ref, converted(question.body, PredictRequest))
    return await BY_TASK[task](request, ref, question)


ROUTES = (
    *(Route("POST", path, of_default, Surface.INFER, Dialect.TEI) for path in ("/", "/invocations")),
    Route("POST", "/models/{id:.+}/pipeline/{task}", of_task, Surface.INFER, Dialect.TEI),
    Route("POST", "/models/{id:.+}", of_named, Surface.INFER, Dialect.TEI),
)
