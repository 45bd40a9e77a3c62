"""Calibration, adherence, readings, sweep and replay on a small random model."""

import json
import math
from dataclasses import replace

import pytest
import torch

from assistant_axis.errors import ArtefactMismatchError, ConversationError, GeometryError, SettingError
from assistant_axis.models.scoring import log_likelihoods
from assistant_axis.personas.rollouts import Rollout
from assistant_axis.steering.adherence import (
    Case,
    adherence,
    answer_cases,
    is_incoherent,
    neutral_perplexity,
    persona_cases,
)
from assistant_axis.steering.calibrate import calibrate, control_directions, dose_table
from assistant_axis.steering.direction import Direction
from assistant_axis.steering.doses import DoseResponse, dose_response
from assistant_axis.steering.interventions import Add, Cap
from assistant_axis.steering.readings import generate_traced, trace
from assistant_axis.steering.replay import replay, user_turns
from assistant_axis.steering.sweep import measure, sweep

CHAT = [
    {"role": "user", "content": "hello"},
    {"role": "assistant", "content": "hi you"},
    {"role": "user", "content": "who?"},
    {"role": "assistant", "content": "a model"},
]
CASES = [Case("pirate", "You are a pirate.", f"q{k}") for k in range(4)]


@pytest.fixture(scope="module")
def rollouts(tiny):
    texts = [f"question {k}" for k in range(12)]
    answers = tiny.generate([[{"role": "user", "content": t}] for t in texts], max_new_tokens=6, temperature=1.0)
    return [
        Rollout("default" if k < 4 else "pirate", 0, k, 0, "", t, a.text, a.prompt_ids, a.ids, a.finish_reason)
        for k, (t, a) in enumerate(zip(texts, answers, strict=True))
    ]


def test_calibration_is_that_of_single_passes(tiny, axis, rollouts):
    found = calibrate(axis, tiny, rollouts, layers=[1, 2], batch_size=5)
    r = rollouts[7]
    ids = torch.tensor([[*r.prompt_ids, *r.answer_ids]])
    _, cache = tiny.run_with_cache(ids)
    own = axis.project(cache["blocks.2.hook_resid_post"][0, len(r.prompt_ids) :], 2)
    assert float((found.responses[:, 1] - own.mean()).abs().min()) < 1e-4
    assert found.tokens == sum(len(r.answer_ids) for r in rollouts)
    assert sum(found.default) == 4
    low, high = found.interval(75, 1)
    assert low <= found.percentile(75, 1) <= high
    assert found.percentile(0, 1, "tokens") <= found.percentile(0, 1) <= found.percentile(100, 1)
    assert 0 <= found.default_rank(2) <= 100
    assert found.tokens_below(found.percentile(50, 2, "tokens"), 2) == pytest.approx(0.5, abs=0.02)
    direction = found.calibrated()
    assert Cap.calibrated(direction, 50, layers=1).thresholds(1)[0] == pytest.approx(found.percentile(50, 1), abs=1e-4)
    tokens = found.calibrated("tokens")
    assert Cap.calibrated(tokens, 50, layers=1).thresholds(1)[0] == pytest.approx(
        found.percentile(50, 1, "tokens"), abs=1e-4
    )
    assert [row["layer"] for row in found.rows()] == [1, 2]
    with pytest.raises(GeometryError, match="no rollout"):
        calibrate(axis, tiny, [])


def test_dose_table(axis):
    rows = dose_table(axis, [2])
    assert rows[0]["-0.25 raw"] == pytest.approx(-0.25 * float(axis.resid_norms[2]))
    with pytest.raises(SettingError):
        dose_table({1: torch.randn(32)})


