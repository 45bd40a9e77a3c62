"""Trajectories against plain HF passes, windows, batches, and wrong input."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from assistant_axis.drift.trajectory import trajectories, trajectory
from assistant_axis.errors import ArtefactMismatchError, ConversationError, LayerError, SettingError


def by_hand(model: Any, hf: Any, axis: Any, messages: Any, layer: int) -> list[float]:
    """One forward pass of plain HF for each prefix that ends with an answer."""
    out = []
    for n in [k + 1 for k, m in enumerate(messages) if m["role"] == "assistant"]:
        chat = model.chat.encode(messages[:n])
        start, stop = chat.turns[-1].content
        with torch.no_grad():
            states = hf(torch.tensor([chat.ids]), output_hidden_states=True).hidden_states
        out.append(float((states[layer + 1][0, start:stop] @ axis.at(layer)).mean()))
    return out


def test_turn_means_equal_a_pass_for_each_prefix(tiny_model: Any, tiny_hf: Any, tiny_axis: Any, talk: Any) -> None:
    found = trajectory(tiny_model, tiny_axis, talk, [1, 2])
    for layer in (1, 2):
        expected = torch.tensor(by_hand(tiny_model, tiny_hf, tiny_axis, talk, layer))
        torch.testing.assert_close(found.means(layer), expected, rtol=1e-4, atol=1e-5)
        centre = tiny_axis.center()[layer]
        torch.testing.assert_close(found.means(layer, centered=True), expected - centre, rtol=1e-4, atol=1e-5)


def test_a_turn_keeps_tokens_pieces_error_and_percentile(tiny_model: Any, tiny_axis: Any, talk: Any) -> None:
    turn = trajectory(tiny_model, tiny_axis, talk, 2).turns[0]
    assert turn.content == talk[2]["content"]
    assert len(turn.pieces) == turn.n_tokens == turn.tokens.shape[1]
    assert float(turn.stderr[0]) == pytest.approx(float(turn.tokens[0].std()) / math.sqrt(turn.n_tokens))
    assert float(turn.percentile[0]) == pytest.approx(tiny_axis.rank(float(turn.mean[0]), 2))


def test_users_are_read_when_asked_and_a_last_user_turn_does_not_matter(
    tiny_model: Any, tiny_axis: Any, talk: Any
) -> None:
    assert [t.role for t in trajectory(tiny_model, tiny_axis, talk).turns] == ["assistant"] * 2
    roles = [t.role for t in trajectory(tiny_model, tiny_axis, talk, users=True).turns]
    assert roles == ["user", "assistant", "user", "assistant", "user"]
    short = trajectory(tiny_model, tiny_axis, talk[:-1], 1).means()
    torch.testing.assert_close(short, trajectory(tiny_model, tiny_axis, talk, 1).means(), rtol=1e-4, atol=1e-5)


def test_headers_match_the_header_span_of_capture(tiny_model: Any, axis_of: Any, talk: Any) -> None:
    axis = axis_of(tiny_model, span="header")
    found = trajectory(tiny_model, axis, talk, [1], span="header")
    assert len(found) == 3
    assert not found.warnings
    for n, stop in enumerate((2, 4, 6)):
        read = tiny_model.activations(talk[:stop], span="header", layers=[1])
        assert float(found.means()[n]) == pytest.approx(float(axis.project(read, 1)[0]), rel=1e-4, abs=1e-5)


def test_long_conversations_are_read_in_windows_and_say_so(tiny_model: Any, tiny_axis: Any) -> None:
    talk = []
    for k in range(12):
        talk += [{"role": "user", "content": f"question {k}"}, {"role": "assistant", "content": f"answer {k} is long"}]
    whole = trajectory(tiny_model, tiny_axis, talk, [1], users=True)
    cut = trajectory(tiny_model, tiny_axis, talk, [1], users=True, window=60)
    assert "overlapping windows" in cut.warnings[0]
    assert not whole.warnings
    assert [t.index for t in cut.turns] == [t.index for t in whole.turns]
    assert [t.n_tokens for t in cut.turns] == [t.n_tokens for t in whole.turns]
    torch.testing.assert_close(cut.turns[0].tokens, whole.turns[0].tokens, rtol=1e-4, atol=1e-5)


def test_a_batch_gives_what_single_conversations_give(tiny_model: Any, tiny_axis: Any, talk: Any) -> None:
    both = trajectories(tiny_model, tiny_axis, [talk, talk[1:3]], [1, 3])
    for one, messages in zip(both, (talk, talk[1:3]), strict=True):
        alone = trajectory(tiny_model, tiny_axis, messages, [1, 3])
        torch.testing.assert_close(one.means(3), alone.means(3), rtol=1e-4, atol=1e-5)


def test_readings_before_and_after_an_intervention(tiny_model: Any, tiny_axis: Any, talk: Any) -> None:
    from assistant_axis.steering.interventions import Add

    plain = trajectory(tiny_model, tiny_axis, talk, [1]).means()
    with tiny_model.steered(Add(tiny_axis, 2.0, layers=[1], unit="raw")):
        before = trajectory(tiny_model, tiny_axis, talk, [1], reading="pre").means()
        after = trajectory(tiny_model, tiny_axis, talk, [1], reading="post").means()
    torch.testing.assert_close(before, plain, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(after, plain + 2.0, rtol=1e-4, atol=1e-4)


def test_percentiles_of_another_kind_of_token_are_left_out(
    axis_of: Any, tiny_model: Any, tiny_axis: Any, talk: Any
) -> None:
    own = trajectory(tiny_model, tiny_axis, talk, users=True)
    assert not own.warnings
    assert own.percentiles().isfinite().all()
    assert own.percentiles(role="user").isnan().all(), "calibration is over answers"
    assert own.default_band.isfinite().all()
    header = axis_of(tiny_model, span="header")
    for axis, span, said in (
        (header, "response", "measured on 'header' tokens and these are 'response'"),
        (tiny_axis, "header", "measured on 'response' tokens and these are 'header'"),
        (replace(tiny_axis, calibration="none"), "response", "no calibration"),
    ):
        found = trajectory(tiny_model, axis, talk, span=span)
        assert found.percentiles().isnan().all()
        assert found.default_band.isnan().all()
        assert said in str(found)
        assert "nan" not in str(found)
        assert " –" in str(found)
    read = trajectory(tiny_model, header, talk, span="header")
    assert read.percentiles().isfinite().all()
    assert not read.warnings


def test_a_conversation_beyond_the_context_is_read_in_windows_by_default(tiny_model: Any, tiny_axis: Any) -> None:
    """No window is asked for: the model's own context is the limit, and it is said."""
    limit = tiny_model.max_length
    talk = [{"role": "system", "content": "Be brief."}]
    while len(tiny_model.chat.encode(talk).ids) <= limit + 40 if len(talk) > 1 else True:
        talk += [{"role": "user", "content": "what " * 40}, {"role": "assistant", "content": "word " * 60}]
    found = trajectory(tiny_model, tiny_axis, talk, 1)
    assert f"more than the window of {limit}" in found.warnings[0]
    assert len(found) == (len(talk) - 1) // 2
    assert found.means().isfinite().all()


