"""Tiny models with random weights, written as files; nothing here imports torch, so most tests need not either."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from ipfs_accelerate_node.inference.architectures import expected_tensors, read_encoder

WORDS = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    *"abcdefghijklmnopqrstuvwxyz",
    *(f"##{c}" for c in "abcdefghijklmnopqrstuvwxyz"),
]
WORDS += ["hello", "world", "the", "cat", "sat", "on", "mat", "one", "two", "three"]

SIZES: dict[str, object] = {
    "vocab_size": len(WORDS),
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 32,
    "max_position_embeddings": 40,
    "type_vocab_size": 2,
    "layer_norm_eps": 1e-12,
    "hidden_act": "gelu",
    "pad_token_id": 0,
}
DISTILBERT_SIZES: dict[str, object] = {
    "vocab_size": len(WORDS),
    "dim": 16,
    "n_layers": 2,
    "n_heads": 4,
    "hidden_dim": 32,
    "max_position_embeddings": 40,
    "activation": "gelu",
    "pad_token_id": 0,
}


def tiny_config(architecture: str = "bert", **changes: object) -> dict[str, object]:
    """The config.json of a tiny encoder."""
    sizes = DISTILBERT_SIZES if architecture == "distilbert" else SIZES
    config = {"model_type": architecture, **sizes}
    if architecture == "electra":
        config["embedding_size"] = 8
    if architecture in ("roberta", "xlm-roberta", "camembert", "mpnet"):
        config |= {"pad_token_id": 1, "type_vocab_size": 1}
    return config | changes


def random_weights(config: Mapping[str, object], *, seed: int = 0) -> dict[str, NDArray[np.float32]]:
    """Weights that fit the config, under their plain names."""
    generator = np.random.default_rng(seed)
    shapes = expected_tensors(read_encoder(dict(config)))
    return {
        name: (generator.normal(1.0 if "orm.weight" in name or "norm.weight" in name else 0.0, 0.2, shape)).astype(
            np.float32
        )
        for name, shape in shapes.items()
    }


def tiny_tokenizer() -> Tokenizer:
    """WordPiece over ``WORDS``, BERT's way."""
    tokenizer = Tokenizer(models.WordPiece({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    ends = [("[CLS]", WORDS.index("[CLS]")), ("[SEP]", WORDS.index("[SEP]"))]
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    tokenizer.add_special_tokens(WORDS[:4])
    return tokenizer


def write_json(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def write_tokenizer(directory: Path) -> None:
    tiny_tokenizer().save(str(directory / "tokenizer.json"))


def write_pooling(
    directory: Path, *modes: str, normalize: bool = True, max_tokens: int | None = None, lower_case: bool = False
) -> None:
    """What sentence-transformers writes. modes: ``cls_token``, ``mean_tokens``, … as in its config."""
    kinds = ["Transformer", "Pooling", *(["Normalize"] if normalize else [])]
    paths = ["", "1_Pooling", "2_Normalize"]
    modules = [
        {"idx": i, "name": str(i), "path": paths[i], "type": f"sentence_transformers.models.{kind}"}
        for i, kind in enumerate(kinds)
    ]
    write_json(directory / "modules.json", modules)
    write_json(directory / "1_Pooling/config.json", {f"pooling_mode_{mode}": True for mode in modes})
    limits = {"max_seq_length": max_tokens, "do_lower_case": lower_case}
    write_json(directory / "sentence_bert_config.json", limits)


def tiny_model(
    directory: Path,
    architecture: str = "bert",
    *,
    pooling: Sequence[str] = ("mean_tokens",),
    seed: int = 0,
    **changes: object,
) -> Path:
    """A whole model directory. pooling: empty writes no modules.json. changes: to config.json."""
    directory.mkdir(parents=True, exist_ok=True)
    config = tiny_config(architecture, **changes)
    write_json(directory / "config.json", config)
    save_file(random_weights(config, seed=seed), directory / "model.safetensors")
    write_tokenizer(directory)
    if pooling:
        write_pooling(directory, *pooling)
    return directory
