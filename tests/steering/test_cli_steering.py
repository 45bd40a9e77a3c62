"""The commands, on files of a small random model that is loaded in place of a named one."""

import json

import pytest
import torch
import typer
from typer.testing import CliRunner

from assistant_axis.cli import steering
from assistant_axis.errors import SettingError
from assistant_axis.models import loading
from assistant_axis.steering.formats import load_intervention, save_intervention
from assistant_axis.steering.interventions import Add, Cap

run = CliRunner()
app = typer.Typer()
app.command()(steering.steer)
app.add_typer(steering.app_cap, name="cap")


@pytest.fixture
def files(tiny, axis, tmp_path, monkeypatch):
    monkeypatch.setattr(loading, "load_model", lambda *_a, **_k: tiny)
    axis.save(tmp_path / "axis.safetensors")
    return tmp_path


def said(*args):
    result = run.invoke(app, [str(a) for a in args], catch_exceptions=False, env={"COLUMNS": "160"})
    assert result.exit_code == 0, result.output
    return result.output


def test_steer_and_apply(files):
    out = said("steer", "who", "-a", files / "axis.safetensors", "-d", "-0.25", "--max-new-tokens", "4")
    assert "unsteered" in out
    assert "away from the Assistant" in out
    out = said("cap", "apply", "who", "-a", files / "axis.safetensors", "-l", "1:3", "--max-new-tokens", "4")
    assert "keep ⟨h, v̂⟩ ≥ 1.5" in out
    with pytest.raises(SettingError, match="--cap"):
        said("cap", "apply", "who")


def test_replay(files):
    path = files / "talk.json"
    path.write_text(json.dumps({"messages": [{"role": "user", "content": "a"}]}))
    out = said(
        "cap",
        "replay",
        path,
        "-a",
        files / "axis.safetensors",
        "-l",
        "2",
        "--max-new-tokens",
        "4",
        "-o",
        files / "r.png",
    )
    assert "Projections at layer 2" in out
    assert (files / "r.png").stat().st_size > 1000


def test_import_and_export(files, axis):
    cap = files / "cap.safetensors"
    save_intervention(cap, Cap(axis, floor=1.0, layers=[1, 2]))
    said("cap", "export", cap, "-o", files / "c.pt", "--name", "layers_1:3-p0.25")
    said("cap", "import", files / "c.pt", "-o", files / "again.safetensors", "-e", "layers_1:3-p0.25")
    again = load_intervention(files / "again.safetensors")
    assert isinstance(again, Cap)
    assert again.thresholds(2)[0] == 1.0
    assert torch.allclose(again.direction.unit, Cap(axis, layers=[1, 2]).direction.unit[[1, 2]], atol=1e-6)
    save_intervention(files / "add.safetensors", Add(axis, 1.0, layers=[1]))
    said("cap", "export", files / "add.safetensors", "-o", files / "v.gguf", "--hint", "llama")
    said("cap", "import", files / "v.gguf", "-o", files / "v.safetensors")
    with pytest.raises(SettingError, match="caps go to"):
        said("cap", "export", cap, "-o", files / "x.gguf")
    with pytest.raises(SettingError, match="layers_1:3"):
        said("cap", "import", files / "c.pt", "-o", files / "z")
