"""Real models: what the tasks make of their inputs is what transformers makes of them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
import transformers as tf

from ipfs_accelerate_node.inference.model import (
    Audio,
    Chat,
    Generated,
    Image,
    ImageChoice,
    Item,
    Message,
    Options,
    Text,
)
from ipfs_accelerate_node.inference.model_files import inspect
from ipfs_accelerate_node.inference.tasks import processing_for, samples
from ipfs_accelerate_node.inference.tasks.speech import SpeechRecognition
from ipfs_accelerate_node.inference.tasks.text_generation import TextGeneration
from ipfs_accelerate_node.inference.tasks.text_graphs import TextGraph
from tests.support.models_tasks import infer, loaded
from tests.support.sample import CHECKOUT, CLIP, DATA, SAMPLE, T5, made

WORDS = ["serving", "network", "a", "cat", "phoneme", "thought", "quixotic", "rhythm", "banana", "zebra", "night",
         "colonel", "island", "yacht", "elephant", "computer", "verification", "through", "bough", "x", "unbelievable",
         "Reykjavik", "don't", "mother-in-law"]  # fmt: skip
TEXTS = [*samples.TEXTS, "Ünïcödé ☃ 世界", "  spaces\tand\nlines  ", "1,234.5 %", "word" * 200, "don't stop! (never)"]
WITHOUT_TORCH = """
import sys
from pathlib import Path
from ipfs_accelerate_node.inference.model import Options
from ipfs_accelerate_node.inference.model_files import inspect
from ipfs_accelerate_node.inference.tasks import processing_for
for directory, tasks in zip(sys.argv[1::2], sys.argv[2::2]):
    for task in tasks.split(","):
        processing = processing_for(inspect(Path(directory), available_bytes=1 << 30), task)
        processing.check([processing.example(0), processing.example(1)], Options())
