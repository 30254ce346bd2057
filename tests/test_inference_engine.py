"""Our own forward pass against transformers on the same files, for every architecture, pooling and file layout."""

from __future__ import annotations

import random
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from ipfs_accelerate_node.inference.architectures import LAYOUTS
from ipfs_accelerate_node.inference.model_files import inspect
from ipfs_accelerate_node.inference.sentence import Pooling
from tests.support.models import (
    WORDS,
    tiny_config,
    tiny_model,
    tiny_tokenizer,
    write_json,
    write_pooling,
    write_tokenizer,
)

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what torch and transformers say about themselves while they are imported
    import torch
    from transformers import AutoConfig, AutoModel
    from transformers.utils.logging import disable_progress_bar

    from ipfs_accelerate_node.inference.torch.engine import TorchEngine, load
    from ipfs_accelerate_node.inference.torch.vectors import pool

disable_progress_bar()
pytestmark = pytest.mark.timeout(120)

SAMPLE = Path(__file__).parent.parent / ".sample/minilm-l6"
TEXTS = ["hello world", "the cat sat on the mat", "a", "one two three " * 9, "xyz!", "Hello WORLD the CAT"]


def engine(directory: Path, precision: str = "f32") -> TorchEngine:
    return load(inspect(directory, available_bytes=1 << 32), "embedding", device="cpu", precision=precision)


def rows_of(texts: Sequence[str]) -> list[list[int]]:
    return [encoding.ids for encoding in tiny_tokenizer().encode_batch(list(texts))]


