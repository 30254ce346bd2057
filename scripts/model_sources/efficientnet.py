"""EfficientNet-Lite0 as published for PyTorch (its own tensor names) → EfficientNetForImageClassification.

efficientnet.py SOURCE TARGET     SOURCE holds weights.pth, and labels.txt: the Python file that lists ImageNet's names.
"""

from __future__ import annotations

import ast
import json
import sys
from pathlib import Path

import torch
from torch import Tensor
from transformers import EfficientNetConfig, EfficientNetForImageClassification

BLOCKS = 16
OPEN_GATE = 100.0  # sigmoid of it is exactly 1 in f32
PREPROCESSOR = {
    "image_processor_type": "EfficientNetImageProcessor",
    "do_resize": True,
    "size": {"height": 224, "width": 224},
    "resample": 3,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "rescale_offset": False,
    "do_normalize": True,
    "image_mean": [127 / 255] * 3,
    "image_std": [128 / 255] * 3,
    "include_top": False,
}


def label_names(source: str) -> list[str]:
    """The literal list in the file; the file is parsed, never run."""
    for statement in ast.parse(source).body:
        match statement:
            case ast.Assign(targets=[ast.Name(id="_IMAGENET_CATEGORIES")], value=value):
                names = ast.literal_eval(value)
                if len(names) == 1000:
                    return list(names)
    raise SystemExit("no list of 1,000 ImageNet names in labels.txt")


def configuration(names: list[str]) -> EfficientNetConfig:
    return EfficientNetConfig(
        width_coefficient=1.0,
        depth_coefficient=1.0,
        image_size=224,
        hidden_dim=1280,
        hidden_act="relu6",
        dropout_rate=0.2,
        id2label=dict(enumerate(names)),
        label2id={name: number for number, name in enumerate(names)},
        architectures=["EfficientNetForImageClassification"],
    )


def renamed(source: dict[str, Tensor], wanted: dict[str, Tensor]) -> dict[str, Tensor]:
    """Lite has no squeeze-and-excite: those gates are held open, which makes each an exact identity."""
    out: dict[str, Tensor] = {}

    def norm(target: str, origin: str) -> None:
        for part in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"):
            out[f"{target}.{part}"] = source[f"{origin}.{part}"]

    out["efficientnet.embeddings.convolution.weight"] = source["_conv_stem.weight"]
    norm("efficientnet.embeddings.batchnorm", "_bn0")
    for number in range(BLOCKS):
        target, origin = f"efficientnet.encoder.blocks.{number}", f"_blocks.{number}"
        if f"{origin}._expand_conv.weight" in source:
            out[f"{target}.expansion.expand_conv.weight"] = source[f"{origin}._expand_conv.weight"]
            norm(f"{target}.expansion.expand_bn", f"{origin}._bn0")
        out[f"{target}.depthwise_conv.depthwise_conv.weight"] = source[f"{origin}._depthwise_conv.weight"]
        norm(f"{target}.depthwise_conv.depthwise_norm", f"{origin}._bn1")
        out[f"{target}.projection.project_conv.weight"] = source[f"{origin}._project_conv.weight"]
        norm(f"{target}.projection.project_bn", f"{origin}._bn2")
        for layer in ("reduce", "expand"):
            for part in ("weight", "bias"):
                name = f"{target}.squeeze_excite.{layer}.{part}"
                out[name] = torch.zeros_like(wanted[name])
        out[f"{target}.squeeze_excite.expand.bias"] += OPEN_GATE
    out["efficientnet.encoder.top_conv.weight"] = source["_conv_head.weight"]
    norm("efficientnet.encoder.top_bn", "_bn1")
    out["classifier.weight"], out["classifier.bias"] = source["_fc.weight"], source["_fc.bias"]
    return out


def main(source: Path, target: Path) -> None:
    names = label_names((source / "labels.txt").read_text(encoding="utf-8"))
    model = EfficientNetForImageClassification(configuration(names)).eval()
    weights = torch.load(source / "weights.pth", map_location="cpu", weights_only=True)
    model.load_state_dict(renamed(weights, model.state_dict()), strict=True)
    model.save_pretrained(target)
    (target / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR, indent=1))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
