"""The rooms of the package import one another in the order that CONTRIBUTING draws."""

import re
from importlib import util
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
HOOK = ROOT / "docs" / "imports_hook.py"


@pytest.fixture(scope="module")
def hook():
    spec = util.spec_from_file_location("imports_hook", HOOK)
    assert spec is not None
    assert spec.loader is not None
    module = util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def drawn() -> list[str]:
    """The order that CONTRIBUTING draws."""
    line = next(x for x in (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").splitlines() if "─►" in x)
    return [x.strip() for x in line.split("─►")]


def test_the_drawing_is_the_order_that_is_checked(hook) -> None:
    assert tuple(drawn()) == hook.ORDER
    said = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    assert " → ".join(hook.ORDER) in said


def test_no_room_needs_one_further_right(hook) -> None:
    found = hook.imports()
    for at, room in enumerate(hook.ORDER):
        needed = {other for other, when in found[room] if when == "at import"}
        assert needed <= set(hook.ORDER[:at]), f"{room} imports {needed - set(hook.ORDER[:at])}"


def test_the_table_has_every_room_and_counts_something(hook) -> None:
    rows = hook.table().splitlines()[2:]
    folders = {p.parent.name for p in (ROOT / "assistant_axis").glob("*/__init__.py")}
    assert {re.match(r"\| \*\*(\w+)\*\*", row).group(1) for row in rows} == folders  # type: ignore[union-attr]
    assert any("models" in row.split("|")[2] for row in rows)


def test_statements_are_told_apart(hook) -> None:
    import ast

    text = """
from assistant_axis import Cap
from assistant_axis.models.chat import ChatFormat
if TYPE_CHECKING:
    from assistant_axis.plots import scree
def later():
    import assistant_axis.drift.summary
"""
    assert list(hook._statements(ast.parse(text), "at import")) == [
        ("Cap", "at import"),
        ("models.chat", "at import"),
        ("plots", "types only"),
        ("drift.summary", "when used"),
    ]


def test_the_drawing_has_every_room_and_every_import(hook) -> None:
    drawn_ = hook.drawing()
    assert re.findall(r"<text [^>]*>(\w+)</text>", drawn_) == hook.rooms()
    needed = {(r, o, w) for r, found in hook.imports().items() for o, w in found if w != "types only"}
    assert set(re.findall(r"<title>(\w+) imports (\w+): \d+ statements, ([\w ]+)</title>", drawn_)) == needed
    assert 'stroke="#d9622b" stroke-opacity="0.6" stroke-width' in drawn_  # models reach further right when used
