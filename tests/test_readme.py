"""The README says what the code does: its commands, routes and settings are the real ones."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

from ipfs_accelerate_node.cli import COMMANDS
from ipfs_accelerate_node.config import Config

README = (Path(__file__).resolve().parents[1] / "README.md").read_text()


def table(mark: str) -> list[str]:
    """First cells of the table that follows an HTML comment beginning with ``mark``."""
    after = README.split(f"<!-- {mark}", 1)[1].split("-->", 1)[1]
    rows = [line for line in after.split("\n\n", 1)[0].splitlines() if line.startswith("|")]
    return [re.split(r"(?<!\\)\|", row)[1] for row in rows[2:]]


def test_every_command_is_listed_and_no_other() -> None:
    listed = {word.split()[0] for cell in table("commands") for word in re.findall(r"`([a-z]+)", cell)}
    assert listed == set(COMMANDS)


def test_settings_of_the_readme_exist() -> None:
    known = {f.name.upper() for f in fields(Config)}
    named = set(re.findall(r"`…_([A-Z_]+)`", README))
    assert named
    assert named <= known
