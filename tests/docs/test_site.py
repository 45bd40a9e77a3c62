"""The documentation builds without a warning, and no page of it reaches out."""

import ast
import json
import re
from html import unescape
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from runpy import run_path
from urllib.parse import unquote

import pytest

ROOT = Path(__file__).resolve().parents[2]
REMOTE = re.compile(
    r"""<(?:script|img|iframe|source)\b[^>]*\bsrc=["']?(?:https?:)?//|"""
    r"""<link\b(?=[^>]*\brel=["']?(?:stylesheet|preload|preconnect|icon|modulepreload))[^>]*\bhref=["']?(?:https?:)?//"""
)
REMOTE_STYLE = re.compile(r"""(?:url\(|@import)\s*["']?(?:https?:)?//""")
REMOTE_IMPORT = re.compile(r"""\b(?:import|importScripts)\s*\(?\s*["'](?:https?:)?//""")


def test_no_page_references_another_host(site: Path) -> None:
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > 20
    for page in pages:
        found = REMOTE.search(page.read_text(encoding="utf-8"))
        assert found is None, f"{page.relative_to(site)}: {found.group()}"


def test_no_style_references_another_host(site: Path) -> None:
    for style in [*site.rglob("*.css"), *site.rglob("*.html")]:
        found = REMOTE_STYLE.search(style.read_text(encoding="utf-8"))
        assert found is None, f"{style.relative_to(site)}: {found.group()}"


def test_no_script_in_a_page_imports_from_another_host(site: Path) -> None:
    for page in site.rglob("*.html"):
        found = REMOTE_IMPORT.search(page.read_text(encoding="utf-8"))
        assert found is None, f"{page.relative_to(site)}: {found.group()}"


def test_local_scripts_and_styles_exist(site: Path) -> None:
    for page in site.rglob("*.html"):
        if page.name == "404.html":  # its paths start at the root of a server
            continue
        for path in re.findall(
            r"""<(?:script|link)\b[^>]*\b(?:src|href)=["']?([^"'\s>]+\.(?:js|css))""", page.read_text()
        ):
            assert (page.parent / path).resolve().is_file(), f"{page.relative_to(site)}: {path}"


def test_search_works_without_a_server(site: Path) -> None:
    assert (site / "search" / "search_index.js").is_file()  # a script, since file:// pages may not fetch JSON


@pytest.mark.parametrize("name", ["models", "personas", "activations", "geometry", "steering", "drift", "pipeline"])
def test_reference_pages_show_signatures(site: Path, name: str) -> None:
    text = (site / "reference" / f"{name}.html").read_text(encoding="utf-8")
    assert text.count("doc-heading") > 4


def written(page: Path) -> tuple[list[str], set[str]]:
    """What a page links to, and the anchors that it has."""
    text = page.read_text(encoding="utf-8")
    links = re.findall(r"""<(?:a|img|link|script)\b[^>]*?\b(?:href|src)=["']?([^"'\s>]+)""", text)
    return [unescape(x) for x in links], {unescape(x) for x in re.findall(r"""\bid=["']?([^"'\s>]+)""", text)}


def test_every_link_and_anchor_leads_somewhere(site: Path) -> None:
    pages = {page: written(page) for page in site.rglob("*.html") if page.name != "404.html"}
    broken, checked = [], 0
    for page, (links, own) in pages.items():
        for link in links:
            if re.match(r"[a-z]+:|//", link):
                continue
            path, _, anchor = unquote(link).partition("#")
            target = (page.parent / path).resolve() if path else page
            target = target / "index.html" if target.is_dir() else target
            checked += 1
            if not target.is_file():
                broken.append(f"{page.relative_to(site)}: {link}")
            elif anchor and target in pages and anchor not in (own if target == page else pages[target][1]):
                broken.append(f"{page.relative_to(site)}: {link} has no such anchor")
    assert checked > 2000
    assert not broken, "\n".join(broken)


def documented(site: Path) -> set[str]:
    """Full names that the reference pages have an entry for."""
    pages = "".join(p.read_text(encoding="utf-8") for p in (site / "reference").glob("*.html"))
    return set(re.findall(r"""\bid=["']?(assistant_axis[\w.]+)""", pages))


def test_every_public_name_is_documented(site: Path) -> None:
    import assistant_axis

    missing = {f"assistant_axis.{n}" for n in assistant_axis.__all__ if n != "__version__"} - documented(site)
    assert not missing, f"no reference entry: {', '.join(sorted(missing))}"


@pytest.mark.parametrize("room", ["judges", "plots"])
def test_every_exported_name_of_a_room_is_documented(site: Path, room: str) -> None:
    names = set(import_module(f"assistant_axis.{room}").__all__)
    shown = {x.rsplit(".", 1)[-1] for x in documented(site) if x.startswith(f"assistant_axis.{room}.")}
    assert not names - shown, f"no reference entry: {sorted(names - shown)}"