def test_log_likelihoods_do_not_depend_on_batches(tiny):
    rows = [((5, 6, 7, 8), (9, 10)), ((5,), (6, 7, 8, 9, 10)), ((40, 41), (42,))]
    together = log_likelihoods(tiny, rows)
    alone = [log_likelihoods(tiny, [r], token_budget=1)[0] for r in rows]
    assert together == pytest.approx(alone, abs=1e-4)
    logits = tiny.forward(torch.tensor([[40, 41, 42]]), logits=None).logits[0, 1].log_softmax(-1)
    assert together[2] == pytest.approx(float(logits[42]), abs=1e-4)


def test_adherence_knows_the_role(tiny):
    answers = answer_cases(tiny, CASES, max_new_tokens=5)
    found = adherence(tiny, CASES, answers)
    # Greedy answers under the role prompt are likelier under it than under another prompt.
    assert found.mean > 0
    low, high = found.interval()
    assert low <= found.mean <= high
    with pytest.raises(SettingError, match="3 answers"):
        adherence(tiny, CASES, answers[:3])
    assert len(persona_cases(questions=2)) == 24
    assert is_incoherent([], 0.0)
    assert is_incoherent([1, 2] * 20, -1.0)
    assert not is_incoherent(list(range(30)), -1.0)
    assert is_incoherent(list(range(30)), -9.0)


def test_trace_before_and_after(either, axis):
    cap = Cap(axis, floor=2.0, layers=2, positions="response")
    found = trace(either, CHAT, axis, cap)
    plain = trace(either, CHAT, axis)
    assert not plain.changed.any()
    assert torch.equal(plain.pre, plain.post)
    two = found.at(2)
    assert torch.allclose(found.pre[two], plain.pre[two])
    below = plain.pre[two] < 2.0
    response = torch.zeros(len(found.ids), dtype=torch.bool)
    for role, span in found.turns:
        response[span.start : span.stop] = role == "assistant"
    assert torch.equal(found.changed[two], below & response)
    assert torch.allclose(found.post[two][below & response], torch.tensor(2.0), atol=1e-4)
    assert torch.equal(found.changed.any(1), torch.tensor([False, False, True, False]))
    turns = found.per_turn(2)
    assert [t.role for t in turns] == ["user", "assistant"] * 2
    assert turns[0].changed == 0
    assert turns[1].post >= turns[1].pre
    assert float(found.changed_share("user")[two]) == 0
    with pytest.raises(SettingError, match="not read"):
        found.at(9)


@pytest.mark.parametrize("positions", ["all", "response", "last"])
def test_generate_traced(tiny, axis, positions):
    add = Add(axis, 1.0, layers=1, positions=positions)
    answer, found = generate_traced(tiny, CHAT[:3], axis, add, max_new_tokens=6)
    with tiny.steered(add):
        assert tiny.generate(CHAT[:3], max_new_tokens=6) == answer
    step = add.size(1)
    moved = found.post[1] - found.pre[1]
    assert torch.allclose(moved[found.changed[1]], torch.tensor(step), atol=1e-3)
    start = len(answer.prompt_ids)
    expected = {"all": len(found.ids), "response": None, "last": len(found.ids) - start + 1}[positions]
    if expected is not None:
        assert int(found.changed[1].sum()) == expected
    assert bool(found.changed[1, start:].all())


def test_replay(tiny, axis):
    talk = [{"role": "system", "content": "be kind"}, *CHAT]
    same = replay(tiny, talk, axis, max_new_tokens=4, temperature=1.0, seed=3)
    assert all(t.plain == t.steered for t in same.turns)
    capped = replay(tiny, talk, axis, Cap(axis, floor=3.0, layers=2), layer=2, max_new_tokens=4)
    assert len(capped.turns) == 2
    assert all(t.post >= 3.0 - 1e-3 for t in capped.turns)
    assert capped.table().row_count == 2
    assert capped.plot().get_xlabel() == "turn"
    with pytest.raises(ConversationError, match="no user turn"):
        replay(tiny, [{"role": "system", "content": "x"}], axis)
    assert user_turns(["a"]) == [{"role": "user", "content": "a"}]


