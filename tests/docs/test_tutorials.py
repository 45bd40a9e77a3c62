"""Tutorials: notebook and twin are one text, outputs are small and hold all they need, and nbmake runs every notebook."""

import html
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "tutorials"
TWINS = sorted(FOLDER.glob("[0-9][0-9]_*.py"))
LONGEST = 240  # seconds that a notebook may take
REMOTE = re.compile(
    r"""<(?:script|link|img|iframe|source|object|embed)\b[^>]*\b(?:src|href|data)\s*=\s*["']?(?:https?:)?//"""
    r"""|@import|url\(\s*["']?(?:https?:)?//|\bimport\s*\(?\s*["'](?:https?:)?//""",
    re.IGNORECASE,
)
CLOSED = "default-src 'none'"


def named(path: Path) -> str:
    return path.stem


def code_cells(twin: Path) -> list[dict[str, Any]]:
    cells = json.loads(twin.with_suffix(".ipynb").read_text(encoding="utf-8"))["cells"]
    return [c for c in cells if c["cell_type"] == "code"]


def pages(twin: Path) -> list[str]:
    """Every output that a browser would read as markup or script."""
    data = [o.get("data", {}) for c in code_cells(twin) for o in c["outputs"]]
    return ["".join(d[kind]) for d in data for kind in d if kind in ("text/html", "image/svg+xml", "text/markdown")]


def test_there_are_eleven() -> None:
    assert [p.stem[:2] for p in TWINS] == [f"{k:02}" for k in range(1, 12)]
    assert sorted(p.stem for p in TWINS) == sorted(p.stem for p in FOLDER.glob("*.ipynb"))


def test_the_page_lists_them_all() -> None:
    page = (ROOT / "docs" / "tutorials.md").read_text(encoding="utf-8")
    listed = re.findall(r"\d\d_\w+", page)
    assert sorted(set(listed)) == [p.stem for p in TWINS]


@pytest.mark.parametrize("twin", TWINS, ids=named)
def test_notebook_is_in_sync_with_its_twin(twin: Path) -> None:
    jupytext = pytest.importorskip("jupytext", reason="pip install 'assistant-axis[docs]'")
    source, made = jupytext.read(twin), jupytext.read(twin.with_suffix(".ipynb"))
    said = [[(c.cell_type, c.source.strip()) for c in nb.cells] for nb in (source, made)]
    assert said[0] == said[1], f"make {twin.stem}.ipynb again from its twin, see CONTRIBUTING.md"


@pytest.mark.parametrize("twin", TWINS, ids=named)
def test_committed_notebook_is_small_clean_and_executed(twin: Path) -> None:
    assert twin.with_suffix(".ipynb").stat().st_size < 1_000_000
    code = code_cells(twin)
    assert all(c["execution_count"] for c in code)
    outputs = json.dumps([c["outputs"] for c in code])
    assert '"output_type": "error"' not in outputs
    assert '"name": "stderr"' not in outputs
    assert not re.search(r"(?<![\w.])/(?:home|root|Users|work|tmp)/", outputs), (
        "an output shows a path of the machine it was made on"
    )


@pytest.mark.parametrize("twin", TWINS, ids=named)
def test_no_output_loads_anything_from_elsewhere(twin: Path) -> None:
    kinds = {kind for c in code_cells(twin) for o in c["outputs"] for kind in o.get("data", {})}
    assert kinds <= {"text/plain", "text/html", "image/png"}, "a script on its own would run without a frame around it"
    for page in pages(twin):
        for text in (page, html.unescape(page)):
            found = REMOTE.search(text)
            assert found is None, found.group()
        frames = re.findall(r'<iframe\b[^>]*\bsrcdoc="([^"]*)"', page)
        assert len(frames) == page.count("<iframe"), "a frame holds its page itself"
        assert all(CLOSED in html.unescape(f) for f in frames)
        assert "<script" not in page, "scripts run in frames alone"


def test_some_views_are_those_of_circuitsvis() -> None:
    holding = [t.stem for t in TWINS if any("CircuitsVis.render" in html.unescape(p) for p in pages(t))]
    assert len(holding) >= 2
    assert TWINS[0].stem in holding


@pytest.mark.parametrize("twin", TWINS, ids=named)
def test_tutorial_opens_and_ends_as_promised(twin: Path) -> None:
    text = twin.read_text(encoding="utf-8")
    for part in ("**You will learn**", "## Exercises", "<details>", "## On your own model"):
        assert text.count(part) >= 1
    assert text.count("<details>") == text.count("</details>") == 3


@pytest.mark.parametrize("twin", TWINS, ids=named)
def test_badge_lies_beside_the_notebook_and_names_it(twin: Path) -> None:
    opening = "".join(json.loads(twin.with_suffix(".ipynb").read_text(encoding="utf-8"))["cells"][0]["source"])
    badges = re.findall(r"\[!\[Open in Colab\]\((.+?)\)\]\((\S+) \".*? (\S+)\"\)", opening)
    assert badges == [("colab.svg", "https://colab.research.google.com/#upload=true", f"{twin.stem}.ipynb")]
    assert (FOLDER / "colab.svg").is_file()


@pytest.mark.parametrize("twin", TWINS, ids=named)
def test_install_cell_takes_a_clone_a_wheel_or_the_name(
    twin: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cell = "".join(code_cells(twin)[0]["source"])
    asked: list[list[str]] = []
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(subprocess, "run", lambda line, check: asked.append(line))
    clone = tmp_path / "clone"
    (clone / "assistant_axis").mkdir(parents=True)
    (clone / "assistant_axis" / "__init__.py").touch()
    (clone / "tutorials").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "wheel").mkdir()
    wheel = tmp_path / "wheel" / "assistant_axis-0.1.0-py3-none-any.whl"
    wheel.touch()
    for where in ("elsewhere", "wheel", ".", "clone", "clone/tutorials"):
        monkeypatch.chdir(tmp_path / where)
        exec(cell, {})
    assert all(line[:4] == [sys.executable, "-m", "pip", "install"] for line in asked)
    wanted = [line[-1] for line in asked]
    extras = wanted[0].removeprefix("assistant-axis")
    assert wanted == [f"assistant-axis{extras}", f"{wheel}{extras}", *[f"{clone}{extras}"] * 3]
    known = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    assert set(extras.strip("[]").split(",")) - {""} <= set(known)


@pytest.mark.real
@pytest.mark.timeout(LONGEST + 30)
@pytest.mark.parametrize("twin", TWINS, ids=named)
def test_tutorial_runs(twin: Path, tmp_path: Path) -> None:
    """nbmake runs a copy of the notebook in a folder of its own, so that nothing in the repository is written to."""
    pytest.importorskip("nbmake", reason="pip install 'assistant-axis[docs]'")
    copy = shutil.copy(twin.with_suffix(".ipynb"), tmp_path)
    plain = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}  # not the options of this run
    line = [sys.executable, "-m", "pytest", "--nbmake", f"--nbmake-timeout={LONGEST}", "-p", "no:cacheprovider", copy]
    done = subprocess.run(line, cwd=tmp_path, env=plain, timeout=LONGEST, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert "1 passed" in done.stdout
