"""The page, rendered on the server: templates that escape whatever they print, one style, one script, and the headers
under which a browser runs that script and nothing else."""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

import jinja2
from markupsafe import Markup

from ipfs_accelerate_node.api.dashboard import words

TITLE = "ipfs-accelerate-node"
_PACKAGE = "ipfs_accelerate_node.api.dashboard"
_FOLDER = "templates"


@dataclass(frozen=True, slots=True)
class Part:
    """A section of the page. digest: of its HTML, by which a page knows that it has it already."""

    id: str
    html: Markup
    digest: str

    @classmethod
    def of(cls, name: str, **values: Any) -> Part:
        html = rendered(f"{name}.html", **values)
        return cls(name, html, hashlib.sha256(html.encode()).hexdigest()[:16])


def rendered(template: str, **values: Any) -> Markup:
    return Markup(_environment().get_template(template).render(**values))


def page(parts: list[Part]) -> str:
    return rendered("page.html", title=TITLE, parts=parts, lines=(), **_assets())


def door(*lines: str) -> str:
    """What a stranger sees: how the user gets in, and nothing of the node."""
    return rendered("page.html", title=TITLE, parts=[], lines=lines, **_assets())


@cache
def headers() -> dict[str, str]:
    """Only this very script and style, events from this very origin, in no frame, with no form."""
    script, style = (_hash(text) for text in (_assets()["script"], _assets()["style"]))
    policy = (
        "default-src 'none'",
        f"script-src '{script}'",
        f"style-src '{style}'",
        "img-src data:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
    return {
        "Content-Security-Policy": "; ".join(policy),
        "X-Content-Type-Options": "nosniff",
        "X-Frame-Options": "DENY",
        "Referrer-Policy": "no-referrer",
        "Cross-Origin-Opener-Policy": "same-origin",
        "Cross-Origin-Resource-Policy": "same-origin",
        "Cache-Control": "no-store",
    }


@cache
def _assets() -> dict[str, Markup]:
    folder = resources.files(_PACKAGE) / _FOLDER
    return {name: Markup((folder / file).read_text("utf-8")) for name, file in _FILES.items()}


_FILES = {"script": "script.js", "style": "style.css"}


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


@cache
def _environment() -> jinja2.Environment:
    made = jinja2.Environment(
        loader=jinja2.PackageLoader(_PACKAGE, _FOLDER),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=words.clean,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
    )
    for filter_ in (words.size, words.number, words.milliseconds, words.waiting, words.cut, words.moment, words.told,
                    words.plural, words.agreement):  # fmt: skip
        made.filters[filter_.__name__] = filter_
    return made
