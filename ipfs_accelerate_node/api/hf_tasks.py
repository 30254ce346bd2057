"""Answers of the Hub's inference API, task by task: as its clients parse them."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping, Sequence

import msgspec
import numpy as np
from aiohttp import web
from numpy.typing import NDArray

from ipfs_accelerate_node.api import asking
from ipfs_accelerate_node.api.bodies import converted
from ipfs_accelerate_node.api.hf_question import Question
from ipfs_accelerate_node.api.hf_wire import (
    Choosing,
    Classifying,
    Filling,
    GenerateParameters,
    Hearing,
    Rewriting,
    Tagging,
    check_neutral,
)
from ipfs_accelerate_node.api.hf_writing import write
from ipfs_accelerate_node.api.inference_replies import inputs_called, marked, model_reply
from ipfs_accelerate_node.api.tei_routes import compared, embedded, reranked
from ipfs_accelerate_node.api.tei_wire import EmbedRequest, RerankRequest, SimilarityRequest
from ipfs_accelerate_node.errors import InvalidInput
from ipfs_accelerate_node.inference import Inferred, Item, Options
from ipfs_accelerate_node.inference.model import (
    Audio,
    Entities,
    Fills,
    Generated,
    Image,
    ImageChoice,
    Pair,
    Score,
    Scores,
    Text,
    Vector,
)

Answer = Callable[[web.Request, str, Question], Awaitable[web.StreamResponse]]
TOP_K = 5  # of the Hub's own classifiers of pictures


async def _ask(request: web.Request, ref: str, items: Sequence[Item], options: Options, task: str) -> Inferred:
    with inputs_called("inputs"):
        return await asking.infer(request, ref, items, options, task=task)


async def _reply(
    request: web.Request, done: Inferred, shown: object, began: float, characters: int = 0
) -> web.Response:
    body = msgspec.json.encode(shown)
    return await model_reply(request, done, lambda: body, began=began, characters=characters)


# -- vectors


async def feature_extraction(request: web.Request, ref: str, question: Question) -> web.StreamResponse:
    """Parameters stand beside the inputs, or under ``parameters`` as of other tasks. A picture is the body itself."""
    if not isinstance(question.inputs, bytes):
        return await embedded(request, ref, converted({**(question.parameters or {}), **question.body}, EmbedRequest))
    began = time.perf_counter()
    done = await _ask(request, ref, [Image(question.inputs)], Options(normalize=True), "embedding")
    shown = [output.values.tolist() for output in done.outputs if isinstance(output, Vector)]
    return await _reply(request, done, shown, began)


async def sentence_similarity(request: web.Request, ref: str, question: Question) -> web.StreamResponse:
    return await compared(request, ref, converted(question.body, SimilarityRequest))


async def text_ranking(request: web.Request, ref: str, question: Question) -> web.StreamResponse:
    return await reranked(request, ref, converted(question.body, RerankRequest))


# -- scores


async def text_classification(request: web.Request, ref: str, question: Question) -> web.StreamResponse:
    """A list for each text, also for one alone: clients take the first."""
    began = time.perf_counter()
    asked = question.asked(Classifying)
    match question.inputs:
        case {"text": str(first), "text_pair": str(second)}:
            items: list[Item] = [Pair(first, second)]
        case _:
            items = [Text(text) for text in question.texts()[0]]
    done = await _ask(request, ref, items, _classifying(asked), "text-classification")
    shown = [_labels(done, output.items, asked) for output in done.outputs if isinstance(output, Scores)]
    return await _reply(request, done, shown, began)


async def image_classification(request: web.Request, ref: str, question: Question) -> web.StreamResponse:
    began = time.perf_counter()
    asked = question.asked(Classifying)
    asked = msgspec.structs.replace(asked, top_k=asked.top_k or TOP_K)
    done = await _ask(request, ref, [Image(question.media())], _classifying(asked), "image-classification")
    (output,) = done.outputs
    assert isinstance(output, Scores)
    return await _reply(request, done, _labels(done, output.items, asked), began)


def _classifying(asked: Classifying) -> Options:
    """A function of the caller's own is applied to what the model gives as it is, all of it."""
    if asked.function_to_apply is None:
        return Options(top_k=asked.top_k)
    return Options(raw_scores=True)


def _labels(done: Inferred, scores: Sequence[Score], asked: Classifying) -> list[dict[str, object]]:
    values = np.array([one.score for one in scores], dtype=np.float64)
    if asked.function_to_apply == "softmax":
        weights: NDArray[np.float64] = np.exp(values - values.max())
        values = weights / weights.sum()
    elif asked.function_to_apply == "sigmoid":
        values = 1 / (1 + np.exp(-np.clip(values, -700, 700)))
    pairs = zip(scores, values.tolist(), strict=True)
    return [marked(done.model, {"label": one.label, "score": value}) for one, value in pairs][: asked.top_k]


