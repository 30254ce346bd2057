"""Tiny models with random weights, saved by transformers itself, for the tests of the tasks; engines that need none."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from ipfs_accelerate_node.inference.model import Item, Options, Output
from ipfs_accelerate_node.inference.model_files import ModelFiles, inspect
from ipfs_accelerate_node.inference.sequences import Scored, scored
from ipfs_accelerate_node.inference.session import Array, Engine, Processing
from ipfs_accelerate_node.inference.tasks import processing_for
from ipfs_accelerate_node.inference.tasks.samples import TEXTS
from ipfs_accelerate_node.inference.torch import engine as torch_engine
from tests.support.models import WORDS, write_json

MODELS = Path(__file__).parents[1] / "data/models"
BUILT = Path(__file__).parents[2] / ".models"
SAMPLE = Path(__file__).parents[2] / ".sample/minilm-l6"

torch.set_num_threads(1)
transformers.utils.logging.set_verbosity_error()


def byte_level(*special: str, size: int = 400) -> Tokenizer:
    """A byte-level BPE, trained on the sample texts; the special tokens come first."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=list(special), initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    return tokenizer


def unigram(*special: str, size: int = 300) -> Tokenizer:
    """SentencePiece's kind, as T5 and Marian have it: the last special token ends every text."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=size, special_tokens=list(special), unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    end = "</s>"
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {end}", special_tokens=[(end, tokenizer.token_to_id(end))]
    )
    return tokenizer


def saved(directory: Path, model: Any, tokenizer: Tokenizer | None = None, **settings: object) -> Path:
    """What ``save_pretrained`` writes, with a tokenizer and tokenizer_config.json beside it."""
    model.save_pretrained(directory)
    if tokenizer is not None:
        tokenizer.save(str(directory / "tokenizer.json"))
        write_json(directory / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast", **settings})
    return directory


def random_model(cls: Any, config: Any, *, seed: int = 0, spread: float = 1.0) -> Any:
    """Weights wide enough that answers differ from token to token."""
    torch.manual_seed(seed)
    model = cls(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1 and "position" not in name:
                parameter.normal_(0.0, spread / parameter.shape[-1] ** 0.5)
    return model


LABELS = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]


def bert_config(**changes: object) -> transformers.BertConfig:
    return transformers.BertConfig(
        vocab_size=len(WORDS),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=32,
        max_position_embeddings=40,
        **changes,
    )


def loaded(directory: Path, task: str | None = None) -> tuple[ModelFiles, Processing, Engine]:
    """A directory through our own checks, processing and torch engine."""
    files = inspect(directory, available_bytes=4 << 30)
    task = files.check_task(task)
    engine = torch_engine.load(files, task, device="cpu", precision="f32")
    return files, processing_for(files, task), engine


def infer(found: tuple[ModelFiles, Processing, Engine], items: Sequence[Item], **options: Any) -> list[Output]:
    _, processing, engine = found
    processing.check(items, Options(**options))
    return processing.infer(engine, items, Options(**options), lambda: None)


class ScriptedEngine:
    """Answers from functions of the inputs, no model anywhere; remembers what it was asked."""

    device = "cpu"
    engine = "torch"
    precision = "f32"
    notes: tuple[str, ...] = ()

    def __init__(self, logits: Callable[[list[list[int]]], NDArray[np.float32]] | None = None, **graphs: Any) -> None:
        """logits: of a decoder, from every row's tokens so far (padding left out). graphs: inputs → outputs."""
        self.versions: dict[str, str] = {}
        self.asked: list[tuple[str, Mapping[str, Array]]] = []
        self._graphs = graphs
        self._logits = logits

    def run(self, graph: str, inputs: Mapping[str, Array]) -> dict[str, Array]:
        self.asked.append((graph, inputs))
        found: dict[str, Array] = self._graphs[graph](inputs)
        return found

    def decoder(self) -> ScriptedDecoder:
        assert self._logits is not None
        return ScriptedDecoder(self._logits)

    def sequences(self) -> ScriptedSequences | None:
        return None if self._logits is None else ScriptedSequences(self._logits)

    def memory_bytes(self) -> int:
        return 0


class ScriptedDecoder:
    def __init__(self, logits: Callable[[list[list[int]]], NDArray[np.float32]]) -> None:
        self._logits = logits
        self._rows: list[list[int]] = []

    def start(self, encoded: Mapping[str, Array] | None) -> None:
        self._rows = []

    def step(self, input_ids: Array, attention_mask: Array, *, beam: Array | None = None) -> NDArray[np.float32]:
        self._rows = self._rows or [[] for _ in input_ids]
        new = attention_mask[:, -input_ids.shape[1] :]
        for row, ids, mask in zip(self._rows, input_ids, new, strict=True):
            row.extend(int(token) for token, real in zip(ids, mask, strict=True) if real)
        assert [len(row) for row in self._rows] == attention_mask.sum(axis=1).tolist()
        return self._logits(self._rows)


class ScriptedSequences:
    """Rows in the order in which they are opened, those that were closed among them."""

    most = 4

    def __init__(self, logits: Callable[[list[list[int]]], NDArray[np.float32]]) -> None:
        self._logits = logits
        self._rows: list[list[int]] = []
        self.open_places: set[int] = set()

    def fits(self, tokens: int) -> bool:
        return True

    def open(self, tokens: int) -> int | None:
        if len(self.open_places) >= self.most:
            return None
        self._rows.append([])
        self.open_places.add(len(self._rows) - 1)
        return len(self._rows) - 1

    def close(self, place: int) -> None:
        self.open_places.remove(place)

    def read(self, place: int, ids: Sequence[int], *, scores: bool) -> Scored:
        assert place in self.open_places
        self._rows[place] += ids
        return scored(self._logits(self._rows)[[place]], [0] if scores else [])

    def step(self, places: Sequence[int], tokens: Sequence[int], *, scores: Sequence[int] = ()) -> Scored:
        for place, token in zip(places, tokens, strict=True):
            assert place in self.open_places
            self._rows[place].append(token)
        return scored(self._logits(self._rows)[list(places)], scores)
