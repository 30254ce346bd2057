"""CLIP-like models and image classifiers: transformers' models, processors and pipelines are the oracle."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
import transformers as tf

from ipfs_accelerate_node.errors import InvalidInput, PayloadTooLarge
from ipfs_accelerate_node.inference.model import Image, ImageChoice, Item, Scores, Text, Vector
from ipfs_accelerate_node.inference.tasks import samples
from ipfs_accelerate_node.inference.tasks.pictures import read_picture
from tests.support.models import write_json
from tests.support.models_tasks import byte_level, infer, loaded, random_model, saved

TOWER: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
PICTURES = [samples.picture(number, edge=40) for number in range(5)]
LABELS = ("a man is eating food", "rain", "two children play chess", "a train")


def clip(directory: Path) -> Path:
    config = tf.CLIPConfig(
        text_config={**TOWER, "vocab_size": 400, "max_position_embeddings": 20, "eos_token_id": 1, "bos_token_id": 0,
                     "pad_token_id": 1},
        vision_config={**TOWER, "image_size": 32, "patch_size": 8},
        projection_dim=12,
    )  # fmt: skip
    return dual(directory, random_model(tf.CLIPModel, config), "CLIP", {"shortest_edge": 32})


def siglip(directory: Path) -> Path:
    config = tf.SiglipConfig(
        text_config={**TOWER, "vocab_size": 400, "max_position_embeddings": 20, "projection_size": 16},
        vision_config={**TOWER, "image_size": 32, "patch_size": 8},
    )
    model = random_model(tf.SiglipModel, config)
    with torch.no_grad():
        model.logit_scale.fill_(1.2)
        model.logit_bias.fill_(-0.7)
    return dual(directory, model, "Siglip", {"height": 32, "width": 32})


def dual(directory: Path, model: Any, kind: str, size: dict[str, int]) -> Path:
    from tokenizers import processors

    tokenizer = byte_level("<|startoftext|>", "<|endoftext|>")
    begin, end = ("<|startoftext|>", 0), ("<|endoftext|>", 1)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{begin[0]} $A {end[0]}", special_tokens=[begin, end]
    )
    saved(directory, model, tokenizer, pad_token=end[0], eos_token=end[0], model_max_length=20)
    write_json(
        directory / "preprocessor_config.json",
        {"image_processor_type": f"{kind}ImageProcessor", "size": size, "crop_size": {"height": 32, "width": 32}},
    )
    return directory


def reference(directory: Path, cls: Any) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """(unit vectors of the texts, of the pictures, logits of every picture for every text)"""
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
    from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

    model = cls.from_pretrained(directory).eval()
    of_clip = cls is tf.CLIPModel
    processor = (CLIPImageProcessorPil if of_clip else SiglipImageProcessorPil).from_pretrained(directory)
    tokenizer = tf.PreTrainedTokenizerFast.from_pretrained(directory)
    texts = tokenizer(list(LABELS), padding=True if of_clip else "max_length", return_tensors="pt")
    given = {"input_ids": texts["input_ids"]} | ({"attention_mask": texts["attention_mask"]} if of_clip else {})
    pixels = processor([read_picture(data) for data in PICTURES], return_tensors="pt")["pixel_values"]
    with torch.inference_mode():
        found = model(**given, pixel_values=pixels)
    return found.text_embeds.numpy(), found.image_embeds.numpy(), found.logits_per_image.numpy()


@pytest.mark.parametrize(("make", "cls"), [(clip, tf.CLIPModel), (siglip, tf.SiglipModel)])
def test_texts_and_pictures_get_the_vectors_of_transformers(make: Any, cls: Any, tmp_path: Path) -> None:
    directory = make(tmp_path / "model")
    texts, pictures, _ = reference(directory, cls)
    items: list[Item] = [*(Text(label) for label in LABELS), *(Image(data) for data in PICTURES)]
    order = [5, 0, 8, 3, 1, 6, 2, 7, 4]
    outputs = infer(loaded(directory), [items[at] for at in order])
    for at, output in zip(order, outputs, strict=True):
        assert isinstance(output, Vector)
        np.testing.assert_allclose(output.values, np.concatenate([texts, pictures])[at], atol=3e-6)
        assert (output.tokens_in > 0) == (at < len(LABELS))


@pytest.mark.parametrize(("make", "cls"), [(clip, tf.CLIPModel), (siglip, tf.SiglipModel)])
def test_zero_shot_scores_are_those_of_transformers(make: Any, cls: Any, tmp_path: Path) -> None:
    directory = make(tmp_path / "model")
    _, _, logits = reference(directory, cls)
    found = loaded(directory, "zero-shot-image-classification")
    items = [ImageChoice(data, LABELS) for data in PICTURES]
    probable = torch.softmax(torch.tensor(logits), 1) if cls is tf.CLIPModel else torch.sigmoid(torch.tensor(logits))
    for raw, expected in ((True, logits), (False, probable.numpy())):
        for output, row in zip(infer(found, items, raw_scores=raw), expected, strict=True):
            assert isinstance(output, Scores)
            assert {score.label: score.score for score in output.items} == pytest.approx(
                dict(zip(LABELS, row.tolist(), strict=True)), abs=2e-5
            )
            assert [s.score for s in output.items] == sorted((s.score for s in output.items), reverse=True)


def test_items_may_have_labels_of_their_own_in_any_number(tmp_path: Path) -> None:
    found = loaded(clip(tmp_path / "model"), "zero-shot-image-classification")
    one, two = infer(
        found, [ImageChoice(PICTURES[0], ("rain",)), ImageChoice(PICTURES[1], ("rain", "a train", "rain"))]
    )
    assert isinstance(one, Scores)
    assert isinstance(two, Scores)
    assert one.items[0].score == pytest.approx(1)
    assert sorted(score.label for score in two.items) == ["a train", "rain", "rain"]


def test_vectors_may_be_cut_or_left_as_they_are(tmp_path: Path) -> None:
    found = loaded(clip(tmp_path / "model"))
    (raw,) = infer(found, [Image(PICTURES[0])], normalize=False)
    (cut,) = infer(found, [Image(PICTURES[0])], dimensions=4)
    assert isinstance(raw, Vector)
    assert isinstance(cut, Vector)
    np.testing.assert_allclose(cut.values, raw.values[:4] / np.linalg.norm(raw.values[:4]), atol=1e-6)
    with pytest.raises(InvalidInput, match="1 to 12"):
        infer(found, [Image(PICTURES[0])], dimensions=13)


def test_what_is_no_picture_is_refused_with_its_index_among_all(tmp_path: Path) -> None:
    found = loaded(clip(tmp_path / "model"))
    with pytest.raises(InvalidInput, match="not a picture") as caught:
        infer(found, [Text("rain"), Image(PICTURES[0]), Image(b"<html>")])
    assert caught.value.detail["index"] == 2
    with pytest.raises(PayloadTooLarge, match="longer than the model's 20 tokens") as long:
        infer(found, [Image(PICTURES[0]), Text("rain " * 30)], truncate=False)
    assert long.value.detail["index"] == 1


def test_pictures_are_classified_as_by_the_pipeline(tmp_path: Path) -> None:
    from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

    names = {index: f"class {index}" for index in range(7)}
    config = tf.ViTConfig(**TOWER, image_size=32, patch_size=8, num_labels=7, id2label=names)
    directory = tmp_path / "model"
    saved(directory, random_model(tf.ViTForImageClassification, config, spread=2.0))
    write_json(
        directory / "preprocessor_config.json",
        {"image_processor_type": "ViTImageProcessor", "size": {"height": 32, "width": 32}},
    )
    model = tf.ViTForImageClassification.from_pretrained(directory)
    processor = ViTImageProcessorPil.from_pretrained(directory)
    oracle = tf.pipeline("image-classification", model=model, image_processor=processor, device="cpu")
    found = loaded(directory)
    for data, output in zip(PICTURES, infer(found, [Image(data) for data in PICTURES]), strict=True):
        expected = oracle(PIL.Image.open(io.BytesIO(data)), top_k=5)
        assert isinstance(output, Scores)
        assert [score.label for score in output.items] == [score["label"] for score in expected]
        np.testing.assert_allclose([s.score for s in output.items], [s["score"] for s in expected], atol=2e-6)
    (two,) = infer(found, [Image(PICTURES[0])], top_k=2)
    assert isinstance(two, Scores)
    assert len(two.items) == 2
    _, processing, engine = found
    assert processing.primary(engine, processing.example(0)).shape == (7,)
