"""The sizes that a config.json claims, checked before anything is built from them. Table M4.

Every number that sets the size of an array is looked for at every depth, under each of the names that transformers'
configurations give it; the exact comparison of config and weights comes later, when the model is built.
"""

from __future__ import annotations

from collections.abc import Iterator

from ipfs_accelerate_node.errors import ModelUnsupported
from ipfs_accelerate_node.inference.architectures import ACTIVATIONS, MAX_LAYERS
from ipfs_accelerate_node.inference.strict_json import JsonObject

MAX_LABELS = 100_000
MAX_LABEL_CHARS = 500
_MAX_SIZE = 1 << 40  # more is an absurd number whatever it counts; what lies below is weighed against memory

_WIDTHS = ("hidden_size", "d_model", "n_embd", "dim", "hidden_dim_size")
_INNERS = ("intermediate_size", "d_ff", "n_inner", "encoder_ffn_dim", "decoder_ffn_dim", "ffn_dim", "hidden_dim")
_LAYERS = (
    "num_hidden_layers", "num_layers", "n_layer", "n_layers", "encoder_layers", "decoder_layers", "num_decoder_layers",
)  # fmt: skip
# Further counts of parts, each built one by one.
_REPEATS = (
    "depths", "num_block_repeats", "num_hidden_groups", "inner_group_num", "num_feedforward_networks", "num_stages",
)  # fmt: skip
_OTHERS = (
    "num_attention_heads", "num_heads", "n_head", "n_heads", "encoder_attention_heads", "decoder_attention_heads",
    "num_key_value_heads", "head_dim", "d_kv", "vocab_size", "max_position_embeddings", "n_positions", "n_ctx",
    "max_source_positions", "max_target_positions", "type_vocab_size", "embedding_size", "projection_dim",
    "image_size", "patch_size", "embed_dim", "num_channels", "num_mel_bins", "relative_attention_num_buckets",
    "relative_attention_max_distance", "num_groups", "conv_kernel_size",
    "head_ratio", "hidden_dim_output", "depth_divisor", "embedding_dim", "stem_hidden_size", "stem_channels",
    "position_buckets", "local_attention", "global_attn_every_n_layers", "true_hidden_size", "bottleneck_size",
)  # fmt: skip
_LISTS = (
    "hidden_sizes", "depths", "kernel_sizes", "in_channels", "out_channels", "strides", "num_block_repeats",
    "expand_ratios", "num_heads", "embed_dims",
)  # fmt: skip
_MAY_BE_NONE = frozenset(
    {
        "n_inner",
        "intermediate_size",
        "head_dim",
        "num_key_value_heads",
        "hidden_sizes",
        "position_buckets",
        "depth_divisor",
        "image_size",
    }
)
_ACTIVATION_KEYS = frozenset(
    {
        "hidden_act", "activation", "activation_function", "hidden_activation", "dense_act_fn",
        "projection_hidden_act", "summary_activation",
    }
)  # fmt: skip
_KNOWN_ACTIVATIONS = frozenset(
    {
        *ACTIVATIONS,
        "quick_gelu",
        "gelu_fast",
        "gelu_python",
        "gelu_10",
        "sigmoid",
        "relu6",
        "mish",
        "hard_swish",
        "linear",
    }
)


def _refuse(message: str, code: str = "bad_config") -> ModelUnsupported:
    return ModelUnsupported(f"config.json: {message}", code=code)


def check_sizes(config: JsonObject) -> int:
    """How many numbers the weights must hold at the least, by what the config says of itself.

    Raises ModelUnsupported. bad_config: a size that is no size. model_too_large: more layers than any real model has.
    task_unsupported: an activation that is not known, quantised weights.
    """
    claimed = 0
    for part in _parts(config):
        for key, value in part.items():
            if key in _ACTIVATION_KEYS and value is not None and not _is_known(value):
                raise _refuse(f"{key} {str(value)[:40]!r} is not known", "task_unsupported")
        for key in (*_WIDTHS, *_INNERS, *_LAYERS, *_REPEATS, *_OTHERS, *_LISTS):
            _check_key(part, key)
        _check_expanded(part)
        claimed += _claimed(part)
    if config.get("quantization_config"):
        raise _refuse("quantised weights are not supported", "task_unsupported")
    if pruned := config.get("pruned_heads"):
        raise _refuse(f"pruned_heads {str(pruned)[:40]!r} is not supported", "task_unsupported")
    return claimed