def run(loaded: TorchEngine, rows: Sequence[Sequence[int]], key: str = "vectors") -> NDArray[np.float32]:
    longest = max(map(len, rows))
    ids = np.array([[*row, *[0] * (longest - len(row))] for row in rows])
    mask = np.array([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
    return loaded.run("vectors", {"input_ids": ids, "attention_mask": mask})[key]


def last_hidden(directory: Path, ids: Sequence[int]) -> torch.Tensor:
    """What transformers computes for one input, on the original files."""
    model = AutoModel.from_pretrained(directory, local_files_only=True, dtype=torch.float32).eval()
    with torch.no_grad():
        hidden: torch.Tensor = model(input_ids=torch.tensor([list(ids)])).last_hidden_state
    return hidden[0]


def mean_by_transformers(directory: Path, rows: Sequence[Sequence[int]]) -> NDArray[np.float32]:
    means = torch.stack([last_hidden(directory, ids).mean(dim=0) for ids in rows])
    return torch.nn.functional.normalize(means, dim=1).numpy()


def assert_equals_transformers(directory: Path, rows: Sequence[Sequence[int]] | None = None) -> None:
    rows = rows_of(TEXTS) if rows is None else rows
    assert np.abs(run(engine(directory), rows) - mean_by_transformers(directory, rows)).max() <= 1e-5


@pytest.mark.parametrize("architecture", LAYOUTS)
def test_equals_transformers_on_a_model_that_transformers_wrote(tmp_path: Path, architecture: str) -> None:
    torch.manual_seed(7)
    config = tiny_config(architecture)
    kind = config.pop("model_type")
    AutoModel.from_config(AutoConfig.for_model(str(kind), **config)).save_pretrained(tmp_path)
    write_tokenizer(tmp_path)
    write_pooling(tmp_path, "mean_tokens")
    assert_equals_transformers(tmp_path)


@pytest.mark.parametrize("architecture", ["bert", "mpnet", "distilbert", "roberta"])
def test_transformers_finds_every_tensor_that_we_expect(tmp_path: Path, architecture: str) -> None:
    tiny_model(tmp_path, architecture)
    _, told = AutoModel.from_pretrained(tmp_path, local_files_only=True, output_loading_info=True)
    assert {name for name in told["missing_keys"] if not name.startswith("pooler.")} == set()
    assert not told["unexpected_keys"]
    assert_equals_transformers(tmp_path)


@pytest.mark.parametrize("activation", ["gelu_new", "gelu_pytorch_tanh", "relu", "silu", "swish", "tanh"])
def test_activations(tmp_path: Path, activation: str) -> None:
    tiny_model(tmp_path, hidden_act=activation)
    assert_equals_transformers(tmp_path, rows_of(["the cat"]))


def test_long_inputs_reach_mpnets_far_buckets(tmp_path: Path) -> None:
    tiny_model(tmp_path, "mpnet", max_position_embeddings=300)
    assert_equals_transformers(tmp_path, rows_of(["one two three cat " * 70]))


def test_token_types_are_those_given(tmp_path: Path) -> None:
    tiny_model(tmp_path)
    ids = np.array(rows_of(["the cat sat"]))
    types = np.array([[0, 0, 1, 1, 1]])
    model = AutoModel.from_pretrained(tmp_path, local_files_only=True).eval()
    with torch.no_grad():
        hidden = model(input_ids=torch.tensor(ids), token_type_ids=torch.tensor(types)).last_hidden_state
    given = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": types}
    ours = engine(tmp_path).run("vectors", given)["pooled"]
    np.testing.assert_allclose(ours[0], hidden[0].mean(dim=0).numpy(), atol=1e-5)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_narrow_weights_are_widened(tmp_path: Path, dtype: str) -> None:
    tiny_model(tmp_path)
    model = AutoModel.from_pretrained(tmp_path, local_files_only=True).to(getattr(torch, dtype))
    model.save_pretrained(tmp_path)
    assert engine(tmp_path).precision == "f32"
    assert_equals_transformers(tmp_path)


def test_bf16_is_near_f32_and_says_so(tmp_path: Path) -> None:
    tiny_model(tmp_path)
    narrow = engine(tmp_path, "bf16")
    assert narrow.precision == "bf16"
    rows = rows_of(TEXTS)
    cosines = (run(narrow, rows) * run(engine(tmp_path), rows)).sum(axis=1)
    assert cosines.min() >= 0.999


@pytest.mark.model
def test_the_sample_model_equals_transformers_within_1e_5() -> None:
    from tokenizers import Tokenizer

    texts = ["The cat sits outside", "A man is playing guitar", "naïve café 你好 😀", "word " * 200, "x"]
    tokenizer = Tokenizer.from_file(str(SAMPLE / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    rows = [encoding.ids for encoding in tokenizer.encode_batch(texts)]
    assert_equals_transformers(SAMPLE, rows)
    narrow = run(engine(SAMPLE, "bf16"), rows)
    assert (narrow * run(engine(SAMPLE), rows)).sum(axis=1).min() >= 0.999


def pooled_by_hand(mode: Pooling, rows: NDArray[np.float64]) -> NDArray[np.float64]:
    weights = np.arange(1, len(rows) + 1)[:, None]
    by_mode: dict[Pooling, NDArray[np.float64]] = {
        "cls": rows[0],
        "lasttoken": rows[-1],
        "max": rows.max(axis=0),
        "mean": rows.mean(axis=0),
        "mean_sqrt_len": rows.sum(axis=0) / np.sqrt(len(rows)),
        "weightedmean": (rows * weights).sum(axis=0) / weights.sum(),
    }
    return by_mode[mode]


@pytest.mark.parametrize("mode", ["cls", "lasttoken", "max", "mean", "mean_sqrt_len", "weightedmean"])
def test_pooling_ignores_padding(mode: Pooling) -> None:
    generator = np.random.default_rng(3)
    hidden, lengths = generator.normal(size=(4, 6, 5)), [6, 1, 3, 4]
    mask = torch.arange(6)[None, :] < torch.tensor(lengths)[:, None]
    ours = pool(mode, torch.tensor(hidden), mask).numpy()
    for row, length in enumerate(lengths):
        np.testing.assert_allclose(ours[row], pooled_by_hand(mode, hidden[row, :length]), atol=1e-12)


def test_several_poolings_are_concatenated_and_not_normalised_unless_told(tmp_path: Path) -> None:
    tiny_model(tmp_path, pooling=("cls_token", "mean_tokens"))
    write_pooling(tmp_path, "cls_token", "mean_tokens", normalize=False)
    rows = rows_of(["the cat"])
    hidden = last_hidden(tmp_path, rows[0])
    expected = torch.cat([hidden[0], hidden.mean(dim=0)]).numpy()
    for key in ("vectors", "pooled"):
        np.testing.assert_allclose(run(engine(tmp_path), rows, key)[0], expected, atol=1e-5)


def test_dense_layer(tmp_path: Path) -> None:
    tiny_model(tmp_path)
    write_json(
        tmp_path / "modules.json",
        [{"type": f"sentence_transformers.models.{kind}", "path": path}
         for kind, path in (("Transformer", ""), ("Pooling", "1_Pooling"), ("Dense", "2_Dense"))],
    )  # fmt: skip
    weight = np.random.default_rng(1).normal(size=(4, 16)).astype(np.float32)
    activation = "torch.nn.modules.activation.Tanh"
    write_json(
        tmp_path / "2_Dense/config.json",
        {"in_features": 16, "out_features": 4, "bias": True, "activation_function": activation},
    )
    save_file({"linear.weight": weight, "linear.bias": np.ones(4, np.float32)}, tmp_path / "2_Dense/model.safetensors")
    rows = rows_of(["the cat"])
    mean = last_hidden(tmp_path, rows[0]).mean(dim=0).numpy()
    np.testing.assert_allclose(run(engine(tmp_path), rows)[0], np.tanh(weight @ mean + 1), atol=1e-5)


def test_weights_that_are_not_finite_load_and_are_noted(tmp_path: Path) -> None:
    """S7; whoever asked is told by the task that looks at the vectors."""
    tiny_model(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    weights["embeddings.word_embeddings.weight"][WORDS.index("cat")] = np.nan
    save_file(weights, tmp_path / "model.safetensors")
    loaded = engine(tmp_path)
    assert loaded.notes == ("weights hold NaN or infinity: embeddings.word_embeddings.weight",)
    assert np.isfinite(run(loaded, rows_of(["one"]))).all()
    assert not np.isfinite(run(loaded, rows_of(["two cat"]))).any()


def test_one_row_is_what_it_is_in_any_batch(tmp_path: Path) -> None:
    loaded = engine(tiny_model(tmp_path))
    generator = random.Random(5)
    rows = [[generator.randrange(4, len(WORDS)) for _ in range(generator.randint(1, 40))] for _ in range(60)]
    together = run(loaded, rows)
    for index in range(0, 60, 7):
        assert np.abs(run(loaded, [rows[index]])[0] - together[index]).max() <= 1e-5
