"""Which modules of a torch model become bf16 or f16, where not all do: see ``depthwise.py``."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ipfs_accelerate_node.inference.depthwise import exact_blocks, told
from ipfs_accelerate_node.inference.torch.device import DTYPES

_NAMES = {dtype: name for name, dtype in DTYPES.items()}


class Narrowing:
    """The parts of one module that take a narrow dtype: all of it, unless it has depthwise convolutions."""

    def __init__(self, module: nn.Module, dtype: torch.dtype) -> None:
        self._module = module
        self._dtype = dtype
        self._products = 0
        self._narrow: list[str] | None = None
        if dtype != torch.float32:
            self._look()

    def _look(self) -> None:
        parts = [(path, part) for path, part in self._module.named_modules() if isinstance(part, nn.Conv2d | nn.Linear)]
        depthwise = sum(map(_is_depthwise, (part for _, part in parts)))
        if not depthwise:
            return
        self._products = len(parts) - depthwise
        self._narrow, met = [], 0
        for path, part in parts:
            if _is_depthwise(part):
                met += 1
            elif met >= exact_blocks(depthwise):
                self._narrow.append(path)

    def dtype_of(self, name: str) -> torch.dtype:
        """Of the parameter or buffer with that name."""
        if self._narrow is None or name.rpartition(".")[0] in self._narrow:
            return self._dtype
        return torch.float32

    def finish(self) -> tuple[str, ...]:
        """When the tensors are in: each narrow part takes and gives f32. Returns notes for a person."""
        if self._narrow is None:
            return ()
        for path in self._narrow:
            part = self._module.get_submodule(path)
            part.register_forward_pre_hook(self._rounded)
            part.register_forward_hook(_widened)
        return (told(len(self._narrow), self._products, _NAMES[self._dtype]),)

    def _rounded(self, part: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
        first, *rest = given
        return (first.to(self._dtype), *rest)


def _widened(part: nn.Module, given: tuple[Any, ...], output: Tensor) -> Tensor:
    return output.to(torch.float32)


def _is_depthwise(part: nn.Module) -> bool:
    return isinstance(part, nn.Conv2d) and 1 < part.groups == part.in_channels
