"""Devices, models and the processes that run them. ``Registry`` is the door; torch is imported by workers only."""

from ipfs_accelerate_node.inference.model import Accelerator, Embeddings, LoadedModel, ModelSpec
from ipfs_accelerate_node.inference.registry import Registry

__all__ = ["Accelerator", "Embeddings", "LoadedModel", "ModelSpec", "Registry"]
