"""Named places at which a test makes the store fail or die (fault F6). Without a specification they cost one lookup."""

from __future__ import annotations

import errno
import os
import signal

from ipfs_accelerate_node.errors import InvalidConfig


class Failpoints:
    """Parsed from ``NAME=ACTION[@N],…``.

    ACTION: ``exit`` (at once, no clean-up), ``kill`` (SIGKILL), or an errno's name such as ``ENOSPC``, raised as
    OSError. N: only at the Nth passing (from 1); without it at every one.
    """

    def __init__(self, specification: str = "") -> None:
        self._actions: dict[str, tuple[str, int]] = {}
        self.passed: dict[str, int] = {}
        for item in filter(None, specification.split(",")):
            name, _, action = item.partition("=")
            action, _, nth = action.partition("@")
            if action not in ("exit", "kill") and not hasattr(errno, action):
                raise InvalidConfig(f"failpoint {name}: {action!r} is neither exit, kill nor an errno")
            self._actions[name] = (action, int(nth or 0))

    def hit(self, name: str) -> None:
        """Raises OSError, or ends the process, if this name was armed."""
        if name not in self._actions:
            return
        self.passed[name] = self.passed.get(name, 0) + 1
        action, nth = self._actions[name]
        if nth not in (0, self.passed[name]):
            return
        if action == "exit":
            os._exit(86)
        if action == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        raise OSError(getattr(errno, action), f"failpoint {name}")
