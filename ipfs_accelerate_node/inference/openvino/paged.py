"""Texts written together on a CPU: OpenVINO's paged attention over the same graph, keys and values in pages of ours.

The stateful graph of the artefact becomes one that is told, for each text, how much it has read and which pages are its
own. One pass then takes prompts and single tokens of different texts together, and nothing is padded. Of the scores
only those are computed that somebody reads.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import openvino
import openvino.opset13 as ops
from numpy.typing import NDArray
from openvino._offline_transformations import paged_attention_transformation

from ipfs_accelerate_node.errors import InferenceFailed
from ipfs_accelerate_node.inference.memory import allowed_bytes
from ipfs_accelerate_node.inference.openvino.passes import TokenLimits, run_pass
from ipfs_accelerate_node.inference.pages import Pages, Place, pages_for
from ipfs_accelerate_node.inference.sequences import Scored, scored
from ipfs_accelerate_node.inference.session import Array

MOST = 16  # texts at once
ROOM_TOKENS = 16 * 1024  # of all texts together, or one that may be longer
_SHARE = 0.25  # of the memory that is left, for keys and values
_PREFILL = 512  # tokens of a prompt in one pass
WANTED = "wanted"


def make_paged(model: openvino.Model) -> bool:
    """Change a stateful decoder in place. False, and the model is of no further use: it cannot be.

    Its inputs are then input_ids and position_ids (tokens,) int64, wanted (rows,) int64: of which tokens the scores are
    computed; past_lens (texts,), subsequence_begins and block_indices_begins (texts + 1,), block_indices (pages,),
    max_context_len (), all int32; key_cache.N and value_cache.N.
    """
    states = sum(node.get_type_name() == "ReadValue" for node in model.get_ops())
    try:
        paged_attention_transformation(model)
    except RuntimeError:
        return False
    names = {port.get_any_name() for port in model.inputs}
    caches = sum(name.startswith(("key_cache.", "value_cache.")) for name in names)
    if not states or caches != states or "input_ids" not in names or "beam_idx" in names:
        return False
    return _only_wanted(model)


def _only_wanted(model: openvino.Model) -> bool:
    """Between the last norm and the product that scores: rows that nobody reads are left out."""
    node = model.get_results()[0].input_value(0).get_node()
    while node.get_type_name() != "MatMul":
        if node.get_type_name() in ("Parameter", "Constant"):
            return False
        node = node.input_value(0).get_node()
    hidden = node.input_value(0)
    if hidden.get_partial_shape().rank.get_length() != 3:
        return False
    wanted = ops.parameter(openvino.PartialShape([-1]), openvino.Type.i64, name=WANTED)
    wanted.output(0).get_tensor().set_names({WANTED})
    node.input(0).replace_source_output(ops.gather(hidden, wanted, ops.constant(np.int64(0))).output(0))
    model.add_parameters([wanted])
    model.validate_nodes_and_infer_types()
    return True


class OpenVinoSequences:
    """See ``sequences.Sequences``. compiled: of a graph that ``make_paged`` changed. positions: tokens of one text."""

    def __init__(self, compiled: openvino.CompiledModel, limits: TokenLimits, *, positions: int) -> None:
        self.most = MOST
        self._limits = limits
        self._request = compiled.create_infer_request()
        ports = {port.get_any_name(): port for port in compiled.inputs}
        self._positioned = "position_ids" in ports
        kept = {name: port for name, port in ports.items() if name.startswith(("key_cache.", "value_cache."))}
        size = int(next(iter(kept.values())).partial_shape[2].get_length())
        page_bytes = sum(_page_bytes(port) for port in kept.values())
        wanted = 1 + max(pages_for(positions, size), pages_for(ROOM_TOKENS, size))
        count = max(2, min(wanted, int(allowed_bytes() * _SHARE) // page_bytes))
        self._pages = Pages(count, size, MOST, positions)
        self._cache = {name: openvino.Tensor(port.element_type, _shape(port, count)) for name, port in kept.items()}
        self._views = [tensor.data for tensor in self._cache.values()]
        for name, tensor in self._cache.items():
            self._request.set_tensor(name, tensor)

    def fits(self, tokens: int) -> bool:
        return self._pages.fits(tokens)

    def open(self, tokens: int) -> int | None:
        place = self._pages.open(tokens)
        if place is not None:
            for view in self._views:  # what lies behind a text's end is weighed with 0, and must be a number
                view[self._pages.places[place].pages] = 0
        return place

    def close(self, place: int) -> None:
        self._pages.close(place)

    def read(self, place: int, ids: Sequence[int], *, scores: bool) -> Scored:
        held = self._held(place, len(ids))
        if not ids:
            raise InferenceFailed("a text without a token")
        found: NDArray[np.float32] | None = None
        for start in range(0, len(ids), _PREFILL):
            found = self._pass([held], [ids[start : start + _PREFILL]])
        assert found is not None
        return scored(found, [0] if scores else [])

    def step(self, places: Sequence[int], tokens: Sequence[int], *, scores: Sequence[int] = ()) -> Scored:
        held = [self._held(place, 1) for place in places]
        return scored(self._pass(held, [[token] for token in tokens]), scores)

    def _held(self, place: int, more: int) -> Place:
        held = self._pages.places[place]
        if held.length + more > held.limit:
            raise InferenceFailed("a text is longer than what it was let in for")
        return held

    def _pass(self, held: Sequence[Place], given: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        """Scores after each text's last token, (texts, vocabulary)."""
        inputs = self._inputs(held, given)
        ids = inputs["input_ids"]
        self._limits.check({"input_ids": ids[None], "attention_mask": np.ones((1, len(ids)), dtype=np.int64)})
        run_pass(self._request, "decoder", inputs)
        for one, tokens in zip(held, given, strict=True):
            one.length += len(tokens)
        return np.array(self._request.get_tensor("logits").data, dtype=np.float32)

    def _inputs(self, held: Sequence[Place], given: Sequence[Sequence[int]]) -> Mapping[str, Array]:
        counts = np.array([len(tokens) for tokens in given])
        past = np.array([one.length for one in held])
        begins = np.concatenate([[0], np.cumsum(counts)])
        used = [one.pages[: pages_for(one.length + len(tokens), self._pages.size)]
                for one, tokens in zip(held, given, strict=True)]  # fmt: skip
        inputs: dict[str, Array] = {
            "input_ids": np.concatenate([np.asarray(tokens, dtype=np.int64) for tokens in given]),
            WANTED: begins[1:].astype(np.int64) - 1,
            "past_lens": past.astype(np.int32),
            "subsequence_begins": begins.astype(np.int32),
            "block_indices": np.concatenate(used).astype(np.int32),
            "block_indices_begins": np.cumsum([0, *map(len, used)]).astype(np.int32),
            "max_context_len": np.array((past + counts).max(), dtype=np.int32),
        }
        if self._positioned:
            within = np.arange(counts.sum()) - np.repeat(begins[:-1], counts)
            inputs["position_ids"] = (np.repeat(past, counts) + within).astype(np.int64)
        return inputs


def _shape(port: openvino.ConstOutput, pages: int) -> openvino.Shape:
    return openvino.Shape([pages, *(port.partial_shape[axis].get_length() for axis in range(1, 4))])


def _page_bytes(port: openvino.ConstOutput) -> int:
    return int(np.prod(list(_shape(port, 1)))) * int(port.element_type.size)
