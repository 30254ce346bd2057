"""The BERT family, as data: what config.json calls a size, what the weights call a tensor, which shape it must have.

One description instead of one class per architecture: these encoders differ in names, in where positions start and in
two details (MPNet's relative bias, ELECTRA's narrow embeddings). Source: the model classes of transformers 5, whose
results the tests compare with.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod

from ipfs_accelerate_node.errors import ModelUnsupported
from ipfs_accelerate_node.inference.safetensors_check import TensorEntry
from ipfs_accelerate_node.inference.strict_json import JsonObject

Shape = tuple[int, ...]

MAX_LAYERS = 1024
FLOAT_DTYPES = ("F64", "F32", "F16", "BF16")


@dataclass(frozen=True, slots=True)
class Layout:
    """Names of one architecture. prefix: what a model with a head puts before them. The rest: names within a layer."""

    prefix: str
    layers: str = "encoder.layer."
    query: str = "attention.self.query"
    key: str = "attention.self.key"
    value: str = "attention.self.value"
    attention_out: str = "attention.output.dense"
    attention_norm: str = "attention.output.LayerNorm"
    up: str = "intermediate.dense"
    down: str = "output.dense"
    output_norm: str = "output.LayerNorm"
    token_types: bool = True
    positions_after_padding: bool = False  # RoBERTa: the first token's position is padding id + 1, not 0
    relative_bias: bool = False


_ROBERTA = Layout("roberta.", positions_after_padding=True)
LAYOUTS: Mapping[str, Layout] = {
    "bert": Layout("bert."),
    "roberta": _ROBERTA,
    "xlm-roberta": _ROBERTA,
    "camembert": _ROBERTA,
    "electra": Layout("electra."),
    "distilbert": Layout(
        "distilbert.", "transformer.layer.", "attention.q_lin", "attention.k_lin", "attention.v_lin",
        "attention.out_lin", "sa_layer_norm", "ffn.lin1", "ffn.lin2", "output_layer_norm", token_types=False,
    ),
    "mpnet": Layout(
        "mpnet.", "encoder.layer.", "attention.attn.q", "attention.attn.k", "attention.attn.v",
        "attention.attn.o", "attention.LayerNorm", token_types=False, positions_after_padding=True, relative_bias=True,
    ),
}  # fmt: skip

ACTIVATIONS = ("gelu", "gelu_new", "gelu_pytorch_tanh", "relu", "silu", "swish", "tanh")


@dataclass(frozen=True, slots=True)
class EncoderConfig:
    """The sizes of one encoder; all checked. embedding_width differs from width in small ELECTRA models only."""

    architecture: str
    vocab_size: int
    width: int
    embedding_width: int
    layers: int
    heads: int
    inner_width: int
    positions: int
    token_types: int
    padding_id: int
    bias_buckets: int
    norm_eps: float
    activation: str

    @property
    def layout(self) -> Layout:
        return LAYOUTS[self.architecture]

    @property
    def max_tokens(self) -> int:
        """Longest input that has a position for every token."""
        return self.positions - (self.padding_id + 1 if self.layout.positions_after_padding else 0)

    @property
    def parameters(self) -> int:
        """Numbers in the encoder; computed, so that absurd sizes cost nothing."""
        layer = sum(prod(shape) for shape in _layer_shapes(self).values())
        return layer * self.layers + sum(prod(shape) for shape in _outer_shapes(self).values())


def _refuse(message: str, code: str = "bad_config") -> ModelUnsupported:
    return ModelUnsupported(f"config.json: {message}", code=code)


def _size(config: JsonObject, *keys: str, default: int | None = None, least: int = 1) -> int:
    key = next((k for k in keys if k in config), keys[0])
    value = config.get(key, default)
    if type(value) is not int or value < least:
        raise _refuse(f"{key} is {str(value)[:40]!r}, expected a whole number of at least {least}")
    return value


def read_encoder(config: JsonObject) -> EncoderConfig:
    """The encoder that a config.json describes.

    Raises ModelUnsupported. task_unsupported: not of the BERT family, or used as a decoder. bad_config: a size that is
    no size. model_too_large: more layers than any real model has.
    """
    architecture = _architecture(config)
    layout = LAYOUTS[architecture]
    width = _size(config, "hidden_size", "dim", default=768)
    encoder = EncoderConfig(
        architecture=architecture,
        vocab_size=_size(config, "vocab_size"),
        width=width,
        embedding_width=_size(config, "embedding_size", default=128) if architecture == "electra" else width,
        layers=_size(config, "num_hidden_layers", "n_layers", default=6 if architecture == "distilbert" else 12),
        heads=_size(config, "num_attention_heads", "n_heads", default=12),
        inner_width=_size(config, "intermediate_size", "hidden_dim", default=3072),
        positions=_size(config, "max_position_embeddings", default=512),
        token_types=_size(config, "type_vocab_size", default=2) if layout.token_types else 0,
        padding_id=1 if architecture == "mpnet" else _padding(config, layout),
        bias_buckets=_size(config, "relative_attention_num_buckets", default=32) if layout.relative_bias else 0,
        norm_eps=1e-12 if architecture == "distilbert" else _epsilon(config, layout),
        activation=_activation(config, architecture),
    )
    if encoder.layers > MAX_LAYERS:
        raise _refuse(f"{encoder.layers} layers; no model of this family has over {MAX_LAYERS}", "model_too_large")
    if encoder.width % encoder.heads:
        raise _refuse(f"{encoder.heads} attention heads do not divide a width of {encoder.width}")
    if encoder.max_tokens < 1 or encoder.padding_id >= encoder.vocab_size:
        raise _refuse("padding id does not fit the vocabulary or the positions")
    return encoder


def _architecture(config: JsonObject) -> str:
    name = config.get("model_type")
    if not isinstance(name, str) or name not in LAYOUTS:
        known = ", ".join(LAYOUTS)
        raise _refuse(f"model_type {str(name)[:40]!r}: embeddings are computed for {known} only", "task_unsupported")
    if config.get("is_decoder") or config.get("add_cross_attention") or config.get("is_encoder_decoder"):
        raise _refuse("a decoder has no embeddings of this kind", "task_unsupported")
    if config.get("position_embedding_type", "absolute") != "absolute":
        raise _refuse("only absolute position embeddings are supported", "task_unsupported")
    if config.get("quantization_config"):
        raise _refuse("quantised weights are not supported", "task_unsupported")
    return name


def _padding(config: JsonObject, layout: Layout) -> int:
    if config.get("pad_token_id") is None:
        return 1 if layout.positions_after_padding else 0
    return _size(config, "pad_token_id", least=0)


def _epsilon(config: JsonObject, layout: Layout) -> float:
    value = config.get("layer_norm_eps", 1e-12)
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < 1:
        raise _refuse(f"layer_norm_eps is {str(value)[:40]!r}")
    return float(value)


def _activation(config: JsonObject, architecture: str) -> str:
    key = "activation" if architecture == "distilbert" else "hidden_act"
    name = config.get(key, "gelu")
    if name not in ACTIVATIONS:
        raise _refuse(f"{key} {str(name)[:40]!r} is not one of {', '.join(ACTIVATIONS)}", "task_unsupported")
    return str(name)


def _outer_shapes(config: EncoderConfig) -> dict[str, Shape]:
    narrow = config.embedding_width
    shapes: dict[str, Shape] = {
        "embeddings.word_embeddings.weight": (config.vocab_size, narrow),
        "embeddings.position_embeddings.weight": (config.positions, narrow),
        "embeddings.LayerNorm.weight": (narrow,),
        "embeddings.LayerNorm.bias": (narrow,),
    }
    if config.token_types:
        shapes["embeddings.token_type_embeddings.weight"] = (config.token_types, narrow)
    if narrow != config.width:
        shapes["embeddings_project.weight"] = (config.width, narrow)
        shapes["embeddings_project.bias"] = (config.width,)
    if config.bias_buckets:
        shapes["encoder.relative_attention_bias.weight"] = (config.bias_buckets, config.heads)
    return shapes


def _layer_shapes(config: EncoderConfig) -> dict[str, Shape]:
    names, width, inner = config.layout, config.width, config.inner_width
    shapes: dict[str, Shape] = {}
    for name, out, into in (
        *((n, width, width) for n in (names.query, names.key, names.value, names.attention_out)),
        (names.up, inner, width),
        (names.down, width, inner),
    ):
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = (out, into), (out,)
    for name in (names.attention_norm, names.output_norm):
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = (width,), (width,)
    return shapes


def expected_tensors(config: EncoderConfig) -> dict[str, Shape]:
    """Every tensor that the encoder needs, without prefix."""
    layer = _layer_shapes(config)
    return _outer_shapes(config) | {
        f"{config.layout.layers}{i}.{name}": shape for i in range(config.layers) for name, shape in layer.items()
    }


@dataclass(frozen=True, slots=True)
class MatchedTensors:
    """entries: the encoder's tensors under their names without prefix, with the name in the file. ignored: names in the
    file that embeddings do not need: pooler, classifier and language-model heads."""

    entries: Mapping[str, tuple[str, TensorEntry]]
    ignored: tuple[str, ...]


def match(config: EncoderConfig, tensors: Mapping[str, TensorEntry]) -> MatchedTensors:
    """Pair the encoder's tensors with the file's. Nothing is ever made up.

    Raises ModelUnsupported(bad_weights): a tensor that is missing, of another shape or not of floats, there twice under
    two spellings, or part of the encoder's own names without a place in it (config.json describes a smaller model).
    """
    expected = expected_tensors(config)
    found: dict[str, tuple[str, TensorEntry]] = {}
    ignored: list[str] = []
    surplus: list[str] = []
    for name, entry in tensors.items():
        plain = _plain(name, config.layout.prefix)
        if plain in expected:
            if plain in found:
                raise ModelUnsupported(f"tensors {found[plain][0]!r} and {name!r} are the same one", code="bad_weights")
            found[plain] = (name, entry)
        elif plain.endswith((".position_ids", ".token_type_ids")):
            continue  # index buffers that older versions wrote; they hold 0, 1, 2, …
        elif plain.startswith(("embeddings", "encoder.", "transformer.")):
            surplus.append(name)
        else:
            ignored.append(name)
    complain("lack", expected.keys() - found.keys())
    complain("hold, beyond what config.json describes,", surplus)
    complain(
        "hold with another shape than config.json says",
        [f"{n} {list(e.shape)} not {list(expected[p])}" for p, (n, e) in found.items() if e.shape != expected[p]],
    )
    complain(
        "hold in a type that is not f16, bf16, f32 or f64",
        [f"{n} ({e.dtype})" for n, e in found.values() if e.dtype not in FLOAT_DTYPES],
    )
    return MatchedTensors(found, tuple(ignored))


def _plain(name: str, prefix: str) -> str:
    name = name.removeprefix(prefix)
    if name.endswith("LayerNorm.gamma"):  # how checkpoints of TensorFlow origin spell it
        return name.removesuffix("gamma") + "weight"
    if name.endswith("LayerNorm.beta"):
        return name.removesuffix("beta") + "bias"
    return name


def complain(what: str, names: Iterable[str]) -> None:
    """Raises ModelUnsupported(bad_weights) when there are names, the first of them shown."""
    if listed := sorted(names):
        more = f" and {len(listed) - 3} more" if len(listed) > 3 else ""
        shown = ", ".join(n[:100] for n in listed[:3])
        raise ModelUnsupported(f"the weights {what} {shown}{more}", code="bad_weights", tensors=listed[:20])
