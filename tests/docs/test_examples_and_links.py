"""Examples in docstrings give what they say; links of the pages that are read outside the site lead somewhere."""

import doctest
import re
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "assistant_axis"
WITH_EXAMPLES = sorted(
    ".".join(p.relative_to(ROOT).with_suffix("").parts)
    for p in PACKAGE.rglob("*.py")
    if re.search(r"^\s*>>> (?!.*doctest: \+SKIP)", p.read_text(encoding="utf-8"), re.MULTILINE)
)
READ_OUTSIDE = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"]


def test_there_are_examples() -> None:
    assert len(WITH_EXAMPLES) >= 5


@pytest.mark.parametrize("name", WITH_EXAMPLES)
def test_examples_in_docstrings(name: str) -> None:
    found = doctest.testmod(import_module(name))
    assert found.attempted > 0
    assert found.failed == 0


def anchors(page: Path) -> set[str]:
    heads = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", h.lower()).strip().replace(" ", "-") for h in heads}


@pytest.mark.parametrize("name", READ_OUTSIDE)
def test_relative_links_lead_somewhere(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        page = ROOT / path if path else ROOT / name
        assert page.exists(), f"{name}: {target}"
        assert not anchor or anchor in anchors(page), f"{name}: {target}"


def test_the_readme_holds_what_it_promises() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    python = re.search(r"## Ten lines of Python\n\n```python\n(.*?)```", text, re.DOTALL)
    shell = re.search(r"## Ten lines of command line\n\n```sh\n(.*?)```", text, re.DOTALL)
    assert python is not None
    assert shell is not None
    assert len([x for x in python.group(1).splitlines() if x.strip()]) == 10
    assert len([x for x in shell.group(1).splitlines() if x.strip()]) == 10
    (drawn,) = re.findall(r"!\[[^]]+\]\(([^)]+)\)", text)  # one picture, and the script that draws it
    script = re.search(r"drawn by `python ([^`]+)`", text)
    assert script is not None
    assert Path(drawn).name in (ROOT / script.group(1)).read_text(encoding="utf-8")
    for part in ("make demo", "make test", "## What it is not", "CITATION.cff"):
        assert part in text


def test_the_workflow_runs_what_ci_runs() -> None:
    yaml = pytest.importorskip("yaml")
    flow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8"))
    job = flow["jobs"]["test"]
    assert job["strategy"]["matrix"]["python"] == ["3.11", "3.12", "3.13"]
    assert any(step.get("run") == ".ci/run" for step in job["steps"])
    ran = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert "make test" in ran
    made = (ROOT / "Makefile").read_text(encoding="utf-8")
    for part in ("ruff format --check", "ruff check", "codespell", "basedpyright", "test: check"):
        assert part in made


def test_the_citation_names_software_and_paper() -> None:
    yaml = pytest.importorskip("yaml")
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert cited["cff-version"]
    assert cited["license"] == "MIT"
    (paper,) = cited["references"]
    assert [a["family-names"] for a in paper["authors"]] == ["Lu", "Gallagher", "Michala", "Fish", "Lindsey"]
    assert paper["url"].endswith("2601.10387")


def test_what_the_page_on_the_paper_says_is_what_its_code_prints(capsys: pytest.CaptureFixture[str]) -> None:
    page = (ROOT / "docs" / "reproducing.md").read_text(encoding="utf-8")
    code = re.search(r"```python\n(import torch.*?)```", page, re.DOTALL)
    assert code is not None
    exec(compile(code.group(1), "reproducing.md", "exec"), {})
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 5
    for line in (*said[:3], said[4]):
        for names in re.findall(r"\[([^]]+)\]", line):
            assert names.replace("'", "") in page, names
    places = [float(x) for x in re.findall(r"\d\.\d+", said[3])]
    assert f"**{places[0]:.2f}**".replace("0.", ".") in page
    nearer = [min(x, 1 - x) for x in places[1:]]
    assert f"{min(nearer):.2f}–{max(nearer):.2f}".replace("0.", ".") in page
    assert f"**{said[3].split()[-1]}** at layer 21" in page


def python_of(page: str) -> list[str]:
    """The Python blocks of a page, in order."""
    return re.findall(r"```python\n(.*?)```", (ROOT / "docs" / page).read_text(encoding="utf-8"), re.DOTALL)


def test_write_a_plot_as_the_page_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from assistant_axis import load_precomputed

    monkeypatch.chdir(tmp_path)
    (block,) = python_of("how-to/write-a-plot.md")
    exec(compile(block, "write-a-plot.md", "exec"), {"vectors": load_precomputed("gemma-3-270m")})
    assert (tmp_path / "runs" / "mine" / "dimensions.png").read_bytes().startswith(b"\x89PNG")


def test_use_your_own_judge_as_the_page_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from assistant_axis.judges import read_scores
    from assistant_axis.personas.rollouts import Rollout, write_rollouts

    said = ("I keep the light.", "As an AI I have no light.", "", "The sea is grey.")
    rollouts = [
        Rollout("keeper", 0, k, 0, "You keep a lighthouse.", "Who are you?", text, (1,), (2,), "stop")
        for k, text in enumerate(said)
    ]
    (tmp_path / "RUN").mkdir()
    write_rollouts(tmp_path / "RUN" / "rollouts.parquet", rollouts)
    monkeypatch.chdir(tmp_path)
    judge, score = python_of("how-to/use-your-own-judge.md")
    exec(compile(judge + score, "use-your-own-judge.md", "exec"), {})
    found = {key[2]: one for key, one in read_scores(tmp_path / "mine.parquet").items()}
    assert [found[k].score for k in range(4)] == [3, 1, None, 2]
    assert found[2].failure == "empty"
    assert "keeper" in capsys.readouterr().out


@pytest.mark.parametrize(("kind", "last"), [("Figure", 35), ("Table", 15)])
def test_every_figure_and_table_of_the_paper_has_its_row(kind: str, last: int) -> None:
    page = (ROOT / "docs" / "reproducing.md").read_text(encoding="utf-8")
    rows = [line.split("|")[1] for line in page.splitlines() if line.startswith("| ") and line.count("|") == 6]
    named: set[int] = set()
    for cell in rows:
        for numbers in re.findall(rf"{kind}s? ((?:\d+(?:–\d+)?(?: \(right\))?(?:, )?)+)", cell):
            for first, end in re.findall(r"(\d+)(?:–(\d+))?", numbers):
                named |= set(range(int(first), int(end or first) + 1))
    assert named == set(range(1, last + 1))
