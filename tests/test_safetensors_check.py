"""Table S of the bad-input catalogue: a safetensors file has one reading, or is refused."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from ipfs_accelerate_node.errors import ModelUnsupported
from ipfs_accelerate_node.inference.safetensors_check import read_header, weights_of
from tests.support.models import write_json

F32 = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


def packed(header: object, body: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def refused(path: Path, data: bytes) -> ModelUnsupported:
    path.write_bytes(data)
    with pytest.raises(ModelUnsupported) as caught:
        read_header(path)
    assert caught.value.code == "bad_weights"
    return caught.value


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "model.safetensors"


BAD = {
    "S1 empty": b"",
    "S1 short": b"\x02\0\0\0\0\0\0",
    "S1 length 2**64-1": b"\xff" * 8 + b"{}",
    "S1 length 10**8+1": struct.pack("<Q", 10**8 + 1) + b"{}",
    "S1 length beyond the file": struct.pack("<Q", 100) + b"{}",
    "S2 not UTF-8": packed(b'{"\xff": 1}'),
    "S2 not JSON": packed(b"{nonsense"),
    "S2 list": packed([]),
    "S2 nested": packed(b'{"a":' * 200_000 + b"1" + b"}" * 200_000),
    "S2 metadata not strings": packed({"__metadata__": {"format": 1}}),
    "S2 metadata a list": packed({"__metadata__": ["pt"]}),
    "S2 NaN": packed(b'{"a": NaN}'),
    "S3 truncated": packed({"a": F32}, bytes(7)),
    "S3 trailing": packed({"a": F32}, bytes(9)),
    "S3 no tensors but bytes": packed({}, bytes(1)),
    "S3 hole": packed({"a": F32, "b": F32 | {"data_offsets": [9, 17]}}, bytes(17)),
    "S3 hole at the start": packed({"a": F32 | {"data_offsets": [1, 9]}}, bytes(9)),
    "S3 overlap": packed({"a": F32, "b": F32 | {"data_offsets": [4, 12]}}, bytes(12)),
    "S3 the same bytes twice": packed({"a": F32, "b": F32}, bytes(8)),
    "S3 reversed": packed({"a": F32 | {"data_offsets": [8, 0]}}, bytes(8)),
    "S3 negative": packed({"a": F32 | {"data_offsets": [-8, 0]}}, bytes(8)),
    "S3 shape": packed({"a": F32 | {"shape": [3]}}, bytes(8)),
    "S3 negative shape": packed({"a": F32 | {"shape": [-2]}}, bytes(8)),
    "S3 shape of floats": packed({"a": F32 | {"shape": [2.0]}}, bytes(8)),
    "S3 shape of booleans": packed({"a": F32 | {"shape": [2, True]}}, bytes(8)),
    "S3 overflow": packed({"a": F32 | {"shape": [2**62, 2**62, 2]}}, bytes(8)),
    "S3 dtype": packed({"a": F32 | {"dtype": "F31"}}, bytes(8)),
    "S3 dtype a number": packed({"a": F32 | {"dtype": 32}}, bytes(8)),
    "S3 half a byte": packed({"a": {"dtype": "F4", "shape": [3], "data_offsets": [0, 1]}}, bytes(1)),
    "S3 offsets missing": packed({"a": {"dtype": "F32", "shape": [2]}}, bytes(8)),
    "S3 one offset": packed({"a": F32 | {"data_offsets": [0]}}, bytes(8)),
    "S3 something else in it": packed({"a": F32 | {"extra": 1}}, bytes(8)),
    "S3 not described": packed({"a": 1}),
    "S4 twice": packed(b'{"a":%b,"a":%b}' % ((json.dumps(F32).encode(),) * 2), bytes(8)),
    "S4 leading space": packed(b" " + json.dumps({"a": F32}).encode(), bytes(8)),
    "S5 empty name": packed({"": F32}, bytes(8)),
    "S5 NUL": packed({"a\0b": F32}, bytes(8)),
    "S5 escape": packed({"\x1b[31m": F32}, bytes(8)),
    "S5 surrogate": packed(b'{"\\ud800":%b}' % json.dumps(F32).encode(), bytes(8)),
    "S5 1 MB": packed({"a" * (1 << 20): F32}, bytes(8)),
    "S6 pickle": b"\x80\x02}q\x00X\x05\x00\x00\x00helloq\x01K\x01s.",
    "S6 zip": b"PK\x03\x04\x14\x00\x08\x08" + bytes(100),
    "S6 HTML": b"<!DOCTYPE html><html><title>404</title></html>",
    "S6 git-lfs": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n",
}


@pytest.mark.parametrize("case", BAD)
def test_refused(file: Path, case: str) -> None:
    assert "model.safetensors" in str(refused(file, BAD[case]))


def test_a_pointer_of_git_lfs_gets_its_own_hint(file: Path) -> None:
    assert "git lfs pull" in str(refused(file, BAD["S6 git-lfs"]))


def test_a_name_that_looks_like_a_path_is_only_a_name(file: Path) -> None:
    file.write_bytes(packed({"../../x": F32}, bytes(8)))
    assert list(read_header(file)) == ["../../x"]


def test_links_are_not_followed(tmp_path: Path, file: Path) -> None:
    save_file({"a": np.zeros(2, np.float32)}, tmp_path / "elsewhere")
    file.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ModelUnsupported, match="regular file"):
        read_header(file)


def test_s7_empty_tensors_scalars_and_infinities_are_read(file: Path) -> None:
    written = {
        "none": np.zeros((0, 3), np.float32),
        "scalar": np.array(1, np.float32),
        "nan": np.array([np.nan, np.inf]),
    }
    save_file(written, file, metadata={"format": "np"})
    entries = read_header(file)
    assert {name: entry.shape for name, entry in entries.items()} == {"none": (0, 3), "scalar": (), "nan": (2,)}
    assert entries["nan"].dtype == "F64"


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_what_we_accept_the_library_reads_the_same(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """A valid file with a few bytes changed: never accepted with another meaning than the library gives it."""
    file = tmp_path_factory.mktemp("mutant") / "model.safetensors"
    mutant = bytearray(packed({"a": F32, "b": F32 | {"data_offsets": [8, 16]}}, bytes(16)))
    for _ in range(data.draw(st.integers(1, 3))):
        mutant[data.draw(st.integers(0, len(mutant) - 17))] = data.draw(st.integers(0, 255))
    file.write_bytes(mutant)
    try:
        ours = {name: entry.shape for name, entry in read_header(file).items()}
    except ModelUnsupported:
        return
    try:
        with safe_open(file, framework="np") as opened:
            theirs = {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}
    except SafetensorError as exc:
        pytest.fail(f"accepted {bytes(mutant)!r}, which the library refuses: {exc}")
    assert ours == theirs


class TestShards:
    @pytest.fixture
    def model(self, tmp_path: Path) -> Path:
        save_file({"a": np.zeros(2, np.float32)}, tmp_path / "model-1.safetensors")
        save_file({"b": np.zeros(3, np.float32)}, tmp_path / "model-2.safetensors")
        return tmp_path

    @staticmethod
    def index(model: Path, weight_map: object) -> None:
        write_json(model / "model.safetensors.index.json", {"metadata": {}, "weight_map": weight_map})

    def test_are_read_together(self, model: Path) -> None:
        self.index(model, {"a": "model-1.safetensors", "b": "model-2.safetensors"})
        entries = weights_of(model)
        assert {n: (e.file.name, e.shape) for n, e in entries.items()} == {
            "a": ("model-1.safetensors", (2,)),
            "b": ("model-2.safetensors", (3,)),
        }

    @pytest.mark.parametrize(
        "weight_map",
        [
            {"a": "../model-1.safetensors"},
            {"a": "/model-1.safetensors"},
            {"a": "sub/model-1.safetensors"},
            {"a": ".safetensors"},
            {"a": "model-1.safetensors\0"},
            {"a": "model-3.safetensors"},
            {"a": "model.safetensors.index.json"},
            {"a": 1},
            {"a": "model-2.safetensors"},
            {"a": "model-1.safetensors", "c": "model-1.safetensors"},
            {"a": "model-1.safetensors", "b": "model-1.safetensors"},
            {},
            [],
            None,
        ],
    )
    def test_s8_refused(self, model: Path, weight_map: object) -> None:
        self.index(model, weight_map)
        with pytest.raises(ModelUnsupported) as caught:
            weights_of(model)
        assert caught.value.code == "bad_weights"

    def test_s8_a_tensor_in_two_shards(self, model: Path) -> None:
        save_file({"a": np.zeros(2, np.float32), "b": np.zeros(3, np.float32)}, model / "model-2.safetensors")
        self.index(model, {"a": "model-1.safetensors", "b": "model-2.safetensors"})
        with pytest.raises(ModelUnsupported, match="in both"):
            weights_of(model)

    def test_s8_a_tensor_that_the_index_does_not_list(self, model: Path) -> None:
        save_file({"b": np.zeros(3, np.float32), "c": np.zeros(1, np.float32)}, model / "model-2.safetensors")
        self.index(model, {"a": "model-1.safetensors", "b": "model-2.safetensors"})
        with pytest.raises(ModelUnsupported, match="does not list"):
            weights_of(model)


@pytest.mark.parametrize(
    "name", ["pytorch_model.bin", "weights.pt", "model.pkl", "tf_model.h5", "a.ckpt", "model.onnx"]
)
def test_m8_other_formats_are_refused_by_name(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"\x80\x02.")
    with pytest.raises(ModelUnsupported, match=f"{name}: only safetensors and OpenVINO") as caught:
        weights_of(tmp_path)
    assert caught.value.code == "format_refused"


def test_no_weights_at_all(tmp_path: Path) -> None:
    with pytest.raises(ModelUnsupported) as caught:
        weights_of(tmp_path)
    assert caught.value.code == "bad_weights"
