"""Options and arguments that commands share."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from ipfs_accelerate_node.cli import Refused
from ipfs_accelerate_node.content.reference import RootRef, check_model_name, parse_reference

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    from ipfs_accelerate_node.cli.client import Daemon

    _TextParam = click.ParamType[str]
else:
    _TextParam = click.ParamType  # generic since click 8.4

F = TypeVar("F", bound=Callable[..., Any])
COMPLETION_TIMEOUT_S = 1.0


class ReferenceType(_TextParam):
    """A reference, checked here, so that a mistyped CID needs no daemon to be refused.

    The value is what the daemon is sent: the canonical form of a CID, the text as typed for all else.
    """

    name = "ref"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        text = str(value).removesuffix("\n").removesuffix("\r")
        reference = parse_reference(text)
        return str(reference) if isinstance(reference, RootRef) else text

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        from click.shell_completion import CompletionItem

        from ipfs_accelerate_node.cli.client import find_daemon
        from ipfs_accelerate_node.errors import NodeError

        try:
            daemon = find_daemon(url=None, cache=None, key_file=None, env=os.environ)
            models = daemon.call("GET", "/api/store", timeout_s=COMPLETION_TIMEOUT_S)["models"]
        except (NodeError, Refused):
            return []  # completion has nobody to tell
        words = [word for model in models for word in (*model["names"], model["root"])]
        return [CompletionItem(word) for word in words if word.startswith(incomplete)]


class ModelNameType(_TextParam):
    """A name that may be given to a model."""

    name = "name"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        check_model_name(str(value))
        return str(value)


REFERENCE = ReferenceType()
MODEL_NAME = ModelNameType()
_INCLUDE = click.option(
    "--include", "--only", "include", multiple=True, metavar="GLOB",
    help="Only files whose path matches (* passes / too); may be repeated.",
)  # fmt: skip
_EXCLUDE = click.option(
    "--exclude", multiple=True, metavar="GLOB", help="No files whose path matches, whatever --include says."
)


def choosing(command: F) -> F:
    """``--include`` and ``--exclude``."""
    return _INCLUDE(_EXCLUDE(command))


def json_option(command: F) -> F:
    """``--json``, passed as ``as_json``."""
    return click.option("--json", "as_json", is_flag=True, help="Print the daemon's own JSON.")(command)


def daemon_options(command: F) -> F:
    """``--url``, ``--cache``, ``--key-file`` and ``--json``; the command gets ``daemon`` and ``as_json``."""

    def found(ctx: click.Context, _param: click.Parameter, value: Path | None) -> Daemon:
        from ipfs_accelerate_node.cli.client import find_daemon

        return find_daemon(url=ctx.params.pop("url"), cache=ctx.params.pop("cache"), key_file=value, env=os.environ)

    decorated = click.option(
        "--key-file", "daemon", type=click.Path(path_type=Path), callback=found, metavar="FILE",
        help="Admin key of that daemon (mode 0600); else IPFS_ACCELERATE_NODE_KEY, else the cache's daemon.json.",
    )(command)  # fmt: skip
    decorated = click.option(
        "--cache", type=click.Path(path_type=Path), is_eager=True, metavar="DIR",
        help="Data folder of the daemon to talk to.",
    )(decorated)  # fmt: skip
    decorated = click.option(
        "--url",
        is_eager=True,
        metavar="URL",
        help="The daemon to talk to; else IPFS_ACCELERATE_NODE_URL, else the cache's.",
    )(decorated)
    return json_option(decorated)
