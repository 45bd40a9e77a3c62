"""The documentation builds without a warning, and no page of it reaches out."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("mkdocs", reason="the site needs: pip install 'assistant-axis[docs]'")

ROOT = Path(__file__).resolve().parents[2]
REMOTE = re.compile(
    r"""<(?:script|img|iframe|source)\b[^>]*\bsrc=["']?(?:https?:)?//|"""
    r"""<link\b(?=[^>]*\brel=["']?(?:stylesheet|preload|preconnect|icon|modulepreload))[^>]*\bhref=["']?(?:https?:)?//"""
)
REMOTE_STYLE = re.compile(r"""(?:url\(|@import)\s*["']?(?:https?:)?//""")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(out)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return out


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


def test_every_public_name_is_documented(site: Path) -> None:
    import assistant_axis

    pages = "".join(p.read_text(encoding="utf-8") for p in (site / "reference").glob("*.html"))
    missing = [n for n in assistant_axis.__all__ if n != "__version__" and f'id="assistant_axis.{n}"' not in pages]
    assert not missing, f"no reference entry: {', '.join(missing)}"


@pytest.mark.parametrize("room", ["judges", "plots"])
def test_every_name_of_a_room_is_documented(site: Path, room: str) -> None:
    from importlib import import_module

    pages = "".join(p.read_text(encoding="utf-8") for p in (site / "reference").glob("*.html"))
    names = import_module(f"assistant_axis.{room}").__all__
    shown = set(re.findall(rf'id="assistant_axis\.{room}\.(?:\w+\.)?(\w+)"', pages))
    assert not set(names) - shown, f"no reference entry: {sorted(set(names) - shown)}"


BROWSER = shutil.which("chromium") or shutil.which("google-chrome")


@pytest.mark.skipif(BROWSER is None, reason="no chromium or google-chrome on this machine")
@pytest.mark.parametrize("page", ["index.html", "faq.html", "architecture.html", "reference/cli.html"])
def test_page_opens_in_a_browser_without_network(site: Path, tmp_path: Path, page: str) -> None:
    done = subprocess.run(
        [
            str(BROWSER),
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--host-resolver-rules=MAP * ~NOTFOUND",
            "--enable-logging=stderr",
            f"--user-data-dir={tmp_path}",
            "--virtual-time-budget=2000",
            "--dump-dom",
            (site / page).as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=90,
    )
    assert "<h1" in done.stdout
    assert "md-search" in done.stdout
    said = [
        x for x in done.stderr.splitlines() if "CONSOLE" in x and re.search("error|failed|refused", x, re.IGNORECASE)
    ]
    assert not said, said


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
