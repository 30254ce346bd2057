"""Texts written together on a GPU: what each gets is what transformers gives it alone; speed against the memory's."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from tests.support.models_torch import torch

from ipfs_accelerate_node.inference.torch.decoder import TorchDecoder  # isort: skip - after torch's own warnings
from ipfs_accelerate_node.inference.torch.llama import fits  # isort: skip
from ipfs_accelerate_node.inference.torch.paged_sequences import PagedSequences  # isort: skip

pytestmark = [pytest.mark.cuda, pytest.mark.timeout(300)]

GPU = "cuda:0"
VOCABULARY = 300
TINY: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 3,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "max_position_embeddings": 8192,
}
SMOLLM2_135M: dict[str, Any] = {
    "vocab_size": 49152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
}
LLAMA_7B: dict[str, Any] = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "max_position_embeddings": 4096,
}


def made(kind: str, sizes: dict[str, Any], dtype: torch.dtype = torch.bfloat16, **changes: Any) -> Any:
    """A model of random weights, made on the card."""
    import transformers

    config = getattr(transformers, f"{kind}Config")(**sizes, **changes, attn_implementation="sdpa")
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(GPU):
            module = getattr(transformers, f"{kind}ForCausalLM")(config)
    finally:
        torch.set_default_dtype(before)
    return module.eval().requires_grad_(False)


def whole(module: Any, ids: list[int]) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Scores after the last token, by transformers' own pass over all of them."""
    with torch.inference_mode():
        scores: np.ndarray[Any, np.dtype[np.float32]] = (
            module(input_ids=torch.tensor([ids], device=GPU), use_cache=False).logits[0, -1].float().cpu().numpy()
        )
    return scores


@pytest.fixture(autouse=True)
def empty_card() -> Iterator[None]:
    yield
    torch.cuda.empty_cache()


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("Llama", {}),
        ("Llama", {"num_key_value_heads": 8, "attention_bias": True, "mlp_bias": True}),
        ("Llama", {"rope_parameters": {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0,
                                       "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                                       "original_max_position_embeddings": 1024}}),
        ("Mistral", {"sliding_window": None}),
        ("Qwen2", {}),
        ("Qwen3", {"head_dim": 32}),
    ],
)  # fmt: skip
def test_each_text_gets_what_it_gets_alone(kind: str, changes: dict[str, Any]) -> None:
    module = made(kind, TINY | changes)
    assert fits(module, 8192)
    sequences = PagedSequences(module, limit=8192)
    random = np.random.default_rng(0)
    texts = {
        number: random.integers(0, VOCABULARY, size).tolist() for number, size in enumerate((1, 63, 64, 65, 300, 3000))
    }
    places: dict[int, int] = {}
    joins = {0: [0, 1], 3: [2, 3, 4], 5: [5]}  # after which step a text comes
    for turn in range(70):
        for number in joins.get(turn, ()):
            place = sequences.open(len(texts[number]) + 80)
            assert place is not None
            places[number] = place
            first = sequences.read(place, texts[number], scores=True)
            close_to(first.scores[0], whole(module, texts[number]))
            assert first.best[0] == first.scores[0].argmax()
        numbers = list(places)
        tokens = random.integers(0, VOCABULARY, len(numbers)).tolist()
        for number, token in zip(numbers, tokens, strict=True):
            texts[number].append(token)
        found = sequences.step([places[number] for number in numbers], tokens, scores=range(len(numbers)))
        if turn % 16 == 0 or turn == 69:
            for row, number in enumerate(numbers):
                close_to(found.scores[row], whole(module, texts[number]))
        if turn == 40:
            sequences.close(places.pop(1))
            again = sequences.open(10)  # into pages that were another's
            assert again is not None
            texts[1], places[1] = [7, 8, 9], again
            sequences.read(again, texts[1], scores=False)
        if turn == 42:
            sequences.close(places.pop(1))


def close_to(found: np.ndarray[Any, Any], wanted: np.ndarray[Any, Any]) -> None:
    """Within what bf16 leaves of scores of this size."""
    assert np.abs(found - wanted).max() < 0.05 * np.abs(wanted).max() + 0.02


def test_windows_and_other_architectures_go_another_way() -> None:
    assert not fits(made("Mistral", TINY, sliding_window=512), 8192)
    assert fits(made("Mistral", TINY, sliding_window=8192), 8192)
    assert not fits(made("Llama", TINY, dtype=torch.float32), 8192)
    assert not fits(made("Llama", TINY | {"hidden_size": 96, "num_attention_heads": 8}), 8192)


def median_s(call: Callable[[], object], rounds: int) -> float:
    for _ in range(3):
        call()
    spent = []
    for _ in range(rounds):
        began = time.perf_counter()
        call()
        spent.append(time.perf_counter() - began)
    return float(np.median(spent))


def stepping(module: Any, texts: int, *, prompt: int = 128) -> float:
    """Seconds of one step of so many texts, the choice of the best token included."""
    sequences = PagedSequences(module, limit=2048)
    places = []
    for number in range(texts):
        place = sequences.open(prompt + 200)
        assert place is not None
        sequences.read(place, [number + 1] * prompt, scores=False)
        places.append(place)
    tokens = [1] * texts

    def step() -> None:
        nonlocal tokens
        tokens = sequences.step(places, tokens).best.tolist()

    return median_s(step, 100)


def copy_bytes_per_s() -> float:
    source = torch.empty(2 << 30, dtype=torch.uint8, device=GPU)
    target = torch.empty_like(source)

    def copy() -> None:
        target.copy_(source)
        torch.cuda.synchronize()

    return 2 * (2 << 30) / median_s(copy, 20)


def test_a_step_of_7b_reads_the_weights_at_the_speed_of_memory(figure: Callable[[str], None]) -> None:
    bandwidth = copy_bytes_per_s()
    module = made("Llama", LLAMA_7B)
    read = sum(p.numel() * p.element_size() for name, p in module.named_parameters() if "embed_tokens" not in name)
    for texts in (1, 8, 32):
        spent = stepping(module, texts)
        figure(
            f"7B of random bf16 weights, {texts} texts: {spent * 1e3:.2f} ms a step, {texts / spent:.0f} tokens/s, "
            f"{read / spent / bandwidth:.3f} of the copy bandwidth ({bandwidth / 1e9:.0f} GB/s)"
        )


def test_a_small_model_against_eager_transformers(figure: Callable[[str], None]) -> None:
    module = made("Llama", SMOLLM2_135M)
    decoder = TorchDecoder(module, device=torch.device(GPU), dtype=torch.bfloat16)
    decoder.start(None)
    mask = np.ones((1, 128), dtype=np.int64)
    decoder.step(np.ones((1, 128), dtype=np.int64), mask)

    def eager() -> None:
        nonlocal mask
        mask = np.ones((1, mask.shape[1] + 1), dtype=np.int64)
        decoder.step(np.ones((1, 1), dtype=np.int64), mask).argmax()

    torch.set_num_threads(4)  # as workers are started; by itself torch takes one for each core of the host
    before = median_s(eager, 30)
    for texts in (1, 8, 64):
        spent = stepping(module, texts)
        figure(
            f"135M of random bf16 weights, {texts} texts: {texts / spent:.0f} tokens/s; eager, one: {1 / before:.0f}"
        )
