"""Requests and replies of KServe's protocol v2 (Open Inference Protocol), with Triton's extensions."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

Mark = Literal["MOCK"] | msgspec.UnsetType
Dimension = Annotated[int, msgspec.Meta(ge=0, le=1 << 31)]
TensorName = Annotated[str, msgspec.Meta(min_length=1, max_length=256)]
MAX_TENSORS = 16
Datatype = Literal[
    "BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64", "FP16", "FP32", "FP64", "BYTES",
    "BF16",
]  # fmt: skip


class TensorParameters(msgspec.Struct, frozen=True):
    """Of a tensor. Where ``binary_data_size`` is there, its data follow the JSON."""

    binary_data_size: Annotated[int, msgspec.Meta(ge=0)] | None = None
    binary_data: bool | None = None
    classification: int | None = None
    shared_memory_region: str | None = None


class InputTensor(msgspec.Struct, frozen=True):
    """data: nested or flat, row-major."""

    name: TensorName
    shape: Annotated[list[Dimension], msgspec.Meta(max_length=8)]
    datatype: Datatype
    parameters: TensorParameters | None = None
    data: list[object] | None = None


class WantedOutput(msgspec.Struct, frozen=True):
    name: TensorName
    parameters: TensorParameters | None = None


class InferRequest(msgspec.Struct, frozen=True):
    inputs: Annotated[list[InputTensor], msgspec.Meta(min_length=1, max_length=MAX_TENSORS)]
    id: str | None = None
    parameters: dict[str, object] | None = None
    outputs: Annotated[list[WantedOutput], msgspec.Meta(max_length=MAX_TENSORS)] | None = None


class OutputTensor(msgspec.Struct, frozen=True, omit_defaults=True):
    name: str
    datatype: Datatype
    shape: list[int]
    parameters: dict[str, int] | None = None
    data: list[object] | None = None


class InferReply(msgspec.Struct, frozen=True, kw_only=True):
    model_name: str
    model_version: str
    id: str | msgspec.UnsetType = msgspec.UNSET
    outputs: list[OutputTensor]
    implementation: Mark = msgspec.UNSET


class TensorMetadata(msgspec.Struct, frozen=True):
    name: str
    datatype: Datatype
    shape: list[int]


class ServerMetadata(msgspec.Struct, frozen=True):
    name: str
    version: str
    extensions: list[str]


class Live(msgspec.Struct, frozen=True):
    live: bool


class Ready(msgspec.Struct, frozen=True):
    ready: bool


class ModelReady(msgspec.Struct, frozen=True):
    name: str
    ready: bool
    implementation: Mark = msgspec.UNSET


class ModelMetadata(msgspec.Struct, frozen=True):
    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]
    implementation: Mark = msgspec.UNSET


class IndexRequest(msgspec.Struct, frozen=True):
    ready: bool | None = None


class IndexEntry(msgspec.Struct, frozen=True):
    """reason: why a model is not ready."""

    name: str
    version: str
    state: Literal["READY", "UNAVAILABLE", "LOADING", "UNLOADING"]
    reason: str = ""
    implementation: Mark = msgspec.UNSET


class LoadRequest(msgspec.Struct, frozen=True):
    """parameters: device, precision, task; a configuration or files of the caller's are not taken."""

    parameters: dict[str, object] | None = None


class ErrorReply(msgspec.Struct, frozen=True):
    error: str
    code: str
