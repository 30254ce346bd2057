"""Which files of a repository a loader needs: settings, tokenizer and safetensors; no second copy of the weights.

Two kinds of small files have to be read for that, the guides: ``modules.json`` says which folders belong to a model of
sentence-transformers, ``model.safetensors.index.json`` which files hold the weights of a large one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase

from ipfs_accelerate_node.errors import ModelUnsupported

SINGLE, INDEX, MODULES = "model.safetensors", "model.safetensors.index.json", "modules.json"
MAX_GUIDE_BYTES = 64 << 20

_SETTINGS = ("*.json", "*.txt", "*.jinja", "*.model", "*.tiktoken", "*.spm", "*.bpe")
_OTHER = (  # what has such a name and is no setting of the model
    "*.index.json",
    "*_results.json",
    "trainer_state.json",
    "training_args*",
    "requirements*.txt",
    "README*",
    "LICENSE*",
    "openvino*",
    "onnx*",
)
_FOREIGN = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.h5", "*.msgpack", "*.ot", "*.ckpt", "*.onnx", "*.gguf", "*.npz")
_NO_WEIGHTS = ("training_args.bin", "optimizer.*", "scheduler.*", "rng_state*")
_MODULE = re.compile(r"\d+_[A-Za-z0-9]+")  # sentence-transformers' own names
_MAX_MODULES = 16


def guides(paths: Iterable[str]) -> frozenset[str]:
    """Those of a repository's files that have to be read before `needed` can tell."""
    have = frozenset(paths)
    indexes = {path for path in have if _name(path) == INDEX and _is_near(path) and _beside(path) not in have}
    return frozenset(indexes | ({MODULES} & have))


def needed(paths: Iterable[str], texts: Mapping[str, bytes], repo: str) -> frozenset[str]:
    """Of a repository's files those that a loader needs. texts: of the guides. A single model.safetensors goes before
    shards, as it does for the loader; of shards exactly those that the index names.

    Raises ModelUnsupported: format_refused where there are weights, but none in safetensors; bad_weights for an index
    that names files which the repository has not.
    """
    have = frozenset(paths)
    modules = _modules(have, texts.get(MODULES))
    found: set[str] = set()
    for folder in {"", *modules}:
        inside = {_name(path): path for path in have if _folder(path) == folder}
        found |= {path for name, path in inside.items() if _is_setting(name)}
        if folder in modules:
            found |= _weights(inside, texts, repo)
    return frozenset(found)


def _weights(inside: Mapping[str, str], texts: Mapping[str, bytes], repo: str) -> set[str]:
    if SINGLE in inside:
        return {inside[SINGLE]}
    if INDEX in inside:
        shards = _shards(texts.get(inside[INDEX], b""), inside[INDEX])
        lacking = sorted(shards - inside.keys())
        if lacking:
            raise ModelUnsupported(
                f"{repo}: {inside[INDEX]} names {lacking[0][:80]!a}, which the commit does not have", code="bad_weights"
            )
        return {inside[INDEX], *(inside[name] for name in shards)}
    foreign = sorted(name for name in inside if _any(name, _FOREIGN) and not _any(name, _NO_WEIGHTS))
    if foreign:
        raise ModelUnsupported(
            f"{repo} has its weights as {inside[foreign[0]]} and not as safetensors, which alone is loaded; nothing was"
            f" fetched (`pin hf:{repo}` fetches it nevertheless)",
            code="format_refused",
            files=foreign[:20],
        )
    return set()


def _shards(text: bytes, path: str) -> set[str]:
    try:
        named = json.loads(text)["weight_map"].values()
        return {name for name in named if name == _name(name)}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as exc:
        raise ModelUnsupported(f"{path} is no index of weights", code="bad_weights") from exc


def _modules(have: frozenset[str], text: bytes | None) -> set[str]:
    """Folders that may hold weights: of the modules, else the top."""
    if text is None:
        return {""}
    try:
        return {str(module.get("path", "")).strip("/") for module in json.loads(text)[:_MAX_MODULES]}
    except (ValueError, TypeError, AttributeError, RecursionError):  # the loader will say what is wrong with it
        return {"", *(folder for path in have if _MODULE.fullmatch(folder := _folder(path)))}


def _is_near(path: str) -> bool:
    return "/" not in path or _MODULE.fullmatch(_folder(path)) is not None


def _is_setting(name: str) -> bool:
    return _any(name, _SETTINGS) and not _any(name, _OTHER)


def _any(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _name(path: str) -> str:
    return path.rpartition("/")[2]


def _folder(path: str) -> str:
    return path.rpartition("/")[0]


def _beside(index: str) -> str:
    return index.removesuffix(INDEX) + SINGLE
