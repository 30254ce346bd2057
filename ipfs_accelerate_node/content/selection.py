"""Which files of a model are meant: by patterns such as ``*.json``, less others, or by their very paths."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase

from ipfs_accelerate_node.content.plan import FilePlan, ModelPlan
from ipfs_accelerate_node.errors import NotFound


@dataclass(frozen=True, slots=True)
class Choice:
    """include: patterns of the paths that are meant, () is all; exclude: of those that are not, in spite of include."""

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        """Whether it chooses at all."""
        return bool(self.include or self.exclude)

    def __str__(self) -> str:
        return " ".join([*self.include, *(f"--exclude {pattern}" for pattern in self.exclude)])[:200]

    def means(self, path: str) -> bool:
        included = not self.include or any(fnmatchcase(path, pattern) for pattern in self.include)
        return included and not any(fnmatchcase(path, pattern) for pattern in self.exclude)


ALL_FILES = Choice()
Only = tuple[str, ...] | Choice | frozenset[str]  # patterns, or a choice by such, or the paths themselves


def is_meant(path: str, only: Only | None) -> bool:
    """Whether a pattern matches the whole path, case and all; ``*`` also passes "/". Without patterns every path is."""
    match only:
        case frozenset():
            return path in only
        case Choice():
            return only.means(path)
        case _:
            return Choice(only or ()).means(path)


def meant(paths: Iterable[str], only: Only | None, of: object) -> frozenset[str]:
    """Those of the paths that are meant. of: what has them. Raises NotFound (code no_match) where the patterns mean
    none."""
    found = frozenset(path for path in paths if is_meant(path, only))
    if only and not found:
        shown = " ".join(only) if isinstance(only, Collection) else str(only)
        raise NotFound(f"no file of {of} matches {shown[:200]}", code="no_match")
    return found


def selected(plan: ModelPlan, only: Only | None) -> tuple[FilePlan, ...]:
    """The files that are meant; all without patterns. Raises NotFound (code no_match) if the patterns mean none."""
    try:
        found = meant((file.path for file in plan.files), only, plan.root)
    except NotFound as exc:
        exc.detail["cid"] = str(plan.root)
        raise
    return tuple(file for file in plan.files if file.path in found)
