"""``mock:embedding``: vectors made from a hash, for trying clients without a model. Always marked MOCK."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ipfs_accelerate_node.inference.memory import resident_bytes
from ipfs_accelerate_node.inference.model import Embeddings, LoadedModel, ModelSpec

WIDTH = 384
MAX_TOKENS = 8192
_DOMAIN = b"ipfs-accelerate-node mock:embedding 1\0"


def mock_model(spec: ModelSpec, names: tuple[str, ...]) -> LoadedModel:
    """The mock as a loaded model; it lives in this process."""
    return LoadedModel(
        id=names[0] if names else spec.root,
        root=spec.root,
        names=names,
        device="cpu",
        engine="mock",
        precision="f32",
        implementation="MOCK",
        source="mock",
        task=spec.task,
        width=WIDTH,
        max_tokens=MAX_TOKENS,
        state="ready",
        load_s=0.0,
        pid=os.getpid(),
        versions={"numpy": np.__version__},
        memory_bytes=resident_bytes(os.getpid()),
        pooling=("hash",),
        notes=("MOCK: vectors come from a hash of the input, not from a model",),
    )


def _direction(key: bytes) -> NDArray[np.float32]:
    """A unit vector; equal keys give equal vectors on every machine."""
    numbers = np.frombuffer(hashlib.shake_256(_DOMAIN + key).digest(4 * WIDTH), dtype="<u4")
    vector = numbers.astype(np.float64) / 2**31 - 1.0
    return (vector / np.linalg.norm(vector)).astype(np.float32)


def embed(
    model: LoadedModel,
    inputs: Sequence[str] | Sequence[Sequence[int]],
    *,
    dimensions: int | None,
    normalize: bool | None,
    seconds: float,
) -> Embeddings:
    """Vectors of checked inputs. Words count as tokens."""
    keys = [
        b"t" + item.encode() if isinstance(item, str) else b"i" + b"".join(i.to_bytes(8, "little") for i in item)
        for item in inputs
    ]
    vectors = np.stack([_direction(key) for key in keys])
    if dimensions is not None:
        vectors = vectors[:, :dimensions]
        if normalize is not False:
            vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    counts = [len(item.split()) if isinstance(item, str) else len(item) for item in inputs]
    return Embeddings(
        vectors=np.ascontiguousarray(vectors, dtype=np.float32),
        prompt_tokens=sum(max(1, count) for count in counts),
        model=model,
        seconds=seconds,
    )
