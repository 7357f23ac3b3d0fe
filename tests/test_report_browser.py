"""The report as a reader meets it: opened in a browser, wide and narrow, light and dark, with and without JavaScript."""

import shutil
from collections.abc import Callable, Iterator

import pytest
from encodeonce.evaluate.report.page import write_report
from report_case import SECONDS, evaluate, extras, hypotheses

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
Open = Callable[..., "sync_api.Page"]


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("report")
    return write_report(folder, evaluate(hypotheses()), extras(folder / "extras")).as_uri()


@pytest.fixture(scope="module")
def browser() -> "Iterator[sync_api.Browser]":
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if program is None:
        pytest.skip("no Chromium on the path: apt-get install chromium")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser: "sync_api.Browser", report: str) -> Iterator[Open]:
    """Opens the report; at the end of the test nothing may have been complained of, and no text may have run as a script."""
    problems: list[str] = []
    contexts = []

    def opened(width: int = 1400, **options: object) -> "sync_api.Page":
        context = browser.new_context(viewport={"width": width, "height": 900}, **options)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: problems.append(message.text))
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("dialog", lambda dialog: problems.append(dialog.message))
        page.on("request", lambda request: problems.append(request.url) if request.url.startswith("http") else None)
        page.goto(report)
        return page

    yield opened
    for context in contexts:
        for page in context.pages:
            assert page.evaluate("window.hacked") is None
        context.close()
    assert problems == []


def column(page: "sync_api.Page", table: str, number: int) -> list[str]:
    """The visible cells of a column."""
    rows = page.locator(f"{table} tbody tr:visible")
    return rows.locator(f"td:nth-child({number})").all_inner_texts()


def position(page: "sync_api.Page", table: str, heading: str) -> int:
    """The number of a column, from 1."""
    return page.locator(f"{table} thead th").all_text_contents().index(heading) + 1


def test_tables_sort_numbers_as_numbers_and_texts_as_texts(open_page: Open) -> None:
    page, table = open_page(), "#utterances table"
    for heading, number in (("Seconds", float), ("Errors", lambda text: int(text.replace(",", "")))):
        at = position(page, table, heading)
        header = page.locator(f"{table} thead th").nth(at - 1)
        header.get_by_role("button").click()
        assert header.get_attribute("aria-sort") == "descending"
        values = [number(text) for text in column(page, table, at)]
        assert len(values) == 71
        assert values == sorted(values, reverse=True)
        header.get_by_role("button").click()
        assert header.get_attribute("aria-sort") == "ascending"
        assert [number(text) for text in column(page, table, at)] == sorted(values)
    page.locator(f"{table} thead th").first.get_by_role("button").click()
    names = [name for name in column(page, table, 1) if name.startswith("u-")]
    assert len(names) == 60
    assert names == sorted(names)


def test_filter_shows_the_rows_with_all_words(open_page: Open) -> None:
    page, table = open_page(), "#utterances table"
    search = page.locator("#utterances").get_by_role("searchbox")
    search.fill("S1 BANO")
    rows = page.locator(f"{table} tbody tr:visible").all_inner_texts()
    everything = page.locator(f"{table} tbody tr").evaluate_all(
        "rows => rows.map(row => row.textContent.toLowerCase())"
    )
    assert 0 < len(rows) == sum("s1" in text and "bano" in text for text in everything) < 71
    assert f"{len(rows)} of 71 rows" in page.locator("#utterances").inner_text()
    search.fill("")
    assert page.locator(f"{table} tbody tr:visible").count() == 71


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_picture_and_sound_loads_and_text_has_contrast(open_page: Open, scheme: str) -> None:
    page = open_page(color_scheme=scheme)
    images = page.locator("img").evaluate_all("all => all.map(one => [one.complete, one.naturalWidth])")
    assert len(images) == 1
    assert all(complete and width > 0 for complete, width in images)
    drawings = page.locator("figure.chart svg").evaluate_all(
        "all => all.map(one => one.getBoundingClientRect().height)"
    )
    assert len(drawings) == 5
    assert min(drawings) > 50
    sounds = """all => Promise.all(all.map(one => new Promise(done => {
        one.onloadedmetadata = one.onerror = () => done(one.duration);
        one.load();
    })))"""
    assert page.locator("audio").evaluate_all(sounds) == [pytest.approx(SECONDS, abs=0.2)]
    paper, ink, quiet, accent = (lightness(page, name) for name in ("--paper", "--ink", "--quiet", "--accent"))
    assert (paper > 0.8) == (scheme == "light")
    for colour in (ink, quiet, accent):
        assert (max(colour, paper) + 0.05) / (min(colour, paper) + 0.05) > 4.5


def lightness(page: "sync_api.Page", name: str) -> float:
    """Relative luminance of a colour of the page (WCAG 2)."""
    shown = """name => {
        const box = document.body.appendChild(document.createElement("i"));
        box.style.color = `var(${name})`;
        const colour = getComputedStyle(box).color.match(/\\d+/g).map(Number);
        box.remove();
        return colour;
    }"""
    red, green, blue = (
        value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4
        for value in (part / 255 for part in page.evaluate(shown, name)[:3])
    )
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize("width", [400, 1400])
def test_page_never_scrolls_sideways(open_page: Open, width: int) -> None:
    page = open_page(width)
    page.locator("details").evaluate_all("all => all.forEach(one => one.open = true)")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate("document.body.scrollWidth") <= width
    page.evaluate("window.scrollTo(500, 0)")
    assert page.evaluate("window.scrollX") == 0


def test_switch_between_light_and_dark(open_page: Open) -> None:
    page = open_page(color_scheme="dark")
    dark = lightness(page, "--paper")
    page.get_by_role("button", name="Switch between light and dark").click()
    assert lightness(page, "--paper") > 0.8 > 0.2 > dark


def test_everything_can_be_read_without_javascript(open_page: Open) -> None:
    page = open_page(java_script_enabled=False)
    assert page.locator("#utterances tbody tr").first.is_visible()
    assert page.locator("section").count() == 12
    assert page.locator("button:visible, input:visible").count() == 0
    page.locator("summary").first.click()
    assert page.locator("details[open] table").first.is_visible()


def test_what_is_printed_is_light_and_whole(open_page: Open) -> None:
    page = open_page(794, color_scheme="dark")  # A4
    page.emulate_media(media="print")
    assert lightness(page, "--paper") > 0.8
    assert not page.locator("nav").is_visible()
    widths = page.locator("#scores table").evaluate_all("all => all.map(one => one.getBoundingClientRect().right)")
    assert max(widths) <= 794
    assert page.locator("#utterances tbody tr:visible").count() == 50
    assert page.locator("#utterances .scroll").evaluate("box => box.scrollHeight <= box.clientHeight + 1")
    heights = page.locator("details table").evaluate_all("all => all.map(one => one.getBoundingClientRect().height)")
    assert page.locator("details[open]").count() == 0
    assert len(heights) >= 3
    assert min(heights) > 30


def test_long_tables_are_laid_out_when_they_are_scrolled_to(open_page: Open) -> None:
    page = open_page()
    shown = "row => row.checkVisibility({contentVisibilityAuto: true})"
    row = page.locator("#utterances tbody tr").first
    assert not row.evaluate(shown)
    height = page.evaluate("document.documentElement.scrollHeight")
    page.locator("#utterances").scroll_into_view_if_needed()
    page.wait_for_function(shown, arg=row.element_handle())
    assert page.evaluate("document.documentElement.scrollHeight") == pytest.approx(height, abs=2)
