"""Which graphs a model becomes, and what they are traced and checked with."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ipfs_accelerate_node.errors import ModelUnsupported
from ipfs_accelerate_node.inference.model_files import ModelFiles
from ipfs_accelerate_node.inference.openvino.cached import Causal, CrossDecoder, CrossEncoder, Shape, shapes
from ipfs_accelerate_node.inference.openvino.export import Arrays, Named, Plan, Port
from ipfs_accelerate_node.inference.openvino.stateful import BEAM
from ipfs_accelerate_node.inference.session import Array
from ipfs_accelerate_node.inference.tasks.picture_settings import read_picture_settings
from ipfs_accelerate_node.inference.torch.graphs import DualGraphs, GeneratorGraphs, Graphs, HeadGraphs, SentenceGraphs

ROWS, TOKENS, PAST, SOURCE = 2, 7, 3, 6  # of what is traced; all different, none 0 or 1
IDS = "input_ids"
MASK = "attention_mask"
TYPES = "token_type_ids"
PIXELS = "pixel_values"

# T5 does not scale its attention scores, and OpenVINO rounds those to the narrow format before it takes their softmax;
# over a long input that moves the encoder's output visibly (cosine 0.9987 where torch, which does not, has 0.9999).
_LARGE_SCORES = ("t5", "mt5", "umt5")


def plans_of(graphs: Graphs, files: ModelFiles) -> list[Plan]:
    """Every graph of the model's form. Raises ModelUnsupported(task_unsupported)."""
    if isinstance(graphs, SentenceGraphs):
        return [_text_plan(graphs.both, files, "vectors", ("vectors", "pooled", "hidden"))]
    if isinstance(graphs, HeadGraphs):
        if files.family == "image":
            return [_picture_plan(graphs, files, "logits", "logits")]
        return [_text_plan(partial(graphs.run, "logits"), files, "logits", ("logits",))]
    if isinstance(graphs, DualGraphs):
        text = _text_plan(partial(graphs.run, "text"), files, "text", ("embeds",))
        return [text, _picture_plan(graphs, files, "image", "embeds")]
    if isinstance(graphs, GeneratorGraphs):
        if files.family == "causal":
            return [_causal_plan(graphs.module, files)]
        return _cross_plans(graphs.module, files)
    raise ModelUnsupported(f"{files.model_type} models are not converted", code="task_unsupported")


def scalars_of(graphs: Graphs) -> dict[str, float]:
    """What ``Engine.run("scale", {})`` answers."""
    if not isinstance(graphs, DualGraphs):
        return {}
    return {name: float(tensor) for name, tensor in graphs.run("scale", {}).items()}


# -- texts


def _text_plan(
    run: Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]], files: ModelFiles, graph: str, outputs: Sequence[str]
) -> Plan:
    names = [IDS, MASK, *([TYPES] if graph != "text" and _has_types(files) else [])]
    example = _rows(files, ROWS, TOKENS, padding=2)
    ports = tuple(Port(name, (-1, -1), torch.from_numpy(example[name])) for name in names)
    most = files.max_tokens or TOKENS
    checks = (_rows(files, 3, min(13, most), padding=5), _rows(files, 1, min(4, most), padding=0))
    return Plan(
        name=graph,
        module=Named(run, names, outputs),
        ports=ports,
        outputs=tuple(outputs),
        past={},
        checks=tuple({name: rows[name] for name in names} for rows in checks),
    )


def _has_types(files: ModelFiles) -> bool:
    """Has the model more than one token type?"""
    count = files.config.get("type_vocab_size", 2 if files.model_type in ("bert", "electra", "albert") else 0)
    return type(count) is int and count > 1


