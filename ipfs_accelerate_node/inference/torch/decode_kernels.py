"""The steps of a decoder of the Llama family that torch has no fast kernel for, written in Triton.

A step for one text reads every weight once, and nothing else takes long, unless it is cut into two hundred small
kernels: here a layer is four products of matrices and six kernels. All compute in f32 whatever the arrays hold.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton  # type: ignore[import-untyped]
import triton.language as tl  # type: ignore[import-untyped]
from torch import Tensor

PAGE_TOKENS = 64
HEAD_WIDTHS = (16, 32, 64, 128, 256)
_LOG2_E = 1.4426950408889634


@triton.jit  # type: ignore[untyped-decorator]
def _add_norm(x, residual, weight, total, out, epsilon, ADD: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    there = columns < WIDTH
    wide = tl.load(x + row * WIDTH + columns, mask=there, other=0.0).to(tl.float32)
    if ADD:
        wide += tl.load(residual + row * WIDTH + columns, mask=there, other=0.0).to(tl.float32)
        rounded = wide.to(total.dtype.element_ty)
        tl.store(total + row * WIDTH + columns, rounded, mask=there)
        wide = rounded.to(tl.float32)
    scale = tl.rsqrt(tl.sum(wide * wide) / WIDTH + epsilon)
    by = tl.load(weight + columns, mask=there, other=0.0).to(tl.float32)
    tl.store(out + row * WIDTH + columns, (wide * scale * by).to(out.dtype.element_ty), mask=there)


@triton.jit  # type: ignore[untyped-decorator]
def _silu_times(x, out, WIDTH: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """x: (rows, 2, WIDTH), gate and up."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    there = columns < WIDTH
    gate = tl.load(x + row * 2 * WIDTH + columns, mask=there, other=0.0).to(tl.float32)
    up = tl.load(x + row * 2 * WIDTH + WIDTH + columns, mask=there, other=0.0).to(tl.float32)
    tl.store(out + row * WIDTH + columns, (gate * tl.sigmoid(gate) * up).to(out.dtype.element_ty), mask=there)


