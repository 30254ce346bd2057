"""A model's tokenizer, out of the files that its author may have left, and the names of its special tokens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from ipfs_accelerate_node.errors import ModelUnsupported
from ipfs_accelerate_node.inference.strict_json import JsonObject, parse_object, read_bytes, read_object

MAX_TOKENIZER_BYTES = 64 << 20

_NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_WORDPIECE_MODELS = frozenset({"bert", "distilbert", "electra", "mobilebert", "squeezebert", "convbert", "ernie"})
# Byte-level BPE without a tokenizer.json: model type → (begin, end) around every text, or none.
_BYTE_LEVEL_ENDS: Mapping[str, tuple[str, str] | None] = {
    "gpt2": None,
    "gpt_neo": None,
    "gptj": None,
    "opt": ("</s>", ""),
    "whisper": None,
    "roberta": ("<s>", "</s>"),
    "bart": ("<s>", "</s>"),
}
_CLIP_WORDS = r"""'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"""


@dataclass(frozen=True, slots=True)
class TokenizerFiles:
    """special: ``bos_token``, ``eos_token``, … → how it is written. clean_up: spaces before punctuation are taken out
    of decoded text. truncate_left: the beginning of what is too long is cut, not its end. config: all of
    tokenizer_config.json."""

    tokenizer: Tokenizer
    special: Mapping[str, str]
    clean_up: bool
    truncate_left: bool
    config: JsonObject = field(repr=False)

    def id_of(self, name: str) -> int | None:
        """The id of a special token by its role, None where the model has none."""
        written = self.special.get(name)
        return None if written is None else self.tokenizer.token_to_id(written)


def read_tokenizer(directory: Path, *, model_type: str) -> TokenizerFiles:
    """tokenizer.json, else vocab.txt of WordPiece, else vocab.json and merges.txt of a byte-level BPE.

    Raises ModelUnsupported(bad_config): none of them is there, or what is there is of no use; the library's own bare
    Exception for a tokenizer.json that it cannot read.
    """
    config = _optional(directory / "tokenizer_config.json")
    special = _special_tokens(config, _optional(directory / "special_tokens_map.json"))
    tokenizer = _read(directory, model_type, config, special)
    tokenizer.no_padding()
    tokenizer.no_truncation()
    clean_up = config.get("clean_up_tokenization_spaces") is True and not isinstance(tokenizer.model, models.BPE)
    return TokenizerFiles(tokenizer, special, clean_up, config.get("truncation_side") == "left", config)


def _optional(path: Path) -> JsonObject:
    return read_object(path) if path.exists() else {}


def _special_tokens(*configs: JsonObject) -> dict[str, str]:
    special: dict[str, str] = {}
    for config in configs:
        for name in _NAMES:
            value = config.get(name)
            if isinstance(value, dict):
                value = value.get("content")
            if isinstance(value, str) and value and name not in special:
                special[name] = value
    return special


def _read(directory: Path, model_type: str, config: JsonObject, special: Mapping[str, str]) -> Tokenizer:
    described, words = directory / "tokenizer.json", directory / "vocab.txt"
    if described.exists():
        data = read_bytes(described, max_bytes=MAX_TOKENIZER_BYTES, code="bad_config")
        parse_object(data, what=described.name, code="bad_config")
        return Tokenizer.from_buffer(data)
    if words.exists() and model_type in _WORDPIECE_MODELS:
        listed = read_bytes(words, max_bytes=MAX_TOKENIZER_BYTES, code="bad_config").decode("utf-8", "replace")
        return wordpiece(listed, lower_case=config.get("do_lower_case", True) is not False)
    if (directory / "vocab.json").exists() and (directory / "merges.txt").exists():
        if model_type in _BYTE_LEVEL_ENDS:
            return _byte_level(directory, config, special, _BYTE_LEVEL_ENDS[model_type])
        if model_type == "clip":
            return _clip(directory)
    raise ModelUnsupported(
        "no tokenizer.json (nor a WordPiece vocab.txt, nor vocab.json and merges.txt) beside the weights",
        code="bad_config",
    )


