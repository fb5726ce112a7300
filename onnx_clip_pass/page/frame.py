"""The whole page: head, style, script, and what they allow."""

from __future__ import annotations

import hashlib
from base64 import b64encode
from functools import cache
from importlib.resources import files

from onnx_clip_pass._version import __version__
from onnx_clip_pass.page.markup import Markup, element, joined, visible

__all__ = ["GENERATOR", "page"]

GENERATOR = "onnx-clip"
"""The content of the page's `generator`, by which a page of ours is known again."""


@cache
def _asset(name: str) -> Markup:
    text = files(__package__).joinpath(name).read_text(encoding="utf-8")
    if "</s" in text.lower():
        raise ValueError(f"{name} would end its own element")
    return Markup(text)


def _digest(text: str) -> str:
    return f"'sha256-{b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def page(title: object, kind: str, *content: object) -> str:
    """A page as the text of one file, the same for the same content.

    Args:
        title: what it is about, such as a file.
        kind: the kind of page in a word or two, above the title.
        *content: parts of the page.
    """
    style, script = _asset("page.css"), _asset("page.js")
    policy = (
        f"default-src 'none'; style-src {_digest(style)}; script-src {_digest(script)}; "
        f"base-uri 'none'; form-action 'none'"
    )
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=Markup(policy)),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("meta", name="generator", content=GENERATOR),
        element("title", f"{visible(title)} · {kind} · onnx-clip"),
        element("style", style),
    )
    body = element(
        "body",
        Markup("\n"),
        element("header", element("p", kind, class_="kind"), element("h1", title)),
        Markup("\n"),
        element("main", *(joined([part, Markup("\n")]) for part in content)),
        Markup("\n"),
        element("footer", f"onnx-clip {__version__}. This page is one file; it loads nothing."),
        Markup("\n"),
        element("script", script),
    )
    return f'<!doctype html>\n<html lang="en">\n{head}\n{body}\n</html>\n'
