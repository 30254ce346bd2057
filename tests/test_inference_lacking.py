"""A runtime that is not installed: said by name with the way to get it, and no reason for anything else to fail."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from ipfs_accelerate_node.errors import DeviceUnavailable
from ipfs_accelerate_node.inference.model import ModelSpec, Text
from tests.support.models import tiny_model
from tests.support.workers import registry_in_its_task

pytestmark = pytest.mark.timeout(120)

WITHOUT = """#!{python}
import runpy, sys
sys.modules["{package}"] = None
sys.argv[:] = sys.argv[sys.argv.index("-m") + 1 :]
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
"""


def python_without(package: str, folder: Path) -> str:
    """An interpreter in which a package is not installed."""
    script = folder / "python"
    script.write_text(WITHOUT.format(python=sys.executable, package=package))
    script.chmod(0o755)
    return str(script)


@pytest.fixture
def spec(tmp_path: Path) -> ModelSpec:
    return ModelSpec("bafylack", tiny_model(tmp_path / "tiny"), ("tiny",))


async def test_without_openvino(spec: ModelSpec, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", python_without("openvino", tmp_path))
    async with registry_in_its_task(cache=cache) as registry:
        with pytest.raises(DeviceUnavailable, match="pip install openvino") as caught:
            await registry.load(spec, device="openvino:CPU")
        assert str(caught.value).startswith("device openvino:CPU is not available: Python package openvino cannot be")
        lacking = [one for one in await registry.accelerators() if not one.available]
        assert [(one.runtime, "pip install openvino" in one.reason) for one in lacking] == [("openvino", True)]
        model = await registry.load(spec)
        assert model.device == "cpu"
        assert any("pip install openvino" in candidate.reason for candidate in model.choice)
        assert (await registry.infer(model, [Text("hello")])).model.pid == model.pid


async def test_without_torch(spec: ModelSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", python_without("torch", tmp_path))
    async with registry_in_its_task() as registry:
        with pytest.raises(DeviceUnavailable, match="pip install torch"):
            await registry.load(spec, device="cpu")
        assert registry.loaded() == []
