"""WAV files, resampling, and the log-mel spectrograms of Whisper."""

from __future__ import annotations

import io
import struct
import wave
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from transformers import WhisperFeatureExtractor

from ipfs_accelerate_node.errors import ModelUnsupported
from ipfs_accelerate_node.inference.tasks.logmel import LogMel, read_logmel
from ipfs_accelerate_node.inference.tasks.samples import sound
from ipfs_accelerate_node.inference.tasks.speech import pieces_of
from ipfs_accelerate_node.inference.tasks.wav import BadAudio, read_wav, resampled

RATE = 16_000


def riff(form: bytes, samples: bytes, *, before: bytes = b"", size: int | None = None) -> bytes:
    """A WAV file of a format chunk and samples. before: other chunks between them. size: that the data chunk claims."""
    chunks = b"fmt " + struct.pack("<I", len(form)) + form + before
    chunks += b"data" + struct.pack("<I", len(samples) if size is None else size) + samples
    return b"RIFF" + struct.pack("<I", 4 + len(chunks)) + b"WAVE" + chunks


def form(code: int, bits: int, *, channels: int = 1, rate: int = RATE) -> bytes:
    frame = channels * bits // 8
    return struct.pack("<HHIIHH", code, channels, rate, rate * frame, frame, bits)


def extensible(code: int, bits: int) -> bytes:
    tail = bytes.fromhex("000000001000800000aa00389b71")
    return form(0xFFFE, bits) + struct.pack("<HHIH", 22, bits, 4, code) + tail


def tone(hertz: float, rate: int, seconds: float = 1.0) -> NDArray[np.float32]:
    return np.sin(2 * np.pi * hertz * np.arange(int(rate * seconds)) / rate).astype(np.float32)


WAVE_FORM = np.array([0.0, 0.5, -0.5, 0.999, -1.0, 0.25])
ENCODED = {
    "8 bits": (form(1, 8), np.clip(WAVE_FORM * 128 + 128, 0, 255).astype("u1").tobytes(), 0.01),
    "16 bits": (form(1, 16), (WAVE_FORM * 32767).astype("<i2").tobytes(), 1e-4),
    "24 bits": (form(1, 24), b"".join(int(x * 8388607).to_bytes(3, "little", signed=True) for x in WAVE_FORM), 1e-6),
    "32 bits": (form(1, 32), (WAVE_FORM * 2147483647).astype("<i4").tobytes(), 1e-6),
    "float": (form(3, 32), WAVE_FORM.astype("<f4").tobytes(), 1e-7),
    "double": (form(3, 64), WAVE_FORM.astype("<f8").tobytes(), 1e-7),
    "extensible 16": (extensible(1, 16), (WAVE_FORM * 32767).astype("<i2").tobytes(), 1e-4),
    "extensible float": (extensible(3, 32), WAVE_FORM.astype("<f4").tobytes(), 1e-7),
}


@pytest.mark.parametrize(("layout", "samples", "tolerance"), ENCODED.values(), ids=ENCODED.keys())
def test_every_format_gives_the_same_wave(layout: bytes, samples: bytes, tolerance: float) -> None:
    found, rate = read_wav(riff(layout, samples))
    assert (rate, str(found.dtype)) == (RATE, "float32")
    np.testing.assert_allclose(found, WAVE_FORM, atol=tolerance)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(-32768, 32767), st.integers(-32768, 32767)), min_size=1, max_size=50))
def test_stereo_of_the_standard_library_is_its_mean(frames: list[tuple[int, int]]) -> None:
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setnchannels(2)
        writer.setsampwidth(2)
        writer.setframerate(22_050)
        writer.writeframes(np.array(frames, dtype="<i2").tobytes())
    found, rate = read_wav(file.getvalue())
    assert rate == 22_050
    np.testing.assert_allclose(found, np.mean(frames, axis=1) / 32768, atol=1e-7)


def test_other_chunks_are_passed_over_odd_sizes_padded() -> None:
    listed = b"LIST" + struct.pack("<I", 5) + b"INFO!\0"
    found, _ = read_wav(riff(form(1, 16), b"\0\x40", before=listed))
    assert found.tolist() == [0.5]


def test_a_stream_that_claims_more_than_it_has_is_taken_as_far_as_it_goes() -> None:
    found, _ = read_wav(riff(form(1, 16), b"\0\x40\0\x20\0", size=0xFFFFFFFF))
    assert found.tolist() == [0.5, 0.25]


