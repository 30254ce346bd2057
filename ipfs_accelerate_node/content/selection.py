"""Which files of a model are meant by patterns such as ``*.json``."""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase

from ipfs_accelerate_node.content.plan import FilePlan, ModelPlan
from ipfs_accelerate_node.errors import BadRequest, NotFound


def is_meant(path: str, only: Iterable[str] | None) -> bool:
    """Whether a pattern matches the whole path, case and all; ``*`` also passes "/". Without patterns every path is."""
    return not only or any(fnmatchcase(path, pattern) for pattern in only)


def selected(plan: ModelPlan, only: Iterable[str] | None) -> tuple[FilePlan, ...]:
    """The files that the patterns mean; all without patterns. Raises NotFound (code no_match) if they mean none."""
    patterns = tuple(only or ())
    found = tuple(file for file in plan.files if is_meant(file.path, patterns))
    if patterns and not found:
        shown = " ".join(patterns)[:200]
        raise NotFound(f"no file of {plan.root} matches {shown}", code="no_match", cid=str(plan.root))
    return found


def refuse_parts_of_hub(only: Iterable[str] | None) -> None:
    """Raises BadRequest (code hub_is_whole) if there are patterns."""
    if only:
        raise BadRequest(
            "a Hub repository is fetched whole, as its root depends on every file; parts can be had of what has a CID",
            code="hub_is_whole",
            param="only",
        )
