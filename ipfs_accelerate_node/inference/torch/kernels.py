"""The steps of a packed pass that torch has no fast kernel for, written in Triton.

Attention over short texts: torch's kernel takes tiles of 128 queries, and most of a tile is empty when texts have 60
tokens; with 64 it takes less than half of the time. A sum and its normalisation in one pass over memory instead of two:
the same again. Both compute in f32 whatever the arrays hold. Figures: H100, 64k tokens of log-normal lengths with a
median of 60, width 768: 0.47 → 0.21 ms and 0.22 → 0.10 ms a layer.

Importing this needs triton; compiling, which happens at the first pass, needs a C compiler and the CUDA driver's
library.
"""

from __future__ import annotations

import subprocess
from collections.abc import Mapping

import torch
import triton  # type: ignore[import-untyped]
import triton.language as tl  # type: ignore[import-untyped]
from torch import Tensor
from triton.errors import TritonError  # type: ignore[import-untyped]

from ipfs_accelerate_node.inference.torch.rows import BLOCK_QUERIES

HEAD_WIDTHS = (16, 32, 64, 128)
MAX_WIDTH = 8192
_BLOCK_KEYS = 32
_LOG2_E = 1.4426950408889634


@triton.jit  # type: ignore[untyped-decorator]
def _attention(  # type: ignore[no-untyped-def]
    qkv, out, at_, first_, length_, scale, HEADS: tl.constexpr, WIDTH: tl.constexpr, M: tl.constexpr, N: tl.constexpr
):
    """qkv: (tokens, 3, HEADS, WIDTH); out: (tokens, HEADS, WIDTH). scale: of the scores, for powers of two."""
    head = tl.program_id(0)
    block = tl.program_id(1)
    at = tl.load(at_ + block)
    length = tl.load(length_ + block)
    first = tl.load(first_ + block).to(tl.int64)
    if at < length:
        rows = at + tl.arange(0, M)
        columns = tl.arange(0, WIDTH)
        stride = 3 * HEADS * WIDTH
        base = qkv + first * stride + head * WIDTH
        query = tl.load(base + rows[:, None] * stride + columns[None, :], mask=rows[:, None] < length, other=0.0)
        most = tl.full([M], -1e30, tl.float32)
        total = tl.zeros([M], tl.float32)
        mixed = tl.zeros([M, WIDTH], tl.float32)
        for begin in range(0, length, N):
            keys = begin + tl.arange(0, N)
            there = keys < length
            key = tl.load(
                base + HEADS * WIDTH + keys[None, :] * stride + columns[:, None], mask=there[None, :], other=0.0
            )
            score = tl.where(there[None, :], tl.dot(query, key) * scale, -1e30)
            higher = tl.maximum(most, tl.max(score, 1))
            weight = tl.exp2(score - higher[:, None])
            keep = tl.exp2(most - higher)
            total = total * keep + tl.sum(weight, 1)
            value = tl.load(
                base + 2 * HEADS * WIDTH + keys[:, None] * stride + columns[None, :], mask=there[:, None], other=0.0
            )
            mixed = tl.dot(weight.to(value.dtype), value, mixed * keep[:, None])
            most = higher
        mixed = mixed / total[:, None]
        place = out + (first + rows)[:, None] * (HEADS * WIDTH) + head * WIDTH + columns[None, :]
        tl.store(place, mixed.to(out.dtype.element_ty), mask=rows[:, None] < length)


@triton.jit  # type: ignore[untyped-decorator]
def _normalised(row, out, wide, there, columns, weight, bias, epsilon, WIDTH: tl.constexpr):  # type: ignore[no-untyped-def]
    mean = tl.sum(wide) / WIDTH
    away = tl.where(there, wide - mean, 0.0)
    scale = tl.rsqrt(tl.sum(away * away) / WIDTH + epsilon)
    by = tl.load(weight + columns, mask=there, other=0.0).to(tl.float32)
    to = tl.load(bias + columns, mask=there, other=0.0).to(tl.float32)
    tl.store(out + row * WIDTH + columns, (away * scale * by + to).to(out.dtype.element_ty), mask=there)


