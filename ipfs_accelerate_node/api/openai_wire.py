"""Requests and replies of the OpenAI API, and of those that grew out of it: what a JSON body must be, and is.

Clients write null where they mean nothing, so every field that may be left out may also be null. What would change an
answer and is not done here is refused by the routes, never ignored.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from ipfs_accelerate_node.api.wire import NameText

Mark = Literal["MOCK"] | msgspec.UnsetType
Finish = Literal["stop", "length"]
NewTokens = Annotated[int, msgspec.Meta(ge=1, le=1 << 17)]
MAX_CHOICES = 128
MAX_MESSAGES = 4096


class StreamOptions(msgspec.Struct, frozen=True):
    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class Sampling(msgspec.Struct, frozen=True, kw_only=True):
    """What completions and chats have in common. top_k: of relatives of the API."""

    model: NameText
    max_tokens: NewTokens | None = None
    temperature: Annotated[float, msgspec.Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, msgspec.Meta(gt=0, le=1)] | None = None
    top_k: Annotated[int, msgspec.Meta(ge=1, le=1 << 17)] | None = None
    n: Annotated[int, msgspec.Meta(ge=1, le=MAX_CHOICES)] | None = None
    stop: str | Annotated[list[str], msgspec.Meta(max_length=16)] | None = None
    seed: Annotated[int, msgspec.Meta(ge=-(1 << 63), le=(1 << 63) - 1)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    logit_bias: dict[str, float] | None = None


class CompletionRequest(Sampling, frozen=True, kw_only=True):
    """prompt: a text, texts, token ids, or lists of token ids; checked item by item."""

    prompt: object
    echo: bool | None = None
    logprobs: int | None = None
    best_of: int | None = None
    suffix: str | None = None


class TextPart(msgspec.Struct, frozen=True, tag_field="type", tag="text"):
    text: str


class RefusalPart(msgspec.Struct, frozen=True, tag_field="type", tag="refusal"):
    refusal: str


class ImageUrl(msgspec.Struct, frozen=True):
    url: str
    detail: str | None = None


class ImagePart(msgspec.Struct, frozen=True, tag_field="type", tag="image_url"):
    image_url: ImageUrl


class AudioPart(msgspec.Struct, frozen=True, tag_field="type", tag="input_audio"):
    input_audio: dict[str, str]


Part = TextPart | RefusalPart | ImagePart | AudioPart


class ChatMessage(msgspec.Struct, frozen=True):
    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | list[Part] | None = None
    tool_calls: list[object] | None = None


class ResponseFormat(msgspec.Struct, frozen=True):
    type: str


class ChatRequest(Sampling, frozen=True, kw_only=True):
    messages: Annotated[list[ChatMessage], msgspec.Meta(min_length=1, max_length=MAX_MESSAGES)]
    max_completion_tokens: NewTokens | None = None
    response_format: ResponseFormat | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    tools: list[object] | None = None
    functions: list[object] | None = None
    tool_choice: object = None
    modalities: list[str] | None = None


class Usage(msgspec.Struct, frozen=True):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class CompletionChoice(msgspec.Struct, frozen=True):
    index: int
    text: str
    finish_reason: Finish | None
    logprobs: None = None


class Completion(msgspec.Struct, frozen=True, kw_only=True):
    """Of a stream, a part of it: ``usage`` is there where it was asked for, null but in the last part."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage | msgspec.UnsetType | None = msgspec.UNSET
    system_fingerprint: str | msgspec.UnsetType = msgspec.UNSET
    implementation: Mark = msgspec.UNSET


class AnswerMessage(msgspec.Struct, frozen=True):
    role: Literal["assistant"]
    content: str
    refusal: None = None


class ChatChoice(msgspec.Struct, frozen=True):
    index: int
    message: AnswerMessage
    finish_reason: Finish
    logprobs: None = None


class ChatCompletion(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
    system_fingerprint: str | msgspec.UnsetType = msgspec.UNSET
    implementation: Mark = msgspec.UNSET


class Delta(msgspec.Struct, frozen=True):
    role: Literal["assistant"] | msgspec.UnsetType = msgspec.UNSET
    content: str | msgspec.UnsetType = msgspec.UNSET


class ChunkChoice(msgspec.Struct, frozen=True):
    index: int
    delta: Delta
    finish_reason: Finish | None = None
    logprobs: None = None


class ChatChunk(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    choices: list[ChunkChoice]
    usage: Usage | msgspec.UnsetType | None = msgspec.UNSET
    system_fingerprint: str | msgspec.UnsetType = msgspec.UNSET
    implementation: Mark = msgspec.UNSET


class TranscriptionForm(msgspec.Struct, frozen=True):
    """What a form holds; its fields are read one by one. file: a WAV file."""

    file: Annotated[str, msgspec.Meta(extra_json_schema={"format": "binary"})]
    model: NameText
    language: str | None = None
    response_format: Literal["json", "text", "verbose_json"] = "json"
    temperature: Annotated[float, msgspec.Meta(ge=0, le=1)] | None = None


class Transcription(msgspec.Struct, frozen=True):
    text: str
    implementation: Mark = msgspec.UNSET


class VerboseTranscription(msgspec.Struct, frozen=True):
    """duration: seconds. language: as it was asked for, ``und`` where nothing was: what the model heard it does not
    tell."""

    task: Literal["transcribe"]
    language: str
    duration: float
    text: str
    implementation: Mark = msgspec.UNSET


class DocumentText(msgspec.Struct, frozen=True):
    text: str


class RankRequest(msgspec.Struct, frozen=True, kw_only=True):
    model: NameText
    query: str
    documents: list[str | DocumentText]
    top_n: Annotated[int, msgspec.Meta(ge=1, le=1 << 20)] | None = None
    return_documents: bool | None = None
    truncate: bool | None = None


class RankedDocument(msgspec.Struct, frozen=True, omit_defaults=True):
    index: int
    relevance_score: float
    document: DocumentText | None = None


class RankUsage(msgspec.Struct, frozen=True):
    prompt_tokens: int
    total_tokens: int


class RankReply(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    model: str
    results: list[RankedDocument]
    usage: RankUsage
    implementation: Mark = msgspec.UNSET


class ErrorFields(msgspec.Struct, frozen=True):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorReply(msgspec.Struct, frozen=True):
    """Nested as OpenAI has it, and flat as its relatives do."""

    error: ErrorFields
    message: str
    type: str
    param: str | None
    code: str | None
