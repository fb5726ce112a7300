"""What is wrong with the built site: links that lead nowhere, and what it loads from other servers.

    python docs/check_site.py site

It reads what was built and not how, so it holds for any builder, for what is made from docstrings,
and for links to files of the repository. Links to other sites are not followed.
"""

from __future__ import annotations

import re
import sys
import tomllib
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

__all__ = ["REPOSITORY", "faults"]

ROOT = Path(__file__).parent.parent
_PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
REPOSITORY: str = _PROJECT["urls"]["Source"]
"""The address of the repository."""

_LOADING = {
    "audio": "src",
    "embed": "src",
    "iframe": "src",
    "img": "src",
    "link": "href",
    "object": "data",
    "script": "src",
    "source": "src",
    "video": "src",
}
"""The elements that make a browser load something, and the attribute that says what."""

_SCRIPTED = {"mermaid", "glightbox", "pyodide", "source"}
"""Classes and components for which the theme's script asks another server: for libraries, or for
the stars of the repository."""

_NOT_LOADED = {"canonical", "next", "prev", "alternate", "edit"}
_URL = re.compile(r"""url\(\s*['"]?([^'")\s]+)|@import\s+['"]([^'"]+)""")


@dataclass
class _Page(HTMLParser):
    """The ids of a page, where its links lead, and what it loads."""

    ids: set[str] = field(default_factory=lambda: {""})
    links: list[str] = field(default_factory=list)
    loads: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.ids |= {given[name] for name in ("id", "name") if name in given}
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        rel = set(given.get("rel", "").split())
        if _LOADING.get(tag) in given and not (tag == "link" and rel & _NOT_LOADED):
            self.loads.append(given[_LOADING[tag]])
        self.loads += [part.split()[0] for part in given.get("srcset", "").split(",") if part]
        self.loads += _urls(given.get("style", ""))
        asking = _SCRIPTED & {*given.get("class", "").split(), given.get("data-md-component")}
        self.loads += [f"//{name} (a script's)" for name in asking]


def _urls(css: str) -> list[str]:
    return [found[1] or found[2] for found in _URL.finditer(css)]


def _page(path: Path) -> _Page:
    page = _Page()
    page.feed(path.read_text(encoding="utf-8"))
    return page


def faults(site: Path) -> list[str]:
    """Return what is wrong, one line each.

    Args:
        site: the folder that holds it.
    """
    pages = {path.resolve(): _page(path) for path in sorted(site.rglob("*.html"))}
    found = [] if pages else [f"{site} holds no page"]
    for path, page in pages.items():
        where = path.relative_to(site.resolve())
        found += [f"{where} loads {each}" for each in page.loads if _is_elsewhere(each)]
        if where.name == "404.html":  # it is shown at any address, and its links begin at the root
            continue
        inner = [each for each in page.loads + page.links if not _is_elsewhere(each)]
        found += [
            f"{where} links to {link}, {fault}"
            for link in inner
            if (fault := _fault(path, link, pages))
        ]
        found += [
            f"{where} links to {link}, which is no file of the repository"
            for link in page.links
            if link.startswith(f"{REPOSITORY}/blob/main/")
            and not (ROOT / urlsplit(link).path.partition("/blob/main/")[2]).exists()
        ]
    for path in sorted([*site.rglob("*.css"), *site.rglob("*.svg")]):
        text = path.read_text(encoding="utf-8")
        found += [
            f"{path.relative_to(site)} loads {each}" for each in _urls(text) if _is_elsewhere(each)
        ]
    return found


def _is_elsewhere(link: str) -> bool:
    parts = urlsplit(link)
    return bool(parts.netloc) or parts.scheme in ("http", "https", "mailto")


def _fault(page: Path, link: str, pages: dict[Path, _Page]) -> str | None:
    parts = urlsplit(link)
    if parts.scheme:  # data:, javascript:
        return None
    target = (page.parent / unquote(parts.path)).resolve() if parts.path else page
    if target.is_dir():
        target /= "index.html"
    if target not in pages:
        return None if target.is_file() else "which is not there"
    anchor = unquote(parts.fragment)
    return None if anchor in pages[target].ids else "where there is no such anchor"


if __name__ == "__main__":
    wrong = faults(Path(sys.argv[1]))
    print("\n".join(wrong) or "all links lead somewhere, and nothing is loaded from elsewhere")
    sys.exit(1 if wrong else 0)
