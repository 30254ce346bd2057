"""The rivals' own environments, below ``.bench/`` of the checkout; built on request, never by a run that measures.

A CPU build of torch is not on the package index, and the CUDA build is 5 GB: every environment takes the torch that
this project has, by a folder of links to its packages; whatever else a rival is pinned to, it has of its own.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[3]
FOLDER = CHECKOUT / ".bench"
TIMEOUT_S = 1800.0

# What torch of CUDA needs and brings; the rest of it is pinned by each rival itself.
_SHARED = re.compile(r"^(torch|torchgen|functorch|triton|nvidia|cuda|sympy|mpmath)([._-].*)?$")
_LEFT_OUT = re.compile(r"^(torch|triton|sympy|mpmath|nvidia-[a-z0-9-]+|cuda-[a-z0-9-]+)==")


@dataclass(frozen=True)
class Environment:
    """requirements: of the rival and what it is pinned to. shows: packages whose versions are told."""

    name: str
    requirements: tuple[str, ...]
    shows: tuple[str, ...]

    @property
    def folder(self) -> Path:
        return FOLDER / self.name

    @property
    def python(self) -> Path:
        return self.folder / "bin" / "python"

    def absent(self) -> str:
        """Why it cannot be used; empty when it can."""
        if (self.folder / "built.json").is_file():
            return ""
        failed = self.folder / "failed.txt"
        return failed.read_text().strip()[-300:] if failed.is_file() else "not installed: `--rivals` builds it"

    def versions(self) -> dict[str, str]:
        said = json.loads((self.folder / "built.json").read_text())
        return {name: said[name] for name in self.shows if name in said}

    def build(self) -> str:
        """Why it could not be, or nothing. Blocks for minutes the first time."""
        if not self.absent():
            return ""
        shutil.rmtree(self.folder, ignore_errors=True)
        try:
            self._install()
        except (subprocess.SubprocessError, OSError) as exc:
            said = getattr(exc, "stderr", None) or str(exc)
            self.folder.mkdir(parents=True, exist_ok=True)
            (self.folder / "failed.txt").write_text(f"cannot be installed: {' '.join(said.split())[-250:]}")
        return self.absent()

    def _install(self) -> None:
        uv = _uv()
        _run(uv, "venv", "-q", "-p", sys.executable, str(self.folder))
        wanted = self.folder / "requirements.in"
        wanted.write_text("\n".join(self.requirements) + "\n")
        resolved = _run(uv, "pip", "compile", "-q", "--no-header", "--no-annotate", "-p", str(self.python), str(wanted))
        pinned = [line for line in resolved.splitlines() if line and not _LEFT_OUT.match(line)]
        (self.folder / "requirements.txt").write_text("\n".join(pinned) + "\n")
        _run(
            uv, "pip", "install", "-q", "-p", str(self.python), "--no-deps", "-r", str(self.folder / "requirements.txt")
        )
        self._share_torch()
        said = _run(str(self.python), "-c", _VERSIONS, *self.shows)
        (self.folder / "built.json").write_text(said)

    def _share_torch(self) -> None:
        """By links beside each other, so that nothing else of this project is seen."""
        ours = Path(_run(sys.executable, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
        theirs = Path(_run(str(self.python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
        for entry in ours.iterdir():
            if _SHARED.match(entry.name) and not (theirs / entry.name).exists():
                (theirs / entry.name).symlink_to(entry)


SENTENCE_TRANSFORMERS = Environment(
    "sentence-transformers",
    ("sentence-transformers==6.2.0", "aiohttp", "torch"),
    ("sentence-transformers", "transformers", "torch", "aiohttp", "numpy"),
)
INFINITY = Environment(
    "infinity",
    (
        "infinity-emb[server,torch]==0.0.78", "optimum<2", "transformers<4.49", "sentence-transformers<4",
        "huggingface_hub<1", "numpy<2", "pyarrow<20", "click<8.2", "torch<2.7",
    ),
    ("infinity-emb", "sentence-transformers", "transformers", "torch", "numpy"),
)  # fmt: skip
ENVIRONMENTS = (SENTENCE_TRANSFORMERS, INFINITY)

_VERSIONS = """
import importlib.metadata, json, sys
import torch
print(json.dumps({name: importlib.metadata.version(name) for name in sys.argv[1:]}))
"""


def _uv() -> str:
    beside = Path(sys.executable).with_name("uv")
    found = str(beside) if beside.is_file() else shutil.which("uv")
    if found is None:
        raise OSError("uv is not installed")
    return found


def _run(*command: str) -> str:
    environment = {key: value for key, value in os.environ.items() if key not in ("VIRTUAL_ENV", "PYTHONPATH")}
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=TIMEOUT_S, check=True
    ).stdout
