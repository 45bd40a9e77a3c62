"""Question effects taken out of persona vectors whose roles were asked different questions."""

from dataclasses import replace

import pytest
import torch

from assistant_axis.activations.store import Conditions
from assistant_axis.errors import GeometryError
from assistant_axis.geometry.questions import SPREAD, QuestionEffects
from assistant_axis.geometry.stability import split_half, stability
from assistant_axis.geometry.vectors import PersonaVectors, Samples
from assistant_axis.personas.library import load_personas, plan


def make(tiny_model, noise=0.0, roles=6, questions=8, each=4):
    """Roles that ask questions of their own choice; the default is asked all of them."""
    g = torch.Generator().manual_seed(0)
    own = torch.randn(roles + 1, 2, 32, generator=g)
    effect = 3 * torch.randn(questions, 2, 32, generator=g)
    effect -= effect.mean(0)
    chosen = [torch.randperm(questions, generator=g)[:each].tolist() for _ in range(roles)]
    pairs = [(r, q) for r, own_questions in enumerate([*chosen, range(questions)]) for q in own_questions]
    x = torch.stack([own[r] + effect[q] for r, q in pairs]) + noise * torch.randn(len(pairs), 2, 32, generator=g)
    who = torch.tensor([r for r, _ in pairs])
    means = torch.stack([x[who == r].mean(0) for r in range(roles + 1)])
    made = PersonaVectors(
        roles=tuple(f"role {r}" for r in range(roles)),
        layers=(0, 1),
        vectors=means[:-1],
        default=means[-1],
        default_conditions=means[-1:],
        counts=torch.full((roles,), each),
        default_count=questions,
        resid_norms=torch.ones(2),
        conditions=Conditions.of(tiny_model, span="header", personas="t", personas_hash="", design="t", seed=0),
        samples=Samples(x.half(), torch.where(who == roles, -1, who), torch.tensor([q for _, q in pairs])),
    )
    return made, own


def test_roles_are_recovered_from_different_questions(tiny_model):
    vectors, own = make(tiny_model)
    assert float((vectors.vectors - own[:-1]).abs().max()) > 1
    adjusted = vectors.adjust_questions()
    assert float((adjusted.vectors - own[:-1]).abs().max()) < 0.02  # samples are in half precision
    assert float((adjusted.default - own[-1]).abs().max()) < 0.02


def test_what_cannot_be_told_apart_is_refused(tiny_model):
    vectors, _ = make(tiny_model)
    assert vectors.samples is not None
    with pytest.raises(GeometryError, match="single rollouts are kept"):
        replace(vectors, samples=None).adjust_questions()
    alone = vectors.samples.question.clone()
    alone[:4] = torch.tensor([20, 21, 22, 23])
    with pytest.raises(GeometryError, match="cannot be told apart"):
        replace(vectors, samples=replace(vectors.samples, question=alone)).adjust_questions()


def test_a_spread_plan_asks_every_question():
    library = load_personas()
    asks = plan(library, prompts_per_role=4, questions_per_prompt=4, default_questions=48, spread=True)
    asked = {}
    for a in asks:
        asked.setdefault(a.role, []).append(a.question.id)
    assert sorted(asked["default"]) == sorted(q.id for q in library.questions)
    roles = [set(v) for k, v in asked.items() if k != "default"]
    assert all(len(r) == 16 for r in roles)
    assert set.union(*roles) == set(asked["default"])
    shared = plan(library, prompts_per_role=4, questions_per_prompt=4)
    assert len({tuple(a.question.id for a in shared if a.role == r) for r in library.role_names[:20]}) == 1


def test_halves_of_a_spread_run_take_out_their_own_questions(tiny_model):
    plain, own = make(tiny_model, noise=0.1, roles=24, questions=16, each=8)
    spread = replace(plain, conditions=replace(plain.conditions, design="t" + SPREAD))
    assert spread.spread
    assert not plain.spread
    assert (
        stability(spread, splits=5, resamples=5).split_half.min() > 0.97 > stability(plain, splits=5).split_half.min()
    )
    for half in split_half(spread, seed=1):
        assert float((half.vectors - half.role_mean - (own[:-1] - own[:-1].mean(0))).abs().max()) < 0.5
        assert float(torch.cosine_similarity(half.default - half.role_mean, own[-1] - own[:-1].mean(0)).min()) > 0.97
    unknown = replace(spread, samples=replace(spread.samples, question=None))
    with pytest.raises(GeometryError, match="not recorded which"):
        stability(unknown)


def test_the_weights_are_the_adjusted_means(tiny_model):
    """`adjust_questions` and the axis of all rollouts in `stability` are one fit."""
    plain, _ = make(tiny_model, noise=0.1)
    role = plain.samples.role % (len(plain.roles) + 1)
    fit = QuestionEffects.of(role, plain.samples.question)
    by_hand = torch.linalg.lstsq(  # dummy variables for roles and questions, question effects centred afterwards
        torch.cat([torch.nn.functional.one_hot(role), torch.nn.functional.one_hot(plain.samples.question)], 1).double(),
        plain.samples.activations[:, 0].double(),
        driver="gelsd",
    ).solution
    effects = by_hand[7:]
    expected = by_hand[:7] + effects.mean(0)
    assert torch.allclose(
        fit.weights(torch.eye(7)) @ plain.samples.activations[:, 0].float(), expected.float(), atol=1e-4
    )


def test_rollouts_beyond_half_precision_are_refused(tiny_model):
    plain, _ = make(tiny_model)
    plain.samples.activations[3, 1, 5] = torch.inf
    with pytest.raises(GeometryError, match="half precision"):
        stability(plain)
    assert stability(plain.select(layers=[0]), splits=2, resamples=2).layers == (0,)
