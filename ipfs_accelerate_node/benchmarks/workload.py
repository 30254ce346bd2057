"""Workloads: fixed inputs, so that two machines that run one by its name have done the same work.

A name says what is done, in the field's words: ``encode-8x128`` (batch of 8 texts of 128 tokens), ``pair-8x128`` (the
same for rerankers), ``pp512`` (a prompt of 512 tokens, to the first token), ``tg128`` (128 tokens after a prompt of
one), ``images-8``, ``rtf-30`` (30 s of speech), ``examples-8`` (the task's own sample inputs), ``load``, ``fetch``.
"""

from __future__ import annotations

import io
import random
import re
import wave
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Literal

from ipfs_accelerate_node.errors import BadRequest, InferenceFailed, InvalidInput
from ipfs_accelerate_node.inference.model import Audio, Ids, Image, ImageChoice, Item, LoadedModel, Pair, Text

Kind = Literal["encode", "pair", "pp", "tg", "images", "rtf", "examples", "load", "fetch"]
Examples = Callable[[int], Awaitable[list[Item]]]

QUERY_WORDS = 8
SPECIAL_TOKENS = 2  # that a tokenizer puts around a text
TRANSCRIPT_TOKENS = 128  # of speech, at most
MAX_BATCH, MAX_LENGTH, MAX_SECONDS = 1024, 1 << 17, 600

# Common enough that tokenizers of English models have most of them whole.
_WORDS = (
    "the of and to in is that for it as was with be by on not he this are or his from at which but have an had they "
    "you were their one all we can her has there been if more when will would who so no water light house river"
).split()

_NAMES: tuple[tuple[Kind, re.Pattern[str]], ...] = (
    ("encode", re.compile(r"encode-(\d{1,4})x(\d{1,6})")),
    ("pair", re.compile(r"pair-(\d{1,4})x(\d{1,6})")),
    ("pp", re.compile(r"pp(\d{1,6})")),
    ("tg", re.compile(r"tg(\d{1,6})")),
    ("images", re.compile(r"images-(\d{1,4})")),
    ("rtf", re.compile(r"rtf-(\d{1,3})")),
    ("examples", re.compile(r"examples-(\d{1,4})")),
    ("load", re.compile(r"load")),
    ("fetch", re.compile(r"fetch")),
)

_GENERATES = frozenset({"text2text-generation", "text-generation"})
_FOR: dict[Kind, frozenset[str]] = {
    "encode": frozenset({"embedding", "text-classification", "token-classification"}),
    "pair": frozenset({"rerank", "text-classification"}),
    "pp": _GENERATES,
    "tg": _GENERATES,
    "images": frozenset({"embedding", "zero-shot-image-classification", "image-classification"}),
    "rtf": frozenset({"automatic-speech-recognition"}),
}

_TEXTS = ("encode-1x16", "encode-1x128", "encode-8x128", "encode-32x128", "encode-8x512")
_GENERATION = ("pp128", "pp512", "tg128")
_PICTURES = ("images-1", "images-8")
DEFAULTS: dict[str, tuple[str, ...]] = {
    "embedding": _TEXTS,
    "text-classification": _TEXTS,
    "token-classification": _TEXTS,
    "rerank": ("pair-1x128", "pair-8x128", "pair-32x128"),
    "fill-mask": ("examples-1", "examples-8"),
    "zero-shot-image-classification": _PICTURES,
    "image-classification": _PICTURES,
    "text2text-generation": _GENERATION,
    "text-generation": _GENERATION,
    "automatic-speech-recognition": ("rtf-3", "rtf-30"),
}
_QUICK_TEXTS = ("encode-1x16", "encode-8x128")
_QUICK_GENERATION = ("pp128", "tg32")
QUICK: dict[str, tuple[str, ...]] = {
    "embedding": _QUICK_TEXTS,
    "text-classification": _QUICK_TEXTS,
    "token-classification": _QUICK_TEXTS,
    "rerank": ("pair-8x128",),
    "fill-mask": ("examples-8",),
    "zero-shot-image-classification": _PICTURES[1:],
    "image-classification": _PICTURES[1:],
    "text2text-generation": _QUICK_GENERATION,
    "text-generation": _QUICK_GENERATION,
    "automatic-speech-recognition": ("rtf-3",),
}


@dataclass(frozen=True, slots=True)
class Workload:
    """batch: inputs of one request. length: tokens of each, seconds for speech, 0 where it has none. new_tokens: that
    are to be generated, 0 for none. warmup: runs that do not count; then at most repeats that do, fewer once budget_s
    is used up. seed: of the inputs."""

    name: str
    kind: Kind
    batch: int = 1
    length: int = 0
    new_tokens: int = 0
    warmup: int = 3
    repeats: int = 20
    seed: int = 1
    budget_s: float = 20.0

    def quick(self) -> Workload:
        """The same work, repeated less often."""
        return replace(self, warmup=min(self.warmup, 1), repeats=min(self.repeats, 5), budget_s=4.0)

    @property
    def parameters(self) -> dict[str, int]:
        """Those that say what is done, for a record."""
        named = {"batch": self.batch, "length": self.length, "new_tokens": self.new_tokens}
        return {name: value for name, value in named.items() if value} | {"seed": self.seed, "warmup": self.warmup}


