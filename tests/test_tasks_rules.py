"""What may come next, and the choice among it: transformers' logits processors and warpers are the oracle."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import generation as tf

from ipfs_accelerate_node.errors import ModelUnsupported
from ipfs_accelerate_node.inference.model import Options
from ipfs_accelerate_node.inference.tasks.generation_settings import (
    DEFAULT_NEW_TOKENS,
    GenerationSettings,
    read_generation,
)
from ipfs_accelerate_node.inference.tasks.rules import Rules, choice, greedy, kept

VOCABULARY = 12
EOS = (1, 3)
LIMIT = 9

tokens = st.integers(0, VOCABULARY - 1)
some = st.lists(tokens, max_size=4).map(tuple)
settings_ = st.fixed_dictionaries(
    {
        "min_length": st.integers(0, 6),
        "min_new_tokens": st.integers(0, 6),
        "forced_bos": st.none() | tokens,
        "forced_eos": st.just(()) | tokens.map(lambda token: (token,)),
        "suppress": some,
        "begin_suppress": some,
        "bad_words": st.lists(st.lists(tokens, min_size=1, max_size=3).map(tuple), max_size=3).map(tuple),
        "repetition_penalty": st.sampled_from([1.0, 1.3, 0.7]),
        "no_repeat_ngram": st.integers(0, 3),
        "encoder_no_repeat_ngram": st.integers(0, 3),
    }
)


def oracle(said: dict[str, Any], prompt: int, source: list[int]) -> tf.LogitsProcessorList:
    """In the order of ``GenerationMixin._get_logits_processor``."""
    found = tf.LogitsProcessorList()
    if said["repetition_penalty"] != 1.0:
        found.append(tf.RepetitionPenaltyLogitsProcessor(said["repetition_penalty"]))
    if said["no_repeat_ngram"]:
        found.append(tf.NoRepeatNGramLogitsProcessor(said["no_repeat_ngram"]))
    if said["encoder_no_repeat_ngram"]:
        found.append(tf.EncoderNoRepeatNGramLogitsProcessor(said["encoder_no_repeat_ngram"], torch.tensor([source])))
    words = [list(word) for word in said["bad_words"] if not (len(word) == 1 and word[0] in EOS)]
    if words:
        found.append(tf.NoBadWordsLogitsProcessor(words, None))
    if said["min_length"]:
        found.append(tf.MinLengthLogitsProcessor(said["min_length"], list(EOS)))
    if said["min_new_tokens"]:
        found.append(tf.MinNewTokensLengthLogitsProcessor(prompt, said["min_new_tokens"], list(EOS)))
    if said["forced_bos"] is not None:
        found.append(tf.ForcedBOSTokenLogitsProcessor(said["forced_bos"]))
    if said["forced_eos"]:
        found.append(tf.ForcedEOSTokenLogitsProcessor(LIMIT, list(said["forced_eos"])))
    if said["suppress"]:
        found.append(tf.SuppressTokensLogitsProcessor(list(said["suppress"])))
    if said["begin_suppress"]:
        begin = prompt if prompt > 1 or said["forced_bos"] is None else prompt + 1
        found.append(tf.SuppressTokensAtBeginLogitsProcessor(list(said["begin_suppress"]), begin))
    return found


@settings(max_examples=200, deadline=None)
@given(
    said=settings_, prompt=st.integers(1, 3), history=st.lists(tokens, min_size=3, max_size=LIMIT - 1),
    source=st.lists(tokens, min_size=4, max_size=8), seed=st.integers(0, 99),
)  # fmt: skip
def test_rules_are_those_of_transformers(
    said: dict[str, Any], prompt: int, history: list[int], source: list[int], seed: int
) -> None:
    scores = np.random.default_rng(seed).normal(0, 3, VOCABULARY).astype(np.float32)
    expected = oracle(said, prompt, source)(torch.tensor([history]), torch.tensor(scores)[None])[0].numpy()
    words = tuple(word for word in said["bad_words"] if not (len(word) == 1 and word[0] in EOS))
    rules = Rules(GenerationSettings(0, EOS, 0, **{**said, "bad_words": words}), prompt, LIMIT, source)
    np.testing.assert_array_equal(rules.apply(history, scores.copy()), expected)


def test_the_first_token_is_forced_and_what_may_not_begin_is_suppressed_after_it() -> None:
    rules = Rules(GenerationSettings(2, EOS, 0, forced_bos=5, begin_suppress=(6, 7)), 1, 9)
    scores = np.zeros(VOCABULARY, dtype=np.float32)
    assert greedy(rules.apply([2], scores.copy())) == 5
    assert np.flatnonzero(np.isneginf(rules.apply([2, 5], scores.copy()))).tolist() == [6, 7]
    assert np.isfinite(rules.apply([2, 5, 8], scores.copy())).all()


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 999), temperature=st.sampled_from([0.3, 0.7, 1.0, 2.5]), top_k=st.none() | st.integers(1, 15),
    top_p=st.none() | st.sampled_from([0.05, 0.3, 0.8, 0.95, 1.0]),
)  # fmt: skip
def test_what_is_drawn_from_is_what_transformers_draws_from(
    seed: int, temperature: float, top_k: int | None, top_p: float | None
) -> None:
    scores = np.random.default_rng(seed).normal(0, 2, VOCABULARY).astype(np.float32)
    warpers = tf.LogitsProcessorList([tf.TemperatureLogitsWarper(temperature)] if temperature != 1 else [])
    if top_k:
        warpers.append(tf.TopKLogitsWarper(top_k))
    if top_p is not None and top_p < 1:
        warpers.append(tf.TopPLogitsWarper(top_p))
    warped = warpers(torch.zeros(1, 1, dtype=torch.long), torch.tensor(scores)[None])
    expected = torch.softmax(warped, dim=-1)[0].numpy()
    found = np.zeros(VOCABULARY)
    ids, weights = kept(scores, Options(temperature=temperature, top_k=top_k, top_p=top_p))
    found[ids] = weights
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_draws_follow_the_probabilities() -> None:
    scores = np.log(np.array([0.5, 0.3, 0.2], dtype=np.float32))
    draw = choice(Options(temperature=1.0, seed=7), 0)
    counts = Counter(draw(scores) for _ in range(20_000))
    assert [counts[token] / 20_000 for token in range(3)] == pytest.approx([0.5, 0.3, 0.2], abs=0.015)


def test_a_seed_draws_the_same_again_other_items_and_no_seed_do_not() -> None:
    scores = np.zeros(1000, dtype=np.float32)

    def drawn(options: Options, index: int = 0) -> list[int]:
        draw = choice(options, index)
        return [draw(scores) for _ in range(8)]

    seeded = Options(temperature=1.0, seed=5)
    assert drawn(seeded) == drawn(seeded)
    assert drawn(seeded) != drawn(seeded, index=1)
    assert drawn(seeded) != drawn(Options(temperature=1.0, seed=6))
    assert drawn(Options(temperature=1.0)) != drawn(Options(temperature=1.0))


@pytest.mark.parametrize("temperature", [None, 0, 0.0])
def test_without_a_temperature_the_best_wins_of_equals_the_first(temperature: float | None) -> None:
    draw = choice(Options(temperature=temperature, top_k=3, seed=1), 0)
    assert draw(np.array([0, 2, 2, 1], dtype=np.float32)) == 1


def test_never_possible_tokens_are_never_drawn() -> None:
    scores = np.full(50, -np.inf, dtype=np.float32)
    scores[[7, 30]] = 1.0
    draw = choice(Options(temperature=5.0), 0)
    assert {draw(scores) for _ in range(200)} == {7, 30}


def read(generation: dict[str, object], config: dict[str, object] | None = None) -> GenerationSettings:
    return read_generation(config or {}, generation, vocab_size=100, eos_id=9)


def test_settings_come_from_generation_config_else_from_config() -> None:
    both = read({"eos_token_id": [4, 5], "pad_token_id": 0}, {"eos_token_id": 6, "decoder_start_token_id": 7})
    assert (both.eos, both.pad, both.start) == ((4, 5), 0, 7)
    old = read({}, {"eos_token_id": 6, "max_length": 33, "forced_bos_token_id": 2, "decoder_start_token_id": 0})
    assert (old.eos, old.pad, old.start, old.max_length, old.forced_bos) == ((6,), 6, 0, 33, 2)
    assert read({}).eos == (9,)
    assert read({"max_length": 20}).eos == (9,)


def test_limits_of_an_answer() -> None:
    assert read({}).limit(5, None, positions=1000) == 5 + DEFAULT_NEW_TOKENS
    assert read({}).limit(5, 10, positions=1000) == 15
    assert read({}).limit(5, 10, positions=12) == 12
    assert read({"max_length": 40}).limit(5, None, positions=1000) == 40
    assert read({"max_length": 4}).limit(5, None, positions=1000) == 5 + DEFAULT_NEW_TOKENS
    assert read({"max_length": 40, "max_new_tokens": 3}).limit(5, None, positions=1000) == 8


def test_what_is_not_followed_is_named() -> None:
    notes = read({"num_beams": 4, "guidance_scale": 2.0, "bad_words_ids": [[9], [3]]}).notes
    assert [note.split()[0] for note in notes] == ["num_beams", "guidance_scale"]
    assert read({"num_beams": 1, "guidance_scale": None}).notes == ()
    assert read({"bad_words_ids": [[9], [3]]}).bad_words == ((3,),)


@pytest.mark.parametrize(
    "said",
    [
        {"eos_token_id": 100},
        {"eos_token_id": [1, "2"]},
        {"eos_token_id": -5},
        {"pad_token_id": True},
        {"suppress_tokens": {"a": 1}},
        {"bad_words_ids": [[]]},
        {"bad_words_ids": [[1000]]},
        {"forced_decoder_ids": [[1, 1000]]},
        {"forced_decoder_ids": [1, 2]},
        {"max_length": "20"},
        {"max_length": -1},
        {"max_new_tokens": 1 << 40},
        {"repetition_penalty": 0},
        {"repetition_penalty": "1.2"},
        {"no_repeat_ngram_size": 1.5},
    ],
)
def test_settings_of_no_use_are_refused(said: dict[str, object]) -> None:
    with pytest.raises(ModelUnsupported) as caught:
        read(said)
    assert caught.value.code == "bad_config"