assert not {"torch", "transformers", "tensorflow", "scipy"} & sys.modules.keys()
"""


def test_no_task_imports_torch_or_transformers() -> None:
    arguments = [str(CLIP), "embedding,zero-shot-image-classification", str(T5), "text2text-generation"]
    command = [sys.executable, "-c", WITHOUT_TORCH, *arguments]
    subprocess.run(command, check=True, cwd=CHECKOUT, timeout=15)


def test_greedy_phonemes_are_token_by_token_those_of_generate() -> None:
    tokenizer = tf.AutoTokenizer.from_pretrained(T5)
    model = tf.T5ForConditionalGeneration.from_pretrained(T5).eval()
    for word, output in zip(WORDS, infer(loaded(T5), [Text(word) for word in WORDS]), strict=True):
        assert isinstance(output, Generated)
        given = tokenizer(word, return_tensors="pt")
        with torch.inference_mode():
            expected = model.generate(**given, do_sample=False, num_beams=1)[0]
        assert list(output.ids) == [token for token in expected.tolist() if token > 1]
        assert output.text == tokenizer.decode(expected, skip_special_tokens=True)


def test_clip_ranks_as_in_transformers() -> None:
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    files = sorted((CLIP / "samples").glob("*.png"))
    names = tuple(file.stem.replace("_", " ") for file in files)
    items = [ImageChoice(file.read_bytes(), names) for file in files]
    outputs: list[Any] = infer(loaded(CLIP, "zero-shot-image-classification"), items, raw_scores=True)
    texts = tf.AutoTokenizer.from_pretrained(CLIP)(list(names), padding=True, return_tensors="pt")
    pixels = CLIPImageProcessorPil.from_pretrained(CLIP)([PIL.Image.open(f) for f in files], return_tensors="pt")
    with torch.inference_mode():
        logits = tf.CLIPModel.from_pretrained(CLIP).eval()(**texts, **pixels).logits_per_image.numpy()
    for output, row in zip(outputs, logits, strict=True):
        found = {score.label: score.score for score in output.items}
        np.testing.assert_allclose([found[name] for name in names], row, atol=1e-4)


@pytest.mark.parametrize("directory", [CLIP, T5])
def test_tokens_are_those_of_transformers(directory: Path) -> None:
    compare_tokens(directory)


@pytest.mark.model
def test_tokens_of_the_sample_model_are_those_of_transformers() -> None:
    compare_tokens(SAMPLE)


def compare_tokens(directory: Path) -> None:
    files = inspect(directory, available_bytes=4 << 30)
    processing: Any = processing_for(files, files.tasks[0])
    graph = getattr(processing, "graph", None) or processing.texts
    assert isinstance(graph, TextGraph)
    tokenizer = tf.AutoTokenizer.from_pretrained(directory)
    rows = graph.rows([Text(text) for text in TEXTS], Options())
    for text, row in zip(TEXTS, rows, strict=True):
        expected = tokenizer(text, truncation=True, max_length=files.max_tokens)["input_ids"]
        assert row.ids == expected, text
        if files.family != "dual":  # nothing of such a model is ever decoded
            assert graph.tokens.text(row.ids) == tokenizer.decode(expected, skip_special_tokens=True)


@pytest.mark.model("smollm2-135m")
@pytest.mark.timeout(120)
def test_smollm2_writes_as_generate_does_left_padded_and_in_a_chat() -> None:
    directory = made("smollm2-135m")
    found = loaded(directory)
    _, processing, _ = found
    assert isinstance(processing, TextGeneration)
    tokenizer = tf.AutoTokenizer.from_pretrained(directory)
    model = tf.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    talk = (Message("user", "Name a colour."),)
    texts = ["The capital of France is", "Once upon a time there was a"]
    items: list[Item] = [*(Text(text) for text in texts), Chat(talk)]
    plain = [{"role": message.role, "content": message.content} for message in talk]
    chat = tokenizer.apply_chat_template(plain, add_generation_prompt=True, tokenize=False)
    prompts = [tokenizer(text).input_ids for text in texts]
    prompts.append(tokenizer(chat, add_special_tokens=False).input_ids)
    for prompt, output in zip(prompts, infer(found, items, max_new_tokens=8), strict=True):
        assert isinstance(output, Generated)
        given = torch.tensor([prompt])
        with torch.inference_mode():
            ids = model.generate(given, attention_mask=torch.ones_like(given), do_sample=False, max_new_tokens=8)
        expected = [token for token in ids[0, len(prompt) :].tolist() if token != model.generation_config.eos_token_id]
        assert list(output.ids) == expected
        before = tokenizer.decode(prompt, skip_special_tokens=True)
        whole = tokenizer.decode([*prompt, *expected], skip_special_tokens=True)
        assert output.text == whole.removeprefix(before)


@pytest.mark.model("whisper-tiny-en")
@pytest.mark.timeout(120)
def test_whisper_hears_what_it_hears_in_transformers() -> None:
    from ipfs_accelerate_node.inference.tasks.wav import read_wav, resampled

    directory = made("whisper-tiny-en")
    found = loaded(directory)
    assert isinstance(found[1], SpeechRecognition)
    model = tf.WhisperForConditionalGeneration.from_pretrained(directory, dtype=torch.float32).eval()
    extractor = tf.WhisperFeatureExtractor.from_pretrained(directory)
    files = sorted((DATA / "audio").glob("*.wav"))
    for file, output in zip(files, infer(found, [Audio(file.read_bytes()) for file in files]), strict=True):
        assert isinstance(output, Generated)
        sound, rate = read_wav(file.read_bytes())
        features = extractor(resampled(sound, rate, 16_000), sampling_rate=16_000, return_tensors="pt").input_features
        with torch.inference_mode():
            expected = model.generate(features, do_sample=False)[0].tolist()
        assert list(output.ids) == [token for token in expected if token < 50256]


@pytest.mark.model("efficientnet-lite0")
def test_efficientnet_sees_the_pixels_of_transformers() -> None:
    from transformers.models.efficientnet.image_processing_pil_efficientnet import EfficientNetImageProcessorPil

    directory = made("efficientnet-lite0")
    files = inspect(directory, available_bytes=4 << 30)
    processing: Any = processing_for(files, "image-classification")
    processor = EfficientNetImageProcessorPil.from_pretrained(directory)
    for file in sorted((DATA / "images").glob("*.jpg")):
        expected = processor(PIL.Image.open(file), return_tensors="np")["pixel_values"][0]
        np.testing.assert_array_equal(processing.graph.pixels(0, Image(file.read_bytes()).data), expected)
