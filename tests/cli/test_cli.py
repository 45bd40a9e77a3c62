"""The command line: fast start, helpful words, a user's mistake without a traceback."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from assistant_axis.activations.store import Conditions
from assistant_axis.cli.main import app, main
from assistant_axis.cli.options import parse_layers
from assistant_axis.errors import SettingError
from assistant_axis.geometry.axis import AssistantAxis
from assistant_axis.geometry.vectors import PersonaVectors

runner = CliRunner()


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    """A run's folder with made-up vectors of a three-layer model."""
    generator = torch.Generator().manual_seed(0)
    strength = torch.linspace(-1, 1, 24)
    direction = torch.randn(3, 16, generator=generator)
    vectors = strength[:, None, None] * direction + 0.1 * torch.randn(24, 3, 16, generator=generator)
    conditions = Conditions("made-up", "f", 3, 16, "resid_post", "header", "t", "template", "float32", "p", "h", "d", 0)
    PersonaVectors(
        roles=tuple(f"role{k:02d}" for k in range(24)),
        layers=(0, 1, 2),
        vectors=vectors,
        default=2 * direction,
        default_conditions=(2 * direction)[None].repeat(5, 1, 1),
        counts=torch.full((24,), 8),
        default_count=20,
        resid_norms=torch.full((3,), 5.0),
        conditions=conditions,
    ).save(tmp_path / "vectors.safetensors")
    return tmp_path


def test_the_package_runs_as_a_module() -> None:
    line = [sys.executable, "-m", "assistant_axis", "--version"]
    assert subprocess.run(line, capture_output=True, text=True, check=True).stdout.startswith("assistant-axis ")


def test_help_is_fast_and_imports_no_torch() -> None:
    code = "import sys; sys.argv = ['assistant-axis', '--help']\n"
    code += "from assistant_axis.cli.main import main\ntry:\n    main()\nexcept SystemExit:\n    pass\n"
    code += "print([m for m in ('torch', 'transformers', 'numpy', 'matplotlib') if m in sys.modules])"
    started = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("[]")
    assert "demo" in done.stdout
    assert time.perf_counter() - started < 20  # a hang, not a benchmark


def _commands() -> list[list[str]]:
    from typer.main import get_command

    found: list[list[str]] = []

    def walk(command: object, path: list[str]) -> None:
        found.append(path)
        for name, sub in getattr(command, "commands", {}).items():
            walk(sub, [*path, name])

    walk(get_command(app), [])
    return found


@pytest.mark.parametrize("path", _commands(), ids=lambda p: " ".join(p) or "root")
def test_every_command_has_help(path: list[str]) -> None:
    said = runner.invoke(app, [*path, "--help"])
    assert said.exit_code == 0
    assert "Usage" in said.output
    body = said.output.split("╭")[0].split("Usage:", 1)[1]
    assert len(body.split()) > 8, "a newcomer needs a sentence"


def test_models_list_names_package_and_licence() -> None:
    said = runner.invoke(app, ["models", "list"])
    assert said.exit_code == 0
    assert "smollm2-135m-instruct" in said.output
    assert "Apache-2.0" in said.output


def test_axis_writes_the_artefact_and_shows_integrity(run_folder: Path) -> None:
    said = runner.invoke(app, ["axis", str(run_folder)])
    assert said.exit_code == 0, said.output
    assert "1.0000" in said.output
    axis = AssistantAxis.load(run_folder / "axis.safetensors")
    assert axis.layers == (0, 1, 2)


def test_space_ranks_the_roles(run_folder: Path) -> None:
    said = runner.invoke(app, ["space", str(run_folder), "--layer", "1", "--top", "3"])
    assert said.exit_code == 0, said.output
    assert said.output.index("role23") < said.output.index("role00")


def test_report_is_written(run_folder: Path) -> None:
    said = runner.invoke(app, ["report", str(run_folder)])
    assert said.exit_code == 0, said.output
    assert (run_folder / "report.html").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["axis", "nowhere"], ("nowhere", "extract")),
        (["extract", "--out", "x", "--model", "smolm2-135m-instruct"], ("smollm2-135m-instruct", "Did you mean")),
        (["models", "get", "smolm"], ("Unknown", "smollm2-135m-instruct")),
        (["space", "{run}", "--layer", "7"], ("7", "0 to 2")),
        (["axis", "{run}", "--method", "pca"], ("pca", "contrast")),
    ],
)
def test_mistakes_are_answered_without_traceback(
    arguments: list[str],
    words: tuple[str, ...],
    run_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", ["assistant-axis", *(a.replace("{run}", str(run_folder)) for a in arguments)])
    with pytest.raises(SystemExit) as stopped:
        main()
    said = " ".join(capsys.readouterr().err.split())
    assert stopped.value.code == 1
    assert "Traceback" not in said
    for word in words:
        assert word in said


def test_layers_are_parsed() -> None:
    assert parse_layers(None) is None
    assert parse_layers("18") == (18,)
    assert parse_layers("12,18") == (12, 18)
    assert parse_layers("3:6,9") == (3, 4, 5, 9)
    assert parse_layers("0.5,-1") == (0.5, -1)
    for wrong in ("a", "3-6", "6:3", "3:"):
        with pytest.raises(SettingError, match="20:28"):
            parse_layers(wrong)


@pytest.mark.real
def test_extract_axis_and_project_on_the_real_model(tmp_path: Path) -> None:
    """A newcomer's path through the command line, on a few roles."""
    roles = "summarizer,accountant,teacher,pirate,ghost,eldritch"
    out = str(tmp_path / "run")
    said = runner.invoke(app, ["extract", "--out", out, "--roles", roles, "--prompts", "1", "--questions", "2"])
    assert said.exit_code == 0, said.output
    assert runner.invoke(app, ["axis", out]).exit_code == 0
    chat = tmp_path / "chat.json"
    chat.write_text(
        json.dumps(
            [{"role": "user", "content": "Who are you?"}, {"role": "assistant", "content": "I am an AI assistant."}]
        )
    )
    said = runner.invoke(app, ["project", str(chat), "--axis", out])
    assert said.exit_code == 0, said.output
    assert "centred" in said.output
