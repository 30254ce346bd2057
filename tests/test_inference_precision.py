"""A precision that nobody named: bf16 where the hardware has it and the model's own answers agree, else f32 and why."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from ipfs_accelerate_node.errors import InvalidInput
from ipfs_accelerate_node.inference.agreement import AGREES, compared, likeness
from ipfs_accelerate_node.inference.devices import cpu_native
from ipfs_accelerate_node.inference.model import LoadedModel, ModelSpec, Vector
from ipfs_accelerate_node.inference.registry import Registry
from tests.support.models import tiny_model
from tests.support.workers import gone, registry_in_its_task

pytestmark = pytest.mark.timeout(240)

OPENVINO = "openvino:CPU"
HERE = cpu_native(Path("/proc/cpuinfo").read_text())


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> ModelSpec:
    """Large enough that one pass in bf16 is no slower than in f32, with weights about as large as trained ones are."""
    path = tmp_path_factory.mktemp("models") / "precise"
    tiny_model(path, hidden_size=256, intermediate_size=1024, num_hidden_layers=4)
    scaled(path, "", 0.2)
    return ModelSpec("bafyprecise", path, ("precise",))


@pytest.fixture(scope="module")
def rough(tmp_path_factory: pytest.TempPathFactory) -> ModelSpec:
    """A model that bf16 does not compute: its attention picks one token, and rounded products make it another one."""
    path = tiny_model(tmp_path_factory.mktemp("models") / "rough", seed=3)
    scaled(path, "attention.self.query", 100.0)
    return ModelSpec("bafyrough", path, ("rough",))


def scaled(path: Path, which: str, factor: float) -> None:
    """Some weights times a factor, but for those of normalisations."""
    weights = load_file(path / "model.safetensors")
    changed = {n: v * np.float32(factor) for n, v in weights.items() if which in n and "Norm" not in n}
    assert changed
    save_file(weights | changed, path / "model.safetensors")


def verdicts(cache: Path) -> list[dict[str, object]]:
    return list(json.loads((cache / "calibration.json").read_bytes())["verdicts"])


async def vectors(registry: Registry, model: LoadedModel) -> list[np.ndarray]:
    items = await registry.examples(model, 8)
    outputs = (await registry.infer(model, items)).outputs
    return [output.values for output in outputs if isinstance(output, Vector)]


# -- what is known of hardware and of likeness


@pytest.mark.parametrize(
    ("cpuinfo", "native"),
    [
        ("model name\t: A CPU\nflags\t\t: fpu avx512f avx512_bf16 avx512_vnni\n", ("f32", "bf16")),
        ("flags\t\t: fpu avx512f amx_tile amx_bf16\n", ("f32", "bf16")),
        ("flags\t\t: fpu avx512f avx512bw avx512_vnni\n", ("f32",)),
        ("Features\t: fp asimd i8mm bf16 sve\n", ("f32", "bf16")),
        ("Features\t: fp asimd\n", ("f32",)),
        ("model name\t: bf16\n", ("f32",)),
        ("", ("f32",)),
    ],
)
def test_what_a_cpu_computes_in(cpuinfo: str, native: tuple[str, ...]) -> None:
    assert cpu_native(cpuinfo) == native


def test_likeness_of_vectors_is_the_smallest_cosine() -> None:
    exact = np.array([1.0, 0.0], dtype=np.float32)
    slanted = np.array([1.0, 0.1], dtype=np.float32)
    found = likeness([compared(exact, exact), compared(slanted, exact)])
    assert (found.same, found.inputs) == (None, 2)
    assert found.minimum == pytest.approx(1 / np.sqrt(1.01))
    assert "smallest cosine to f32 0.995037 over 2 inputs" in found.refusal("bf16")
    assert str(AGREES["bf16"]) in found.refusal("bf16")
    assert likeness([compared(exact, exact)]).refusal("bf16") == ""


def test_likeness_of_logits_counts_the_tokens_too() -> None:
    exact = np.full((20, 4), 100.0, dtype=np.float32) + np.eye(20, 4, dtype=np.float32)
    other = exact.copy()
    other[:3, :3] += np.array([[-1, 2, 0], [0, -1, 2], [2, 0, -1]], dtype=np.float32)
    found = likeness([compared(other, exact)])
    assert found.minimum > AGREES["bf16"]
    assert found.same == pytest.approx(17 / 20)
    assert "85.0% of the tokens the same" in found.refusal("bf16")
    other[:2] = exact[:2]
    assert likeness([compared(other, exact)]).refusal("bf16") == ""


@pytest.mark.parametrize("spoilt", [np.zeros(3), np.array([np.nan, 1.0]), np.array([np.inf, 1.0]), np.zeros((1, 2))])
def test_outputs_that_are_none_agree_with_nothing(spoilt: np.ndarray) -> None:
    pair = compared(spoilt.astype(np.float32), np.ones(2, dtype=np.float32))
    assert likeness([pair]).refusal("bf16")


# -- what is served


async def test_what_is_not_known_to_do_is_served_in_f32(spec: ModelSpec, tmp_path: Path) -> None:
    async with registry_in_its_task(cache=tmp_path) as registry:
        model = await registry.load(spec, device=OPENVINO)
        assert model.precision == "f32"
        assert any(note.startswith("f32 by choice: whether bf16 does is not known yet") for note in model.notes)
        named = await registry.load(spec, device=OPENVINO, precision="f32")
        assert named.pid == model.pid
        with pytest.raises(InvalidInput, match="auto, f32, bf16"):
            await registry.load(spec, precision="f64")


async def test_a_load_compares_and_serves_what_does(
    spec: ModelSpec, tmp_path: Path, figure: Callable[[str], None]
) -> None:
    """The whole way: measured once, kept, the same at the next start, and also after a crash."""
    async with registry_in_its_task(cache=tmp_path) as registry:
        exact = await registry.load(spec, device=OPENVINO, precision="f32")
        expected = await vectors(registry, exact)
        await registry.unload("precise")
        model = await registry.load(spec, device=OPENVINO, thorough=True)
        (kept,) = verdicts(tmp_path) if "bf16" in HERE else ({"does": False, "reason": "has no bf16"},)
        assert model.precision == ("bf16" if kept["does"] else "f32")
        figure(f"a tiny encoder on OpenVINO: {model.precision}, {kept['reason']}")
        (why,) = [note for note in model.notes if " by choice: " in note]
        assert str(kept["reason"]) in why
        for one, other in zip(await vectors(registry, model), expected, strict=True):
            assert float(one @ other) >= 0.999
        # what is loaded is what is wanted, whatever else is loaded; a named precision is its own
        assert (await registry.load(spec)).pid == model.pid
        assert (await registry.load(spec, precision=model.precision)).pid == model.pid
        both = await registry.load(spec, device=OPENVINO, precision="f32")
        assert both.precision == "f32"
        assert (both.pid == model.pid) == (model.precision == "f32")
    async with registry_in_its_task(cache=tmp_path) as later:
        again = await later.load(spec, device=OPENVINO)
        assert (again.precision, [n for n in again.notes if " by choice: " in n]) == (model.precision, [why])
    assert len(verdicts(tmp_path)) == ("bf16" in HERE)


async def test_a_model_that_bf16_does_not_compute_stays_in_f32(rough: ModelSpec, tmp_path: Path) -> None:
    async with registry_in_its_task(cache=tmp_path) as registry:
        exact, narrow = [await registry.load(rough, device="cpu", precision=p) for p in ("f32", "bf16")]
        pairs = zip(await vectors(registry, narrow), await vectors(registry, exact), strict=True)
        assert min(float(one @ other) for one, other in pairs) < 0.999  # it is such a model
        await registry.unload("rough")
        model = await registry.load(rough, device="cpu", thorough=True)
        assert model.precision == "f32"
        (why,) = [note for note in model.notes if " by choice: " in note]
        if "bf16" in HERE:
            assert why.startswith("f32 by choice: bf16 does not do: smallest cosine to f32 0.")
            assert "at least 0.999 is wanted" in why
            assert [kept["does"] for kept in verdicts(tmp_path)] == [False]
        named = await registry.load(rough, device="cpu", precision="bf16")
        assert named.precision == "bf16"  # who names it gets it
        assert gone(narrow.pid or 0)


async def test_a_loaded_model_keeps_its_precision_whoever_loads_it_again(spec: ModelSpec, tmp_path: Path) -> None:
    async with registry_in_its_task(cache=tmp_path) as registry:
        first = await registry.load(spec)  # as a first request does: on the CPU, of which nothing is known
        assert (first.device, first.precision) == ("cpu", "f32")
        before = await vectors(registry, first)
        moved = await registry.load(spec, thorough=True)
        assert moved.precision == "f32"
        for one, other in zip(await vectors(registry, moved), before, strict=True):
            np.testing.assert_allclose(one, other, atol=1e-5)
        await registry.unload("precise")
        anew = await registry.load(spec, thorough=True)
        assert anew.device == moved.device
        if "bf16" in HERE:
            assert [anew.precision == "bf16"] == [kept["does"] for kept in verdicts(tmp_path)]
        assert [(c.device, c.precision) for c in anew.choice if c.chosen] == [(anew.device, anew.precision)]
        assert all(c.median_ms for c in anew.choice)
        assert {c.precision for c in anew.choice} == set(HERE)


async def test_the_setting_is_for_models_that_are_loaded_without_naming_one(spec: ModelSpec, tmp_path: Path) -> None:
    async with registry_in_its_task(cache=tmp_path, precision="bf16") as registry:
        model = await registry.load(spec, device="cpu")
        assert (model.precision, [n for n in model.notes if " by choice: " in n]) == ("bf16", [])
        assert (await registry.load(spec, device="cpu", precision="auto")).pid == model.pid
