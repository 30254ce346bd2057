"""The dashboard as a browser gets it: the elements of the page, and the way in."""

from __future__ import annotations

from html.parser import HTMLParser

from tests.support.running import Running


class Elements(HTMLParser):
    """What a browser makes of the page: tags, attributes, and the text of script and style."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.inside: dict[str, str] = {}
        self._open = ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._open = tag

    def handle_endtag(self, tag: str) -> None:
        self._open = ""

    def handle_data(self, data: str) -> None:
        if self._open in ("script", "style"):
            self.inside[self._open] = self.inside.get(self._open, "") + data

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


async def link(here: Running, **headers: str) -> str:
    reply = await here.ask("POST", "/api/dashboard", key=here.key, headers=headers)
    assert reply.status == 201
    assert reply.json["expires_s"] == 60
    return str(reply.json["path"])


async def session(here: Running) -> dict[str, str]:
    """The Cookie header of a browser that was let in."""
    reply = await here.ask("GET", await link(here))
    assert reply.status == 303
    assert reply.headers["Location"] == "/dashboard"
    return {"Cookie": reply.headers["Set-Cookie"].partition(";")[0]}


async def page(here: Running) -> str:
    reply = await here.admin("GET", "/dashboard")
    assert reply.status == 200
    return reply.body.decode()
