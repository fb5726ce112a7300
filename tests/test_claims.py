"""What the pages claim stands there in these words, and something holds it: see claims.toml."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CLAIMS: dict[str, dict[str, str | list[str]]] = tomllib.loads(
    (ROOT / "tests" / "claims.toml").read_text(encoding="utf-8")
)
# Pages of which every number with a unit is to be a claim. The others show what was measured, and
# say by which command and when, or are made by running what they show.
HELD = ["README.md", "SECURITY.md", *(f"docs/{name}.md" for name in (
    "clips", "concepts", "design", "digits", "faq", "finding", "first_clip", "index", "jax",
    "onnx_ir", "options", "python", "reports", "rules", "thresholds", "verify", "watching",
))]  # fmt: skip
UNITS = "GB|MB|kB|bytes|s|ms|seconds?|minutes?|hours?|nodes|functions|messages|elements|times"
NUMBER = re.compile(
    rf"\b(\d[\d.,]*|two|three|four|five|six|seven|eight|ten) (million )?({UNITS})\b|\b1e-?\d+\b"
)


def text_of(page: str) -> str:
    """A page as one line of text, without blocks of code, which are run where they stand."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return " ".join(re.sub(r"^```.*?^```", "", text, flags=re.M | re.S).split())


@pytest.mark.parametrize(("page", "words"), [(page, w) for page in CLAIMS for w in CLAIMS[page]])
def test_a_claim_is_on_its_page_and_what_holds_it_is_there(page: str, words: str):
    assert words in text_of(page)
    held = CLAIMS[page][words]
    for holder in [held] if isinstance(held, str) else held:
        if holder.startswith("by hand: "):
            continue
        path, _, part = holder.replace("#", "::").partition("::")
        text = (ROOT / path).read_text(encoding="utf-8")
        heading = rf"^#+ {part.replace('-', ' ')}$" if path.endswith(".md") else rf"def {part}\("
        assert not part or re.search(heading, text, re.M | re.I), holder


@pytest.mark.parametrize("page", HELD)
def test_every_number_with_a_unit_is_part_of_a_claim(page: str):
    text = text_of(page)
    spans = [
        (at.start(), at.end())
        for words in CLAIMS.get(page, {})
        for at in re.finditer(re.escape(words), text)
    ]
    assert [
        text[max(found.start() - 60, 0) : found.end() + 40]
        for found in NUMBER.finditer(text)
        if not any(start <= found.start() and found.end() <= end for start, end in spans)
    ] == []
