"""A newcomer's first hour, walked through on a fresh clone: the demo, tutorial 3, a role of one's own, the map drawn again.

The sizes are small (twenty roles in place of 275) and the environment is the one that runs the tests. Everything else is what
the pages say: the commands are read from them, and the tutorial's cells from its source.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ROLES = 20
KEEPER = "lighthouse_keeper"

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(shutil.which("git") is None or shutil.which("make") is None, reason="needs git and make"),
    pytest.mark.skipif(not (ROOT / ".git").exists(), reason="this is no clone"),
]


def walk(clone: Path, *command: str) -> str:
    """What a command says, run in the clone with the clone's own package."""
    bin_ = clone / ".venv" / "bin"
    env = {**os.environ, "PATH": f"{bin_}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(clone), "COLUMNS": "160"}
    done = subprocess.run(command, cwd=clone, env=env, capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh clone; `make setup` has been spared by lending it this environment."""
    folder = tmp_path_factory.mktemp("newcomer") / "assistant-axis"
    subprocess.run(["git", "clone", "--quiet", "--depth", "1", ROOT.as_uri(), str(folder)], check=True)
    bin_ = folder / ".venv" / "bin"
    bin_.mkdir(parents=True)
    # The script of this environment; PYTHONPATH puts the clone's package first.
    (bin_ / "assistant-axis").symlink_to(Path(sys.executable).parent / "assistant-axis")
    (folder / ".venv" / ".ready").touch()
    return folder


def commands_of(page: Path) -> list[str]:
    """The commands of a page, in order."""
    blocks = re.findall(r"```console\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    return [line.removeprefix("$ ") for block in blocks for line in block.splitlines() if line.startswith("$ ")]


def test_the_demo_tells_its_story(clone: Path) -> None:
    said = walk(clone, "make", "demo", f"DEMO=--roles {ROLES} --new-tokens 8")
    for step in (
        "persona vectors: 20 roles",
        "Roles along the Assistant Axis",
        "steering and capping",
        "drift",
        "report",
    ):
        assert step in said
    page = (clone / "demo" / "report.html").read_text(encoding="utf-8")
    assert page.count("<svg") >= 5
    assert "random direction" in page
    assert {"vectors.safetensors", "axis.safetensors", "axis_pc1.safetensors"} <= {
        p.name for p in (clone / "demo").iterdir()
    }


def cells_of(twin: Path) -> tuple[list[str], str]:
    """Code cells and all text of a py:percent notebook."""
    parts = re.split(r"^# %%(.*)\n", twin.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
    pairs = list(zip(parts[::2], parts[1::2], strict=True))
    text = "\n".join(body for head, body in pairs if "[markdown]" in head)
    return [body for head, body in pairs if "[markdown]" not in head], re.sub(r"^# ?", "", text, flags=re.MULTILINE)


def readme_of(clone: Path) -> str:
    """The ten lines of Python that the README shows, for the tutorial's roles."""
    text = (clone / "README.md").read_text(encoding="utf-8")
    block = re.search(r"## Ten lines of Python\n\n```python\n(.*?)```", text, re.DOTALL)
    assert block is not None
    sized = block.group(1).replace(
        '(model, span="header")', '(model, span="header", roles=names, questions_per_prompt=2)'
    )
    short = sized.replace("model.generate(question)", "model.generate(question, max_new_tokens=8)")
    assert block.group(1) != sized != short
    return short


def test_tutorial_3_and_its_map_with_a_role_of_ones_own(clone: Path) -> None:
    """All cells; the solution that adds a role; the cell that draws the map, again; the ten lines of the README."""
    cells, text = cells_of(clone / "tutorials" / "03_persona_space.py")
    sized = [c.replace(", 60)]", f", {ROLES})]") for c in cells]
    assert sum(a != b for a, b in zip(cells, sized, strict=True)) == 1
    solution = next(s for s in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if KEEPER in s)
    draw = next(c for c in sized if c.startswith("role_map("))
    look = "ax = picture.axes[0]; seen = [t.get_text() for t in ax.texts], len(ax.collections[0].get_offsets())"
    story = "\n".join(
        [
            "import matplotlib; matplotlib.use('agg')",
            f"import assistant_axis; assert assistant_axis.__file__.startswith({str(clone)!r})",
            *sized[: sized.index(draw)],
            f"picture = {draw}\n{look}; before = seen",
            *sized[sized.index(draw) + 1 :],
            solution,
            "space = more.space()",
            f"picture = {draw}\n{look}; after = seen",
            f"picture = role_map(space, labels=[{KEEPER!r}])\n{look}; named = seen",
            "ranking = [n for n, _ in space.ranking(1)]",
            readme_of(clone),
            "import json; print(json.dumps([before, after, named, ranking]))",
        ]
    )
    (clone / "story.py").write_text(story, encoding="utf-8")
    before, after, named, ranking = json.loads(walk(clone, sys.executable, "story.py").splitlines()[-1])
    assert before[1] == ROLES
    assert after[1] == ROLES + 1  # the map was drawn again, with one more point
    assert "DEFAULT" in before[0]
    assert "DEFAULT" in after[0]
    assert "lighthouse keeper" not in before[0]
    assert "lighthouse keeper" in named[0]
    assert len(ranking) == ROLES + 1
    assert KEEPER in ranking


def test_a_role_is_added_as_the_page_says_and_appears_in_the_figure(clone: Path) -> None:
    said = ""
    for command in commands_of(clone / "docs" / "how-to" / "add-a-role.md"):
        said = walk(clone, "sh", "-c", command)
    row = next(line for line in said.splitlines() if KEEPER in line)
    assert re.search(r"[+-]\d\.\d{3}", row)
    figures = clone / "runs" / "look" / "figures"
    assert (figures / "role_map.png").read_bytes().startswith(b"\x89PNG")
    assert "lighthouse keeper" in (figures / "persona_map.html").read_text(encoding="utf-8")
