"""A converted model on disk: a directory with ``artefact.json`` and one ``.xml`` and ``.bin`` per graph.

``artefact.json`` is written last and names every file with its size and sha256, so a half or damaged artefact is known
before OpenVINO sees any of it. Imports neither torch nor OpenVINO.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Literal

import msgspec

from ipfs_accelerate_node.errors import BadContent, InferenceFailed, StorageError

SCHEMA = 1
EXPORTER = "4"  # of convert and what it imports; a change of the graphs it makes is a new number
DESCRIPTION = "artefact.json"
_MAX_DESCRIPTION_BYTES = 4 << 20
_READ_BYTES = 1 << 20

_FORMS = {"rerank": "text-classification", "zero-shot-image-classification": "embedding"}

Weights = Literal["f32", "int8"]


class StoredFile(msgspec.Struct, frozen=True):
    name: str
    size_bytes: int
    sha256: str


class Graph(msgspec.Struct, frozen=True):
    """One graph. name: that of ``Engine.run``, or ``decoder``. inputs, outputs: the names of its arrays, in order.

    xml, bin: where it lies; a graph without weights still has a .bin. exact: it computes in f32 whatever the model is
    asked for. mixed: (narrow, all) dense products, of a graph of which the rest stays in f32 in any precision.
    """

    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    xml: StoredFile
    bin: StoredFile
    exact: bool = False
    mixed: tuple[int, int] | None = None


class Int8Gate(msgspec.Struct, frozen=True):
    """How near int8 stays to f32, over texts that were not used to calibrate it.

    mean_cosine, min_cosine: of the primary output of each text. changed_neighbours: share of the texts whose nearest
    other text is another one in int8; 0 where the output is no vector.
    """

    texts: int
    calibration_texts: int
    mean_cosine: float
    min_cosine: float
    changed_neighbours: float


class Artefact(msgspec.Struct, frozen=True):
    """What ``artefact.json`` says. form: see ``form_of``. scalars: what ``Engine.run`` answers without a graph, as
    CLIP's scale. seconds: what the conversion took."""

    schema: int
    key: str
    root: str
    form: str
    weights: Weights
    versions: dict[str, str]
    graphs: tuple[Graph, ...]
    scalars: dict[str, float] = {}
    notes: tuple[str, ...] = ()
    gate: Int8Gate | None = None
    seconds: float = 0.0

    @property
    def size_bytes(self) -> int:
        return sum(graph.xml.size_bytes + graph.bin.size_bytes for graph in self.graphs)

    def graph(self, name: str) -> Graph | None:
        return next((graph for graph in self.graphs if graph.name == name), None)


def form_of(task: str) -> str:
    """Which graphs a task needs, named by the first task that needs them: tasks of one form share an artefact."""
    return _FORMS.get(task, task)


def weights_of(precision: str) -> Weights:
    """Which weights an artefact for this precision holds: floats are narrowed by the device, not on disk."""
    return "int8" if precision == "int8" else "f32"


def versions_of(weights: Weights) -> dict[str, str]:
    """Of everything that decides an artefact's bytes; read from the packages' metadata, nothing is imported."""
    names = ["openvino", "torch", "transformers", *(["nncf"] if weights == "int8" else [])]
    return {name: _version(name) for name in names} | {"exporter": EXPORTER}


def artefact_key(root: str, form: str, weights: Weights, versions: Mapping[str, str]) -> str:
    """The name of the artefact's directory: 40 hexadecimal digits of a hash over everything that decides its bytes."""
    identity = [SCHEMA, root, form, weights, sorted(versions.items())]
    return hashlib.sha256(msgspec.json.encode(identity)).hexdigest()[:40]


def _damaged(directory: Path, what: str) -> BadContent:
    return BadContent(f"artefact {directory.name}: {what}", code="bad_artefact")


def read_artefact(directory: Path) -> Artefact:
    """The description, and a look at every file's size. Raises BadContent(bad_artefact): not a whole artefact."""
    try:
        data = _read(directory / DESCRIPTION, limit=_MAX_DESCRIPTION_BYTES)
        artefact = msgspec.json.decode(data, type=Artefact)
    except (OSError, msgspec.DecodeError) as exc:
        raise _damaged(directory, f"{DESCRIPTION}: {exc}") from exc
    if artefact.schema != SCHEMA or not artefact.graphs:
        raise _damaged(directory, f"schema {artefact.schema}, or no graph")
    for file in _files(artefact):
        if os.path.basename(file.name) != file.name or file.name in ("", ".", ".."):
            raise _damaged(directory, f"{file.name[:80]!r} is not a file of it")
        try:
            found = (directory / file.name).lstat()
        except OSError as exc:
            raise _damaged(directory, f"{file.name}: {exc.strerror}") from exc
        if not stat.S_ISREG(found.st_mode) or found.st_size != file.size_bytes:
            raise _damaged(directory, f"{file.name} is no file of {file.size_bytes:,} bytes")
    return artefact


def check_artefact(directory: Path) -> Artefact:
    """As ``read_artefact``, and every byte hashed. Blocking. Raises BadContent(bad_artefact)."""
    artefact = read_artefact(directory)
    for file in _files(artefact):
        try:
            found = file_sha256(directory / file.name)
        except OSError as exc:
            raise _damaged(directory, f"{file.name}: {exc.strerror}") from exc
        if found != file.sha256:
            raise _damaged(directory, f"{file.name} is not what was written")
    return artefact


def write_description(directory: Path, artefact: Artefact) -> None:
    """Write it, durably: file, then directory. Raises OSError."""
    path = directory / DESCRIPTION
    with path.open("xb") as file:
        file.write(msgspec.json.format(msgspec.json.encode(artefact), indent=1))
        file.flush()
        os.fsync(file.fileno())
    sync_directory(directory)


def stored_file(path: Path) -> StoredFile:
    """A file that was just written, made durable and hashed. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
        size = os.fstat(descriptor).st_size
    finally:
        os.close(descriptor)
    return StoredFile(path.name, size, file_sha256(path))


def file_sha256(path: Path) -> str:
    digest = hashlib.sha256()
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        while data := os.read(descriptor, _READ_BYTES):
            digest.update(data)
    finally:
        os.close(descriptor)
    return digest.hexdigest()


def sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _files(artefact: Artefact) -> tuple[StoredFile, ...]:
    return tuple(file for graph in artefact.graphs for file in (graph.xml, graph.bin))


def _read(path: Path, *, limit: int) -> bytes:
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        if os.fstat(descriptor).st_size > limit:
            raise StorageError(f"{path.name} has over {limit:,} bytes")
        return os.read(descriptor, limit)
    finally:
        os.close(descriptor)


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        raise InferenceFailed(f"converting needs {name}, which is not installed", code="not_installed") from None
