"""Models on their way to OpenVINO: tiny ones of every family, and what their conversion is told."""

from __future__ import annotations

from pathlib import Path

from ipfs_accelerate_node.inference.families import MODEL_TYPES
from ipfs_accelerate_node.inference.model_files import ModelFiles, inspect
from ipfs_accelerate_node.inference.openvino.convert import refuse_telemetry
from tests.support.models import write_json
from tests.support.models_torch import written

refuse_telemetry()

DEFAULT_TASK = {
    "encoder": "embedding",
    "dual": "embedding",
    "seq2seq": "text2text-generation",
    "causal": "text-generation",
    "speech": "automatic-speech-recognition",
    "image": "image-classification",
}
_LARGER_PICTURES = ("efficientnet", "mobilenet_v1", "mobilenet_v2")


def tiny_files(directory: Path, model_type: str, task: str | None = None) -> tuple[ModelFiles, str]:
    """A checked directory with random weights, and its task."""
    kind = MODEL_TYPES[model_type]
    task = task or DEFAULT_TASK[kind.family]
    written(directory, model_type, kind.class_name(task))
    if kind.family in ("dual", "image"):
        edge = 32 if model_type in _LARGER_PICTURES else 16
        processor = "EfficientNetImageProcessor" if model_type == "efficientnet" else "ViTImageProcessor"
        size = {"height": edge, "width": edge}
        write_json(directory / "preprocessor_config.json", {"image_processor_type": processor, "size": size})
    return inspect(directory, available_bytes=1 << 33, task=task), task
