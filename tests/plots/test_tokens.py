"""Token views hold hostile tokens, in a notebook and in a terminal; none of them asks the network."""

import base64
import gzip
import re
from importlib import resources

import pytest
from rich.console import Console

from assistant_axis.errors import SettingError
from assistant_axis.models.hooked import HookedChatModel
from assistant_axis.plots.tokens import circuitsvis_view, spans_view, values_view

HOSTILE = [
    "</script>",
    "<img src=x onerror=alert(1)>",
    "&amp;",
    '"',
    "\n",
    "a\udcff",
    "\x1b[31m",
    "�",
    "[bold]",
    "<!--",
]
MESSAGES = [
    {"role": "system", "content": "Be <b>brief</b>."},
    {"role": "user", "content": "Who are you?\nSay."},
    {"role": "assistant", "content": "I am </script> here & now."},
]


def test_values_view_escapes() -> None:
    view = values_view(HOSTILE, [1, -2, 0, float("nan"), 0.5, 1, 1, 1, 1, 1], caption="<i>raw</i>")
    html = view._repr_html_()
    html.encode()
    body = html[html.index("</style>") :]
    assert "<script" not in html
    assert "<img" not in html
    assert "<i>" not in html
    assert "&lt;/script&gt;" in body
    assert "&amp;amp;" in body
    assert "\x1b" not in body
    assert "a�" in body
    assert 'title="-2"' in body
    assert re.search(r"https?:", html) is None
    assert view.__html__() == html


def test_values_view_in_a_terminal() -> None:
    view = values_view(HOSTILE, range(10))
    console = Console(width=80, color_system="truecolor", record=True, file=open("/dev/null", "w"))  # noqa: PTH123, SIM115
    console.print(view)
    text = console.export_text()
    console.file.close()
    assert "[bold]" in text
    assert "␛[31m" in text
    assert str(values_view(["a", "<b>"], [0, 1])) == "a<b>"


def test_colours_diverge() -> None:
    low, middle, high = values_view(["a", "b", "c"], [-1, 0, 3], center=1).tokens
    assert (low.hue, high.hue) == (30, 212)
    assert low.strength == high.strength == 1
    assert middle.strength == 0.5
    assert {t.strength for t in values_view(["a"], [2.0], center=2.0).tokens} == {0}


def test_number_of_values() -> None:
    with pytest.raises(SettingError, match="1 values for 2 tokens"):
        values_view(["a", "b"], [1])
    with pytest.raises(SettingError, match="1 values for 2 tokens"):
        circuitsvis_view(["a", "b"], [1])


def test_spans_view_colours_turns(tiny_model: HookedChatModel) -> None:
    view = spans_view(tiny_model, MESSAGES)
    assert view == tiny_model.show_spans(MESSAGES)
    chat = tiny_model.chat.encode(MESSAGES)
    for turn in chat.turns:
        inside = view.tokens[turn.content[0] : turn.content[1]]
        assert {t.strength for t in inside} == {1.0}
        assert all(f"turn {turn.index} {turn.role} content" in t.note for t in inside)
        assert {t.strength for t in view.tokens[turn.header[0] : turn.header[1]]} == {0.3}
    assert [k.text for k in view.legend][:3] == ["system", "user", "assistant"]
    assert "<b>brief" not in view._repr_html_()


def test_circuitsvis_is_self_contained() -> None:
    view = circuitsvis_view(HOSTILE, [float("inf"), *range(9)])
    html = view._repr_html_()
    html.encode()
    assert html.startswith("<iframe")
    assert html.count("<") == 2, "only the frame itself is markup"
    assert view.page.count("</script") == 1, "no token and no library string ends the script"
    assert re.search(r"<(?:script|link|img)[^>]+(?:src|href)=", view.page[:2000]) is None
    assert "default-src 'none'" in view.page
    data = view.page[view.page.rindex("CircuitsVis.render(") :]
    assert "<img" not in data
    assert "\\u003c" not in data, "tokens are escaped for the HTML that CircuitsVis makes of them"


def test_circuitsvis_is_packed_small_enough_for_a_notebook() -> None:
    page = circuitsvis_view(["a"], [1]).page
    (packed,) = re.findall(r'atob\("([^"]+)"\)', page)
    library = resources.files("circuitsvis") / "dist" / "cdn" / "iife.js"
    assert gzip.decompress(base64.b64decode(packed)) == library.read_bytes()
    assert len(page) < 600_000
