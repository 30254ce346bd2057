"""The files of a model's directory: hard links to blobs, at the paths that the plan gives them."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable

from ipfs_accelerate_node.content.cid import RAW, Cid
from ipfs_accelerate_node.content.plan import FilePlan, ModelPlan
from ipfs_accelerate_node.errors import NotFound
from ipfs_accelerate_node.store import disk
from ipfs_accelerate_node.store.layout import Layout


class Directories:
    """Makes and mends the directories under ``models/``; removes none. Callers hold the store's lock."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout

    def fill(self, directory: str, plan: ModelPlan, files: Iterable[FilePlan]) -> None:
        """A new directory with every folder of the plan and links to these files' blobs, synced."""
        os.mkdir(directory, 0o700, dir_fd=self._layout.models)
        for name in plan.directories:
            os.mkdir(f"{directory}/{name}", 0o700, dir_fd=self._layout.models)
        for file in files:
            self._link(f"{directory}/{member_path(plan, file.path)}", file.cid)
        self._sync(directory, ("", *plan.directories))

    def mend(self, directory: str, plan: ModelPlan, files: Iterable[FilePlan]) -> list[FilePlan]:
        """Links what is missing among these files; what lies in a link's place and is not the blob goes to quarantine.

        Synced. Returns those that were linked.
        """
        mended, folders = [], set()
        for file in files:
            path = member_path(plan, file.path)
            target = f"{directory}/{path}"
            if self.is_blob(target, file.cid):
                continue
            folder = os.path.dirname(path)
            os.makedirs(self._layout.root / "models" / directory / folder, 0o700, exist_ok=True)
            if disk.stat_if_there(target, dir_fd=self._layout.models) is not None:
                self._layout.set_aside(target, self._layout.models, called=f"{file.cid.canonical}.link")
            self._link(target, file.cid)
            mended.append(file)
            folders.add(folder)
        self._sync(directory, sorted(folders))
        return mended

    def is_blob(self, target: str, cid: Cid) -> bool:
        """Whether that path below ``models/`` is a link to the file's blob. Raises OSError if there is no blob."""
        try:
            there = os.stat(target, dir_fd=self._layout.models, follow_symlinks=False)
        except (FileNotFoundError, NotADirectoryError):
            return False
        return os.path.samestat(there, os.stat(str(cid.canonical), dir_fd=self._layout.blobs, follow_symlinks=False))

    def _link(self, target: str, cid: Cid) -> None:
        fds = {"src_dir_fd": self._layout.blobs, "dst_dir_fd": self._layout.models}
        os.link(str(cid.canonical), target, follow_symlinks=False, **fds)

    def _sync(self, directory: str, folders: Iterable[str]) -> None:
        for name in folders:
            fd = disk.open_directory(f"{directory}/{name}" if name else directory, dir_fd=self._layout.models)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)


def member_path(plan: ModelPlan, path: str) -> str:
    """Where a file lies in its model's directory: a root that is a file is called by its CID."""
    return path or str(plan.root.canonical)


def root_is_known(plan: ModelPlan, nodes: Iterable[tuple[Cid, bytes]]) -> bool:
    """Whether the root itself can be served: as a node block, or as a file's leaf."""
    root = plan.root.canonical
    if root.inline is not None or any(cid.canonical == root for cid, _ in nodes):
        return True
    return root.codec == RAW or any(leaf.cid.canonical == root for file in plan.files for leaf in file.leaves)


def wanted_files(plan: ModelPlan, paths: Collection[str] | None) -> set[Cid]:
    """CIDs (canonical) of the files at those paths; None is all. Raises NotFound for a path that the plan lacks, and if
    there are none at all."""
    if paths is None:
        return {file.cid.canonical for file in plan.files}
    found = {file.path: file.cid.canonical for file in plan.files if file.path in paths}
    strange = sorted(set(paths) - found.keys())
    if strange or not found:
        what = repr(strange[0][:200]) if strange else "any of the files asked for"
        raise NotFound(f"{plan.root} does not have {what}", cid=str(plan.root))
    return set(found.values())


def files_here(plan: ModelPlan, here: Collection[Cid]) -> list[FilePlan]:
    """here: canonical CIDs. A file at two paths is here at both."""
    return [file for file in plan.files if file.cid.canonical in here]
