"""Pictures become the very arrays that transformers' own processors make of them."""

from __future__ import annotations

import importlib
import io
import struct
import zlib
from typing import Any

import numpy as np
import PIL.Image
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ipfs_accelerate_node.errors import ModelUnsupported
from ipfs_accelerate_node.inference.tasks.picture_settings import PictureSettings, read_picture_settings
from ipfs_accelerate_node.inference.tasks.pictures import BadPicture, pixel_values, read_picture

MODULES = {
    "CLIP": "clip",
    "ChineseCLIP": "chinese_clip",
    "Bit": "bit",
    "Siglip": "siglip",
    "ViT": "vit",
    "DeiT": "deit",
    "EfficientNet": "efficientnet",
    "ConvNext": "convnext",
    "MobileNetV1": "mobilenet_v1",
    "MobileNetV2": "mobilenet_v2",
}
LITE0 = {  # of efficientnet-lite0
    "size": {"height": 248, "width": 248},
    "do_center_crop": True,
    "crop_size": {"height": 224, "width": 224},
    "rescale_factor": 1 / 127.5,
    "rescale_offset": True,
    "include_top": False,
    "do_normalize": False,
    "resample": 3,
}
CONFIGS: list[tuple[str, dict[str, object]]] = [
    *((kind, {}) for kind in MODULES),
    ("CLIP", {"size": {"shortest_edge": 64}, "crop_size": 80}),
    ("CLIP", {"size": 70, "crop_size": {"height": 33, "width": 64}}),
    ("Bit", {"size": {"shortest_edge": 50, "longest_edge": 60}, "crop_size": 40}),
    ("ViT", {"size": 32, "resample": 0}),
    ("ViT", {"do_resize": False, "do_rescale": False, "image_mean": 0.25}),
    ("EfficientNet", LITE0),
    ("ConvNext", {"size": {"shortest_edge": 224}, "crop_pct": 0.9}),
    ("MobileNetV2", {"do_normalize": False, "size": {"height": 20, "width": 90}, "do_center_crop": False}),
]


def oracle(kind: str, config: dict[str, object]) -> Any:
    module = importlib.import_module(f"transformers.models.{MODULES[kind]}.image_processing_pil_{MODULES[kind]}")
    return getattr(module, f"{kind}ImageProcessorPil")(**config)


def ours(kind: str, config: dict[str, object]) -> PictureSettings:
    return read_picture_settings({"image_processor_type": f"{kind}ImageProcessor", **config}, model_type="clip")


def noise(height: int, width: int, *, channels: int = 3, seed: int = 0) -> PIL.Image.Image:
    shape = (height, width, channels) if channels > 1 else (height, width)
    return PIL.Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8))


def encoded(picture: PIL.Image.Image, form: str = "PNG", **how: Any) -> bytes:
    file = io.BytesIO()
    picture.save(file, form, **how)
    return file.getvalue()


@pytest.mark.parametrize(("kind", "config"), CONFIGS)
@pytest.mark.parametrize("shape", [(37, 53), (53, 37), (64, 64), (260, 333), (7, 90)])
def test_pixels_are_those_of_transformers(kind: str, config: dict[str, object], shape: tuple[int, int]) -> None:
    picture = noise(*shape)
    expected = np.asarray(oracle(kind, config)(picture, return_tensors="np")["pixel_values"][0])
    found = pixel_values(picture, ours(kind, config))
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, expected.astype(np.float32))


@settings(max_examples=40, deadline=None)
@given(
    height=st.integers(1, 90), width=st.integers(1, 90), edge=st.integers(1, 50), crop=st.integers(1, 60),
    resample=st.integers(0, 5),
)  # fmt: skip
def test_any_size_is_resized_and_cropped_alike(height: int, width: int, edge: int, crop: int, resample: int) -> None:
    config: dict[str, object] = {"size": {"shortest_edge": edge}, "crop_size": crop, "resample": resample}
    picture = noise(height, width)
    expected = oracle("CLIP", config)(picture, return_tensors="np")["pixel_values"][0]
    np.testing.assert_array_equal(pixel_values(picture, ours("CLIP", config)), expected)


@pytest.mark.parametrize("channels", [1, 2, 4])
def test_every_mode_becomes_rgb_on_white(channels: int) -> None:
    picture = noise(20, 30, channels=channels)
    expected = oracle("CLIP", {}).convert_to_rgb(picture)
    np.testing.assert_array_equal(np.asarray(read_picture(encoded(picture))), expected)


