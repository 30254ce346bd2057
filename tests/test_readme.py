"""The README says what the code does: its commands, routes and settings are the real ones."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import click

from ipfs_accelerate_node.api.app import ROUTES
from ipfs_accelerate_node.cli import COMMANDS
from ipfs_accelerate_node.cli.keys import keys
from ipfs_accelerate_node.cli.up import up
from ipfs_accelerate_node.config import PREFIX, SINGULAR, Config, load_config
from ipfs_accelerate_node.config_values import SECRETS

README = (Path(__file__).resolve().parents[1] / "README.md").read_text()
NOT_SETTINGS = {"--config", "--log-level", "--json"}


def table(mark: str) -> list[list[str]]:
    """Cells of the table that follows an HTML comment beginning with ``mark``."""
    after = README.split(f"<!-- {mark}", 1)[1].split("-->", 1)[1]
    rows = [line for line in after.split("\n\n", 1)[0].splitlines() if line.startswith("|")]
    return [[cell.replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", row)[1:-1]] for row in rows[2:]]


def test_every_command_is_listed_and_no_other() -> None:
    listed = {re.findall(r"`([a-z-]+)", cell)[0]: text.strip() for cell, text in table("commands")}
    assert listed == {name: text for name, (_, text) in COMMANDS.items()}


def test_a_command_that_has_subcommands_names_them() -> None:
    cell = next(cell for cell, _ in table("commands") if "keys" in cell)
    assert set(re.findall(r"[a-z]+", cell)) - {"keys"} == set(keys.commands)


def test_every_route_is_listed_and_no_other() -> None:
    def written(path: str) -> str:
        return re.sub(r"\{(\w+)[^}]*\}", r"{\1}", path)

    served = {(route.method, written(route.path)) for route in ROUTES if route.method != "HEAD"}
    listed: set[tuple[str, str]] = set()
    for cell, _ in table("routes"):
        for method, path, optional in re.findall(r"`(GET|POST|DELETE) (/[^`\[]*)(?:\[([^`\]]*)\])?`", cell):
            listed |= {(method, path), (method, path + optional)}
    assert listed == served


def test_every_setting_is_listed_and_no_other() -> None:
    known = {field.name.upper() for field in fields(Config)}
    assert {name for _, cell, _ in table("settings") for name in re.findall(r"`…_([A-Z_]+)`", cell)} == known


def test_every_flag_of_up_is_listed_and_no_other() -> None:
    def of(parameter: click.Parameter) -> set[str]:
        return {*parameter.opts, *parameter.secondary_opts} - NOT_SETTINGS

    flags = [of(parameter) for parameter in up.params if of(parameter)]
    listed = {flag for cell, _, _ in table("settings") for flag in re.findall(r"(--[a-z-]+)", cell)}
    assert listed <= set().union(*flags)
    for names in flags:
        assert names & listed, names


def test_every_setting_but_a_secret_has_a_flag_and_every_one_a_variable(tmp_path: Path) -> None:
    flags = {parameter.name for parameter in up.params}
    assert {field.name for field in fields(Config)} - SECRETS <= flags
    assert not SECRETS & flags
    env = {"HOME": str(tmp_path), f"{PREFIX}GATEWAYS": "http://127.0.0.1:1", f"{PREFIX}PEER": "http://127.0.0.1:2"}
    config = load_config({}, env, None)
    assert (config.gateways, config.peers) == (("http://127.0.0.1:1",), ("http://127.0.0.1:2",))
    assert set(SINGULAR.values()) <= {field.name for field in fields(Config)}


def test_scripts_of_the_readme_exist() -> None:
    root = Path(__file__).resolve().parents[1]
    named = set(re.findall(r"\bscripts/[\w/.-]+", README))
    assert named
    assert all((root / name.rstrip(".")).exists() for name in named)
