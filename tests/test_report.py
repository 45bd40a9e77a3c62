"""The report is one page that opens offline, holds its pictures, and shows what it was told as text."""

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from docs.browser import FOUND, PHONE, Browser
from plots.conftest import make_vectors

from assistant_axis.drift.trajectory import Trajectory, TurnReading
from assistant_axis.errors import LayerError
from assistant_axis.geometry.vectors import PersonaVectors
from assistant_axis.plots import scree
from assistant_axis.plots.style import figure_bytes
from assistant_axis.report import Answers, Note, Picture, Section, Table, persona_report, write_report

EVIL = '<script>alert("x")</script>'


class Page(HTMLParser):
    """Tags with their attributes; fails on markup that does not close."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(html)
        assert not self.open, self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "br", "link"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def count(self, tag: str) -> int:
        return sum(t == tag for t, _ in self.found)


@pytest.fixture(scope="module")
def vectors() -> PersonaVectors:
    return make_vectors()


def trace() -> Trajectory:
    def turn(index: int, role: str, value: float) -> TurnReading:
        one = torch.tensor([value])
        return TurnReading(index, role, f"{EVIL} {index}", ("a",), one[None], one, one * 0 + 0.1, one * 0 + 50)

    turns = tuple(turn(k, "assistant" if k % 2 else "user", 5.0 - k) for k in range(6))
    return Trajectory(
        turns,
        (2,),
        torch.tensor([1.0]),
        torch.tensor([[-1.0], [2.0], [4.0]]),
        "tiny",
        "post",
        "header",
        ("Look <out>.",),
    )


def check_offline(html: str) -> Page:
    page = Page(html)
    for tag, attributes in page.found:
        assert tag not in ("script", "link", "iframe", "object"), tag
        for name, value in attributes.items():
            assert not name.startswith("on"), (tag, name)
            if name in ("src", "href", "xlink:href", "srcset", "data"):
                assert (value or "").startswith(("#", "data:")), (tag, name, value)
    assert "@import" not in html
    assert not re.search(r"url\(\s*['\"]?https?:", html)
    ids = [a["id"] for _, a in page.found if "id" in a]
    assert len(ids) == len(set(ids))
    used = set(re.findall(r'(?:url\(|href=")#([^)"]+)', html))
    assert used <= set(ids)
    return page


def test_standard_report(vectors: PersonaVectors, tmp_path: Path) -> None:
    published = {r: float(-k) for k, r in enumerate(vectors.roles)}
    answers = [Answers("Who", EVIL, (("unsteered", EVIL), ("random direction", "a\udcffb\n\nc")))]
    path = persona_report(
        tmp_path / "r.html", vectors, layer=2, published=published, answers=answers, trace=trace(), floor=0.5
    )
    html = path.read_text(encoding="utf-8")
    page = check_offline(html)
    assert page.count("svg") == 6
    assert EVIL not in html
    assert "&lt;script&gt;alert(&#34;x&#34;)&lt;/script&gt;" in html
    assert "tiny&lt;model&gt;" in html
    assert "All 40 roles" in html
    for field in ("fingerprint", "hook point", "template hash", "assistant-positive"):
        assert field in html
    assert html.count("figcaption>") == 2 * 6
    assert "half 1" in html
    assert "half 2" in html
    assert "Look &lt;out&gt;." in html
    assert [p.name for p in tmp_path.iterdir()] == ["r.html"]


def test_report_without_extras(vectors: PersonaVectors, tmp_path: Path) -> None:
    html = persona_report(tmp_path / "r.html", vectors).read_text(encoding="utf-8")
    check_offline(html)
    assert "published" not in html.lower()
    assert "drift of a conversation" not in html


def test_comparison_brings_its_halves(tmp_path: Path) -> None:
    from assistant_axis.geometry.published import compare_published, published

    ranking = published("qwen3-32b")
    made = make_vectors(first="role_0")
    named = PersonaVectors(**{**vars(made), "roles": ranking.roles[:40]})
    for given in (compare_published(named, resamples=50), ranking):
        html = persona_report(tmp_path / "r.html", named, published=given).read_text(encoding="utf-8")
        check_offline(html)
        assert "Against the published ranking of qwen3-32b" in html


def test_layer_that_is_not_held(vectors: PersonaVectors, tmp_path: Path) -> None:
    with pytest.raises(LayerError, match="out of range"):
        persona_report(tmp_path / "r.html", vectors, layer=9)
    assert not list(tmp_path.iterdir())


def test_blocks(vectors: PersonaVectors, tmp_path: Path) -> None:
    figure = scree(vectors.space(1))
    sections = [
        Section(
            "One & two",
            [Note(EVIL), Table(("a", "b"), ((1, -0.5), ("x", float("nan"))), "cap", "open me", (1,))],
            "text",
        ),
        Section(
            "Pictures",
            [Picture(figure_bytes(figure, "png"), 'a "png"'), Picture(figure, "svg"), Picture(figure, "twice")],
        ),
    ]
    html = write_report(tmp_path / "r.html", sections, title=EVIL, lead=("first", "second")).read_text(encoding="utf-8")
    page = check_offline(html)
    assert (page.count("img"), page.count("svg"), page.count("details")) == (1, 2, 1)
    assert EVIL not in html
    assert "−0.50" in html
    assert '<td class="n">–</td>' in html
    assert "prefers-color-scheme: dark" in html
    assert "@media print" in html


def test_an_interrupted_report_leaves_nothing(vectors: PersonaVectors, tmp_path: Path) -> None:
    def sections():
        yield Section("one")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_report(tmp_path / "r.html", sections())
    assert not list(tmp_path.iterdir())


def test_every_figure_and_every_answer_has_its_conditions_under_it(vectors: PersonaVectors, tmp_path: Path) -> None:
    answers = [
        Answers("Who are you?", "Who are you?", (("unsteered", "a"), ("steered", "b")), "tiny · greedy decoding")
    ]
    published = {r: float(-k) for k, r in enumerate(vectors.roles)}
    html = persona_report(
        tmp_path / "r.html", vectors, layer=2, published=published, answers=answers, trace=trace()
    ).read_text(encoding="utf-8")
    check_offline(html)
    under = re.findall(r"<figcaption>(.*?)</figcaption>", html)
    assert len(under) == html.count("<figure>") == 6
    assert all("tiny" in said and "layer" in said for said in under)
    tables = html.count("<table>")
    assert html.count('<p class="conditions">') == tables - 1 + len(answers)  # the last table is the conditions
    assert "tiny · greedy decoding" in html
    assert "<blockquote>" not in html  # the question is the title already


def test_what_is_seen_at_a_glance(vectors: PersonaVectors, tmp_path: Path) -> None:
    html = persona_report(tmp_path / "r.html", vectors, layer=2).read_text(encoding="utf-8")
    glance = dict(re.findall(r"<dt>(.*?)</dt><dd>(.*?)</dd>", html))
    space = vectors.space(2)
    assert glance["roles"] == "40"
    assert glance["components for 70 % of variance"] == str(space.dimensions(0.7))
    assert glance["|cos(axis, PC1)|"] == f"{space.axis_cosine():.2f}"
    linked = re.findall(r"<nav>.*?</nav>", html, re.DOTALL)[0]
    assert re.findall(r'href="#(s\d+)"', linked) == re.findall(r'<section id="(s\d+)">', html)


def test_few_roles_are_shown_once(tmp_path: Path) -> None:
    made = make_vectors()
    html = persona_report(tmp_path / "r.html", made.select(made.roles[:15])).read_text(encoding="utf-8")
    assert "All 15 roles" not in html
    assert "more roles" not in html


@pytest.mark.skipif(FOUND is None, reason="no chromium or google-chrome on this machine")
def test_the_report_in_a_browser_on_a_phone_and_on_paper(vectors: PersonaVectors, tmp_path: Path) -> None:
    answers = [Answers("Who", "Who?", (("unsteered", "word " * 60), ("steered", "word " * 60)), "tiny")]
    page = persona_report(tmp_path / "r.html", vectors, layer=2, answers=answers, trace=trace())
    with Browser() as browser:
        for dark in (False, True):
            browser.open(page.as_uri(), (1100, 900), dark=dark)
            assert browser.requests == [page.as_uri()]
            assert not browser.complaints
            grey = browser.run("getComputedStyle(document.body).backgroundColor")
            assert (grey == "rgb(255, 255, 255)") is not dark
        browser.open(page.as_uri(), PHONE)
        assert browser.run("document.documentElement.scrollWidth - innerWidth") <= 0
        printed = browser.pdf()
        assert printed.startswith(b"%PDF")
        assert 4 <= len(re.findall(rb"/Type\s*/Page\b", printed)) <= 12
        browser.call("Emulation.setEmulatedMedia", media="print")
        hidden = "[...document.querySelectorAll('nav, details')].every(e => getComputedStyle(e).display === 'none')"
        assert browser.run(hidden)
