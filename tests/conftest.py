"""What every test file shares: which tests this machine can run, and a list at the end of those it could not.

A test says what it needs with markers (`kubo`, `model`, `model("smollm2-135m")`, `needs("strace", "root")`). Where
that is missing the test is left out and named under NOT RUN with the reason; under CI a missing Kubo or model is an
error instead.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests.support.kubo import find_kubo
from tests.support.sample import SAMPLE, made

# A property says what is right, not how fast: a busy machine must not fail one.
settings.register_profile("busy", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy")

REPORTED = pytest.StashKey[list[str]]()


@lru_cache
def lacking(need: str) -> str | None:
    """Why ``need`` cannot be had here, or None when it can."""
    if need == "kubo":
        return None if find_kubo() else "no Kubo binary (scripts/install-kubo builds one)"
    if need == "model":
        return None if (SAMPLE / "model.safetensors").exists() else "no sample model (scripts/sample-model unpacks it)"
    if need.startswith("model:"):
        name = need.partition(":")[2]
        return None if made(name).exists() else f"no {name} (scripts/models makes it)"
    if need == "root":
        return None if os.geteuid() == 0 else "not root"
    if need == "linux":
        return None if sys.platform == "linux" else "not Linux"
    return None if shutil.which(need) else f"no {need} on PATH"


def needs(item: pytest.Item) -> Iterator[str]:
    for marker in item.iter_markers():
        if marker.name == "model" and marker.args:
            yield from (f"model:{name}" for name in marker.args)
        elif marker.name in ("kubo", "model"):
            yield marker.name
        elif marker.name == "needs":
            yield from marker.args


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    kept, left_out, report = [], [], []
    for item in items:
        reasons = [reason for need in needs(item) if (reason := lacking(need))]
        if not reasons:
            kept.append(item)
        elif os.environ.get("CI") and any(lacking(need) for need in needs(item) if need.startswith(("kubo", "model"))):
            raise pytest.UsageError(f"CI runs everything, but {item.nodeid}: {reasons[0]}")
        else:
            left_out.append(item)
            report.append(f"{item.nodeid}: {reasons[0]}")
    items[:] = kept
    config.stash[REPORTED] = report
    if left_out:
        config.hook.pytest_deselected(items=left_out)


def pytest_sessionfinish(session: pytest.Session) -> None:
    output: dict[str, object] | None = getattr(session.config, "workeroutput", None)
    if output is not None:  # a worker of a parallel run hands its list to the controller
        output["not_run"] = session.config.stash.get(REPORTED, [])


class FromWorkers:
    @staticmethod
    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(node: object) -> None:
        config: pytest.Config = node.config  # type: ignore[attr-defined]
        output: dict[str, list[str]] = getattr(node, "workeroutput", {})
        known = config.stash.setdefault(REPORTED, [])
        known.extend(line for line in output.get("not_run", []) if line not in known)


def pytest_configure(config: pytest.Config) -> None:
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        # Started in the background of a shell, which our children would inherit: Ctrl-C could not be tried on them.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    config.addinivalue_line("markers", "needs(*tools): programs or rights that the test cannot do without")
    config.pluginmanager.register(FromWorkers())


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    reports = [r for kind in ("passed", "failed") for r in terminalreporter.stats.get(kind, [])]
    if figures := [(r.nodeid, value) for r in reports for key, value in r.user_properties if key == "figure"]:
        terminalreporter.section("FIGURES")
        for nodeid, value in figures:
            terminalreporter.write_line(f"{nodeid.rsplit('::')[-1]}: {value}")
    if lines := config.stash.get(REPORTED, []):
        terminalreporter.section("NOT RUN")
        for line in lines:
            terminalreporter.write_line(line)


@pytest.fixture
def figure(record_property: Callable[[str, object], None]) -> Callable[[str], None]:
    """Notes a measured figure: it is printed at the end of the run, whether the test passes or not."""
    return lambda text: record_property("figure", text)


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """An empty data folder of a node."""
    folder = tmp_path / "cache"
    folder.mkdir(mode=0o700)
    return folder
