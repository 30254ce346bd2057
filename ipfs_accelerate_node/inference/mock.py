"""``mock:TASK``: answers of the right shape made from a hash, to try clients without a model. Always marked MOCK."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ipfs_accelerate_node.errors import ModelUnsupported
from ipfs_accelerate_node.inference.memory import resident_bytes
from ipfs_accelerate_node.inference.model import (
    TASKS,
    Audio,
    Chat,
    Entities,
    Entity,
    Fill,
    Fills,
    Generated,
    Ids,
    Image,
    ImageChoice,
    Item,
    LoadedModel,
    ModelSpec,
    Options,
    Output,
    Pair,
    PixelValues,
    Score,
    Scores,
    Tensor,
    Text,
    Vector,
)
from ipfs_accelerate_node.inference.tasks.tensors import check_answer

WIDTH = 384
MAX_TOKENS = 8192
MASK = "[MASK]"
WARNING = "MOCK: answers come from a hash of the input, not from a model"
_DOMAIN = b"ipfs-accelerate-node mock:%s 1\0"
_LABELS = tuple(f"LABEL_{i}" for i in range(5))
_WORDS = ("mock", "answer", "made", "of", "a", "hash", "not", "by", "any", "model")
_NEW_TOKENS = 8


def mock_model(spec: ModelSpec, names: tuple[str, ...]) -> LoadedModel:
    """The mock as a loaded model; it lives in this process. Raises ModelUnsupported: there is no such task."""
    task = spec.root.removeprefix("mock:")
    if task not in TASKS:
        known = ", ".join(f"mock:{known}" for known in TASKS)
        raise ModelUnsupported(f"there is no {spec.root[:80]}; there are {known}", code="task_unsupported")
    vectors = task == "embedding"
    return LoadedModel(
        id=names[0] if names else spec.root,
        root=spec.root,
        names=names,
        device="cpu",
        engine="mock",
        precision="f32",
        implementation="MOCK",
        source="mock",
        task=task,
        width=WIDTH if vectors else 0,
        max_tokens=MAX_TOKENS,
        state="ready",
        load_s=0.0,
        pid=os.getpid(),
        versions={"numpy": np.__version__},
        memory_bytes=resident_bytes(os.getpid()),
        pooling=("hash",) if vectors else (),
        notes=(WARNING,),
        tasks=(task,),
    )


def infer(task: str, items: Sequence[Item], options: Options) -> list[Output]:
    """Outputs of checked items; the same for the same input on every machine. Words count as tokens."""
    return [_output(task, item, options) for item in items]


def _output(task: str, item: Item, options: Options) -> Output:
    key, tokens = _key(item), _tokens(item)
    if options.output is not None:
        return _tensor(task, key, tokens)
    match task:
        case "embedding":
            return Vector(_cut(_direction(key), options), tokens)
        case "token-classification" if isinstance(item, Text):
            return Entities(_entities(item.text), tokens)
        case "fill-mask" if isinstance(item, Text):
            return Fills(_fills(item.text, key, options.top_k or len(_LABELS)), tokens)
        case "rerank":
            return Scores((Score(_LABELS[0], _shares(task, key, 2)[0]),), tokens)
        case "text2text-generation" | "text-generation" | "automatic-speech-recognition":
            return _generated(task, key, options.max_new_tokens or _NEW_TOKENS, tokens)
        case _:
            labels = item.labels if isinstance(item, ImageChoice) else _LABELS
            shares = _shares(task, key, len(labels))
            best = sorted(zip(labels, shares, strict=True), key=lambda pair: -pair[1])
            return Scores(tuple(Score(label, share) for label, share in best[: options.top_k or len(best)]), tokens)


def _key(item: Item) -> bytes:
    match item:
        case Text(text=text):
            return b"t" + text.encode()
        case Ids(ids=ids):
            return b"i" + b"".join(token.to_bytes(8, "little") for token in ids)
        case Pair(first=first, second=second):
            return b"p" + first.encode() + b"\0" + second.encode()
        case Chat(messages=messages):
            return b"c" + b"\0".join(f"{m.role}\0{m.content}".encode() for m in messages)
        case Image(data=data) | ImageChoice(data=data) | PixelValues(data=data):
            return b"m" + data
        case Audio(data=data):
            return b"a" + data


def _tokens(item: Item) -> int:
    match item:
        case Text(text=text):
            return max(1, len(text.split()))
        case Ids(ids=ids):
            return len(ids)
        case Pair(first=first, second=second):
            return max(2, len(first.split()) + len(second.split()))
        case Chat(messages=messages):
            return max(1, sum(len(message.content.split()) for message in messages))
        case _:
            return 0


def _bytes(task: str, key: bytes, count: int) -> bytes:
    return hashlib.shake_256(_DOMAIN % task.encode() + key).digest(count)


def _direction(key: bytes) -> NDArray[np.float32]:
    """A unit vector; equal keys give equal vectors on every machine."""
    numbers = np.frombuffer(_bytes("embedding", key, 4 * WIDTH), dtype="<u4")
    vector = numbers.astype(np.float64) / 2**31 - 1.0
    unit: NDArray[np.float32] = (vector / np.linalg.norm(vector)).astype(np.float32)
    return unit


def _cut(vector: NDArray[np.float32], options: Options) -> NDArray[np.float32]:
    if options.dimensions is None:
        return vector
    vector = vector[: options.dimensions]
    if options.normalize is not False:
        vector = vector / np.linalg.norm(vector)
    return np.ascontiguousarray(vector, dtype=np.float32)


def _tensor(task: str, key: bytes, tokens: int) -> Tensor:
    """Of the same form as a model's own output."""
    width = WIDTH if task == "embedding" else len(_LABELS)
    if task in ("text-classification", "rerank", "image-classification"):
        return Tensor(np.log(np.array(_shares(task, key, width), dtype=np.float32)), tokens)
    check_answer(tokens * width)
    numbers = np.frombuffer(_bytes(task, b"tensor" + key, 4 * tokens * width), dtype="<u4")
    values = (numbers.astype(np.float64) / 2**31 - 1.0).astype(np.float32)
    return Tensor(values.reshape(tokens, width), tokens)


def _shares(task: str, key: bytes, count: int) -> list[float]:
    """Positive numbers that sum up to one."""
    weights = np.frombuffer(_bytes(task, key, 2 * count), dtype="<u2").astype(np.float64) + 1
    shares: list[float] = (weights / weights.sum()).tolist()
    return shares


def _entities(text: str) -> tuple[Entity, ...]:
    """Every word with a capital."""
    found: list[Entity] = []
    start = 0
    for word in text.split():
        start = text.index(word, start)
        if word[0].isupper():
            found.append(Entity("MOCK", 1.0, start, start + len(word), word))
        start += len(word)
    return tuple(found)


def _fills(text: str, key: bytes, count: int) -> tuple[Fill, ...]:
    count = min(count, len(_WORDS))
    shares = sorted(_shares("fill-mask", key, count), reverse=True)
    return tuple(
        Fill(word, number, share, text.replace(MASK, word, 1))
        for number, (word, share) in enumerate(zip(_WORDS, shares, strict=False))
    )


def _generated(task: str, key: bytes, limit: int, tokens: int) -> Generated:
    """MOCK, then words drawn by the hash."""
    count = min(limit, _NEW_TOKENS)
    drawn = [byte % len(_WORDS) for byte in _bytes(task, key, count)]
    text = " ".join(["MOCK", *(_WORDS[i] for i in drawn)])
    return Generated(text, tuple(drawn), "length" if limit < _NEW_TOKENS else "stop", tokens)
