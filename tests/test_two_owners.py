"""Two processes over one cache whose file system has no locks: whatever becomes of their calls, no file is torn.

The lock that keeps a second process away is taken out here, as on a network share that ignores it.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from ipfs_accelerate_node.errors import AlreadyRunning
from ipfs_accelerate_node.store import Store
from tests.support.small_model import bring, random_model

CHECKOUT = Path(__file__).parents[1]
ROUNDS = 12
OWNER = """
import fcntl, sys
fcntl.flock = lambda *_: None
import filelock
filelock.FileLock._acquire = lambda self: setattr(self._context, "lock_file_fd", 0)
filelock.FileLock._release = lambda self: setattr(self._context, "lock_file_fd", None)
from pathlib import Path
from ipfs_accelerate_node.errors import NodeError
from ipfs_accelerate_node.store import Store
from tests.support.small_model import bring, random_model
print("ready", flush=True)
sys.stdin.readline()
codes = []
for number in range(int(sys.argv[2])):
    try:
        with Store.open(Path(sys.argv[1])) as store:
            bring(store, random_model(number, size=300_000))
    except NodeError as exc:
        codes.append(exc.code)
print(*codes)
"""


def started(cache: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", OWNER, str(cache), str(ROUNDS)],
        cwd=CHECKOUT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.timeout(120)
def test_the_same_cids_at_the_same_moment(tmp_path: Path) -> None:
    """F28: each call succeeds or is a typed failure; afterwards every file is right or absent, and can be had again."""
    (cache := tmp_path / "cache").mkdir(mode=0o700)
    owners = [started(cache) for _ in range(2)]
    for owner in owners:
        assert owner.stdout is not None
        assert owner.stdout.readline() == "ready\n"
    for owner in owners:
        assert owner.stdin is not None
        owner.stdin.write("go\n")
        owner.stdin.flush()
    for owner in owners:
        codes, errors = owner.communicate(timeout=90)
        assert owner.returncode == 0, errors[-4000:]
        assert "already_running" not in codes
    with Store.open(cache) as store:
        assert store.verify().corrupt == ()
        for number in range(ROUNDS):
            wanted = random_model(number, size=300_000)
            stored = store.model(wanted.root) or bring(store, wanted)
            for path, data in wanted.files.items():
                assert (stored.path / path).read_bytes() == data


def test_with_the_lock_the_second_is_refused(tmp_path: Path) -> None:
    """What the other test takes out is there."""
    (cache := tmp_path / "cache").mkdir(mode=0o700)
    with Store.open(cache), pytest.raises(AlreadyRunning):
        Store.open(cache)
