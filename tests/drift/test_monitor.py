"""The monitor against the trajectory of the same tokens, thresholds, and the chat session."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from assistant_axis.activations.capture import capture_means
from assistant_axis.activations.spans import read_answer
from assistant_axis.drift.embed import Embedder
from assistant_axis.drift.monitor import Crossing, DriftMonitor, TokenReading
from assistant_axis.drift.predict import DriftPredictor
from assistant_axis.drift.session import ChatSession
from assistant_axis.drift.transcripts import read_transcript
from assistant_axis.errors import ArtefactMismatchError, SettingError

ASK = [[{"role": "user", "content": f"question {k} " * (k + 1)}] for k in range(5)]


def expected(model: Any, axis: Any, answer: Any, layer: int) -> float:
    """The mean of a second pass over prompt and answer, by the token ids as they were generated."""
    means = capture_means(model, [read_answer(answer.prompt_ids, answer.ids)], [layer])
    return float(axis.project(means[0], layer)[0])


@pytest.mark.parametrize("new", [1, 2, 12])
def test_every_token_is_read_once_whatever_ends_the_answer(tiny_model: Any, tiny_axis: Any, new: int) -> None:
    monitor = DriftMonitor(tiny_model, tiny_axis, 2)
    answers = monitor.generate(ASK, max_new_tokens=new, temperature=1.0, batch_size=2, seed=3)
    assert answers == tiny_model.generate(ASK, max_new_tokens=new, temperature=1.0, batch_size=2, seed=3)
    assert len(monitor.turns) == len(ASK)
    for answer, turn in zip(answers, monitor.turns, strict=True):
        assert turn.complete
        assert turn.ids == answer.ids
        if answer.ids:
            assert turn.mean == pytest.approx(expected(tiny_model, tiny_axis, answer, 2), rel=1e-3, abs=1e-5)


def test_a_block_watches_any_generation(tiny_model: Any, tiny_axis: Any) -> None:
    with DriftMonitor(tiny_model, tiny_axis, 1) as monitor:
        answer = tiny_model.generate(ASK[0], max_new_tokens=6)
        tiny_model.generate(ASK[1], max_new_tokens=6)
    assert len(monitor.turns) == 2
    first = monitor.turns[0]
    assert first.ids == answer.ids[: len(first.ids)]
    assert first.complete == (answer.finish_reason == "stop")


def test_thresholds_call_back(tiny_model: Any, tiny_axis: Any) -> None:
    seen: list[Crossing] = []
    tokens: list[TokenReading] = []
    monitor = DriftMonitor(tiny_model, tiny_axis, threshold=1e9, on_cross=seen.append, on_token=tokens.append, smooth=3)
    answer = monitor.generate(ASK[0], max_new_tokens=8)
    assert len(tokens) == len(answer.ids)
    assert [c.direction for c in seen] == (["below"] if len(tokens) >= 3 else [])
    assert seen == monitor.crossings
    never = DriftMonitor(tiny_model, tiny_axis, threshold=-1e9, on_cross=seen.append)
    never.generate(ASK[0], max_new_tokens=8)
    assert not never.crossings


def test_before_and_after_a_cap(tiny_model: Any, tiny_axis: Any) -> None:
    from assistant_axis.steering.interventions import Add

    values = {}
    for reading in ("pre", "post"):
        monitor = DriftMonitor(tiny_model, tiny_axis, 1, reading=reading)
        with tiny_model.steered(Add(tiny_axis, 3.0, layers=[1], unit="raw")):
            monitor.generate(ASK[0], max_new_tokens=5)
        values[reading] = monitor.turns[0].tokens
    torch.testing.assert_close(values["post"], values["pre"] + 3.0, rtol=1e-4, atol=1e-4)


def test_an_axis_of_another_model_is_refused(tiny_model: Any, tiny_axis: Any) -> None:
    other = replace(tiny_axis, conditions=replace(tiny_axis.conditions, fingerprint="another"))
    with pytest.raises(ArtefactMismatchError, match="another"):
        DriftMonitor(tiny_model, other)
    assert DriftMonitor(tiny_model, other, force=True).layer == tiny_model.profile.layer


def test_the_meter_does_without_percentiles_of_another_span(tiny_model: Any, tiny_axis: Any, axis_of: Any) -> None:
    own = ChatSession(tiny_model, tiny_axis, 1)
    assert not own.monitor.notes
    assert "percentile 100" in own.meter(99.0)
    assert own.meter(99.0).startswith("█" * 24)
    session = ChatSession(tiny_model, axis_of(tiny_model, span="header"), 1)
    assert "'header'" in session.monitor.notes[0]
    assert session.monitor.percentile(0.0) != session.monitor.percentile(0.0)
    assert "percentile" not in session.meter(1.0)
    session.projections = [1.0]
    length = float(session.axis.norms[1])
    assert session.meter(1.0).startswith("█" * 12 + "░")
    assert session.meter(1.0 + length).startswith("█" * 24)
    assert "-3.0 from the first answer" in session.meter(-2.0)


def test_a_predictor_speaks_before_the_answer(tiny_model: Any, tiny_axis: Any) -> None:
    class Sums:
        def encode(self, messages: list[str], **_options: Any) -> np.ndarray:
            return np.array([[1.0, float("dark" in m)] for m in messages])

    predictor = DriftPredictor(
        weights=torch.tensor([0.0, -10.0]),
        intercept=5.0,
        target="next",
        quantiles=torch.linspace(-4, 6, 101),
        embedder="sums",
        conditions={},
    )
    session = ChatSession(tiny_model, tiny_axis, 1, predictor=predictor, embedder=Embedder("sums", model=Sums()))
    assert "likely to pull the model away" in session.foresee("a dark night")
    assert "pull" not in session.foresee("a bug in my code")
    assert ChatSession(tiny_model, tiny_axis, 1).foresee("x") == ""


def test_wrong_settings(tiny_model: Any, tiny_axis: Any) -> None:
    with pytest.raises(SettingError, match="smooth"):
        DriftMonitor(tiny_model, tiny_axis, smooth=0)


def test_a_chat_session(tiny_model: Any, tiny_axis: Any, tmp_path: Path) -> None:
    session = ChatSession(tiny_model, tiny_axis, 1, max_new_tokens=6, temperature=1.0, seed=1)
    pieces: list[str] = []
    reply = session.handle("hello there", lambda text, _reading: pieces.append(text))
    assert reply.read is not None
    if session.projections:
        assert reply.text.startswith("".join(pieces))
        assert session.messages[-1] == {"role": "assistant", "content": reply.text}
    for line, said in (
        ("/cap 60", "Cap"),
        ("/cap off", "No cap"),
        ("/cap high", "Error"),
        ("/steer 0.1", "Add"),
        ("/steer off", "No steering"),
        ("/nothing", "no command"),
        ("/help", "/save"),
        ("/save", "Error"),
        ("", ""),
    ):
        assert said in session.handle(line).text
    assert session.in_force == []
    path = tmp_path / "talk.json"
    if session.projections:
        assert "Written" in session.handle(f"/save {path}").text
        assert json.loads(path.read_text())["projections"] == session.projections
        assert list(read_transcript(path).messages) == session.messages
        assert "Written" in session.handle(f"/plot {tmp_path / 'x.png'}").text
    assert "system prompt" in session.handle("/system You are a cat.").text.lower()
    assert session.messages == [{"role": "system", "content": "You are a cat."}]
    assert "Error" in session.handle("/plot").text
    assert "░" in session.meter(0.0)
    assert session.handle("/quit").quit
