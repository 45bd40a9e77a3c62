"""A build step of the site: the table of the architecture page is read from the package's own import statements."""

import ast
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PACKAGE = "assistant_axis"
HERE = Path(__file__).resolve().parents[1] / PACKAGE
MARK = "<!-- imports -->"
# The science, then what stands on top of it. A room imports from rooms before it when it is imported.
ORDER = ("models", "activations", "personas", "geometry", "steering", "drift")


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Put the table in place of the mark."""
    return markdown.replace(MARK, table()) if MARK in markdown else markdown


def rooms() -> list[str]:
    """The folders of the package, the science first."""
    found = {p.parent.name for p in HERE.glob("*/__init__.py")}
    return [*ORDER, *sorted(found - set(ORDER))]


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


def _cell(found: Counter[tuple[str, str]], when: str) -> str:
    return ", ".join(f"{r} {found[r, when]}" for r in rooms() if found[r, when]) or "–"
