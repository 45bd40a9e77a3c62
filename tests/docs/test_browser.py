"""The site as a reader sees it: every page in a headless Chromium without network, in both palettes, wide and on a phone."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from docs.browser import FOUND, PHONE, WIDE, Browser

pytestmark = pytest.mark.skipif(FOUND is None, reason="no chromium or google-chrome on this machine")

TOO_WIDE = "document.documentElement.scrollWidth - innerWidth"
PALETTE = "document.body.getAttribute('data-md-color-scheme')"
FONTS = "[...document.fonts].filter(f => f.status === 'loaded').map(f => f.family)"
SEARCH = """new Promise((done, fail) => {
  const field = document.querySelector("[data-md-component=search-query]");
  field.focus();
  field.value = WORD;
  field.dispatchEvent(new Event("keyup", {bubbles: true}));
  const look = left => {
    const found = [...document.querySelectorAll(".md-search-result__link")].map(a => a.getAttribute("href"));
    if (found.length) done(found);
    else if (left) setTimeout(look, 50, left - 1);
    else fail(new Error("nothing was found"));
  };
  look(200);
})"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with Browser() as one:
        yield one


def test_every_page_renders_and_asks_for_nothing_but_files(site: Path, browser: Browser) -> None:
    pages = sorted(p for p in site.rglob("*.html") if p.name != "404.html")  # its paths start at the root of a server
    assert len(pages) > 50
    asked = 0
    for page in pages:
        name = page.relative_to(site).as_posix()
        browser.open(page.as_uri())
        asked += len(browser.requests)
        assert browser.requests[0] == page.as_uri()
        assert not browser.strangers, f"{name}: {browser.strangers}"
        assert not browser.complaints, f"{name}: {browser.complaints}"
        assert browser.run("document.querySelector('h1').innerText.trim().length") > 2, name
        assert browser.run("document.querySelector('article').innerText.length") > 200, name
        assert browser.run("[...document.images].every(i => i.complete && i.naturalWidth > 0)"), (
            f"{name}: a picture fails"
        )
        assert browser.run(TOO_WIDE) <= 0, f"{name}: wider than the window"
        browser.look(PHONE)
        assert browser.run(TOO_WIDE) <= 0, f"{name}: wider than a phone"
    assert asked > 5 * len(pages)  # styles and scripts were seen to be asked for


@pytest.mark.parametrize("page", ["index", "concepts/capping", "tutorials/03_persona_space", "reference/steering"])
def test_a_page_follows_the_palette_of_the_system(site: Path, browser: Browser, page: str) -> None:
    grey = "getComputedStyle(document.body).backgroundColor.match(/\\d+/g).slice(0, 3).reduce((a, b) => a + +b, 0) / 3"
    seen = {}
    for dark in (True, False):
        browser.open((site / f"{page}.html").as_uri(), WIDE, dark=dark)
        assert browser.run(PALETTE) == ("slate" if dark else "default")
        seen[dark] = browser.run(grey)
        assert not browser.complaints
        assert not browser.strangers
    assert seen[True] < 80 < 200 < seen[False]


@pytest.mark.parametrize("page", ["persona-space", "axis", "capping", "units"])
def test_formulas_are_set(site: Path, browser: Browser, page: str) -> None:
    marked = (site / "concepts" / f"{page}.html").read_text(encoding="utf-8").count('class="arithmatex"')
    browser.open((site / "concepts" / f"{page}.html").as_uri())
    assert marked > 0
    assert browser.run("document.querySelectorAll('.arithmatex .katex').length") >= marked
    assert browser.run("document.querySelectorAll('.katex-error').length") == 0
    assert any("KaTeX" in family for family in browser.run(FONTS))


@pytest.mark.parametrize("word", ["capping", "lighthouse_keeper", "PersonaSpace"])
def test_search_finds_from_a_file(site: Path, browser: Browser, word: str) -> None:
    browser.open((site / "concepts" / "spans.html").as_uri())
    found = browser.run(SEARCH.replace("WORD", repr(word)))
    assert any(".html" in link for link in found)
    assert not browser.complaints
    assert not browser.strangers


def test_a_request_and_an_error_would_be_noticed(browser: Browser, tmp_path: Path) -> None:
    page = tmp_path / "bad.html"
    page.write_text("<h1>x</h1><img src='http://example.invalid/x.png'><script>console.error('oh'); nothing()</script>")
    browser.open(page.as_uri(), settle=0.5)
    assert browser.strangers == ["http://example.invalid/x.png"]
    said = "\n".join(browser.complaints)
    assert "ERR_NAME_NOT_RESOLVED" in said
    assert "oh" in said
    assert "nothing is not defined" in said
