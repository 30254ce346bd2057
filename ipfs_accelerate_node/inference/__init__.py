"""Devices, models and the processes that run them. ``Registry`` is the door; torch is imported by workers only."""

from ipfs_accelerate_node.inference.model import (
    Accelerator,
    Embeddings,
    Inferred,
    Item,
    LoadedModel,
    ModelSpec,
    Options,
    Output,
)
from ipfs_accelerate_node.inference.registry import Registry

__all__ = [
    "Accelerator",
    "Embeddings",
    "Inferred",
    "Item",
    "LoadedModel",
    "ModelSpec",
    "Options",
    "Output",
    "Registry",
]