def test_a_palette_with_a_transparent_colour_shows_white_there() -> None:
    picture = PIL.Image.new("P", (4, 4), 0)
    picture.putpalette([255, 0, 0, 0, 255, 0])
    picture.putpixel((1, 1), 1)
    found = np.asarray(read_picture(encoded(picture, transparency=0)))
    assert found[0, 0].tolist() == [255, 255, 255]
    assert found[1, 1].tolist() == [0, 255, 0]


def test_exif_turns_the_picture_upright_as_in_transformers() -> None:
    from transformers.image_utils import load_image

    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # to be turned by 90°
    data = encoded(noise(20, 30), "JPEG", exif=exif.tobytes(), quality=95)
    expected = np.asarray(load_image(PIL.Image.open(io.BytesIO(data))))
    assert expected.shape == (30, 20, 3)
    np.testing.assert_array_equal(np.asarray(read_picture(data)), expected)


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "BMP", "GIF"])
def test_formats_that_are_read(form: str) -> None:
    picture = noise(12, 17)
    assert read_picture(encoded(picture, form)).size == picture.size


def test_an_animation_is_its_first_frame() -> None:
    frames = [PIL.Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert np.asarray(read_picture(data))[0, 0].tolist() == [255, 0, 0]


def png(width: int, height: int, body: bytes) -> bytes:
    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


WHOLE = encoded(noise(16, 16))
BAD = {
    "empty": b"",
    "text": b"<html>no picture</html>",
    "TIFF, which is not read": encoded(noise(4, 4), "TIFF"),
    "EPS, which would call Ghostscript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
    "bomb of a header": png(60_000, 60_000, zlib.compress(b"\0" * 1000)),
    "just over the limit": png(8_001, 8_000, zlib.compress(b"")),
    "no pixels": png(16, 16, b""),
    "garbage in the pixels": png(16, 16, b"not zlib"),
    "header only": WHOLE[:33],
    "magic only": WHOLE[:8],
    "JPEG of a few bytes": b"\xff\xd8\xff\xe0\x00\x10JFIF",
    "WebP of a few bytes": b"RIFF\x10\0\0\0WEBPVP8 ",
}


@pytest.mark.parametrize("data", BAD.values(), ids=BAD.keys())
def test_what_is_no_picture_is_said_to_be_none(data: bytes) -> None:
    with pytest.raises(BadPicture):
        read_picture(data)


@pytest.mark.parametrize("form", ["PNG", "JPEG", "GIF", "BMP", "WEBP"])
def test_cut_anywhere_nothing_else_escapes(form: str) -> None:
    data = encoded(noise(9, 9), form)
    for end in range(len(data)):
        try:
            read_picture(data[:end])
        except BadPicture:
            continue


def test_a_strip_that_would_grow_out_of_bounds_is_refused() -> None:
    with pytest.raises(BadPicture, match="before cropping"):
        pixel_values(PIL.Image.new("RGB", (100_000, 1)), ours("CLIP", {}))


@pytest.mark.parametrize(
    ("config", "code"),
    [
        ({"image_processor_type": "Evil/../Processor"}, "task_unsupported"),
        ({"image_processor_type": "BlipImageProcessor"}, "task_unsupported"),
        ({"size": {"shortest_edge": 10**9}}, "bad_config"),
        ({"size": {"height": -1, "width": 5}}, "bad_config"),
        ({"size": {"shortest_edge": "224"}}, "bad_config"),
        ({"size": {"edge": 5}}, "bad_config"),
        ({"crop_size": {"shortest_edge": 5}}, "bad_config"),
        ({"resample": 17}, "bad_config"),
        ({"resample": True}, "bad_config"),
        ({"rescale_factor": 0}, "bad_config"),
        ({"image_std": [0, 1, 1]}, "bad_config"),
        ({"image_mean": [1, 2]}, "bad_config"),
        ({"image_mean": "0.5"}, "bad_config"),
        ({"image_processor_type": "ConvNextImageProcessor", "size": {"height": 5, "width": 5}}, "bad_config"),
        ({"image_processor_type": "ConvNextImageProcessor", "crop_pct": 0}, "bad_config"),
    ],
)
def test_settings_of_no_use_are_refused(config: dict[str, object], code: str) -> None:
    with pytest.raises(ModelUnsupported) as caught:
        read_picture_settings(config, model_type="clip")
    assert caught.value.code == code


def test_without_settings_the_model_types_own_hold() -> None:
    assert read_picture_settings({}, model_type="vit") == ours("ViT", {})
    assert read_picture_settings({"feature_extractor_type": "CLIPFeatureExtractor"}, model_type="x") == ours("CLIP", {})