def test_wrong_input_is_refused_by_name(tiny_model: Any, tiny_axis: Any, talk: Any) -> None:
    with pytest.raises(ConversationError, match="no assistant turn"):
        trajectory(tiny_model, tiny_axis, talk[:2])
    with pytest.raises(ConversationError, match="empty"):
        trajectory(tiny_model, tiny_axis, [{"role": "user", "content": " "}])
    for content in (3, None, ["x"]):
        with pytest.raises(ConversationError):
            trajectory(tiny_model, tiny_axis, [{"role": "user", "content": content}, talk[2]])
    with pytest.raises(ConversationError):
        trajectory(tiny_model, tiny_axis, [])
    with pytest.raises(ConversationError, match="unknown role"):
        trajectory(tiny_model, tiny_axis, [{"role": "narrator", "content": "x"}])
    with pytest.raises(LayerError):
        trajectory(tiny_model, tiny_axis, talk, 99)
    with pytest.raises(LayerError, match="was not read"):
        trajectory(tiny_model, tiny_axis, talk, 1).means(2)
    with pytest.raises(SettingError, match="reading"):
        trajectory(tiny_model, tiny_axis, talk, reading="during")
    other = replace(tiny_axis, conditions=replace(tiny_axis.conditions, fingerprint="another"))
    with pytest.raises(ArtefactMismatchError, match="another"):
        trajectory(tiny_model, other, talk)
    assert trajectory(tiny_model, other, talk, force=True).turns


def test_rows_say_raw_and_centred(tiny_model: Any, tiny_axis: Any, talk: Any) -> None:
    found = trajectory(tiny_model, tiny_axis, talk, [1, 2])
    rows = found.rows()
    assert len(rows) == 4
    assert rows[1]["raw"] - rows[1]["centered"] == pytest.approx(float(tiny_axis.center()[2]), abs=1e-5)
    assert "centred" in str(found)
