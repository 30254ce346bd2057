"""Texts of the Llama family written together on a GPU: paged keys and values, steps recorded once and replayed."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ipfs_accelerate_node.errors import InferenceFailed
from ipfs_accelerate_node.inference.pages import Pages, pages_for
from ipfs_accelerate_node.inference.sequences import Scored
from ipfs_accelerate_node.inference.torch.compiling import compiling
from ipfs_accelerate_node.inference.torch.decode_kernels import PAGE_TOKENS
from ipfs_accelerate_node.inference.torch.device import device_errors
from ipfs_accelerate_node.inference.torch.kernels import compiles
from ipfs_accelerate_node.inference.torch.llama import Llama

log = logging.getLogger(__name__)

MOST = 64
MAX_TOKENS = 32768  # of one text
ROOM_TOKENS = 65536  # of all texts together, or one that may be longer
_SHARE = 0.5  # of the memory that the weights leave, for keys and values
_BATCHES = (1, 2, 4, 8, 16, 32, 64)
_PREFILL = 2048  # tokens of a prompt in one pass
_PROGRAMS = 264  # of attention at once: two on each of an H100's multiprocessors


@dataclass(frozen=True, slots=True)
class _Recorded:
    graph: torch.cuda.CUDAGraph
    inputs: Tensor
    best: Tensor
    scores: Tensor


class PagedSequences:
    """See ``sequences.Sequences``."""

    def __init__(self, module: Any, *, limit: int) -> None:
        self._limit = min(limit, MAX_TOKENS)
        self._llama = Llama(module, limit=self._limit)
        self.most = MOST
        on = self._llama.device
        page_bytes = PAGE_TOKENS * self._llama.token_bytes
        free, _ = torch.cuda.mem_get_info(on)
        wanted = 1 + max(pages_for(self._limit, PAGE_TOKENS), pages_for(ROOM_TOKENS, PAGE_TOKENS))
        count = max(2, min(wanted, int(free * _SHARE) // page_bytes))  # page 0 is written to, whatever fits
        self._pages = Pages(count, PAGE_TOKENS, MOST, self._limit)
        self._cache = self._llama.cache(count)
        self._stream = torch.cuda.Stream(on)  # type: ignore[no-untyped-call]
        self._recorded: dict[int, _Recorded] = {}
        self._pool: Any = None
        self._stream.wait_stream(torch.cuda.current_stream(on))

    def record(self) -> None:
        """Compile and record every step before somebody waits for one."""
        with torch.inference_mode(), device_errors("the decoder"):
            for batch in _BATCHES:
                self._recording(batch)

    def fits(self, tokens: int) -> bool:
        return self._pages.fits(tokens)

    def open(self, tokens: int) -> int | None:
        return self._pages.open(tokens)

    def close(self, place: int) -> None:
        self._pages.close(place)

    def read(self, place: int, ids: Sequence[int], *, scores: bool) -> Scored:
        held = self._pages.places[place]
        if not ids or held.length + len(ids) > held.limit:
            raise InferenceFailed("a text is longer than what it was let in for")
        with torch.inference_mode(), device_errors("the decoder"), torch.cuda.stream(self._stream):
            pages = torch.from_numpy(held.pages.astype(np.int64)).to(self._llama.device)
            table = self._padded(held.pages)
            found = None
            for start in range(0, len(ids), _PREFILL):
                piece = torch.tensor(ids[start : start + _PREFILL], device=self._llama.device)
                positions = torch.arange(
                    held.length, held.length + len(piece), device=self._llama.device, dtype=torch.int32
                )
                rows = (positions, torch.zeros_like(positions), table)
                found = self._llama.read(piece, rows, self._cache, pages=pages, before=held.length)
                held.length += len(piece)
            assert found is not None
            return _scored(_best(found), found, [0] if scores else [])

    def step(self, places: Sequence[int], tokens: Sequence[int], *, scores: Sequence[int] = ()) -> Scored:
        held = [self._pages.places[place] for place in places]
        if any(one.length >= one.limit for one in held):
            raise InferenceFailed("a text is longer than what it was let in for")
        batch = next(size for size in _BATCHES if size >= len(places))
        columns = self._llama.heads.columns
        given = np.zeros(_size(batch, columns), dtype=np.int32)
        ids, positions, owners, table = _parts(batch, columns)
        given[owners] = np.arange(batch)
        tables = given[table].reshape(batch, columns)
        for row, (one, token) in enumerate(zip(held, tokens, strict=True)):
            given[ids.start + row], given[positions.start + row] = token, one.length
            tables[row, : len(one.pages)] = one.pages
        with torch.inference_mode(), device_errors("the decoder"), torch.cuda.stream(self._stream):
            recorded = self._recording(batch)
            recorded.inputs.copy_(torch.from_numpy(given), non_blocking=True)
            recorded.graph.replay()
            for one in held:
                one.length += 1
            return _scored(recorded.best[: len(places)], recorded.scores, scores)

    def _padded(self, pages: Any) -> Tensor:
        table = np.zeros((1, self._llama.heads.columns), dtype=np.int32)
        table[0, : len(pages)] = pages
        return torch.from_numpy(table).to(self._llama.device)

    def _recording(self, batch: int) -> _Recorded:
        if batch not in self._recorded:
            self._recorded[batch] = self._record(batch)
            self._pool = self._pool or self._recorded[batch].graph.pool()
        return self._recorded[batch]

    def _record(self, batch: int) -> _Recorded:
        columns = self._llama.heads.columns
        inputs = torch.zeros(_size(batch, columns), device=self._llama.device, dtype=torch.int32)
        ids, positions, owners, table = (inputs[part] for part in _parts(batch, columns))
        table = table.view(batch, columns)
        owners.copy_(torch.arange(batch))
        splits = _splits(batch * self._llama.heads.kept)

        def run() -> tuple[Tensor, Tensor]:
            scores = self._llama.step(ids, (positions, owners, table), self._cache, splits=splits)
            return _best(scores), scores

        with torch.cuda.stream(self._stream):
            for _ in range(2):
                run()
            self._stream.synchronize()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=self._pool, stream=self._stream):
                best, scores = run()
        return _Recorded(graph, inputs, best, scores)


def paged_sequences(module: Any, *, limit: int) -> PagedSequences | None:
    """None: the kernels cannot be compiled here. Blocking, for seconds."""
    with compiling():
        if (reason := compiles(next(module.parameters()).device)) is not None:
            log.warning("kernels.none reason=%s", reason)
            return None
        with torch.inference_mode(), device_errors("the decoder"):
            sequences = PagedSequences(module, limit=limit)
            sequences.record()
    return sequences


def _parts(batch: int, columns: int) -> tuple[slice, slice, slice, slice]:
    """Token, position and owner of each row, then their tables; each at a multiple of 16 bytes, for which kernels are
    compiled."""
    each = -(-batch // 4) * 4
    rows = (slice(at, at + batch) for at in (0, each, 2 * each))
    return *rows, slice(3 * each, 3 * each + batch * columns)  # type: ignore[return-value]


def _size(batch: int, columns: int) -> int:
    return int(_parts(batch, columns)[3].stop)


def _splits(programs: int) -> int:
    """Into how many shares a text's pages go, so that the whole device has something to do."""
    splits = 1
    while splits < 16 and splits * 2 * programs <= _PROGRAMS:
        splits *= 2
    return splits


def _best(scores: Tensor) -> Tensor:
    """(rows,) int64; -1 where a score is no number."""
    most, best = scores.max(dim=1)
    return torch.where(most.isfinite(), best, -1)  # NaN is the most of any


def _scored(best: Tensor, scores: Tensor, wanted: Sequence[int]) -> Scored:
    """One wait for the device."""
    shown = scores[list(wanted)].cpu().numpy() if wanted else np.empty((0, scores.shape[1]), dtype=np.float32)
    return Scored(best.cpu().numpy(), shown)