def wordpiece(vocabulary: str, *, lower_case: bool) -> Tokenizer:
    """BERT's own tokenizer from its vocab.txt, one piece per line. Source: BertTokenizer in transformers.

    Raises ModelUnsupported(bad_config): a special token is missing.
    """
    ids = {word.rstrip("\r"): index for index, word in enumerate(vocabulary.removesuffix("\n").split("\n"))}
    if missing := {"[UNK]", "[CLS]", "[SEP]"} - ids.keys():
        raise ModelUnsupported(f"vocab.txt lacks {', '.join(sorted(missing))}", code="bad_config")
    tokenizer = Tokenizer(models.WordPiece(ids, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lower_case)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix="##")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS]:0 $A:0 [SEP]:0",
        pair="[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1",
        special_tokens=[("[CLS]", ids["[CLS]"]), ("[SEP]", ids["[SEP]"])],
    )
    tokenizer.add_special_tokens([word for word in ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]") if word in ids])
    return tokenizer


def _vocabulary_and_merges(directory: Path) -> tuple[dict[str, int], list[tuple[str, str]]]:
    listed = read_object(directory / "vocab.json", max_bytes=MAX_TOKENIZER_BYTES)
    vocabulary = {word: index for word, index in listed.items() if type(index) is int and index >= 0}
    if len(vocabulary) != len(listed) or not vocabulary:
        raise ModelUnsupported("vocab.json: not a table of tokens and their ids", code="bad_config")
    text = read_bytes(directory / "merges.txt", max_bytes=MAX_TOKENIZER_BYTES, code="bad_config").decode("utf-8")
    merges = [tuple(line.split(" ")) for line in text.split("\n") if line and not line.startswith("#version")]
    pairs = [(pair[0], pair[1]) for pair in merges if len(pair) == 2]
    if len(pairs) != len(merges):
        raise ModelUnsupported("merges.txt: a line is not a pair", code="bad_config")
    return vocabulary, pairs


def _byte_level(
    directory: Path, config: JsonObject, special: Mapping[str, str], ends: tuple[str, str] | None
) -> Tokenizer:
    """GPT-2's kind. Source: GPT2Tokenizer and RobertaTokenizer in transformers."""
    vocabulary, merges = _vocabulary_and_merges(directory)
    prefixed = config.get("add_prefix_space") is True
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, continuing_subword_prefix="", end_of_word_suffix=""))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefixed)
    tokenizer.decoder = decoders.ByteLevel()
    _add_named(tokenizer, directory, special)
    if ends is None:
        tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
        return tokenizer
    begin, end = (word and (word, _known(tokenizer, word)) for word in ends)
    if begin and end:
        tokenizer.post_processor = processors.RobertaProcessing(
            end, begin, trim_offsets=True, add_prefix_space=prefixed
        )
    elif begin:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{begin[0]}:0 $A:0", pair=f"{begin[0]}:0 $A:0 {begin[0]}:1 $B:1", special_tokens=[begin]
        )
    return tokenizer


def _add_named(tokenizer: Tokenizer, directory: Path, special: Mapping[str, str]) -> None:
    added = _optional(directory / "added_tokens.json")
    for word, _ in sorted(added.items(), key=lambda pair: str(pair[1]).zfill(9)):
        tokenizer.add_tokens([AddedToken(word, normalized=False, special=word.startswith("<|"))])
    for name, word in special.items():
        # only RoBERTa's and BART's mask swallows the space before it
        tokenizer.add_special_tokens([AddedToken(word, lstrip=name == "mask_token", normalized=False)])


def _known(tokenizer: Tokenizer, word: str) -> int:
    found = tokenizer.token_to_id(word)
    if found is None:
        raise ModelUnsupported(f"vocab.json lacks {word}", code="bad_config")
    return int(found)


def _clip(directory: Path) -> Tokenizer:
    """Source: CLIPTokenizer in transformers."""
    vocabulary, merges = _vocabulary_and_merges(directory)
    begin, end = "<|startoftext|>", "<|endoftext|>"
    tokenizer = Tokenizer(
        models.BPE(
            vocabulary, merges, continuing_subword_prefix="", end_of_word_suffix="</w>", fuse_unk=False, unk_token=end
        )
    )
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_CLIP_WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([begin, end])
    ends = ((end, _known(tokenizer, end)), (begin, _known(tokenizer, begin)))
    tokenizer.post_processor = processors.RobertaProcessing(*ends, add_prefix_space=False, trim_offsets=False)
    return tokenizer
