"""Layer 7, the command line. Every command but `up`, `doctor` and `add --only-hash` talks to the daemon over HTTP.

Only click is imported here: a subcommand's module loads when it is used, so that ``--help`` answers at once.

Exit codes: 0 done, 1 failure, 2 wrong usage, 3 not found, 4 verification failed, 5 unavailable, 130 interrupted, 143
terminated, 141 when the reader of the output went away. Errors are one line on stderr; with ``--json`` stdout then
holds the problem object instead of a result.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
from collections.abc import Sequence
from types import FrameType
from typing import Any, NoReturn, TextIO

import click

from ipfs_accelerate_node import __version__
from ipfs_accelerate_node.errors import (
    EXIT_FAILURE,
    EXIT_INTERRUPTED,
    EXIT_OK,
    EXIT_USAGE,
    NodeError,
    exit_code,
    problem,
)

EXIT_PIPE_CLOSED = 128 + signal.SIGPIPE
EXIT_TERMINATED = 128 + signal.SIGTERM

# command -> (module, one line of help); the modules' own help is held to these by a test.
COMMANDS = {
    "up": ("up", "Run the daemon."),
    "add": ("add", "Take a directory into the store and print its CID."),
    "pin": ("pins", "Fetch a model, verify every block, keep it and seed it."),
    "plan": ("plans", "Say what a pin would fetch, from whom, and what it needs."),
    "unpin": ("pins", "Let a model go when space is needed."),
    "ls": ("stored", "List the stored models."),
    "info": ("stored", "Show one model: files, hashes, where it came from."),
    "rm": ("stored", "Delete a model from the store."),
    "gc": ("stored", "Delete everything that is not pinned or in use."),
    "verify": ("stored", "Read everything again and name what is corrupt."),
    "hydrate": ("hf_cache", "Write a stored model into the Hugging Face cache, so that every tool loads it offline."),
    "import-hf-cache": (
        "hf_cache",
        "Take what is in the Hugging Face cache into the store, checked, without a download.",
    ),
    "share": ("hf_cache", "Let others have a model that is private here; --undo takes that back."),
    "load": ("inference", "Start a model's worker process."),
    "unload": ("inference", "End a model's worker process."),
    "infer": ("infer", "Run a model on texts, pictures or sound."),
    "embed": ("inference", "Embed texts with a model."),
    "bench": ("bench", "Measure a model by workloads, as signed records."),
    "audit": ("maps", "Recompute a map of a Hub commit: confirmed, or refused with what is wrong."),
    "publish": ("maps", "Put this node's map of a Hub commit on IPFS, for everybody and for good."),
    "results": ("results", "Ask other nodes how a model runs on their hardware."),
    "peers": ("peers", "List, add and remove the nodes that this one asks."),
    "report": ("report", "Run every model on every device and say what is REAL, how fast, and by what evidence."),
    "dashboard": ("dashboard", "Show the daemon in a browser: models, pins, results, devices, peers."),
    "remote": ("remote", "Have pinning services keep models, and see what they keep."),
    "keys": ("keys", "Make, list and remove API keys."),
    "doctor": ("doctor", "Say what is there, what is missing and how to mend it."),
}
# A value after these would be seen by every user of the machine and kept in the shell's history.
_SECRET_OPTIONS = ("--token", "--hf-token", "--key", "--api-key", "--kubo-auth", "--password", "--service-key")


class Refused(Exception):
    """A failure that the daemon told: its problem body, whose code and exit code decide ours."""

    def __init__(self, message: str, *, code: str, exit_code: int, body: dict[str, Any]) -> None:
        super().__init__(message)
        self.code = code
        self.exit_code = exit_code
        self.body = body


class _PipeClosed(BaseException):
    """The reader of our output went away; passes click, which would end with 1."""


class _Terminated(BaseException):
    """SIGTERM."""


class LazyGroup(click.Group):
    """Knows its commands' names and help without importing them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"{__name__}.{COMMANDS[cmd_name][0]}")
        command: click.Command = getattr(module, cmd_name.replace("-", "_"))
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, help_line) for name, (_, help_line) in COMMANDS.items()])

    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:
        """``--help`` and ``--version`` print in here."""
        try:
            return super().make_context(*args, **kwargs)
        except BrokenPipeError as exc:
            raise _PipeClosed from exc

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError as exc:
            raise _PipeClosed from exc


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog=(
        "A REF is a CID, ipfs://CID/path, a name given with --name, hf:org/name[@revision] or mock:TASK. "
        'Completion: eval "$(_IAN_COMPLETE=bash_source ian)" (also zsh_source, fish_source).'
    ),
)
@click.version_option(__version__, prog_name="ipfs-accelerate-node")
def cli() -> None:
    """Download once, then peers feed each other: model weights by IPFS CID, verified, seeded and served."""


