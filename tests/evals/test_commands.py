"""The commands of `assistant-axis eval`, and what they leave in a folder."""

import csv
import json
from typing import Any

import pytest
from typer.testing import CliRunner

from assistant_axis.cli.evals import app
from assistant_axis.errors import DatasetError, SettingError, UnknownNameError
from assistant_axis.evals.saving import save_results
from assistant_axis.evals.susceptibility import susceptibility
from assistant_axis.models import loading
from assistant_axis.steering.formats import save_intervention
from assistant_axis.steering.interventions import Cap

PNG = b"\x89PNG"


@pytest.fixture
def capped(tiny_model, tiny_direction, tmp_path, monkeypatch):
    monkeypatch.setattr(loading, "load_model", lambda *_a, **_k: tiny_model)
    return save_intervention(tmp_path / "cap.safetensors", Cap(tiny_direction, floor=0.2, layers=[1, 2]))


def run(*words):
    return CliRunner().invoke(app, [str(w) for w in words])


def test_jailbreaks(capped, tmp_path):
    out = tmp_path / "out"
    done = run("jailbreaks", "--cap", capped, "--limit", 4, "--max-new-tokens", 4, "--out", out)
    assert done.exit_code == 0, done.output
    said = json.loads((out / "jailbreaks.json").read_text())
    assert {k: len(v) for k, v in said["answers"].items()} == {"bare": 4, "baseline": 4, "steered": 4}
    with (out / "jailbreaks.csv").open(newline="") as file:
        assert [dict(r) for r in csv.DictReader(file)] == [{"p (McNemar)": "", **r} for r in said["table"]]
    assert (out / "jailbreaks.md").read_text().startswith("| share of | bare question |")
    assert (out / "jailbreaks.png").read_bytes().startswith(PNG)
    kept = sorted(f.name for f in (out / "answers").iterdir())
    assert kept == ["bare.answers.jsonl", "baseline.answers.jsonl", "steered.answers.jsonl"]


def test_public_sets_under_roles(capped, tmp_path):
    (tmp_path / "s.csv").write_text("category,source,forbidden_prompt\nc,x,What is it?\nc,x,How is it?\n")
    asked = ["--data", tmp_path / "s.csv", "--format", "strongreject", "--roles", "demon, trickster"]
    done = run("jailbreaks", *asked, "--cap", capped, "--max-new-tokens", 2, "--out", tmp_path)
    assert done.exit_code == 0, done.output
    said = json.loads((tmp_path / "jailbreaks.json").read_text())["answers"]["baseline"]
    assert [r["id"].split("/")[0] for r in said] == ["demon"] * 2 + ["trickster"] * 2


def test_report(capped, tmp_path):
    out = tmp_path / "out"
    asked = ["--cap", capped, "--limit", 3, "--max-new-tokens", 3, "--max-cost", 1.0, "--label", "other"]
    done = run("report", *asked, "--out", out)
    assert done.exit_code == 0, done.output
    said = json.loads((out / "report.json").read_text())
    # Three tokens of a random model are labelled by chance: chosen is the cap if it lowered the rate, else nothing.
    fell = said["searched"][0]["harm"]["change"] < 0
    assert said["chosen"] == ("cap" if fell else None)
    assert [r["half"] for r in said["table"]] == ["search"] + ["held out"] * 2 * fell
    assert [e["name"] for e in said["held out"]] == ["cap", "random direction"] * fell
    assert (out / "report.png").read_bytes().startswith(PNG)


def test_bad_words(capped, tmp_path):
    assert isinstance(run("report", "--cap", capped, "--label", "othr", "--out", tmp_path).exception, UnknownNameError)
    assert isinstance(run("report", "--cap", capped, "--cap", capped, "--out", tmp_path).exception, SettingError)
    assert isinstance(run("jailbreaks", "--limit", 0, "--out", tmp_path).exception, SettingError)
    assert "cannot tell harm" in str(run("report", "--cap", capped, "--out", tmp_path).exception)
    both = run("jailbreaks", "--judge-model", "a", "--judge-api", "b", "--out", tmp_path).exception
    assert "one judge labels" in str(both)
    assert isinstance(run("jailbreaks", "--format", "row", "--out", tmp_path).exception, UnknownNameError)
    bad = tmp_path / "bad.csv"
    bad.write_text("id,question\n1,What?\n")
    done = run("jailbreaks", "--data", bad, "--out", tmp_path)
    assert isinstance(done.exception, DatasetError)
    assert "bad.csv, line 2" in str(done.exception)


def test_finished_doses_are_not_asked_again(tiny_model, tiny_direction, tmp_path, monkeypatch):
    settings: dict[str, Any] = {
        "prompts": 2,
        "max_new_tokens": 4,
        "layer": 2,
        "keep": tmp_path,
        "labeller": lambda a: ["other"] * len(a),
    }
    whole = susceptibility(tiny_model, tiny_direction, ["lawyer"], doses=(0.0, -1.0), **settings)
    kept = tmp_path / "answers-1.jsonl"
    kept.write_bytes(b"\n".join(kept.read_bytes().split(b"\n")[:7])[:-3])  # as if it had stopped in the sixth answer
    asked = []
    generate = tiny_model.generate
    monkeypatch.setattr(tiny_model, "generate", lambda chats, **k: asked.append(len(chats)) or generate(chats, **k))
    assert susceptibility(tiny_model, tiny_direction, ["lawyer"], doses=(0.0, -1.0), **settings) == whole
    assert asked == [5]
    with pytest.raises(SettingError, match="other settings"):
        susceptibility(tiny_model, tiny_direction, ["lawyer"], doses=(0.0,), seed=5, **settings)
    (tmp_path / "answers+0.jsonl").write_text("{\n")
    with pytest.raises(SettingError, match="cannot be read"):
        susceptibility(tiny_model, tiny_direction, ["lawyer"], doses=(0.0,), **settings)


@pytest.mark.real
def test_susceptibility(real_model, tmp_path, monkeypatch):
    monkeypatch.setattr(loading, "load_model", lambda *_a, **_k: real_model)
    asked = ["--axis", "smollm2-135m-instruct", "--roles", 2, "--pairs", 2, "--dose", 0, "--dose", -0.3]
    done = run("susceptibility", *asked, "--max-new-tokens", 6, "--out", tmp_path)
    assert done.exit_code == 0, done.output
    said = json.loads((tmp_path / "susceptibility.json").read_text())
    assert [(r["dose"], r["answers"]) for r in said["table"]] == [("+0", "4"), ("-0.3", "4")]
    assert (tmp_path / "susceptibility.png").read_bytes().startswith(PNG)
    assert len((tmp_path / "answers.jsonl").read_text().splitlines()) == 9


def test_a_table_with_holes(tmp_path):
    files = save_results(tmp_path, "t", [{"a": "1"}, {"a": "2", "b": "x, y"}], {"n": 2})
    assert [f.name for f in files] == ["t.json", "t.csv", "t.md"]
    assert files[1].read_bytes() == b'a,b\r\n1,\r\n2,"x, y"\r\n'
    assert files[2].read_text() == "| a | b |\n| --- | --- |\n| 1 |  |\n| 2 | x, y |\n"
