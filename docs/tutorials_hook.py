"""A build step of the site: the executed notebooks of `tutorials/` become pages in the theme's own dress.

mkdocs-jupyter renders them. What it brings along for a bare page (scripts from a CDN, half a megabyte of style a page, colours for
light pages only) is left away, and code blocks get the theme's markup, so that palettes and the copy button hold for them too.
"""

from pathlib import Path
from typing import Any

import bs4
from mkdocs.plugins import event_priority
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
FOLDER = "tutorials"
SECTION = "Tutorials"
WRAPPER = '<div class="jupyter-wrapper">'
NO_ALT = "No description has been provided for this image"
ALT = "Figure drawn by the code above it"
BADGE = f"{FOLDER}/colab.svg"
COLAB = "https://colab.research.google.com/"
UPLOAD = f"{COLAB}#upload=true"


def notebooks() -> list[str]:
    """Paths of all notebooks in the order of their numbers, relative to the repository."""
    return sorted(f"{FOLDER}/{p.name}" for p in (ROOT / FOLDER).glob("[0-9][0-9]_*.ipynb"))


def on_config(config: Any) -> Any:
    """Every notebook gets its place in the navigation."""
    section = next(item[SECTION] for item in config.nav if SECTION in item)
    section += [path for path in notebooks() if path not in section]
    return config


@event_priority(100)  # before mkdocs-jupyter looks at the files
def on_files(files: Files, config: Any) -> Files:
    """The notebooks lie beside `docs/`, not in it."""
    for path in [*notebooks(), BADGE]:
        files.append(File(path, str(ROOT), config.site_dir, config.use_directory_urls))
    return files


def colab_address(repo_url: str | None, path: str) -> str:
    """Where the badge of a notebook leads: to itself if the site's `repo_url` is on GitHub, else to the upload dialog."""
    on_github = "https://github.com/"
    if not (repo_url or "").startswith(on_github):
        return UPLOAD
    return f"{COLAB}github/{str(repo_url).removeprefix(on_github).removesuffix('.git').strip('/')}/blob/main/{path}"


def on_page_content(html: str, page: Any, config: Any, files: Any) -> str:
    """Leave away what a page of this site has already, and use the theme's markup."""
    if not page.file.src_uri.endswith(".ipynb"):
        return html
    name = Path(page.file.src_uri).name
    note = (
        f'<p class="nb-source">This page is the notebook <a href="{name}" download><code>tutorials/{name}</code></a> '
        "with the outputs it was committed with.</p>"
    )
    html = html.replace(UPLOAD, colab_address(config.repo_url, page.file.src_uri))
    return note + dressed(html[html.index(WRAPPER) :])


def dressed(html: str) -> str:
    """The notebook's cells in the theme's markup."""
    soup = bs4.BeautifulSoup(html, "html.parser")
    for one in soup.select(
        ".jp-Collapser, .jp-InputPrompt, .jp-OutputPrompt, .zeroclipboard-container, .clipboard-copy-txt"
    ):
        one.decompose()
    for one in soup.select(".highlight-ipynb"):
        one["class"] = "highlight"
    for pre in soup.select(".highlight pre"):
        pre.attrs.pop("tabindex", None)
        code = soup.new_tag("code")
        code.extend(list(pre.contents))
        pre.append(code)
    for link in soup.select(".anchor-link"):
        link["class"], link["title"] = "headerlink", "Permanent link"
    for picture in soup.select("img"):
        picture["alt"] = ALT if picture.get("alt", NO_ALT) == NO_ALT else picture["alt"]
    for one in soup.select("[tabindex]"):
        del one["tabindex"]
    for cell in soup.select(".jp-Cell[id]"):
        del cell["id"]
    return str(soup)
