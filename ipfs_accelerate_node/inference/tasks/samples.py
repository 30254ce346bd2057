"""Sample inputs, the same for the same number everywhere: for warming up, calibration, comparison and the report."""

from __future__ import annotations

import io
import struct

import numpy as np
import PIL.Image

TEXTS = (
    "A man is eating food.",
    "Someone is having a meal at the table.",
    "The weather in Lisbon is mild for most of the year.",
    "Rain is expected tomorrow, with strong winds along the northern coast.",
    "She bought a second-hand bicycle and repaired it herself.",
    "The committee will publish its report on water quality in March.",
    "Two children play chess in the park while their grandfather watches.",
    "Photosynthesis turns light, water and carbon dioxide into sugar and oxygen.",
    "The train to the airport leaves every twenty minutes from platform nine.",
    "A good dictionary explains not only what a word means but where it comes from.",
    "The old bridge was closed to lorries after engineers found cracks in two of its arches.",
    "Prices rose by three percent last year, less than most economists had expected.",
    "In the evening the square fills with people, and the cafés put out every chair they have.",
    "The recipe asks for two cups of flour, a pinch of salt, and more patience than most cooks have.",
    "After the storm the islanders rebuilt the harbour wall with stones from the collapsed lighthouse.",
    "Early telescopes bent light with lenses; the largest ones today gather it with mirrors.",
)
WORDS = ("table", "lantern", "orchard", "whisper", "granite", "velvet", "harbour", "thimble")
MASKED = (
    "The capital of France is {}.",
    "She opened the {} and looked outside.",
    "Water boils at one hundred {}.",
    "The dog ran after the {}.",
)
PROMPTS = (
    "The capital of France is",
    "Once upon a time there was a",
    "Water is made of",
    "The three primary colours are",
)
LABELS = ("a circle", "a square", "a tree", "an animal", "food", "a face")


def text(number: int) -> str:
    return TEXTS[number % len(TEXTS)]


def picture(number: int, edge: int = 96) -> bytes:
    """A PNG of coloured waves with a disc in it."""
    y, x = np.mgrid[0:edge, 0:edge] / edge
    turn = number * 2.399963
    waves = [np.sin(6 * (x * np.cos(turn + k) + y * np.sin(turn + k)) + k) for k in range(3)]
    pixels = np.stack(waves, axis=2) * 100 + 128
    disc = (x - 0.5 - 0.2 * np.cos(turn)) ** 2 + (y - 0.5 - 0.2 * np.sin(turn)) ** 2 < 0.05
    pixels[disc] = [(number * 53) % 256, (number * 97 + 80) % 256, (number * 151 + 160) % 256]
    file = io.BytesIO()
    PIL.Image.fromarray(pixels.astype(np.uint8)).save(file, "PNG")
    return file.getvalue()


def sound(number: int, seconds: float = 3.0, rate: int = 16_000) -> bytes:
    """A WAV file of gliding tones that come and go about as fast as syllables do."""
    t = np.arange(int(seconds * rate)) / rate
    pitch = 120 + 15 * (number % 7) + 30 * np.sin(2 * np.pi * 0.7 * t)
    phase = 2 * np.pi * np.cumsum(pitch) / rate
    voice = np.sin(phase) + 0.5 * np.sin(2 * phase + number) + 0.3 * np.sin(5 * phase)
    envelope = np.clip(np.sin(2 * np.pi * 3.1 * t + number), 0, 1)
    samples: bytes = (voice * envelope * 6000).astype("<i2").tobytes()
    header = struct.pack("<4sI4s4sIHHIIHH4sI", b"RIFF", 36 + len(samples), b"WAVE", b"fmt ", 16, 1, 1, rate, 2 * rate,
                         2, 16, b"data", len(samples))  # fmt: skip
    return header + samples
