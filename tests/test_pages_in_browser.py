"""Pages in a real browser: headless Chromium, driven by playwright (`nox -s browser`).

ONNX_CLIP_CHROMIUM is the path of the browser; ONNX_CLIP_SCREENSHOTS a folder for screenshots.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
from html_pages import HOSTILE, many_rows, report, uncovered

from onnx_clip_pass import GradientClipByGlobalNorm, GradientClipByNorm, plan_clips, verify
from onnx_clip_pass.page import (
    Column,
    HeatMap,
    Histogram,
    Line,
    LineChart,
    Row,
    Table,
    page,
    section,
)
from onnx_clip_pass.reports import rewrite_page, verification_page

CHROMIUM = os.environ.get("ONNX_CLIP_CHROMIUM", "")
pytestmark = pytest.mark.skipif(not CHROMIUM, reason="runs in `nox -s browser` only")
if CHROMIUM:
    from playwright.sync_api import expect
if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator, Page

    Show = Callable[..., Page]

MANY = 5000
MODELS = Path(__file__).parent.parent / "models"
GRADIENTS = "#gradients"
ROWS = f"{GRADIENTS} tbody tr:not(.details)"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture
def show(browser: Browser, tmp_path: Path) -> Iterator[Show]:
    """Open a page; whatever the browser complains of, or asks of a network, is a failure."""
    complaints: list[str] = []
    opened = []

    def open_page(text: str, width: int = 1280, **how: object) -> Page:
        path = tmp_path / "page.html"
        path.write_text(text, encoding="utf-8")
        context = browser.new_context(viewport={"width": width, "height": 900}, **how)
        opened.append(context)
        tab = context.new_page()
        tab.on("console", lambda said: complaints.append(said.text))
        tab.on("pageerror", lambda error: complaints.append(str(error)))
        tab.on("dialog", lambda dialog: complaints.append(dialog.message))
        tab.on("request", lambda asked: complaints.append(asked.url))
        tab.goto(path.as_uri())
        assert complaints.pop(0) == path.as_uri()
        return tab

    yield open_page
    for context in opened:
        context.close()
    assert complaints == []


@pytest.fixture(scope="module")
def large() -> str:
    found, verified = many_rows(MANY)
    return rewrite_page("large.onnx", "large.clipped.onnx", found, verified=verified)


@pytest.fixture(scope="module")
def real() -> str:
    path = MODELS / "onnx_ad" / "gru.onnx"
    plan = plan_clips(path, GradientClipByGlobalNorm(0.01), emit=["norm"])
    verified = verify(onnx.load(path), plan.apply())
    return rewrite_page(str(path.name), "gru.clipped.onnx", plan.report, verified=verified)


def shot(tab: Page, name: str) -> None:
    if folder := os.environ.get("ONNX_CLIP_SCREENSHOTS"):
        tab.screenshot(path=Path(folder) / f"{name}.png", full_page=True)


def column(tab: Page, number: int) -> list[str]:
    cells = tab.locator(f"{ROWS} td:nth-child({number})").all_text_contents()
    return [cell.strip() for cell in cells]


def told(tab: Page) -> Locator:
    return tab.locator(f"{GRADIENTS} output")


def test_a_long_table_shows_its_first_rows_and_then_all(show: Show, large: str):
    tab = show(large)
    assert tab.locator(ROWS).count() == 200
    expect(told(tab)).to_have_text("5,000 gradients, the first 200 shown")
    for rows in (1200, 2200, 3200, 4200):
        tab.get_by_role("button", name="Show 1,000 more").click()
        assert tab.locator(ROWS).count() == rows
    tab.get_by_role("button", name="Show the other 800").click()
    assert column(tab, 1) == [row.gradient.name for row in many_rows(MANY)[0].rows]
    expect(told(tab)).to_have_text("5,000 gradients")
    assert not tab.locator(f"{GRADIENTS} .moreRows").is_visible()


def test_search_finds_all_words_anywhere_in_a_row(show: Show, large: str):
    tab = show(large)
    search = tab.get_by_label("Search gradients")
    search.fill("layers.100. FORMULA")
    expect(tab.locator(ROWS)).to_have_count(0)
    search.fill("layers.1. attention.v")
    expect(tab.locator(ROWS)).to_have_count(2)
    assert set(column(tab, 1)) == {
        f"encoder.layers.1.attention.v.{kind}_grad" for kind in ("weight", "bias")
    }
    expect(told(tab)).to_have_text("2 of 5,000 gradients")
    search.fill("formula says")
    expect(tab.locator(ROWS)).to_have_count(2)
    search.fill("")
    expect(tab.locator(ROWS)).to_have_count(200)


def test_a_choice_leaves_the_rows_that_have_it(show: Show, large: str):
    tab = show(large)
    tab.get_by_role("combobox", name="verdict").select_option(label="wrong")
    expect(told(tab)).to_have_text("2 of 5,000 gradients")
    expect(tab.locator(f"{ROWS}.bad")).to_have_count(2)
    tab.get_by_role("combobox", name="clip").select_option(label="not clipped")
    expect(told(tab)).to_have_text("0 of 5,000 gradients")


def test_headings_sort_by_size_by_name_and_back(show: Show, large: str):
    tab = show(large)
    before = column(tab, 1)
    heading = tab.locator(f"{GRADIENTS} th:has-text('norm')").first
    at = tab.locator(f"{GRADIENTS} th").all_text_contents().index("norm") + 1
    heading.get_by_role("button").click()
    assert heading.get_attribute("aria-sort") == "descending"
    sizes = [float(cell) for cell in column(tab, at)]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] > 900
    heading.get_by_role("button").click()
    sizes = [float(cell) for cell in column(tab, at)]
    assert sizes == sorted(sizes)
    assert sizes[0] < 2e-4
    heading.get_by_role("button").click()
    assert heading.get_attribute("aria-sort") is None
    assert column(tab, 1) == before
    tab.locator(f"{GRADIENTS} th").nth(2).get_by_role("button").click()  # shapes, largest first
    assert set(column(tab, 3)) == {"7\N{MULTIPLICATION SIGN}64"}
    name = tab.locator(f"{GRADIENTS} th").first.get_by_role("button")
    name.click()
    numbers = [int(cell.split(".")[2]) for cell in column(tab, 1)]
    assert numbers == sorted(numbers)  # layer 2 before layer 10


def test_what_is_not_known_comes_last_however_it_is_sorted(show: Show, large: str):
    tab = show(large)
    at = tab.locator(f"{GRADIENTS} th").all_text_contents().index("norm") + 1
    tab.get_by_label("Search gradients").fill("layers.1.")
    expect(tab.locator(ROWS)).to_have_count(8)
    for _ in range(2):
        tab.locator(f"{GRADIENTS} th").nth(at - 1).get_by_role("button").click()
        cells = column(tab, at)
        assert len(cells) == 8
        assert cells[-1] == ""
        assert "" not in cells[:-1]


def test_a_click_unfolds_a_row_and_the_keyboard_does_too(show: Show, real: str):
    tab = show(real)
    row = tab.locator(ROWS).first
    assert tab.locator("tr.details").count() == 0
    row.locator("td").nth(1).click()
    details = tab.locator("tr.details")
    assert "named after W" in details.inner_text()  # a column that has no space in the table
    assert details.locator("svg").count() == 1
    row.locator("td").nth(1).click()
    assert tab.locator("tr.details").count() == 0
    button = row.get_by_role("button", name="Details")
    button.focus()
    tab.keyboard.press("Enter")
    assert button.get_attribute("aria-expanded") == "true"
    assert tab.locator("tr.details").count() == 1
    tab.locator(f"{GRADIENTS} th").first.get_by_role("button").click()  # sorting keeps it open
    assert tab.locator("tr.details").count() == 1


def background(tab: Page) -> list[int]:
    found = tab.evaluate("getComputedStyle(document.documentElement).backgroundColor")
    return [int(part) for part in found.strip("rgb()").split(",")]


def test_it_is_light_or_dark_as_the_reader_has_it_and_light_on_paper(show: Show, real: str):
    light = show(real, color_scheme="light")
    assert min(background(light)) > 240
    shot(light, "light")
    dark = show(real, color_scheme="dark")
    assert max(background(dark)) < 40
    shot(dark, "dark")
    ink = "getComputedStyle(document.querySelector('h1')).color"
    assert dark.evaluate(ink) != light.evaluate(ink)
    dark.emulate_media(media="print")
    assert dark.evaluate(ink) == light.evaluate(ink)


def test_print_leaves_the_tools_out_and_breaks_no_row(show: Show, large: str):
    tab = show(large)
    tab.get_by_label("Search gradients").fill("layers.1.")
    expect(tab.locator(ROWS)).to_have_count(8)
    tab.emulate_media(media="print")
    assert not tab.get_by_label("Search gradients").is_visible()
    assert not tab.locator(".unfold").first.is_visible()
    expect(told(tab)).to_have_text(
        "8 of 5,000 gradients"
    )  # what paper shows is not all, and paper says so
    assert tab.pdf(format="A4").startswith(b"%PDF")


@pytest.mark.parametrize("width", [360, 768, 1280, 1920])
def test_no_width_makes_the_page_itself_scroll_sideways(show: Show, real: str, width: int):
    tab = show(real, width)
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    shot(tab, f"width-{width}")


def test_hostile_names_stay_text(show: Show):
    found = report(HOSTILE, uncovered=tuple(map(uncovered, HOSTILE)), warnings=tuple(HOSTILE))
    tab = show(rewrite_page(HOSTILE[0], HOSTILE[1], found))
    for row in tab.locator(ROWS).all():
        row.locator("td").nth(1).click()
    assert tab.locator("img").count() == 0
    assert tab.locator("script").count() == 1
    assert tab.locator("tr.details").count() == len(HOSTILE)
    assert "</script><script>alert(1)</script>_grad" in column(tab, 1)
    shot(tab, "hostile")


def test_a_script_that_is_slipped_in_does_not_run(browser: Browser, real: str, tmp_path: Path):
    """Were escaping to fail somewhere, the policy of the page would still hold."""
    path = tmp_path / "page.html"
    code = "document.title = 'gone'"
    slipped = f"<main><script>{code}</script><img src=x onerror=\"{code}\"><p style='color: red'>"
    path.write_text(real.replace("<main>", slipped, 1), encoding="utf-8")
    tab = browser.new_page()
    said: list[str] = []
    tab.on("console", lambda message: said.append(message.text))
    tab.goto(path.as_uri())
    assert tab.title() == "gru.onnx \N{MIDDLE DOT} rewrite \N{MIDDLE DOT} onnx-clip"
    blocked = [text for text in said if "Content Security Policy" in text]
    assert len(blocked) == 4  # the script, the image and what it would run, the style
    assert tab.locator(ROWS).count() == 3  # ours runs all the same


def test_without_scripts_everything_is_there(show: Show, large: str):
    tab = show(large, java_script_enabled=False)
    assert tab.locator(ROWS).count() == MANY
    assert tab.locator(f"{ROWS}.bad td:has-text('the formula says')").first.is_visible()


def test_a_verification_page(show: Show):
    _, verified = many_rows(30)
    tab = show(verification_page("a.onnx", "b.onnx", verified))
    assert tab.locator(".verdict.bad").inner_text() == "WRONG: 1 fault"
    assert tab.locator("tr.bad").count() == 1
    shot(tab, "verification")


def test_the_large_page(show: Show, large: str):
    tab = show(large)
    shot(tab, "large")
    plan = plan_clips(MODELS / "in_graph" / "adam.onnx", GradientClipByNorm(1.0))
    shot(show(rewrite_page("adam.onnx", None, plan.report)), "small")


def test_charts_of_a_long_run(show: Show):
    """The parts that a page on a run of training is made of."""
    chance = np.random.default_rng(0)
    norms = np.exp(chance.standard_normal(100_000) / 2)
    norms[70_000], norms[90_000:] = 4000.0, np.nan
    every = np.exp(chance.standard_normal((400, 500)) / 2 + np.arange(500) / 200)
    every[100:103, 450:] = np.inf
    limits = np.full(len(norms), 2.0)
    lines = LineChart([Line("global norm", norms), Line("threshold", limits, "limit")], "norms")
    names = [f"encoder.layers.{at}.weight" for at in range(400)]
    maps = [HeatMap(names, every, "all").html(), HeatMap(names[:20], every[:20], "some").html()]
    rows = [
        Row((name, Histogram.of(every[at], 0.1, 100, 3.0).html())) for at, name in enumerate(names)
    ]
    table = Table((Column("gradient", "name"), Column("norms")), rows)
    text = page("step.onnx", "run", section("Norms", lines.html()), *maps, table.html())
    tab = show(text, color_scheme="light")
    shot(tab, "charts")
    shot(show(text, color_scheme="dark"), "charts-dark")
    box = tab.locator(".cells rect, .cells path").first.bounding_box()
    assert box is not None
    assert box["width"] > 100
    assert tab.evaluate("document.documentElement.scrollWidth") <= 1280