def _rows(files: ModelFiles, rows: int, tokens: int, *, padding: int, left: bool = False) -> Arrays:
    """Token ids, the first row with ``padding`` tokens of it, the last ones of the second type."""
    draw = np.random.default_rng(rows * 100 + tokens)
    ids = draw.integers(min(5, files.vocab_size - 1), files.vocab_size, (rows, tokens), dtype=np.int64)
    mask = np.ones_like(ids)
    types = np.zeros_like(ids)
    types[:, tokens // 2 :] = 1
    if padding:
        place = slice(None, padding) if left else slice(tokens - padding, None)
        ids[0, place], mask[0, place], types[0, place] = _pad(files), 0, 0
    return {IDS: _with_end(files, ids, mask), MASK: mask, TYPES: types}


def _with_end(files: ModelFiles, ids: Array, mask: Array) -> Array:
    """CLIP takes the vector of the end token, so there has to be one."""
    text = files.config.get("text_config")
    end = text.get("eos_token_id") if isinstance(text, dict) else None
    if type(end) is int and 0 <= end < files.vocab_size:
        for row, real in zip(ids, mask, strict=True):
            row[int(real.sum()) - 1] = end
    return ids


def _pad(files: ModelFiles) -> int:
    text = files.config.get("text_config")
    for part in (files.config, text if isinstance(text, dict) else {}):
        pad = part.get("pad_token_id")
        if type(pad) is int and 0 <= pad < files.vocab_size:
            return pad
    return 0


# -- pictures


def _picture_plan(graphs: HeadGraphs | DualGraphs, files: ModelFiles, graph: str, output: str) -> Plan:
    height, width, fixed = _edges(files)
    for parent in graphs.module.modules():
        _pool_at_most(parent, max(height, width))
    draw = np.random.default_rng(7)
    pixels = [draw.standard_normal((rows, 3, height, width)).astype(np.float32) for rows in (ROWS, 3, 1)]
    dims = (-1, 3, height, width) if fixed else (-1, 3, -1, -1)
    return Plan(
        name=graph,
        module=Named(lambda inputs: graphs.run(graph, inputs), [PIXELS], [output]),
        ports=(Port(PIXELS, dims, torch.from_numpy(pixels[0])),),
        outputs=(output,),
        past={},
        checks=tuple({PIXELS: array} for array in pixels[1:]),
    )


def _pool_at_most(parent: nn.Module, edge: int) -> None:
    """EfficientNet averages over windows wider than any picture, the average of all; OpenVINO refuses such."""
    for name, child in parent.named_children():
        if isinstance(child, nn.AvgPool2d) and isinstance(child.kernel_size, int) and child.kernel_size > edge:
            setattr(parent, name, nn.AdaptiveAvgPool2d(1))


def _edges(files: ModelFiles) -> tuple[int, int, bool]:
    """Height and width of a prepared picture, and whether every one is so."""
    return read_picture_settings(files.preprocessor_config, model_type=files.model_type).prepared


# -- generators


def _cache_ports(prefix: str, kinds: Sequence[Shape], length: int) -> list[Port]:
    torch.manual_seed(5)
    return [
        Port(f"{prefix}{i}", (-1, heads, -1, width), torch.randn(ROWS, heads, length, width))
        for i, (heads, width) in enumerate(kinds)
    ]


def _outputs(kinds: Sequence[Shape], prefix: str, first: str) -> tuple[str, ...]:
    return (first, *(f"{prefix}{i}" for i in range(len(kinds))))


def _past(kinds: Sequence[Shape]) -> dict[str, str]:
    return {f"past.{i}": f"present.{i}" for i in range(len(kinds))}


def _causal_plan(model: Any, files: ModelFiles) -> Plan:
    module = Causal(model)
    kinds = _probe(module, files)
    ids = _rows(files, ROWS, PAST + 2, padding=1, left=True)
    named = _causal_arrays(ids[IDS][:, PAST:], ids[MASK], module.names)
    ports = [Port(name, (-1, -1), torch.from_numpy(named[name])) for name in module.names]
    first = _rows(files, 3, 6, padding=2, left=True)
    second = _rows(files, 3, 1, padding=0)
    order = np.array([2, 0, 1], dtype=np.int32)
    mask = np.concatenate([first[MASK][order], second[MASK]], axis=1)
    start = {BEAM: np.arange(3, dtype=np.int32)}
    return Plan(
        name="decoder",
        module=module,
        ports=(*ports, *_cache_ports("past.", kinds, PAST)),
        outputs=_outputs(kinds, "present.", "logits"),
        past=_past(kinds),
        checks=(
            _causal_arrays(first[IDS], first[MASK], module.names) | start,
            _causal_arrays(second[IDS], mask, module.names) | {BEAM: order},
        ),
    )


def _causal_arrays(ids: Array, mask: Array, names: Sequence[str]) -> Arrays:
    positions = np.maximum(mask.cumsum(axis=1) - 1, 0)[:, -ids.shape[1] :]
    arrays = {IDS: ids, MASK: mask, "position_ids": np.ascontiguousarray(positions)}
    return {name: np.ascontiguousarray(arrays[name]) for name in names}


def _probe(module: Causal, files: ModelFiles) -> tuple[Shape, ...]:
    """The form of the cache, from a pass over a few tokens."""
    rows = _rows(files, ROWS, TOKENS, padding=0)
    arrays = _causal_arrays(rows[IDS], rows[MASK], module.names)
    with torch.no_grad():
        _, *present = module(*(torch.from_numpy(arrays[name]) for name in module.names))
    return shapes(present)


def _cross_plans(model: Any, files: ModelFiles) -> list[Plan]:
    speech = files.family == "speech"
    encoder = CrossEncoder(model, speech=speech)
    sources = [_sources(files, speech, rows, tokens) for rows, tokens in ((ROWS, SOURCE), (3, 9))]
    with torch.no_grad():
        encoded = [encoder(*source.values()) for source in sources]
    cross = shapes(encoded[0][1:])
    dims = (-1, *next(iter(sources[0].values())).shape[1:]) if speech else (-1, -1)
    encoder_plan = Plan(
        name="encoder",
        module=encoder,
        ports=tuple(Port(name, dims, tensor) for name, tensor in sources[0].items()),
        outputs=_outputs(cross, "cross.", "hidden"),
        past={},
        exact=files.model_type in _LARGE_SCORES,
        checks=tuple({name: tensor.numpy() for name, tensor in source.items()} for source in sources[1:]),
    )
    return [encoder_plan, _cross_decoder_plan(model, files, sources, encoded)]


def _sources(files: ModelFiles, speech: bool, rows: int, tokens: int) -> dict[str, Tensor]:
    """What an encoder reads."""
    if speech:
        mel, frames = _size(files, "num_mel_bins", 80), 2 * _size(files, "max_source_positions", 1500)
        draw = np.random.default_rng(rows)
        return {"input_features": torch.from_numpy(draw.standard_normal((rows, mel, frames)).astype(np.float32))}
    arrays = _rows(files, rows, tokens, padding=2)
    return {name: torch.from_numpy(arrays[name]) for name in (IDS, MASK)}


def _size(files: ModelFiles, key: str, default: int) -> int:
    value = files.config.get(key, default)
    return value if type(value) is int else default


def _cross_decoder_plan(
    model: nn.Module, files: ModelFiles, sources: Sequence[dict[str, Tensor]], encoded: Sequence[tuple[Tensor, ...]]
) -> Plan:
    speech = files.family == "speech"
    cross = [f"cross.{i}" for i in range(len(encoded[0]) - 1)]
    module = CrossDecoder(model, speech=speech, cross=len(cross))
    kinds = shapes(encoded[0][1:])
    own = _self_shapes(module, sources[0], encoded[0][1:])
    given = {IDS: torch.full((ROWS, 2), 3), MASK: torch.ones((ROWS, PAST + 2), dtype=torch.long)}
    given[MASK][0, 0] = 0
    if not speech:
        given["encoder_attention_mask"] = sources[0][MASK]
    ports = [Port(name, (-1, -1), given[name]) for name in module.names]
    for name, (heads, width), tensor in zip(cross, kinds, encoded[0][1:], strict=True):
        ports.append(Port(name, (-1, heads, -1, width), tensor))
    fixed: Arrays = dict(zip(cross, (tensor.numpy() for tensor in encoded[1][1:]), strict=True))
    if not speech:
        fixed["encoder_attention_mask"] = sources[1][MASK].numpy()
    fixed[BEAM] = np.arange(3, dtype=np.int32)
    ones = np.ones((3, 3), dtype=np.int64)
    checks: tuple[Arrays, ...] = (
        {IDS: 4 * ones[:, :2], MASK: ones[:, :2], **fixed},
        {IDS: 3 + np.arange(3, dtype=np.int64)[:, None], MASK: ones, **fixed},
    )
    return Plan(
        name="decoder",
        module=module,
        ports=(*ports, *_cache_ports("past.", own, PAST)),
        outputs=_outputs(own, "present.", "logits"),
        past=_past(own),
        checks=checks,
    )


def _self_shapes(module: CrossDecoder, source: dict[str, Tensor], cross: Sequence[Tensor]) -> tuple[Shape, ...]:
    named = {IDS: torch.full((ROWS, 2), 3), MASK: torch.ones((ROWS, 2), dtype=torch.long)}
    named["encoder_attention_mask"] = source.get(MASK, named[MASK])
    with torch.no_grad():
        _, *present = module(*(named[name] for name in module.names), *cross)
    return shapes(present)
