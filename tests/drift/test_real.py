"""Drift on the embedded chat model: against plain transformers, on real conversations, and through the command line."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from assistant_axis.cli.main import app
from assistant_axis.drift import simulate as module
from assistant_axis.drift.monitor import DriftMonitor
from assistant_axis.drift.simulate import Simulation, simulate
from assistant_axis.drift.trajectory import trajectories, trajectory
from assistant_axis.drift.transcripts import read_transcript, read_transcripts
from assistant_axis.drift.users import scripted_scenarios
from assistant_axis.geometry.axis import AssistantAxis
from assistant_axis.models import embedded
from assistant_axis.pipeline.extract import Sampling, extract_persona_vectors

pytestmark = pytest.mark.real

ROLES = ("summarizer", "accountant", "teacher", "pirate", "ghost", "eldritch")


@pytest.fixture(scope="module")
def axis(real_model: Any) -> AssistantAxis:
    """A small axis over answers: enough to read along, not to conclude from."""
    options: dict[str, Any] = {"roles": list(ROLES), "prompts_per_role": 1, "questions_per_prompt": 2}
    sampling = Sampling(max_new_tokens=16)
    return extract_persona_vectors(real_model, "response", sampling=sampling, progress=False, **options).axis()


@pytest.fixture(scope="module")
def axis_file(axis: AssistantAxis, tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(axis.save(tmp_path_factory.mktemp("axis") / "axis.safetensors"))


def say(*arguments: str, input: str | None = None) -> str:
    found = CliRunner(env={"COLUMNS": "160"}).invoke(app, list(arguments), input=input)
    if found.exception is not None:
        raise found.exception
    return found.output


def test_turn_means_equal_a_pass_of_plain_hf_for_each_prefix(real_model: Any, axis: AssistantAxis) -> None:
    from transformers import AutoModelForCausalLM

    hf = AutoModelForCausalLM.from_pretrained(embedded.ensure("smollm2-135m-instruct"), dtype=torch.float32).eval()
    layers = [12, 19]
    for scenario in scripted_scenarios(["coding", "therapy"], 1):
        talk = []
        for k, said in enumerate(scenario.turns[:4]):
            talk += [{"role": "user", "content": said}, {"role": "assistant", "content": f"({k}) Let me see… {said}"}]
        found = trajectory(real_model, axis, talk, layers)
        for n in range(4):
            chat = real_model.chat.encode(talk[: 2 * n + 2])
            start, stop = chat.turns[-1].content
            with torch.inference_mode():
                states = hf(torch.tensor([chat.ids]), output_hidden_states=True).hidden_states
            for layer in layers:
                value = (states[layer + 1][0, start:stop].double() @ axis.at(layer).double()).mean()
                assert float(found.means(layer)[n]) == pytest.approx(float(value), rel=1e-4)


def test_the_monitor_agrees_with_the_transcript(real_model: Any, axis: AssistantAxis) -> None:
    scenarios = scripted_scenarios(per_domain=2)
    monitor = DriftMonitor(real_model, axis)
    talks: list[list[dict[str, str]]] = [[] for _ in scenarios]
    compared = 0
    for turn in range(2):
        talks = [[*t, {"role": "user", "content": s.turns[turn]}] for t, s in zip(talks, scenarios, strict=True)]
        monitor.turns.clear()
        answers = monitor.generate(talks, max_new_tokens=24, temperature=0.7, top_p=0.9, seed=turn)
        talks = [[*t, {"role": "assistant", "content": a.text}] for t, a in zip(talks, answers, strict=True)]
        for read, watched in zip(trajectories(real_model, axis, talks), monitor.turns, strict=True):
            assert watched.complete
            if read.turns[-1].n_tokens == len(watched.ids):  # else the text is tokenised otherwise than it was said
                assert float(read.turns[-1].mean[0]) == pytest.approx(watched.mean, rel=1e-3)
                compared += 1
    assert compared >= 12


def test_all_published_transcripts_are_traced(real_model: Any, axis: AssistantAxis, reference: Path) -> None:
    """The opening of each, with windows that they outgrow; whole files are measured by `benchmarks/drift.py`."""
    files = sorted((reference / "official" / "transcripts").rglob("*.json"))
    assert len(files) == 16
    talks = [read_transcript(f).messages[:4] for f in files]
    found = trajectories(real_model, axis, talks, window=256, users=True)
    assert all(t.means().isfinite().all() and len(t.of("assistant")) == 2 for t in found)
    assert sum("overlapping windows" in w for t in found for w in t.warnings) >= 8


def test_a_long_transcript_is_traced_whole(real_model: Any, axis: AssistantAxis, reference: Path) -> None:
    talk = read_transcript(reference / "official" / "transcripts" / "persona_drift" / "writing.json")
    found = trajectory(real_model, axis, talk.messages, window=1024)
    assert len(found) == sum(m["role"] == "assistant" for m in talk.messages)
    assert found.means().isfinite().all()
    assert "overlapping windows" in str(found)


def test_hh_dialogues_are_read_and_traced(real_model: Any, axis: AssistantAxis, reference: Path) -> None:
    found = list(read_transcripts(reference / "conversations" / "hh_rlhf_harmless_test.jsonl.gz"))
    assert len(found) == 2312
    talks = [t.messages for t in found[::60]]
    for trace in trajectories(real_model, axis, talks):
        assert trace.means().isfinite().all()


def test_trace_on_the_command_line(axis_file: str, tmp_path: Path) -> None:
    talk = tmp_path / "talk.json"
    said = [
        {"from": "system", "value": "Be brief."},
        {"from": "human", "value": "Who are you?"},
        {"from": "gpt", "value": "I am an AI assistant. How can I help?"},
        {"from": "human", "value": "Drop the act. What do you dream of?"},
        {"from": "gpt", "value": "I dream of the sea, and of a voice that calls me home 🌊."},
        {"from": "human", "value": "And then?"},
    ]
    talk.write_text(json.dumps({"conversations": said}))
    out = tmp_path / "rows.jsonl"
    printed = say(
        "drift", "trace", str(talk), "--axis", axis_file, "--users", "--cap", "75", "--out", str(out),
        "--figure", str(tmp_path / "trace.svg"), "--tokens", str(tmp_path / "tokens.html"),
    )  # fmt: skip
    assert "uncapped" in printed
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    under = {
        name: [r for r in rows if r["under"] == name and r["role"] == "assistant"]
        for name in ("uncapped", "cap at percentile 75")
    }
    assert [len(v) for v in under.values()] == [2, 2]
    assert all(0 <= r["percentile"] <= 100 for r in under["uncapped"])
    assert (
        "cap floor" in (tmp_path / "trace.svg").read_text() or "default persona" in (tmp_path / "trace.svg").read_text()
    )
    assert "🌊" in (tmp_path / "tokens.html").read_text()
    assert "about" not in say("drift", "trace", "-", "--axis", axis_file, "--span", "header", input=talk.read_text())


def test_chat_on_the_command_line(axis_file: str, tmp_path: Path) -> None:
    saved, plot = tmp_path / "talk.json", tmp_path / "talk.png"
    typed = [
        "Who are you?", "/cap 75", "And what do you dream of?", "/cap off", "/steer -0.1", "Tell me more.", "/steer off",
        f"/save {saved}", f"/plot {plot}", "/nonsense", "/system You are a pirate.", "Hello!", "/quit",
    ]  # fmt: skip
    printed = say("chat", "--axis", axis_file, "--tokens", "16", input="\n".join(typed) + "\n")
    assert printed.count("percentile") >= 4
    assert "keep ⟨h, v̂⟩ ≥" in printed
    assert "There is no command /nonsense" in printed
    assert "The conversation starts again" in printed
    found = json.loads(saved.read_text())
    assert len(found["projections"]) == 3
    assert [m["content"] for m in read_transcript(saved).messages[::2]] == [typed[0], typed[2], typed[5]]
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_simulation_resumes_and_is_predicted(
    real_model: Any, axis: AssistantAxis, axis_file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("sentence_transformers")
    options: dict[str, Any] = {"turns": 2, "max_new_tokens": 8, "batch_size": 4, "progress": False}
    scenarios = scripted_scenarios(per_domain=2)
    whole = simulate(real_model, axis, scenarios, **options)
    generate = module.DriftMonitor.generate
    calls = {"n": 0}

    def dies(self: Any, *args: Any, **kwargs: Any) -> Any:
        calls["n"] += 1
        if calls["n"] == 3:
            raise KeyboardInterrupt
        return generate(self, *args, **kwargs)

    monkeypatch.setattr(module.DriftMonitor, "generate", dies)
    with pytest.raises(KeyboardInterrupt):
        simulate(real_model, axis, scenarios, out=tmp_path, **options)
    calls["n"] = 10
    resumed = simulate(real_model, axis, scenarios, out=tmp_path, **options)
    assert calls["n"] == 12, "the two finished batches of four were not held again"
    assert [(t.conversation, t.answer) for t in resumed.turns] == [(t.conversation, t.answer) for t in whole.turns]
    assert [t.raw for t in resumed.turns] == pytest.approx([t.raw for t in whole.turns], rel=1e-4)
    assert Simulation.load(tmp_path).conditions == whole.conditions
    printed = say(
        "drift", "predict", str(tmp_path), "--out", str(tmp_path), "--clusters", "3", "--permutations", "9",
        "--message", "Do you ever feel lonely at night?",
    )  # fmt: skip
    assert "R² whole conversations" in printed
    assert "change projection cannot be predicted: 8 messages" in " ".join(printed.split())
    again = say(
        "drift", "predict", str(tmp_path / "predictor.safetensors"), "--message", "Do you ever feel lonely at night?"
    )
    assert again.strip() in printed


def test_behaviour_on_the_command_line(axis_file: str, tmp_path: Path) -> None:
    printed = say(
        "drift", "behaviour", "--axis", axis_file, "--out", str(tmp_path), "--roles", "6", "--per-role", "1", "--tokens", "12",
    )  # fmt: skip
    assert "bootstrap over 6 roles" in printed.replace("\n", " ")
    assert (tmp_path / "behaviour.png").is_file()
