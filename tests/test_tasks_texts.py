"""Tasks of text encoders: transformers' own tokenizers, models and pipelines are the oracle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as tf

from ipfs_accelerate_node.errors import InferenceFailed, InvalidInput, PayloadTooLarge
from ipfs_accelerate_node.inference.model import Entities, Fills, Ids, Item, Options, Pair, Scores, Text, Vector
from ipfs_accelerate_node.inference.tasks.embedding import TextEmbedding
from ipfs_accelerate_node.inference.tasks.text_graphs import TextGraph
from ipfs_accelerate_node.inference.tasks.texts import TextTokens
from ipfs_accelerate_node.inference.tasks.tokenizer_files import read_tokenizer
from tests.support.models import WORDS, tiny_model, tiny_tokenizer, write_json, write_tokenizer
from tests.support.models_tasks import (
    LABELS,
    ScriptedEngine,
    bert_config,
    infer,
    loaded,
    random_model,
    saved,
)

SENTENCES = ["the cat sat on the mat", "hello world", "one two three", "Café — naïve!", "mat", "hello cat, hello mat"]
PAIRS = [("the cat", "sat on the mat"), ("hello", "world one two three"), ("one two three", "cat"), ("a", "b")]


def bert_tokenizer() -> Any:
    """With types for pairs and a decoder, as BERT's has it; ``[MASK]`` takes the place of the last word."""
    from tokenizers import decoders, processors

    tokenizer = tiny_tokenizer()
    cls, sep = ("[CLS]", WORDS.index("[CLS]")), ("[SEP]", WORDS.index("[SEP]"))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS]:0 $A:0 [SEP]:0", pair="[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1", special_tokens=[cls, sep]
    )
    tokenizer.decoder = decoders.WordPiece(prefix="##")
    tokenizer.add_special_tokens(["[MASK]"])
    return tokenizer


NAMES: dict[str, object] = {
    "model_input_names": ["input_ids", "token_type_ids", "attention_mask"],
    "mask_token": "[MASK]",
    "pad_token": "[PAD]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "unk_token": "[UNK]",
}


def classifier(directory: Path, *, labels: int = 3, **changes: Any) -> Path:
    names = {index: f"label {index}" for index in range(labels)}
    config = bert_config(num_labels=labels, id2label=names, **changes)
    model = random_model(tf.BertForSequenceClassification, config, spread=3.0)
    return saved(directory, model, bert_tokenizer(), model_max_length=24, **NAMES)


def pipeline(directory: Path, task: str, cls: Any) -> Any:
    tokenizer = tf.PreTrainedTokenizerFast.from_pretrained(directory)
    return tf.pipeline(task, model=cls.from_pretrained(directory), tokenizer=tokenizer, device="cpu")


@pytest.mark.parametrize(
    ("labels", "problem"),
    [(3, None), (1, None), (3, "multi_label_classification"), (2, "single_label_classification"), (2, "regression")],
)
def test_text_classification_is_the_pipelines(tmp_path: Path, labels: int, problem: str | None) -> None:
    directory = classifier(tmp_path / "model", labels=labels, problem_type=problem)
    found = loaded(directory, "text-classification")
    oracle = pipeline(directory, "text-classification", tf.BertForSequenceClassification)
    items: list[Item] = [*(Text(text) for text in SENTENCES), *(Pair(*pair) for pair in PAIRS)]
    asked = [*SENTENCES, *({"text": first, "text_pair": second} for first, second in PAIRS)]
    for output, text in zip(infer(found, items), asked, strict=True):
        expected = oracle(text, top_k=None, truncation=True)
        assert isinstance(output, Scores)
        assert [score.label for score in output.items] == [score["label"] for score in expected]
        np.testing.assert_allclose(
            [score.score for score in output.items], [score["score"] for score in expected], atol=2e-6
        )
    assert len(infer(found, items[:1], top_k=1)[0].items) == 1  # type: ignore[union-attr]


def test_raw_scores_are_logits(tmp_path: Path) -> None:
    directory = classifier(tmp_path / "model")
    (output,) = infer(loaded(directory), [Text("the cat")], raw_scores=True)
    assert isinstance(output, Scores)
    model = tf.BertForSequenceClassification.from_pretrained(directory)
    given = tf.PreTrainedTokenizerFast.from_pretrained(directory)("the cat", return_tensors="pt")
    with torch.inference_mode():
        logits = model(**given).logits[0].numpy()
    np.testing.assert_allclose([s.score for s in output.items], np.sort(logits)[::-1], atol=2e-6)
    np.testing.assert_allclose(loaded(directory)[1].primary(loaded(directory)[2], Text("the cat")), logits, atol=2e-6)


