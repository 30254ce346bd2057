"""Measured figures and the choice that follows from them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from ipfs_accelerate_node.inference import calibration
from ipfs_accelerate_node.inference.calibration import Calibrations, chosen, fitting, key_of
from ipfs_accelerate_node.inference.model import Accelerator, Candidate

CPU = Accelerator("cpu", "torch", "A CPU", True, versions={"torch": "2"}, precisions=("f32", "bf16"))
CARD = Accelerator(
    "cuda:0", "torch", "A card", True, versions={"torch": "2"}, free_bytes=100, precisions=("f32", "f16")
)
OPENVINO = Accelerator(
    "openvino:CPU", "openvino", "A CPU", True, versions={"openvino": "1"}, precisions=("f32", "int8")
)
GONE = Accelerator("openvino:NPU", "openvino", "An NPU", False, reason="no driver")
KEY = key_of("bafy", "embedding", CPU, "f32")


def refusals(precision: str = "f32", need_bytes: int = 10, convertible: str = "") -> dict[str, str]:
    found = fitting(
        [OPENVINO, GONE, CPU, CARD],
        precision=precision,
        need_bytes=need_bytes,
        convertible=convertible,
        free_bytes=1000,
    )
    return {fit.accelerator.device: fit.refusal for fit in found}


def test_the_fixed_order_is_gpus_then_what_needs_no_conversion() -> None:
    assert [*refusals()] == ["cuda:0", "cpu", "openvino:CPU", "openvino:NPU"]


def test_what_cannot_take_a_model_says_why() -> None:
    assert refusals() == {"cuda:0": "", "cpu": "", "openvino:CPU": "", "openvino:NPU": "no driver"}
    assert refusals(convertible="no folder")["openvino:CPU"] == "no folder"
    large = refusals(need_bytes=500)
    assert (large["cuda:0"], large["cpu"]) == ("the weights take 500 bytes, 100 are free", "")
    assert [device for device, why in refusals(precision="int8").items() if not why] == ["openvino:CPU"]
    assert refusals(precision="f16")["cpu"] == "computes in f32, bf16, not in f16"
    assert all(refusals(need_bytes=2000).values())


def test_figures_are_kept_and_found_again(tmp_path: Path) -> None:
    first = Calibrations(tmp_path / "calibration.json")
    assert first.find(KEY) is None
    first.note(KEY, [3_000_000, 1_000_000, 2_000_000])
    found = Calibrations(tmp_path / "calibration.json").find(KEY)
    assert found is not None
    assert (found.median_ms, found.samples) == (2.0, 3)
    assert [entry.name for entry in tmp_path.iterdir()] == ["calibration.json"]


def test_a_figure_holds_for_its_model_device_and_versions_only(tmp_path: Path) -> None:
    book = Calibrations(tmp_path / "calibration.json")
    book.note(KEY, [1])
    newer = Accelerator("cpu", "torch", "A CPU", True, versions={"torch": "3"})
    other_card = Accelerator("cpu", "torch", "Another CPU", True, versions={"torch": "2"})
    for key in (
        key_of("bafz", "embedding", CPU, "f32"),
        key_of("bafy", "fill-mask", CPU, "f32"),
        key_of("bafy", "embedding", CPU, "bf16"),
        key_of("bafy", "embedding", newer, "f32"),
        key_of("bafy", "embedding", other_card, "f32"),
    ):
        assert book.find(key) is None


@pytest.mark.parametrize(
    "text", [b"", b"{", b"[]", b'{"version": 9, "figures": []}', b'{"version": 1, "figures": [{}]}']
)
def test_a_file_that_cannot_be_read_is_started_anew(tmp_path: Path, text: bytes) -> None:
    path = tmp_path / "calibration.json"
    path.write_bytes(text)
    book = Calibrations(path)
    assert book.find(KEY) is None
    book.note(KEY, [5])
    assert len(json.loads(path.read_bytes())["figures"]) == 1


def test_a_folder_that_cannot_be_written_costs_only_the_keeping(tmp_path: Path) -> None:
    book = Calibrations(tmp_path / "absent" / "calibration.json")
    assert book.note(KEY, [5]).samples == 1
    assert book.find(KEY) is not None


def test_figures_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration, "MAX_FIGURES", 3)
    book = Calibrations(None)
    for number in range(5):
        book.note((str(number),), [1])
    assert [number for number in range(5) if book.find((str(number),))] == [2, 3, 4]


def test_a_choice_compares_the_others_to_the_chosen_one() -> None:
    candidates = [
        Candidate("cpu", "f32", 9.0, "measured now"),
        Candidate("openvino:NPU", "f32", None, "no driver"),
        Candidate("openvino:CPU", "f32", 3.0, "measured now"),
    ]
    best, slower, absent = chosen(candidates, "openvino:CPU", "f32")
    assert (best.device, best.chosen) == ("openvino:CPU", True)
    assert (slower.device, slower.reason) == ("cpu", "measured now; takes 3.00 × as long as openvino:CPU")
    assert absent == candidates[1]
    narrow = Candidate("openvino:CPU", "bf16", 1.5, "it agrees")
    best, same_device, slower, _ = chosen([*candidates, narrow], "openvino:CPU", "bf16")
    assert (best, [c.chosen for c in (same_device, slower)]) == (replace(narrow, chosen=True), [False, False])
    assert same_device.reason == "measured now"
    assert slower.reason == "measured now; takes 6.00 × as long as openvino:CPU in bf16"


def test_verdicts_are_kept_beside_figures(tmp_path: Path) -> None:
    path = tmp_path / "calibration.json"
    book, narrow = Calibrations(path), key_of("bafy", "embedding", CPU, "bf16")
    book.note(KEY, [5])
    assert (book.verdict(narrow), book.judged("bafy")) == (None, False)
    book.judge(narrow, does=False, reason="smallest cosine 0.9")
    again = Calibrations(path)
    found = again.verdict(narrow)
    assert found is not None
    assert (found.does, found.reason, again.judged("bafy"), again.judged("bafz")) == (
        False, "smallest cosine 0.9", True, False,
    )  # fmt: skip
    assert again.find(KEY) is not None
    assert again.verdict(key_of("bafy", "fill-mask", CPU, "bf16")) is None


def test_a_file_without_verdicts_is_read(tmp_path: Path) -> None:
    path = tmp_path / "calibration.json"
    Calibrations(path).note(KEY, [5])
    kept = json.loads(path.read_bytes())
    del kept["verdicts"]
    path.write_text(json.dumps(kept))
    assert Calibrations(path).find(KEY) is not None