def _is_known(activation: object) -> bool:
    return isinstance(activation, str) and activation in _KNOWN_ACTIVATIONS


def _parts(config: JsonObject) -> Iterator[JsonObject]:
    """The config and the configs inside it."""
    pending: list[JsonObject] = [config]
    while pending:
        part = pending.pop()
        yield part
        pending.extend(value for key, value in part.items() if key.endswith("_config") and isinstance(value, dict))


def _check_key(part: JsonObject, key: str) -> None:
    if key not in part:
        return
    value = part[key]
    if value is None and key in _MAY_BE_NONE:
        return
    if isinstance(value, list) and key in (*_LISTS, "image_size", "patch_size"):
        if len(value) > MAX_LAYERS:
            raise _refuse(f"{key} has {len(value)} entries", "model_too_large")
        for inner in value:
            _check_number(key, inner)
        return
    if isinstance(value, dict) and key in ("image_size", "patch_size"):
        return
    _check_number(key, value)


def _check_number(key: str, value: object) -> None:
    if key == "position_buckets" and value == -1:
        return
    if type(value) is not int or value < (0 if key in ("type_vocab_size", "local_attention", *_LISTS) else 1):
        raise _refuse(f"{key} is {str(value)[:40]!r}, expected a whole number of at least 1")
    if value > _MAX_SIZE or (key in (*_LAYERS, *_REPEATS) and value > MAX_LAYERS):
        raise _refuse(f"{key} is {str(value)[:40]}; no model has so many", "model_too_large")


def _check_expanded(part: JsonObject) -> None:
    """Numbers that transformers' configurations make lists and maps of before anything is built."""
    count = part.get("num_labels")
    if count is not None and (type(count) is not int or not 0 <= count <= MAX_LABELS):
        raise _refuse(f"num_labels is {str(count)[:40]!r}")
    pending = [part.get("attention_types")]  # GPT-Neo: [[["global", "local"], 12]]
    while pending:
        inner = pending.pop()
        if isinstance(inner, list):
            pending.extend(inner)
        elif isinstance(inner, int) and inner > MAX_LAYERS:
            raise _refuse(f"attention_types repeats {str(inner)[:40]} times", "model_too_large")


def _claimed(part: JsonObject) -> int:
    """The least that a stack of layers of these sizes takes; families differ in the rest."""
    width = _most(part, _WIDTHS)
    layers = 1 if part.get("model_type") == "albert" else _most(part, _LAYERS)
    narrow = width if part.get("embedding_size") is None else _most(part, ("embedding_size",))
    return narrow * _most(part, ("vocab_size",)) + layers * width * max(width, _most(part, _INNERS))


def _most(part: JsonObject, keys: tuple[str, ...]) -> int:
    return max((value for key in keys if type(value := part.get(key)) is int), default=0)


def read_labels(config: JsonObject) -> tuple[str, ...]:
    """The labels in the order of the logits; ``LABEL_i`` where the author named none.

    Raises ModelUnsupported(bad_config): id2label is not a map from 0, 1, 2, … to texts.
    """
    labels = config.get("id2label")
    if labels is None:
        count = config.get("num_labels", 2)
        if type(count) is not int or not 1 <= count <= MAX_LABELS:
            raise _refuse(f"num_labels is {str(count)[:40]!r}")
        return tuple(f"LABEL_{i}" for i in range(count))
    if not isinstance(labels, dict) or not 0 < len(labels) <= MAX_LABELS:
        raise _refuse("id2label is not a map of labels")
    named = [labels.get(str(i)) for i in range(len(labels))]
    if not all(isinstance(label, str) and len(label) <= MAX_LABEL_CHARS for label in named):
        raise _refuse("id2label does not give a text to each of 0, 1, 2, …")
    return tuple(str(label) for label in named)