def test_sweep_measures_controls_on_the_held_out_half(tiny, axis, rollouts):
    direction = calibrate(axis, tiny, rollouts, layers=[1, 2]).calibrated()
    controls = control_directions(direction, model=tiny, rollouts=rollouts, randoms=2)
    assert [c.name for c in controls] == ["random direction (seed 0)", "random direction (seed 1)"]
    options = {"cases": CASES, "max_new_tokens": 4, "neutral": 1, "max_cost": math.inf, "max_incoherent": 1.0}
    found = sweep(tiny, direction, [range(1, 3)], [60], controls=controls, **options)
    cap = Cap.calibrated(controls[1], 60, layers=range(1, 3))
    assert found.controls[1] == (
        "random direction (seed 1)",
        replace(measure(tiny, cap, CASES[1::2], max_new_tokens=4, neutral=1), window=(1, 3), percentile=60.0),
    )
    rows = found.check_rows()
    assert [r["direction"] for r in rows] == ["unsteered", "layers 1–2, floor at 60 %", *(c.name for c in controls)]
    assert rows[1]["of the cap's fall"] == "100%"
    with pytest.raises(SettingError, match="need a calibration"):
        control_directions(direction)


def test_dose_response(tiny, axis):
    options = {"layer": 2, "cases": CASES, "max_new_tokens": 4, "neutral": 1}
    control = Direction.of(axis).random(0)
    found = dose_response(tiny, axis, [0.5, 0.0, -0.5], controls=[control], **options)
    assert found.directions == ("Assistant Axis", "random direction (seed 0)")
    assert [d.coef for d in found.along()] == [-0.5, 0.0, 0.5]
    still = adherence(tiny, CASES, answer_cases(tiny, CASES, max_new_tokens=4))
    assert [d.adherence for d in found.doses if d.coef == 0] == [pytest.approx(still.mean)] * 2
    add = Add(axis, -0.5, layers=2)
    away = adherence(tiny, CASES, answer_cases(tiny, CASES, add, max_new_tokens=4))
    assert found.along()[0].adherence == pytest.approx(away.mean)
    assert found.along()[0].perplexity == pytest.approx(neutral_perplexity(tiny, add, count=1))
    falls = [replace(d, adherence=-d.coef, incoherent=0.0) for d in found.doses]
    assert DoseResponse(2, tuple(falls)).monotone()
    falls[0] = replace(falls[0], adherence=9.0)
    assert not DoseResponse(2, tuple(falls)).monotone()
    falls[0] = replace(falls[0], incoherent=0.9)
    assert DoseResponse(2, tuple(falls)).monotone()
    assert len(found.rows()) == 6
    assert found.plot()[1].get_xlabel().startswith("dose at layer 2")
    with pytest.raises(SettingError, match="two different doses"):
        dose_response(tiny, axis, [0.1], **options)


def test_sweep_resumes(tiny, axis, tmp_path):
    out = tmp_path / "sweep.jsonl"
    options = {"cases": CASES, "max_new_tokens": 4, "neutral": 1, "out": out, "max_cost": math.inf}
    first = sweep(tiny, axis, [range(1, 3)], [50, 60.0], **options)
    assert len(first.outcomes) == 2
    assert first.recommended in first.outcomes
    assert first.held_out is not None
    assert first.outcomes[0].changed.keys() == {"1", "2"}
    lines = out.read_text().splitlines()
    out.write_text("\n".join(lines[:-1]) + "\n" + lines[-1][:20])  # cut in the middle of its last line
    again = sweep(tiny, axis, [range(1, 3)], [50, 60.0], **options)
    assert again == first
    assert json.loads(out.read_text().splitlines()[-1])
    assert first.pareto()
    assert first.rows()[0]["setting"] == "unsteered"
    assert first.plot().get_legend()
    with pytest.raises(ArtefactMismatchError, match="another sweep"):
        sweep(tiny, axis, [range(1, 3)], [50], **options | {"max_new_tokens": 5})
    with pytest.raises(SettingError, match="at least one window"):
        sweep(tiny, axis, [], [50])