@triton.jit  # type: ignore[untyped-decorator]
def _add_norm(x, y, weight, bias, out, epsilon, WIDTH: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    there = columns < WIDTH
    wide = tl.load(x + row * WIDTH + columns, mask=there, other=0.0).to(tl.float32)
    wide += tl.load(y + row * WIDTH + columns, mask=there, other=0.0).to(tl.float32)
    _normalised(row, out, wide, there, columns, weight, bias, epsilon, WIDTH)


@triton.jit  # type: ignore[untyped-decorator]
def _embed(  # type: ignore[no-untyped-def]
    ids, positions, types, words, places, kinds, weight, bias, out, epsilon,
    TYPED: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    there = columns < WIDTH
    word = tl.load(ids + row).to(tl.int64)
    place = tl.load(positions + row).to(tl.int64)
    wide = tl.load(words + word * WIDTH + columns, mask=there, other=0.0).to(tl.float32)
    wide += tl.load(places + place * WIDTH + columns, mask=there, other=0.0).to(tl.float32)
    if TYPED:
        kind = tl.load(types + row).to(tl.int64)
        wide += tl.load(kinds + kind * WIDTH + columns, mask=there, other=0.0).to(tl.float32)
    _normalised(row, out, wide, there, columns, weight, bias, epsilon, WIDTH)


@triton.jit  # type: ignore[untyped-decorator]
def _mean(hidden, starts, out, WIDTH: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    text = tl.program_id(0)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    there = columns < WIDTH
    start = tl.load(starts + text)
    stop = tl.load(starts + text + 1)
    total = tl.zeros([BLOCK], tl.float32)
    for row in range(start, stop):
        total += tl.load(hidden + tl.cast(row, tl.int64) * WIDTH + columns, mask=there, other=0.0).to(tl.float32)
    count = tl.maximum(stop - start, 1).to(tl.float32)
    tl.store(out + text * WIDTH + columns, total / count, mask=there)


def compiles(device: torch.device) -> str | None:
    """None: kernels can be compiled here; else why not. Within ``compiling.compiling``."""
    sample = torch.zeros((1, 16), device=device, dtype=torch.bfloat16)
    try:
        TritonSteps(1, 16, 1e-12).add_norm(sample, sample, sample[0], sample[0])
        torch.cuda.synchronize(device)
    except (OSError, RuntimeError, AssertionError, subprocess.SubprocessError, TritonError) as exc:
        return " ".join(f"{type(exc).__name__}: {exc}".split())[:200]
    return None


class TritonSteps:
    """See ``packed.Steps``. heads, width: of attention, and of the model."""

    name = "triton"
    recordable = True

    def __init__(self, heads: int, width: int, epsilon: float) -> None:
        self._heads = heads
        self._width = width
        self._head_width = width // heads
        self._scale = _LOG2_E / self._head_width**0.5
        self._epsilon = epsilon
        self._block = triton.next_power_of_2(width)
        self._warps = 2 if width <= 512 else 4 if width <= 2048 else 8

    def attention(self, qkv: Tensor, arrays: Mapping[str, Tensor]) -> Tensor:
        out = torch.empty((qkv.shape[0], self._width), device=qkv.device, dtype=qkv.dtype)
        blocks = arrays["at"]
        _attention[(self._heads, len(blocks))](
            qkv, out, blocks, arrays["first"], arrays["length"], self._scale,
            HEADS=self._heads, WIDTH=self._head_width, M=BLOCK_QUERIES, N=_BLOCK_KEYS, num_warps=4, num_stages=3,
        )  # fmt: skip
        return out

    def add_norm(self, x: Tensor, y: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        out = torch.empty_like(x)
        _add_norm[(x.shape[0],)](
            x, y, weight, bias, out, self._epsilon, WIDTH=self._width, BLOCK=self._block, num_warps=self._warps
        )
        return out

    def embed(self, arrays: Mapping[str, Tensor], tables: Mapping[str, Tensor]) -> Tensor:
        ids, words = arrays["ids"], tables["words"]
        typed = "types" in tables
        out = torch.empty((len(ids), self._width), device=words.device, dtype=words.dtype)
        _embed[(len(ids),)](
            ids, arrays["positions"], arrays["types"], words, tables["positions"], tables.get("types", words),
            tables["weight"], tables["bias"], out, self._epsilon,
            TYPED=typed, WIDTH=self._width, BLOCK=self._block, num_warps=self._warps,
        )  # fmt: skip
        return out

    def mean(self, hidden: Tensor, arrays: Mapping[str, Tensor]) -> Tensor:
        starts = arrays["starts"]
        out = torch.empty((len(starts) - 1, self._width), device=hidden.device, dtype=torch.float32)
        block = min(self._block, 256)
        _mean[(len(starts) - 1, triton.cdiv(self._width, block))](
            hidden, starts, out, WIDTH=self._width, BLOCK=block, num_warps=2
        )
        return out
