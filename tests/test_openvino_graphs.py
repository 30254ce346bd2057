"""Every family of models as OpenVINO graphs: each is compared with torch on sizes that it was not traced with."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import openvino
import pytest
from torch import Tensor, nn

from ipfs_accelerate_node.errors import ModelUnsupported
from ipfs_accelerate_node.inference.families import MODEL_TYPES
from ipfs_accelerate_node.inference.openvino.export import Plan, Port, check, convert
from ipfs_accelerate_node.inference.openvino.plans import plans_of, scalars_of
from tests.support.models_openvino import tiny_files
from tests.support.models_torch import torch

from ipfs_accelerate_node.inference.torch.engine import load  # isort: skip - after torch's own warnings

pytestmark = pytest.mark.timeout(300)

# One of each way to compute: own encoder, relative positions, rows of padding that may look at nothing, two towers,
# cross-attention, sliding windows, pictures.
ALWAYS = [
    "bert", "mpnet", "modernbert", "clip", "siglip", "t5", "bart", "whisper", "llama", "gpt2", "gemma2", "vit",
    "efficientnet",
]  # fmt: skip
OTHERS = [name for name in MODEL_TYPES if name not in ALWAYS]


@pytest.fixture(scope="module")
def core() -> openvino.Core:
    return openvino.Core()


def convert_all(directory: Path, model_type: str, core: openvino.Core, task: str | None = None) -> list[Plan]:
    files, task = tiny_files(directory, model_type, task)
    graphs = load(files, task, device="cpu", precision="f32").graphs
    plans = plans_of(graphs, files)
    for plan in plans:
        check(plan, convert(plan), core)
    assert scalars_of(graphs).keys() == ({"scale"} | ({"bias"} if model_type == "siglip" else set())) & (
        {"scale", "bias"} if files.family == "dual" else set()
    )
    return plans


@pytest.mark.parametrize("model_type", [*ALWAYS, *(pytest.param(name, marks=pytest.mark.full) for name in OTHERS)])
def test_graphs_are_what_torch_computes(tmp_path: Path, core: openvino.Core, model_type: str) -> None:
    plans = convert_all(tmp_path / "model", model_type, core)
    names = {
        "encoder": ["vectors"],
        "dual": ["text", "image"],
        "seq2seq": ["encoder", "decoder"],
        "speech": ["encoder", "decoder"],
        "causal": ["decoder"],
        "image": ["logits"],
    }
    assert [plan.name for plan in plans] == names[MODEL_TYPES[model_type].family]


def test_heads_of_text_encoders(tmp_path: Path, core: openvino.Core) -> None:
    (plan,) = convert_all(tmp_path / "model", "bert", core, "text-classification")
    assert [port.name for port in plan.ports] == ["input_ids", "attention_mask", "token_type_ids"]
    assert (plan.name, plan.outputs) == ("logits", ("logits",))


class Branching(nn.Module):
    """Takes one of two paths by the length of its input, which tracing freezes."""

    def forward(self, x: Tensor) -> tuple[Tensor]:
        return (x.sum(dim=1) if x.shape[1] < 6 else -x.sum(dim=1),)


class Fixed(nn.Module):
    """Takes inputs of one length only."""

    def forward(self, x: Tensor) -> tuple[Tensor]:
        return (x + torch.arange(4.0),)


def plan(module: nn.Module, length: int) -> Plan:
    other = np.arange(6, dtype=np.float32).reshape(1, 6) + 1
    return Plan("graph", module, (Port("x", (-1, -1), torch.ones(2, length)),), ("y",), {}, ({"x": other},))


def test_a_path_that_tracing_froze_is_found(core: openvino.Core) -> None:
    frozen = plan(Branching(), 4)
    with pytest.raises(ModelUnsupported, match=r"cosine of -1\.0"):
        check(frozen, convert(frozen), core)


def test_a_graph_of_one_size_is_found(core: openvino.Core) -> None:
    fixed = plan(Fixed(), 4)
    with pytest.raises(ModelUnsupported, match="fails on other sizes"):
        check(fixed, convert(fixed), core)


def test_keys_and_values_are_state(tmp_path: Path) -> None:
    files, task = tiny_files(tmp_path / "model", "llama")
    (plan,) = plans_of(load(files, task, device="cpu", precision="f32").graphs, files)
    model = convert(plan)
    assert {port.get_any_name() for port in model.inputs} == {"input_ids", "attention_mask", "position_ids", "beam_idx"}
    assert [port.get_any_name() for port in model.outputs] == ["logits"]
    assert len(model.get_sinks()) == 2 * 2  # keys and values of two layers
    assert model.get_rt_info(["runtime_options", "KV_CACHE_PRECISION"]).astype(str) == "f32"
