"""Requests and replies of text-embeddings-inference, field by field as its own server reads and writes them."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

Mark = Literal["MOCK"] | msgspec.UnsetType
Direction = Literal["Right", "Left", "right", "left"]
Dimensions = Annotated[int, msgspec.Meta(ge=1, le=1 << 16)]
Vectors = list[list[float]]
TokenVectors = list[list[list[float]]]


class EmbedRequest(msgspec.Struct, frozen=True):
    """inputs: a text, texts, token ids, or lists of token ids."""

    inputs: object
    truncate: bool | None = None
    truncation_direction: Direction | None = None
    prompt_name: str | None = None
    normalize: bool | None = None
    dimensions: Dimensions | None = None


class EmbedAllRequest(msgspec.Struct, frozen=True):
    """inputs: as of an EmbedRequest."""

    inputs: object
    truncate: bool | None = None
    truncation_direction: Direction | None = None
    prompt_name: str | None = None


class PredictRequest(msgspec.Struct, frozen=True):
    """inputs: a text, a pair of texts as a list of two, or a batch: a list of lists of one or two texts."""

    inputs: object
    truncate: bool | None = None
    truncation_direction: Direction | None = None
    raw_scores: bool | None = None


class RerankRequest(msgspec.Struct, frozen=True):
    query: str
    texts: list[str]
    truncate: bool | None = None
    truncation_direction: Direction | None = None
    raw_scores: bool | None = None
    return_text: bool | None = None


class SimilarityInputs(msgspec.Struct, frozen=True):
    source_sentence: str
    sentences: list[str]


class SimilarityParameters(msgspec.Struct, frozen=True):
    truncate: bool | None = None
    truncation_direction: Direction | None = None
    prompt_name: str | None = None


class SimilarityRequest(msgspec.Struct, frozen=True):
    inputs: SimilarityInputs
    parameters: SimilarityParameters | None = None


class TokenizeRequest(msgspec.Struct, frozen=True):
    inputs: str | list[str]
    add_special_tokens: bool | None = None
    prompt_name: str | None = None


class DecodeRequest(msgspec.Struct, frozen=True):
    """ids: token ids, or lists of them."""

    ids: list[int | list[int]]
    skip_special_tokens: bool | None = None


class SimpleToken(msgspec.Struct, frozen=True):
    """start, stop: characters of the input; null of a special token."""

    id: int
    text: str
    special: bool
    start: int | None
    stop: int | None


class Prediction(msgspec.Struct, frozen=True):
    score: float
    label: str
    implementation: Mark = msgspec.UNSET


class Rank(msgspec.Struct, frozen=True, kw_only=True):
    index: int
    text: str | msgspec.UnsetType = msgspec.UNSET
    score: float
    implementation: Mark = msgspec.UNSET


class Info(msgspec.Struct, frozen=True, kw_only=True):
    """model_type: one key, the kind of the model, with what clients want to know of it."""

    model_id: str
    model_sha: str | None
    model_dtype: str
    served_model_name: str
    model_type: dict[str, object]
    max_concurrent_requests: int
    max_input_length: int
    max_batch_tokens: int
    max_batch_requests: int | None
    max_client_batch_size: int
    auto_truncate: bool
    tokenization_workers: int
    version: str
    sha: str | None = None
    docker_label: str | None = None
    implementation: Mark = msgspec.UNSET


class ErrorReply(msgspec.Struct, frozen=True):
    error: str
    error_type: Literal["Unhealthy", "Backend", "Overloaded", "Validation", "Tokenizer", "Empty"]