@triton.jit  # type: ignore[untyped-decorator]
def _turn_and_keep(  # type: ignore[no-untyped-def]
    qkv, cosine, sine, query_weight, key_weight, positions, owners, table, out, keys, values, epsilon,
    HEADS: tl.constexpr, KEPT: tl.constexpr, WIDTH: tl.constexpr, PAGE: tl.constexpr, COLUMNS: tl.constexpr,
    NORMED: tl.constexpr,
):  # fmt: skip
    """One head of one row: queries are turned by their position, keys too and kept, values kept."""
    row = tl.program_id(0)
    head = tl.program_id(1)
    HALF: tl.constexpr = WIDTH // 2
    half = tl.arange(0, HALF)
    position = tl.load(positions + row)
    base = qkv + (row.to(tl.int64) * (HEADS + 2 * KEPT) + head) * WIDTH
    low = tl.load(base + half).to(tl.float32)
    high = tl.load(base + HALF + half).to(tl.float32)
    if head < HEADS + KEPT:
        if NORMED:
            weight = key_weight
            if head < HEADS:
                weight = query_weight
            scale = tl.rsqrt((tl.sum(low * low) + tl.sum(high * high)) / WIDTH + epsilon)
            low = low * scale * tl.load(weight + half).to(tl.float32)
            high = high * scale * tl.load(weight + HALF + half).to(tl.float32)
        c = tl.load(cosine + position * HALF + half)
        s = tl.load(sine + position * HALF + half)
        turned = low * c - high * s
        high = high * c + low * s
        low = turned
    if head < HEADS:
        place = out + (row.to(tl.int64) * HEADS + head) * WIDTH
        tl.store(place + half, low.to(out.dtype.element_ty))
        tl.store(place + HALF + half, high.to(out.dtype.element_ty))
    else:
        page = tl.load(table + tl.load(owners + row) * COLUMNS + position // PAGE).to(tl.int64)
        kept = head - HEADS
        into = keys
        if head >= HEADS + KEPT:
            kept = head - HEADS - KEPT
            into = values
        place = into + ((page * KEPT + kept) * PAGE + position % PAGE) * WIDTH
        tl.store(place + half, low.to(keys.dtype.element_ty))
        tl.store(place + HALF + half, high.to(keys.dtype.element_ty))


@triton.jit  # type: ignore[untyped-decorator]
def _attend(  # type: ignore[no-untyped-def]
    query, keys, values, owners, positions, table, part, most_, total_, scale,
    HEADS: tl.constexpr, KEPT: tl.constexpr, WIDTH: tl.constexpr, PAGE: tl.constexpr, COLUMNS: tl.constexpr,
    SPLITS: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """A share of the pages of one row's text, for the query heads that share one head of keys."""
    row = tl.program_id(0)
    kept = tl.program_id(1)
    split = tl.program_id(2)
    GROUP: tl.constexpr = HEADS // KEPT
    length = tl.load(positions + row) + 1
    pages = (length + PAGE - 1) // PAGE
    share = (pages + SPLITS - 1) // SPLITS
    group = tl.arange(0, ROWS)
    columns = tl.arange(0, WIDTH)
    inside = group < GROUP
    heads = kept * GROUP + group
    q = tl.load(query + (row * HEADS + heads[:, None]) * WIDTH + columns[None, :], mask=inside[:, None], other=0.0)
    most = tl.full([ROWS], -1e30, tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    mixed = tl.zeros([ROWS, WIDTH], tl.float32)
    owner = tl.load(owners + row)
    for number in range(split * share, tl.minimum(split * share + share, pages)):
        page = tl.load(table + owner * COLUMNS + number).to(tl.int64)
        base = (page * KEPT + kept) * PAGE * WIDTH
        at = tl.arange(0, PAGE)
        there = number * PAGE + at < length
        key = tl.load(keys + base + at[None, :] * WIDTH + columns[:, None], mask=there[None, :], other=0.0)
        score = tl.where(there[None, :], tl.dot(q, key) * scale, -1e30)
        higher = tl.maximum(most, tl.max(score, 1))
        weight = tl.exp2(score - higher[:, None])
        keep = tl.exp2(most - higher)
        total = total * keep + tl.sum(weight, 1)
        value = tl.load(values + base + at[:, None] * WIDTH + columns[None, :], mask=there[:, None], other=0.0)
        mixed = tl.dot(weight.to(value.dtype), value, mixed * keep[:, None])
        most = higher
    place = (row * SPLITS + split) * HEADS + heads
    tl.store(part + place[:, None] * WIDTH + columns[None, :], mixed, mask=inside[:, None])
    tl.store(most_ + place, most, mask=inside)
    tl.store(total_ + place, total, mask=inside)


@triton.jit  # type: ignore[untyped-decorator]
def _joined(  # type: ignore[no-untyped-def]
    part, most_, total_, out, HEADS: tl.constexpr, WIDTH: tl.constexpr, SPLITS: tl.constexpr
):
    row = tl.program_id(0)
    head = tl.program_id(1)
    columns = tl.arange(0, WIDTH)
    splits = tl.arange(0, SPLITS)
    places = (row * SPLITS + splits) * HEADS + head
    most = tl.load(most_ + places)
    weight = tl.exp2(most - tl.max(most))
    total = tl.sum(tl.load(total_ + places) * weight)
    shares = tl.load(part + places[:, None] * WIDTH + columns[None, :])
    mixed = tl.sum(shares * weight[:, None], 0) / total
    tl.store(out + (row * HEADS + head) * WIDTH + columns, mixed.to(out.dtype.element_ty))


@dataclass(frozen=True, slots=True)
class Heads:
    """query: heads of queries. kept: heads of keys and of values. width: of each head. columns: pages of the longest
    text. epsilon: of the norms."""

    query: int
    kept: int
    width: int
    columns: int
    epsilon: float


def add_norm(x: Tensor, residual: Tensor | None, weight: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """(sum, its normalisation), each (rows, width); without a residual the sum is ``x``."""
    rows, width = x.shape
    out = torch.empty_like(x)
    total = x if residual is None else torch.empty_like(x)
    warps = 4 if width <= 2048 else 8
    _add_norm[(rows,)](
        x, residual if residual is not None else x, weight, total, out, epsilon,
        ADD=residual is not None, WIDTH=width, BLOCK=triton.next_power_of_2(width), num_warps=warps,
    )  # fmt: skip
    return total, out


def silu_times(x: Tensor) -> Tensor:
    """(rows, width) of (rows, 2 x width): silu of the first half, times the second."""
    rows, width = x.shape[0], x.shape[1] // 2
    out = torch.empty((rows, width), device=x.device, dtype=x.dtype)
    block = min(1024, triton.next_power_of_2(width))
    _silu_times[(rows, triton.cdiv(width, block))](x, out, WIDTH=width, BLOCK=block, num_warps=4)
    return out


def turn_and_keep(
    qkv: Tensor,
    heads: Heads,
    turns: tuple[Tensor, Tensor],
    norms: tuple[Tensor, Tensor] | None,
    rows: tuple[Tensor, Tensor, Tensor],
    cache: tuple[Tensor, Tensor],
) -> Tensor:
    """Turned queries, (rows, heads x width); keys and values are written to their pages.

    turns: cosine and sine, (positions, width / 2) f32. norms: of each head of queries and of keys. rows: positions
    (rows,), owners (rows,), which row of the table is theirs, and that table (texts, columns), all int32. cache: keys
    and values, (pages, kept heads, PAGE_TOKENS, width).
    """
    positions, owners, table = rows
    count = qkv.shape[0]
    out = torch.empty((count, heads.query * heads.width), device=qkv.device, dtype=qkv.dtype)
    query_norm, key_norm = norms or (qkv, qkv)
    _turn_and_keep[(count, heads.query + 2 * heads.kept)](
        qkv, *turns, query_norm, key_norm, positions, owners, table, out, *cache, heads.epsilon,
        HEADS=heads.query, KEPT=heads.kept, WIDTH=heads.width, PAGE=PAGE_TOKENS, COLUMNS=heads.columns,
        NORMED=norms is not None, num_warps=1,
    )  # fmt: skip
    return out


def attend(
    query: Tensor, heads: Heads, rows: tuple[Tensor, Tensor, Tensor], cache: tuple[Tensor, Tensor], splits: int
) -> Tensor:
    """(rows, heads x width): of each row's query over the text that it ends. splits: a power of two; into how many
    shares a text's pages go."""
    positions, owners, table = rows
    count = query.shape[0]
    shape = (count, splits, heads.query)
    part = torch.empty((*shape, heads.width), device=query.device, dtype=torch.float32)
    most = torch.empty(shape, device=query.device, dtype=torch.float32)
    total = torch.empty_like(most)
    group = max(16, triton.next_power_of_2(heads.query // heads.kept))
    _attend[(count, heads.kept, splits)](
        query, *cache, owners, positions, table, part, most, total, _LOG2_E / heads.width**0.5,
        HEADS=heads.query, KEPT=heads.kept, WIDTH=heads.width, PAGE=PAGE_TOKENS, COLUMNS=heads.columns,
        SPLITS=splits, ROWS=group, num_warps=4, num_stages=2,
    )  # fmt: skip
    out = torch.empty_like(query)
    _joined[(count, heads.query)](
        part, most, total, out, HEADS=heads.query, WIDTH=heads.width, SPLITS=splits, num_warps=2
    )
    return out
