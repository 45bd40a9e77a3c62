"""A build step of the site: drawing and table of the architecture page are read from the package's own import statements."""

import ast
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PACKAGE = "assistant_axis"
HERE = Path(__file__).resolve().parents[1] / PACKAGE
MARK = "<!-- imports -->"
DRAWING = "<!-- drawing of imports -->"
# The science, then what stands on top of it. A room imports from rooms before it when it is imported.
ORDER = ("models", "activations", "personas", "geometry", "steering", "drift")
ABOVE = ("plots", "judges", "pipeline", "runs", "evals", "cli")


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Put drawing and table in place of the marks."""
    if MARK not in markdown:
        return markdown
    return markdown.replace(DRAWING, drawing()).replace(MARK, table())


def rooms() -> list[str]:
    """The folders of the package, the science first."""
    found = {p.parent.name for p in HERE.glob("*/__init__.py")}
    return [*ORDER, *(r for r in ABOVE if r in found), *sorted(found - set(ORDER) - set(ABOVE))]


def imports() -> dict[str, Counter[tuple[str, str]]]:
    """For every room: how often it imports (other room, "at import" | "when used" | "types only")."""
    return {room: Counter(_of_room(room)) for room in rooms()}


def _of_room(room: str) -> Iterator[tuple[str, str]]:
    for file in sorted((HERE / room).rglob("*.py")):
        for target, when in _statements(ast.parse(file.read_text(encoding="utf-8")), "at import"):
            other = target.split(".")[0]
            if other != room and other in rooms():
                yield other, when


def _statements(node: ast.AST, when: str) -> Iterator[tuple[str, str]]:
    """Names below the package that a node imports, and when."""
    if isinstance(node, ast.ImportFrom) and node.module == PACKAGE:
        yield from ((alias.name, when) for alias in node.names)
    elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith(PACKAGE + "."):
        yield str(node.module).removeprefix(PACKAGE + "."), when
    elif isinstance(node, ast.Import):
        yield from ((a.name.removeprefix(PACKAGE + "."), when) for a in node.names if a.name.startswith(PACKAGE + "."))
    elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
        for child in node.body:
            yield from _statements(child, "types only")
        for child in node.orelse:
            yield from _statements(child, when)
    else:
        inner = "when used" if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) else when
        for child in ast.iter_child_nodes(node):
            yield from _statements(child, inner)


def table() -> str:
    """One row a room; numbers count import statements."""
    rows = ["| room | imports at once | imports when used | for types only |", "|---|---|---|---|"]
    for room, found in imports().items():
        cells = [_cell(found, when) for when in ("at import", "when used", "types only")]
        rows.append(f"| **{room}** | {' | '.join(cells)} |")
    return "\n".join(rows)


def drawing() -> str:
    """The rooms in a row; an arc from each room to every room that it imports, thicker for more statements."""
    order, step, middle = rooms(), 70, 168
    at = {room: step // 2 + step * k for k, room in enumerate(order)}
    arcs = [
        _arc(at[room], at[other], middle, when, count, f"{room} imports {other}: {count} statements, {when}")
        for room, found in imports().items()
        for (other, when), count in found.items()
        if when != "types only"
    ]
    names = [
        f'<text x="{at[room]}" y="{middle + 4}" text-anchor="middle" font-weight="{600 if room in ORDER else 400}">{room}</text>'
        for room in order
    ]
    said = "Rooms of the package in a row, with arcs from each room to those it imports"
    size = f'viewBox="0 28 {step * len(order)} {middle + 100}" role="img" aria-label="{said}"'
    style = 'style="width: 100%; height: auto; font: 11px var(--md-text-font-family, sans-serif); fill: currentColor"'
    return f'<figure markdown="0" style="width: 100%; margin: 1em 0"><svg xmlns="http://www.w3.org/2000/svg" {size} {style}>{"".join(arcs + names)}</svg></figure>'


def _arc(x: int, other: int, middle: int, when: str, count: int, said: str) -> str:
    """Above the names what is imported at once, below them and dashed what is imported when it is used."""
    above = when == "at import"
    side = -1 if above else 1
    height, y = min(150, 12 + abs(x - other) * 0.24), middle + side * 12
    path = f"M {x} {y} C {x} {y + side * height}, {other} {y + side * height}, {other} {y}"
    look = "" if above else ' stroke-dasharray="4 3"'
    width = 0.8 + 0.45 * count.bit_length()
    color = "var(--md-typeset-a-color)" if x > other else "#d9622b"  # against the drawing's order
    return f'<path d="{path}" fill="none" stroke="{color}" stroke-opacity="0.6" stroke-width="{width}"{look}><title>{said}</title></path>'


def _cell(found: Counter[tuple[str, str]], when: str) -> str:
    return ", ".join(f"{r} {found[r, when]}" for r in rooms() if found[r, when]) or "–"