def main() -> NoReturn:
    """The console script: ends the process with the exit code."""
    try:
        sys.exit(run(sys.argv[1:]))
    except _Terminated:  # while the last words were said
        sys.exit(EXIT_TERMINATED)
    except KeyboardInterrupt:
        sys.exit(EXIT_INTERRUPTED)


def run(arguments: Sequence[str]) -> int:
    """One command; returns its exit code. Installs a SIGTERM handler for as long as the process lives."""
    signal.signal(signal.SIGTERM, _terminate)
    for stream in (sys.stdout, sys.stderr):
        _print_anything(stream)
    options = arguments[: arguments.index("--")] if "--" in arguments else arguments
    as_json = "--json" in options
    try:
        _refuse_secrets(options)
        done = cli.main(list(arguments), prog_name=_program(), standalone_mode=False)
        sys.stdout.flush()
        return done if isinstance(done, int) else EXIT_OK
    except (BrokenPipeError, _PipeClosed):
        _silence_stdout()
        return EXIT_PIPE_CLOSED
    except _Terminated:
        return EXIT_TERMINATED
    except (KeyboardInterrupt, click.Abort):
        return _told(as_json, "interrupted", EXIT_INTERRUPTED, {})
    except click.ClickException as exc:
        return _usage(exc, as_json)
    except Refused as exc:
        return _told(as_json, str(exc), exc.exit_code, exc.body)
    except NodeError as exc:
        return _told(as_json, str(exc), exit_code(exc), problem(exc))
    except Exception as exc:
        if os.environ.get("IPFS_ACCELERATE_NODE_DEBUG"):
            raise
        trace = "IPFS_ACCELERATE_NODE_DEBUG=1 shows where"
        return _told(as_json, f"unexpected {type(exc).__name__}: {exc} ({trace})", EXIT_FAILURE, {})


def _program() -> str:
    name = os.path.basename(sys.argv[0])
    return name if name in ("ian", "ipfs-accelerate-node") else "ipfs-accelerate-node"


def _terminate(_signal: int, _frame: FrameType | None) -> None:
    raise _Terminated


def _print_anything(stream: TextIO) -> None:
    """Whatever the locale says, a character it lacks is escaped instead of raising."""
    if hasattr(stream, "reconfigure"):
        stream.reconfigure(errors="backslashreplace")


def _silence_stdout() -> None:
    """What is still buffered for a reader who left is dropped, also at interpreter exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _refuse_secrets(options: Sequence[str]) -> None:
    for option in (argument.partition("=")[0] for argument in options):
        if option in _SECRET_OPTIONS:
            raise click.UsageError(
                f"{option} is refused: arguments are seen by every user of this machine. Give secrets in the "
                "environment (HF_TOKEN, IPFS_ACCELERATE_NODE_KEY), in a file of mode 0600 (--key-file), "
                "or in the configuration file."
            )


def _usage(error: click.ClickException, as_json: bool) -> int:
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        print(error.format_message(), file=sys.stderr)
        return EXIT_USAGE
    context = getattr(error, "ctx", None)
    path = context.command_path if context is not None else _program()
    message = f"{error.format_message().rstrip('.')}. See: {path} --help"
    return _told(as_json, message, EXIT_USAGE, {"code": "usage", "detail": message, "exit_code": EXIT_USAGE})


def _told(as_json: bool, message: str, code: int, body: dict[str, Any]) -> int:
    """One line on stderr, and the problem object on stdout for who asked for JSON; returns the exit code."""
    from ipfs_accelerate_node.cli.render import clean, print_json

    try:
        if as_json and body:
            print_json(body)
            sys.stdout.flush()
    except BrokenPipeError:
        _silence_stdout()
    line = " ".join(clean(part) for part in message.split())
    try:
        print(f"{_program()}: {line}", file=sys.stderr, flush=True)
    except OSError:
        return code  # nobody reads stderr; the exit code says it
    return code


__all__ = ["COMMANDS", "Refused", "cli", "main", "run"]