def test_every_class_and_function_without_an_underscore_is_documented(site: Path) -> None:
    shown = documented(site)
    last = {x.rsplit(".", 1)[-1] for x in shown}
    count, missing = 0, []
    for file in sorted((ROOT / "assistant_axis").rglob("*.py")):
        module = ".".join(file.relative_to(ROOT).with_suffix("").parts)
        if "cli" in file.parts or "data" in file.parts or "._" in module:
            continue
        for one in ast.parse(file.read_text(encoding="utf-8")).body:
            if not isinstance(one, ast.ClassDef | ast.FunctionDef) or one.name.startswith("_"):
                continue
            count += 1
            if not ast.get_docstring(one):
                missing.append(f"{module}.{one.name} has no docstring")
            # What the package passes on is documented under its short name.
            elif f"{module}.{one.name}" not in shown and one.name not in last:
                missing.append(f"{module}.{one.name} has no reference entry")
    assert count > 300
    assert not missing, "\n".join(missing)


IMPORTED = re.compile(r"^\s*(?:# |>>> )?from (assistant_axis[\w.]*) import (\([^)]*\)|[\w, ]+)$", re.MULTILINE)


def test_every_name_that_pages_and_tutorials_import_is_documented(site: Path) -> None:
    texts = [*(ROOT / "docs").rglob("*.md"), *(ROOT / "tutorials").glob("*.py"), ROOT / "README.md"]
    last = {x.rsplit(".", 1)[-1] for x in documented(site)}
    missing, count = [], 0
    for text in texts:
        for module, names in IMPORTED.findall(text.read_text(encoding="utf-8")):
            for name in re.findall(r"\w+", names):
                count += 1
                assert hasattr(import_module(module), name) or find_spec(f"{module}.{name}"), (
                    f"{text.name}: {module}.{name}"
                )
                if name not in last and not find_spec_or_none(f"{module}.{name}"):
                    missing.append(f"{text.name}: {module}.{name}")
    assert count > 60
    assert not missing, "\n".join(missing)


def find_spec_or_none(name: str) -> object:
    try:
        return find_spec(name)
    except ModuleNotFoundError:
        return None


def test_every_tutorial_is_a_page_with_its_outputs(site: Path) -> None:
    notebooks = sorted((ROOT / "tutorials").glob("[0-9][0-9]_*.ipynb"))
    assert notebooks
    overview = (site / "tutorials.html").read_text(encoding="utf-8")
    for notebook in notebooks:
        page = (site / "tutorials" / notebook.with_suffix(".html").name).read_text(encoding="utf-8")
        cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
        shown = [o for c in cells for o in c.get("outputs", ()) if "image/png" in o.get("data", {})]
        assert page.count("data:image/png;base64,") == len(shown)
        assert page.count('class="jp-Cell jp-CodeCell') >= sum(c["cell_type"] == "code" for c in cells)
        assert f"tutorials/{notebook.stem}.html" in overview  # in the navigation
        assert (site / "tutorials" / notebook.name).read_bytes() == notebook.read_bytes()
        assert len(page) < notebook.stat().st_size * 1.2 + 200_000  # no style sheet of half a megabyte


def test_every_command_is_in_the_reference(site: Path) -> None:
    from typer.main import get_command

    from assistant_axis.cli.main import app

    def names(command: object, name: str) -> list[str]:
        inside = {k: c for k, c in getattr(command, "commands", {}).items() if not c.hidden}
        return [x for k, c in inside.items() for x in names(c, f"{name} {k}")] or [name]

    page = (site / "reference" / "cli.html").read_text(encoding="utf-8")
    every = names(get_command(app), "assistant-axis")
    assert len(every) > 20
    missing = [n for n in every if f"<code>{n}</code>" not in page]
    assert not missing, f"not in the reference: {', '.join(missing)}"


def test_badges_of_the_notebooks_lead_to_colab(site: Path) -> None:
    pages = sorted((site / "tutorials").glob("*.html"))
    assert len(pages) == 11
    for page in pages:
        text = page.read_text(encoding="utf-8")
        assert re.search(
            r"""<a href="https://colab.research.google.com/#upload=true"[^>]*><img[^>]*src="colab.svg\"""", text
        )
    assert (site / "tutorials" / "colab.svg").is_file()


def test_a_site_with_a_repository_opens_its_notebooks_themselves() -> None:
    hook = run_path(str(ROOT / "docs" / "tutorials_hook.py"))
    address = hook["colab_address"]
    assert (
        address(None, "tutorials/a.ipynb")
        == address("https://git.example.org/a/b", "tutorials/a.ipynb")
        == hook["UPLOAD"]
    )
    found = {address(f"https://github.com/owner/name{end}", "tutorials/a.ipynb") for end in ("", "/", ".git")}
    assert found == {"https://colab.research.google.com/github/owner/name/blob/main/tutorials/a.ipynb"}