async def zero_shot_image_classification(request: web.Request, ref: str, question: Question) -> web.StreamResponse:
    """Labels stand in the template's place as the Hub's own pipeline puts them."""
    began = time.perf_counter()
    asked = question.asked(Choosing)
    if "{}" not in asked.hypothesis_template:
        raise InvalidInput("hypothesis_template has no {}", param="hypothesis_template")
    texts = [asked.hypothesis_template.replace("{}", label) for label in asked.candidate_labels]
    image = question.inputs
    if isinstance(image, dict):  # {"image": …}, as some clients send it
        image = image.get("image")
    item = ImageChoice(Question(image).media(), tuple(texts))
    done = await _ask(request, ref, [item], Options(), "zero-shot-image-classification")
    (output,) = done.outputs
    assert isinstance(output, Scores)
    names = dict(zip(texts, asked.candidate_labels, strict=True))
    shown = [marked(done.model, {"label": names[one.label], "score": one.score}) for one in output.items]
    return await _reply(request, done, shown, began)


# -- parts of texts


async def token_classification(request: web.Request, ref: str, question: Question) -> web.StreamResponse:
    began = time.perf_counter()
    check_neutral(question.asked(Tagging))
    texts, single = question.texts()
    done = await _ask(request, ref, [Text(text) for text in texts], Options(), "token-classification")
    shown = [
        [
            marked(
                done.model,
                {"entity_group": e.label, "score": e.score, "word": e.text, "start": e.start, "end": e.end},
            )
            for e in output.items
        ]
        for output in done.outputs
        if isinstance(output, Entities)
    ]
    return await _reply(request, done, shown[0] if single else shown, began, sum(map(len, texts)))


async def fill_mask(request: web.Request, ref: str, question: Question) -> web.StreamResponse:
    began = time.perf_counter()
    asked = question.asked(Filling)
    check_neutral(asked)
    texts, single = question.texts()
    done = await _ask(request, ref, [Text(text) for text in texts], Options(top_k=asked.top_k), "fill-mask")
    shown = [
        [
            marked(done.model, {"score": f.score, "token": f.token_id, "token_str": f.token, "sequence": f.text})
            for f in output.items
        ]
        for output in done.outputs
        if isinstance(output, Fills)
    ]
    return await _reply(request, done, shown[0] if single else shown, began, sum(map(len, texts)))


# -- answers


def rewriting(*names: str) -> Answer:
    """names: of the answer in the reply; clients of each kind read theirs."""

    async def answer(request: web.Request, ref: str, question: Question) -> web.StreamResponse:
        began = time.perf_counter()
        asked = question.asked(Rewriting)
        check_neutral(asked)
        texts, _ = question.texts()
        items = [Text(text) for text in texts]
        done = await _ask(request, ref, items, _generating(asked.generate_parameters), "text2text-generation")
        shown = [
            marked(done.model, dict.fromkeys(names, output.text))
            for output in done.outputs
            if isinstance(output, Generated)
        ]
        return await _reply(request, done, shown, began, sum(map(len, texts)))

    return answer


async def text_to_text(request: web.Request, ref: str, question: Question) -> web.StreamResponse:
    """A client that knows only a URL reads the answer under the name of its own task; one that generates sends what
    text-generation-inference reads."""
    if question.stream or "generate_parameters" not in (question.parameters or {}):
        rest = set(question.parameters or {}) - set(Rewriting.__struct_fields__)
        if question.stream or rest:
            return await write(request, ref, question, "text2text-generation")
    return await rewriting("generated_text", "translation_text", "summary_text")(request, ref, question)


async def text_generation(request: web.Request, ref: str, question: Question) -> web.StreamResponse:
    return await write(request, ref, question, "text-generation")


async def automatic_speech_recognition(request: web.Request, ref: str, question: Question) -> web.StreamResponse:
    began = time.perf_counter()
    asked = question.asked(Hearing)
    check_neutral(asked)
    options = msgspec.structs.replace(_generating(asked.generation_parameters), language=asked.language)
    done = await _ask(request, ref, [Audio(question.media())], options, "automatic-speech-recognition")
    (output,) = done.outputs
    assert isinstance(output, Generated)
    return await _reply(request, done, marked(done.model, {"text": output.text}), began)


def _generating(asked: GenerateParameters | None) -> Options:
    if asked is None:
        return Options()
    check_neutral(asked)
    return Options(
        max_new_tokens=asked.max_new_tokens,
        temperature=asked.temperature if asked.do_sample is not False else None,
        top_k=asked.top_k,
        top_p=asked.top_p,
    )


# By the task that a model is loaded for; and by the name in a URL, where one task has several.
BY_TASK: Mapping[str, Answer] = {
    "embedding": feature_extraction,
    "text-classification": text_classification,
    "rerank": text_ranking,
    "token-classification": token_classification,
    "fill-mask": fill_mask,
    "zero-shot-image-classification": zero_shot_image_classification,
    "text2text-generation": text_to_text,
    "text-generation": text_generation,
    "automatic-speech-recognition": automatic_speech_recognition,
    "image-classification": image_classification,
}
BY_NAME: Mapping[str, tuple[str, Answer]] = {
    **{task: (task, answer) for task, answer in BY_TASK.items()},
    "text2text-generation": ("text2text-generation", rewriting("generated_text")),
    "translation": ("text2text-generation", rewriting("translation_text")),
    "summarization": ("text2text-generation", rewriting("summary_text")),
    "feature-extraction": ("embedding", feature_extraction),
    "image-feature-extraction": ("embedding", feature_extraction),
    "sentence-similarity": ("embedding", sentence_similarity),
    "text-ranking": ("rerank", text_ranking),
}