def workload(name: str) -> Workload:
    """The workload of that name. Raises InvalidInput."""
    for kind, pattern in _NAMES:
        if (match := pattern.fullmatch(name)) is not None:
            return _checked(_named(name, kind, [int(number) for number in match.groups()]))
    known = "encode-BxT, pair-BxT, ppT, tgT, images-B, rtf-S, examples-B, load, fetch"
    raise InvalidInput(f"no workload is called {name[:40]!r}; there are {known}", param="workload")


def _named(name: str, kind: Kind, numbers: list[int]) -> Workload:
    match kind:
        case "encode" | "pair":
            return Workload(name, kind, batch=numbers[0], length=numbers[1])
        case "pp":
            return Workload(name, kind, length=numbers[0], new_tokens=1, repeats=10)
        case "tg":
            return Workload(name, kind, length=1, new_tokens=numbers[0], warmup=1, repeats=5, budget_s=60.0)
        case "rtf":
            return Workload(
                name, kind, length=numbers[0], new_tokens=TRANSCRIPT_TOKENS, warmup=1, repeats=10, budget_s=40.0
            )
        case "images" | "examples":
            return Workload(name, kind, batch=numbers[0])
        case "load":
            return Workload(name, kind, warmup=1, repeats=3, budget_s=600.0)
        case "fetch":
            return Workload(name, kind, warmup=0, repeats=1)


def _checked(found: Workload) -> Workload:
    longest = MAX_SECONDS if found.kind == "rtf" else MAX_LENGTH
    least = {"encode": SPECIAL_TOKENS + 1, "pair": QUERY_WORDS + SPECIAL_TOKENS + 2, "pp": 1, "rtf": 1}.get(
        found.kind, 0
    )
    if not 1 <= found.batch <= MAX_BATCH or not least <= found.length <= longest:
        raise InvalidInput(f"{found.name}: a size out of range", param="workload")
    if found.kind == "tg" and not 2 <= found.new_tokens <= MAX_LENGTH:
        raise InvalidInput(f"{found.name}: 2 tokens at least", param="workload")
    return found


def usual(task: str, *, quick: bool) -> list[Workload]:
    """What is measured of a task when nothing is named."""
    names = (QUICK if quick else DEFAULTS).get(task, ())
    return [found.quick() if quick else found for found in map(workload, names)]


async def inputs(found: Workload, model: LoadedModel, examples: Examples, *, attempt: int = 0) -> list[Item]:
    """The items of one request. examples: so many sample inputs of the model's task. attempt: other inputs of the same
    form, for a generation that ends too early.

    Raises InvalidInput (not_its_task, too_long) when the model does not do such things, or takes less; InferenceFailed
    for sample inputs of no use.
    """
    if model.task not in _FOR.get(found.kind, (model.task,)):
        raise InvalidInput(f"{found.name} is not for {model.task}", code="not_its_task", param="workload")
    chance = random.Random(found.seed + attempt)
    last = found.length + (found.new_tokens if found.kind in ("pp", "tg") else 0)
    if found.kind in ("encode", "pair", "pp", "tg") and last > model.max_tokens > 0:
        raise InvalidInput(f"{found.name} has {last} tokens, the model takes {model.max_tokens}", code="too_long")
    match found.kind:
        case "encode":
            return [Text(_words(chance, found.length - SPECIAL_TOKENS)) for _ in range(found.batch)]
        case "pair":
            query, rest = QUERY_WORDS, found.length - QUERY_WORDS - SPECIAL_TOKENS - 1
            return [Pair(_words(chance, query), _words(chance, rest)) for _ in range(found.batch)]
        case "pp" | "tg":
            size = model.vocab_size or 2
            return [Ids(tuple(chance.randrange(size) for _ in range(found.length)))]
        case "images":
            items = await examples(found.batch)
            if not all(isinstance(item, Image | ImageChoice) for item in items):
                raise InvalidInput(f"{found.name}: the model takes no pictures", code="not_its_task", param="workload")
            return items
        case "rtf":
            return [_joined(await examples(found.length // 3 + 1), found.length)]
        case _:
            return await examples(found.batch)


def _words(chance: random.Random, count: int) -> str:
    return " ".join(chance.choices(_WORDS, k=count))


def _joined(clips: list[Item], seconds: int) -> Audio:
    """One sound of so many seconds, out of several of the same form."""
    frames, form = b"", None
    for clip in clips:
        if not isinstance(clip, Audio):
            raise InferenceFailed("the model's sample inputs are no sounds")
        with wave.open(io.BytesIO(clip.data)) as file:
            form = form or file.getparams()
            frames += file.readframes(file.getnframes())
    if form is None:
        raise InferenceFailed("the model has no sample inputs")
    length = seconds * form.framerate * form.sampwidth * form.nchannels
    with wave.open(whole := io.BytesIO(), "wb") as file:
        file.setparams(form)
        file.writeframes(frames[:length])
    return Audio(whole.getvalue())


def refuse_mock(model: LoadedModel) -> None:
    if model.implementation != "REAL":
        raise BadRequest(f"{model.root} is a mock: mocks are never measured or published", code="mock_not_measurable")
