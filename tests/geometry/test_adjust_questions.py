"""Question effects taken out of persona vectors whose roles were asked different questions."""

from dataclasses import replace

import pytest
import torch

from assistant_axis.activations.store import Conditions
from assistant_axis.errors import GeometryError
from assistant_axis.geometry.vectors import PersonaVectors, Samples
from assistant_axis.personas.library import load_personas, plan


def make(tiny_model, noise=0.0, roles=6, questions=8, each=4):
    """Roles that start at places of their own in the order of questions; the default is asked all of them."""
    g = torch.Generator().manual_seed(0)
    own = torch.randn(roles + 1, 2, 32, generator=g)
    effect = 3 * torch.randn(questions, 2, 32, generator=g)
    effect -= effect.mean(0)
    pairs = [(r, (r + k) % questions) for r in range(roles) for k in range(each)] + [
        (roles, q) for q in range(questions)
    ]
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
