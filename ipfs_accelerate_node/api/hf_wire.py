"""Parameters of the Hub's inference API by task: those that are done here, and those whose neutral value passes."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from ipfs_accelerate_node.errors import InvalidInput

Count = Annotated[int, msgspec.Meta(ge=1, le=1 << 17)]
Function = Literal["softmax", "sigmoid", "none"]


class Classifying(msgspec.Struct, frozen=True):
    """Of texts and of pictures."""

    top_k: Count | None = None
    function_to_apply: Function | None = None


class Filling(msgspec.Struct, frozen=True):
    top_k: Count | None = None
    targets: list[str] | None = None


class Tagging(msgspec.Struct, frozen=True):
    aggregation_strategy: str | None = None
    ignore_labels: list[str] | None = None
    stride: int | None = None


class Choosing(msgspec.Struct, frozen=True):
    candidate_labels: Annotated[list[str], msgspec.Meta(min_length=1, max_length=1024)]
    hypothesis_template: Annotated[str, msgspec.Meta(max_length=1024)] = "This is a photo of {}."


class Writing(msgspec.Struct, frozen=True):
    """As text-generation-inference reads them. truncate: the prompt, to so many tokens."""

    max_new_tokens: Count | None = None
    do_sample: bool | None = None
    temperature: Annotated[float, msgspec.Meta(gt=0, le=100)] | None = None
    top_p: Annotated[float, msgspec.Meta(gt=0, le=1)] | None = None
    top_k: Count | None = None
    seed: Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)] | None = None
    stop: Annotated[list[str], msgspec.Meta(max_length=16)] | None = None
    stop_sequences: Annotated[list[str], msgspec.Meta(max_length=16)] | None = None
    return_full_text: bool | None = None
    details: bool | None = None
    adapter_id: str | None = None
    best_of: int | None = None
    decoder_input_details: bool | None = None
    frequency_penalty: float | None = None
    grammar: object = None
    repetition_penalty: float | None = None
    top_n_tokens: int | None = None
    truncate: int | None = None
    typical_p: float | None = None
    watermark: bool | None = None


class GenerateParameters(msgspec.Struct, frozen=True):
    max_new_tokens: Count | None = None
    max_length: Count | None = None
    temperature: Annotated[float, msgspec.Meta(ge=0, le=100)] | None = None
    do_sample: bool | None = None
    top_k: Count | None = None
    top_p: Annotated[float, msgspec.Meta(gt=0, le=1)] | None = None
    num_beams: int | None = None


class Rewriting(msgspec.Struct, frozen=True):
    """Of translation, summarization and text2text-generation."""

    generate_parameters: GenerateParameters | None = None
    src_lang: str | None = None
    tgt_lang: str | None = None
    truncation: str | None = None
    clean_up_tokenization_spaces: bool | None = None


class Hearing(msgspec.Struct, frozen=True):
    return_timestamps: bool | str | None = None
    generation_parameters: GenerateParameters | None = None
    generate_kwargs: dict[str, object] | None = None
    language: Annotated[str, msgspec.Meta(max_length=64)] | None = None


NEUTRAL: dict[str, tuple[object, ...]] = {
    "targets": (None, []),
    "aggregation_strategy": (None, "simple"),
    "ignore_labels": (None, ["O"]),
    "stride": (None, 0),
    "adapter_id": (None,),
    "best_of": (None, 1),
    "decoder_input_details": (None, False),
    "frequency_penalty": (None, 0.0),
    "grammar": (None,),
    "repetition_penalty": (None, 1.0),
    "top_n_tokens": (None, 0),
    "truncate": (None,),
    "typical_p": (None, 1.0),
    "watermark": (None, False),
    "num_beams": (None, 1),
    "src_lang": (None,),
    "tgt_lang": (None,),
    "truncation": (None, "do_not_truncate", "longest_first", "only_first"),
    "return_timestamps": (None, False),
    "generate_kwargs": (None, {}),
    "max_length": (None,),
}


def check_neutral(parameters: msgspec.Struct) -> None:
    """Raises InvalidInput for what would change the answer and is not done here."""
    for name in parameters.__struct_fields__:
        value = getattr(parameters, name)
        if name in NEUTRAL and value not in NEUTRAL[name]:
            raise InvalidInput(f"{name} is not served here", param=name)
