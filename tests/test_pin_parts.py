"""Parts of a model: pinned, planned and completed between whole nodes, as a user does it."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import urllib.error
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.node import NodeProcess
from tests.support.sample import SAMPLE

pytestmark = pytest.mark.timeout(180)

ONCE = 4 << 20  # of the weights: the last two leaves are the same
FILES = {
    "config.json": b'{"model_type": "bert"}',
    "1_Pooling/config.json": b'{"pooling_mode_mean_tokens": true}',
    "weights.bin": random.Random(5).randbytes(3 << 20) + bytes(2 << 20),
    "tokenizer.json": b"[]" * 4000,
}


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[tuple[NodeProcess, NodeProcess, str]]:
    """Two nodes, the second knows the first as its peer; the first has the model of that root."""
    folder = tmp_path / "model"
    for path, data in FILES.items():
        (file := folder / path).parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
    for name in ("one", "two"):
        (tmp_path / name).mkdir(mode=0o700)
    with NodeProcess(tmp_path / "one") as one, NodeProcess(tmp_path / "two", "--peer", one.url) as two:
        yield one, two, one.json("add", str(folder))["root"]


def files_of(receipt: dict[str, Any]) -> set[str]:
    folder = Path(receipt["path"])
    found = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert all((folder / path).read_bytes() == FILES[path] for path in found)
    return found


def refused(node: NodeProcess, *arguments: str) -> tuple[int, str]:
    done = node.cli(*arguments, "--json", check=False)
    return done.returncode, json.loads(done.stdout)["code"]


def test_a_part_then_another_then_all(nodes: tuple[NodeProcess, NodeProcess, str]) -> None:
    one, two, root = nodes
    before = two.json("plan", root, "--only", "*.json")
    assert {file["path"] for file in before["files"]} == {path for path in FILES if path.endswith(".json")}
    some = two.json("pin", root, "--only", "*.json")
    assert files_of(some) == {"config.json", "1_Pooling/config.json", "tokenizer.json"}
    assert some["bytes_total"] == before["bytes_total"] == before["bytes_to_fetch"]
    assert (some["absent_files"], some["bytes_fetched"]) == (1, some["bytes_total"])
    assert "incomplete: 3 of 4 files" in two.cli("ls").stdout
    assert "incomplete: 3 of 4 files" in two.cli("info", root).stdout
    planned = two.json("plan", root)
    assert (planned["bytes_to_fetch"], planned["bytes_here"]) == (ONCE, some["bytes_total"])
    assert planned["disk_needed_bytes"] >= len(FILES["weights.bin"])
    (prospect,) = planned["sources"]
    assert (prospect["source"], prospect["complete"], prospect["bytes"]) == (one.url, True, planned["bytes_total"])
    again = two.json("pin", root, "--only", "config.json", "--name", "mini")
    assert (again["bytes_total"], again["bytes_fetched"]) == (len(FILES["config.json"]), 0)
    two.kill()
    two.start()
    assert "incomplete: 3 of 4 files" in two.cli("ls").stdout
    whole = two.json("pin", "mini")
    assert files_of(whole) == set(FILES)
    assert (whole["absent_files"], whole["bytes_fetched"]) == (0, ONCE)
    assert "incomplete" not in two.cli("ls").stdout
    done = two.json("plan", root)
    assert (done["bytes_to_fetch"], done["sources"], done["stored"]) == (0, [], True)
    assert two.json("verify")["corrupt"] == []


def test_an_incomplete_model_is_served_as_far_as_it_is_here(
    nodes: tuple[NodeProcess, NodeProcess, str], tmp_path: Path
) -> None:
    """Files that are here come whole, others are 404, and a CAR is never a short file."""
    _, two, root = nodes
    two.json("pin", root, "--only", "*.json")

    def got(path: str) -> tuple[int, bytes]:
        done = subprocess.run(
            ["curl", "-s", "-o", str(tmp_path / "out"), "-w", "%{http_code}", two.url + path],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode in (0, 18, 56, 92), done
        return (int(done.stdout) if done.returncode == 0 else -1), (tmp_path / "out").read_bytes()

    assert got(f"/ipfs/{root}/1_Pooling/config.json") == (200, FILES["1_Pooling/config.json"])
    assert got(f"/ipfs/{root}/weights.bin")[0] == 404
    assert got(f"/ipfs/{root}?format=raw")[0] == 200
    assert got(f"/ipfs/{root}?format=car")[0] in (404, -1)
    assert got(f"/ipfs/{root}/config.json?format=car")[0] == 200
    have = two.request("GET", f"/api/have/{root}")
    assert have["complete"] is False
    with NodeProcess(tmp_path / "three", "--peer", two.url) as three:
        part = three.json("pin", root, "--only", "*.json")
        assert files_of(part) == {path for path in FILES if path.endswith(".json")}
        code, what = refused(three, "pin", root)
        assert code in (3, 5), what
        assert "incomplete: 3 of 4 files" in three.cli("ls").stdout


def test_what_cannot_be_pinned_in_part(nodes: tuple[NodeProcess, NodeProcess, str]) -> None:
    _, two, root = nodes
    assert refused(two, "pin", root, "--only", "*.nothing") == (3, "no_match")
    assert refused(two, "plan", root, "--only", "*.nothing") == (3, "no_match")
    assert refused(two, "pin", root, "--exclude", "*") == (3, "no_match")
    assert refused(two, "pin", root, "--publish-map") == (2, "no_map")
    assert refused(two, "plan", "mock:embedding") == (2, "mock_not_pinnable")
    assert refused(two, "plan", "nobody-knows")[0] == 3
    assert refused(two, "pin", root, "--source", "kubo") == (2, "kubo_off")
    assert two.json("ls")["models"] == []
    with pytest.raises(urllib.error.HTTPError) as many:
        two.request("POST", "/api/pins", {"ref": root, "only": ["*"] * 65})
    many.value.close()
    assert many.value.code in (400, 422)


def test_a_plan_names_who_does_not_answer(nodes: tuple[NodeProcess, NodeProcess, str], tmp_path: Path) -> None:
    one, _, root = nodes
    (tmp_path / "three").mkdir(mode=0o700)
    with NodeProcess(tmp_path / "three", "--peer", one.url, "--peer", "http://127.0.0.1:9") as three:
        planned = three.json("plan", root)
        prospects = {prospect["source"]: prospect for prospect in planned["sources"]}
        assert prospects[one.url]["complete"] is True
        assert prospects["http://127.0.0.1:9"]["code"] == "source_unavailable"
        assert planned["bytes_to_fetch"] == sum(map(len, FILES.values())) - (1 << 20)
        assert planned["fits"] is True
        assert three.json("ls")["models"] == []
        alone = refused(three, "plan", root, "--source", "http://127.0.0.1:9")
        assert alone == (5, "source_unavailable")
        lost = "bafkreigh2akiscaildcqabsyg3dfr6chu3fgpregiymsck7e7aqa4s52zy"
        assert refused(three, "plan", lost)[0] in (3, 5)


def test_leaves_of_other_models_are_copyable(nodes: tuple[NodeProcess, NodeProcess, str], tmp_path: Path) -> None:
    one, two, _ = nodes
    shutil.copytree(tmp_path / "model", other := tmp_path / "other")
    (other / "weights.bin").write_bytes(FILES["weights.bin"][: 3 << 20] + b"another end")
    root = one.json("add", str(other))["root"]
    first = two.json("pin", one.json("ls")["models"][0]["root"])
    assert first["absent_files"] == 0
    planned = two.json("plan", root)
    receipt = two.json("pin", root)
    assert planned["bytes_to_fetch"] == receipt["bytes_fetched"] == len(b"another end")
    assert planned["bytes_here"] + planned["bytes_copyable"] + planned["bytes_to_fetch"] == receipt["bytes_total"]


@pytest.mark.model
def test_an_incomplete_model_runs_if_what_the_loader_needs_is_here(tmp_path: Path) -> None:
    """And says which model lacks files if not."""
    for name in ("one", "two"):
        (tmp_path / name).mkdir(mode=0o700)
    shutil.copytree(SAMPLE, folder := tmp_path / "minilm")
    (folder / "unneeded.bin").write_bytes(bytes(1000))
    with NodeProcess(tmp_path / "one") as one, NodeProcess(tmp_path / "two", "--peer", one.url) as two:
        root = one.json("add", str(folder))["root"]
        two.json("pin", root, "--only", "config.json")
        code, what = refused(two, "embed", root, "text")
        assert code in (1, 2, 3), what
        part = two.json("pin", root, "--only", "[!u]*")
        assert part["absent_files"] == 1
        assert two.json("embed", root, "text") == one.json("embed", root, "text")
        assert two.json("pin", root)["absent_files"] == 0
