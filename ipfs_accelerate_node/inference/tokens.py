"""Text to token ids, by the tokenizers library alone: what transformers' fast tokenizers call underneath."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from ipfs_accelerate_node.errors import BadRequest, InvalidInput, ModelUnsupported, PayloadTooLarge
from ipfs_accelerate_node.inference.model_files import MAX_TOKENIZER_BYTES, ModelFiles
from ipfs_accelerate_node.inference.strict_json import parse_object, read_bytes


@dataclass(frozen=True, slots=True)
class Rows:
    """ids: one list per input, special tokens included, none longer than the model takes. truncated: how many were
    cut."""

    ids: list[list[int]]
    truncated: int


class TextTokens:
    """The tokenizer of one model. Not thread-safe: truncation is a setting of the library's object."""

    def __init__(self, files: ModelFiles) -> None:
        """Reads tokenizer.json, else vocab.txt. Raises ModelUnsupported(bad_config): neither is there, or of no use."""
        self._max_tokens = files.max_tokens
        self._vocab_size = files.encoder.vocab_size
        self._lower_case = files.settings.lower_case
        self._prompt = files.settings.prompt
        self._tokenizer = _load(files)
        self._tokenizer.no_padding()
        if self._tokenizer.num_special_tokens_to_add(is_pair=False) >= self._max_tokens:
            raise ModelUnsupported(f"no room for text within {self._max_tokens} tokens", code="bad_config")
        self._tokenizer.enable_truncation(self._max_tokens)

    def of_texts(self, texts: Sequence[str], *, truncate: bool) -> Rows:
        """Raises, with the text's index, PayloadTooLarge: too long and not to be cut; InvalidInput: no token at all, or
        a token that the model has no row for."""
        prepared = [self._prompt + text for text in texts]
        if self._lower_case:
            prepared = [text.lower() for text in prepared]
        encodings = self._tokenizer.encode_batch(prepared, add_special_tokens=True)
        rows: list[list[int]] = []
        truncated = 0
        for index, encoding in enumerate(encodings):
            if encoding.overflowing:
                truncated += 1
                if not truncate:
                    self._refuse(index, f"is longer than the model's {self._max_tokens} tokens", PayloadTooLarge)
            rows.append(encoding.ids)
        return self._checked(rows, truncated)

    def of_ids(self, inputs: Sequence[Sequence[int]], *, truncate: bool) -> Rows:
        """Token ids as they are: no special tokens are added. Raises as ``of_texts``."""
        rows: list[list[int]] = []
        truncated = 0
        for index, ids in enumerate(inputs):
            if len(ids) > self._max_tokens:
                truncated += 1
                if not truncate:
                    self._refuse(index, f"has {len(ids)} tokens, the model takes {self._max_tokens}", PayloadTooLarge)
            rows.append(list(islice(ids, self._max_tokens)))
        return self._checked(rows, truncated)

    def _checked(self, rows: list[list[int]], truncated: int) -> Rows:
        for index, row in enumerate(rows):
            if not row:
                self._refuse(index, "has no token")
            if min(row) < 0 or max(row) >= self._vocab_size:
                self._refuse(index, f"has a token outside the model's vocabulary of {self._vocab_size}")
        return Rows(rows, truncated)

    @staticmethod
    def _refuse(index: int, why: str, error: type[BadRequest] = InvalidInput) -> None:
        raise error(f"input {index} {why}", param="input", index=index)


def _load(files: ModelFiles) -> Tokenizer:
    described = files.encoder_directory / "tokenizer.json"
    vocabulary = files.encoder_directory / "vocab.txt"
    if described.exists():
        data = read_bytes(described, max_bytes=MAX_TOKENIZER_BYTES, code="bad_config")
        parse_object(data, what=described.name, code="bad_config")
        return Tokenizer.from_buffer(data)
    if vocabulary.exists() and files.encoder.architecture in ("bert", "distilbert", "electra"):
        words = read_bytes(vocabulary, max_bytes=MAX_TOKENIZER_BYTES, code="bad_config").decode("utf-8", "replace")
        return wordpiece(words, lower_case=files.lower_case_vocab)
    raise ModelUnsupported("no tokenizer.json (nor a WordPiece vocab.txt) beside the weights", code="bad_config")


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
    ends = [("[CLS]", ids["[CLS]"]), ("[SEP]", ids["[SEP]"])]
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    tokenizer.add_special_tokens([word for word in ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]") if word in ids])
    return tokenizer
