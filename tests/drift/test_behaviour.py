"""Drift and behaviour: what is held, what is scored, and that rows of one role do not count as independent."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from assistant_axis.drift.behaviour import (
    Outcome,
    adherence_outcomes,
    labelled_outcomes,
    random_relations,
    read_labels,
    relate,
    role_scenarios,
    write_outcomes,
)
from assistant_axis.drift.simulate import Simulation, simulate
from assistant_axis.errors import IntegrityError, SettingError, UnknownNameError
from assistant_axis.models.scoring import log_likelihoods
from assistant_axis.plots.drift import behaviour_map


@pytest.fixture(scope="module")
def held(tiny_model: Any, tiny_axis: Any) -> Simulation:
    scenarios = role_scenarios(roles=7, per_role=2, seed=1)
    options: dict[str, Any] = {"turns": 2, "max_new_tokens": 6, "temperature": 1.0, "progress": False}
    return simulate(tiny_model, tiny_axis, scenarios, **options)


def rows(r: float, roles: int = 40, per_role: int = 3, shared: float = 0.0, seed: int = 0) -> list[Outcome]:
    """Rows with correlation `r` between roles; `shared` is how much of an outcome all rows of a role have in common."""
    rng = np.random.default_rng(seed)
    out = []
    for k in range(roles):
        x, e = rng.normal(), rng.normal()
        for j in range(per_role):
            first = x + (0.0 if shared else rng.normal())
            outcome = r * first + math.sqrt(1 - r * r) * (e if shared else rng.normal())
            out.append(Outcome(f"{k}-{j}", f"role {k}", first, first - 1, outcome))
    return out


def test_roles_are_put_in_the_system_prompt_and_questions_differ() -> None:
    found = role_scenarios(roles=5, per_role=3)
    assert len(found) == 15
    assert len({s.id for s in found}) == 15
    assert len({s.system for s in found}) == 15
    assert len({q for s in found for q in s.turns}) == 30
    assert role_scenarios(roles=5, per_role=3, seed=1) != found
    asked = role_scenarios(roles=["pirate", "ghost"], per_role=1, second=["How?"])
    assert [s.turns[1] for s in asked] == ["How?", "How?"]
    assert len(role_scenarios(per_role=1)) == 275
    with pytest.raises(SettingError, match="1 to 275"):
        role_scenarios(roles=276)
    with pytest.raises(UnknownNameError):
        role_scenarios(roles=["pirrate"])


def test_the_system_prompt_of_each_conversation_reaches_the_model(held: Simulation, tiny_model: Any) -> None:
    scenarios = {s.id: s for s in role_scenarios(roles=7, per_role=2, seed=1)}
    for t in held.turns:
        assert t.system == scenarios[t.conversation].system
        assert t.user == scenarios[t.conversation].turns[t.turn]
    for name, messages in held.conversations().items():
        assert messages[0] == {"role": "system", "content": scenarios[name].system}


def test_adherence_is_that_of_the_second_answer_alone(held: Simulation, tiny_model: Any) -> None:
    found = adherence_outcomes(tiny_model, held)
    assert found
    by = {(t.conversation, t.turn): t for t in held.turns}
    for one in found[:4]:
        first, second = by[one.conversation, 0], by[one.conversation, 1]
        assert one.first == first.raw
        asked = {"role": "user", "content": second.user}
        role = tiny_model.chat.encode_prompt([{"role": "system", "content": first.system}, asked]).ids
        default = tiny_model.chat.encode_prompt([asked]).ids
        scores = log_likelihoods(tiny_model, [(role, second.answer_ids), (default, second.answer_ids)])
        assert one.outcome == pytest.approx(scores[0] - scores[1], abs=1e-4)


def test_random_directions_are_read_from_the_first_answers(held: Simulation, tiny_model: Any, tiny_axis: Any) -> None:
    found = adherence_outcomes(tiny_model, held)
    chance = random_relations(tiny_model, held, found, draws=50)
    assert chance.shape == (50,)
    assert np.isfinite(chance).all()
    assert np.ptp(chance) > 0.1
    relation = relate(found, resamples=100)
    assert relation.roles == 7
    assert behaviour_map(found, relation, label="adherence").axes


def test_a_relation_is_found_and_its_interval_covers_it() -> None:
    found = relate(rows(-0.6), resamples=500)
    assert found.pearson == pytest.approx(-0.6, abs=0.15)
    assert found.pearson_interval.low < found.pearson < found.pearson_interval.high < 0
    assert found.p == pytest.approx(1 / 501)
    assert found.within < 0
    assert "bootstrap over 40 roles" in str(found)
    nothing = relate(rows(0.0, seed=3), resamples=500)
    assert nothing.p > 0.05


def test_rows_of_one_role_are_not_independent() -> None:
    """The same twelve roles with many copied rows: the interval must not shrink."""
    few, many = (relate(rows(0.0, 12, n, shared=1.0, seed=2), resamples=500) for n in (1, 25))
    assert many.n == 25 * few.n
    width = [r.pearson_interval.high - r.pearson_interval.low for r in (few, many)]
    assert width[1] == pytest.approx(width[0], rel=0.15)
    assert many.p == pytest.approx(few.p, abs=0.1)
    assert math.isnan(few.within)


def test_labels(held: Simulation, tmp_path: Path) -> None:
    names = list(dict.fromkeys(t.conversation for t in held.turns))
    path = tmp_path / "labels.jsonl"
    path.write_text("".join(json.dumps({"conversation": n, "label": k % 2}) + "\n\n" for k, n in enumerate(names)))
    labels = read_labels(path)
    found = labelled_outcomes(held, labels)
    assert {o.conversation: o.outcome for o in found}.items() <= labels.items()
    written = [json.loads(x) for x in write_outcomes(tmp_path / "o.jsonl", held, found).read_text().splitlines()]
    assert [m["role"] for m in written[0]["messages"]] == ["system", "user", "assistant", "user", "assistant"]
    with pytest.raises(SettingError, match="'nobody'"):
        labelled_outcomes(held, {"nobody": 1.0})
    for wrong in ('{"conversation": "a"}', "no", '{"conversation": "a", "label": "harm"}', "[1]"):
        path.write_text(wrong)
        with pytest.raises(IntegrityError, match=r"labels\.jsonl:1"):
            read_labels(path)
    path.write_text('{"conversation": "a", "label": 1}\n' * 2)
    with pytest.raises(IntegrityError, match="twice"):
        read_labels(path)
    with pytest.raises(FileNotFoundError):
        read_labels(tmp_path / "none")


def test_what_cannot_be_related_is_refused(held: Simulation, tiny_model: Any) -> None:
    with pytest.raises(SettingError, match="there are 4"):
        relate(rows(0.5, roles=4))
    same = [Outcome(f"{k}", f"role {k}", float(k), 0.0, 1.0) for k in range(8)]
    with pytest.raises(SettingError, match="Every outcome is the same"):
        relate(same)
    with pytest.raises(SettingError, match="not finite"):
        relate([*rows(0.5), Outcome("x", "x", math.nan, 0.0, 1.0)])
    one = Simulation(tuple(t for t in held.turns if t.turn == 0), held.conditions)
    with pytest.raises(SettingError, match="two answers"):
        adherence_outcomes(tiny_model, one)
