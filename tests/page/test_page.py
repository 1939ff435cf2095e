"""The page in a browser: what moves and sorts, at every width, and what the console says."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path

import msgspec
import pytest
from browser import CHROMIUM, Browser
from pages import BLURRED, document, picture, scene

from vaedeploy.page import Cell, Column, Document, Table, write_page
from vaedeploy.pipeline.compare import Comparison, Reconstruction, Speed
from vaedeploy.pipeline.compare.page import comparison_document
from vaedeploy.pipeline.compare.result import summarize, truest
from vaedeploy.quality import measure_quality
from vaedeploy.quality.candidates import Candidate, Picture

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium; run: make test-page"),
]

CUT = "getComputedStyle(document.querySelector('.stage')).getPropertyValue('--cut')"
SHOWN = """[...document.querySelectorAll('#pictures .layer')].map((layer) => layer.className)"""


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_page(document(), tmp_path_factory.mktemp("report"))


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with Browser() as browser:
        yield browser


@pytest.fixture
def browser(chromium: Browser, page: Path) -> Browser:
    chromium.open(page)
    return chromium


def names(browser: Browser, table: int, column: int) -> list[str]:
    rows = f"[...document.querySelectorAll('table.sortable')[{table}].tBodies[0].rows]"
    return browser.run(f"{rows}.map((row) => row.cells[{column}].textContent)")


def box(browser: Browser, selector: str) -> dict[str, float]:
    browser.run(f"document.querySelector('{selector}').scrollIntoView({{block: 'center'}})")
    return browser.run(f"document.querySelector('{selector}').getBoundingClientRect().toJSON()")


def test_the_slider_follows_the_mouse(browser: Browser) -> None:
    stage = box(browser, ".stage")
    y = stage["top"] + stage["height"] / 2
    assert browser.run(CUT) == "50%"
    browser.drag((stage["left"] + stage["width"] * 0.5, y), (stage["left"] + stage["width"] * 0.8, y))
    assert browser.run(CUT) == "80%"
    clip = browser.run("getComputedStyle(document.querySelector('.layer.left')).clipPath")
    assert clip == "inset(0px 20% 0px 0px)"


def test_the_slider_follows_the_arrow_keys(browser: Browser) -> None:
    browser.run("document.querySelector('.stage input').focus()")
    browser.press("ArrowRight")
    browser.press("ArrowRight")
    assert browser.run(CUT) == "52%"
    browser.press("ArrowLeft")
    assert browser.run(CUT) == "51%"
    browser.press("End")
    assert browser.run(CUT) == "100%"
    words = browser.run("document.querySelector('.stage input').getAttribute('aria-valuetext')")
    assert words == "100 % photograph, the rest first"


def test_either_side_shows_what_is_chosen(browser: Browser) -> None:
    assert browser.run(SHOWN) == ["layer left", "layer right", "layer"]
    choose = "(s => { s.value = '%d'; s.dispatchEvent(new Event('input')) })(document.querySelectorAll('select')[%d])"
    browser.run(choose % (1, 0))
    browser.run(choose % (2, 1))
    assert browser.run(SHOWN) == ["layer", "layer left", "layer right"]
    browser.run(choose % (2, 0))
    assert browser.run(SHOWN) == ["layer", "layer", "layer right left"]
    assert browser.run("getComputedStyle(document.querySelector('.layer.left')).clipPath") == "none"


ZOOM = "document.querySelector('%s').style.getPropertyValue('--zoom')"


def test_a_zoom_is_the_same_in_every_view_and_one_to_one_is_exact(browser: Browser) -> None:
    browser.run("document.querySelector('#pictures .stage input').focus()")
    browser.press("+")
    assert browser.run(ZOOM % "#pictures .stage") == browser.run(ZOOM % ".map") == "2"
    width = browser.run("document.querySelector('#pictures .layer img').getBoundingClientRect().width")
    stage = browser.run("document.querySelector('#pictures .stage').getBoundingClientRect().width")
    assert width == pytest.approx(2 * stage)
    assert browser.run(ZOOM % "#pictures ~ section article .stage") == "1"
    browser.press("0")
    assert browser.run(ZOOM % "#pictures .stage") == "1"


def test_one_to_one_puts_a_pixel_on_a_pixel(chromium: Browser, tmp_path: Path) -> None:
    chromium.open(write_page(document(picture("large", scene(700, 1000))), tmp_path), width=400)
    chromium.run("document.querySelector('[data-do=exact]').click()")
    assert chromium.run("document.querySelector('.layer img').getBoundingClientRect().width") == pytest.approx(1000)
    assert chromium.run("document.querySelector('.layer img').naturalWidth") == 1000
    assert chromium.run("document.querySelector('.tools output').textContent") == "100 %"


def test_a_zoomed_picture_follows_a_drag_and_stays_in_its_frame(browser: Browser) -> None:
    browser.run("document.querySelector('[data-do=in]').click()")
    stage = box(browser, ".stage")
    left = "document.querySelector('.layer img').getBoundingClientRect().left"
    before, y = browser.run(left), stage["top"] + stage["height"] / 2
    start = stage["left"] + stage["width"] * 0.8
    browser.drag((start, y), (start - 40, y))
    assert browser.run(left) == pytest.approx(before - 40, abs=1)
    assert browser.run(CUT) == "50%"
    browser.drag((stage["left"] + 5, y), (stage["left"] + stage["width"] - 5, y))
    browser.drag((stage["left"] + 5, y), (stage["left"] + stage["width"] - 5, y))
    assert browser.run(left) == pytest.approx(stage["left"], abs=1)


def test_two_fingers_zoom(browser: Browser) -> None:
    stage = box(browser, ".stage")
    x, y = stage["left"] + stage["width"] / 2, stage["top"] + stage["height"] / 2
    for kind, apart in (("touchStart", 40), ("touchMove", 80), ("touchMove", 120), ("touchEnd", None)):
        fingers = [] if apart is None else [{"x": x - apart, "y": y, "id": 0}, {"x": x + apart, "y": y, "id": 1}]
        browser.call("Input.dispatchTouchEvent", type=kind, touchPoints=fingers)
    assert float(browser.run(ZOOM % ".stage")) == pytest.approx(3, rel=0.05)


def test_a_key_shows_one_side_alone_and_the_difference(browser: Browser) -> None:
    browser.run("document.querySelector('.stage input').focus()")
    browser.press(" ")
    assert browser.run(CUT) == "100%"
    browser.press(" ")
    assert browser.run(CUT) == "0%"
    browser.press("d")
    assert browser.run("getComputedStyle(document.querySelector('.layer.left')).mixBlendMode") == "difference"
    assert browser.run("document.querySelector('[data-do=difference]').ariaPressed") == "true"


def test_flicker_shows_both_sides_in_turns_until_it_is_pressed_again(browser: Browser) -> None:
    browser.run("document.querySelector('[data-do=flicker]').click()")
    seen = (
        "new Promise((done) => { const wait = () => %s === '%s' ? done(true) : requestAnimationFrame(wait); wait() })"
    )
    assert browser.run(seen % (CUT, "100%"))
    assert browser.run(seen % (CUT, "0%"))
    browser.run("document.querySelector('[data-do=flicker]').click()")
    assert browser.run(CUT) == "50%"


@cache
def compared(vaes: tuple[str, ...], shape: tuple[int, int]) -> Document:
    """A comparison of two pictures of this height and width, in each of which a fault of every VAE is seen."""
    pictures = tuple(
        msgspec.structs.replace(shown, candidates=tuple(map(blurred, shown.candidates)))
        for shown in (picture(f"no{seed}", scene(*shape, seed), vaes) for seed in (0, 1))
    )
    rows = tuple(
        Reconstruction(candidate.name, shown.name, candidate.quality, candidate.findings)
        for shown in pictures
        for candidate in shown.candidates
    )
    summaries = tuple(summarize(vae, [row for row in rows if row.bundle == vae]) for vae in vaes)
    speeds = tuple(Speed(vae, "a backend", part, 512, 512, 100.0) for vae in vaes for part in ("encode", "decode"))
    comparison = Comparison(vaes, summaries, *truest(summaries), speeds, (), rows)
    return comparison_document(comparison, pictures, ())


def blurred(candidate: Candidate) -> Candidate:
    return msgspec.structs.replace(candidate, findings=(BLURRED,))


VAES = ("demo", "demo-mse", "demo-fp16", "a-rather-long-name-of-a-vae-fp16", "taesd")

BOTTOM = "document.querySelector('%s').getBoundingClientRect().bottom"


@pytest.mark.parametrize("shape", [(256, 384), (384, 256)], ids=["landscape", "portrait"])
@pytest.mark.parametrize("vaes", [VAES[:2], VAES[:3]], ids=len)
@pytest.mark.parametrize(("width", "height"), [(390, 1688), (1280, 1000)])
def test_the_first_picture_and_the_answer_are_whole_on_the_first_screens(
    chromium: Browser, tmp_path: Path, shape: tuple[int, int], vaes: tuple[str, ...], width: int, height: int
) -> None:
    """A thousand pixels down on a desktop, and two screens down on a phone: the picture and the table of the VAEs."""
    chromium.open(write_page(compared(vaes, shape), tmp_path), width=width, height=844)
    assert chromium.run(BOTTOM % ".stage") <= 844
    assert chromium.run(BOTTOM % ".opening .told tbody") <= height
    closer = chromium.run("document.querySelector('.closer').getBoundingClientRect().top")
    assert closer > chromium.run(BOTTOM % ".opening .told tbody")


def test_up_to_four_vaes_have_a_column_each_and_more_have_rows_to_sort(chromium: Browser, tmp_path: Path) -> None:
    heads = (
        "[...document.querySelectorAll('.told table')[0].tHead.rows[0].cells].map((head) => head.textContent.trim())"
    )
    cells = "[...document.querySelectorAll('.told table')[0].tBodies[0].rows].map((row) => row.cells[%d].textContent)"
    chromium.open(write_page(compared(VAES[:4], (96, 144)), tmp_path))
    assert chromium.run(heads) == ["", *VAES[:4]]
    assert chromium.run("document.querySelectorAll('.told table')[0].className") == "upright"
    measures = chromium.run(cells % 0)
    assert measures[0] == "PSNR dB"
    assert dict(zip(measures, chromium.run(cells % 2), strict=True))["What is seen"] == "blurred (2 of 2)"
    chromium.open(write_page(compared(VAES, (96, 144)), tmp_path))
    assert chromium.run(heads)[0].startswith("VAE")
    assert chromium.run(cells % 0) == list(VAES)
    assert chromium.run("document.querySelectorAll('.told table')[0].className") == "sortable"


@pytest.mark.parametrize("width", [390, 768, 1280])
@pytest.mark.parametrize("vaes", [VAES[:2], VAES[:4], VAES], ids=len)
def test_no_table_scrolls_sideways(chromium: Browser, tmp_path: Path, vaes: tuple[str, ...], width: int) -> None:
    chromium.open(write_page(compared(vaes, (96, 144)), tmp_path), width=width)
    chromium.run("document.querySelectorAll('details').forEach((d) => { d.open = true })")
    assert chromium.run(SCROLLED) == []


SCROLLED = """[...document.querySelectorAll('.scroll')]
    .filter((e) => e.scrollWidth > e.clientWidth).map((e) => [e.scrollWidth, e.clientWidth])"""


@pytest.mark.parametrize("width", [390, 1280])
def test_the_numbers_of_pictures_that_do_not_differ_stand_open(chromium: Browser, tmp_path: Path, width: int) -> None:
    quality = measure_quality(scene(), scene())
    same = Picture("same", scene(), tuple(Candidate(name, scene(), quality, ()) for name in ("first", "second")))
    shown = msgspec.structs.replace(document(same, picture("other", scene(seed=1))), further=())
    chromium.open(write_page(shown, tmp_path), width=width)
    opened = "[...document.querySelectorAll('article details:not(.how)')].map((details) => details.open)"
    assert chromium.run(opened) == [True, False]
    edges = "(({left, top}) => [left, top])(document.querySelectorAll('article .upright')[0].getBoundingClientRect())"
    stage = chromium.run("document.querySelector('.stage').getBoundingClientRect().toJSON()")
    left, top = chromium.run(edges)
    assert (left > stage["right"], top > stage["bottom"]) == ((True, False) if width == 1280 else (False, True))


def test_a_page_opens_on_the_layers_that_it_names(chromium: Browser, tmp_path: Path) -> None:
    chromium.open(write_page(msgspec.structs.replace(document(), opens=("first", "second")), tmp_path))
    assert chromium.run(SHOWN) == ["layer", "layer left", "layer right"]
    assert chromium.run("[...document.querySelectorAll('#pictures select')].map((s) => s.value)") == ["1", "2"]


def test_sorting_sorts_numbers_by_value_and_words_by_letter(browser: Browser) -> None:
    assert names(browser, 0, 0) == ["10 ms", "9 ms"]
    press = "document.querySelectorAll('table.sortable')[0].tHead.querySelectorAll('button')[%d].click()"
    state = "[...document.querySelectorAll('table.sortable')[0].tHead.rows[0].cells].map((h) => h.ariaSort)"
    browser.run(press % 0)
    assert names(browser, 0, 0) == ["9 ms", "10 ms"]
    assert browser.run(state) == ["ascending", None]
    browser.run(press % 0)
    assert names(browser, 0, 0) == ["10 ms", "9 ms"]
    assert browser.run(state) == ["descending", None]
    browser.run(press % 1)
    assert names(browser, 0, 1) == ["alpha", "beta"]
    assert browser.run(state) == [None, "ascending"]


def test_what_is_infinite_is_sorted_as_that(chromium: Browser, tmp_path: Path) -> None:
    figures = tuple((Cell(text, float(text)),) for text in ("2", "inf", "-inf", "30"))
    table = Table("PSNR", "Higher is closer.", (Column("PSNR", "dB"),), figures)
    chromium.open(write_page(msgspec.structs.replace(document(), answer=(), tables=(table,)), tmp_path))
    chromium.run("document.querySelector('table.sortable button').click()")
    assert names(chromium, 0, 0) == ["-inf", "2", "30", "inf"]


def test_sorting_works_by_keyboard(browser: Browser) -> None:
    browser.run("document.querySelector('table.sortable button').focus()")
    browser.press("Enter")
    assert names(browser, 0, 0) == ["9 ms", "10 ms"]


def test_every_control_is_reached_by_tab(browser: Browser) -> None:
    reached = set()
    for _ in range(60):
        browser.press("Tab")
        reached.add(browser.run("document.activeElement.tagName"))
    assert {"A", "BUTTON", "SELECT", "INPUT", "SUMMARY", "DIV"} <= reached


@pytest.mark.parametrize("width", [360, 768, 1280])
def test_nothing_overflows(chromium: Browser, page: Path, width: int) -> None:
    chromium.open(page, width=width)
    chromium.run("document.querySelectorAll('details').forEach((d) => { d.open = true })")
    assert chromium.run("document.documentElement.scrollWidth") == width
    wide = """[...document.querySelectorAll('body *')]
        .filter((e) => !e.closest('.scroll table, .skip') && e.getBoundingClientRect().right > innerWidth + 0.5)
        .map((e) => e.outerHTML.slice(0, 80))"""
    assert chromium.run(wide) == []


@pytest.mark.parametrize("width", [400, 768, 1200])
def test_tables_show_every_column_whatever_the_names_are(chromium: Browser, tmp_path: Path, width: int) -> None:
    names = ("onnxruntime, emulated fp16 graph", "a-rather-long-name-of-a-vae-fp16")
    chromium.open(write_page(document(picture("large", scene(), names)), tmp_path), width=width)
    hidden = """[...document.querySelectorAll('.sortable td')]
        .filter((e) => e.getBoundingClientRect().right > innerWidth).map((e) => e.textContent)"""
    assert chromium.run(hidden) == []
    assert chromium.run(SCROLLED) == []
    gap = """Math.max(...[...document.querySelectorAll('.sortable')].map((table) => {
        const top = (e) => e.getBoundingClientRect().top;
        return Math.min(...[...table.querySelectorAll('th button')].map(top)) - top(table);
    }))"""
    assert chromium.run(gap) < 20


def test_dark_and_light_differ_and_both_can_be_read(chromium: Browser, page: Path) -> None:
    found = []
    for dark in (False, True):
        chromium.open(page, dark=dark)
        selectors = ("body", ".closer figcaption", ".finding", "header .mark", "td")
        found += [(dark, selector, chromium.run(CONTRAST % selector)) for selector in selectors]
    assert [row for row in found if row[2] < 4.5] == []  # WCAG 2.2, 1.4.3
    chromium.open(page)
    light = chromium.run("getComputedStyle(document.body).backgroundColor")
    chromium.open(page, dark=True)
    assert light != chromium.run("getComputedStyle(document.body).backgroundColor")


CONTRAST = """(() => {
  const luminance = (color) => {
    const [r, g, b] = color.match(/[0-9.]+/g).slice(0, 3).map((v) => v / 255)
      .map((v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ink = luminance(getComputedStyle(document.querySelector('%s')).color);
  const paper = luminance(getComputedStyle(document.body).backgroundColor);
  return (Math.max(ink, paper) + 0.05) / (Math.min(ink, paper) + 0.05);
})()"""


def test_on_paper_every_picture_is_there_and_no_control_is(browser: Browser) -> None:
    browser.call("Emulation.setEmulatedMedia", media="print")
    try:
        hidden = "[...document.querySelectorAll('.layer')].filter((l) => getComputedStyle(l).visibility !== 'visible')"
        assert browser.run(f"{hidden}.length") == 0
        controls = "[...document.querySelectorAll('select, input')].filter((c) => c.offsetParent !== null).length"
        assert browser.run(controls) == 0
    finally:
        browser.call("Emulation.setEmulatedMedia", media="")


def test_the_console_is_silent_and_nothing_is_asked_for(chromium: Browser, page: Path) -> None:
    chromium.open(page)
    chromium.run("document.querySelectorAll('button').forEach((button) => button.click())")
    assert chromium.messages == []
    assert chromium.requests == [page.resolve().as_uri()]


def test_what_the_console_says_would_be_noticed(chromium: Browser, tmp_path: Path) -> None:
    (tmp_path / "loud.html").write_text("<script>console.warn('loud'); missing()</script>")
    chromium.open(tmp_path / "loud.html")
    assert len(chromium.messages) == 2
