"""The page in headless Chromium: errors, network, claims, plots, filters, color schemes, a phone, accessibility."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from counterflow.lab.report import write_report

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext, Page

pytestmark = pytest.mark.browser

AXE = Path(__file__).parents[3] / ".venv" / "axe" / "node_modules" / "axe-core" / "axe.min.js"

FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


def _need(condition: object, what: str) -> None:
    if not condition:
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(what)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    found = map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))
    executable = next((path for path in found if path), None)
    _need(executable, "no Chromium here: make programs installs it")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        _need(False, "no playwright here: pip install 'counterflow[dev]'")
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=executable, args=FLAGS)
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def report(sections, tmp_path_factory) -> Path:
    return write_report(sections, tmp_path_factory.mktemp("browser") / "report.html", profile="laptop")


def _open(context: BrowserContext, report: Path) -> tuple[Page, list[str]]:
    """Open the page and note whatever it complains of or asks for."""
    page = context.new_page()
    complaints: list[str] = []
    page.on("console", lambda message: complaints.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: complaints.append(f"page error: {error}"))
    page.on("request", lambda request: request.url.startswith("file:") or complaints.append(request.url[:100]))
    page.goto(report.as_uri())
    page.wait_for_selector("html[data-drawn]", state="attached")
    return page, complaints


@pytest.fixture(scope="module")
def opened(browser: Browser, report: Path) -> Iterator[tuple[Page, list[str]]]:
    context = browser.new_context(viewport={"width": 1280, "height": 900}, color_scheme="light")
    yield _open(context, report)
    context.close()


@pytest.fixture
def page(opened: tuple[Page, list[str]]) -> Iterator[Page]:
    """The page as it is after loading, which takes seconds: it is opened once."""
    page, complaints = opened
    page.emulate_media(color_scheme="light")
    page.wait_for_selector("html[data-drawn=light]", state="attached")
    page.evaluate("document.getElementById('filters').reset()")
    page.wait_for_selector("#all", state="hidden")
    yield page
    assert complaints == []


def _until(page: Page, condition: str) -> None:
    """Wait until it is true. Playwright's own waiting compiles code in the page, which the page forbids."""
    deadline = time.monotonic() + 20
    while not page.evaluate(condition):
        assert time.monotonic() < deadline, condition
        page.wait_for_timeout(50)


def _visible(page: Page, tag: str) -> list[str]:
    return page.eval_on_selector_all(
        f"{tag}[data-claim]",
        "rows => rows.filter(row => row.checkVisibility()).map(row => row.dataset.claim)",
    )


def test_every_claim_is_shown_and_every_plot_is_drawn(page, sections):
    every = [claim.id for section in sections for claim in section.claims]
    assert _visible(page, "li") == every
    assert _visible(page, "tr") == every
    plots = page.eval_on_selector_all(
        ".plot",
        """plots => plots.map(plot =>
            [...plot.querySelectorAll('.main-svg .trace path')].map(path => path.getAttribute('d')))""",
    )
    assert len(plots) == 2
    assert all(len(paths) >= 2 and all(len(path) > 5 for path in paths) for paths in plots)
    # The last points of a curve are gaps, not zeros.
    assert page.evaluate("document.querySelector('.plot').data[0].y.at(-1)") is None


def test_plots_keep_their_height_and_follow_the_width(page):
    sizes = """plots => plots.map(plot => {
        const drawn = plot.querySelector('.main-svg').getBoundingClientRect();
        return [plot.clientWidth - drawn.width, plot.clientHeight - drawn.height, drawn.height]; })"""
    assert page.eval_on_selector_all(".plot", sizes) == [[0, 0, 420], [0, 0, 520]]
    width = page.eval_on_selector(".plot", "plot => plot.clientWidth")
    page.set_viewport_size({"width": 1000, "height": 700})
    page.wait_for_selector(f".plot .main-svg:not([width='{width}'])", state="attached")
    page.wait_for_timeout(300)  # plotly redraws a moment after the window has changed, one plot after the other
    assert page.eval_on_selector_all(".plot", sizes) == [[0, 0, 420], [0, 0, 520]]
    page.set_viewport_size({"width": 1280, "height": 900})


