"""Interventions in one table: chosen on one half, reported on the other, beside a random direction."""

import pytest
import torch

from assistant_axis.errors import ArtefactMismatchError, SettingError
from assistant_axis.evals.datasets import MILD, read_prompts
from assistant_axis.evals.harness import HookedLM
from assistant_axis.evals.report import Suites, evaluate, random_control
from assistant_axis.steering.interventions import Add, Cap


def by_letters(prompts, answers):
    """A labeller of the test's own: harmful where the answer has an even number of characters."""
    return ["enough information" if len(a) % 2 == 0 else "refusal" for a in answers]


@pytest.fixture(scope="module")
def report(tiny_model, tiny_direction):
    steps = {
        "nothing": Add(tiny_direction, 0.0, layers=2),
        "away": Add(tiny_direction, -6.0, layers=2),
        "cap": Cap(tiny_direction, floor=0.5, layers=[1, 2]),
    }
    rows = read_prompts(MILD)[:8]
    suites = Suites(rows, by_letters, safe=rows[:4], limit=4, max_new_tokens=5)
    return evaluate(tiny_model, steps, suites, max_cost=1.0)


def test_halves_and_choice(report):
    assert [e.name for e in report.searched] == ["nothing", "away", "cap"]
    assert all(e.harm.n == 4 for e in (*report.searched, report.reported, report.control))
    nothing = report.searched[0]
    assert (nothing.harm.change, nothing.capability, nothing.changed.value) == (0.0, 0.0, 0.0)
    best = min(report.searched, key=lambda e: (e.harm.change, -e.capability))
    assert report.chosen == report.reported.name == best.name
    assert report.control.name == "random direction"
    assert report.searched[1].changed.value == pytest.approx(1.0)
    assert 0 <= report.searched[2].changed.interval[0] <= report.searched[2].changed.interval[1] <= 1
    assert all(t.change.n == 2 for e in (*report.searched, report.reported) for t in e.tasks)


def test_what_lowers_nothing_is_not_chosen(tiny_model, tiny_direction, monkeypatch):
    monkeypatch.setattr("assistant_axis.evals.report._ROUNDS", 1)
    suites = Suites(read_prompts(MILD)[:4], by_letters, tasks=(), max_new_tokens=2)
    found = evaluate(tiny_model, {"nothing": Add(tiny_direction, 0.0, layers=2)}, suites)
    assert (found.chosen, found.reported, found.control) == (None, None, None)
    assert [r["half"] for r in found.rows()] == ["search"]


def test_the_table_and_the_figure(report):
    rows = report.rows()
    assert [r["half"] for r in rows] == ["search"] * 3 + ["held out"] * 2
    assert {"harm", "everyday_choice acc", "nonsensical", "over-refusal", "tokens changed", "time"} <= set(rows[0])
    assert sum("chosen" in r["intervention"] for r in rows) == 1
    front = report.pareto()
    assert front
    for one in report.searched:
        assert any(f.capability >= one.capability and f.harm.after <= one.harm.after for f in front)
    (ax,) = report.plot().axes
    assert ax.get_ylabel() == "harm rate"
    assert {"nothing", "away", "cap"} <= {t.get_text() for t in ax.texts}


def test_everything_has_an_interval(report):
    for one in (*report.searched, report.reported, report.control):
        for low, value, high in (
            one.capability_interval,
            (one.changed.interval[0], one.changed.value, one.changed.interval[1]),
            (one.slower.interval[0], one.slower.value, one.slower.interval[1]),
            (one.harm.interval[0], one.harm.change, one.harm.interval[1]),
        ):
            assert low - 1e-9 <= value <= high + 1e-9
        (task,) = (t for t in one.tasks if t.metric == "acc")
        assert one.capability_interval[1] == pytest.approx(task.change.change)
        assert one.slower.n == 9
    for row in report.rows():
        assert all("[" in row[c] for c in ("harm", "everyday_choice acc", "nonsensical", "tokens changed", "time"))


def test_an_interrupted_report_goes_on(tiny_model, tiny_direction, tmp_path, monkeypatch):
    monkeypatch.setattr("assistant_axis.evals.report._ROUNDS", 1)
    steps = {"a/b": Cap(tiny_direction, floor=0.5, layers=[1, 2])}
    suites = Suites(read_prompts(MILD)[:6], by_letters, limit=4, max_new_tokens=3, labels=("refusal",))
    settings = {"max_cost": 1.0, "controls": "all", "keep": tmp_path}
    first = evaluate(tiny_model, steps, suites, **settings)
    assert [e.name for e in first.search_controls] == ["a/b, random direction"]
    assert "refusal" in first.rows()[0]
    assert first.plot().axes[0].get_ylabel() == "share of answers: refusal"
    monkeypatch.setattr(HookedLM, "_score", None)
    asked = []
    generate = tiny_model.generate
    monkeypatch.setattr(tiny_model, "generate", lambda c, **k: asked.append(c) or generate(c, **k))
    again = evaluate(tiny_model, steps, suites, **settings)
    assert {len(c) for c in asked} == {2}  # nothing but the timing of one chat: its two messages
    for one, two in zip(first.searched, again.searched, strict=True):
        assert (one.harm, one.tasks, one.changed) == (two.harm, two.tasks, two.changed)
    with pytest.raises(SettingError, match="controls='both'"):
        evaluate(tiny_model, steps, suites, controls="both")


def test_the_control_moves_as_much(tiny_model, tiny_direction):
    rows = read_prompts(MILD)[:3]
    same = random_control(tiny_model, Add(tiny_direction, 0.7, layers=2), rows, seed=1)
    assert isinstance(same, Add)
    assert (same.coef, same.unit) == (0.7, "resid_norm")
    assert abs(float(torch.cosine_similarity(same.direction.unit[2], tiny_direction.unit[2], dim=0))) < 0.6
    moved = random_control(tiny_model, Cap(tiny_direction, floor=1.0, layers=[2]), rows)
    assert isinstance(moved, Add)
    assert moved.unit == "raw"
    assert moved.coef > 0


def test_bad_input(tiny_model, tiny_direction):
    with pytest.raises(ArtefactMismatchError, match="width 7"):
        evaluate(tiny_model, {"a": Cap({0: torch.ones(7)}, 0.0)}, Suites(read_prompts(MILD), by_letters))
    with pytest.raises(SettingError, match="four prompts"):
        evaluate(tiny_model, {"a": Add(tiny_direction, 0.0)}, Suites(read_prompts(MILD)[:3], by_letters))
    with pytest.raises(SettingError, match="at least one intervention"):
        evaluate(tiny_model, {}, Suites(read_prompts(MILD), by_letters))
    with pytest.raises(SettingError, match="Labels by form cannot tell enough information"):
        evaluate(tiny_model, {"a": Add(tiny_direction, 0.0)}, Suites(read_prompts(MILD)))