def test_a_reranker_scores_pairs_only(tmp_path: Path) -> None:
    directory = classifier(tmp_path / "model", labels=1)
    found = loaded(directory, "rerank")
    oracle = pipeline(directory, "text-classification", tf.BertForSequenceClassification)
    for pair, output in zip(PAIRS, infer(found, [Pair(*pair) for pair in PAIRS]), strict=True):
        (expected,) = oracle({"text": pair[0], "text_pair": pair[1]}, top_k=None)
        assert isinstance(output, Scores)
        assert output.items[0].score == pytest.approx(expected["score"], abs=2e-6)
    with pytest.raises(InvalidInput, match="rerank takes pair") as caught:
        infer(found, [Pair("a", "b"), Text("a")])
    assert caught.value.detail["index"] == 1


def test_pairs_too_long_lose_of_the_longer_text_first(tmp_path: Path) -> None:
    directory = classifier(tmp_path / "model")
    _, processing, _ = found = loaded(directory)
    pair = Pair("the cat sat on the mat " * 5, "hello world")
    (row,) = processing.graph.rows([pair], Options())  # type: ignore[attr-defined]
    expected = tf.PreTrainedTokenizerFast.from_pretrained(directory)(
        pair.first, pair.second, truncation=True, max_length=24
    )
    assert row.ids == expected["input_ids"]
    assert row.types == expected["token_type_ids"]
    (output,) = infer(found, [pair])
    assert output.truncated
    assert output.tokens_in == 24
    with pytest.raises(PayloadTooLarge, match="longer than the model's 24 tokens"):
        infer(found, [Text("a"), pair], truncate=False)


def test_entities_are_the_pipelines(tmp_path: Path) -> None:
    config = bert_config(num_labels=len(LABELS), id2label=dict(enumerate(LABELS)))
    model = random_model(tf.BertForTokenClassification, config, seed=4, spread=4.0)
    directory = saved(tmp_path / "model", model, bert_tokenizer(), **NAMES)
    oracle = pipeline(directory, "token-classification", tf.BertForTokenClassification)
    texts = [*SENTENCES, "The  CAT, (the mat)…  sat on\tone"]
    seen = 0
    for text, output in zip(texts, infer(loaded(directory), [Text(text) for text in texts]), strict=True):
        expected = oracle(text, aggregation_strategy="simple")
        assert isinstance(output, Entities)
        assert [(e.label, e.start, e.end) for e in output.items] == [
            (e["entity_group"], e["start"], e["end"]) for e in expected
        ]
        np.testing.assert_allclose([e.score for e in output.items], [e["score"] for e in expected], atol=2e-6)
        assert all(e.text == text[e.start : e.end] for e in output.items)
        seen += len(expected)
    assert seen > len(texts)


def masked(directory: Path) -> Path:
    model = random_model(tf.BertForMaskedLM, bert_config(), spread=2.0)
    model.resize_token_embeddings(len(WORDS) + 1)
    return saved(directory, model, bert_tokenizer(), clean_up_tokenization_spaces=True, **NAMES)


def test_fills_are_the_pipelines(tmp_path: Path) -> None:
    directory = masked(tmp_path / "model")
    oracle = pipeline(directory, "fill-mask", tf.BertForMaskedLM)
    texts = ["the [MASK] sat on the mat.", "[MASK] world , hello", "the cat [MASK]"]
    found = loaded(directory, "fill-mask")
    for text, output in zip(texts, infer(found, [Text(text) for text in texts], top_k=4), strict=True):
        expected = oracle(text, top_k=4)
        assert isinstance(output, Fills)
        assert [(f.token_id, f.token, f.text) for f in output.items] == [
            (f["token"], f["token_str"], f["sequence"]) for f in expected
        ]
        np.testing.assert_allclose([f.score for f in output.items], [f["score"] for f in expected], atol=2e-6)


def test_two_masks_have_candidates_each(tmp_path: Path) -> None:
    directory = masked(tmp_path / "model")
    expected = pipeline(directory, "fill-mask", tf.BertForMaskedLM)("the [MASK] sat [MASK]", top_k=2)
    (output,) = infer(loaded(directory, "fill-mask"), [Text("the [MASK] sat [MASK]")], top_k=2)
    assert isinstance(output, Fills)
    assert [f.text for f in output.items] == [f["sequence"] for row in expected for f in row]


