"""Our forward pass against transformers on the same files, for every architecture, pooling and file layout."""

from __future__ import annotations

import random
import shutil
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from ipfs_accelerate_node.errors import InferenceFailed, PayloadTooLarge
from ipfs_accelerate_node.inference.architectures import LAYOUTS
from ipfs_accelerate_node.inference.model_files import inspect
from ipfs_accelerate_node.inference.sentence import Pooling
from tests.support.models import (
    WORDS,
    tiny_config,
    tiny_model,
    write_json,
    write_pooling,
    write_tokenizer,
)

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what torch and transformers say about themselves while they are imported
    import torch
    from transformers import AutoConfig, AutoModel
    from transformers.utils.logging import disable_progress_bar

    from ipfs_accelerate_node.inference.torch_engine import TorchSession, batches, pool

disable_progress_bar()
pytestmark = pytest.mark.timeout(120)

SAMPLE = Path(__file__).parent.parent / ".sample/minilm-l6"
TEXTS = ["hello world", "the cat sat on the mat", "a", "one two three " * 20, "xyz!", "Hello WORLD the CAT"]


def session(directory: Path) -> TorchSession:
    return TorchSession.load(inspect(directory, available_bytes=1 << 32))[0]


def embed(directory: Path, texts: Sequence[str] = TEXTS) -> NDArray[np.float32]:
    loaded = session(directory)
    rows = loaded.tokens.of_texts(texts, truncate=True)
    return loaded.embed(rows, dimensions=None, normalize=None, between=lambda: None)


def last_hidden(directory: Path, ids: Sequence[int]) -> torch.Tensor:
    """What transformers computes for one input, on the original files."""
    model = AutoModel.from_pretrained(directory, local_files_only=True, dtype=torch.float32).eval()
    with torch.no_grad():
        hidden: torch.Tensor = model(input_ids=torch.tensor([list(ids)])).last_hidden_state
    return hidden[0]


def mean_by_transformers(directory: Path, texts: Sequence[str] = TEXTS) -> NDArray[np.float32]:
    tokens = session(directory).tokens
    means = [last_hidden(directory, ids).mean(dim=0) for ids in tokens.of_texts(texts, truncate=True).ids]
    return torch.nn.functional.normalize(torch.stack(means), dim=1).numpy()


@pytest.mark.parametrize("architecture", LAYOUTS)
def test_equals_transformers_on_a_model_that_transformers_wrote(tmp_path: Path, architecture: str) -> None:
    torch.manual_seed(7)
    config = tiny_config(architecture)
    kind = config.pop("model_type")
    AutoModel.from_config(AutoConfig.for_model(str(kind), **config)).save_pretrained(tmp_path)
    write_tokenizer(tmp_path)
    write_pooling(tmp_path, "mean_tokens")
    assert np.abs(embed(tmp_path) - mean_by_transformers(tmp_path)).max() <= 1e-5


@pytest.mark.parametrize("architecture", ["bert", "mpnet", "distilbert", "roberta"])
def test_transformers_finds_every_tensor_that_we_expect(tmp_path: Path, architecture: str) -> None:
    tiny_model(tmp_path, architecture)
    _, told = AutoModel.from_pretrained(tmp_path, local_files_only=True, output_loading_info=True)
    assert {name for name in told["missing_keys"] if not name.startswith("pooler.")} == set()
    assert not told["unexpected_keys"]
    assert np.abs(embed(tmp_path) - mean_by_transformers(tmp_path)).max() <= 1e-5


@pytest.mark.parametrize("activation", ["gelu_new", "gelu_pytorch_tanh", "relu", "silu", "swish", "tanh"])
def test_activations(tmp_path: Path, activation: str) -> None:
    tiny_model(tmp_path, hidden_act=activation)
    assert np.abs(embed(tmp_path, ["the cat"]) - mean_by_transformers(tmp_path, ["the cat"])).max() <= 1e-5


def test_long_inputs_reach_mpnets_far_buckets(tmp_path: Path) -> None:
    tiny_model(tmp_path, "mpnet", max_position_embeddings=300)
    text = ["one two three cat " * 70]
    assert np.abs(embed(tmp_path, text) - mean_by_transformers(tmp_path, text)).max() <= 1e-5


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_narrow_weights_are_widened(tmp_path: Path, dtype: str) -> None:
    tiny_model(tmp_path)
    model = AutoModel.from_pretrained(tmp_path, local_files_only=True).to(getattr(torch, dtype))
    model.save_pretrained(tmp_path)
    loaded = session(tmp_path)
    assert all(tensor.dtype == torch.float32 for tensor in loaded._encoder._tensors.values())
    assert np.abs(embed(tmp_path) - mean_by_transformers(tmp_path)).max() <= 1e-5


def test_shards_give_what_one_file_gives(tmp_path: Path) -> None:
    whole = embed(tiny_model(tmp_path / "whole"))
    shutil.copytree(tmp_path / "whole", tmp_path / "parts")
    weights = load_file(tmp_path / "parts/model.safetensors")
    (tmp_path / "parts/model.safetensors").unlink()
    shards = {name: f"model-{i % 3}.safetensors" for i, name in enumerate(weights)}
    for shard in set(shards.values()):
        save_file({n: w for n, w in weights.items() if shards[n] == shard}, tmp_path / "parts" / shard)
    write_json(tmp_path / "parts/model.safetensors.index.json", {"weight_map": shards})
    np.testing.assert_array_equal(embed(tmp_path / "parts"), whole)


