"""Log-mel spectrograms as Whisper was trained on. Source: WhisperFeatureExtractor and audio_utils of transformers."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ipfs_accelerate_node.errors import ModelUnsupported
from ipfs_accelerate_node.inference.strict_json import JsonObject

Samples = NDArray[np.float32]


@dataclass(frozen=True)
class LogMel:
    """The settings of a preprocessor_config.json. rate: samples per second; hop, fft: in samples; chunk_s: the length
    that every input is cut or filled up to."""

    mels: int = 80
    rate: int = 16_000
    hop: int = 160
    chunk_s: int = 30
    fft: int = 400
    filters: NDArray[np.float64] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "filters", _mel_filters(self.fft // 2 + 1, self.mels, self.rate))

    @property
    def samples(self) -> int:
        return self.chunk_s * self.rate

    def features(self, sound: Samples) -> NDArray[np.float32]:
        """(mels, frames) of one chunk, silence added or the end cut off until it has ``samples``."""
        chunk = np.zeros(self.samples, dtype=np.float64)
        taken = sound[: self.samples]
        chunk[: len(taken)] = taken
        reflected = np.pad(chunk, self.fft // 2, mode="reflect")
        frames = np.lib.stride_tricks.sliding_window_view(reflected, self.fft)[:: self.hop]
        window = np.hanning(self.fft + 1)[:-1]  # periodic
        spectrum = np.fft.rfft(frames * window, axis=1).astype(np.complex64)
        power = np.abs(spectrum[:-1], dtype=np.float64) ** 2
        logs = np.log10(np.maximum(1e-10, power @ self.filters)).T.astype(np.float32)
        return np.asarray((np.maximum(logs, logs.max() - 8.0) + 4.0) / 4.0, dtype=np.float32)


def read_logmel(config: JsonObject) -> LogMel:
    """Raises ModelUnsupported(bad_config): another kind of extractor, or a size out of the sensible range."""
    kind = config.get("feature_extractor_type", "WhisperFeatureExtractor")
    if kind != "WhisperFeatureExtractor":
        raise ModelUnsupported(
            f"preprocessor_config.json: extractor {str(kind)[:60]!r} is not supported", code="task_unsupported"
        )
    if config.get("dither", 0.0) not in (0, 0.0):
        raise ModelUnsupported("preprocessor_config.json: dither is not supported", code="task_unsupported")
    if config.get("do_normalize") is True:
        raise ModelUnsupported("preprocessor_config.json: do_normalize is not supported", code="task_unsupported")
    return LogMel(
        mels=_size(config, "feature_size", 80, range(8, 513)),
        rate=_size(config, "sampling_rate", 16_000, range(8_000, 48_001)),
        hop=_size(config, "hop_length", 160, range(40, 1_601)),
        chunk_s=_size(config, "chunk_length", 30, range(1, 121)),
        fft=_size(config, "n_fft", 400, range(64, 4_097)),
    )


def _size(config: JsonObject, key: str, default: int, sensible: range) -> int:
    value = config.get(key, default)
    if type(value) is not int or value not in sensible:
        raise ModelUnsupported(f"preprocessor_config.json: {key} is {str(value)[:40]!r}", code="bad_config")
    return value


def _to_mels(hertz: NDArray[np.float64]) -> NDArray[np.float64]:
    """Slaney's scale: linear up to 1 kHz, logarithmic above."""
    above = 15.0 + np.log(np.maximum(hertz, 1e-10) / 1000.0) * (27.0 / np.log(6.4))
    return np.where(hertz < 1000.0, 3.0 * hertz / 200.0, above)


def _to_hertz(mels: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.where(mels < 15.0, 200.0 * mels / 3.0, 1000.0 * np.exp(np.log(6.4) / 27.0 * (mels - 15.0)))


def _mel_filters(bins: int, mels: int, rate: int) -> NDArray[np.float64]:
    """(bins, mels): triangles of equal area (Slaney's), 0 to 8 kHz."""
    ends = _to_mels(np.array([0.0, 8000.0]))
    centres = _to_hertz(np.linspace(ends[0], ends[1], mels + 2))
    slopes = centres[None, :] - np.linspace(0, rate // 2, bins)[:, None]
    widths = np.diff(centres)
    triangles = np.maximum(0.0, np.minimum(-slopes[:, :-2] / widths[:-1], slopes[:, 2:] / widths[1:]))
    return triangles * (2.0 / (centres[2:] - centres[:-2]))[None, :]
