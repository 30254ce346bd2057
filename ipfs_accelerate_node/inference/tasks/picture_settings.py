"""How an image model wants its pictures: preprocessor_config.json, read and bounded.

Source: the image processors of transformers and the defaults of their classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ipfs_accelerate_node.errors import ModelUnsupported
from ipfs_accelerate_node.inference.strict_json import JsonObject

MAX_EDGE = 2048
_BILINEAR, _BICUBIC = 2, 3
_STANDARD = (0.5, 0.5, 0.5)
_CLIP_MEAN, _CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True, slots=True)
class Size:
    """Either height and width, or the shortest edge, with the longest as its limit where it is not 0."""

    height: int = 0
    width: int = 0
    shortest: int = 0
    longest: int = 0


@dataclass(frozen=True, slots=True)
class PictureSettings:
    """What happens to a picture, in this order. resize, crop (height, width), rescale, mean: None: not done.

    resample: Pillow's number. offset: one is subtracted after rescaling. std_again: divided by std once more
    (EfficientNet's include_top). warp_from: edge from which ConvNext's pictures are not cropped; crop_part: below it,
    the part of the resized edge that the crop keeps.
    """

    resize: Size | None
    resample: int
    crop: tuple[int, int] | None
    rescale: float | None
    mean: tuple[float, ...] | None
    std: tuple[float, ...]
    offset: bool = False
    std_again: bool = False
    warp_from: int = 0
    crop_part: float = 224 / 256

    @property
    def prepared(self) -> tuple[int, int, bool]:
        """Height and width of a prepared picture, and whether every one is so."""
        if self.crop is not None:
            return (*self.crop, True)
        if self.resize is not None and self.resize.height:
            return self.resize.height, self.resize.width, True
        edge = self.resize.shortest if self.resize is not None else 64
        return edge, edge, self.warp_from > 0


def _defaults(size: object, resample: int, mean: object = _STANDARD, std: object = _STANDARD, **more: object) -> Any:
    return {
        "do_resize": True,
        "size": size,
        "resample": resample,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": mean,
        "image_std": std,
        **more,
    }


def _cropping(edge: int, crop: int, resample: int, mean: object = _STANDARD, std: object = _STANDARD) -> Any:
    return _defaults({"shortest_edge": edge}, resample, mean, std, do_center_crop=True, crop_size=_square(crop))


def _square(edge: int) -> dict[str, int]:
    return {"height": edge, "width": edge}


# Defaults of transformers' classes, without their ending ImageProcessor.
_KINDS: Mapping[str, Mapping[str, object]] = {
    "CLIP": _cropping(224, 224, _BICUBIC, _CLIP_MEAN, _CLIP_STD),
    "ChineseCLIP": _cropping(224, 224, _BICUBIC, _CLIP_MEAN, _CLIP_STD),
    "Bit": _cropping(224, 224, _BICUBIC, _CLIP_MEAN, _CLIP_STD),
    "Siglip": _defaults(_square(224), _BICUBIC),
    "ViT": _defaults(_square(224), _BILINEAR),
    "DeiT": _defaults(_square(256), _BICUBIC, do_center_crop=True, crop_size=_square(224)),
    "EfficientNet": _defaults(_square(346), _BICUBIC, crop_size=_square(289), include_top=True),
    "ConvNext": _defaults({"shortest_edge": 384}, _BICUBIC),
    "MobileNetV1": _cropping(256, 224, _BILINEAR),
    "MobileNetV2": _cropping(256, 224, _BILINEAR),
}
_SQUARE_INT = frozenset({"ViT", "DeiT", "EfficientNet"})  # whose size, given as one number, is a square
_KIND_OF_MODEL = {
    "clip": "CLIP",
    "vision-text-dual-encoder": "ViT",
    "chinese_clip": "ChineseCLIP",
    "siglip": "Siglip",
    "vit": "ViT",
    "swin": "ViT",
    "deit": "DeiT",
    "efficientnet": "EfficientNet",
    "convnext": "ConvNext",
    "convnextv2": "ConvNext",
    "resnet": "ConvNext",
    "dinov2": "Bit",
    "mobilenet_v1": "MobileNetV1",
    "mobilenet_v2": "MobileNetV2",
}


def read_picture_settings(config: JsonObject, *, model_type: str) -> PictureSettings:
    """config: preprocessor_config.json, or the image processor's part of processor_config.json; empty: the defaults of
    the model type.

    Raises ModelUnsupported. task_unsupported: another kind of processor. bad_config: a value of no use.
    """
    kind = _kind(config, model_type)
    given = {**_KINDS[kind], **{key: value for key, value in config.items() if value is not None}}
    sizes = Size() if not given["do_resize"] else _size(given["size"], square=kind in _SQUARE_INT)
    crop = _size(given["crop_size"], square=True) if given.get("do_center_crop") else None
    if crop is not None and crop.shortest:
        raise _bad("crop_size", given["crop_size"])
    convnext = kind == "ConvNext" and given["do_resize"] is True
    if convnext and not sizes.shortest:
        raise _bad("size", given["size"])
    return PictureSettings(
        resize=sizes if given["do_resize"] else None,
        resample=_resample(given["resample"]),
        crop=None if crop is None else (crop.height, crop.width),
        rescale=_factor(given["rescale_factor"]) if given["do_rescale"] else None,
        mean=_three("image_mean", given["image_mean"]) if given["do_normalize"] else None,
        std=_three("image_std", given["image_std"], positive=True),
        offset=kind == "EfficientNet" and given.get("rescale_offset") is True,
        std_again=kind == "EfficientNet" and given.get("include_top") is True,
        warp_from=384 if convnext else 0,
        crop_part=_part(given.get("crop_pct", 224 / 256)),
    )


def _bad(key: str, value: object) -> ModelUnsupported:
    return ModelUnsupported(f"preprocessor_config.json: {key} is {str(value)[:60]!r}", code="bad_config")


def _kind(config: JsonObject, model_type: str) -> str:
    named = config.get("image_processor_type", config.get("feature_extractor_type"))
    if named is None:
        named = _KIND_OF_MODEL.get(model_type, "")
    kind = str(named)
    for ending in ("Pil", "Fast", "ImageProcessor", "FeatureExtractor"):
        kind = kind.removesuffix(ending)
    if kind not in _KINDS:
        known = ", ".join(_KINDS)
        raise ModelUnsupported(
            f"preprocessor_config.json: processor {str(named)[:60]!r} is not one of {known}", code="task_unsupported"
        )
    return kind


def _size(value: object, *, square: bool) -> Size:
    if isinstance(value, list) and len(value) == 2:
        value = {"height": value[0], "width": value[1]}
    if type(value) is int:
        value = _square(value) if square else {"shortest_edge": value}
    if not isinstance(value, dict):
        raise _bad("size", value)
    edges = {key: edge for key, edge in value.items() if edge is not None}
    if any(type(edge) is not int or not 1 <= edge <= MAX_EDGE for edge in edges.values()):
        raise _bad("size", value)
    if edges.keys() == {"height", "width"}:
        return Size(height=edges["height"], width=edges["width"])
    if edges.keys() in ({"shortest_edge"}, {"shortest_edge", "longest_edge"}):
        return Size(shortest=edges["shortest_edge"], longest=edges.get("longest_edge", 0))
    raise _bad("size", value)


def _resample(value: object) -> int:
    if type(value) is not int or not 0 <= value <= 5:
        raise _bad("resample", value)
    return value


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _factor(value: object) -> float:
    number = _number(value)
    if number is None or not 0 < number < 1e6:
        raise _bad("rescale_factor", value)
    return number


def _part(value: object) -> float:
    number = _number(value)
    if number is None or not 0.1 <= number <= 1:
        raise _bad("crop_pct", value)
    return number


def _three(key: str, value: object, *, positive: bool = False) -> tuple[float, ...]:
    if _number(value) is not None:
        value = [value] * 3
    numbers = [_number(one) for one in value] if isinstance(value, list | tuple) else []
    if len(numbers) != 3 or any(n is None or abs(n) > 1e6 or (positive and n <= 0) for n in numbers):
        raise _bad(key, value)
    return tuple(n for n in numbers if n is not None)
