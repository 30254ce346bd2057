"""What the raw samples of a record say, in the words of the field. Derived when it is shown, never signed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ipfs_accelerate_node.benchmarks.schema import Benchmark

FIRST_TOKEN = "first_token"


@dataclass(frozen=True, slots=True)
class Figures:
    """p50_ms, p95_ms, mean_ms, stdev_ms: of one repeat. throughput: of ``unit`` (``tokens/s``), the median of the
    repeats. ttft_ms: time to first token; tpot_ms: per token after it. rtf: seconds of computing per second of sound,
    below 1 is faster than speech. phases_ms: medians."""

    p50_ms: float
    p95_ms: float
    mean_ms: float
    stdev_ms: float
    throughput: float
    unit: str
    ttft_ms: float | None
    tpot_ms: float | None
    rtf: float | None
    phases_ms: dict[str, float]


def figures(found: Benchmark) -> Figures:
    samples = np.asarray(found.samples_ns, np.float64)
    work = np.asarray(found.work, np.float64)
    ttft_ms, tpot_ms = _tokens(found, samples, work)
    sound = found.unit == "audio_ms" and bool(work.all())
    return Figures(
        p50_ms=_rounded(np.percentile(samples, 50) / 1e6),
        p95_ms=_rounded(np.percentile(samples, 95) / 1e6),
        mean_ms=_rounded(samples.mean() / 1e6),
        stdev_ms=_rounded(samples.std() / 1e6),
        throughput=_rounded(np.median(work / samples) * (1e6 if sound else 1e9)),
        unit="s of audio/s" if sound else f"{found.unit}/s",
        ttft_ms=ttft_ms,
        tpot_ms=tpot_ms,
        rtf=_rounded(np.median(samples / 1e6 / work)) if sound else None,
        phases_ms={name: _rounded(np.median(values) / 1e6) for name, values in found.phases_ns.items()},
    )


def _tokens(
    found: Benchmark, samples: np.typing.NDArray[np.float64], work: np.typing.NDArray[np.float64]
) -> tuple[float | None, float | None]:
    """A prompt alone is answered with one token: all its time is time to the first. Of a generation the first token is
    timed by itself, between the others."""
    if found.parameters.get("new_tokens") == 1:
        return _rounded(np.median(samples) / 1e6), None
    first = found.phases_ns.get(FIRST_TOKEN)
    if first is None:
        return None, None
    firsts = np.asarray(first, np.float64)
    later = work - 1
    if not (later > 0).all():
        return _rounded(np.median(firsts) / 1e6), None
    return _rounded(np.median(firsts) / 1e6), _rounded(np.median((samples - firsts) / later) / 1e6)


def spread(samples_ns: tuple[int, ...]) -> float:
    """How far the middle half of the samples is apart, as a share of their median: 0 where all are alike."""
    low, middle, high = np.percentile(np.asarray(samples_ns, np.float64), (25, 50, 75))
    return float((high - low) / middle)


def _rounded(value: float | np.floating) -> float:
    return float(f"{float(value):.6g}")
