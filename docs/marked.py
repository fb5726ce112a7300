"""Tables that scripts put into pages, each between a mark of its own and `<!-- end -->`."""

from __future__ import annotations

from pathlib import Path

__all__ = ["put", "table_in"]

END = "<!-- end -->"


def table_in(page: Path, mark: str) -> str:
    """What stands behind the mark.

    Args:
        page: a Markdown file.
        mark: the comment before the table, such as `<!-- made by make.py -->`.
    """
    text = page.read_text(encoding="utf-8")
    return text.split(mark)[1].split(END)[0].strip()


def put(page: Path, mark: str, table: str) -> None:
    """Replace what stands behind the mark."""
    before, _, rest = page.read_text(encoding="utf-8").partition(mark)
    _, _, after = rest.partition(END)
    page.write_text(f"{before}{mark}\n\n{table}\n\n{END}{after}", encoding="utf-8")
