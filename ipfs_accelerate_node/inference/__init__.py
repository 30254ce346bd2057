"""Devices, models and the processes that run them. ``Registry`` is the door; torch is imported by workers only.

In the daemon: ``serving`` (models by reference), ``registry`` and ``slots`` (what is loaded), ``placing`` and
``calibration`` (where), ``slot`` (one loaded model), ``desk`` and ``lanes`` (its requests: admitted, shared, answered),
``process`` (its worker). Between them: ``wire`` and ``frames``; ``blame`` says what a worker was at. In the worker:
``intake`` (what waits, whose turn it is), ``batching`` (rows that go through together), ``writings`` and ``writing``
(texts that are written together, over ``sequences`` and ``pages``), ``session`` (a model as it answers), ``tasks/``
(texts, pictures and sound to arrays and back), and two engines, ``torch/`` and ``openvino/``.
"""

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
