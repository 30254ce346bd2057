"""Tokenizers out of the files that authors leave: transformers' own are the oracle."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import transformers as tf

from ipfs_accelerate_node.errors import InvalidInput, ModelUnsupported
from ipfs_accelerate_node.inference.tasks.texts import TextTokens
from ipfs_accelerate_node.inference.tasks.tokenizer_files import read_tokenizer
from tests.support.models import WORDS, write_json, write_tokenizer
from tests.support.models_tasks import byte_level

SENTENCES = ["the cat sat on the mat", "hello world", "one two three", "Café — naïve!", "hello cat, hello mat"]


def test_word_pieces_from_vocab_txt_are_those_of_transformers(tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_text("\n".join([*WORDS, "[MASK]", "café", "CAT", "##'"]) + "\n")
    for lower in (True, False):
        write_json(tmp_path / "tokenizer_config.json", {"do_lower_case": lower})
        ours = read_tokenizer(tmp_path, model_type="bert").tokenizer
        theirs = tf.BertTokenizerFast(
            vocab={word: at for at, word in enumerate([*WORDS, "[MASK]", "café", "CAT", "##'"])}, do_lower_case=lower
        )
        compare(ours, theirs, [*SENTENCES, "CAT [MASK] cat", "héllo 世界 cat's"], pairs=True)


def compare(ours: Any, theirs: Any, texts: list[str], *, pairs: bool = False) -> None:
    for text in texts:
        expected = theirs(text)["input_ids"]
        found = ours.encode(text)
        assert found.ids == expected, text
        assert ours.decode(found.ids, skip_special_tokens=True) == theirs.decode(expected, skip_special_tokens=True)
        if pairs:
            both, wanted = ours.encode(text, "the cat"), theirs(text, "the cat")
            assert both.ids == wanted["input_ids"]
            assert both.type_ids == wanted.get("token_type_ids", both.type_ids)


VARIETY = [
    "The weather in Lisbon",
    " two  spaces ",
    "naïve café 🙂\n",
    "it's 123 o'clock!",
    "a",
    "<mask> here",
    "x</s>y",
]
BYTE_LEVEL = {
    "gpt2": (tf.GPT2TokenizerFast, ("<|endoftext|>",), {}),
    "gpt2 with a space": (tf.GPT2TokenizerFast, ("<|endoftext|>",), {"add_prefix_space": True}),
    "roberta": (tf.RobertaTokenizerFast, ("<s>", "<pad>", "</s>", "<unk>", "<mask>"), {}),
    "bart": (tf.BartTokenizerFast, ("<s>", "<pad>", "</s>", "<unk>", "<mask>"), {}),
}


@pytest.mark.parametrize(("cls", "special", "settings"), BYTE_LEVEL.values(), ids=BYTE_LEVEL.keys())
def test_byte_level_from_vocab_and_merges_is_that_of_transformers(
    tmp_path: Path, cls: Any, special: tuple[str, ...], settings: dict[str, object]
) -> None:
    write_vocabulary(tmp_path, byte_level(*special))
    named = {"bos_token": special[0], "eos_token": special[min(2, len(special) - 1)], "unk_token": special[-1]}
    if "<mask>" in special:
        named |= {"unk_token": "<unk>", "pad_token": "<pad>", "mask_token": "<mask>"}
    write_json(tmp_path / "tokenizer_config.json", {**named, **settings})
    theirs = cls(
        vocab=json.loads((tmp_path / "vocab.json").read_text()),
        merges=merges(byte_level(*special)),
        **named,
        **settings,
    )
    model_type = "gpt2" if cls is tf.GPT2TokenizerFast else "roberta"
    compare(read_tokenizer(tmp_path, model_type=model_type).tokenizer, theirs, VARIETY, pairs=model_type == "roberta")


def merges(tokenizer: Any) -> list[tuple[str, str]]:
    return [(first, second) for first, second in json.loads(tokenizer.to_str())["model"]["merges"]]


def write_vocabulary(directory: Path, tokenizer: Any) -> None:
    write_json(directory / "vocab.json", tokenizer.get_vocab())
    lines = "".join(f"{first} {second}\n" for first, second in merges(tokenizer))
    (directory / "merges.txt").write_text("#version: 0.2\n" + lines)


@pytest.mark.parametrize("wish", [{}, {"add_bos_token": True}, {"add_bos_token": False}, {"add_eos_token": True}])
@pytest.mark.parametrize("ends", [True, False])
def test_a_tokenizer_json_is_taken_as_it_is(tmp_path: Path, wish: dict[str, object], ends: bool) -> None:
    from tokenizers import processors

    tokenizer = byte_level("<s>", "</s>")
    if ends:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
        )
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    said = {"bos_token": "<s>", "eos_token": {"content": "</s>", "__type": "AddedToken"}}
    write_json(tmp_path / "tokenizer_config.json", said | wish)
    found = read_tokenizer(tmp_path, model_type="llama")
    compare(found.tokenizer, tf.PreTrainedTokenizerFast.from_pretrained(tmp_path), VARIETY)
    assert (found.id_of("bos_token"), found.id_of("eos_token"), found.id_of("mask_token")) == (0, 1, None)


@pytest.mark.parametrize(
    ("files", "model_type"),
    [
        ({}, "bert"),
        ({"vocab.txt": "[UNK]\n[CLS]\n"}, "bert"),
        ({"vocab.txt": "\n".join(WORDS)}, "roberta"),
        ({"vocab.json": '{"a": "b"}', "merges.txt": ""}, "gpt2"),
        ({"vocab.json": "{}", "merges.txt": ""}, "gpt2"),
        ({"vocab.json": '{"a": 0}', "merges.txt": "a b c\n"}, "gpt2"),
        ({"vocab.json": '{"a": 0}', "merges.txt": ""}, "roberta"),
        ({"vocab.json": '{"a": 0}'}, "gpt2"),
        ({"tokenizer.json": "[]"}, "bert"),
        ({"tokenizer.json": '{"a": 1, "a": 2}'}, "bert"),
    ],
)
def test_tokenizer_files_of_no_use_are_refused(tmp_path: Path, files: dict[str, str], model_type: str) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(ModelUnsupported) as caught:
        read_tokenizer(tmp_path, model_type=model_type)
    assert caught.value.code == "bad_config"


def test_a_token_that_the_model_has_no_row_for_is_refused(tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    tokens = TextTokens(read_tokenizer(tmp_path, model_type="bert"), max_tokens=20, vocab_size=20)
    with pytest.raises(InvalidInput, match="outside the model's vocabulary of 20") as caught:
        tokens.rows([(5, "cat", None)], truncate=True)
    assert caught.value.detail["index"] == 5
    with pytest.raises(InvalidInput, match="outside"):
        tokens.whole(0, "cat")
    with pytest.raises(InvalidInput, match="outside"):
        tokens.of_ids(0, [19, -1], truncate=True)


def test_no_room_for_text_is_a_fault_of_the_model(tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    with pytest.raises(ModelUnsupported, match="no room"):
        TextTokens(read_tokenizer(tmp_path, model_type="bert"), max_tokens=2, vocab_size=100)
