"""What each task looks like as tensors: from named inputs to items, and from outputs to named outputs.

Texts, pictures and sounds are BYTES, whatever their shape: one element is one item. Token ids are rows of integers,
with ``attention_mask`` where they are padded; ``pixel_values`` are pictures as the model takes them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import msgspec
import numpy as np

from ipfs_accelerate_node.api.kserve_raw import pixels
from ipfs_accelerate_node.api.kserve_tensors import Array, Tensor, refused
from ipfs_accelerate_node.api.kserve_wire import Datatype, TensorMetadata
from ipfs_accelerate_node.errors import InferenceFailed, InvalidInput
from ipfs_accelerate_node.inference import Inferred, Item, LoadedModel
from ipfs_accelerate_node.inference.model import (
    Audio,
    Entities,
    Fills,
    Generated,
    Ids,
    Image,
    ImageChoice,
    Pair,
    Scores,
    Text,
    Vector,
)

Given = Mapping[str, Tensor]
Made = dict[str, Array | list[bytes]]
Declared = tuple[str, Datatype, tuple[int, ...]]
MAX_TOKEN_ID = 2**31 - 1


@dataclass(frozen=True, slots=True)
class Signature:
    """inputs, outputs: name, datatype and shape, as the metadata list them. Of ``choices`` a request has one set of
    names (``attention_mask`` may be beside ``input_ids``). raw: the model's own output under its name in ``Options``,
    and ``raw_outputs``, of which it is the first; they are given to who names them, or who sends ``raw_input``."""

    inputs: tuple[Declared, ...]
    outputs: tuple[Declared, ...]
    choices: tuple[frozenset[str], ...]
    items: Callable[[Given], list[Item]]
    made: Callable[[Inferred, Given], Made]
    raw: Literal["hidden", "logits"] | None = None
    raw_outputs: tuple[Declared, ...] = ()
    raw_input: str = ""

    def outputs_of(self, model: LoadedModel) -> tuple[Declared, ...]:
        """All that can be named. A model of two towers gives no vectors of tokens."""
        towers = self.raw == "hidden" and "zero-shot-image-classification" in model.tasks
        return self.outputs if towers else (*self.outputs, *self.raw_outputs)

    def is_raw(self, name: str) -> bool:
        return any(name == raw for raw, _, _ in self.raw_outputs)

    def unnamed(self, given: Iterable[str]) -> list[str]:
        """What is given where no output is named."""
        if self.raw_input and self.raw_input in given:
            return [self.raw_outputs[0][0]]
        return [name for name, _, _ in self.outputs]


def metadata(model: LoadedModel, tensors: Sequence[Declared]) -> list[TensorMetadata]:
    """A width that is known stands in its place."""

    def shape(name: str, sizes: tuple[int, ...]) -> list[int]:
        return [-1, model.width] if name == "embedding" and model.width else list(sizes)

    return [TensorMetadata(name, kind, shape(name, sizes)) for name, kind, sizes in tensors]


def items_of(signature: Signature, given: Given) -> list[Item]:
    """Raises InvalidInput: other inputs than one of the signature's choices."""
    names = frozenset(given) - ({"attention_mask"} if "input_ids" in given else set())
    if names not in signature.choices:
        wanted = "; or ".join(" and ".join(sorted(names)) for names in signature.choices)
        raise InvalidInput(f"the inputs are {', '.join(sorted(given)) or 'none'}, expected: {wanted}", param="inputs")
    items = signature.items(given)
    if not items:
        raise InvalidInput("the inputs have no element", param="inputs")
    return items


# -- items


def _texts(given: Given) -> list[Item]:
    if "input_ids" in given:
        return list(_ids(given))
    if "image" in given or "pixel_values" in given:
        return _pictures(given)
    texts = given["text"].texts()
    if "text_pair" not in given:
        return [Text(text) for text in texts]
    seconds = given["text_pair"].texts()
    if len(texts) != len(seconds):
        raise refused("text_pair", f"has {len(seconds)} elements, text has {len(texts)}")
    return [Pair(first, second) for first, second in zip(texts, seconds, strict=True)]


def _ids(given: Given) -> list[Ids]:
    ids = given["input_ids"].numbers()
    if ids.ndim != 2 or ids.dtype.kind not in "iu":
        raise refused("input_ids", "must be rows of integers")
    if ids.size and (ids.min() < 0 or ids.max() > MAX_TOKEN_ID):
        raise refused("input_ids", "holds what is no token id")
    mask = np.ones_like(ids) if "attention_mask" not in given else given["attention_mask"].numbers()
    if mask.shape != ids.shape:
        raise refused("attention_mask", f"has the shape {list(mask.shape)}, input_ids {list(ids.shape)}")
    return [Ids(tuple(row[real != 0].tolist())) for row, real in zip(ids, mask, strict=True)]


def _ranked(given: Given) -> list[Item]:
    queries, texts = given["query"].texts(), given["text"].texts()
    if len(queries) not in (1, len(texts)):
        raise refused("query", f"has {len(queries)} elements, expected one, or one for each text")
    return [Pair(queries[0] if len(queries) == 1 else queries[at], text) for at, text in enumerate(texts)]


def _pictures(given: Given) -> list[Item]:
    if "pixel_values" in given:
        return pixels(given)
    return [Image(data) for data in given["image"].data()]


def _sounds(given: Given) -> list[Item]:
    return [Audio(data) for data in given["audio"].data()]


