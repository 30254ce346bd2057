"""Tiny random models of every supported type, written by transformers: the oracle of the torch engine's tests."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ipfs_accelerate_node.inference.families import MODEL_TYPES
from tests.support.models import WORDS, write_json, write_tokenizer

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what torch and transformers say about themselves while they are imported
    import torch as torch
    from transformers.utils import logging

logging.set_verbosity_error()
logging.disable_progress_bar()

VOCAB = len(WORDS)
LABELS = {"0": "first", "1": "second", "2": "third"}

_TEXT: Mapping[str, object] = {
    "vocab_size": VOCAB,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 32,
    "max_position_embeddings": 40,
    "pad_token_id": 0,
    "bos_token_id": 2,
    "eos_token_id": 3,
}
_SEQ2SEQ: Mapping[str, object] = {
    "vocab_size": VOCAB,
    "d_model": 16,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
    "max_position_embeddings": 40,
    "pad_token_id": 0,
    "bos_token_id": 2,
    "eos_token_id": 3,
    "decoder_start_token_id": 2,
    "forced_eos_token_id": None,
}
_T5: Mapping[str, object] = {
    "vocab_size": VOCAB,
    "d_model": 16,
    "d_kv": 4,
    "d_ff": 32,
    "num_layers": 2,
    "num_heads": 4,
    "pad_token_id": 0,
    "eos_token_id": 3,
    "decoder_start_token_id": 0,
}
_TEXT_TOWER = {**_TEXT, "projection_dim": 8}
_IMAGE_TOWER = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 32,
    "image_size": 16,
    "patch_size": 8,
    "projection_dim": 8,
}
_AFTER_PADDING = {"pad_token_id": 1, "type_vocab_size": 1}
_VIT = {k: v for k, v in _IMAGE_TOWER.items() if k != "projection_dim"}

_SPECIAL: Mapping[str, Mapping[str, object]] = {
    "roberta": {**_TEXT, **_AFTER_PADDING},
    "xlm-roberta": {**_TEXT, **_AFTER_PADDING},
    "camembert": {**_TEXT, **_AFTER_PADDING},
    "roberta-prelayernorm": {**_TEXT, **_AFTER_PADDING},
    "mpnet": {**_TEXT, "pad_token_id": 1},
    "electra": {**_TEXT, "embedding_size": 8},
    "albert": {**_TEXT, "embedding_size": 8},
    "distilbert": {
        "vocab_size": VOCAB, "dim": 16, "n_layers": 2, "n_heads": 4, "hidden_dim": 32, "max_position_embeddings": 40,
        "pad_token_id": 0,
    },
    "deberta": {**_TEXT, "relative_attention": True, "pos_att_type": ["c2p", "p2c"], "position_biased_input": False},
    "deberta-v2": {
        **_TEXT, "relative_attention": True, "pos_att_type": ["c2p", "p2c"], "position_buckets": 8,
        "share_att_key": True, "norm_rel_ebd": "layer_norm", "position_biased_input": False,
    },
    "modernbert": {**_TEXT, "local_attention": 8, "cls_token_id": 2, "sep_token_id": 3},
    "convbert": {**_TEXT, "embedding_size": 8, "conv_kernel_size": 3},
    "squeezebert": {**_TEXT, "embedding_size": 16, "q_groups": 2, "k_groups": 2, "v_groups": 2,
                    "post_attention_groups": 1, "intermediate_groups": 2, "output_groups": 2},
    "mobilebert": {**_TEXT, "embedding_size": 8, "true_hidden_size": 8, "intra_bottleneck_size": 8},
    "clip": {"text_config": _TEXT_TOWER, "vision_config": _IMAGE_TOWER, "projection_dim": 8},
    "siglip": {"text_config": {**_TEXT, "projection_size": 16}, "vision_config": _VIT},
    "chinese_clip": {"text_config": _TEXT_TOWER, "vision_config": _IMAGE_TOWER, "projection_dim": 8},
    "vision-text-dual-encoder": {
        "text_config": {**_TEXT, "model_type": "bert"}, "vision_config": {**_VIT, "model_type": "vit"},
        "projection_dim": 8,
    },
    "t5": {**_T5, "feed_forward_proj": "gated-gelu"},
    "mt5": _T5,
    "umt5": _T5,
    "m2m_100": {**_SEQ2SEQ},
    "gpt2": {"vocab_size": VOCAB, "n_embd": 16, "n_layer": 2, "n_head": 4, "n_positions": 40, "bos_token_id": 2,
             "eos_token_id": 3, "pad_token_id": 0},
    "gpt_neo": {"vocab_size": VOCAB, "hidden_size": 16, "num_layers": 2, "num_heads": 4, "max_position_embeddings": 40,
                "attention_types": [[["global", "local"], 1]], "window_size": 8, "bos_token_id": 2, "eos_token_id": 3,
                "pad_token_id": 0},
    "gptj": {"vocab_size": VOCAB, "n_embd": 16, "n_layer": 2, "n_head": 4, "n_positions": 40, "rotary_dim": 4,
             "bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 0},
    "opt": {**_TEXT, "ffn_dim": 32, "word_embed_proj_dim": 16},
    "bloom": {"vocab_size": VOCAB, "hidden_size": 16, "n_layer": 2, "n_head": 4, "bos_token_id": 2, "eos_token_id": 3,
              "pad_token_id": 0},
    "gemma": {**_TEXT, "head_dim": 4, "num_key_value_heads": 2},
    "gemma2": {**_TEXT, "head_dim": 4, "num_key_value_heads": 2, "sliding_window": 8, "query_pre_attn_scalar": 4},
    "llama": {**_TEXT, "num_key_value_heads": 2, "tie_word_embeddings": True},
    "mistral": {**_TEXT, "num_key_value_heads": 2, "sliding_window": 8},
    "qwen2": {**_TEXT, "num_key_value_heads": 2},
    "qwen3": {**_TEXT, "num_key_value_heads": 2, "head_dim": 4},
    "smollm3": {**_TEXT, "num_key_value_heads": 2},
    "starcoder2": {**_TEXT, "num_key_value_heads": 2},
    "stablelm": {**_TEXT, "num_key_value_heads": 4},
    "phi3": {**_TEXT, "num_key_value_heads": 2},
    "whisper": {
        "vocab_size": VOCAB, "d_model": 16, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
        "decoder_attention_heads": 4, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "num_mel_bins": 8,
        "max_source_positions": 20, "max_target_positions": 40, "pad_token_id": 0, "bos_token_id": 2,
        "eos_token_id": 3, "decoder_start_token_id": 2, "begin_suppress_tokens": None, "suppress_tokens": None,
    },
    "resnet": {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 2], "layer_type": "basic"},
    "efficientnet": {
        "image_size": 32, "width_coefficient": 0.5, "depth_coefficient": 0.5, "hidden_dim": 640,
        "kernel_sizes": [3, 3], "in_channels": [32, 16], "out_channels": [16, 24], "strides": [1, 2],
        "num_block_repeats": [1, 2], "expand_ratios": [1, 6], "depthwise_padding": [],
    },
    "convnext": {"hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2, "image_size": 16},
    "convnextv2": {"hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2, "image_size": 16},
    "swin": {"image_size": 16, "patch_size": 2, "embed_dim": 8, "depths": [1, 1], "num_heads": [2, 4],
             "window_size": 4},
    "dinov2": {**_VIT, "mlp_ratio": 2},
    "mobilenet_v1": {"image_size": 32, "depth_multiplier": 0.25},
    "mobilenet_v2": {"image_size": 32, "depth_multiplier": 0.35},
}  # fmt: skip


def tiny_settings(model_type: str) -> dict[str, object]:
    """What the tiny model's configuration class is given."""
    family = MODEL_TYPES[model_type].family
    default = {"seq2seq": _SEQ2SEQ, "image": _VIT}.get(family, _TEXT)
    return dict(_SPECIAL.get(model_type, default))