BAD = {
    "empty": b"",
    "MP3": b"ID3\x04" + bytes(40),
    "RIFX": b"RIFX" + riff(form(1, 16), bytes(8))[4:],
    "no chunk": b"RIFF\4\0\0\0WAVE",
    "samples before their format": b"RIFF\0\0\0\0WAVEdata\2\0\0\0\0\0",
    "format cut off": riff(form(1, 16)[:10], bytes(8)),
    "A-law": riff(form(6, 8), bytes(8)),
    "ADPCM": riff(form(2, 4), bytes(8)),
    "12 bits": riff(form(1, 12), bytes(8)),
    "half floats": riff(form(3, 16), bytes(8)),
    "no channel": riff(struct.pack("<HHIIHH", 1, 0, RATE, RATE, 2, 16), bytes(8)),
    "a thousand channels": riff(form(1, 16, channels=1000), bytes(4000)),
    "no rate": riff(form(1, 16, rate=0), bytes(8)),
    "a rate of 4 GHz": riff(struct.pack("<HHIIHH", 1, 1, 0xFFFFFFFF, 0, 2, 16), bytes(8)),
    "frames that do not fit": riff(struct.pack("<HHIIHH", 1, 1, RATE, RATE, 4, 16), bytes(8)),
    "no samples": riff(form(1, 16), b""),
    "less than a frame": riff(form(1, 16, channels=2), b"\0\0"),
    "NaN": riff(form(3, 32), struct.pack("<f", float("nan"))),
    "infinity": riff(form(3, 64), struct.pack("<d", float("inf"))),
    "an hour": riff(form(1, 8, rate=1000), bytes(3_600_000)),
    "an unknown extension": riff(form(0xFFFE, 16) + bytes(24), bytes(8)),
}


@pytest.mark.parametrize("data", BAD.values(), ids=BAD.keys())
def test_what_cannot_be_read_is_said_to_be_so(data: bytes) -> None:
    with pytest.raises(BadAudio):
        read_wav(data)


def test_cut_anywhere_nothing_else_escapes() -> None:
    data = riff(extensible(1, 24), bytes(30), before=b"LIST\4\0\0\0INFO")
    for end in range(len(data)):
        try:
            read_wav(data[:end])
        except BadAudio:
            continue


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=120))
def test_bytes_behind_the_magic_never_break_it(body: bytes) -> None:
    with suppress(BadAudio):
        read_wav(b"RIFF\0\0\0\0WAVEfmt \x10\0\0\0" + body)


@pytest.mark.parametrize("rate", [8_000, 11_025, 22_050, 44_100, 48_000, 44_099, 96_000])
def test_resampling_keeps_a_tone(rate: int) -> None:
    found = resampled(tone(440, rate), rate, RATE)
    assert abs(len(found) - RATE) <= 1
    expected = tone(440, RATE, 1.1)[: len(found)]
    np.testing.assert_allclose(found[400:-400], expected[400:-400], atol=2e-3 if rate == 44_099 else 1e-4)


@pytest.mark.parametrize("rate", [22_050, 44_100, 48_000])
def test_what_the_lower_rate_cannot_hold_is_gone_not_folded_back(rate: int) -> None:
    assert np.abs(resampled(tone(9_500, rate), rate, RATE)[400:-400]).max() < 1e-4


def test_one_rate_is_left_alone_and_one_sample_is_enough() -> None:
    wave_form = tone(100, RATE)
    assert resampled(wave_form, RATE, RATE) is wave_form
    assert len(resampled(np.ones(1, dtype=np.float32), 8_000, RATE)) == 2


@pytest.mark.parametrize("seconds", [0.1, 7.0, 30.0, 31.0])
@pytest.mark.parametrize("mels", [80, 128])
def test_features_are_those_of_transformers(seconds: float, mels: int) -> None:
    extractor = WhisperFeatureExtractor(feature_size=mels)
    wave_form = np.random.default_rng(1).normal(0, 0.1, int(seconds * RATE)).astype(np.float32)
    found = LogMel(mels=mels).features(wave_form)
    expected = extractor(wave_form, sampling_rate=RATE, return_tensors="np")["input_features"][0]
    assert (found.shape, str(found.dtype)) == ((mels, 3000), "float32")
    np.testing.assert_allclose(found, expected, atol=5e-6)  # that one runs in f32


def test_features_are_those_of_transformers_own_numpy_to_the_last_bit() -> None:
    wave_form, _ = read_wav(sound(3))
    padded = np.pad(wave_form, (0, 480_000 - len(wave_form)))
    expected = WhisperFeatureExtractor()._np_extract_fbank_features(padded[None], "cpu")[0]
    np.testing.assert_array_equal(LogMel().features(wave_form), expected)


def test_silence_has_features_too() -> None:
    assert np.isfinite(LogMel().features(np.zeros(10, dtype=np.float32))).all()


@pytest.mark.parametrize(
    "config",
    [
        {"feature_size": 0},
        {"feature_size": 10**9},
        {"sampling_rate": "16000"},
        {"hop_length": -1},
        {"n_fft": 1 << 30},
        {"chunk_length": 10**6},
        {"chunk_length": True},
        {"feature_extractor_type": "Wav2Vec2FeatureExtractor"},
        {"dither": 0.1},
        {"do_normalize": True},
    ],
)
def test_settings_of_no_use_are_refused(config: dict[str, object]) -> None:
    with pytest.raises(ModelUnsupported):
        read_logmel(config)


def test_long_sound_is_cut_where_it_is_quiet() -> None:
    wave_form = np.ones(70 * RATE, dtype=np.float32)
    wave_form[25 * RATE : 26 * RATE] = 0
    pieces = list(pieces_of(wave_form, LogMel()))
    assert sum(map(len, pieces)) == len(wave_form)
    assert all(len(piece) <= 30 * RATE for piece in pieces)
    assert 25 * RATE <= len(pieces[0]) <= 26 * RATE


def test_thirty_seconds_are_one_piece() -> None:
    assert len(list(pieces_of(np.zeros(30 * RATE, dtype=np.float32), LogMel()))) == 1
