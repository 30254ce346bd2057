"""An answer told while it is written: what is told comes to the answer, whole characters at a time, no stop text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ipfs_accelerate_node.errors import InvalidInput
from ipfs_accelerate_node.inference.model import Options
from ipfs_accelerate_node.inference.tasks.answers import Answer
from ipfs_accelerate_node.inference.tasks.rules import kept, likeliest
from ipfs_accelerate_node.inference.tasks.telling import Telling
from ipfs_accelerate_node.inference.tasks.texts import TextTokens
from ipfs_accelerate_node.inference.tasks.tokenizer_files import read_tokenizer
from tests.support.models import write_json
from tests.support.models_tasks import BUILT, byte_level

BROKEN = "\N{REPLACEMENT CHARACTER}"


@pytest.fixture(scope="module", params=["bytes", "cleaned", "smollm2"])
def tokens(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> TextTokens:
    if request.param == "smollm2":
        return TextTokens(
            read_tokenizer(BUILT / "smollm2-135m", model_type="llama"), max_tokens=4000, vocab_size=50_000
        )
    folder: Path = tmp_path_factory.mktemp("tokenizer")
    byte_level("<pad>", "<s>", "</s>").save(str(folder / "tokenizer.json"))
    cleaned = {"clean_up_tokenization_spaces": request.param == "cleaned"}
    write_json(folder / "tokenizer_config.json", {"eos_token": "</s>", **cleaned})
    return TextTokens(read_tokenizer(folder, model_type="llama"), max_tokens=4000, vocab_size=400)


def told(answer: Answer, ids: list[int], limit: int) -> Iterator[str]:
    telling = Telling(answer)
    for token in ids[:limit]:
        answer.add(token)
        if answer.finish is None and len(answer.ids) == limit:
            answer.finish = "length"
        yield telling.more()
        if answer.finish is not None:
            return


TEXTS = st.text(
    st.one_of(st.characters(codec="utf-8"), st.sampled_from("  ab.,!?'n't\n🙂é👩‍🚀")), min_size=1, max_size=40
)


@pytest.mark.model("smollm2-135m")
@given(TEXTS, TEXTS, st.lists(st.text("ab .n't🙂", min_size=1, max_size=4), max_size=3), st.integers(1, 60))
@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_what_is_told_comes_to_the_answer(
    tokens: TextTokens, prompt: str, text: str, stop: list[str], limit: int
) -> None:
    try:
        after, ids = tokens.whole(0, prompt), tokens.whole(0, text, special=False)
    except InvalidInput:
        return
    answer = Answer(tokens, (2,), tuple(stop), after=after)
    pieces = list(told(answer, ids, min(limit, len(ids))))
    assert answer.finish is not None or len(pieces) == len(ids)
    whole = "".join(pieces)
    final = answer.text()
    assert whole == final or (BROKEN in final and final.startswith(whole))
    for end in stop:
        if answer.finish == "stop":
            assert end not in whole or end in final


@pytest.mark.model("smollm2-135m")
def test_words_come_as_they_are_written(tokens: TextTokens) -> None:
    ids = tokens.whole(0, "The sea is calm today and the sky is clear", special=False)
    pieces = list(told(Answer(tokens, (2,)), ids, len(ids)))
    assert sum(map(bool, pieces)) >= 8


def test_the_likeliest_are_those_of_a_whole_sort() -> None:
    random = np.random.default_rng(0)
    for _ in range(50):
        scores = random.integers(0, 30, 200).astype(np.float64)
        for count in (1, 5, 64, 199, 200, 300):
            assert likeliest(scores, count).tolist() == np.argsort(-scores, kind="stable")[:count].tolist()


@pytest.mark.parametrize("top_p", [0.05, 0.5, 0.9, 0.999, 1.0])
@pytest.mark.parametrize("top_k", [None, 1, 10, 5000])
@pytest.mark.parametrize("spread", [0.01, 1.0, 8.0])
def test_what_is_kept_is_what_a_whole_sort_keeps(top_p: float, top_k: int | None, spread: float) -> None:
    scores = (np.random.default_rng(1).standard_normal(3000) * spread).astype(np.float32)
    options = Options(temperature=0.7, top_p=top_p, top_k=top_k)
    tokens, weights = kept(scores, options)
    order = np.argsort(-scores.astype(np.float64), kind="stable")[: top_k or 3000]
    share = np.exp(scores[order].astype(np.float64) / 0.7 - scores.max() / 0.7)
    share /= share.sum()
    if top_p < 1:
        count = max(1, int((np.cumsum(share) - share < top_p).sum()))
        order, share = order[:count], share[:count] / share[:count].sum()
    assert sorted(tokens.tolist()) == sorted(order.tolist())
    assert np.allclose(np.sort(weights), np.sort(share), atol=1e-9)


def test_a_long_answer_is_not_decoded_whole_for_each_token() -> None:
    class Counted:
        decoded = 0

        def text(self, ids: Sequence[int]) -> str:
            self.decoded += len(ids)
            return "".join(chr(token) for token in ids)

    tokens = Counted()
    answer = Answer(tokens, (), stop=("###", "end"))  # type: ignore[arg-type]
    for token in map(ord, "a#e" * 1000 + "##"):
        answer.add(token)
    assert tokens.decoded < 3002 * 40
    answer.add(ord("#"))
    assert answer.text() == "a#e" * 1000


@pytest.mark.parametrize("temperature", [5e-324, 1e-310, 1e-30])
@pytest.mark.parametrize("how", [{}, {"top_k": 2}, {"top_p": 0.5}])
def test_the_smallest_temperatures_leave_the_likeliest(temperature: float, how: dict[str, Any]) -> None:
    scores = np.array([1.0, 30.0, -np.inf, 29.0], dtype=np.float32)
    found, weights = kept(scores, Options(temperature=temperature, **how))
    assert dict(zip(found.tolist(), weights.tolist(), strict=True))[1] == 1.0
    assert np.isfinite(weights).all()