def _choices(given: Given) -> list[Item]:
    labels = tuple(given["labels"].texts())
    return [ImageChoice(data, labels) for data in given["image"].data()]


# -- outputs


def _vectors(done: Inferred, given: Given) -> Made:
    rows = np.stack([output.values for output in done.outputs if isinstance(output, Vector)])
    return {"embedding": rows.astype("<f4", copy=False)}


def _scores(done: Inferred, given: Given) -> Made:
    rows = [output.items for output in done.outputs if isinstance(output, Scores)]
    return {
        "label": [one.label.encode() for row in rows for one in row],
        "score": np.array([[one.score for one in row] for row in rows], dtype="<f4"),
    }


def _relevance(done: Inferred, given: Given) -> Made:
    scores = [output.items[0].score for output in done.outputs if isinstance(output, Scores)]
    return {"score": np.array(scores, dtype="<f4")}


def _by_label(done: Inferred, given: Given) -> Made:
    """In the order of the labels that were given."""
    labels = given["labels"].texts()
    rows = [{one.label: one.score for one in output.items} for output in done.outputs if isinstance(output, Scores)]
    return {"score": np.array([[row[label] for label in labels] for row in rows], dtype="<f4")}


def _as_json(name: str) -> Callable[[Inferred, Given], Made]:
    def made(done: Inferred, given: Given) -> Made:
        found = [output.items for output in done.outputs if isinstance(output, Entities | Fills)]
        return {name: [msgspec.json.encode(items) for items in found]}

    return made


def _written(done: Inferred, given: Given) -> Made:
    found = [output for output in done.outputs if isinstance(output, Generated)]
    return {"text": [one.text.encode() for one in found], "finish": [one.finish.encode() for one in found]}


def shape_of(name: str, values: Array | list[bytes], outputs: Made) -> list[int]:
    """Of a list of BYTES: as the numbers that belong to it, else flat."""
    if isinstance(values, np.ndarray):
        return list(values.shape)
    if name == "label" and isinstance(scores := outputs.get("score"), np.ndarray):
        return list(scores.shape)
    return [len(values)]


def check_finite(outputs: Made) -> None:
    """Raises InferenceFailed."""
    if not all(np.isfinite(values).all() for values in outputs.values() if isinstance(values, np.ndarray)):
        raise InferenceFailed("the model gave a number that is not finite")


_TEXT: Declared = ("text", "BYTES", (-1,))
_IMAGE: Declared = ("image", "BYTES", (-1,))
_BY_TEXT = (frozenset({"text"}), frozenset({"input_ids"}))
_LABELLED: tuple[Declared, ...] = (("label", "BYTES", (-1, -1)), ("score", "FP32", (-1, -1)))
_PIXELS = frozenset({"pixel_values"})
_MASK: Declared = ("attention_mask", "INT64", (-1, -1))
_LOGITS: tuple[Declared, ...] = (("logits", "FP32", (-1, -1)),)
_TOKEN_LOGITS: tuple[Declared, ...] = (("logits", "FP32", (-1, -1, -1)), _MASK)
_ANSWER: tuple[Declared, ...] = (("text", "BYTES", (-1,)), ("finish", "BYTES", (-1,)))
SIGNATURES: Mapping[str, Signature] = {
    "embedding": Signature(
        (_TEXT,),
        (("embedding", "FP32", (-1, -1)),),
        (*_BY_TEXT, frozenset({"image"}), _PIXELS),
        _texts,
        _vectors,
        "hidden",
        (("last_hidden_state", "FP32", (-1, -1, -1)), _MASK),
    ),
    "text-classification": Signature(
        (_TEXT,), _LABELLED, (*_BY_TEXT, frozenset({"text", "text_pair"})), _texts, _scores, "logits", _LOGITS
    ),
    "rerank": Signature(
        (("query", "BYTES", (-1,)), _TEXT),
        (("score", "FP32", (-1,)),),
        (frozenset({"query", "text"}),),
        _ranked,
        _relevance,
        "logits",
        _LOGITS,
    ),
    "token-classification": Signature(
        (_TEXT,),
        (("entities", "BYTES", (-1,)),),
        _BY_TEXT,
        _texts,
        _as_json("entities"),
        "logits",
        _TOKEN_LOGITS,
        "input_ids",
    ),
    "fill-mask": Signature(
        (_TEXT,),
        (("fills", "BYTES", (-1,)),),
        _BY_TEXT,
        _texts,
        _as_json("fills"),
        "logits",
        _TOKEN_LOGITS,
        "input_ids",
    ),
    "zero-shot-image-classification": Signature(
        (_IMAGE, ("labels", "BYTES", (-1,))),
        (("score", "FP32", (-1, -1)),),
        (frozenset({"image", "labels"}),),
        _choices,
        _by_label,
    ),
    "image-classification": Signature(
        (_IMAGE,),
        _LABELLED,
        (frozenset({"image"}), _PIXELS),
        _pictures,
        _scores,
        "logits",
        _LOGITS,
        "pixel_values",
    ),
    "text-generation": Signature((_TEXT,), _ANSWER, _BY_TEXT, _texts, _written),
    "text2text-generation": Signature((_TEXT,), _ANSWER, _BY_TEXT, _texts, _written),
    "automatic-speech-recognition": Signature(
        (("audio", "BYTES", (-1,)),), _ANSWER, (frozenset({"audio"}),), _sounds, _written
    ),
}