def written(directory: Path, model_type: str, class_name: str, *, seed: int = 0, **changes: object) -> Any:
    """A model directory with random weights, and the model of transformers that wrote it, in evaluation mode."""
    kind = MODEL_TYPES[model_type]
    modelling = importlib.import_module(f"transformers.models.{kind.module}.modeling_{kind.module}")
    configuration = importlib.import_module(f"transformers.models.{kind.module}.configuration_{kind.module}")
    torch.manual_seed(seed)
    config = getattr(configuration, kind.config)(**tiny_settings(model_type) | changes)
    model = getattr(modelling, class_name)(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name not in (model._keys_to_ignore_on_save or ()):  # sinusoidal positions are computed, not saved
                parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(directory)
    write_tokenizer(directory)
    return model


def write_sharded(directory: Path, shards: int) -> None:
    """The directory's one file of weights, cut into so many."""
    from safetensors.numpy import load_file, save_file

    weights = load_file(directory / "model.safetensors")
    (directory / "model.safetensors").unlink()
    places = {name: f"model-{i % shards:05}-of-{shards:05}.safetensors" for i, name in enumerate(weights)}
    for shard in set(places.values()):
        save_file({n: w for n, w in weights.items() if places[n] == shard}, directory / shard)
    write_json(directory / "model.safetensors.index.json", {"metadata": {}, "weight_map": places})
