"""The folder, models, nodes and servers that a benchmark of fetching works with; all end with it."""

from __future__ import annotations

import os
import shutil
import sys
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

CHECKOUT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(CHECKOUT))

from tests.support.capped import FileServer, describe  # noqa: E402
from tests.support.node import NodeProcess  # noqa: E402
from tests.support.pinning import MIB, Pinned, pin, random_model  # noqa: E402

__all__ = ["CHECKOUT", "MIB", "Bed", "Fetcher", "FileServer", "Model"]

PIN_TIMEOUT_S = 900.0


@dataclass(frozen=True)
class Model:
    """description: for a `FileServer`. files: CID by path."""

    folder: Path
    root: str
    size_bytes: int
    description: Path
    files: dict[str, str]

    @classmethod
    def of(cls, folder: Path) -> Model:
        import json

        description = folder.parent / f"{folder.name}.json"
        root = describe(folder, description)
        files = json.loads(description.read_text())["files"]
        return cls(folder, root, sum(f["size"] for f in files), description, {f["path"]: f["cid"] for f in files})


class Fetcher(NodeProcess):
    """A node that has finished starting, its worker process included: that would compete for the processor."""

    def start(self) -> Self:
        super().start()
        self.request("GET", "/api/accelerators")
        return self

    def fetch(self, model: Model, source: str | None = None) -> Pinned:
        """A pin, from everything written before it being on disk until it is committed. Raises SystemExit."""
        os.sync()
        wanted = {} if source is None else {"source": source}
        try:
            done = pin(self, model.root, timeout_s=PIN_TIMEOUT_S, **wanted)
        except TimeoutError as exc:
            raise SystemExit(str(exc)) from exc
        if done.receipt is None:
            raise SystemExit(f"a fetch failed: {done.error}\n{self.tail()}")
        return done

    def forget(self, model: Model) -> None:
        self.request("DELETE", f"/api/store/{model.root}?force=true")


class Bed(ExitStack):
    """mib: size of the models. rounds: after one that warms up."""

    def __init__(self, folder: Path, mib: int, rounds: int) -> None:
        super().__init__()
        self.folder = folder
        self.mib = mib
        self.rounds = rounds
        self._names = 0
        free = shutil.disk_usage(folder).free
        if free < (needed := 14 * mib * MIB):
            raise SystemExit(f"{folder} has {free / 1e9:.1f} GB free, {needed / 1e9:.1f} GB are needed (--mib, --dir)")

    def new(self, name: str) -> Path:
        """A folder of its own that is not there yet."""
        self._names += 1
        return self.folder / f"{self._names}-{name}"

    def model(self, name: str, mib: int | None = None) -> Model:
        return Model.of(random_model(self.new(name), (self.mib if mib is None else mib) * MIB))

    def server(self, model: Model, **behaviour: Any) -> FileServer:
        return self.enter_context(FileServer(model.description, **behaviour))

    def node(self, name: str, *arguments: str) -> Fetcher:
        """Up, over an empty cache."""
        cache = self.new(name)
        cache.mkdir(mode=0o700)
        return self.enter_context(Fetcher(cache, *arguments))

    def drop(self, *folders: Path) -> None:
        for folder in folders:
            shutil.rmtree(folder, ignore_errors=True)
