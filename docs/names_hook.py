"""A build step of the site: public names that no other reference page shows, one line each, read from the source."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PACKAGE = "assistant_axis"
ROOT = Path(__file__).resolve().parents[1]
MARK = "<!-- other names -->"
# The commands have a page of their own; tasks of lm-evaluation-harness are data.
LEFT_OUT = ("cli", "data")


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Put the list in place of the mark."""
    return markdown.replace(MARK, "\n".join(_list())) if MARK in markdown else markdown


def public() -> dict[str, list[ast.ClassDef | ast.FunctionDef]]:
    """Module → the classes and functions that it defines at its top without an underscore."""
    found: dict[str, list[ast.ClassDef | ast.FunctionDef]] = {}
    for file in sorted((ROOT / PACKAGE).rglob("*.py")):
        inside = file.relative_to(ROOT).with_suffix("").parts
        if any(p in LEFT_OUT for p in inside) or any(p.startswith("_") for p in inside):
            continue
        body = ast.parse(file.read_text(encoding="utf-8")).body
        defined = [x for x in body if isinstance(x, ast.ClassDef | ast.FunctionDef) and not x.name.startswith("_")]
        if defined:
            found[".".join(inside)] = defined
    return found


def shown() -> set[str]:
    """Last parts of what the other pages show, and whole modules among it."""
    pages = (ROOT / "docs" / "reference").glob("*.md")
    return {x for p in pages for x in re.findall(r"^::: (\S+)", p.read_text(encoding="utf-8"), re.MULTILINE)}


def others() -> dict[str, list[ast.ClassDef | ast.FunctionDef]]:
    """The public names that are left for this page."""
    there = shown()
    last = {x.rsplit(".", 1)[-1] for x in there}
    left = {m: [x for x in names if x.name not in last] for m, names in public().items() if m not in there}
    return {m: names for m, names in left.items() if names}


def _list() -> Iterator[str]:
    for module, names in others().items():
        yield f"\n## `{module.removeprefix(PACKAGE + '.')}`\n"
        for one in names:
            said = (ast.get_docstring(one) or "").split("\n\n")[0].replace("\n", " ")
            yield f'- <span id="{module}.{one.name}">`{_signature(one)}`</span>: {said}'


def _signature(one: ast.ClassDef | ast.FunctionDef) -> str:
    if isinstance(one, ast.ClassDef):
        return one.name
    arguments = [a.arg for a in (*one.args.posonlyargs, *one.args.args)]
    arguments += [f"*{one.args.vararg.arg}"] if one.args.vararg else []
    arguments += [f"{a.arg}=" for a in one.args.kwonlyargs]
    return f"{one.name}({', '.join(arguments)})"