def test_a_text_without_a_mask_is_refused_with_its_index(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"no mask; it is written \[MASK\]") as caught:
        infer(loaded(masked(tmp_path / "model"), "fill-mask"), [Text("the [MASK]"), Text("the cat")])
    assert caught.value.detail["index"] == 1


def test_vectors_are_the_same_for_a_text_its_ids_and_in_any_batch(tmp_path: Path) -> None:
    found = loaded(tiny_model(tmp_path / "model"))
    ids = tiny_tokenizer().encode("the cat sat").ids
    outputs = infer(found, [Text("the cat sat"), Ids(tuple(ids)), *(Text(text) for text in SENTENCES)])
    first = outputs[0]
    (alone,) = infer(found, [Text("the cat sat")])
    assert all(isinstance(output, Vector) for output in outputs)
    assert isinstance(first, Vector)
    for other in (outputs[1], alone):
        assert isinstance(other, Vector)
        np.testing.assert_allclose(other.values, first.values, atol=1e-6)
    assert first.tokens_in == len(ids)


def test_dimensions_cut_and_normalise_again_unless_told_otherwise(tmp_path: Path) -> None:
    found = loaded(tiny_model(tmp_path / "model"))

    def vector(**options: Any) -> np.ndarray[Any, Any]:
        (output,) = infer(found, [Text("the cat sat")], **options)
        assert isinstance(output, Vector)
        return output.values

    pooled = vector(normalize=False)
    assert np.linalg.norm(pooled) != pytest.approx(1)
    np.testing.assert_allclose(vector(), pooled / np.linalg.norm(pooled), atol=1e-6)
    np.testing.assert_allclose(vector(dimensions=4), pooled[:4] / np.linalg.norm(pooled[:4]), atol=1e-6)
    np.testing.assert_allclose(vector(dimensions=4, normalize=False), pooled[:4], atol=1e-6)
    with pytest.raises(InvalidInput, match="1 to 16"):
        vector(dimensions=17)


def test_prompts_of_the_author_go_before_the_text(tmp_path: Path) -> None:
    directory = tiny_model(tmp_path / "model")
    write_json(
        directory / "config_sentence_transformers.json",
        {"prompts": {"query": "one two ", "passage": ""}, "default_prompt_name": "query"},
    )
    _, processing, engine = found = loaded(directory)

    def vector(text: str, **options: Any) -> np.ndarray[Any, Any]:
        (output,) = infer(found, [Text(text)], **options)
        assert isinstance(output, Vector)
        return output.values

    np.testing.assert_array_equal(vector("cat"), vector("one two cat", prompt_name="passage"))
    np.testing.assert_array_equal(vector("cat", prompt_name="query"), vector("cat"))
    assert not np.allclose(vector("cat"), vector("cat", prompt_name="passage"))
    np.testing.assert_array_equal(processing.primary(engine, Text("cat")), vector("cat"))
    with pytest.raises(InvalidInput, match="query, passage"):
        vector("cat", prompt_name="none")


def test_outputs_that_are_no_numbers_are_a_failure_with_the_index(tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    tokens = TextTokens(read_tokenizer(tmp_path, model_type="bert"), max_tokens=20, vocab_size=len(WORDS))

    def vectors(inputs: Any) -> dict[str, Any]:
        found = np.ones((len(inputs["input_ids"]), 3), dtype=np.float32)
        found[inputs["attention_mask"].sum(axis=1) == 3] = np.nan
        return {"vectors": found}

    processing = TextEmbedding(TextGraph("vectors", tokens, 0), {}, "")
    with pytest.raises(InferenceFailed) as caught:
        processing.infer(
            ScriptedEngine(vectors=vectors),
            [Text("the cat"), Text("one two three"), Text("mat")],
            Options(),
            lambda: None,
        )
    assert caught.value.detail["index"] == 2


def test_between_is_called_between_passes_and_may_end_the_work(tmp_path: Path) -> None:
    class Left(Exception):
        pass

    calls = 0

    def between() -> None:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise Left

    _, processing, engine = loaded(tiny_model(tmp_path / "model"))
    with pytest.raises(Left):
        processing.infer(engine, [Text("cat " * 38)] * 200, Options(), between)
