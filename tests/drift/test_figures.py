"""The pictures of drift: what is drawn, in what units, and what is said instead of drawing nonsense."""

from typing import Any

import matplotlib as mpl
import numpy as np
import pytest

from assistant_axis.drift.predict import Exchanges
from assistant_axis.drift.simulate import SimulatedTurn, Simulation
from assistant_axis.drift.trajectory import trajectory
from assistant_axis.errors import SettingError
from assistant_axis.plots.drift import domain_traces, drift_tokens, drift_trace, message_map


def said(figure: Any) -> str:
    figure.draw_without_rendering()
    return "\n".join(t.get_text() for t in figure.findobj(match=mpl.text.Text))  # type: ignore[attr-defined]


def test_traces_beside_each_other_share_their_scale(tiny_model: Any, tiny_axis: Any, talk: Any) -> None:
    one = trajectory(tiny_model, tiny_axis, talk, 1)
    named = {"uncapped": one, "capped": one}
    assert len(drift_trace(named).axes) == 1
    figure = drift_trace(named, floor=0.5, side_by_side=True)
    assert len(figure.axes) == 2
    assert figure.axes[0].get_ylim() == figure.axes[1].get_ylim()
    for word in ("uncapped", "capped", "cap floor 0.5", "default persona", "layer 1"):
        assert word in said(figure)
    drawn = figure.axes[0].lines[1].get_ydata()
    np.testing.assert_allclose(np.asarray(drawn), one.means().numpy(), rtol=1e-6)


def test_no_band_for_an_axis_of_another_span(tiny_model: Any, axis_of: Any, talk: Any) -> None:
    trace = trajectory(tiny_model, axis_of(tiny_model, span="header"), talk, 1)
    assert "default persona" not in said(drift_trace(trace))


@pytest.mark.parametrize("circuitsvis", [False, True])
def test_tokens_in_colour(tiny_model: Any, tiny_axis: Any, talk: Any, circuitsvis: bool) -> None:
    trace = trajectory(tiny_model, tiny_axis, talk, [1, 2], users=True)
    view = drift_tokens(trace, layer=2, circuitsvis=circuitsvis)
    assert talk[2]["content"] in str(view)
    assert ("<iframe" in view._repr_html_()) == circuitsvis
    answers = drift_tokens(trace, role="assistant")
    assert talk[1]["content"] not in str(answers)
    with pytest.raises(SettingError, match="tool"):
        drift_tokens(trace, role="tool")


def test_colours_are_centred_and_notes_say_the_number(tiny_model: Any, tiny_axis: Any, talk: Any) -> None:
    trace = trajectory(tiny_model, tiny_axis, talk[1:3], 1)
    view = drift_tokens(trace)
    values, center = trace.turns[0].tokens[0], float(trace.center[0])
    assert len(view.tokens) == len(values)  # type: ignore[union-attr]
    for token, value in zip(view.tokens, values.tolist(), strict=True):  # type: ignore[union-attr]
        assert token.note.startswith(f"{value:+.2f} raw")
        assert (token.hue == 212) == (value >= center)


def test_a_character_of_several_tokens_is_shown_whole(tiny_model: Any, tiny_axis: Any) -> None:
    text = "héllo 🙂 日本"
    trace = trajectory(
        tiny_model, tiny_axis, [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": text}]
    )
    assert "".join(trace.turns[0].pieces) == text
    assert len(trace.turns[0].pieces) == trace.turns[0].n_tokens


def test_domains_and_messages() -> None:
    turns = tuple(
        SimulatedTurn(f"{d}-{c}", d, "p", t, "m", "a", (1,), "stop", 1.0 * c, 1.0 * c, 0.1, 50.0)
        for d in ("therapy", "coding")
        for c in range(12 if d == "therapy" else 3)
        for t in range(2)
    )
    held = Simulation(turns, {"layer": 1, "model": "m", "user": "scripted"})
    text = said(domain_traces(held))
    assert "therapy (n = 12)" in text
    assert "coding" not in text, "a domain under ten conversations is dropped"
    assert "10 conversations" in said(domain_traces(Simulation(turns[-6:], held.conditions)))
    exchanges = Exchanges.of(held)
    places = np.random.default_rng(0).normal(size=(len(exchanges), 2))
    assert "raw projection of the next answer" in said(message_map(exchanges, places))
    with pytest.raises(SettingError, match="places"):
        message_map(exchanges, places[:-1])