@pytest.mark.model
def test_the_sample_model_equals_transformers_within_1e_5() -> None:
    texts = ["The cat sits outside", "A man is playing guitar", "naïve café 你好 😀", "word " * 400, "x"]
    ours, theirs = embed(SAMPLE, texts), mean_by_transformers(SAMPLE, texts)
    assert np.abs(ours - theirs).max() <= 1e-5
    assert ours.shape == (5, 384)


@pytest.mark.model
def test_tokens_of_the_sample_model_are_those_of_transformers() -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(SAMPLE, local_files_only=True)
    texts = ["Hello, World!", "naïve café 你好 😀", "a" * 500, " spaces  and\ttabs ", "word " * 400, "[MASK] [CLS]"]
    theirs = tokenizer(texts, truncation=True, max_length=256)["input_ids"]
    rows = session(SAMPLE).tokens.of_texts(texts, truncate=True)
    assert (rows.ids, rows.truncated) == (theirs, 1)


def test_vocab_txt_alone_is_as_good_as_tokenizer_json(tmp_path: Path) -> None:
    tiny_model(tmp_path)
    expected = session(tmp_path).tokens.of_texts(TEXTS, truncate=True)
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    assert session(tmp_path).tokens.of_texts(TEXTS, truncate=True) == expected


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
    loaded = session(tmp_path)
    ids = loaded.tokens.of_texts(["the cat"], truncate=True)
    hidden = last_hidden(tmp_path, ids.ids[0])
    ours = loaded.embed(ids, dimensions=None, normalize=None, between=lambda: None)
    np.testing.assert_allclose(ours[0], torch.cat([hidden[0], hidden.mean(dim=0)]).numpy(), atol=1e-5)
    unit = loaded.embed(ids, dimensions=None, normalize=True, between=lambda: None)
    np.testing.assert_allclose(unit[0], ours[0] / np.linalg.norm(ours[0]), atol=1e-6)


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
    loaded = session(tmp_path)
    ids = loaded.tokens.of_texts(["the cat"], truncate=True)
    mean = last_hidden(tmp_path, ids.ids[0]).mean(dim=0).numpy()
    ours = loaded.embed(ids, dimensions=None, normalize=None, between=lambda: None)
    np.testing.assert_allclose(ours[0], np.tanh(weight @ mean + 1), atol=1e-5)


def test_lower_case_and_prompt_come_before_the_tokenizer(tmp_path: Path) -> None:
    tiny_model(tmp_path)
    write_pooling(tmp_path, "mean_tokens", lower_case=True)
    write_json(tmp_path / "config_sentence_transformers.json", {"prompts": {"q": "one "}, "default_prompt_name": "q"})
    rows = session(tmp_path).tokens.of_texts(["CAT"], truncate=True)
    assert [WORDS[token] for token in rows.ids[0]] == ["[CLS]", "one", "cat", "[SEP]"]


def test_truncation_is_counted_or_refused(tmp_path: Path) -> None:
    tokens = session(tiny_model(tmp_path)).tokens
    texts = ["cat", "cat " * 38, "cat " * 39]
    rows = tokens.of_texts(texts, truncate=True)
    assert ([len(row) for row in rows.ids], rows.truncated) == ([3, 40, 40], 1)
    assert rows.ids[2][-1] == WORDS.index("[SEP]")
    with pytest.raises(PayloadTooLarge) as caught:  # H5: 413 over the token limit
        tokens.of_texts(texts, truncate=False)
    assert caught.value.detail["index"] == 2
    assert tokens.of_ids([[5] * 50], truncate=True).truncated == 1
    with pytest.raises(PayloadTooLarge):
        tokens.of_ids([[5] * 50], truncate=False)


def test_vectors_that_are_not_finite_are_an_error(tmp_path: Path) -> None:
    """S7: such weights load, are noted, and give no vector."""
    tiny_model(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    weights["embeddings.word_embeddings.weight"][WORDS.index("cat")] = np.nan
    save_file(weights, tmp_path / "model.safetensors")
    loaded, notes = TorchSession.load(inspect(tmp_path, available_bytes=1 << 30))
    assert any("NaN or infinity" in note for note in notes)
    fine = loaded.embed(loaded.tokens.of_texts(["one"], truncate=True), dimensions=None, normalize=None, between=_noop)
    assert np.isfinite(fine).all()
    rows = loaded.tokens.of_texts(["one", "two cat"], truncate=True)
    with pytest.raises(InferenceFailed) as caught:
        loaded.embed(rows, dimensions=None, normalize=None, between=_noop)
    assert caught.value.detail["index"] == 1


def _noop() -> None:
    return None


def test_one_row_is_what_it_is_in_any_batch(tmp_path: Path) -> None:
    loaded = session(tiny_model(tmp_path))
    generator = random.Random(5)
    ids = [[generator.randrange(4, len(WORDS)) for _ in range(generator.randint(1, 40))] for _ in range(150)]
    together = loaded.embed(loaded.tokens.of_ids(ids, truncate=True), dimensions=None, normalize=None, between=_noop)
    for index in range(0, 150, 7):
        rows = loaded.tokens.of_ids([ids[index]], truncate=True)
        alone = loaded.embed(rows, dimensions=None, normalize=None, between=_noop)
        assert np.abs(alone[0] - together[index]).max() <= 1e-5


@given(st.lists(st.integers(1, 300), max_size=80), st.integers(1, 600))
def test_batches_hold_every_row_once_and_keep_the_budget(lengths: list[int], budget: int) -> None:
    made = list(batches(lengths, budget))
    assert sorted(index for batch in made for index in batch) == list(range(len(lengths)))
    for batch in made:
        assert batch
        assert len(batch) == 1 or len(batch) * max(lengths[i] for i in batch) <= budget