@pytest.mark.parametrize("width", [1000, 1100, 1280])
def test_the_last_column_needs_no_scrolling(page, width):
    page.set_viewport_size({"width": width, "height": 900})
    wider = "wides => wides.map(wide => wide.scrollWidth - wide.clientWidth)"
    assert set(page.eval_on_selector_all(".wide:has(.claims)", wider)) == {0}
    page.set_viewport_size({"width": 1280, "height": 900})


def test_hostile_text_is_shown_and_not_run(page):
    assert page.evaluate("window.hostile") is None
    assert page.evaluate("document.querySelector('#claim-tempering-t2\\\\.dbd\\\\.shunted th').innerText").count(
        "</script><script>"
    )


def test_filters_hide_and_show(page, sections):
    every = [claim for section in sections for claim in section.claims]
    page.uncheck("input[value='reproduced']")
    left = [claim.id for claim in every if claim.verdict != "reproduced"]
    assert _visible(page, "li") == _visible(page, "tr") == left
    assert page.inner_text("#shown") == f"{len(left)} of {len(every)} claims are shown."
    page.uncheck("input[value='other data']")
    left = [c.id for c in every if c.verdict != "reproduced" and c.setting != "other data"]
    assert _visible(page, "li") == left
    page.uncheck("input[value='same']")
    assert page.eval_on_selector_all(".none", "ps => ps.map(p => p.checkVisibility())") == [
        False,
        True,
        False,
        True,
    ]
    page.click("#all")
    page.wait_for_selector("#all", state="hidden")
    assert _visible(page, "li") == [claim.id for claim in every]


# Plots follow the page's width a moment after it changes.
FITTING = (
    "[...document.querySelectorAll('.plot')].every(p => p.clientWidth == p.querySelector('.main-svg').clientWidth)"
)


def test_one_paper_can_be_chosen(page, sections):
    tempering, other = sections
    page.select_option("#paper", other.key)
    assert _visible(page, "li") == _visible(page, "tr") == [claim.id for claim in other.claims]
    blocks = "blocks => blocks.map(block => block.checkVisibility())"
    assert page.eval_on_selector_all(".overview > article, .paper", blocks) == [False, True, False, True]
    # The filters work together, and what was hidden comes back with its plots as wide as before.
    page.uncheck("input[value='inconclusive']")
    assert _visible(page, "li") == [claim.id for claim in other.claims if claim.verdict != "inconclusive"]
    page.focus("#paper")
    page.keyboard.press("ArrowUp")
    assert _visible(page, "li") == [claim.id for claim in tempering.claims if claim.verdict != "inconclusive"]
    _until(page, FITTING)


def test_a_plot_drawn_while_hidden_gets_its_width_when_it_is_shown(page, sections):
    page.select_option("#paper", sections[1].key)
    page.emulate_media(color_scheme="dark")
    page.wait_for_selector("html[data-drawn=dark]", state="attached")
    page.click("#all")
    page.wait_for_selector("#all", state="hidden")
    _until(page, FITTING)


def test_no_button_of_a_plot_sends_anything_anywhere(page):
    buttons = page.eval_on_selector_all(".plot .modebar-btn", "buttons => buttons.map(button => button.ariaLabel)")
    assert "Download plot as a PNG" in buttons
    assert not [name for name in buttons if "hare" in name or "loud" in name]
    # The buttons are seen when the keyboard reaches them.
    page.focus(".plot .modebar-btn")
    _until(page, "getComputedStyle(document.activeElement.closest('.modebar')).opacity == 1")


def test_the_axis_stays_in_sight(page):
    tops = page.evaluate(
        """() => { const lines = document.querySelectorAll('.lines .line');
                   lines[8].scrollIntoView();
                   const boxes = [lines[0], lines[8]].map(line => line.getBoundingClientRect());
                   return boxes.map(box => [box.top, box.bottom]); }"""
    )
    assert tops[0][0] == 0
    assert tops[1][0] >= tops[0][1]  # and hides nothing that is jumped to


def test_filters_and_wide_tables_are_reached_by_keyboard(page):
    page.focus("input[value='reproduced']")
    page.keyboard.press("Space")
    assert "t2.mom.tempered" not in _visible(page, "li")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.value") == "direction only"
    page.focus(".wide")
    assert page.evaluate("document.activeElement.className") == "wide"


