"""The option that asks for a page to look at, and the writing of it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from onnx_clip_pass.cli.options import PATH, OptionGroup, option
from onnx_clip_pass.cli.words import is_quiet, say

if TYPE_CHECKING:
    from onnx_clip_pass.reports.results import Result

__all__ = ["PageOptions"]


class PageOptions(OptionGroup):
    """The page that is wanted, if any; what makes pages is imported only then."""

    html: Path | None = option(
        "--html",
        type=PATH,
        metavar="FILE",
        help="Also write a page for a browser: one file, with all of it.",
    )

    def check(self, *others: Path) -> None:
        """Refuse a place at which something else is, or is to be, before the work begins.

        Args:
            others: what is read or written besides.
        """
        if self.html is None:
            return
        from onnx_clip_pass.reports import check_page_target

        place = os.path.realpath(self.html)
        if any(place == os.path.realpath(other) for other in others):
            raise click.UsageError(f"--html and a model are both {str(self.html)!r}")
        check_page_target(self.html)

    def write_on(self, result: Result) -> None:
        """Write the page on what Python gives, too."""
        if self.html is not None:
            from onnx_clip_pass.reports import page_of

            self.write(lambda: page_of(result))

    def write(self, make: Callable[[], str]) -> None:
        """Write the page, and say so on standard error."""
        if self.html is None:
            return
        from onnx_clip_pass.reports import write_page

        write_page(self.html, make())
        if not is_quiet():
            say(f"wrote {self.html}")
