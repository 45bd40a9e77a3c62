"""The commands of drift on the tiny model; on the embedded model they are run by `test_real.py`."""

import json
import re
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from assistant_axis.cli.main import app
from assistant_axis.drift.simulate import Simulation
from assistant_axis.errors import ArtefactMismatchError, ConversationError, SettingError

Run = Callable[..., str]


@pytest.fixture
def run(tiny_model: Any, tiny_axis: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs a command with the tiny model and its axis, and gives what it printed; errors are raised."""
    monkeypatch.setattr("assistant_axis.models.loading.load_model", lambda *_a, **_k: tiny_model)
    monkeypatch.setenv("COLUMNS", "200")
    tiny_axis.save(tmp_path / "axis.safetensors")

    def call(*arguments: str, input: str | bytes | None = None, axis: bool = True) -> str:
        with_axis = ["--axis", str(tmp_path / "axis.safetensors")] if axis else []
        said = CliRunner().invoke(app, [*arguments, *with_axis], input=input)
        if said.exception is not None:
            raise said.exception
        return said.output

    return call


def jsonl(conversations: Iterable[Any]) -> str:
    return "".join(json.dumps({"messages": c}) + "\n" for c in conversations)


def test_trace_writes_turns_figure_and_tokens(run: Run, talk: Any, tmp_path: Path) -> None:
    file = tmp_path / "talks.jsonl"
    file.write_text(jsonl([talk, talk[1:3]]))
    out, figure, tokens = tmp_path / "rows.jsonl", tmp_path / "trace.png", tmp_path / "tokens.html"
    said = run(
        "drift", "trace", str(file), "--layer", "1", "--users", "--cap", "60", "--side-by-side",
        "--out", str(out), "--figure", str(figure), "--tokens", str(tokens),
    )  # fmt: skip
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert len(rows) == 2 * (5 + 2)
    assert {r["under"] for r in rows} == {"uncapped", "cap at percentile 60"}
    assert "talks:1" in said
    assert figure.read_bytes().startswith(b"\x89PNG")
    assert "Water that flows" not in tokens.read_text(), "tokens are marked up one by one"
    assert "aa-tokens" in tokens.read_text()


def test_trace_reads_standard_input_and_circuitsvis(run: Run, talk: Any, tmp_path: Path) -> None:
    tokens = tmp_path / "tokens.html"
    said = run("drift", "trace", "-", "--tokens", str(tokens), "--circuitsvis", input=json.dumps(talk))
    assert "assistant" in said
    assert "CircuitsVis" in tokens.read_text()


def test_bad_conversations_stop_the_trace_or_are_named(run: Run, talk: Any, tmp_path: Path) -> None:
    file = tmp_path / "talks.jsonl"
    bad = '{"messages": [{"role": "user", "content": 3}]}\nno json\n' + jsonl([talk[1:2]])
    file.write_text(jsonl([talk]) + bad + jsonl([talk]))
    out = tmp_path / "rows.jsonl"
    with pytest.raises(ConversationError, match=r"talks\.jsonl:2"):
        run("drift", "trace", str(file), "--out", str(out))
    assert not out.exists()
    said = run("drift", "trace", str(file), "--skip", "--out", str(out))
    assert "3 conversations were left out" in said
    for place in ("talks.jsonl:2", "talks.jsonl:3", "talks:4"):
        assert place in said
    assert {json.loads(x)["conversation"] for x in out.read_text().splitlines()} == {"talks:1", "talks:5"}
    file.write_text(bad[: bad.index("\n")])
    with pytest.raises(ConversationError, match="No conversation"):
        run("drift", "trace", str(file), "--skip")


def test_simulate_predict_and_score(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "run"
    said = run("drift", "simulate", "--out", str(out), "--per-domain", "3", "--turns", "3", "--tokens", "4")
    assert "No domain has 10 conversations" in said
    assert "therapy and philosophy minus coding and writing" in said
    assert (out / "domains.png").is_file()
    assert len({t.conversation for t in Simulation.load(out).turns}) == 12

    class Letters:
        def encode(self, messages: list[str], **_options: Any) -> np.ndarray:
            rows = np.array([np.random.default_rng(sum(map(ord, m))).normal(size=8) for m in messages])
            return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    monkeypatch.setattr("assistant_axis.drift.embed._load", lambda *_a: Letters())
    for method in ("kmeans", "hdbscan"):
        said = run(
            "drift", "predict", str(out), "--out", str(out), "--clusters", "3", "--method", method,
            "--permutations", "9", "--message", "Are you alive?", axis=False,
        )  # fmt: skip
        assert re.search(r"next +│ +\d+", said)
        assert "Are you alive?" in said
        assert (out / "messages.png").is_file()
        assert json.loads((out / "clusters.json").read_text())[0]["messages"]
    again = run("drift", "predict", str(out / "predictor.safetensors"), "--message", "Are you alive?", axis=False)
    assert again.split("raw")[0] in said
    with pytest.raises(SettingError, match="--message"):
        run("drift", "predict", str(out / "predictor.safetensors"), axis=False)
    chatted = run(
        "chat", "--tokens", "4", "--predictor", str(out / "predictor.safetensors"), input="Are you alive?\n/quit\n"
    )
    assert again.split("raw")[0].strip() in chatted


def test_behaviour_with_adherence_and_with_labels(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "run"
    arguments = ("drift", "behaviour", "--out", str(out), "--roles", "6", "--tokens", "4")
    said = run(*arguments)
    assert "bootstrap over" in said
    assert "random directions" in said
    rows = [json.loads(x) for x in (out / "outcomes.jsonl").read_text().splitlines()]
    assert len({r["role"] for r in rows}) >= 5
    assert (out / "behaviour.png").is_file()
    labels = tmp_path / "labels.jsonl"
    labels.write_text(
        "".join(json.dumps({"conversation": r["conversation"], "label": k % 2}) + "\n" for k, r in enumerate(rows))
    )
    assert "label of the second answer" in run(*arguments, "--labels", str(labels))


def test_an_axis_of_another_model_is_refused(run: Run, tiny_axis: Any, talk: Any, tmp_path: Path) -> None:
    conditions = replace(tiny_axis.conditions, fingerprint="another", model="other")
    replace(tiny_axis, conditions=conditions).save(tmp_path / "axis.safetensors")
    for command in (("drift", "trace", "-"), ("chat",), ("drift", "simulate", "--out", str(tmp_path / "x"))):
        with pytest.raises(ArtefactMismatchError, match="other"):
            run(*command, input=json.dumps(talk))


def test_settings_are_refused_by_name(run: Run, talk: Any, tmp_path: Path) -> None:
    for command, word in (
        (("drift", "trace", "-", "--span", "prompt"), "--span"),
        (("drift", "trace", "-", "--window", "2"), "window=2"),
        (("drift", "simulate", "--out", "x", "--user", "nobody"), "--user"),
    ):
        with pytest.raises(SettingError, match=word):
            run(*command, input=json.dumps(talk))
    with pytest.raises(FileNotFoundError):
        run("drift", "trace", str(tmp_path / "none.json"))