def test_plots_follow_the_color_scheme(page):
    def colors() -> list[str]:
        return page.evaluate(
            """[getComputedStyle(document.body).backgroundColor,
                document.querySelector('.plot .main-svg').style.background,
                document.querySelectorAll('.plot')[1].data[0].marker.color]"""
        )

    light = colors()
    assert light[0] == light[1]
    page.emulate_media(color_scheme="dark")
    page.wait_for_selector("html[data-drawn=dark]", state="attached")
    dark = colors()
    assert dark[0] == dark[1]
    assert all(one != other for one, other in zip(light, dark, strict=True))


def test_words_have_contrast_in_both_schemes(page):
    """WCAG AA: 4.5 to 1 for text."""
    script = """() => {
      const channels = (color) => color.match(/[0-9.]+/g).slice(0, 3).map((c) => {
        c = c / 255; return c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4; });
      const light = (color) => { const [r, g, b] = channels(color); return 0.2126*r + 0.7152*g + 0.0722*b; };
      const below = (element) => {
        for (; element; element = element.parentElement) {
          const color = getComputedStyle(element).backgroundColor;
          if (!color.endsWith(", 0)")) return color; }
        return "rgb(255, 255, 255)"; };
      const seen = [];
      const text = ".badge, .chip span, .muted, .note, .under, thead th, a, p";
      for (const element of document.querySelectorAll(text)) {
        if (!element.checkVisibility() || element.closest(".plot")) continue;
        const [a, b] = [light(getComputedStyle(element).color), light(below(element))].sort((x, y) => y - x);
        if ((a + 0.05) / (b + 0.05) < 4.5) seen.push(element.className + ": " + element.textContent); }
      return seen; }"""
    assert page.evaluate(script) == []
    page.emulate_media(color_scheme="dark")
    assert page.evaluate(script) == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_scrolls_down_only(browser, report, scheme):
    context = browser.new_context(
        viewport={"width": 390, "height": 844}, color_scheme=scheme, has_touch=True, is_mobile=True
    )
    page, complaints = _open(context, report)
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    page.click("summary")
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    # Wide tables scroll within themselves; the claims are cards, and have no need to.
    assert page.evaluate("(w => w.scrollWidth > w.clientWidth)(document.querySelector('.table .wide'))")
    assert page.evaluate("(w => w.scrollWidth == w.clientWidth)(document.querySelector('.wide:has(.claims)'))")
    widths = page.eval_on_selector_all(".plot .main-svg", "drawn => drawn.map(d => d.getBoundingClientRect().width)")
    assert max(widths) <= 390
    assert complaints == []
    context.close()


@pytest.fixture(scope="module")
def audited(browser: Browser, report: Path) -> Iterator[Page]:
    """A page that axe-core was put into, past the page's own policy, which forbids it."""
    _need(AXE.is_file(), "no axe-core here: scripts/install-axe.sh installs it")
    context = browser.new_context(bypass_csp=True)
    page, _ = _open(context, report)
    page.add_script_tag(path=AXE)
    page.eval_on_selector_all("details", "all => all.forEach(details => { details.open = true; })")
    yield page
    context.close()


def _audit(page: Page) -> list[str]:
    """What axe-core finds that is serious or critical."""
    found = page.evaluate("axe.run(document, { resultTypes: ['violations'] })")
    assert len(found["passes"]) > 30  # it has looked
    return [
        f"{rule['impact']} {rule['id']}: {rule['help']}: {rule['nodes'][0]['html'][:200]}"
        for rule in found["violations"]
        if rule["impact"] in ("serious", "critical")
    ]


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious(audited, scheme, width):
    audited.set_viewport_size({"width": width, "height": 844})
    audited.emulate_media(color_scheme=scheme)
    audited.wait_for_selector(f"html[data-drawn={scheme}]", state="attached")
    assert _audit(audited) == []


def test_axe_would_find_what_is_wrong(audited):
    audited.evaluate("document.querySelector('#paper').previousElementSibling.remove()")
    assert any("select-name" in finding for finding in _audit(audited))
