"""A Hub on loopback in a process of its own, and the one who asks it what it was asked.

Run as a program: reads repositories from a JSON file, says its origin, then answers one line of JSON for each that it
reads.
"""

from __future__ import annotations

import asyncio
import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any, Self

CHECKOUT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(CHECKOUT))

from tests.support.hub import FakeHub  # noqa: E402

MIB = 1 << 20
PAGE = 1000  # as the real one


class Upstream:
    """A context manager. repos: by name, what each is made of (`contents`). one_origin: large files lie behind a
    redirect within the origin, not to another one."""

    def __init__(self, folder: Path, repos: dict[str, dict[str, Any]], *, one_origin: bool = True) -> None:
        self._spec = folder / "upstream.json"
        self._spec.write_text(json.dumps({"repos": repos, "one_origin": one_origin}))
        self._process: subprocess.Popen[str] | None = None
        self.url = ""

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [sys.executable, __file__, str(self._spec)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.url = self._heard()["url"]
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            assert self._process.stdin is not None
            self._process.stdin.close()
            self._process.wait(30)

    def served(self) -> dict[str, int]:
        """Requests, those for bytes of files, and bytes of files, since `forget`."""
        return self._told("served")

    def forget(self) -> None:
        self._told("forget")

    def corrupt(self, path: str, times: int | None = None) -> None:
        """From now on one bit of each answer with bytes of that file is wrong; None: always, 0: not any more."""
        self._told("corrupt", path=path, times=times)

    def sha256(self, repo: str, path: str) -> str:
        said: str = self._told("sha256", repo=repo, path=path)["sha256"]
        return said

    def _told(self, what: str, **more: Any) -> Any:
        assert self._process is not None
        assert self._process.stdin is not None
        print(json.dumps({"what": what, **more}), file=self._process.stdin, flush=True)
        return self._heard()

    def _heard(self) -> Any:
        assert self._process is not None
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit("the upstream ended")
        return json.loads(line)


def contents(name: str, made: dict[str, Any]) -> dict[str, bytes]:
    """Of the repository of that name. folder: the files of a folder; sizes: random bytes by path; many: so many small
    files."""
    found: dict[str, bytes] = {}
    if "folder" in made:
        root = Path(made["folder"])
        found |= {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}
    for path, size in made.get("sizes", {}).items():
        found[path] = random.Random(f"{name}/{path}").randbytes(size)
    for number in range(made.get("many", 0)):
        found[f"part-{number // 100:03}/data-{number:05}.json"] = b'{"number": %d}' % number
    return found


async def serve(repos: dict[str, dict[str, Any]], *, one_origin: bool) -> None:
    async with FakeHub(one_origin=one_origin, page=PAGE) as hub:
        for name, made in repos.items():
            hub.repo(name, contents(name, made))
        print(json.dumps({"url": hub.url}), flush=True)
        while line := await asyncio.to_thread(sys.stdin.readline):
            print(json.dumps(_answer(hub, json.loads(line))), flush=True)


def _answer(hub: FakeHub, asked: dict[str, Any]) -> dict[str, Any]:
    match asked["what"]:
        case "served":
            files = [seen for seen in hub.seen if seen.method == "GET" and seen.path.startswith("/behind/")]
            return {"requests": len(hub.seen), "transfers": len(files), "bytes": hub.sent_bytes}
        case "corrupt":
            hub.faults[asked["path"]] = ["flip"] * (asked["times"] or 0)
            hub.always[asked["path"]] = "flip" if asked["times"] is None else ""
            return {}
        case "sha256":
            import hashlib

            repo = hub.repos[asked["repo"]]
            return {"sha256": hashlib.sha256(repo.commits[repo.refs["main"]][asked["path"]]).hexdigest()}
        case _:
            hub.seen.clear()
            hub.sent_bytes = 0
            return {}


if __name__ == "__main__":
    asyncio.run(serve(**json.loads(Path(sys.argv[1]).read_text())))
