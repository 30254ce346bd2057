"""WAV files: their samples as one channel of floats, at the rate that a model wants.

Read here and not by the standard library's ``wave``, which knows no floats and trusts the sizes a header claims.
Source: Microsoft's Multimedia Programming Interface 1.0 and its WAVE_FORMAT_EXTENSIBLE; RF64 is not read.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

MAX_AUDIO_BYTES = 64 << 20
MAX_SECONDS = 30 * 60
_RATES = range(1_000, 384_001)
_MAX_CHANNELS = 32

_PCM, _FLOAT, _ALAW, _MULAW, _EXTENSIBLE = 1, 3, 6, 7, 0xFFFE
# What follows the two bytes of the format code in an extensible header: KSDATAFORMAT_SUBTYPE's own GUID.
_SUBFORMAT_TAIL = bytes.fromhex("000000001000800000aa00389b71")

Samples = NDArray[np.float32]


class BadAudio(ValueError):
    """Not a WAV file that can be read; str() says what is wrong with it."""


@dataclass(frozen=True, slots=True)
class _Format:
    code: int
    channels: int
    rate: int
    frame_bytes: int
    bits: int


def read_wav(data: bytes) -> tuple[Samples, int]:
    """(samples, rate): mean of all channels, -1 to 1 for integer formats, and the file's own rate in Hz.

    PCM of 8, 16, 24 and 32 bits, floats of 32 and 64 bits. A data chunk that ends early, as streams leave it, is taken
    as far as it goes. Raises BadAudio.
    """
    if len(data) > MAX_AUDIO_BYTES:
        raise BadAudio(f"longer than {MAX_AUDIO_BYTES >> 20} MiB")
    if len(data) < 12 or data[:4] != b"RIFF" or data[8:12] != b"WAVE":
        raise BadAudio("not a WAV file (it does not begin with RIFF … WAVE)")
    layout: _Format | None = None
    for name, body in _chunks(data):
        if name == b"fmt ":
            layout = _read_format(body)
        elif name == b"data":
            if layout is None:
                raise BadAudio("samples come before their format")
            return _read_samples(body, layout), layout.rate
    raise BadAudio("no samples in it")


def _chunks(data: bytes) -> Iterator[tuple[bytes, memoryview]]:
    view, at = memoryview(data), 12
    while at + 8 <= len(data):
        name, size = struct.unpack_from("<4sI", data, at)
        yield name, view[at + 8 : at + 8 + size]
        at += 8 + size + size % 2


def _read_format(body: memoryview) -> _Format:
    if len(body) < 16:
        raise BadAudio("its format chunk is cut off")
    code, channels, rate, _, frame_bytes, bits = struct.unpack_from("<HHIIHH", body)
    if code == _EXTENSIBLE:
        if len(body) < 40 or bytes(body[26:40]) != _SUBFORMAT_TAIL:
            raise BadAudio("an extensible format that is neither PCM nor float")
        (code,) = struct.unpack_from("<H", body, 24)
    if (code, bits) not in {(_PCM, 8), (_PCM, 16), (_PCM, 24), (_PCM, 32), (_FLOAT, 32), (_FLOAT, 64)}:
        named = {_PCM: "PCM", _FLOAT: "float", _ALAW: "A-law", _MULAW: "µ-law"}.get(code, f"format {code}")
        raise BadAudio(f"{named} of {bits} bits; PCM of 8, 16, 24, 32 and float of 32, 64 bits can be read")
    if not 1 <= channels <= _MAX_CHANNELS or rate not in _RATES or frame_bytes != channels * bits // 8:
        raise BadAudio(f"{channels} channels at {rate} Hz in frames of {frame_bytes} bytes make no sense")
    return _Format(code, channels, rate, frame_bytes, bits)


def _read_samples(body: memoryview, layout: _Format) -> Samples:
    frames = len(body) // layout.frame_bytes
    if not frames:
        raise BadAudio("no samples in it")
    if frames > MAX_SECONDS * layout.rate:
        raise BadAudio(f"longer than {MAX_SECONDS // 60} minutes")
    channels = _numbers(body[: frames * layout.frame_bytes], layout).reshape(frames, layout.channels)
    if not np.isfinite(channels).all():
        raise BadAudio("a sample is not a finite number")
    # a sum of two huge floats may overflow where neither does alone
    return np.asarray(np.clip(channels.mean(axis=1, dtype=np.float64), -1e6, 1e6), dtype=np.float32)


def _numbers(raw: memoryview, layout: _Format) -> NDArray[np.floating]:
    if layout.code == _FLOAT:
        return np.frombuffer(raw, dtype=f"<f{layout.bits // 8}")
    if layout.bits == 8:
        return (np.frombuffer(raw, dtype=np.uint8).astype(np.float32) - 128) / 128
    if layout.bits == 24:
        wide = np.zeros((len(raw) // 3, 4), dtype=np.uint8)
        wide[:, 1:] = np.frombuffer(raw, dtype=np.uint8).reshape(-1, 3)
        return wide.view("<i4")[:, 0].astype(np.float64) / 2**31
    return np.frombuffer(raw, dtype=f"<i{layout.bits // 8}").astype(np.float64) / 2.0 ** (layout.bits - 1)


# Zero crossings of the sinc on either side: with this window, aliases stay below -80 dB.
_CROSSINGS = 24
_MAX_PHASES = 2048


def resampled(samples: Samples, rate: int, wanted: int) -> Samples:
    """The same sound at another rate: a windowed sinc, cut off below the lower of the two Nyquist frequencies.

    Length: samples * wanted / rate, rounded up. Source: J. O. Smith, Digital Audio Resampling; Kaiser window, β = 9.
    """
    if rate == wanted:
        return samples
    # rates without a common divisor, such as 44,099: a nearby ratio, off by less than one in a million
    ratio = Fraction(rate, wanted).limit_denominator(_MAX_PHASES)
    up, down = ratio.denominator, ratio.numerator
    cutoff = min(1.0, up / down) * 0.95
    reach = int(np.ceil(_CROSSINGS / cutoff))
    length = -(-len(samples) * up // down)
    guarded = np.concatenate([np.zeros(reach, np.float32), samples, np.zeros(reach + 1, np.float32)])
    result = np.empty(length, dtype=np.float32)
    taps = np.arange(1 - reach, reach + 1)
    for phase in range(min(up, length)):
        # outputs phase, phase + up, … lie at the same distance from the input sample before them
        base, within = divmod(phase * down, up)
        at = taps - within / up
        window = np.i0(9.0 * np.sqrt(np.maximum(0.0, 1 - (at / reach) ** 2))) / np.i0(9.0)
        kernel = (cutoff * np.sinc(cutoff * at) * window).astype(np.float32)
        starts = np.arange(base + 1, base + 1 + down * len(result[phase::up]), down)
        result[phase::up] = _filtered(guarded, starts, kernel / kernel.sum())
    return result


def _filtered(guarded: Samples, starts: NDArray[np.int64], kernel: Samples) -> Samples:
    """Dot products of the kernel with the windows that begin at ``starts``, a bounded number at a time."""
    windows = np.lib.stride_tricks.sliding_window_view(guarded, len(kernel))
    result = np.empty(len(starts), dtype=np.float32)
    for first in range(0, len(starts), 1 << 14):
        part = slice(first, first + (1 << 14))
        result[part] = windows[np.minimum(starts[part], len(windows) - 1)] @ kernel
    return result
